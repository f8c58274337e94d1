//! One tick of a session: what comes before the engine's run, which several sessions may share, and what comes after.

use super::{Instruction, Live, Scratch, memory, time_us};
use crate::frame::trace::{Change, Cue, Script};
use crate::frame::{FrameMeta, Latched};
use crate::proto::keys::Keys;
use crate::proto::link::Environment;
use crate::proto::wire::FLAG_DEGRADED;
use crate::worker::engine::{Engine, Fault, Part, Picture};

impl<S> Live<S> {
    /// Latches the controls of the next frame and changes what must be changed before it. Returns an instruction that
    /// the model refused, which is no error: the session goes on without it. `changes`: now is the time for another
    /// number of steps, if there is one.
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
                    self.apply_steps(engine)?;
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

    /// Denoising steps that were asked for.
    pub fn asked_steps(&self) -> u32 {
        self.asked_steps
    }

    /// True if the next frame has another number of steps than the last: the session is opened anew for it, which takes
    /// longer than a frame.
    pub fn changes_steps(&self) -> bool {
        self.next_steps != self.request.steps
    }

    /// Whether frames are marked as degraded from the next one on, and how many denoising steps they have at the most.
    pub fn degrade(&mut self, degraded: bool, steps_max: u32) {
        self.degraded = degraded;
        // A replay has the steps of its script.
        if self.script.is_none() {
            self.next_steps = self.asked_steps.min(steps_max);
        }
    }

    fn apply_steps<E: Engine<Session = S>>(&mut self, engine: &mut E) -> Result<(), Fault> {
        if !self.changes_steps() {
            return Ok(());
        }
        let steps = self.next_steps;
        self.trace.push(&Change::Steps { tick: self.tick, steps });
        self.reopen(engine, steps)
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
                    self.next_steps = steps;
                    self.reopen(engine, steps)?;
                }
                // As the next worker did: with the steps that were asked for.
                Cue::Reopen => {
                    self.trace.push(&Change::Continued { tick: self.tick, from: self.tick.saturating_sub(1) });
                    self.next_steps = self.asked_steps;
                    self.reopen(engine, self.asked_steps)?;
                }
            }
        }
        let keys = script.keys();
        self.script = Some(script);
        Ok(Latched { seq: self.control_seq, keys })
    }

    /// Goes on from the newest latents alone, as a session does in the next worker after a crash.
    fn reopen<E: Engine<Session = S>>(&mut self, engine: &mut E, steps: u32) -> Result<(), Fault> {
        self.request.steps = steps;
        let mut fresh = engine.open(&self.request)?;
        let history: Vec<(Vec<f32>, Keys)> = self.history.iter().map(|(l, k)| (l.to_vec(), k)).collect();
        let (environment, text) = (&self.about.environment, self.about.instruction.as_deref());
        let told = match text.is_none() && *environment == Environment::default() {
            true => Ok(()),
            false => engine.instruct(&mut fresh, &self.request, environment, text),
        };
        if let Err(fault) = told.and_then(|()| engine.seed(&mut fresh, &history)) {
            engine.close(fresh);
            return Err(fault);
        }
        engine.close(std::mem::replace(&mut self.inner, fresh));
        Ok(())
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
