//! Streaming generation: one latent frame a tick by few-step rectified flow (arXiv 2209.03003), with the keys and
//! values of earlier frames kept in rings (GameGen-X, arXiv 2411.00769, section 3.3, autoregressive generation).
//!
//! A [`Stream`] is the progress of one session; the noise is given, so that tests can give recorded noise.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::Keys;
use super::msdit;
use super::net::Recorded;
use super::plans::{
    self, FIRST_FRAME_STEPS, FrameInputs, InstructionPlan, PlanContext, PromptPlan, SeedPlan, TickPlan,
};
use super::state::{FrameSize, SessionLayout};
use super::{Model, ModelError, t5};
use crate::compute::{Executor, Output, PlanId, Profile, Run, StateId, Tensor};

/// A plan and its number on the executor.
struct Ready<P> {
    plan: P,
    id: PlanId,
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
    prompt: Ready<PromptPlan>,
    instruction: Ready<InstructionPlan>,
    first: Ready<TickPlan>,
    next: Ready<TickPlan>,
    /// Without and with a frame before; recorded when they are first needed.
    seed: [OnceLock<Ready<SeedPlan>>; 2],
}

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
        StreamPlans::with_probes(model, executor, size, steps, FIRST_FRAME_STEPS, false)
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
        let x = PlanContext { model, layout: &layout, size, precision, probing };
        let (h, w) = size.latent(model.config().vae.spatial_factor);
        Ok(StreamPlans {
            model: model.clone(),
            size,
            steps,
            first_steps,
            probing,
            tokens: h * w,
            prompt: ready(executor, plans::prompt_plan(&x, steps)?, |p| &p.recorded)?,
            instruction: ready(executor, plans::instruction_plan(&x)?, |p| &p.recorded)?,
            first: ready(executor, plans::tick_plan(&x, first_steps, true)?, |p| &p.recorded)?,
            next: ready(executor, plans::tick_plan(&x, steps, false)?, |p| &p.recorded)?,
            seed: [OnceLock::new(), OnceLock::new()],
            layout,
        })
    }

    /// The plan of a given frame, recorded now if it is the first one of its kind.
    fn seed(&self, executor: &mut dyn Executor, first: bool) -> Result<&Ready<SeedPlan>, ModelError> {
        let slot = &self.seed[usize::from(!first)];
        if let Some(plan) = slot.get() {
            return Ok(plan);
        }
        let precision = executor.device().precision;
        let (size, probing) = (self.size, self.probing);
        let x = PlanContext { model: &self.model, layout: &self.layout, size, precision, probing };
        let plan = ready(executor, plans::seed_plan(&x, first)?, |p| &p.recorded)?;
        Ok(slot.get_or_init(|| plan))
    }

    /// Tokens of a frame.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Arithmetic of a tick in floating-point operations.
    pub fn tick_flops(&self) -> u64 {
        self.next.plan.recorded.plan.flops()
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
        let mut geometry = msdit::geometry(&config.msdit, plans.size.latent(config.vae.spatial_factor));
        let features = std::mem::take(&mut geometry.features);
        for (index, values) in plans.layout.tables(geometry) {
            executor.write_state(self.state, index, &values)?;
        }
        let words = t5::embed(&config.text, plans.model.words(), ids);
        let conditions = plans::tick_conditions(config, plans.tokens, plans.steps, false);
        let Ready { plan, id } = &plans.prompt;
        let inputs = [(plan.words, &words[..]), (plan.features, &features), (plan.conditions, &conditions)];
        let run = Run {
            plan: *id,
            state: self.state,
            inputs: &inputs,
            params: &[self.text_count],
            outputs: &mut [],
            profile: None,
        };
        run_probed(executor, &plan.recorded, &mut self.probes, run)
    }

    /// Encodes an instruction; it holds from the next frame on.
    pub fn set_instruction(&mut self, executor: &mut dyn Executor, ids: &[u32]) -> Result<(), ModelError> {
        let words = t5::embed(&self.plans.model.config().text, self.plans.model.words(), ids);
        let Ready { plan, id } = &self.plans.instruction;
        let run = Run {
            plan: *id,
            state: self.state,
            inputs: &[(plan.words, &words)],
            params: &[ids.len() as u32],
            outputs: &mut [],
            profile: None,
        };
        run_probed(executor, &plan.recorded, &mut self.probes, run)?;
        self.instruct_count = ids.len() as u32;
        Ok(())
    }

    /// Room for the noise of the next frame [N, 2Z]: columns 0..Z become the frame, columns Z..2Z are mixed into the
    /// frame before.
    pub fn noise(&mut self) -> &mut [f32] {
        &mut self.tokens
    }

    /// The next frame under `keys`, from the noise that was put into [`Stream::noise`]. `picture` takes I420 bytes.
    pub fn tick(
        &mut self,
        executor: &mut dyn Executor,
        keys: Keys,
        picture: &mut [u8],
        profile: Option<&mut Profile>,
    ) -> Result<(), ModelError> {
        let plans = self.plans.clone();
        let config = plans.model.config();
        let first = self.position == 0;
        let Ready { plan, id } = if first { &plans.first } else { &plans.next };
        let mut conditions = Vec::new();
        if first {
            let z = config.msdit.latent_channels;
            self.tokens.chunks_mut(2 * z).for_each(|row| row[z..].fill(0.0)); // there is no frame before
            conditions = plans::tick_conditions(config, plans.tokens, plans.first_steps, true);
        }
        let frame = self.frame(&plans, keys);
        let run = Run {
            plan: *id,
            state: self.state,
            inputs: &inputs(&plan.inputs, &self.tokens, &frame, &conditions),
            params: &self.params(),
            outputs: &mut [(plan.picture, Output::Bytes(picture)), (plan.latent, Output::F32(&mut self.latent))],
            profile,
        };
        run_probed(executor, &plan.recorded, &mut self.probes, run)?;
        self.advance(keys);
        Ok(())
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
        self.pass(executor, &condition, keys, &mut velocity)?;
        self.latent.copy_from_slice(latent);
        Ok(())
    }

    /// One pass over the tokens in [`Stream::noise`] as they are, under a condition vector [E]; the frame's latent for
    /// the decoder and the next frame is their first half. `velocity` takes [N, Z].
    pub fn pass(
        &mut self,
        executor: &mut dyn Executor,
        condition: &[f32],
        keys: Keys,
        velocity: &mut [f32],
    ) -> Result<(), ModelError> {
        let plans = self.plans.clone();
        let Ready { plan, id } = plans.seed(executor, self.position == 0)?;
        let frame = self.frame(&plans, keys);
        let run = Run {
            plan: *id,
            state: self.state,
            inputs: &inputs(&plan.inputs, &self.tokens, &frame, condition),
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

/// The values of a frame's inputs.
fn inputs<'a>(
    plan: &FrameInputs,
    tokens: &'a [f32],
    (keys, cos, sin): &'a (Vec<f32>, Vec<f32>, Vec<f32>),
    conditions: &'a [f32],
) -> Vec<(Tensor, &'a [f32])> {
    let mut all = vec![(plan.tokens, tokens), (plan.keys, &keys[..]), (plan.cos, &cos[..]), (plan.sin, &sin[..])];
    all.extend(plan.conditions.map(|t| (t, conditions)));
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
        });
    }
    outputs.extend(recorded.probes.iter().zip(&mut values).map(|((_, t), v)| (*t, Output::F32(v))));
    executor.run(Run { outputs: &mut outputs, ..run })?;
    *probes = recorded.probes.iter().map(|(name, _)| name.clone()).zip(values).collect();
    Ok(())
}
