//! One session as clients see it: its state, its controls, its viewers.
//!
//! ```text
//!             first frame              last frame recorded
//!   Queued ---------------> Running ------------------------> Done
//!      |                    |     ^                             ^
//!      | worker down        v     | first frame of the next     | stopped, idle (interactive)
//!      +--------------> Recovering                              |
//!   any of these ---> Cancelled (DELETE), Failed (worker or recording)
//! ```

mod resume;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use super::limits::{CONTROLS_AWAITED_MAX, PROGRESS_PERIOD, VIEWER_EVENTS_MAX};
use super::refusal::Refusal;
use crate::frame::{ControlWriter, RingError, RingReader};
use crate::proto::api::{Control, Links, PROTOCOL_VERSION, Problem, ServerMessage, SessionStatus, State, Vocabulary};
use crate::proto::keys::Keys;
use crate::proto::limits::VIEWERS_MAX;
use crate::proto::link::{Environment, OpenSession, SessionNumber, ToWorker};

/// Time over which the frame rate of a status is measured.
const RATE_WINDOW: Duration = Duration::from_secs(2);

/// What a session was asked to be; it never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub id: String,
    pub number: SessionNumber,
    /// [`super::access::Client`] in words.
    pub owner: String,
    pub prompt: String,
    pub perspective: Option<String>,
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    pub steps: u32,
    pub seed: u64,
    /// Length of a stored generation, `None` for an interactive session.
    pub frames: Option<u32>,
}

/// A frame as viewers get it: header and JPEG, encoded once for all of them.
#[derive(Clone, Debug)]
pub struct Shown {
    pub message: Bytes,
}

/// What the session's own thread is told, see [`super::pump`].
pub enum Feed {
    /// The session is open in a worker; its frames are in this ring from now on.
    Ring(Box<RingReader>),
    /// A frame is in the ring.
    Frame,
    /// Somebody looks now.
    Wake,
    /// The worker has nothing more to say about the session.
    Finished,
    /// The session has ended: record nothing more.
    Stop,
}

/// One session.
pub struct Session {
    pub spec: Spec,
    control: ControlWriter,
    feed: mpsc::Sender<Feed>,
    shown: watch::Sender<Option<Arc<Shown>>>,
    events: broadcast::Sender<ServerMessage>,
    viewers: AtomicUsize,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    error: Option<Problem>,
    /// Why it ended, for viewers.
    reason: String,
    environment: Environment,
    instruction: Option<String>,
    keys: Keys,
    /// Newest control, newest one in the control block, newest one that a frame reflected.
    accepted: u32,
    latched: u32,
    reflected: u32,
    /// Accepted controls that no frame has reflected yet.
    awaited: VecDeque<u32>,
    active: Instant,
    arrivals: VecDeque<Instant>,
    frame_count: u64,
    progress_told: Option<Instant>,
    origin: Option<Arc<OwnedFd>>,
    /// True if `origin` is of the session itself, which goes on after an earlier api.
    own: bool,
    /// No frame may have a lower number: viewers may have seen those.
    tick_min: u64,
    ring: Option<Arc<OwnedFd>>,
    /// Frames that there were when the session was last written down.
    written: Option<u64>,
    snapshot: Option<Vec<u8>>,
    stored: bool,
}

