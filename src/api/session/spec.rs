//! What a session is made from, and where it can be found.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::frame::{Pictures, RingError, Snapshot};
use crate::proto::api::{Kind, Links, SessionStatus, State, VideoPrompt};
use crate::proto::link::SessionNumber;
use crate::store::Generation;

/// Names of what a session can begin with.
const ORIGIN: &str = "origin";
const LEAD: &str = "lead";
const SCRIPT: &str = "script";
pub const INPUTS: [&str; 3] = [ORIGIN, LEAD, SCRIPT];

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
    #[serde(default)]
    pub kind: Kind,
    /// What it continues or replays.
    #[serde(default)]
    pub from: Option<String>,
    #[serde(default)]
    pub video_prompt: Option<VideoPrompt>,
    /// Seconds since 1970 (UTC).
    #[serde(default)]
    pub created: u64,
}

/// What a session begins with, beside its spec. The descriptors stay as they are: a replay begins with the same.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    pub origin: Option<Origin>,
    /// Pictures of the video prompt, one a tick.
    pub lead: Option<Arc<OwnedFd>>,
    /// A snapshot whose trace is played back.
    pub script: Option<Arc<OwnedFd>>,
}

impl Inputs {
    /// Each by its name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Arc<OwnedFd>)> {
        let all = [self.origin.as_ref().map(Origin::fd), self.lead.as_ref(), self.script.as_ref()];
        INPUTS.into_iter().zip(all).filter_map(|(name, fd)| Some((name, fd?)))
    }

    /// Takes what has that name. Errors: it is not what can be that; there is no such name.
    pub fn take(&mut self, name: &str, fd: OwnedFd) -> Result<(), RingError> {
        match name {
            ORIGIN => self.origin = Some(Origin::of(fd)?),
            LEAD => {
                Pictures::open(&fd)?;
                self.lead = Some(Arc::new(fd));
            }
            SCRIPT => {
                Snapshot::read_fd(&fd)?;
                self.script = Some(Arc::new(fd));
            }
            _ => return Err(RingError::NoSnapshot),
        }
        Ok(())
    }
}

/// What a session continues.
#[derive(Clone, Debug)]
pub enum Origin {
    Snapshot(Arc<OwnedFd>),
    Pictures(Arc<OwnedFd>),
}

impl Origin {
    /// What a descriptor holds. Errors: neither pictures nor a snapshot.
    pub fn of(fd: OwnedFd) -> Result<Origin, RingError> {
        let fd = Arc::new(fd);
        if Pictures::open(&*fd).is_ok() {
            return Ok(Origin::Pictures(fd));
        }
        Snapshot::read_fd(&*fd)?;
        Ok(Origin::Snapshot(fd))
    }

    pub fn fd(&self) -> &Arc<OwnedFd> {
        match self {
            Origin::Snapshot(fd) | Origin::Pictures(fd) => fd,
        }
    }
}

/// A frame as viewers get it: header and JPEG, encoded once for all of them.
#[derive(Clone, Debug)]
pub struct Shown {
    pub message: Bytes,
}

/// A frame of the H.264 stream: each needs those before it, back to a key frame.
#[derive(Clone, Debug)]
pub struct VideoUnit {
    pub message: Bytes,
    pub key: bool,
}

/// What of a session the store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Nothing,
    /// A state and its poster.
    State,
    /// A video, too.
    Video,
}

/// What the store has of a thing of this kind.
pub fn stored_as(kind: Kind, stored: bool) -> Stored {
    match (stored, kind) {
        (false, _) => Stored::Nothing,
        (true, Kind::Session | Kind::Snapshot) => Stored::State,
        (true, Kind::Clip | Kind::Replay) => Stored::Video,
    }
}

/// Where to go on from a session or generation.
pub fn links(id: &str, stored: Stored) -> Links {
    Links {
        session: format!("/api/v1/sessions/{id}"),
        status: format!("/api/v1/status?id={id}"),
        stream: format!("/ws/stream?session={id}"),
        cancel: format!("/api/v1/generate?id={id}"),
        video: (stored == Stored::Video).then(|| format!("/api/v1/video?id={id}")),
        poster: (stored != Stored::Nothing).then(|| format!("/api/v1/poster?id={id}")),
    }
}

/// What is told of a stored thing whose session is gone.
pub fn stored_status(g: &Generation) -> SessionStatus {
    SessionStatus {
        id: g.id.clone(),
        kind: g.kind,
        state: State::Done,
        queue_position: None,
        progress: 1.0,
        frame_count: u64::from(g.frames),
        frames: g.frames,
        interactive: g.kind == Kind::Session,
        prompt: g.prompt.clone(),
        width: g.width,
        height: g.height,
        fps: g.fps,
        steps: g.steps,
        seed: g.seed,
        perspective: g.perspective.clone(),
        from: g.from.clone(),
        video_prompt: g.video_prompt.clone(),
        created: g.created,
        frames_per_second: 0.0,
        viewers: 0,
        now: None,
        error: None,
        links: links(&g.id, stored_as(g.kind, true)),
    }
}
