//! What the api role knows: its sessions, its worker, its store. Every front and every thread goes through here.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Instant;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::access::{Access, Client};
use super::journal::Journal;
use super::limits::ENDED_KEPT_MAX;
use super::pump::{self, Archive};
use super::rate::{Kind, Rates};
use super::refusal::{Refusal, chain};
use super::session::{Feed, Session, Spec, links};
use super::worker::{Order, Worker};
use crate::config::Config;
use crate::frame::{RingReader, Snapshot};
use crate::proto::api::{Control, DaemonStatus, GenerateRequest, SessionStatus, State, Vocabulary, WorkerStatus};
use crate::proto::limits;
use crate::proto::link::{FromWorker, SessionNumber, ToWorker};
use crate::store::{Generation, Object, Store};
use crate::sys::shm::SharedMemory;

/// Everything that requests and threads share.
pub struct Hub {
    pub config: Config,
    pub access: Access,
    pub store: Arc<dyn Store>,
    /// `None` in tests that need no way back.
    journal: Option<Journal>,
    rates: Rates,
    sandbox: String,
    started: Instant,
    draining: AtomicBool,
    numbers: AtomicU64,
    random: Mutex<ChaCha20Rng>,
    /// Locked before `sessions` where both are: a session is opened by whoever inserts it or by whoever brings the
    /// worker, never by both.
    desk: Mutex<Desk>,
    sessions: Mutex<Sessions>,
}

/// The worker, and what was learnt from the last one.
#[derive(Default)]
struct Desk {
    worker: Option<Worker>,
    vocabulary: Option<Vocabulary>,
    model_hash: String,
    /// Why there will be no worker any more.
    given_up: Option<String>,
}

#[derive(Default)]
struct Sessions {
    by_id: HashMap<String, Arc<Session>>,
    by_number: HashMap<SessionNumber, Arc<Session>>,
    /// Ids of ended sessions, in the order in which they ended.
    ended: Vec<String>,
}

