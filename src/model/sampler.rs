//! Streaming generation: one latent frame a tick by few-step rectified flow (arXiv 2209.03003), with the keys and
//! values of earlier frames kept in rings (GameGen-X, arXiv 2411.00769, section 3.3, autoregressive generation).
//!
//! A [`Stream`] is the progress of one session; the noise is given, so that tests can give recorded noise.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::Keys;
use super::msdit;
use super::net::Recorded;
use super::plans::{self, FrameInputs, InstructionPlan, PlanContext, PromptPlan, SeedPlan, TickPlan};
use super::state::{FrameSize, SessionLayout};
use super::{Model, ModelError, t5};
use crate::compute::{self, Executor, Output, PlanId, Profile, Run, SharedId, StateId, Tensor};

/// A plan and its number on the executor.
struct Ready<P> {
    plan: P,
    id: PlanId,
}

/// The plans that make or take a frame: without a video prompt, or with one of a kind. Recorded when they are first
/// needed.
#[derive(Default)]
struct FramePlans {
    first: OnceLock<Ready<TickPlan>>,
    next: OnceLock<Ready<TickPlan>>,
    /// As `next` for the numbers of seats in [`SEATS`].
    batches: [OnceLock<Ready<TickPlan>>; SEATS.len()],
    /// Without and with a frame before.
    seed: [OnceLock<Ready<SeedPlan>>; 2],
}

/// The plans of all sessions of one size and number of steps, ready to run.
pub struct StreamPlans {
    model: Arc<Model>,
    pub layout: Arc<SessionLayout>,
    pub size: FrameSize,
    steps: u32,
    first_steps: u32,
    probing: bool,
    tokens: usize,
    /// By the number of tokens that they take, the shorter ones first; recorded when they are first needed.
    prompts: Vec<(usize, OnceLock<Ready<PromptPlan>>)>,
    instruction: Ready<InstructionPlan>,
    /// Without a video prompt, then with one of each kind that the model knows.
    frames: Vec<FramePlans>,
}

/// Numbers of seats for which there are plans of several sessions.
pub const SEATS: [usize; 7] = [2, 4, 8, 16, 32, 64, 128];

/// The place of the plans without a video prompt in [`StreamPlans::frames`].
const PLAIN: usize = 0;

fn ready<P>(executor: &mut dyn Executor, plan: P, recorded: impl Fn(&P) -> &Recorded) -> Result<Ready<P>, ModelError> {
    let id = executor.prepare(recorded(&plan).plan.clone())?;
    Ok(Ready { plan, id })
}

impl StreamPlans {
    /// Records and prepares the plans.
    pub fn new(
        model: &Arc<Model>,
        executor: &mut dyn Executor,
        size: FrameSize,
        steps: u32,
    ) -> Result<StreamPlans, ModelError> {
        let first_steps = model.config().scheduler.first_frame_steps;
        StreamPlans::with_probes(model, executor, size, steps, first_steps, false)
    }

    /// As [`StreamPlans::new`], with the number of steps of the first frame, and keeping intermediate values.
    pub fn with_probes(
        model: &Arc<Model>,
        executor: &mut dyn Executor,
        size: FrameSize,
        steps: u32,
        first_steps: u32,
        probing: bool,
    ) -> Result<StreamPlans, ModelError> {
        let precision = executor.device().precision;
        let layout = Arc::new(SessionLayout::new(model.config(), size, steps as usize, precision));
        let x = PlanContext { model, layout: &layout, size, precision, probing, seats: 1 };
        let config = model.config();
        let (h, w) = size.latent(&config.vae);
        let plans = StreamPlans {
            model: model.clone(),
            size,
            steps,
            first_steps,
            probing,
            tokens: h * w,
            prompts: config.text.lengths().into_iter().map(|length| (length, OnceLock::new())).collect(),
            instruction: ready(executor, plans::instruction_plan(&x)?, |p| &p.recorded)?,
            frames: (0..=config.instruct.video_prompts.len()).map(|_| FramePlans::default()).collect(),
            layout,
        };
        for first in [true, false] {
            plans.tick(executor, first, PLAIN)?;
        }
        Ok(plans)
    }

