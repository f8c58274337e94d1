//! What clients send and receive as JSON, on the network and on the Unix socket alike.

use serde::{Deserialize, Serialize};

use super::keys::Keys;
use super::limits;

/// Version of the messages on `/ws/stream`, told in `hello`.
pub const PROTOCOL_VERSION: u32 = 1;

/// Body of POST /api/v1/generate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    pub prompt: String,
    #[serde(default = "default_width")]
    pub width: u32,
    #[serde(default = "default_height")]
    pub height: u32,
    /// Length of a stored generation; ignored for an interactive session.
    #[serde(default = "default_frames")]
    pub frames: u32,
    #[serde(default = "default_fps")]
    pub fps: u32,
    /// Denoising steps a frame; absent: the model's default.
    #[serde(default)]
    pub steps: Option<u32>,
    /// Absent: chosen by the daemon and told in the status.
    #[serde(default)]
    pub seed: Option<u64>,
    /// `third` or `first`; absent: what the prompt says.
    #[serde(default)]
    pub perspective: Option<String>,
    /// A session that runs in real time until it is stopped, instead of a stored clip.
    #[serde(default)]
    pub interactive: bool,
    /// Id of a session, a stored generation or an upload whose last frames this one continues.
    #[serde(default)]
    pub from: Option<String>,
    /// Pictures that lead the session frame by frame.
    #[serde(default)]
    pub video_prompt: Option<VideoPrompt>,
}

/// An upload that leads a session, and what is taken from its pictures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoPrompt {
    /// `canny`, `motion_vectors` or `pose`.
    #[serde(rename = "type")]
    pub kind: String,
    pub upload: String,
}

fn default_width() -> u32 {
    320
}
fn default_height() -> u32 {
    192
}
fn default_frames() -> u32 {
    96
}
fn default_fps() -> u32 {
    24
}

/// A field of a request that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} is not allowed; allowed: {allowed}")]
pub struct FieldError {
    pub field: &'static str,
    pub value: String,
    pub allowed: String,
}

impl FieldError {
    pub fn new(field: &'static str, value: impl ToString, allowed: impl Into<String>) -> FieldError {
        FieldError { field, value: value.to_string(), allowed: allowed.into() }
    }
}

fn in_range(field: &'static str, value: u32, range: &std::ops::RangeInclusive<u32>) -> Result<(), FieldError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(FieldError::new(field, value, format!("{} to {}", range.start(), range.end())))
}

fn one_of(field: &'static str, value: &str, words: &[String]) -> Result<(), FieldError> {
    if words.iter().any(|w| w == value) {
        return Ok(());
    }
    Err(FieldError::new(field, format!("{value:?}"), words.join(", ")))
}

/// Words and numbers that depend on the model a worker has loaded.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Vocabulary {
    pub weather: Vec<String>,
    pub lighting: Vec<String>,
    pub effects: Vec<String>,
    pub perspectives: Vec<String>,
    pub steps: Vec<u32>,
    pub default_steps: u32,
    pub prompt_tokens_max: usize,
    /// Kinds of video prompts that the model was trained for; none: the list is empty.
    #[serde(default)]
    pub video_prompts: Vec<String>,
    /// What can be taken from an upload: those kinds, whether or not the model was trained for them. Poses need a
    /// network of the model that finds joints.
    #[serde(default)]
    pub extractions: Vec<String>,
}

/// Checks a prompt's length. Errors: it is empty or too long.
pub fn check_prompt(prompt: &str) -> Result<(), FieldError> {
    let chars = prompt.chars().count();
    if prompt.trim().is_empty() || chars > limits::PROMPT_CHARS_MAX {
        let value = format!("a text of {chars} characters");
        return Err(FieldError::new("prompt", value, format!("1 to {} characters", limits::PROMPT_CHARS_MAX)));
    }
    Ok(())
}

