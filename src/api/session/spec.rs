//! What a session is made from, and where it can be found.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::proto::api::{Kind, Links, VideoPrompt};
use crate::proto::link::SessionNumber;

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

impl Spec {
    /// What the session cannot do without and no checkpoint has.
    pub fn needs_more(&self) -> Option<&'static str> {
        match (self.kind, &self.video_prompt) {
            (Kind::Replay, _) => Some("the trace that it plays back"),
            (_, Some(_)) => Some("its video prompt"),
            _ => None,
        }
    }
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

/// What a session continues.
#[derive(Clone, Debug)]
pub enum Origin {
    Snapshot(Arc<OwnedFd>),
    Pictures(Arc<OwnedFd>),
}

impl Origin {
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