    fn context(&self, executor: &dyn Executor) -> PlanContext<'_> {
        let (precision, size, probing) = (executor.device().precision, self.size, self.probing);
        PlanContext { model: &self.model, layout: &self.layout, size, precision, probing, seats: 1 }
    }

    /// The plan of a tick of up to [`SEATS`]`[index]` sessions that have a frame already.
    fn batch(&self, executor: &mut dyn Executor, index: usize, place: usize) -> Result<&Ready<TickPlan>, ModelError> {
        let slot = &self.frames[place].batches[index];
        if let Some(plan) = slot.get() {
            return Ok(plan);
        }
        let context = PlanContext { seats: SEATS[index], ..self.context(executor) };
        let recorded = plans::tick_plan(&context, self.steps, false, self.kind(place))?;
        let plan = ready(executor, recorded, |p| &p.recorded)?;
        Ok(slot.get_or_init(|| plan))
    }

    /// Records the plans for batches of up to `most` sessions, so that no tick has to.
    pub fn prepare_batches(&self, executor: &mut dyn Executor, most: usize) -> Result<(), ModelError> {
        for (place, frames) in self.frames.iter().enumerate() {
            // A kind of video prompt is prepared for when it is first used.
            if frames.next.get().is_some() {
                for index in 0..SEATS.iter().take_while(|&&seats| seats <= most).count() {
                    self.batch(executor, index, place)?;
                }
            }
        }
        Ok(())
    }

    /// The kind of video prompt that belongs to a place in `frames`.
    fn kind(&self, place: usize) -> Option<&str> {
        let kinds = &self.model.config().instruct.video_prompts;
        place.checked_sub(1).and_then(|i| kinds.get(i)).map(String::as_str)
    }

    /// The plan for a prompt of `count` tokens, and the tokens that it takes.
    fn prompt(&self, executor: &mut dyn Executor, count: usize) -> Result<(usize, &Ready<PromptPlan>), ModelError> {
        let fits = self.prompts.iter().find(|(length, _)| count <= *length);
        let (length, slot) = fits.unwrap_or(&self.prompts[self.prompts.len() - 1]);
        if let Some(plan) = slot.get() {
            return Ok((*length, plan));
        }
        let recorded = plans::prompt_plan(&self.context(executor), self.steps, *length)?;
        let plan = ready(executor, recorded, |p| &p.recorded)?;
        Ok((*length, slot.get_or_init(|| plan)))
    }

    /// The plan of a tick.
    fn tick(&self, executor: &mut dyn Executor, first: bool, place: usize) -> Result<&Ready<TickPlan>, ModelError> {
        let plans = &self.frames[place];
        let (slot, steps) = if first { (&plans.first, self.first_steps) } else { (&plans.next, self.steps) };
        if let Some(plan) = slot.get() {
            return Ok(plan);
        }
        let recorded = plans::tick_plan(&self.context(executor), steps, first, self.kind(place))?;
        let plan = ready(executor, recorded, |p| &p.recorded)?;
        Ok(slot.get_or_init(|| plan))
    }

    /// The plan of a given frame.
    fn seed(&self, executor: &mut dyn Executor, first: bool, place: usize) -> Result<&Ready<SeedPlan>, ModelError> {
        let slot = &self.frames[place].seed[usize::from(!first)];
        if let Some(plan) = slot.get() {
            return Ok(plan);
        }
        let recorded = plans::seed_plan(&self.context(executor), first, self.kind(place))?;
        let plan = ready(executor, recorded, |p| &p.recorded)?;
        Ok(slot.get_or_init(|| plan))
    }

    /// Tokens of a frame.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Arithmetic of a tick in floating-point operations.
    pub fn tick_flops(&self) -> u64 {
        self.frames[PLAIN].next.get().map_or(0, |next| next.plan.recorded.plan.flops())
    }
}

/// A video prompt on its way.
struct Video {
    /// Place of its plans in [`StreamPlans::frames`].
    place: usize,
    /// Latents [N, Z] of the frames to come.
    latents: std::vec::IntoIter<Vec<f32>>,
}

