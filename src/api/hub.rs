//! What the api role knows: its sessions, its worker, its store. Every front and every thread goes through here.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Instant;

use rand_chacha::ChaCha20Rng;

use super::access::{Access, Client};
use super::decoder::Decoders;
use super::idempotency;
use super::journal::Journal;
use super::limits::ENDED_KEPT_MAX;
use super::metrics::Counters;
use super::pump::{self, Archive};
use super::rate::{self, Left, Rates};
use super::refusal::{Refusal, chain};
use super::resume::Places;
use super::session::{Feed, Inputs, Session, Spec, stored_status};
use super::worker::{Order, Worker};
use crate::config::Config;
use crate::frame::RingReader;
use crate::proto::api::{Control, DaemonStatus, SessionStatus, State, Vocabulary, WorkerStatus};
use crate::proto::limits;
use crate::proto::link::{FromWorker, SessionNumber, ToWorker};
use crate::store::uploads::{Record, Uploads};
use crate::store::{Generation, Store};

/// Everything that requests and threads share.
pub struct Hub {
    pub config: Config,
    pub access: Access,
    pub store: Arc<dyn Store>,
    pub uploads: Uploads,
    pub decoders: Decoders,
    pub counters: Arc<Counters>,
    pub places: Places,
    pub keys: idempotency::Keys,
    /// `None` in tests that need no way back.
    pub(super) journal: Option<Journal>,
    rates: Rates,
    sandbox: String,
    started: Instant,
    draining: AtomicBool,
    pub(super) numbers: AtomicU64,
    random: Mutex<ChaCha20Rng>,
    /// Locked before `sessions` where both are: a session is opened by whoever inserts it or by whoever brings the
    /// worker, never by both.
    desk: Mutex<Desk>,
    sessions: Mutex<Sessions>,
}

/// The worker, and what was learnt from the last one.
#[derive(Default)]
pub(super) struct Desk {
    worker: Option<Worker>,
    vocabulary: Option<Vocabulary>,
    model_hash: String,
    /// Why there will be no worker any more.
    given_up: Option<String>,
}

#[derive(Default)]
pub(super) struct Sessions {
    by_id: HashMap<String, Arc<Session>>,
    by_number: HashMap<SessionNumber, Arc<Session>>,
    /// Ids of ended sessions, in the order in which they ended.
    ended: Vec<String>,
    /// Stored generations that wait for others, the first one first.
    waiting: Vec<Arc<Session>>,
}

/// What a hub is made of.
pub struct Parts {
    pub config: Config,
    pub access: Access,
    pub store: Arc<dyn Store>,
    pub uploads: Uploads,
    pub decoders: Decoders,
    pub counters: Arc<Counters>,
    /// The api's own, in words.
    pub sandbox: String,
    /// Makes ids and seeds.
    pub random: ChaCha20Rng,
}

