//! An api role in this process, with a test worker behind it and both of its listeners in front.

#![allow(dead_code, reason = "every test program uses another part")]

pub mod client;
pub mod files;
pub mod peer;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gamegend::config::Config;
use gamegend::proto::link::{FromApi, ToApi, build_id};
use gamegend::sys::link::Link;

use self::client::Client;
use self::peer::Peer;

/// A folder under the system's temporary one, removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("gamegend-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the temporary folder is writable");
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The api role and its parent's end of the link.
pub struct Api {
    pub address: SocketAddr,
    pub socket: PathBuf,
    pub state: PathBuf,
    link: Link,
    thread: Option<JoinHandle<ExitCode>>,
    generation: u32,
    /// False while decoders do not answer.
    decoders: Arc<AtomicBool>,
    _scratch: Scratch,
}

struct Held(Arc<AtomicBool>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Api {
    /// Starts the role and waits until it is ready; there is no worker yet.
    pub fn start(name: &str) -> Api {
        Api::start_with(name, |_| {})
    }

    pub fn start_with(name: &str, change: impl FnOnce(&mut Config)) -> Api {
        Api::start_at(name, SocketAddr::from(([127, 0, 0, 1], 0)), change)
    }

    /// The role at an address of the network; port 0 is any that is free.
    pub fn start_at(name: &str, address: SocketAddr, change: impl FnOnce(&mut Config)) -> Api {
        let scratch = Scratch::new(name);
        let network = TcpListener::bind(address).expect("a free port");
        let socket = scratch.path().join("s");
        let local = UnixListener::bind(&socket).expect("a new socket");
        let mut config = Config::default();
        config.state.directory = scratch.path().to_path_buf();
        change(&mut config);
        let state_directory = config.state.directory.clone();
        let address = network.local_addr().expect("bound");
        let (link, theirs) = Link::pair().expect("a socket pair");
        let thread = std::thread::spawn(move || gamegend::api::run_unconfined(theirs));
        let start = ToApi::Start { build: build_id(), config: Box::new(config), sandbox: "none (a test)".into() };
        link.send(&start, &[network.as_fd(), local.as_fd()]).expect("the role reads");
        let (ready, _) = link.recv::<FromApi>().expect("sound").expect("the role starts");
        assert!(matches!(ready, FromApi::Ready { build } if build == build_id()));
        let decoders = Arc::new(AtomicBool::new(true));
        start_decoders(link.clone(), decoders.clone());
        let state = state_directory;
        Api { address, socket, state, link, thread: Some(thread), generation: 0, decoders, _scratch: scratch }
    }

    /// Decoders that are started from now on never answer, until what this returns is dropped.
    pub fn stop_decoders(&self) -> impl Drop + use<> {
        self.decoders.store(false, Ordering::Release);
        Held(self.decoders.clone())
    }

    /// The role with a worker that says hello.
    pub fn with_peer(name: &str) -> (Api, Peer) {
        let mut api = Api::start(name);
        let peer = api.worker_up(Duration::ZERO);
        (api, peer)
    }

    /// Brings the next worker and waits until the api knows it.
    pub fn worker_up(&mut self, stored_pause: Duration) -> Peer {
        self.worker_up_as(stored_pause, peer::MODEL_HASH)
    }

    /// The same for a worker with weights of that hash.
    pub fn worker_up_as(&mut self, stored_pause: Duration, model_hash: &'static str) -> Peer {
        self.generation += 1;
        let (theirs, ours) = Link::pair().expect("a socket pair");
        let up = ToApi::WorkerUp { generation: self.generation, pid: std::process::id() };
        self.link.send(&up, &[theirs.as_fd()]).expect("the role reads");
        let peer = Peer::start_as(ours, stored_pause, model_hash);
        let client = self.local();
        eventually("the worker is known", || client.get("/readyz").status == 200);
        peer
    }

    /// What the parent says when it saw the worker end.
    pub fn worker_down(&self, reason: &str, retry: bool) {
        let down = ToApi::WorkerDown { generation: self.generation, reason: reason.into(), retry };
        self.link.send(&down, &[]).expect("the role reads");
    }

    pub fn drain(&self) {
        self.link.send(&ToApi::Drain, &[]).expect("the role reads");
    }

    /// Ends the role so that another one goes on with its sessions.
    pub fn hand_over(mut self) {
        self.link.send(&ToApi::HandOver, &[]).expect("the role reads");
        assert_eq!(self.wait(), ExitCode::SUCCESS);
    }

    /// Waits for the role's end.
    pub fn wait(&mut self) -> ExitCode {
        self.thread.take().expect("waited once").join().expect("the role does not panic")
    }

    pub fn network(&self) -> Client {
        Client::Network(self.address)
    }

    pub fn local(&self) -> Client {
        Client::Local(self.socket.clone())
    }

    /// Waits until every generation has ended: what still runs when the worker goes would hold up the role's end.
    pub fn settle(&self) {
        let client = self.local();
        eventually("every generation has ended", || {
            let status: gamegend::proto::api::DaemonStatus = client.get("/api/v1/status").json();
            status.sessions.iter().all(|s| s.interactive || s.state.is_final())
        });
    }

    /// Names of the files in the store.
    pub fn stored_files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.state.join("generations")).expect("the store made it");
        let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.drain();
            if !std::thread::panicking() {
                thread.join().expect("the role does not panic");
            }
        }
    }
}

/// What the parent does when the api wants a decoder, with threads instead of processes.
fn start_decoders(link: Link, answering: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        while let Ok(Some((FromApi::Decoder, fds))) = link.recv::<FromApi>() {
            for fd in fds {
                let answering = answering.clone();
                std::thread::spawn(move || {
                    while !answering.load(Ordering::Acquire) {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    gamegend::decode::serve(&Link::from_fd(fd), None)
                });
            }
        }
    });
}

/// Waits until `holds`, for ten seconds at the most.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