/// One session's part in a tick of several.
pub struct Part<'a> {
    pub stream: &'a mut Stream,
    pub keys: Keys,
    pub picture: Picture<'a>,
}

/// A run of several sessions that is on its way.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    pub flight: compute::Flight,
    picture: Tensor,
    latent: Tensor,
}

/// Where the I420 bytes of a frame go.
pub enum Picture<'a> {
    Bytes(&'a mut [u8]),
    /// Into shared memory, from an offset on.
    Shared(SharedId, usize),
}

impl<'a> Picture<'a> {
    fn output(self) -> Output<'a> {
        match self {
            Picture::Bytes(bytes) => Output::Bytes(bytes),
            Picture::Shared(memory, offset) => Output::Shared { memory, offset },
        }
    }

    /// The same place once more.
    pub fn again(&mut self) -> Picture<'_> {
        match self {
            Picture::Bytes(bytes) => Picture::Bytes(bytes),
            Picture::Shared(memory, offset) => Picture::Shared(*memory, *offset),
        }
    }
}

/// One session's progress.
pub struct Stream {
    plans: Arc<StreamPlans>,
    state: StateId,
    /// Number of the next frame since the stream began, given frames included.
    position: u64,
    previous_keys: Keys,
    text_count: u32,
    instruct_count: u32,
    /// Room for the tokens of a tick [N, 2Z].
    tokens: Vec<f32>,
    /// Latent of the newest frame [N, Z].
    latent: Vec<f32>,
    video: Option<Video>,
    /// Values of the probes of the newest run, if the plans keep them.
    pub probes: BTreeMap<String, Vec<f32>>,
}

impl Stream {
    /// A new state with the prompt `ids` encoded. There must be an instruction before the first frame.
    pub fn open(plans: &Arc<StreamPlans>, executor: &mut dyn Executor, ids: &[u32]) -> Result<Stream, ModelError> {
        let config = plans.model.config();
        let state = executor.create_state(&plans.layout.layout)?;
        let mut stream = Stream {
            plans: plans.clone(),
            state,
            position: 0,
            previous_keys: Keys::NONE,
            text_count: ids.len() as u32,
            instruct_count: 1,
            tokens: vec![0.0; plans.tokens * 2 * config.msdit.latent_channels],
            latent: vec![0.0; plans.tokens * config.msdit.latent_channels],
            video: None,
            probes: BTreeMap::new(),
        };
        let opened = stream.encode_prompt(executor, ids);
        if opened.is_err() {
            executor.destroy_state(state);
        }
        opened.map(|()| stream)
    }

    fn encode_prompt(&mut self, executor: &mut dyn Executor, ids: &[u32]) -> Result<(), ModelError> {
        let plans = self.plans.clone();
        let config = plans.model.config();
        let features = msdit::geometry(&config.msdit, plans.size.latent(&config.vae)).features;
        let (length, Ready { plan, id }) = plans.prompt(executor, ids.len())?;
        let words = t5::embed(&config.text, plans.model.words(), ids, length);
        let conditions = plans::tick_conditions(config, plans.tokens, plans.steps, false);
        let inputs = [(plan.words, &words[..]), (plan.features, &features), (plan.conditions, &conditions)];
        let run = Run {
            plan: *id,
            states: &[self.state],
            inputs: &inputs,
            params: &[self.text_count],
            outputs: &mut [],
            profile: None,
        };
        run_probed(executor, &plan.recorded, &mut self.probes, run)
    }

    /// Encodes an instruction; it holds from the next frame on.
    pub fn set_instruction(&mut self, executor: &mut dyn Executor, ids: &[u32]) -> Result<(), ModelError> {
        let text = &self.plans.model.config().text;
        let words = t5::embed(text, self.plans.model.words(), ids, text.instruction_length());
        let Ready { plan, id } = &self.plans.instruction;
        let run = Run {
            plan: *id,
            states: &[self.state],
            inputs: &[(plan.words, &words)],
            params: &[ids.len() as u32],
            outputs: &mut [],
            profile: None,
        };
        run_probed(executor, &plan.recorded, &mut self.probes, run)?;
        self.instruct_count = ids.len() as u32;
        Ok(())
    }

