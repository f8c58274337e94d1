//! One session of a worker: its value, its ring, its controls, and one tick of it.

mod change;
mod turn;

use std::os::fd::OwnedFd;

pub use change::Shape;

use super::engine::{Engine, Facts, Fault, SharedNumber, chain};
use crate::frame::trace::{self, Change, Script, Trace};
use crate::frame::{
    About, ControlReader, FrameRing, History, Pictures, RingError, RingReader, Snapshot, TapCounts, i420_bytes,
};
use crate::proto::api::{Control, GenerateRequest, Quality};
use crate::proto::keys::Keys;
use crate::proto::limits;
use crate::proto::link::{Environment, OpenSession};
use crate::proto::wire::FLAG_RECOVERED;

/// Ticks between two snapshots: a killed worker sets its sessions back by a second at the most.
pub const SNAPSHOT_TICKS: u32 = 24;
/// Slots of a stored generation's ring that stay untouched while its reader copies.
const SLOTS_READ: u64 = 1;

/// New text for InstructNet that waits for its tick.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    pub seq: u32,
    pub environment: Environment,
    pub text: Option<String>,
}

/// Memory that all sessions of a worker share, so that a tick allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    pub snapshot: Vec<u8>,
    pub lead: Vec<u8>,
}

/// A session and everything that its next frame depends on.
pub struct Live<S> {
    /// With the steps and the size of now.
    request: OpenSession,
    inner: S,
    ring: FrameRing,
    control: ControlReader,
    /// Number of the next tick.
    tick: u64,
    /// Frames before this one are with the reader already.
    publish_from: u64,
    /// Flags of the next published frame.
    flags: u32,
    seen: TapCounts,
    keys: Keys,
    /// `seq` of the newest latched control and of the newest applied instruction.
    control_seq: u32,
    instruction_seq: u32,
    pending: Option<Instruction>,
    /// The video prompt's pictures, one a tick.
    lead: Option<Pictures>,
    /// Says what to do instead of a player, in a replay.
    script: Option<Script>,
    history: History,
    trace: Trace,
    /// The next snapshot's words and numbers; the texts in it are those that the session reflects now.
    about: About,
    snapshot_in: u32,
    /// Denoising steps and size that were asked for, and those that there are from the next change on.
    asked: change::Shape,
    next: change::Shape,
    /// Why its size cannot change.
    size_fixed: Option<String>,
    /// What the api knows.
    told: Quality,
    /// Values of the largest latent that a snapshot in the ring has room for.
    latent_max: usize,
    /// Frames are marked as degraded.
    degraded: bool,
    /// The ring, if the engine writes there by itself, and where it does for the frame that is being made.
    shared: Option<SharedNumber>,
    in_place: Option<usize>,
}

/// The parts of a session that were made for it.
struct Opened<S> {
    inner: S,
    ring: FrameRing,
    control: ControlReader,
    text: Instruction,
    /// What it continues, as latents.
    history: Vec<(Vec<f32>, Keys)>,
    lead: Option<Pictures>,
    script: Option<Script>,
    shared: Option<SharedNumber>,
}

/// Where a session begins.
#[derive(Default)]
struct Start {
    snapshot: Option<Snapshot>,
    pictures: Option<Pictures>,
    lead: Option<Pictures>,
    script: Option<Script>,
    tick: u64,
    recovered: bool,
}

/// Checks what the api sent as if it came from a client.
pub fn check(request: &OpenSession, facts: &Facts) -> Result<(), Fault> {
    let as_asked = GenerateRequest {
        prompt: request.prompt.clone(),
        width: request.width,
        height: request.height,
        frames: request.frames.unwrap_or(1),
        fps: request.fps,
        steps: Some(request.steps),
        seed: Some(request.seed),
        perspective: request.perspective.clone(),
        interactive: request.frames.is_none(),
        from: None,
        video_prompt: None,
    };
    as_asked.check(&facts.vocabulary).map_err(|e| Fault::session("bad_request", e.to_string()))?;
    if let Some(kind) = request.video_prompt.as_ref().filter(|k| !facts.vocabulary.video_prompts.contains(k)) {
        let known = facts.vocabulary.video_prompts.join(", ");
        let message = format!("the model was not trained for {kind:?}; allowed: [{known}]");
        return Err(Fault::session("video_prompts_unsupported", message));
    }
    check_instruction(&request.environment, request.instruction.as_deref(), facts)
}

/// Checks the words and the length of an instruction.
pub fn check_instruction(environment: &Environment, text: Option<&str>, facts: &Facts) -> Result<(), Fault> {
    let as_sent = Control {
        seq: 1,
        weather: environment.weather.clone(),
        lighting: environment.lighting.clone(),
        effects: environment.effects.clone(),
        instruction: text.map(str::to_string),
        ..Control::default()
    };
    as_sent.check(&facts.vocabulary).map_err(|e| Fault::session("bad_control", e.to_string()))
}

