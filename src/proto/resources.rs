//! The things that clients list, show and delete: sessions, videos, uploads, models.

use serde::{Deserialize, Serialize};

use super::api::{Kind, SessionStatus, VideoPrompt, Vocabulary};

/// One page of a list, the newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// For the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A session with its value: what makes the same frames again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionReply {
    #[serde(flatten)]
    pub status: SessionStatus,
    /// Absent while no snapshot has been taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<SessionValue>,
}

/// Everything that decides the frames of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionValue {
    pub model_hash: String,
    /// Executor and precision in words; another one gives frames that differ in the last bits.
    pub device: String,
    pub prompt: String,
    pub seed: u64,
    pub width: u32,
    pub height: u32,
    pub steps: u32,
    /// Tick of the newest frame that the snapshot knows.
    pub tick: u64,
    /// Changes of the trace, see GET /api/v1/sessions/ID/trace.
    pub changes: usize,
    /// Changes that no longer fit the trace; a session with any cannot be replayed.
    pub changes_dropped: u64,
}

/// One change of a trace; it acts from `tick` on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TraceChange {
    Keys {
        tick: u64,
        seq: u32,
        keys: Vec<String>,
    },
    Instruction {
        tick: u64,
        seq: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weather: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lighting: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        effects: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instruction: Option<String>,
    },
    Continued {
        tick: u64,
        from: u64,
    },
    Began {
        tick: u64,
    },
    /// The device had too much to do, or no longer has: so many denoising steps from here on.
    Steps {
        tick: u64,
        steps: u32,
    },
    /// For the same reason: pictures of this size from here on.
    Size {
        tick: u64,
        width: u32,
        height: u32,
    },
}

/// Body of POST /api/v1/sessions/ID/fork: a new session that goes on from the newest snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// Absent: the session's own.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Absent: the session's own.
    #[serde(default)]
    pub seed: Option<u64>,
    /// False for a stored clip of `frames` frames.
    #[serde(default = "yes")]
    pub interactive: bool,
    #[serde(default)]
    pub frames: Option<u32>,
}

fn yes() -> bool {
    true
}

/// Body of POST /api/v1/sessions/ID/replay and /snapshot: nothing to say yet, and nothing else is allowed.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoFields {}

/// A stored video.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Video {
    pub id: String,
    pub kind: Kind,
    pub prompt: String,
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    pub frames: u32,
    pub seconds: f64,
    pub steps: u32,
    pub seed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perspective: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video_prompt: Option<VideoPrompt>,
    pub model_hash: String,
    /// Seconds since 1970 (UTC).
    pub created: u64,
    pub bytes: u64,
    pub links: VideoLinks,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VideoLinks {
    pub video: String,
    pub content: String,
    pub poster: String,
    /// With `{index}` from 0.
    pub frame: String,
}

/// An upload: pictures to continue, or for a video prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Upload {
    pub id: String,
    pub width: u32,
    pub height: u32,
    pub frames: u32,
    /// 0 for a sequence of pictures: each is one frame.
    pub fps: f64,
    pub bytes: u64,
    pub files: usize,
    pub created: u64,
    /// Extractions that a preview can show.
    pub previews: Vec<String>,
    pub links: UploadLinks,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UploadLinks {
    pub upload: String,
    pub preview: String,
}

/// A model that a worker has loaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelReply {
    pub id: String,
    pub hash: String,
    pub parameters: u64,
    pub device: String,
    pub vocabulary: Vocabulary,
}