impl Hub {
    /// `random` makes ids and seeds; `sandbox` is the api's own, in words. Sessions are written down in the journal
    /// once [`Hub::keep_journal`] gave one.
    pub fn new(config: Config, access: Access, store: Arc<dyn Store>, sandbox: String, random: ChaCha20Rng) -> Hub {
        Hub {
            config,
            access,
            store,
            journal: None,
            rates: Rates::default(),
            sandbox,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            numbers: AtomicU64::new(1),
            random: Mutex::new(random),
            desk: Mutex::default(),
            sessions: Mutex::default(),
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn random(&self) -> MutexGuard<'_, ChaCha20Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request of a client. Errors: `rate_limited`.
    pub fn count(&self, client: &Client, kind: Kind) -> Result<(), Refusal> {
        if !client.is_limited() {
            return Ok(());
        }
        self.rates.count(client, kind, Instant::now()).map_err(|wait| {
            let detail = format!("{} of these requests a minute are allowed.", kind.per_minute());
            Refusal::new("rate_limited", detail).retry_after(wait.as_secs() + 1)
        })
    }

    /// Starts a session. Errors: `invalid_field`, `unknown_session` (in `from`), `too_many_sessions`,
    /// `worker_unavailable`, `draining`.
    ///
    /// Blocks: for as long as a snapshot takes to read.
    pub fn generate(self: &Arc<Hub>, client: &Client, request: GenerateRequest) -> Result<Arc<Session>, Refusal> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Refusal::new("draining", "The daemon is stopping and starts nothing new."));
        }
        let vocabulary = self.vocabulary()?;
        request.check(&vocabulary)?;
        let origin = request.from.as_deref().map(|id| self.snapshot_of(client, id, &request)).transpose()?;
        let mut id = [0; 16];
        self.random().fill_bytes(&mut id);
        let seed = request.seed.unwrap_or_else(|| u64::from(self.random().next_u32()));
        let spec = Spec {
            id: id.iter().map(|b| format!("{b:02x}")).collect(),
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            owner: client.to_string(),
            prompt: request.prompt,
            perspective: request.perspective,
            width: request.width,
            height: request.height,
            fps: request.fps,
            steps: request.steps.unwrap_or(vocabulary.default_steps),
            seed,
            frames: (!request.interactive).then_some(request.frames),
        };
        self.start(spec, origin)
    }

    fn start(self: &Arc<Hub>, spec: Spec, origin: Option<Arc<OwnedFd>>) -> Result<Arc<Session>, Refusal> {
        let (feed, told) = mpsc::channel();
        let session = Arc::new(Session::new(spec, origin, feed).map_err(|e| Refusal::internal(&e))?);
        let desk = self.desk();
        {
            let mut sessions = self.sessions();
            self.has_room(&sessions, session.is_interactive())?;
            self.insert(&mut sessions, &session, told).map_err(|e| Refusal::internal(&e))?;
        }
        self.write_down(&session, true);
        if let Some(worker) = &desk.worker {
            open(worker, &session);
        }
        Ok(session)
    }

    /// Starts the session's thread and makes it known.
    fn insert(
        self: &Arc<Hub>,
        sessions: &mut Sessions,
        session: &Arc<Session>,
        told: mpsc::Receiver<Feed>,
    ) -> std::io::Result<()> {
        let (pumped, hub) = (session.clone(), self.clone());
        let work = move || {
            let desk = hub.clone();
            let model_hash = Box::new(move || desk.desk().model_hash.clone());
            pump::run(&pumped, &told, &Archive { store: hub.store.clone(), model_hash });
            hub.ended(&pumped);
        };
        std::thread::Builder::new().name(format!("session {}", session.spec.number)).spawn(work)?;
        sessions.by_id.insert(session.spec.id.clone(), session.clone());
        sessions.by_number.insert(session.spec.number, session.clone());
        Ok(())
    }

    /// Writes sessions down from now on. To be called before the hub is shared.
    pub fn keep_journal(&mut self, journal: Journal) {
        self.journal = Some(journal);
    }

    /// Brings back the sessions that an earlier api wrote down; they open with the first worker.
    pub fn restore(self: &Arc<Hub>) {
        let found = self.journal.as_ref().map(Journal::load).unwrap_or_default();
        for checkpoint in found {
            let (feed, told) = mpsc::channel();
            let id = checkpoint.record.spec.id.clone();
            let number = checkpoint.record.spec.number;
            self.numbers.fetch_max(number + 1, Ordering::Relaxed);
            let restored = Session::restore(checkpoint, feed).map_err(|e| chain(&e)).and_then(|session| {
                let session = Arc::new(session);
                self.insert(&mut self.sessions(), &session, told).map_err(|e| e.to_string())
            });
            match restored {
                Ok(()) => log::info!("session {id} comes back"),
                Err(e) => log::error!("session {id} cannot come back: {e}"),
            }
        }
    }

    /// Writes down every session that has changed; all of them if `always`.
    pub fn checkpoint(&self, always: bool) {
        for session in self.live() {
            self.write_down(&session, always);
        }
    }

    fn write_down(&self, session: &Session, always: bool) {
        let Some(journal) = &self.journal else { return };
        if let Some((record, snapshot)) = session.checkpoint(always) {
            journal.write(&record, snapshot.as_deref());
            if session.state().is_final() {
                journal.remove(&session.spec.id);
            }
        }
    }

    /// The session with that number, if it has not ended.
    pub fn by_number(&self, number: SessionNumber) -> Option<Arc<Session>> {
        self.sessions().by_number.get(&number).cloned()
    }

    fn has_room(&self, sessions: &Sessions, interactive: bool) -> Result<(), Refusal> {
        let live = |interactive_only: bool| {
            let counts = |s: &&Arc<Session>| !s.state().is_final() && (!interactive_only || s.is_interactive());
            sessions.by_number.values().filter(counts).count()
        };
        let max = self.config.worker.sessions_max;
        let detail = match () {
            () if live(false) >= limits::SESSIONS_MAX => format!("{} sessions exist already.", limits::SESSIONS_MAX),
            () if interactive && live(true) >= max => format!("{max} interactive sessions run already."),
            () => return Ok(()),
        };
        Err(Refusal::new("too_many_sessions", detail).retry_after(10))
    }

    /// The snapshot to continue from, as a descriptor for the worker.
    fn snapshot_of(&self, client: &Client, id: &str, request: &GenerateRequest) -> Result<Arc<OwnedFd>, Refusal> {
        let unknown = || Refusal::unknown_session(id).about("from", "a session or stored generation of yours");
        let unusable =
            |what: String| Refusal::new("invalid_field", format!("from: {what}.")).about("from", "another one");
        let fd = match self.session(client, id) {
            Some(session) => match (session.ring_fd(), session.last_snapshot()) {
                (Some(ring), _) => Some(ring),
                (None, Some(bytes)) => {
                    let memory = SharedMemory::create("gamegend-snapshot", bytes.len());
                    let memory = memory.map_err(|e| Refusal::internal(&e))?;
                    memory.write(0, &bytes);
                    Some(Arc::new(memory.read_only_fd().map_err(|e| Refusal::internal(&e))?))
                }
                (None, None) => None,
            },
            None => None,
        };
        let fd = match fd {
            Some(fd) => fd,
            None => {
                self.stored(client, id).ok_or_else(unknown)?;
                let file = self.store.open(id, Object::Snapshot);
                Arc::new(file.map_err(|_| unusable("it has no snapshot".to_string()))?.into())
            }
        };
        let snapshot = Snapshot::read_fd(&fd).map_err(|e| unusable(chain(&e)))?;
        let (width, height) = (snapshot.about.width, snapshot.about.height);
        if (width, height) != (request.width, request.height) {
            return Err(unusable(format!("it has {width}x{height} pixels; width and height must be the same")));
        }
        if snapshot.about.model_hash != self.desk().model_hash {
            return Err(unusable("it was made by another model".to_string()));
        }
        Ok(fd)
    }

    /// A session of this run that the client may use, ended ones included.
    pub fn session(&self, client: &Client, id: &str) -> Option<Arc<Session>> {
        self.sessions().by_id.get(id).filter(|s| client.may_use(&s.spec.owner)).cloned()
    }

    /// A stored generation that the client may use.
    pub fn stored(&self, client: &Client, id: &str) -> Option<Arc<Generation>> {
        self.store.get(id).filter(|g| client.may_use(&g.owner))
    }

    /// Takes a control for a session. Errors: `unknown_session`, `worker_unavailable`, and those of
    /// [`Session::accept`].
    pub fn control(&self, client: &Client, id: &str, control: &Control) -> Result<(), Refusal> {
        let session = self.session(client, id).ok_or_else(|| Refusal::unknown_session(id))?;
        let vocabulary = self.vocabulary()?;
        // Under the lock, so that two texts reach the worker in the order of their numbers.
        let desk = self.desk();
        let order = session.accept(control, &vocabulary)?;
        if let (Some(order), Some(worker)) = (order, &desk.worker) {
            worker.order(order);
        }
        Ok(())
    }

    /// Ends a session because its owner says so. One that has ended already stays as it is.
    pub fn stop(&self, session: &Session) {
        let (state, reason) = match session.is_interactive() {
            true => (State::Done, "stopped"),
            false => (State::Cancelled, "cancelled"),
        };
        self.end(session, state, reason, None);
    }

    fn end(&self, session: &Session, state: State, reason: &str, error: Option<Refusal>) {
        let desk = self.desk();
        if session.end(state, reason, error)
            && let Some(worker) = &desk.worker
        {
            worker.order(ToWorker::Close { session: session.spec.number });
        }
    }

    /// The session's thread is through with it.
    fn ended(&self, session: &Session) {
        if let Some(journal) = &self.journal {
            journal.remove(&session.spec.id);
        }
        let mut sessions = self.sessions();
        sessions.by_number.remove(&session.spec.number);
        sessions.ended.push(session.spec.id.clone());
        if sessions.ended.len() > ENDED_KEPT_MAX {
            let oldest = sessions.ended.remove(0);
            sessions.by_id.remove(&oldest);
        }
        log::info!("session {}: {}", session.spec.id, state_word(session.state()));
    }

    fn live(&self) -> Vec<Arc<Session>> {
        let mut live: Vec<_> = self.sessions().by_number.values().cloned().collect();
        live.retain(|s| !s.state().is_final());
        live.sort_by_key(|s| s.spec.number);
        live
    }

    /// Closes interactive sessions that nobody uses.
    pub fn close_idle(&self, now: Instant) {
        for session in self.live().iter().filter(|s| s.is_interactive()) {
            if session.idle(now).as_secs() >= limits::IDLE_SECONDS_MAX {
                self.end(session, State::Done, "nobody watched or controlled it", None);
            }
        }
    }

    /// From now on nothing new starts; interactive sessions end.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        for session in self.live().iter().filter(|s| s.is_interactive()) {
            self.end(session, State::Done, "the daemon is stopping", None);
        }
    }

    /// True when no session's thread has work left.
    pub fn is_drained(&self) -> bool {
        self.sessions().by_number.is_empty()
    }

    /// Ends what did not finish in time.
    pub fn abandon(&self) {
        for session in self.live() {
            self.end(&session, State::Cancelled, "the daemon is stopping", None);
        }
    }

    /// A worker said hello: every session that has not ended opens in it.
    pub fn worker_up(&self, worker: Worker) {
        let mut desk = self.desk();
        log::info!("worker {} (pid {}) on {}", worker.generation, worker.pid, worker.about.device);
        desk.vocabulary = Some(worker.about.vocabulary.clone());
        desk.model_hash.clone_from(&worker.about.model_hash);
        for session in self.live() {
            open(&worker, &session);
        }
        desk.given_up = None;
        desk.worker = Some(worker);
    }

    /// A worker is gone, as the parent or the link says; whoever is first tells the sessions.
    pub fn worker_down(&self, generation: u32, reason: &str, retry: bool) {
        let mut desk = self.desk();
        let was_up = desk.worker.as_ref().is_some_and(|w| w.generation == generation);
        if was_up {
            desk.worker = None;
            for session in self.live() {
                session.interrupted(reason);
            }
        }
        if retry || desk.worker.is_some() {
            return;
        }
        desk.given_up = Some(reason.to_string());
        for session in self.live() {
            let detail = format!("The worker does not come back: {reason}.");
            session.end(State::Failed, "the worker is gone", Some(Refusal::new("worker_failed", detail)));
        }
    }

    /// What a worker says after its hello. `fd` came with it.
    pub fn worker_says(&self, generation: u32, message: FromWorker, fd: Option<OwnedFd>) {
        let session = |number: SessionNumber| self.sessions().by_number.get(&number).cloned();
        match message {
            FromWorker::Opened { session: number } => {
                if let (Some(session), Some(fd)) = (session(number), fd) {
                    self.opened(&session, fd);
                }
            }
            FromWorker::Frame { session: number, .. } => {
                if let Some(session) = session(number) {
                    session.tell(Feed::Frame);
                }
            }
            FromWorker::Finished { session: number, .. } => {
                if let Some(session) = session(number) {
                    session.tell(Feed::Finished);
                }
            }
            FromWorker::Failed { session: number, code, message } => {
                if let Some(session) = session(number) {
                    log::warn!("session {}: {message} ({code})", session.spec.id);
                    let refusal = Refusal::new("session_failed", format!("{message}."));
                    session.end(State::Failed, "failed", Some(refusal));
                }
            }
            FromWorker::Refused { session: number, seq, message, .. } => {
                if let Some(session) = session(number) {
                    let refusal = Refusal::new("instruction_refused", format!("Control {seq}: {message}."));
                    session.complain(refusal);
                }
            }
            FromWorker::Stats(stats) => {
                if let Some(worker) = self.desk().worker.as_mut().filter(|w| w.generation == generation) {
                    worker.stats = stats;
                }
            }
            // Caught by whoever reads the link.
            FromWorker::Hello { .. } | FromWorker::Kept { .. } => {}
        }
    }

    fn opened(&self, session: &Session, fd: OwnedFd) {
        let ring = fd.try_clone().map_err(Into::into).and_then(RingReader::open);
        let wrong = match ring {
            Ok(ring) if (ring.width(), ring.height()) == (session.spec.width, session.spec.height) => {
                session.opened(Arc::new(fd));
                session.tell(Feed::Ring(Box::new(ring)));
                return;
            }
            Ok(ring) => format!("its ring is for {}x{}", ring.width(), ring.height()),
            Err(e) => chain(&e),
        };
        log::error!("session {}: {wrong}", session.spec.id);
        let refusal = Refusal::new("session_failed", "The worker's frames cannot be read.");
        self.end(session, State::Failed, "failed", Some(refusal));
    }

    /// The words of the model. Errors: `worker_unavailable` before the first worker, or if there will be no other one.
    pub fn vocabulary(&self) -> Result<Vocabulary, Refusal> {
        let desk = self.desk();
        if let Some(reason) = &desk.given_up {
            return Err(Refusal::new("worker_unavailable", format!("The worker does not come back: {reason}.")));
        }
        desk.vocabulary
            .clone()
            .ok_or_else(|| Refusal::new("worker_unavailable", "The worker is loading the model.").retry_after(2))
    }

    /// The state of the daemon in one word.
    pub fn state_word(&self) -> &'static str {
        let desk = self.desk();
        match () {
            () if self.draining.load(Ordering::Acquire) => "draining",
            () if desk.worker.is_some() => "ready",
            () if desk.given_up.is_some() => "failed",
            () if desk.vocabulary.is_some() => "recovering",
            () => "starting",
        }
    }

    /// One session or stored generation. Errors: `unknown_session`.
    pub fn session_status(&self, client: &Client, id: &str) -> Result<SessionStatus, Refusal> {
        if let Some(session) = self.session(client, id) {
            return Ok(session.status());
        }
        self.stored(client, id).map(|g| stored_status(&g)).ok_or_else(|| Refusal::unknown_session(id))
    }

    /// The daemon and everything in it that the client may see: sessions by age, then stored generations, newest first.
    pub fn status(&self, client: &Client) -> DaemonStatus {
        let mut known: Vec<Arc<Session>> = self.sessions().by_id.values().cloned().collect();
        known.retain(|s| client.may_use(&s.spec.owner));
        known.sort_by_key(|s| s.spec.number);
        let mut sessions: Vec<SessionStatus> = known.iter().map(|s| s.status()).collect();
        let told = |g: &Arc<Generation>| client.may_use(&g.owner) && !known.iter().any(|s| s.spec.id == g.id);
        sessions.extend(self.store.list().iter().filter(|g| told(g)).map(|g| stored_status(g)));
        let state = self.state_word().to_string();
        let worker = self.desk().worker.as_ref().map(worker_status);
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_string(),
            uptime_seconds: self.started.elapsed().as_secs(),
            state,
            sandbox: self.sandbox.clone(),
            worker,
            sessions,
        }
    }
}