fn memory(error: &RingError) -> Fault {
    Fault::session("shared_memory", chain(error))
}

impl Start {
    /// Reads what came with the request beside the control block.
    fn read(request: &OpenSession, fds: impl Iterator<Item = OwnedFd>, facts: &Facts) -> Result<Start, Fault> {
        let mut fds = fds;
        let mut next = |there: bool| if there { fds.next() } else { None };
        let snapshot = next(request.from_snapshot);
        let pictures = next(request.from_pictures).map(|fd| read_pictures(request, fd)).transpose()?;
        let lead = next(request.video_prompt.is_some()).map(|fd| read_pictures(request, fd)).transpose()?;
        let script = next(request.replay).map(|fd| read_script(request, fd, facts)).transpose()?;
        let start = match snapshot {
            Some(fd) => Start::from_snapshot(request, fd, facts)?,
            None => {
                let tick = first_tick(request);
                Start { recovered: request.keep_tick || tick > 0, tick, ..Start::default() }
            }
        };
        Ok(Start { pictures, lead, script, ..start })
    }

    /// Reads the snapshot of a continuation. A session that goes on after a crash may have none yet and begins anew;
    /// one that a client asked to continue must have one that fits.
    fn from_snapshot(request: &OpenSession, fd: OwnedFd, facts: &Facts) -> Result<Start, Fault> {
        let snapshot = match Snapshot::read_fd(&fd) {
            Ok(snapshot) => Some(snapshot),
            Err(RingError::NoSnapshot) if request.keep_tick => None,
            Err(e) => return Err(Fault::session("bad_snapshot", chain(&e))),
        };
        if let Some(s) = &snapshot {
            fits(request, &s.about, facts)?;
        }
        let tick = first_tick(request);
        if !request.keep_tick {
            return Ok(Start { snapshot, tick, recovered: tick > 0, ..Start::default() });
        }
        let mut tick = tick.max(snapshot.as_ref().map_or(0, |s| s.about.tick.saturating_add(1)));
        // Viewers of a live session have seen ticks after the snapshot: numbers go on rising. A stored generation makes
        // those frames again instead, under the same numbers.
        if request.frames.is_none()
            && let Some(newest) = RingReader::open(fd).ok().and_then(|ring| ring.newest())
        {
            tick = tick.max(newest.saturating_add(1));
        }
        Ok(Start { snapshot, tick, recovered: true, ..Start::default() })
    }

    /// Latents to begin with, oldest first.
    fn history<E: Engine>(&self, engine: &mut E, request: &OpenSession) -> Result<Vec<(Vec<f32>, Keys)>, Fault> {
        if let Some(snapshot) = &self.snapshot {
            // While its device had too much to do, a session may have had a smaller size.
            return change::resized(engine, request, snapshot.size_px, snapshot.history.clone());
        }
        let Some(pictures) = &self.pictures else { return Ok(Vec::new()) };
        let kept = limits::SNAPSHOT_FRAMES_MAX as u32;
        let mut frames = Vec::new();
        for index in pictures.count().saturating_sub(kept)..pictures.count() {
            let mut rgb = Vec::new();
            pictures.read(index.into(), &mut rgb).map_err(|e| memory(&e))?;
            frames.push(rgb);
        }
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        Ok(engine.encode(request, &frames)?.into_iter().map(|latent| (latent, Keys::NONE)).collect())
    }
}

fn read_pictures(request: &OpenSession, fd: OwnedFd) -> Result<Pictures, Fault> {
    let pictures = Pictures::open(fd).map_err(|e| memory(&e))?;
    if pictures.size() != (request.width, request.height) {
        let (w, h) = pictures.size();
        let message = format!("pictures of {w} x {h} pixels for {} x {}", request.width, request.height);
        return Err(Fault::session("size_mismatch", message));
    }
    Ok(pictures)
}

/// The trace to play back. Errors: it does not reach back to the beginning, or it is another model's.
fn read_script(request: &OpenSession, fd: OwnedFd, facts: &Facts) -> Result<Script, Fault> {
    let snapshot = Snapshot::read_fd(&fd).map_err(|e| Fault::session("bad_snapshot", chain(&e)))?;
    fits(request, &snapshot.about, facts)?;
    if snapshot.about.trace_dropped > 0 {
        let message = format!("{} changes are no longer in the trace", snapshot.about.trace_dropped);
        return Err(Fault::session("trace_incomplete", message));
    }
    let changes = trace::decode(&snapshot.trace);
    Ok(Script::new(changes.ok_or_else(|| Fault::session("bad_snapshot", "its trace cannot be read"))?))
}