    /// Shows a picture to each of the next frames: its latent [N, Z]. `kind` is an index into the model's kinds of
    /// video prompts. After the last one the stream goes on without.
    pub fn set_video_prompt(
        &mut self,
        executor: &mut dyn Executor,
        kind: usize,
        latents: Vec<Vec<f32>>,
    ) -> Result<(), ModelError> {
        let place = kind + 1;
        // Recorded now, so that no tick has to wait for it.
        if self.position == 0 {
            self.plans.tick(executor, true, place)?;
        }
        self.plans.tick(executor, false, place)?;
        self.video = Some(Video { place, latents: latents.into_iter() });
        Ok(())
    }

    /// Goes on without a video prompt.
    pub fn clear_video_prompt(&mut self) {
        self.video = None;
    }

    /// Frames that the video prompt is still there for.
    pub fn video_prompt_left(&self) -> usize {
        self.video.as_ref().map_or(0, |video| video.latents.len())
    }

    /// Place of the next frame's plans, and the latent of its video prompt, empty if there is none.
    fn video_frame(&mut self) -> (usize, Vec<f32>) {
        if let Some(video) = &mut self.video
            && let Some(latent) = video.latents.next()
        {
            return (video.place, latent);
        }
        self.video = None;
        (PLAIN, Vec::new())
    }

    /// Room for the noise of the next frame [N, 2Z]: columns 0..Z become the frame, columns Z..2Z are mixed into the
    /// frame before.
    pub fn noise(&mut self) -> &mut [f32] {
        &mut self.tokens
    }

