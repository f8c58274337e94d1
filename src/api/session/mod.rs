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
mod spec;
mod viewing;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, watch};

pub use spec::{INPUTS, Inputs, Origin, Shown, Spec, Stored, VideoUnit, links, stored_as, stored_status};
pub use viewing::Viewer;

use super::limits::{CONTROLS_AWAITED_MAX, PROGRESS_PERIOD, VIDEO_UNITS_MAX, VIEWER_EVENTS_MAX};
use super::metrics::Counters;
use super::refusal::Refusal;
use crate::frame::{ControlWriter, RingError, RingReader};
use crate::proto::api::{Control, Problem, Quality, ServerMessage, SessionStatus, State, Vocabulary};
use crate::proto::keys::Keys;
use crate::proto::link::{Environment, OpenSession, ToWorker};

/// Time over which the frame rate of a status is measured.
const RATE_WINDOW: Duration = Duration::from_secs(2);

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
    video: broadcast::Sender<Arc<VideoUnit>>,
    events: broadcast::Sender<ServerMessage>,
    viewers: AtomicUsize,
    /// Those of them that take JPEG.
    jpeg_viewers: AtomicUsize,
    /// A viewer of the H.264 stream cannot go on without a key frame.
    key_wanted: AtomicBool,
    /// Number of the viewer that sent the newest control.
    controller: AtomicU64,
    /// Its owner deleted it: nothing of it is kept.
    forgotten: AtomicBool,
    pub counters: Arc<Counters>,
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
    /// What the worker makes of it, while it is open there.
    quality: Option<Quality>,
    frame_count: u64,
    progress_told: Option<Instant>,
    /// True once it may open in a worker; a stored generation waits for others before.
    admitted: bool,
    queue_position: Option<u32>,
    inputs: Inputs,
    /// A snapshot of the session itself that an earlier api wrote down.
    resumed: Option<Arc<OwnedFd>>,
    /// No frame may have a lower number: viewers may have seen those.
    tick_min: u64,
    ring: Option<Arc<OwnedFd>>,
    /// Frames that there were when the session was last written down.
    written: Option<u64>,
    snapshot: Option<Vec<u8>>,
    stored: bool,
}

impl Session {
    /// A session that no worker knows yet. Messages for its thread go to `feed`.
    pub fn new(
        spec: Spec,
        inputs: Inputs,
        feed: mpsc::Sender<Feed>,
        counters: Arc<Counters>,
    ) -> Result<Session, RingError> {
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
            quality: None,
            frame_count: 0,
            progress_told: None,
            admitted: false,
            queue_position: None,
            inputs,
            resumed: None,
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
            video: broadcast::Sender::new(VIDEO_UNITS_MAX),
            events: broadcast::Sender::new(VIEWER_EVENTS_MAX),
            viewers: AtomicUsize::new(0),
            jpeg_viewers: AtomicUsize::new(0),
            key_wanted: AtomicBool::new(false),
            controller: AtomicU64::new(0),
            forgotten: AtomicBool::new(false),
            counters,
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
        // The newest word holds: a text until a later control speaks of the environment, which then is what is told.
        inner.instruction.clone_from(&control.instruction);
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
        // A replay is made again from its beginning: only so are its frames those of the original.
        let replays = inner.inputs.script.is_some();
        let ring = inner.ring.as_ref().filter(|fd| !replays && crate::frame::Snapshot::read_fd(fd).is_ok());
        let own = ring.or(inner.resumed.as_ref());
        let keep_tick = own.is_some();
        let origin = match own {
            Some(own) => Some(Origin::Snapshot(own.clone())),
            None => inner.inputs.origin.clone(),
        };
        let more = [origin.as_ref().map(Origin::fd), inner.inputs.lead.as_ref(), inner.inputs.script.as_ref()];
        for fd in more.into_iter().flatten() {
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
            from_snapshot: matches!(origin, Some(Origin::Snapshot(_))),
            keep_tick,
            from_pictures: matches!(origin, Some(Origin::Pictures(_))),
            video_prompt: inner.inputs.lead.as_ref().and(spec.video_prompt.as_ref()).map(|v| v.kind.clone()),
            replay: replays,
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

    pub fn consumed(&self, tick_count: u64) {
        self.control.consumed(tick_count);
    }

    /// The worker is gone; another one may follow.
    pub fn interrupted(&self, reason: &str) {
        let mut inner = self.inner();
        if !inner.state.is_final() {
            inner.state = State::Recovering;
            inner.arrivals.clear();
            inner.quality = None;
            let _ = self.events.send(ServerMessage::Recovering { reason: reason.to_string() });
        }
    }

    /// What its frames are like from now on.
    pub fn set_quality(&self, quality: Quality) {
        let mut inner = self.inner();
        if !inner.state.is_final() {
            inner.quality = Some(quality);
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
            inner.queue_position = None;
            inner.ring = None;
            inner.quality = None;
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
            kind: spec.kind,
            state: inner.state,
            queue_position: inner.queue_position,
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
            perspective: spec.perspective.clone(),
            from: spec.from.clone(),
            video_prompt: spec.video_prompt.clone(),
            created: spec.created,
            frames_per_second: inner.frames_per_second(),
            viewers: self.viewers.load(Ordering::Acquire),
            now: inner.quality.clone(),
            error: inner.error.clone(),
            links: links(&spec.id, stored_as(spec.kind, inner.stored)),
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

#[cfg(test)]
mod tests;