/// The lowest number of a frame: one that is played and was lost before it had a snapshot goes on with higher ones.
fn first_tick(request: &OpenSession) -> u64 {
    if request.frames.is_none() { request.tick_min } else { 0 }
}

/// A snapshot continues only in the same model and at the same size.
fn fits(request: &OpenSession, about: &About, facts: &Facts) -> Result<(), Fault> {
    if about.model_hash != facts.model_hash {
        let message = format!("the snapshot is of model {}, this worker runs {}", about.model_hash, facts.model_hash);
        return Err(Fault::session("model_mismatch", message));
    }
    if (about.width, about.height) != (request.width, request.height) {
        let message = format!(
            "the snapshot is of {} x {} pixels, the session asks for {} x {}; allowed: the same size",
            about.width, about.height, request.width, request.height
        );
        return Err(Fault::session("size_mismatch", message));
    }
    Ok(())
}

impl<S> Live<S> {
    /// Opens a session with the descriptors that came with the request. Returns it and its ring's read-only descriptor.
    ///
    /// Errors: a fault of the session if anything of the request is not allowed, of the device if it is full or gone.
    pub fn open<E: Engine<Session = S>>(
        engine: &mut E,
        request: OpenSession,
        fds: Vec<OwnedFd>,
        facts: &Facts,
    ) -> Result<(Live<S>, OwnedFd), Fault> {
        check(&request, facts)?;
        let (expected, found) = (request.descriptors(), fds.len());
        let mut fds = fds.into_iter();
        let (Some(control), true) = (fds.next(), found == expected) else {
            return Err(Fault::session("bad_request", format!("{found} descriptors, allowed: {expected}")));
        };
        let control = ControlReader::open(control).map_err(|e| memory(&e))?;
        let mut start = Start::read(&request, fds, facts)?;
        let history = start.history(engine, &request)?;
        let mut inner = engine.open(&request)?;
        match Live::prepare(engine, &mut inner, &request, &start, &history) {
            Ok((ring, fd, text)) => {
                let (lead, script) = (start.lead.take(), start.script.take());
                let shared = engine.share(ring.memory());
                let opened = Opened { inner, ring, control, text, history, lead, script, shared };
                Ok((Live::assemble(engine, opened, request, start, facts), fd))
            }
            Err(fault) => {
                engine.close(inner);
                Err(fault)
            }
        }
    }

    /// Instruction, history and ring of a session that the engine has opened.
    fn prepare<E: Engine<Session = S>>(
        engine: &mut E,
        inner: &mut S,
        request: &OpenSession,
        start: &Start,
        history: &[(Vec<f32>, Keys)],
    ) -> Result<(FrameRing, OwnedFd, Instruction), Fault> {
        let asked = asked(request);
        // A continuation keeps its world's weather and light unless it is told otherwise.
        let text = match &start.snapshot {
            Some(s) if is_empty(&asked) => {
                Instruction { seq: 0, environment: s.about.environment.clone(), text: s.about.instruction.clone() }
            }
            _ => asked,
        };
        if !is_empty(&text) {
            engine.instruct(inner, request, &text.environment, text.text.as_deref())?;
        }
        let elements = engine.latent(inner).len();
        if let Some((latent, _)) = history.iter().find(|(latent, _)| latent.len() != elements) {
            let message = format!("a latent has {} values, the model's have {elements}", latent.len());
            return Err(Fault::session("bad_snapshot", message));
        }
        if !history.is_empty() {
            engine.seed(inner, history)?;
        }
        let created = FrameRing::create(request.width, request.height, limits::RING_SLOTS, elements);
        let (ring, fd) = created.map_err(|e| memory(&e))?;
        Ok((ring, fd, text))
    }