impl Hub {
    /// Sessions are written down in the journal once [`Hub::keep_journal`] gave one.
    pub fn new(parts: Parts) -> Hub {
        let Parts { config, access, store, uploads, decoders, counters, sandbox, random } = parts;
        Hub {
            config,
            access,
            store,
            uploads,
            decoders,
            counters,
            places: Places::default(),
            keys: idempotency::Keys::default(),
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

    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn random(&self) -> MutexGuard<'_, ChaCha20Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request of a client, and of its address if it is known by something else. Answers what it has left,
    /// the smaller of both. Errors: `rate_limited`.
    pub fn count(&self, client: &Client, address: Option<Client>, kind: rate::Kind) -> Result<Option<Left>, Refusal> {
        if !client.is_limited() {
            return Ok(None);
        }
        let mut left: Option<Left> = None;
        for who in [Some(client.clone()), address.filter(|a| a != client)].into_iter().flatten() {
            let counted = self.rates.count(&who, kind, Instant::now()).map_err(|wait| {
                let detail = format!("{} of these requests a minute are allowed.", kind.per_minute());
                Refusal::new("rate_limited", detail).retry_after(wait.as_secs() + 1)
            })?;
            left = Some(left.filter(|l| l.requests <= counted.requests).unwrap_or(counted));
        }
        Ok(left)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// A number for a new viewer; never 0.
    pub fn new_viewer(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Hash of the weights of the last worker.
    pub fn model_hash(&self) -> String {
        self.desk().model_hash.clone()
    }

    /// Makes a session known, and opens it as soon as its turn comes. Errors: `too_many_sessions`, `queue_full`.
    pub fn start(self: &Arc<Hub>, spec: Spec, inputs: Inputs) -> Result<Arc<Session>, Refusal> {
        let (feed, told) = mpsc::channel();
        let session = Session::new(spec, inputs, feed, self.counters.clone()).map_err(|e| Refusal::internal(&e))?;
        let session = Arc::new(session);
        // Before anybody waits for a lock: these can be megabytes.
        self.write_inputs(&session);
        match self.let_in(&session, told) {
            Ok(()) => Ok(session),
            Err(refusal) => {
                self.unwrite(&session);
                Err(refusal)
            }
        }
    }

    fn let_in(self: &Arc<Hub>, session: &Arc<Session>, told: mpsc::Receiver<Feed>) -> Result<(), Refusal> {
        let desk = self.desk();
        let mut sessions = self.sessions();
        self.has_room(&sessions, session.is_interactive())?;
        self.insert(&mut sessions, session, told).map_err(|e| Refusal::internal(&e))?;
        self.write_down(session, true);
        self.call_up(&desk, &mut sessions);
        Ok(())
    }

    /// Starts the session's thread and makes it known; it waits for its turn.
    pub(super) fn insert(
        self: &Arc<Hub>,
        sessions: &mut Sessions,
        session: &Arc<Session>,
        told: mpsc::Receiver<Feed>,
    ) -> std::io::Result<()> {
        let (pumped, hub) = (session.clone(), self.clone());
        let work = move || {
            pump::run(&pumped, &told, &hub.archive());
            hub.ended(&pumped);
        };
        std::thread::Builder::new().name(format!("session {}", session.spec.number)).spawn(work)?;
        sessions.by_id.insert(session.spec.id.clone(), session.clone());
        sessions.by_number.insert(session.spec.number, session.clone());
        sessions.waiting.push(session.clone());
        Ok(())
    }

    /// Where finished things go.
    pub fn archive(self: &Arc<Hub>) -> Archive {
        let hub = self.clone();
        Archive { store: self.store.clone(), model_hash: Box::new(move || hub.model_hash()) }
    }

    /// Lets in whoever is next: interactive sessions at once, stored generations a few at a time.
    pub(super) fn call_up(&self, desk: &Desk, sessions: &mut Sessions) {
        let runs = |s: &Arc<Session>| !s.is_interactive() && s.is_admitted() && !s.state().is_final();
        let mut running = sessions.by_number.values().filter(|s| runs(s)).count();
        let mut position = 0;
        let waiting = std::mem::take(&mut sessions.waiting);
        for session in waiting {
            let free = session.is_interactive() || running < limits::GENERATIONS_RUNNING_MAX;
            if session.state().is_final() {
                continue;
            }
            if !free {
                position += 1;
                session.queued_at(position);
                sessions.waiting.push(session);
                continue;
            }
            if session.admit() {
                running += usize::from(!session.is_interactive());
                if let Some(worker) = &desk.worker {
                    open(worker, &session);
                }
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
        let (code, detail) = match () {
            () if live(false) >= limits::SESSIONS_MAX => {
                ("too_many_sessions", format!("{} sessions exist already.", limits::SESSIONS_MAX))
            }
            () if interactive && live(true) >= max => {
                ("too_many_sessions", format!("{max} interactive sessions run already."))
            }
            () if !interactive && sessions.waiting.len() >= limits::QUEUE_MAX => {
                ("queue_full", format!("{} generations wait already.", limits::QUEUE_MAX))
            }
            () => return Ok(()),
        };
        Err(Refusal::new(code, detail).retry_after(10))
    }

    /// Generations that wait.
    pub fn queue_length(&self) -> usize {
        self.sessions().waiting.len()
    }

    /// A session of this run that the client may use, ended ones included.
    pub fn session(&self, client: &Client, id: &str) -> Option<Arc<Session>> {
        self.sessions().by_id.get(id).filter(|s| client.may_use(&s.spec.owner)).cloned()
    }

    /// A stored generation that the client may use.
    pub fn stored(&self, client: &Client, id: &str) -> Option<Arc<Generation>> {
        self.store.get(id).filter(|g| client.may_use(&g.owner))
    }

    /// An upload that the client may use.
    pub fn upload(&self, client: &Client, id: &str) -> Option<Arc<Record>> {
        self.uploads.get(id).filter(|r| client.may_use(&r.owner))
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
        // Those behind it move up at once.
        self.call_up(&desk, &mut self.sessions());
    }

    /// Ends a session if it runs and removes everything of it. Errors: `unknown_session`.
    ///
    /// Blocks: removes files.
    pub fn delete(&self, client: &Client, id: &str) -> Result<(), Refusal> {
        let (session, stored) = (self.session(client, id), self.stored(client, id));
        if session.is_none() && stored.is_none() {
            return Err(Refusal::unknown_session(id));
        }
        if let Some(session) = session {
            session.forget();
            self.stop(&session);
            let mut sessions = self.sessions();
            sessions.by_id.remove(id);
            sessions.ended.retain(|e| e != id);
        }
        self.store.delete(id);
        Ok(())
    }

    /// The session's thread is through with it.
    fn ended(&self, session: &Session) {
        self.unwrite(session);
        let desk = self.desk();
        let mut sessions = self.sessions();
        sessions.by_number.remove(&session.spec.number);
        if session.is_forgotten() {
            // Its thread may have stored it after it was deleted.
            self.store.delete(&session.spec.id);
        } else {
            sessions.ended.push(session.spec.id.clone());
        }
        if sessions.ended.len() > ENDED_KEPT_MAX {
            let oldest = sessions.ended.remove(0);
            sessions.by_id.remove(&oldest);
        }
        self.call_up(&desk, &mut sessions);
        drop((desk, sessions));
        log::info!("session {}: {}", session.spec.id, session.state().name());
    }

    pub(super) fn live(&self) -> Vec<Arc<Session>> {
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
        for session in self.live().iter().filter(|s| s.is_admitted()) {
            open(&worker, session);
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
                    let prompts = "video_prompts_unsupported";
                    let ours = if code == prompts { prompts } else { "session_failed" };
                    let refusal = Refusal::new(ours, format!("{message}."));
                    session.end(State::Failed, "failed", Some(refusal));
                }
            }
            FromWorker::Refused { session: number, seq, message, .. } => {
                if let Some(session) = session(number) {
                    let refusal = Refusal::new("instruction_refused", format!("Control {seq}: {message}."));
                    session.complain(refusal);
                }
            }
            FromWorker::Quality { session: number, quality } => {
                if let Some(session) = session(number) {
                    session.set_quality(quality);
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

    /// Sessions by age, then stored things that no session is about, the newest first.
    pub fn known(&self, client: &Client) -> Vec<SessionStatus> {
        let mut known: Vec<Arc<Session>> = self.sessions().by_id.values().cloned().collect();
        known.retain(|s| client.may_use(&s.spec.owner));
        known.sort_by_key(|s| s.spec.number);
        let mut all: Vec<SessionStatus> = known.iter().map(|s| s.status()).collect();
        let told = |g: &Arc<Generation>| client.may_use(&g.owner) && !known.iter().any(|s| s.spec.id == g.id);
        all.extend(self.store.list().iter().filter(|g| told(g)).map(|g| stored_status(g)));
        all
    }

    /// The worker, while there is one.
    pub fn worker_status(&self) -> Option<WorkerStatus> {
        self.desk().worker.as_ref().map(worker_status)
    }

    /// The daemon and everything in it that the client may see: sessions by age, then stored generations, newest first.
    pub fn status(&self, client: &Client) -> DaemonStatus {
        let sessions = self.known(client);
        let state = self.state_word().to_string();
        let worker = self.worker_status();
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