impl GenerateRequest {
    /// Checks every field against its limit. Errors: the first field that is out of range.
    pub fn check(&self, vocabulary: &Vocabulary) -> Result<(), FieldError> {
        check_prompt(&self.prompt)?;
        in_range("width", self.width, &limits::WIDTH_PX)?;
        in_range("height", self.height, &limits::HEIGHT_PX)?;
        for (field, value) in [("width", self.width), ("height", self.height)] {
            if value % 2 != 0 {
                return Err(FieldError::new(field, value, "even numbers"));
            }
        }
        in_range("frames", self.frames, &limits::FRAMES)?;
        in_range("fps", self.fps, &limits::FPS)?;
        if let Some(steps) = self.steps
            && !vocabulary.steps.contains(&steps)
        {
            let allowed: Vec<String> = vocabulary.steps.iter().map(u32::to_string).collect();
            return Err(FieldError::new("steps", steps, allowed.join(", ")));
        }
        match &self.perspective {
            Some(p) => one_of("perspective", p, &vocabulary.perspectives),
            None => Ok(()),
        }
    }
}

/// Answer to POST /api/v1/generate, status 202.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GenerateReply {
    pub id: String,
    pub links: Links,
}

/// Where to go on from a generation, as paths.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Links {
    pub session: String,
    pub status: String,
    pub stream: String,
    pub cancel: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poster: Option<String>,
}

/// A player's control: what `/ws/stream` receives as `{"type":"control",...}` and POST /api/v1/control as its body.
/// Fields that are absent stay as they are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// Rising number of the client's choosing, from 1; frames tell which one they reflect.
    pub seq: u32,
    /// Keys held down now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
    /// Keys pressed and perhaps already released: each acts on one tick at least.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taps: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weather: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lighting: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effects: Option<String>,
    /// Free text, for instance "a storm begins".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
}

impl Control {
    /// Checks every field. Errors: the first one that is not allowed.
    pub fn check(&self, vocabulary: &Vocabulary) -> Result<(), FieldError> {
        if self.seq == 0 {
            return Err(FieldError::new("seq", 0, "1 to 4294967295"));
        }
        let key_names = || super::keys::KEY_NAMES.join(", ");
        for (field, names) in [("keys", self.keys.as_deref().unwrap_or(&[])), ("taps", self.taps.as_slice())] {
            Keys::from_names(names).map_err(|e| FieldError::new(field, format!("{:?}", e.0), key_names()))?;
        }
        for (field, value, words) in [
            ("weather", &self.weather, &vocabulary.weather),
            ("lighting", &self.lighting, &vocabulary.lighting),
            ("effects", &self.effects, &vocabulary.effects),
        ] {
            if let Some(v) = value {
                one_of(field, v, words)?;
            }
        }
        if let Some(text) = &self.instruction {
            let chars = text.chars().count();
            if text.trim().is_empty() || chars > limits::INSTRUCTION_CHARS_MAX {
                let allowed = format!("1 to {} characters", limits::INSTRUCTION_CHARS_MAX);
                return Err(FieldError::new("instruction", format!("a text of {chars} characters"), allowed));
            }
        }
        Ok(())
    }

    /// True if it changes what InstructNet reads as text.
    pub fn has_text(&self) -> bool {
        self.weather.is_some() || self.lighting.is_some() || self.effects.is_some() || self.instruction.is_some()
    }
}

/// Body of POST /api/v1/control.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlRequest {
    pub session: String,
    #[serde(flatten)]
    pub control: Control,
}

/// A JSON text message from a client on `/ws/stream`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    Control(Control),
}

/// A JSON text message to a client on `/ws/stream`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    Hello {
        protocol: u32,
        session: String,
        width: u32,
        height: u32,
        fps: u32,
        interactive: bool,
        /// What frames are encoded as on this stream: `jpeg` or `h264`.
        format: String,
        /// Shown to the next stream after a lost connection, it takes this one's place.
        resume: String,
        /// True if this stream took the place of the one whose token it showed.
        resumed: bool,
        /// Number of the newest control that was accepted; the next one must be above it.
        seq: u32,
        vocabulary: Box<Vocabulary>,
    },
    /// The generation waits for `position - 1` others.
    Queued {
        position: u32,
    },
    Progress {
        frame: u32,
        frames: u32,
    },
    Superseded {
        seq: u32,
        by: u32,
    },
    Recovering {
        reason: String,
    },
    Degraded {
        reason: String,
    },
    Error {
        problem: Problem,
    },
    Bye {
        reason: String,
    },
}

