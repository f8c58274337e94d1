//! What the worker's book-keeping needs from a model: a seam, so that it can be tested without one.

use std::sync::Arc;
use std::time::Duration;

use crate::proto::api::Vocabulary;
use crate::proto::keys::Keys;
use crate::proto::link::{Environment, OpenSession};
use crate::sys::shm::SharedMemory;

/// Why something could not be done, and for whom that is the end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// True if the device is gone or full: the process ends and the parent starts another one.
    pub device: bool,
    /// Stable name of the kind of error, for clients.
    pub code: &'static str,
    /// The whole chain of causes.
    pub message: String,
}

impl Fault {
    /// An error of one session.
    pub fn session(code: &'static str, message: impl Into<String>) -> Fault {
        Fault { device: false, code, message: message.into() }
    }

    /// An error that ends the process.
    pub fn device(code: &'static str, message: impl Into<String>) -> Fault {
        Fault { device: true, code, message: message.into() }
    }
}

/// An error with everything that caused it, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What is the same for all sessions of a worker.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub model_hash: String,
    /// Executor and precision in words: the tier of the session values.
    pub device: String,
    pub vocabulary: Vocabulary,
    /// Interactive sessions at once.
    pub real_time_max: usize,
    /// Pixels of the smallest pictures that the model was trained on.
    pub trained_px_min: u32,
    /// Floating-point operations a second that the device does in runs of several sessions, as measured at the start.
    /// `None`: the device is not one for many, sessions share it as well as they can.
    pub rate: Option<f64>,
}

/// A session's turn in a run of several.
pub struct Part<'a, S> {
    pub session: &'a mut S,
    pub keys: Keys,
    /// Takes I420, width * height * 3 / 2 bytes.
    pub picture: Picture<'a>,
}

/// Where a frame goes.
pub enum Picture<'a> {
    Bytes(&'a mut [u8]),
    /// Into a memory object that the engine knows by this number, from an offset on.
    Shared(SharedNumber, usize),
}

/// A memory object that [`Engine::share`] took.
pub type SharedNumber = usize;

/// A model on a device, with one state a session. Used from one thread.
pub trait Engine {
    type Session;
    /// A run that was begun and did not end.
    type Flight: Copy;

    /// A new session at its first frame.
    fn open(&mut self, request: &OpenSession) -> Result<Self::Session, Fault>;

    /// Gives a session's memory back.
    fn close(&mut self, session: Self::Session);

    /// Replaces what InstructNet reads: the free text, or the environment in words.
    fn instruct(
        &mut self,
        session: &mut Self::Session,
        request: &OpenSession,
        environment: &Environment,
        text: Option<&str>,
    ) -> Result<(), Fault>;

    /// Continues earlier frames, oldest first.
    fn seed(&mut self, session: &mut Self::Session, history: &[(Vec<f32>, Keys)]) -> Result<(), Fault>;

    /// Latents of pictures (RGB, three bytes a pixel, of the session's size) that a session continues.
    fn encode(&mut self, request: &OpenSession, pictures: &[&[u8]]) -> Result<Vec<Vec<f32>>, Fault>;

    /// Pictures (RGB, three bytes a pixel, of `size_px`) of latents that follow one another, oldest first.
    fn decode(&mut self, size_px: (u32, u32), latents: &[&[f32]]) -> Result<Vec<Vec<u8>>, Fault>;

    /// Gives the picture of the video prompt that leads the next frame: RGB, three bytes a pixel, of the session's
    /// size.
    ///
    /// Errors: `video_prompts_unsupported` if the model was not trained for this kind.
    fn lead(&mut self, session: &mut Self::Session, kind: &str, picture: &[u8]) -> Result<(), Fault>;

    /// Most sessions that gain from sharing a run.
    fn batch_max(&self) -> usize {
        1
    }

    /// Can the next frames of the two be made in one run?
    fn go_together(&self, _: &Self::Session, _: &Self::Session) -> bool {
        false
    }

    /// How many runs may be on their way at once.
    fn lanes(&self) -> usize {
        1
    }

    /// How many of `count` sessions that go together make the next run.
    fn run_max(&self, count: usize) -> usize {
        count.min(self.batch_max())
    }

    /// Begins the next frames of several sessions that go together; each is as it would be alone. An engine with one
    /// lane makes them here.
    fn begin(&mut self, parts: Vec<Part<'_, Self::Session>>) -> Result<Self::Flight, Fault>;

    /// Waits until one of the runs has landed, or for `time`. Returns the place of one that has.
    fn landed(&mut self, flights: &[Self::Flight], _time: Duration) -> Result<Option<usize>, Fault> {
        Ok((!flights.is_empty()).then_some(0))
    }

    /// Takes the frames of a run that has landed: the same parts in the same order.
    fn end(&mut self, _: Self::Flight, _parts: Vec<Part<'_, Self::Session>>) -> Result<(), Fault> {
        Ok(())
    }

    /// Lets frames go straight into a memory object. `None`: the engine cannot, and somebody copies them.
    fn share(&mut self, _: &Arc<SharedMemory>) -> Option<SharedNumber> {
        None
    }

    /// Takes a memory object back.
    fn unshare(&mut self, _: SharedNumber) {}

    /// Arithmetic of a frame of `width` x `height` pixels in `steps` steps, in floating-point operations; 0 if it is
    /// not known.
    fn flops(&mut self, _size_px: (u32, u32), _steps: u32) -> f64 {
        0.0
    }

    /// The newest frame's latent; always of the same length for a session.
    fn latent<'a>(&self, session: &'a Self::Session) -> &'a [f32];

    /// Device memory of everything, in bytes; 0 if it is not known.
    fn taken_bytes(&self) -> u64 {
        0
    }

    /// Device memory of the session that a request opens.
    fn state_bytes(&self, request: &OpenSession) -> u64;
}