fn open(worker: &Worker, session: &Session) {
    match session.opening() {
        Ok((message, fds)) => worker.order(Order { message, fds }),
        Err(e) => {
            session.end(State::Failed, "failed", Some(Refusal::internal(&e)));
        }
    }
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Queued => "queued",
        State::Running => "running",
        State::Recovering => "recovering",
        State::Done => "done",
        State::Cancelled => "cancelled",
        State::Failed => "failed",
    }
}

fn worker_status(worker: &Worker) -> WorkerStatus {
    let about = worker.about.clone();
    WorkerStatus {
        pid: worker.pid,
        generation: worker.generation,
        device: about.device,
        device_kind: about.device_kind,
        device_why: about.device_why,
        precision: about.precision,
        sandbox: about.sandbox,
        model: about.model,
        model_hash: about.model_hash,
        parameters: about.parameters,
        vocabulary: about.vocabulary,
        stats: worker.stats.clone(),
    }
}

fn stored_status(g: &Generation) -> SessionStatus {
    SessionStatus {
        id: g.id.clone(),
        state: State::Done,
        progress: 1.0,
        frame_count: u64::from(g.frames),
        frames: g.frames,
        interactive: false,
        prompt: g.prompt.clone(),
        width: g.width,
        height: g.height,
        fps: g.fps,
        steps: g.steps,
        seed: g.seed,
        frames_per_second: 0.0,
        viewers: 0,
        error: None,
        links: links(&g.id, true),
    }
}
