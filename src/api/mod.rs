//! The `api` role: HTTP and WebSocket on the network and on the Unix socket, sessions, encoding, the store.
//!
//! Owns everything that clients see. Never touches a device, and never executes what a client sends: requests are
//! checked here and passed on as values.
//!
//! ```text
//!  listeners -> serve -> routes -> handlers, stream -> hub -> worker (link) ....> the worker process
//!                                     |                 |                          | frames, shared memory
//!                 decoder (link) <- uploads   session: watch channel <- pump <------+
//!                                                                       |-> encode, live (once for all viewers)
//!                                                                       `-> record (H.264, MP4) -> store
//! ```

mod access;
mod assets;
mod body;
mod comeback;
mod decoder;
mod encode;
mod files;
mod http;
mod hub;
mod idempotency;
mod journal;
mod launch;
mod limits;
mod live;
mod metrics;
mod openai;
mod openapi;
mod page;
mod pump;
mod query;
mod rate;
mod record;
mod refusal;
mod resources;
mod resume;
mod routes;
mod serve;
mod session;
mod stream;
mod uploads;
mod worker;

use std::io::Read;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use tokio::sync::Notify;

use self::access::{Access, TokenError};
use self::decoder::Decoders;
use self::hub::{Hub, Parts};
use self::journal::Journal;
use self::limits::{DRAIN_TIME_MAX, IDLE_CHECK_PERIOD};
use self::metrics::Counters;
use self::refusal::chain;
use crate::config::Config;
use crate::exit::Exit;
use crate::proto::link::{FromApi, ToApi, build_id};
use crate::store::StoreError;
use crate::store::folder::FolderStore;
use crate::store::uploads::Uploads;
use crate::sys::dir::Dir;
use crate::sys::link::{Link, LinkError};
use crate::sys::sandbox::{self, Protections, SandboxError};