    /// The next frame under `keys`, from the noise that was put into [`Stream::noise`]. `picture` takes its bytes.
    pub fn tick(
        &mut self,
        executor: &mut dyn Executor,
        keys: Keys,
        picture: Picture<'_>,
        profile: Option<&mut Profile>,
    ) -> Result<(), ModelError> {
        let mut probes = std::mem::take(&mut self.probes);
        let run = |executor: &mut dyn Executor, recorded: &Recorded, run: Run<'_>| {
            run_probed(executor, recorded, &mut probes, run)
        };
        launch(executor, &mut [Part { stream: self, keys, picture }], profile, run)?;
        self.probes = probes;
        Ok(())
    }

    /// Can the two make their next frames in one batch? They need plans of one size and number of steps, a frame
    /// before, and video prompts of one kind or none.
    pub fn goes_with(&self, other: &Stream) -> bool {
        let ready = |s: &Stream| s.position > 0 && !s.plans.probing;
        let place = |s: &Stream| s.video.as_ref().filter(|v| v.latents.len() > 0).map_or(PLAIN, |v| v.place);
        Arc::ptr_eq(&self.plans, &other.plans) && ready(self) && ready(other) && place(self) == place(other)
    }

    /// The next frames of several sessions, each from the noise in its [`Stream::noise`], in one run. All of them must
    /// go with one another ([`Stream::goes_with`]); there are at most as many as the last of [`SEATS`].
    pub fn tick_together(
        executor: &mut dyn Executor,
        parts: &mut [Part<'_>],
        profile: Option<&mut Profile>,
    ) -> Result<(), ModelError> {
        if let [part] = parts {
            return part.stream.tick(executor, part.keys, part.picture.again(), profile);
        }
        launch(executor, parts, profile, |executor, _, run| Ok(executor.run(run)?))?;
        Ok(())
    }

    /// As [`Stream::tick_together`], but does not wait: the frames are there after [`Stream::end`].
    pub fn begin(executor: &mut dyn Executor, parts: &mut [Part<'_>]) -> Result<Flight, ModelError> {
        let (flight, picture, latent) = launch(executor, parts, None, |executor, _, run| Ok(executor.begin(run)?))?;
        Ok(Flight { flight, picture, latent })
    }

    /// Takes what a run made, with the same parts in the same order.
    pub fn end(executor: &mut dyn Executor, flight: Flight, parts: &mut [Part<'_>]) -> Result<(), ModelError> {
        let mut outputs = Vec::with_capacity(2 * parts.len());
        for part in parts {
            outputs.push((flight.picture, part.picture.again().output()));
            outputs.push((flight.latent, Output::F32(&mut part.stream.latent)));
        }
        Ok(executor.end(flight.flight, &mut outputs)?)
    }

    /// Passes a given latent [N, Z] with its keys: the stream goes on after it. `noise` [N, Z] is mixed into the frame
    /// before.
    pub fn seed(
        &mut self,
        executor: &mut dyn Executor,
        latent: &[f32],
        keys: Keys,
        noise: &[f32],
    ) -> Result<(), ModelError> {
        let config = self.plans.model.config();
        let first = self.position == 0;
        let condition = plans::seed_condition(config, self.plans.tokens, !first);
        let (z, strength) = (config.msdit.latent_channels, config.scheduler.context_noise);
        let norm = if first { 0.0 } else { 1.0 / (1.0 + strength * strength).sqrt() };
        let context: Vec<f32> = self.latent.iter().zip(noise).map(|(p, n)| (p + strength * n) * norm).collect();
        for (n, row) in self.tokens.chunks_mut(2 * z).enumerate() {
            row[..z].copy_from_slice(&latent[n * z..][..z]);
            row[z..].copy_from_slice(&context[n * z..][..z]);
        }
        let mut velocity = vec![0.0; latent.len()];
        // A video prompt is about the frames that are made.
        let video = self.video.take();
        let passed = self.pass(executor, &condition, keys, &mut velocity);
        self.video = video;
        passed?;
        self.latent.copy_from_slice(latent);
        Ok(())
    }

    /// One pass over the tokens in [`Stream::noise`] as they are, under a condition vector [E] and the video prompt;
    /// the frame's latent for the decoder and the next frame is their first half. `velocity` takes [N, Z].
    pub fn pass(
        &mut self,
        executor: &mut dyn Executor,
        condition: &[f32],
        keys: Keys,
        velocity: &mut [f32],
    ) -> Result<(), ModelError> {
        let plans = self.plans.clone();
        let (place, video) = self.video_frame();
        let Ready { plan, id } = plans.seed(executor, self.position == 0, place)?;
        let frame = self.frame(&plans, keys);
        let run = Run {
            plan: *id,
            states: &[self.state],
            inputs: &inputs(&plan.inputs, &self.tokens, &frame, (condition, &video)),
            params: &self.params(),
            outputs: &mut [(plan.velocity, Output::F32(velocity))],
            profile: None,
        };
        run_probed(executor, &plan.recorded, &mut self.probes, run)?;
        self.advance(keys);
        Ok(())
    }

    fn advance(&mut self, keys: Keys) {
        self.previous_keys = keys;
        self.position += 1;
    }

    fn params(&self) -> [u32; 4] {
        let window = self.plans.model.config().msdit.window as u64;
        let (slot, count) = (self.position % window, (self.position + 1).min(window));
        [self.text_count, self.instruct_count, slot as u32, count as u32]
    }

    /// Key vector of this frame and the one before [1, 2A], cosines and sines of the frame's position [1, hd].
    fn frame(&self, plans: &StreamPlans, keys: Keys) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let config = plans.model.config();
        let count = config.instruct.action_count;
        let vector = [keys, self.previous_keys].iter().flat_map(|k| k.vector().into_iter().take(count)).collect();
        let (cos, sin) = msdit::temporal_rope(&config.msdit, self.position);
        (vector, cos, sin)
    }

    /// Number of the next frame, given frames included.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Latent of the newest frame [N, Z]; zeros before there is one.
    pub fn latent(&self) -> &[f32] {
        &self.latent
    }

    pub fn plans(&self) -> &StreamPlans {
        &self.plans
    }

    /// Gives the device's memory back.
    pub fn close(self, executor: &mut dyn Executor) {
        executor.destroy_state(self.state);
    }
}

/// Gives `go` the run of the parts' next frames. Returns its answer, and the tensors of picture and latent.
fn launch<R>(
    executor: &mut dyn Executor,
    parts: &mut [Part<'_>],
    profile: Option<&mut Profile>,
    go: impl FnOnce(&mut dyn Executor, &Recorded, Run<'_>) -> Result<R, ModelError>,
) -> Result<(R, Tensor, Tensor), ModelError> {
    let plans = parts[0].stream.plans.clone();
    let config = plans.model.config();
    let first = parts[0].stream.position == 0;
    let videos: Vec<_> = parts.iter_mut().map(|part| part.stream.video_frame()).collect();
    let place = videos[0].0;
    let Ready { plan, id } = if parts.len() == 1 {
        plans.tick(executor, first, place)?
    } else {
        let index = SEATS.iter().position(|&seats| parts.len() <= seats).unwrap_or(SEATS.len() - 1);
        plans.batch(executor, index, place)?
    };
    let mut conditions = Vec::new();
    if first {
        let z = config.msdit.latent_channels;
        // There is no frame before.
        parts[0].stream.tokens.chunks_mut(2 * z).for_each(|row| row[z..].fill(0.0));
        conditions = plans::tick_conditions(config, plans.tokens, plans.first_steps, true);
    }
    let frames: Vec<_> = parts.iter().map(|part| part.stream.frame(&plans, part.keys)).collect();
    let states: Vec<StateId> = parts.iter().map(|part| part.stream.state).collect();
    let params: Vec<u32> = parts.iter().flat_map(|part| part.stream.params()).collect();
    let mut given = Vec::new();
    let mut outputs = Vec::new();
    for (part, (frame, (_, video))) in parts.iter_mut().zip(frames.iter().zip(&videos)) {
        let Stream { tokens, latent, .. } = &mut *part.stream;
        given.extend(inputs(&plan.inputs, tokens, frame, (&conditions, video)));
        outputs.push((plan.picture, part.picture.again().output()));
        outputs.push((plan.latent, Output::F32(latent)));
    }
    let (inputs, params, outputs) = (&given[..], &params[..], &mut outputs[..]);
    let run = Run { plan: *id, states: &states, inputs, params, outputs, profile };
    let answer = go(executor, &plan.recorded, run)?;
    parts.iter_mut().for_each(|part| part.stream.advance(part.keys));
    Ok((answer, plan.picture, plan.latent))
}

/// The values of a frame's inputs.
fn inputs<'a>(
    plan: &FrameInputs,
    tokens: &'a [f32],
    (keys, cos, sin): &'a (Vec<f32>, Vec<f32>, Vec<f32>),
    (conditions, video): (&'a [f32], &'a [f32]),
) -> Vec<(Tensor, &'a [f32])> {
    let mut all = vec![(plan.tokens, tokens), (plan.keys, &keys[..]), (plan.cos, &cos[..]), (plan.sin, &sin[..])];
    all.extend(plan.conditions.map(|t| (t, conditions)));
    all.extend(plan.video.map(|t| (t, video)));
    all
}

/// Runs a plan, and reads its probes if it has any.
fn run_probed(
    executor: &mut dyn Executor,
    recorded: &Recorded,
    probes: &mut BTreeMap<String, Vec<f32>>,
    run: Run<'_>,
) -> Result<(), ModelError> {
    if recorded.probes.is_empty() {
        return Ok(executor.run(run)?);
    }
    let elements = |t: &Tensor| recorded.plan.tensors.shape(*t).elements();
    let mut values: Vec<Vec<f32>> = recorded.probes.iter().map(|(_, t)| vec![0.0; elements(t)]).collect();
    let mut outputs: Vec<(Tensor, Output<'_>)> = Vec::new();
    for (tensor, output) in run.outputs.iter_mut() {
        outputs.push(match output {
            Output::F32(x) => (*tensor, Output::F32(x)),
            Output::Bytes(x) => (*tensor, Output::Bytes(x)),
            Output::Shared { memory, offset } => (*tensor, Output::Shared { memory: *memory, offset: *offset }),
        });
    }
    outputs.extend(recorded.probes.iter().zip(&mut values).map(|((_, t), v)| (*t, Output::F32(v))));
    executor.run(Run { outputs: &mut outputs, ..run })?;
    *probes = recorded.probes.iter().map(|(name, _)| name.clone()).zip(values).collect();
    Ok(())
}