impl Session {
    /// A session that no worker knows yet. `origin` is a snapshot that it continues. Messages for its thread go to
    /// `feed`.
    pub fn new(spec: Spec, origin: Option<Arc<OwnedFd>>, feed: mpsc::Sender<Feed>) -> Result<Session, RingError> {
        let (control, _) = ControlWriter::create()?;
        let inner = Inner {
            state: State::Queued,
            error: None,
            reason: String::new(),
            environment: Environment::default(),
            instruction: None,
            keys: Keys::NONE,
            accepted: 0,
            latched: 0,
            reflected: 0,
            awaited: VecDeque::new(),
            active: Instant::now(),
            arrivals: VecDeque::new(),
            frame_count: 0,
            progress_told: None,
            origin,
            own: false,
            tick_min: 0,
            ring: None,
            written: None,
            snapshot: None,
            stored: false,
        };
        Ok(Session {
            spec,
            control,
            feed,
            shown: watch::Sender::new(None),
            events: broadcast::Sender::new(VIEWER_EVENTS_MAX),
            viewers: AtomicUsize::new(0),
            inner: Mutex::new(inner),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every field is valid by itself, so a panic while it was held leaves nothing that misleads.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> State {
        self.inner().state
    }

    pub fn is_interactive(&self) -> bool {
        self.spec.frames.is_none()
    }

    /// Tells the session's thread. It outlives the session's end, so only a thread that panicked loses a message.
    pub fn tell(&self, feed: Feed) {
        if self.feed.send(feed).is_err() {
            log::debug!("session {}: its thread is gone", self.spec.id);
        }
    }

    /// Checks and takes a control. Answers what the worker must be told, if it changes the text.
    ///
    /// Errors: `invalid_field`, `stale_control`, `session_ended`.
    pub fn accept(&self, control: &Control, vocabulary: &Vocabulary) -> Result<Option<ToWorker>, Refusal> {
        control.check(vocabulary)?;
        let mut inner = self.inner();
        if inner.state.is_final() {
            return Err(Refusal::new("session_ended", format!("The session has ended: {}.", inner.reason)));
        }
        if control.seq <= inner.accepted {
            let detail = format!("seq {} is not above {}, the newest control.", control.seq, inner.accepted);
            let allowed = format!("{} to {}", u64::from(inner.accepted) + 1, u32::MAX);
            return Err(Refusal::new("stale_control", detail).about("seq", allowed));
        }
        inner.accepted = control.seq;
        inner.active = Instant::now();
        if inner.awaited.len() == CONTROLS_AWAITED_MAX {
            inner.awaited.pop_front();
        }
        inner.awaited.push_back(control.seq);
        let names = |names: &[String]| Keys::from_names(names).unwrap_or(Keys::NONE);
        let moves = control.keys.is_some() || !control.taps.is_empty();
        if let Some(keys) = &control.keys {
            inner.keys = names(keys);
        }
        self.control.tap(names(&control.taps));
        if !control.has_text() {
            inner.latched = control.seq;
            self.control.set(control.seq, inner.keys);
            return Ok(None);
        }
        // The worker counts a text as control `seq` when it acts. If the block said `seq` already, a frame could claim
        // to reflect the text before it does.
        if moves {
            self.control.set(inner.latched, inner.keys);
        }
        let Environment { weather, lighting, effects } = &mut inner.environment;
        for (word, new) in [(weather, &control.weather), (lighting, &control.lighting), (effects, &control.effects)] {
            if new.is_some() {
                word.clone_from(new);
            }
        }
        if control.instruction.is_some() {
            inner.instruction.clone_from(&control.instruction);
        }
        Ok(Some(ToWorker::Instruct {
            session: self.spec.number,
            seq: control.seq,
            environment: inner.environment.clone(),
            instruction: inner.instruction.clone(),
        }))
    }

    /// What opens the session in a worker, with the descriptors that go along. After a worker was lost it goes on from
    /// the ring's snapshot.
    pub fn opening(&self) -> Result<(ToWorker, Vec<OwnedFd>), RingError> {
        let mut inner = self.inner();
        // The text goes with the message, so the control block may say from now on that it is reflected.
        inner.latched = inner.accepted;
        self.control.set(inner.latched, inner.keys);
        let mut fds = vec![self.control.read_only_fd()?];
        let snapshot = inner.ring.as_ref().filter(|fd| crate::frame::Snapshot::read_fd(fd).is_ok());
        let keep_tick = snapshot.is_some() || inner.own;
        let from = snapshot.or(inner.origin.as_ref());
        let from_snapshot = from.is_some();
        if let Some(fd) = from {
            fds.push(fd.try_clone()?);
        }
        let spec = &self.spec;
        let open = OpenSession {
            session: spec.number,
            prompt: spec.prompt.clone(),
            width: spec.width,
            height: spec.height,
            fps: spec.fps,
            steps: spec.steps,
            seed: spec.seed,
            perspective: spec.perspective.clone(),
            frames: spec.frames,
            environment: inner.environment.clone(),
            instruction: inner.instruction.clone(),
            from_snapshot,
            keep_tick,
            tick_min: self.tick_min(&inner),
        };
        Ok((ToWorker::Open(Box::new(open)), fds))
    }

    /// The worker opened the session; the descriptor is kept for the next worker and for sessions that continue this
    /// one.
    pub fn opened(&self, fd: Arc<OwnedFd>) {
        self.inner().ring = Some(fd);
    }

    /// A snapshot of a session that runs.
    pub fn ring_fd(&self) -> Option<Arc<OwnedFd>> {
        self.inner().ring.clone()
    }

    /// The snapshot that an ended interactive session left, as bytes.
    pub fn last_snapshot(&self) -> Option<Vec<u8>> {
        self.inner().snapshot.clone()
    }

    pub fn keep_snapshot(&self, bytes: Vec<u8>) {
        self.inner().snapshot = Some(bytes);
    }

    /// Counts a frame that is there. Tells viewers the progress and which controls it shows to be superseded.
    pub fn frame_arrived(&self, frame_count: u64, seq: u32) {
        let now = Instant::now();
        let mut inner = self.inner();
        if inner.state.is_final() {
            return;
        }
        // A frame that the lost worker left in its ring is counted, but does not end the recovery.
        if inner.state != State::Recovering {
            inner.state = State::Running;
        }
        inner.frame_count = inner.frame_count.max(frame_count);
        inner.arrivals.push_back(now);
        while inner.arrivals.front().is_some_and(|t| now.duration_since(*t) > RATE_WINDOW) {
            inner.arrivals.pop_front();
        }
        for (seq, by) in inner.reflect(seq) {
            let _ = self.events.send(ServerMessage::Superseded { seq, by });
        }
        if let Some(frames) = self.spec.frames {
            let last = frame_count >= u64::from(frames);
            if last || inner.progress_told.is_none_or(|t| now.duration_since(t) >= PROGRESS_PERIOD) {
                inner.progress_told = Some(now);
                let _ = self.events.send(ServerMessage::Progress { frame: frame_count as u32, frames });
            }
        }
    }

    /// True while a control waits for its frame, so that every frame's header matters.
    pub fn awaits_a_control(&self) -> bool {
        !self.inner().awaited.is_empty()
    }

    /// Gives a picture to the viewers. One from before the loss of the worker must not follow the news of it.
    pub fn show(&self, shown: Shown) {
        let inner = self.inner();
        if inner.state != State::Recovering {
            self.shown.send_replace(Some(Arc::new(shown)));
        }
    }

    /// The next worker has the session: what arrives from now on is its work.
    pub fn resumed(&self) {
        let mut inner = self.inner();
        if inner.state == State::Recovering {
            inner.state = State::Queued;
        }
    }

    pub fn has_viewers(&self) -> bool {
        self.viewers.load(Ordering::Acquire) > 0
    }

    pub fn consumed(&self, tick_count: u64) {
        self.control.consumed(tick_count);
    }

    /// The worker is gone; another one may follow.
    pub fn interrupted(&self, reason: &str) {
        let mut inner = self.inner();
        if !inner.state.is_final() {
            inner.state = State::Recovering;
            inner.arrivals.clear();
            let _ = self.events.send(ServerMessage::Recovering { reason: reason.to_string() });
        }
    }

    /// Tells viewers that frames are of lower quality from now on.
    pub fn degraded(&self, reason: &str) {
        let _ = self.events.send(ServerMessage::Degraded { reason: reason.to_string() });
    }

    /// Tells viewers of something that went wrong and does not end the session.
    pub fn complain(&self, refusal: Refusal) {
        let _ = self.events.send(ServerMessage::Error { problem: *refusal.problem });
    }

    /// Ends the session if it has not ended. Answers whether it did.
    pub fn end(&self, state: State, reason: &str, error: Option<Refusal>) -> bool {
        debug_assert!(state.is_final());
        {
            let mut inner = self.inner();
            if inner.state.is_final() {
                return false;
            }
            inner.state = state;
            inner.reason = reason.to_string();
            inner.stored = state == State::Done && !self.is_interactive();
            inner.ring = None;
            inner.origin = None;
            inner.arrivals.clear();
            if let Some(refusal) = error {
                inner.error = Some((*refusal.problem).clone());
                let _ = self.events.send(ServerMessage::Error { problem: *refusal.problem });
            }
            let _ = self.events.send(ServerMessage::Bye { reason: reason.to_string() });
        }
        self.tell(Feed::Stop);
        true
    }

    /// How long nobody has watched or controlled the session.
    pub fn idle(&self, now: Instant) -> Duration {
        let mut inner = self.inner();
        if self.has_viewers() {
            inner.active = now;
        }
        now.saturating_duration_since(inner.active)
    }

    /// Begins to watch. Errors: `too_many_viewers`.
    pub fn view(self: &Arc<Session>) -> Result<Viewer, Refusal> {
        let joined =
            self.viewers.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < VIEWERS_MAX).then_some(n + 1));
        if joined.is_err() {
            let detail = format!("{VIEWERS_MAX} viewers watch this session already.");
            return Err(Refusal::new("too_many_viewers", detail).retry_after(5));
        }
        let mut shown = self.shown.subscribe();
        // The newest picture, if there is one, is news to this viewer.
        shown.mark_changed();
        let viewer = Viewer { session: self.clone(), shown, events: self.events.subscribe() };
        self.tell(Feed::Wake);
        Ok(viewer)
    }

    /// The first message to every viewer.
    pub fn hello(&self, vocabulary: Vocabulary) -> ServerMessage {
        ServerMessage::Hello {
            protocol: PROTOCOL_VERSION,
            session: self.spec.id.clone(),
            width: self.spec.width,
            height: self.spec.height,
            fps: self.spec.fps,
            interactive: self.is_interactive(),
            vocabulary,
        }
    }

    /// What a viewer that joins or lost messages must know besides the frames: progress, recovering, the end.
    pub fn standing(&self) -> Vec<ServerMessage> {
        let inner = self.inner();
        let mut messages = Vec::new();
        if let Some(frames) = self.spec.frames {
            messages.push(ServerMessage::Progress { frame: inner.frame_count as u32, frames });
        }
        if inner.state == State::Recovering {
            messages.push(ServerMessage::Recovering { reason: "the worker is being restarted".to_string() });
        }
        if let Some(problem) = &inner.error {
            messages.push(ServerMessage::Error { problem: problem.clone() });
        }
        if inner.state.is_final() {
            messages.push(ServerMessage::Bye { reason: inner.reason.clone() });
        }
        messages
    }

    pub fn status(&self) -> SessionStatus {
        let inner = self.inner();
        let spec = &self.spec;
        let frames = spec.frames.unwrap_or(0);
        let progress = match (inner.state, spec.frames) {
            (State::Done, _) => 1.0,
            (_, Some(frames)) => inner.frame_count as f64 / f64::from(frames),
            (_, None) => 0.0,
        };
        SessionStatus {
            id: spec.id.clone(),
            state: inner.state,
            progress,
            frame_count: inner.frame_count,
            frames,
            interactive: self.is_interactive(),
            prompt: spec.prompt.clone(),
            width: spec.width,
            height: spec.height,
            fps: spec.fps,
            steps: spec.steps,
            seed: spec.seed,
            frames_per_second: inner.frames_per_second(),
            viewers: self.viewers.load(Ordering::Acquire),
            error: inner.error.clone(),
            links: links(&spec.id, inner.stored),
        }
    }
}

impl Inner {
    /// Takes the controls up to `seq` off the waiting list. Answers those that no frame reflected, with their
    /// successor.
    fn reflect(&mut self, seq: u32) -> Vec<(u32, u32)> {
        if seq <= self.reflected {
            return Vec::new();
        }
        self.reflected = seq;
        let count = self.awaited.iter().take_while(|s| **s <= seq).count();
        let passed: Vec<u32> = self.awaited.drain(..count).collect();
        passed.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    fn frames_per_second(&self) -> f64 {
        match (self.arrivals.front(), self.arrivals.back()) {
            (Some(first), Some(last)) if last > first && last.elapsed() < RATE_WINDOW => {
                (self.arrivals.len() - 1) as f64 / last.duration_since(*first).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

/// Somebody who watches a session; counted until it is dropped.
pub struct Viewer {
    pub session: Arc<Session>,
    /// The newest frame: a viewer that is slow never sees those in between.
    pub shown: watch::Receiver<Option<Arc<Shown>>>,
    pub events: broadcast::Receiver<ServerMessage>,
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.session.inner().active = Instant::now();
        self.session.viewers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where to go on from a session or generation.
pub fn links(id: &str, stored: bool) -> Links {
    Links {
        status: format!("/api/v1/status?id={id}"),
        stream: format!("/ws/stream?session={id}"),
        cancel: format!("/api/v1/generate?id={id}"),
        video: stored.then(|| format!("/api/v1/video?id={id}")),
        poster: stored.then(|| format!("/api/v1/poster?id={id}")),
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