/// Why the role cannot run.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error("the parent closed the link before the start")]
    NoParent,
    #[error("the parent's first message is not a start of this build")]
    Start,
    #[error("talk to the parent")]
    Link(#[source] LinkError),
    #[error("use the token file")]
    Tokens(#[from] TokenError),
    #[error("open the store")]
    Store(#[from] StoreError),
    #[error("enter the sandbox")]
    Sandbox(#[from] SandboxError),
    #[error("prepare to serve")]
    System(#[from] std::io::Error),
}

impl ApiError {
    fn exit(&self) -> Exit {
        match self {
            ApiError::NoParent | ApiError::Start | ApiError::Link(_) => Exit::Software,
            ApiError::Tokens(_) => Exit::Config,
            ApiError::Store(_) => Exit::CantCreate,
            ApiError::Sandbox(_) | ApiError::System(_) => Exit::Os,
        }
    }
}

/// Runs the role until the parent drains it or goes away. `link` leads to the parent.
///
/// Blocks: this is the whole process, which enters its sandbox once it knows the configuration. Answers an exit code of
/// sysexits(3).
pub fn run(link: Link) -> ExitCode {
    exit_code(begin(link, Some(|config| sandbox::enter(sandbox::Role::Api, config))))
}

/// Runs the role in a thread of a process that does other things too, a test's: without a sandbox, which would hold for
/// the whole process. The status shows what the start message says about one.
pub fn run_unconfined(link: Link) -> ExitCode {
    exit_code(begin(link, None))
}

fn exit_code(result: Result<(), ApiError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", chain(&error));
            error.exit().into()
        }
    }
}

/// How the process is confined.
type Enter = fn(&mut Config) -> Result<Protections, SandboxError>;

/// What the parent sends first.
struct Start {
    config: Config,
    sandbox: String,
    network: TcpListener,
    local: UnixListener,
}

fn begin(link: Link, enter: Option<Enter>) -> Result<(), ApiError> {
    let mut start = receive_start(&link)?;
    // While there is one thread and before a client has been heard.
    let mut protections = enter.map(|enter| enter(&mut start.config)).transpose()?;
    let Start { config, sandbox, network, local } = start;
    let own_user = nix::unistd::geteuid().as_raw();
    let access = Access::new(network.local_addr()?, own_user, config.http.token_file.as_deref())?;
    let state = Dir::open(&config.state.directory)?;
    let store = Arc::new(FolderStore::open_in(&state, config.state.generations_max)?);
    let journal = Journal::open(&state)?;
    let uploads = Uploads::open_in(&state)?;
    #[cfg(target_os = "freebsd")]
    state.limit()?;
    let mut seed = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    // Everything that has a path is open now.
    let sandbox = match &mut protections {
        Some(protections) => {
            protections.narrow(&[network.as_fd(), local.as_fd()], &[link.as_fd()])?;
            protections.to_string()
        }
        None => sandbox,
    };
    let counters = Arc::new(Counters::default());
    let decoders = Decoders::new(link.clone(), counters.clone());
    let random = ChaCha20Rng::from_seed(seed);
    let mut hub = Hub::new(Parts { config, access, store, uploads, decoders, counters, sandbox, random });
    hub.keep_journal(journal);
    let hub = Arc::new(hub);
    hub.restore();
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("http").enable_all().build()?;
    let orders = Arc::new(Orders::default());
    listen_to_parent(link.try_clone()?, hub.clone(), orders.clone())?;
    write_down(hub.clone())?;
    let served = runtime.block_on(serve_until(hub, network, local, &link, &orders));
    // A viewer that does not read must not hold the process.
    runtime.shutdown_background();
    served
}

/// How the parent says that it is over.
#[derive(Default)]
struct Orders {
    ended: Notify,
    /// True if another api goes on with the sessions.
    hand_over: AtomicBool,
}

impl Orders {
    fn end(&self, hand_over: bool) {
        self.hand_over.store(hand_over, Ordering::Release);
        self.ended.notify_one();
    }
}

/// One thread writes the sessions down.
fn write_down(hub: Arc<Hub>) -> std::io::Result<()> {
    let write = move || {
        loop {
            std::thread::sleep(journal::PERIOD);
            hub.checkpoint(false);
        }
    };
    std::thread::Builder::new().name("journal".to_string()).spawn(write).map(drop)
}

fn receive_start(link: &Link) -> Result<Start, ApiError> {
    let (message, fds) = link.recv::<ToApi>().map_err(ApiError::Link)?.ok_or(ApiError::NoParent)?;
    let mut fds = fds.into_iter();
    match (message, fds.next(), fds.next()) {
        (ToApi::Start { build, config, sandbox }, Some(network), Some(local)) if build == build_id() => {
            let (network, local) = (TcpListener::from(network), UnixListener::from(local));
            network.set_nonblocking(true)?;
            local.set_nonblocking(true)?;
            Ok(Start { config: *config, sandbox, network, local })
        }
        _ => Err(ApiError::Start),
    }
}

/// One thread hears the parent. A link that ends unasked means that the parent was killed: whoever starts the daemon
/// again finds the sessions as they are now.
fn listen_to_parent(link: Link, hub: Arc<Hub>, orders: Arc<Orders>) -> std::io::Result<()> {
    let listen = move || {
        loop {
            match link.recv::<ToApi>() {
                Ok(Some((message, fds))) => heard(&hub, &orders, message, fds),
                Ok(None) => break,
                Err(e) => {
                    log::error!("{}", chain(&e));
                    break;
                }
            }
        }
        orders.end(true);
    };
    std::thread::Builder::new().name("parent".to_string()).spawn(listen)?;
    Ok(())
}

fn heard(hub: &Arc<Hub>, orders: &Orders, message: ToApi, fds: Vec<OwnedFd>) {
    match (message, fds.into_iter().next()) {
        (ToApi::WorkerUp { generation, pid }, Some(fd)) => {
            if let Err(e) = worker::attach(hub.clone(), generation, pid, Link::from_fd(fd)) {
                log::error!("worker {generation}: {e}");
            }
        }
        (ToApi::WorkerDown { generation, reason, retry }, _) => hub.worker_down(generation, &reason, retry),
        (ToApi::Drain, _) => orders.end(false),
        (ToApi::HandOver, _) => orders.end(true),
        (ToApi::WorkerUp { .. } | ToApi::Start { .. }, _) => log::error!("a message from the parent makes no sense"),
    }
}

async fn serve_until(
    hub: Arc<Hub>,
    network: TcpListener,
    local: UnixListener,
    link: &Link,
    orders: &Orders,
) -> Result<(), ApiError> {
    let router = routes::router(hub.clone());
    let network = tokio::net::TcpListener::from_std(network)?;
    let local = tokio::net::UnixListener::from_std(local)?;
    tokio::spawn(serve::network(network, router.clone(), serve::room()));
    tokio::spawn(serve::local(local, router, serve::room()));
    link.send(&FromApi::Ready { build: build_id() }, &[])?;
    let mut check = tokio::time::interval(IDLE_CHECK_PERIOD);
    loop {
        tokio::select! {
            () = orders.ended.notified() => break,
            _ = check.tick() => hub.close_idle(Instant::now()),
        }
    }
    match orders.hand_over.load(Ordering::Acquire) {
        true => hub.checkpoint(true),
        false => finish(&hub).await,
    }
    Ok(())
}

/// Lets recordings end, but not for ever.
async fn finish(hub: &Hub) {
    const STEP: std::time::Duration = std::time::Duration::from_millis(20);
    hub.drain();
    let deadline = Instant::now() + DRAIN_TIME_MAX;
    while !hub.is_drained() && Instant::now() < deadline {
        tokio::time::sleep(STEP).await;
    }
    hub.abandon();
    // Viewers get their last words, and threads remove the files of what was abandoned.
    let deadline = Instant::now() + STEP * 25;
    while !hub.is_drained() && Instant::now() < deadline {
        tokio::time::sleep(STEP).await;
    }
    tokio::time::sleep(STEP * 5).await;
}