    fn assemble<E: Engine<Session = S>>(
        engine: &E,
        opened: Opened<S>,
        request: OpenSession,
        start: Start,
        facts: &Facts,
    ) -> Live<S> {
        let latent_max = engine.latent(&opened.inner).len();
        let mut history = History::new(latent_max, (request.width, request.height));
        opened.history.iter().for_each(|(latent, keys)| history.push(latent, *keys));
        let mut trace = Trace::new();
        let (mut seen, mut keys) = (TapCounts::default(), Keys::NONE);
        if let Some(Snapshot { about, trace: bytes, .. }) = &start.snapshot {
            if request.keep_tick {
                trace = Trace::resume(bytes, about.trace_dropped);
                (seen, keys) = (about.taps, about.keys);
            }
            if trace.bytes().is_empty() && trace.dropped() == 0 && start.tick > 0 && !request.keep_tick {
                trace.push(&Change::Began { tick: start.tick });
            }
            trace.push(&Change::Continued { tick: start.tick, from: about.tick });
        } else if start.tick > 0 {
            trace.push(&Change::Began { tick: start.tick });
        }
        if start.pictures.is_some() {
            // So that nobody takes the trace for that of a session that began with nothing.
            trace.push(&Change::Continued { tick: start.tick, from: 0 });
        }
        let Instruction { environment, text, .. } = asked(&request);
        if environment != Environment::default() || text.is_some() {
            trace.push(&Change::Instruction { tick: start.tick, seq: 0, environment, text });
        }
        let taken = if request.frames.is_some() { opened.control.consumed() } else { 0 };
        Live {
            inner: opened.inner,
            ring: opened.ring,
            control: opened.control,
            tick: start.tick,
            publish_from: start.tick.max(taken),
            flags: if start.recovered { FLAG_RECOVERED } else { 0 },
            seen,
            keys,
            control_seq: 0,
            instruction_seq: 0,
            pending: None,
            lead: opened.lead,
            script: opened.script,
            history,
            trace,
            about: about(&request, opened.text, facts),
            snapshot_in: SNAPSHOT_TICKS,
            asked: change::Shape::of(&request),
            next: change::Shape::of(&request),
            size_fixed: None,
            told: Quality::default(),
            latent_max,
            degraded: false,
            shared: opened.shared,
            in_place: None,
            request,
        }
    }

    pub fn request(&self) -> &OpenSession {
        &self.request
    }

    /// Number of frames made so far, those before a recovery included.
    pub fn frames(&self) -> u64 {
        self.tick
    }

    /// Bytes of one picture of the size of now; never more than of the size that was asked for.
    pub fn frame_bytes(&self) -> usize {
        i420_bytes(self.request.width, self.request.height)
    }

    /// True if the next tick would reflect a control that no frame has reflected.
    pub fn has_news(&self) -> bool {
        self.pending.is_some() || self.script.is_none() && self.control.is_newer(self.control_seq, &self.seen)
    }

    /// True if the next frame would not overwrite one that the reader still needs.
    pub fn has_room(&self) -> bool {
        if self.tick < self.publish_from {
            return true;
        }
        let taken = self.control.consumed().max(self.publish_from);
        self.tick.saturating_sub(taken) < u64::from(self.ring.geometry().slots()) - SLOTS_READ
    }

    /// True if a stored generation has all its frames.
    pub fn is_finished(&self) -> bool {
        self.request.frames.is_some_and(|frames| self.tick >= u64::from(frames))
    }

    /// New text, for the next tick. An earlier one that still waits is superseded.
    pub fn instruct(&mut self, instruction: Instruction) {
        self.pending = Some(instruction);
    }

    /// `seq` of the newest control that the newest frame reflects.
    fn seq(&self) -> u32 {
        self.control_seq.max(self.instruction_seq)
    }

    /// Writes the session's value into its ring. A failure costs only the way back after a crash: it is logged.
    pub fn snapshot(&mut self, scratch: &mut Vec<u8>) {
        self.snapshot_in = SNAPSHOT_TICKS;
        let Some(newest) = self.tick.checked_sub(1) else { return };
        self.about.tick = newest;
        self.about.seq = self.seq();
        self.about.keys = self.keys;
        self.about.taps = self.seen;
        self.about.trace_dropped = self.trace.dropped();
        if let Err(e) = self.ring.snapshot(&self.about, self.trace.bytes(), &self.history, scratch) {
            log::warn!("session {}: no snapshot: {}", self.request.session, chain(&e));
        }
    }

    /// The ring, for whoever opens the session again.
    pub fn ring_fd(&self) -> Result<OwnedFd, RingError> {
        self.ring.read_only_fd()
    }

    /// Gives the engine back what is its.
    pub fn close<E: Engine<Session = S>>(self, engine: &mut E) {
        self.shared.into_iter().for_each(|shared| engine.unshare(shared));
        engine.close(self.inner);
    }
}

/// The part of a session's value that stays, and the texts it begins with.
fn about(request: &OpenSession, text: Instruction, facts: &Facts) -> About {
    About {
        model_hash: facts.model_hash.clone(),
        device: facts.device.clone(),
        width: request.width,
        height: request.height,
        fps: request.fps,
        steps: request.steps,
        seed: request.seed,
        prompt: request.prompt.clone(),
        perspective: request.perspective.clone(),
        environment: text.environment,
        instruction: text.text,
        ..About::default()
    }
}

/// The text that a session was opened with.
fn asked(request: &OpenSession) -> Instruction {
    Instruction { seq: 0, environment: request.environment.clone(), text: request.instruction.clone() }
}

fn is_empty(instruction: &Instruction) -> bool {
    instruction.text.is_none() && instruction.environment == Environment::default()
}

/// Presentation time of a tick in microseconds since the session began.
fn time_us(tick: u64, fps: u32) -> u64 {
    (u128::from(tick) * 1_000_000 / u128::from(fps.max(1))) as u64
}
