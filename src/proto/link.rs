//! What the roles of one daemon tell each other: postcard messages, descriptors beside them, over socket pairs.
//!
//! Both ends are the same build; the first message on every link is `Hello`, and a mismatch ends the process that
//! sees it.
//! Descriptors travel with the message whose doc comment names them.

use serde::{Deserialize, Serialize};

use super::api::{Quality, Vocabulary, WorkerStats};

/// Raised whenever a message below changes.
pub const LINK_VERSION: u32 = 3;

/// Identity of a build: package version and link version.
pub fn build_id() -> String {
    format!("{} link {LINK_VERSION}", env!("CARGO_PKG_VERSION"))
}

/// A session's number inside one daemon run; outside it is shown as an opaque id.
pub type SessionNumber = u64;

/// What a worker needs to make frames for a session: all of it is part of the session's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenSession {
    pub session: SessionNumber,
    pub prompt: String,
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    pub steps: u32,
    pub seed: u64,
    pub perspective: Option<String>,
    /// `Some(n)`: n frames as fast as the device allows, none lost. `None`: real time at `fps`.
    pub frames: Option<u32>,
    pub environment: Environment,
    pub instruction: Option<String>,
    /// True if a second descriptor is a snapshot to continue from.
    pub from_snapshot: bool,
    /// A continuation after a crash keeps its tick numbers; one that a client asked for begins at 0.
    pub keep_tick: bool,
    /// No frame of a session that is played has a lower number: viewers may have seen frames that no snapshot tells of.
    pub tick_min: u64,
    /// True if the next descriptor is a block of pictures whose last ones are continued.
    pub from_pictures: bool,
    /// The kind of video prompt, if the next descriptor is a block of pictures, one a tick.
    pub video_prompt: Option<String>,
    /// True if the last descriptor is a snapshot whose trace says what to do at which tick, instead of a player.
    pub replay: bool,
}

impl OpenSession {
    /// A session that is played in real time and begins from text alone.
    pub fn from_text(session: SessionNumber, prompt: &str, size: (u32, u32), fps: u32, steps: u32) -> OpenSession {
        OpenSession {
            session,
            prompt: prompt.to_string(),
            width: size.0,
            height: size.1,
            fps,
            steps,
            seed: 0,
            perspective: None,
            frames: None,
            environment: Environment::default(),
            instruction: None,
            from_snapshot: false,
            keep_tick: false,
            tick_min: 0,
            from_pictures: false,
            video_prompt: None,
            replay: false,
        }
    }

    /// Descriptors that come with it.
    pub fn descriptors(&self) -> usize {
        let more = [self.from_snapshot, self.from_pictures, self.video_prompt.is_some(), self.replay];
        1 + more.into_iter().filter(|there| *there).count()
    }
}

/// The structured part of an instruction; the words are the model's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    pub weather: Option<String>,
    pub lighting: Option<String>,
    pub effects: Option<String>,
}

/// From the api to a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToWorker {
    Hello {
        build: String,
    },
    /// Descriptors: the control block (the worker maps it read-only), then, as far as the message says, each a memory
    /// object or file: a snapshot to continue, pictures to continue, the video prompt's pictures, a snapshot to replay.
    Open(Box<OpenSession>),
    /// New text for InstructNet; acts at the next tick and counts as control `seq`.
    Instruct {
        session: SessionNumber,
        seq: u32,
        environment: Environment,
        instruction: Option<String>,
    },
    Close {
        session: SessionNumber,
    },
}

/// From a worker to the api.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    Hello {
        build: String,
        about: Box<AboutWorker>,
    },
    /// A session that was open when the last api ended; as many as `AboutWorker::kept` follow the greeting.
    /// Descriptor: its frame ring with a snapshot of its last frame, read-only.
    Kept {
        session: SessionNumber,
    },
    /// Descriptor: the session's frame ring, read-only.
    Opened {
        session: SessionNumber,
    },
    /// Frame `tick` is in the ring.
    Frame {
        session: SessionNumber,
        tick: u64,
    },
    /// The last frame of a stored generation is in the ring, or the session was closed.
    Finished {
        session: SessionNumber,
        frames: u64,
    },
    /// The session cannot go on; others do.
    Failed {
        session: SessionNumber,
        code: String,
        message: String,
    },
    /// Instruction `seq` was not applied, for instance because it has too many tokens; the session goes on without it.
    Refused {
        session: SessionNumber,
        seq: u32,
        code: String,
        message: String,
    },
    /// What the frames of a session that is played are like from now on; told once it is open, and when it changes.
    Quality {
        session: SessionNumber,
        quality: Quality,
    },
    Stats(WorkerStats),
}

/// What a worker is, told once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AboutWorker {
    /// Sessions that it kept for this api, see `FromWorker::Kept`.
    pub kept: u32,
    pub device: String,
    pub device_kind: String,
    pub device_why: String,
    pub precision: String,
    pub sandbox: String,
    pub model: String,
    pub model_hash: String,
    pub parameters: u64,
    pub vocabulary: Vocabulary,
}

/// From the parent to the api.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToApi {
    /// Descriptors: the HTTP listener, then the Unix socket's listener.
    Start { build: String, config: Box<crate::config::Config>, sandbox: String },
    /// A worker runs as process `pid`, which it may not know itself. Descriptor: the link to it.
    WorkerUp { generation: u32, pid: u32 },
    /// The worker is gone; `reason` is what the log says; `retry` tells whether another one follows.
    WorkerDown { generation: u32, reason: String, retry: bool },
    /// Finish what is stored, refuse what is new, then exit.
    Drain,
    /// Another api takes over: write down every session as it is and exit, ending none.
    HandOver,
}

/// From the api to the parent: a closed set, checked again on arrival.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromApi {
    /// Requests are answered now.
    Ready { build: String },
    /// Start a decoder. Descriptor: its end of the link to the api, which speaks [`super::decode`].
    Decoder,
}

/// From the parent to a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToWorkerFromParent {
    /// Descriptor: the link to the api.
    Start { build: String, config: Box<crate::config::Config>, sandbox: String },
    /// The api was restarted. Descriptor: the link to the new one.
    NewApi,
    /// End after the current tick.
    Drain,
}

/// From a worker to the parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromWorkerToParent {
    /// The model is loaded. One line for the log: device and why.
    Ready { build: String, summary: String },
    /// Told several times a second by a thread of its own; `busy_ms`: for how long the engine's thread has been at one
    /// piece of work, 0 while it waits.
    Alive { busy_ms: u32 },
}
