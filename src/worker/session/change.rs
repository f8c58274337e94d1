//! What of a session changes while it runs: its steps and its size, because its device has too much to do. Its world
//! goes on from its newest frames, its keys, texts and video prompt stay.

use super::{Instruction, Live, is_empty};
use crate::frame::trace::Change;
use crate::frame::{History, scale};
use crate::proto::api::Quality;
use crate::proto::keys::Keys;
use crate::proto::link::OpenSession;
use crate::worker::engine::{Engine, Fault};
use crate::worker::load::Level;

/// What of a session can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub steps: u32,
    pub width: u32,
    pub height: u32,
}

impl Shape {
    /// That of a request.
    pub fn of(request: &OpenSession) -> Shape {
        Shape { steps: request.steps, width: request.width, height: request.height }
    }

    /// Width and height in pixels.
    pub fn size_px(&self) -> (u32, u32) {
        (self.width, self.height)
    }
}

/// Latents with their keys, oldest first.
type Latents = Vec<(Vec<f32>, Keys)>;

/// The same frames at the size of `request`: latents of pictures of `from` (width, height) are decoded, scaled and
/// encoded again. Errors: those of the engine, for instance that it cannot have this size.
pub(super) fn resized<E: Engine>(
    engine: &mut E,
    request: &OpenSession,
    from: (u32, u32),
    history: Latents,
) -> Result<Latents, Fault> {
    let to = (request.width, request.height);
    if from == to || history.is_empty() {
        return Ok(history);
    }
    let latents: Vec<&[f32]> = history.iter().map(|(latent, _)| latent.as_slice()).collect();
    let pictures = engine.decode(from, &latents)?;
    let pictures: Vec<Vec<u8>> = pictures.iter().map(|rgb| scale::rgb(rgb, from, to)).collect();
    let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    let latents = engine.encode(request, &pictures)?;
    Ok(latents.into_iter().zip(history.into_iter().map(|(_, keys)| keys)).collect())
}

impl<S> Live<S> {
    /// Steps and size of the newest frame.
    pub fn shape(&self) -> Shape {
        Shape::of(&self.request)
    }

    /// Steps and size that were asked for.
    pub fn asked(&self) -> Shape {
        self.asked
    }

    /// Steps and size from the next change on.
    pub fn next_shape(&self) -> Shape {
        self.next
    }

    /// True if the next frame has other steps or another size than the last: the session is opened anew for it, which
    /// takes longer than a frame.
    pub fn changes(&self) -> bool {
        self.next != self.shape()
    }

    /// True if the next frame has another size than the last.
    pub fn changes_size(&self) -> bool {
        self.next.size_px() != self.shape().size_px()
    }

    /// Whether frames are marked as degraded from the next one on, and how many denoising steps they have at the most.
    pub fn degrade(&mut self, degraded: bool, steps_max: u32) {
        self.degraded = degraded;
        // A replay has the steps of its script.
        if self.script.is_none() {
            self.next.steps = self.asked.steps.min(steps_max);
        }
    }

    /// Frames have this size as soon as it is time; never a larger one than was asked for, since the ring was made for
    /// that.
    pub fn resize(&mut self, (width, height): (u32, u32)) {
        if self.script.is_none() && self.size_fixed.is_none() {
            (self.next.width, self.next.height) = (width.min(self.asked.width), height.min(self.asked.height));
        }
    }

    /// True if its size was found to stay as it is, or is none of the scheduler's business.
    pub fn size_is_fixed(&self) -> bool {
        self.size_fixed.is_some() || self.script.is_some()
    }

    /// What its frames are like under this level, if that is news to the api.
    pub fn news(&mut self, level: Level) -> Option<Quality> {
        let Shape { steps, width, height } = self.shape();
        let smaller = (width, height) != self.asked.size_px();
        let given_up = if smaller { Level::Size } else { level.min(Level::Rate) };
        let quality = Quality {
            width,
            height,
            steps,
            fps: f64::from(self.request.fps) / f64::from(level.periods()),
            degraded: given_up.name().to_string(),
            size_fixed: self.size_fixed.clone(),
        };
        if quality == self.told {
            return None;
        }
        self.told = quality.clone();
        Some(quality)
    }

    /// Makes the change that waits. A size that the engine cannot have is said and given up: the session goes on at the
    /// one it has. Errors: whatever ends the session or the device.
    pub(super) fn apply_changes<E: Engine<Session = S>>(&mut self, engine: &mut E) -> Result<(), Fault> {
        let (before, next) = (self.shape(), self.next);
        if before == next {
            return Ok(());
        }
        match self.reopen(engine, next) {
            Ok(()) => self.note(before),
            Err(fault) if fault.device || before.size_px() == next.size_px() => return Err(fault),
            Err(fault) => {
                let Shape { width, height, .. } = next;
                let session = self.request.session;
                log::warn!("session {session} cannot have {width} x {height} pixels: {}", fault.message);
                (self.next.width, self.next.height) = before.size_px();
                self.size_fixed = Some(fault.message);
            }
        }
        Ok(())
    }

    /// Writes into the trace what is other than `before`.
    fn note(&mut self, before: Shape) {
        let (tick, Shape { steps, width, height }) = (self.tick, self.shape());
        if steps != before.steps {
            self.trace.push(&Change::Steps { tick, steps });
        }
        if (width, height) != before.size_px() {
            self.trace.push(&Change::Size { tick, width, height });
        }
    }

    /// Goes on from the newest latents alone, as a session does in the next worker after a crash. After an error the
    /// session is as it was.
    pub(super) fn reopen<E: Engine<Session = S>>(&mut self, engine: &mut E, shape: Shape) -> Result<(), Fault> {
        let Shape { steps, width, height } = shape;
        let request = OpenSession { steps, width, height, ..self.request.clone() };
        let before = self.history.iter().map(|(l, k)| (l.to_vec(), k)).collect();
        let history = resized(engine, &request, self.history.size_px(), before)?;
        let mut fresh = engine.open(&request)?;
        if let Err(fault) = self.take_up(engine, &mut fresh, &request, &history) {
            engine.close(fresh);
            return Err(fault);
        }
        if self.history.size_px() != shape.size_px() {
            self.history = History::new(engine.latent(&fresh).len(), shape.size_px());
            history.iter().for_each(|(latent, keys)| self.history.push(latent, *keys));
        }
        (self.request, self.next) = (request, shape);
        engine.close(std::mem::replace(&mut self.inner, fresh));
        Ok(())
    }

    /// Gives a fresh session of the engine what this one has been told and has shown.
    fn take_up<E: Engine<Session = S>>(
        &self,
        engine: &mut E,
        fresh: &mut S,
        request: &OpenSession,
        history: &Latents,
    ) -> Result<(), Fault> {
        let elements = engine.latent(fresh).len();
        if elements > self.latent_max {
            let message = format!("its latents have {elements} values, there is room for {}", self.latent_max);
            return Err(Fault::session("size", message));
        }
        let (environment, text) = (self.about.environment.clone(), self.about.instruction.clone());
        let said = Instruction { seq: 0, environment, text };
        if !is_empty(&said) {
            engine.instruct(fresh, request, &said.environment, said.text.as_deref())?;
        }
        engine.seed(fresh, history)
    }
}
