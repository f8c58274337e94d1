//! One tick of a session: what comes before the engine's run, which several sessions may share, and what comes after.

use super::change::Shape;
use super::{Instruction, Live, Scratch, memory, time_us};
use crate::frame::trace::{Change, Cue, Script};
use crate::frame::{FrameMeta, Latched, scale};
use crate::proto::wire::FLAG_DEGRADED;
use crate::worker::engine::{Engine, Fault, Part, Picture};

impl<S> Live<S> {
    /// Latches the controls of the next frame and changes what must be changed before it. Returns an instruction that
    /// the model refused, which is no error: the session goes on without it. `changes`: now is the time for another
    /// number of steps or size, if there is one.
    ///
    /// Errors: whatever ends the session or the device.
    pub fn begin<E: Engine<Session = S>>(
        &mut self,
        engine: &mut E,
        scratch: &mut Scratch,
        changes: bool,
    ) -> Result<Option<(u32, Fault)>, Fault> {
        let refused = self.apply_instruction(engine)?;
        let latched = match self.script.take() {
            Some(script) => self.follow(engine, script)?,
            None => {
                if changes {
                    self.apply_changes(engine)?;
                }
                self.control.latch(&mut self.seen)
            }
        };
        if latched.keys != self.keys || latched.seq != self.control_seq {
            self.trace.push(&Change::Keys { tick: self.tick, seq: latched.seq, keys: latched.keys });
        }
        (self.keys, self.control_seq) = (latched.keys, latched.seq);
        if let (Some(lead), Some(kind)) = (&self.lead, &self.request.video_prompt) {
            lead.read(self.tick, &mut scratch.lead).map_err(|e| memory(&e))?;
            let size = (self.request.width, self.request.height);
            if lead.size() != size {
                scratch.lead = scale::rgb(&scratch.lead, lead.size(), size);
            }
            engine.lead(&mut self.inner, kind, &scratch.lead)?;
        }
        Ok(refused)
    }

    /// This session's part of the engine's run. The frame goes into the ring, if the engine can and the reader does not
    /// have it already; else into `picture`.
    pub fn part<'a>(&'a mut self, picture: &'a mut [u8]) -> Part<'a, S> {
        let direct = self.shared.is_some() && self.tick >= self.publish_from;
        self.in_place = direct.then(|| self.ring.reserve(self.tick));
        self.part_again(picture)
    }

    /// The same part once more, when the run has ended.
    pub fn part_again<'a>(&'a mut self, picture: &'a mut [u8]) -> Part<'a, S> {
        let picture = match self.shared.zip(self.in_place) {
            Some((shared, offset)) => Picture::Shared(shared, offset),
            None => Picture::Bytes(picture),
        };
        Part { session: &mut self.inner, keys: self.keys, picture }
    }

    /// Fills the ring with what the run made. Returns the frame that is in the ring now; a recovered generation makes
    /// some again that its reader already has.
    pub fn end<E: Engine<Session = S>>(&mut self, engine: &E, picture: &[u8], snapshot: &mut Vec<u8>) -> Option<u64> {
        self.history.push(engine.latent(&self.inner), self.keys);
        let published = (self.tick >= self.publish_from).then_some(self.tick);
        if published.is_some() {
            let degraded = if self.degraded { FLAG_DEGRADED } else { 0 };
            let meta = FrameMeta {
                tick: self.tick,
                time_us: time_us(self.tick, self.request.fps),
                seq: self.seq(),
                flags: std::mem::take(&mut self.flags) | degraded,
                // Within the limits of a ring, which are far below 65536.
                width: self.request.width as u16,
                height: self.request.height as u16,
            };
            match self.in_place.take() {
                Some(_) => self.ring.commit(&meta),
                None => self.ring.publish(&meta, picture),
            }
        }
        self.tick += 1;
        self.snapshot_in -= 1;
        if self.snapshot_in == 0 {
            self.snapshot(snapshot);
        }
        published
    }

    /// The session the engine knows.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// What the script says for this frame. A player's keys do not count in a replay.
    fn follow<E: Engine<Session = S>>(&mut self, engine: &mut E, mut script: Script) -> Result<Latched, Fault> {
        while let Some(cue) = script.cue() {
            match cue {
                Cue::Instruct { environment, text } => {
                    let said = Instruction { seq: self.instruction_seq, environment, text };
                    // The session took it, so the same model takes it again.
                    self.instruct(said);
                    if let Some((_, fault)) = self.apply_instruction(engine)? {
                        return Err(fault);
                    }
                }
                Cue::Steps(steps) => {
                    self.trace.push(&Change::Steps { tick: self.tick, steps });
                    self.reopen(engine, Shape { steps, ..self.shape() })?;
                }
                Cue::Size(width, height) => {
                    let shape = Shape { width, height, ..self.shape() };
                    if self.ring.geometry().picture_bytes(width, height).is_none() {
                        let message = format!("its trace has pictures of {width} x {height} pixels");
                        return Err(Fault::session("bad_snapshot", message));
                    }
                    self.trace.push(&Change::Size { tick: self.tick, width, height });
                    self.reopen(engine, shape)?;
                }
                // As the next worker did: with the steps and the size that were asked for.
                Cue::Reopen => {
                    self.trace.push(&Change::Continued { tick: self.tick, from: self.tick.saturating_sub(1) });
                    self.reopen(engine, self.asked)?;
                }
            }
        }
        let keys = script.keys();
        self.script = Some(script);
        Ok(Latched { seq: self.control_seq, keys })
    }

    fn apply_instruction<E: Engine<Session = S>>(&mut self, engine: &mut E) -> Result<Option<(u32, Fault)>, Fault> {
        let Some(Instruction { seq, environment, text }) = self.pending.take() else { return Ok(None) };
        match engine.instruct(&mut self.inner, &self.request, &environment, text.as_deref()) {
            Ok(()) => {}
            Err(fault) if fault.device => return Err(fault),
            Err(fault) => return Ok(Some((seq, fault))),
        }
        (self.about.environment, self.about.instruction) = (environment.clone(), text.clone());
        self.instruction_seq = seq;
        self.trace.push(&Change::Instruction { tick: self.tick, seq, environment, text });
        Ok(None)
    }
}
