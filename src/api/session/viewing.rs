//! Those who watch a session: how they join, what they are told, whose keys count.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, watch};

use super::{Feed, Inputs, Session, Shown, VideoUnit};
use crate::api::refusal::Refusal;
use crate::proto::api::{PROTOCOL_VERSION, ServerMessage, State, Vocabulary};
use crate::proto::keys::Keys;
use crate::proto::limits::VIEWERS_MAX;

impl Session {
    pub fn has_viewers(&self) -> bool {
        self.viewers.load(Ordering::Acquire) > 0
    }

    /// True if somebody takes JPEG.
    pub fn has_jpeg_viewers(&self) -> bool {
        self.jpeg_viewers.load(Ordering::Acquire) > 0
    }

    /// True if somebody takes H.264.
    pub fn has_video_viewers(&self) -> bool {
        self.video.receiver_count() > 0
    }

    /// A viewer cannot decode before the next key frame.
    pub fn want_key(&self) {
        self.key_wanted.store(true, Ordering::Release);
        self.tell(Feed::Wake);
    }

    /// True once for every time that somebody wanted a key frame.
    pub fn take_key_wanted(&self) -> bool {
        self.key_wanted.swap(false, Ordering::AcqRel)
    }

    /// Gives a unit of the H.264 stream to its viewers.
    pub fn show_video(&self, unit: VideoUnit) {
        // No receiver: the last one has just left.
        let _ = self.video.send(Arc::new(unit));
    }

    /// Lets it into a worker. Answers false if it was there already or has ended.
    pub fn admit(&self) -> bool {
        let mut inner = self.inner();
        let first = !inner.admitted && !inner.state.is_final();
        inner.admitted = true;
        inner.queue_position = None;
        first
    }

    pub fn is_admitted(&self) -> bool {
        self.inner().admitted
    }

    /// Tells it and its viewers its place in the queue, from 1.
    pub fn queued_at(&self, position: u32) {
        let mut inner = self.inner();
        if inner.queue_position != Some(position) && !inner.state.is_final() {
            inner.queue_position = Some(position);
            let _ = self.events.send(ServerMessage::Queued { position });
        }
    }

    /// What it began with.
    pub fn inputs(&self) -> Inputs {
        self.inner().inputs.clone()
    }

    /// Nothing of it is to be kept.
    pub fn forget(&self) {
        self.forgotten.store(true, Ordering::Release);
    }

    pub fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Acquire)
    }

    /// It can be had from the store from now on.
    pub fn was_stored(&self) {
        self.inner().stored = true;
    }

    /// The viewer that steers now.
    pub fn set_controller(&self, viewer: u64) {
        self.controller.store(viewer, Ordering::Release);
    }

    /// The new number of the viewer that steered as `old`.
    pub fn rename_controller(&self, old: u64, new: u64) {
        let _ = self.controller.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Lets go of the keys that a viewer held, unless somebody else steers by now: whoever lost the connection cannot.
    pub fn release_keys_of(&self, viewer: u64) {
        if self.controller.compare_exchange(viewer, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            let mut inner = self.inner();
            inner.keys = Keys::NONE;
            self.control.set(inner.latched, Keys::NONE);
        }
    }

    /// How long nobody has watched or controlled the session.
    pub fn idle(&self, now: Instant) -> Duration {
        let mut inner = self.inner();
        if self.has_viewers() {
            inner.active = now;
        }
        now.saturating_duration_since(inner.active)
    }

    /// Begins to watch, as H.264 if `video`. Errors: `too_many_viewers`.
    pub fn view(self: &Arc<Session>, video: bool) -> Result<Viewer, Refusal> {
        let joined =
            self.viewers.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < VIEWERS_MAX).then_some(n + 1));
        if joined.is_err() {
            let detail = format!("{VIEWERS_MAX} viewers watch this session already.");
            return Err(Refusal::new("too_many_viewers", detail).retry_after(5));
        }
        let mut shown = self.shown.subscribe();
        // The newest picture, if there is one, is news to this viewer.
        shown.mark_changed();
        let units = video.then(|| self.video.subscribe());
        if !video {
            self.jpeg_viewers.fetch_add(1, Ordering::AcqRel);
        }
        let viewer = Viewer { session: self.clone(), shown, video: units, events: self.events.subscribe() };
        if video {
            self.want_key();
        }
        self.tell(Feed::Wake);
        Ok(viewer)
    }

    /// The first message to every viewer.
    pub fn hello(&self, vocabulary: Vocabulary, format: &str, resume: &str, resumed: bool) -> ServerMessage {
        ServerMessage::Hello {
            format: format.to_string(),
            resume: resume.to_string(),
            resumed,
            seq: self.inner().accepted,
            protocol: PROTOCOL_VERSION,
            session: self.spec.id.clone(),
            width: self.spec.width,
            height: self.spec.height,
            fps: self.spec.fps,
            interactive: self.is_interactive(),
            vocabulary: Box::new(vocabulary),
        }
    }

    /// What a viewer that joins or lost messages must know besides the frames: progress, recovering, the end.
    pub fn standing(&self) -> Vec<ServerMessage> {
        let inner = self.inner();
        let mut messages = Vec::new();
        if let Some(position) = inner.queue_position {
            messages.push(ServerMessage::Queued { position });
        }
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
}

/// Somebody who watches a session; counted until it is dropped.
pub struct Viewer {
    pub session: Arc<Session>,
    /// The newest frame: a viewer that is slow never sees those in between.
    pub shown: watch::Receiver<Option<Arc<Shown>>>,
    /// The H.264 stream, if the viewer takes that instead of JPEG.
    pub video: Option<broadcast::Receiver<Arc<VideoUnit>>>,
    pub events: broadcast::Receiver<ServerMessage>,
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.session.inner().active = Instant::now();
        if self.video.is_none() {
            self.session.jpeg_viewers.fetch_sub(1, Ordering::AcqRel);
        }
        self.session.viewers.fetch_sub(1, Ordering::AcqRel);
    }
}