/// An error as RFC 9457 describes it, with a stable `code` and the field it is about.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Problem {
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    pub code: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
    /// The request's id, as in the header `X-Request-Id` and in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// State of a session or stored generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Queued,
    Running,
    /// The worker died; the session goes on when the next one is up.
    Recovering,
    Done,
    Cancelled,
    Failed,
}

impl State {
    /// In one word, as clients read it.
    pub fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Recovering => "recovering",
            State::Done => "done",
            State::Cancelled => "cancelled",
            State::Failed => "failed",
        }
    }

    pub fn is_final(self) -> bool {
        matches!(self, State::Done | State::Cancelled | State::Failed)
    }
}

/// What a session or stored thing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A stored generation: a video of which no frame is lost.
    #[default]
    Clip,
    /// An interactive session; once it has ended, its last state.
    Session,
    /// The state of a session at one moment, kept because somebody asked.
    Snapshot,
    /// A video of a session, made again from its value.
    Replay,
}

/// Answer to GET /api/v1/status?id= and GET /api/v1/sessions/ID.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionStatus {
    pub id: String,
    pub kind: Kind,
    pub state: State,
    /// Place in the queue, from 1, while others are before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u32>,
    /// 0 to 1; for an interactive session 0 until it ends.
    pub progress: f64,
    pub frame_count: u64,
    pub frames: u32,
    pub interactive: bool,
    pub prompt: String,
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    pub steps: u32,
    pub seed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perspective: Option<String>,
    /// What it continues or replays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video_prompt: Option<VideoPrompt>,
    /// Seconds since 1970 (UTC): when it was asked for, or stored.
    pub created: u64,
    /// Frames a second over the last seconds.
    pub frames_per_second: f64,
    pub viewers: usize,
    /// What its frames are like now; `width`, `height`, `fps` and `steps` are what was asked for. Absent unless it runs
    /// and is interactive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Quality>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
    pub links: Links,
}

/// What the frames of an interactive session are like at the moment: as they were asked for, or less while the device
/// has too much to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    pub width: u32,
    pub height: u32,
    pub steps: u32,
    pub fps: f64,
    /// What the session has given up: `none`, `steps`, `steps and rate`, or `steps, rate and size`.
    pub degraded: String,
    /// Why the session stays at its size whatever the load; null if it does not.
    pub size_fixed: Option<String>,
}

/// Answer to GET /api/v1/status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DaemonStatus {
    pub version: String,
    pub uptime_seconds: u64,
    /// `ready`, `starting`, `recovering` or `draining`.
    pub state: String,
    /// In words, for instance `namespaces, landlock, seccomp` or `none (started as an ordinary user)`.
    pub sandbox: String,
    pub worker: Option<WorkerStatus>,
    pub sessions: Vec<SessionStatus>,
}

/// One worker: its device, its model, its load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub pid: u32,
    pub generation: u32,
    pub device: String,
    pub device_kind: String,
    pub device_why: String,
    pub precision: String,
    pub sandbox: String,
    pub model: String,
    pub model_hash: String,
    pub parameters: u64,
    pub vocabulary: Vocabulary,
    pub stats: WorkerStats,
}

/// What a worker measures about itself, over the last second.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct WorkerStats {
    pub sessions: u32,
    pub frames_per_second: f64,
    pub tick_ms_p50: f64,
    pub tick_ms_p95: f64,
    pub busy: f64,
    /// Device memory of the sessions, and of everything: weights, sessions and work in between.
    pub state_bytes: u64,
    pub device_bytes: u64,
    pub frames_total: u64,
    /// Frames of interactive sessions that were due in the last second, and those of them that were left out.
    pub deadlines: u64,
    pub deadlines_missed: u64,
    /// Share of the device that interactive sessions need; 0 if it is not measured.
    pub load: f64,
    /// What interactive sessions have given up: empty (not measured), `none`, `steps`, `steps and rate`, or
    /// `steps, rate and size`.
    pub degraded: String,
    /// Interactive sessions that have a smaller size than they asked for.
    pub smaller: u32,
}
