//! The plans of a session: what runs when its prompt is set, when its instruction is set, for its first frame, for
//! every other frame, and for frames that are given to continue from.
//!
//! N tokens of a frame, Z latent channels, D `hidden_size`, L text tokens as a plan pads them, Dt text channels,
//! E condition channels, A keys, S steps.

use std::sync::Arc;

use super::Model;
use super::config::Config;
use super::instructnet;
use super::msdit::{self, Condition, Geometry, MODULATIONS, Modulation, Tick};
use super::net::{Net, Recorded};
use super::state::{FrameSize, SessionLayout};
use super::{t5, vae};
use crate::compute::op::{Axpy, Copy, Rope};
use crate::compute::{ComputeError, DType, Precision, StateLayout, Tensor, View};

/// Noise level at which given latents are passed through to fill the rings.
pub const SEED_LEVEL: f32 = 0.999;

/// What all plans of a session have in common.
pub struct PlanContext<'a> {
    pub model: &'a Model,
    pub layout: &'a SessionLayout,
    pub size: FrameSize,
    pub precision: Precision,
    /// Keep intermediate values; see [`Net::probe`].
    pub probing: bool,
    /// Sessions that the plan works on at once; only for frames with one before.
    pub seats: usize,
}

impl PlanContext<'_> {
    fn config(&self) -> &Config {
        self.model.config()
    }

    fn net(&self, name: &str) -> Net {
        let mut name = format!("{name} {}x{}", self.size.width, self.size.height);
        if self.seats > 1 {
            name = format!("{name} for {}", self.seats);
        }
        let tensors = (self.model.weights(), &self.layout.layout);
        Net::for_seats(&name, self.precision, tensors, self.probing, self.seats)
    }

    fn latent(&self) -> (usize, usize) {
        self.size.latent(&self.config().vae)
    }

    fn tokens(&self) -> usize {
        let (h, w) = self.latent();
        h * w
    }

    /// An input of `rows` rows for each seat.
    fn input(&self, net: &mut Net, name: &str, rows: usize, cols: usize) -> View {
        let t = net.builder().input(name, &[self.seats * rows, cols], self.precision.dtype());
        net.view(t)
    }
}

/// Encodes the prompt and fills the parts of the state that do not change from tick to tick: keys and values of the
/// text, position embedding, modulation of every step. Params: tokens of the prompt.
pub struct PromptPlan {
    pub recorded: Recorded,
    /// Rows of the table of words [L, Dt], see [`t5::embed`].
    pub words: Tensor,
    /// Position features [N, 4 * position_frequencies], see [`msdit::geometry`].
    pub features: Tensor,
    /// Condition vectors of the steps [S, E], see [`tick_conditions`].
    pub conditions: Tensor,
}

/// Conditions of the steps of a tick: shortcut steps (arXiv 2410.12557), which are told their length. `first` is the
/// very first frame of a text-only start, without a frame before; its steps are plain Euler steps in some models.
pub fn tick_conditions(config: &Config, tokens: usize, steps: u32, first: bool) -> Vec<f32> {
    let length = 1.0 / steps as f32;
    let condition = |i: u32| Condition {
        level: i as f32 * length,
        step: if first && !config.scheduler.first_frame_shortcut { 0.0 } else { length },
        context_noise: config.scheduler.context_noise,
        has_previous: !first,
    };
    (0..steps).flat_map(|i| condition(i).vector(&config.msdit, tokens)).collect()
}

/// The plan for prompts of up to `length` tokens, one of [`TextConfig::lengths`](super::config::TextConfig::lengths).
pub fn prompt_plan(x: &PlanContext<'_>, steps: u32, length: usize) -> Result<PromptPlan, ComputeError> {
    let (c, text, m) = (x.config(), &x.config().text, &x.config().msdit);
    let mut net = x.net("prompt");
    let count = net.builder().param();
    let words = x.input(&mut net, "words", length, text.d_model); // [L, Dt]
    let features = x.input(&mut net, "position_features", x.tokens(), m.position_channels());
    let conditions = x.input(&mut net, "conditions", steps as usize, m.condition_channels()); // [S, E]

    let y = t5::encode(&mut net, text, words, count)?; // [L, Dt]
    for i in 0..m.num_layers {
        if let Some(keys) = x.layout.text_keys[i] {
            let keys = net.state(keys).rows(0, length); // [L, 2D]
            let place = format!("{}.transformer_blocks.{i}.cross_attn", msdit::COMPONENT);
            net.at(&place, |net| msdit::cross_keys(net, y, m.heads(), keys, m.norm_eps))?;
        }
    }
    let pooled = net.state(x.layout.text_pool); // [1, D]
    msdit::pool_text(&mut net, c.text.num_heads, y, count, pooled)?;
    let modulation = x.layout.modulation(&mut net);
    msdit::modulate(&mut net, m, conditions, pooled, modulation)?;
    let position = net.state(x.layout.position); // [N, D]
    msdit::position(&mut net, features, position)?;
    let (words, features, conditions) = (words.tensor, features.tensor, conditions.tensor);
    Ok(PromptPlan { recorded: net.finish()?, words, features, conditions })
}

/// Encodes an instruction into the keys and values of InstructNet. Params: tokens of the instruction.
pub struct InstructionPlan {
    pub recorded: Recorded,
    /// Rows of the table of words [L, Dt].
    pub words: Tensor,
}

pub fn instruction_plan(x: &PlanContext<'_>) -> Result<InstructionPlan, ComputeError> {
    let (text, m) = (&x.config().text, &x.config().msdit);
    let mut net = x.net("instruction");
    let count = net.builder().param();
    let words = x.input(&mut net, "words", text.instruction_length(), text.d_model); // [L, Dt]
    let y = t5::encode(&mut net, text, words, count)?; // [L, Dt]
    for i in 0..m.num_layers {
        if let Some(keys) = x.layout.instruct_keys[i] {
            let keys = net.state(keys); // [L, 2D]
            let place = format!("{}.blocks.{i}.instruction", instructnet::COMPONENT);
            net.at(&place, |net| msdit::cross_keys(net, y, m.heads(), keys, m.norm_eps))?;
        }
    }
    Ok(InstructionPlan { recorded: net.finish()?, words: words.tensor })
}

/// What every plan that passes a frame through the transformer is given. Params, in order: tokens of the prompt, tokens
/// of the instruction, slot of the ring, frames in the ring with this one. With several seats each has its own of all.
pub struct FrameInputs {
    /// [N, 2Z]: the noisy latent, then the frame before or the noise that is mixed into it.
    pub tokens: Tensor,
    /// Keys of this frame and of the one before [1, 2A].
    pub keys: Tensor,
    /// Rotary tables of the frame's position, each [1, hd] f32.
    pub cos: Tensor,
    pub sin: Tensor,
    /// Condition vectors [S, E], if the plan does not find its modulation in the state.
    pub conditions: Option<Tensor>,
    /// Latent of the video prompt's picture [N, Z], if the plan takes one.
    pub video: Option<Tensor>,
}

/// Rotary tables of the tokens' places.
fn rope_space(x: &PlanContext<'_>, net: &mut Net) -> Rope {
    let m = &x.config().msdit;
    let Geometry { cos, sin, .. } = msdit::geometry(m, x.latent());
    let dims = [x.tokens(), m.head_dim];
    let [cos, sin] = [("rope_space_cos", cos), ("rope_space_sin", sin)].map(|(n, v)| net.builder().table(n, &dims, v));
    Rope { cos, sin, each: 1 }
}

/// Keys and values of a text, of all seats, for the blocks that attend to it.
fn gather_keys(net: &mut Net, name: &str, all: &[Option<usize>]) -> Result<Vec<Option<View>>, ComputeError> {
    let mut views = Vec::with_capacity(all.len());
    for (i, index) in all.iter().enumerate() {
        views.push(match *index {
            None => None,
            Some(index) => {
                let own = net.state(index); // [L, 2D]
                Some(net.gather(&format!("{name}.{i}"), own)?) // [seats * L, 2D]
            }
        });
    }
    Ok(views)
}

/// One tick: all denoising steps of a frame, and its way to a picture. With several seats there is one frame of each.
pub struct TickPlan {
    pub recorded: Recorded,
    pub inputs: FrameInputs,
    /// I420 bytes of the picture.
    pub picture: Tensor,
    /// The frame's latent [N, Z].
    pub latent: Tensor,
}

/// Inputs and parameters of [`FrameInputs`], the tokens as a view, and the modulation. `kind`: of a video prompt.
fn frame_inputs(
    x: &PlanContext<'_>,
    net: &mut Net,
    steps: Option<u32>,
    kind: Option<&str>,
) -> Result<(FrameInputs, View, Tick, Modulation), ComputeError> {
    let (c, m) = (x.config(), &x.config().msdit);
    let params = [net.builder().param(), net.builder().param(), net.builder().param(), net.builder().param()];
    let [text_count, instruct_count, slot, ring_count] = params;
    let tokens = x.input(net, "tokens", x.tokens(), 2 * m.latent_channels); // [N, 2Z]
    let keys = x.input(net, "keys", 1, 2 * c.instruct.action_count); // [1, 2A]
    let cos = net.builder().input("rope_time_cos", &[x.seats, m.head_dim], DType::F32);
    let sin = net.builder().input("rope_time_sin", &[x.seats, m.head_dim], DType::F32);
    let rope_time = Rope { cos, sin, each: x.tokens() };
    let rope_space = rope_space(x, net);
    let actions = instructnet::actions(net, &c.instruct, keys)?;
    let latent = kind.map(|_| x.input(net, "video_prompt", x.tokens(), m.latent_channels)); // [N, Z]
    let position = net.state(x.layout.position); // [N, D]
    let position = net.gather("position", position)?;
    let video = match kind.zip(latent) {
        None => None,
        Some((kind, latent)) => Some(instructnet::video_features(net, &c.instruct, kind, latent, position)?),
    };
    let tick = Tick {
        start: video.map_or(position, |video| video.embedded),
        rope_space,
        text_keys: gather_keys(net, "text_keys", &x.layout.text_keys)?,
        instruct_keys: gather_keys(net, "instruct_keys", &x.layout.instruct_keys)?,
        text_count,
        instruct_count,
        slot,
        ring_count,
        rope_time,
        actions,
        video,
    };
    let (modulation, conditions) = match steps {
        None => (x.layout.gather_modulation(net)?, None),
        Some(steps) => {
            let steps = steps as usize;
            let conditions = x.input(net, "conditions", steps, m.condition_channels()); // [S, E]
            let blocks = net.temp("modulation", steps * m.num_layers * MODULATIONS, m.hidden_size);
            let head = net.temp("head_modulation", steps, 2 * m.hidden_size); // [S, 2D]
            let modulation = Modulation { blocks, head, seats: 1 };
            let pooled = net.state(x.layout.text_pool); // [1, D]
            msdit::modulate(net, m, conditions, pooled, modulation)?;
            (modulation, Some(conditions.tensor))
        }
    };
    let video = latent.map(|latent| latent.tensor);
    let inputs = FrameInputs { tokens: tokens.tensor, keys: keys.tensor, cos, sin, conditions, video };
    Ok((inputs, tokens, tick, modulation))
}

/// The plan of a tick with `steps` denoising steps. `first` is the very first frame of a text-only start; `kind` is
/// that of a video prompt, if there is one.
///
/// The tokens' first half begins as noise and ends as the latent; the second half begins as noise and becomes
/// `(previous + context_noise * noise) / sqrt(1 + context_noise^2)`. For the first frame the second half must be zeros.
pub fn tick_plan(x: &PlanContext<'_>, steps: u32, first: bool, kind: Option<&str>) -> Result<TickPlan, ComputeError> {
    let (c, m) = (x.config(), &x.config().msdit);
    let mut net = x.net(if first { "first frame" } else { "frame" });
    let (inputs, tokens, tick, modulation) = frame_inputs(x, &mut net, first.then_some(steps), kind)?;
    let z = m.latent_channels;
    let (latent, context) = (tokens.columns(0, z), tokens.columns(z, z)); // 2 x [N, Z]
    let own_previous = net.state(x.layout.previous); // [N, Z]
    let previous = net.gather("previous", own_previous)?; // [seats * N, Z]
    let noise = c.scheduler.context_noise;
    let norm = 1.0 / (1.0 + noise * noise).sqrt();
    net.push("context", Axpy { x: context, v: previous, alpha: noise * norm, beta: norm, y: context })?;
    for s in 0..steps as usize {
        net.label = format!("step {s}: ");
        let v = msdit::pass(&mut net, (m, x.layout), tokens, (modulation, s), &tick)?; // [N, Z]
        net.push("euler", Axpy { x: latent, v, alpha: 1.0, beta: 1.0 / steps as f32, y: latent })?;
    }
    net.label = "decode: ".to_string();
    let kept = net.temp("latent", latent.rows, z); // [N, Z]
    net.push("latent", Copy { x: latent, y: kept })?;
    net.push("previous", Copy { x: latent, y: own_previous })?;
    net.builder().output(kept.tensor);
    let features = vae::decode_memory(&mut net, &c.vae, kept, x.latent(), x.layout.decoder, first)?;
    let scale = x.size.scale(&c.vae);
    let features = vae::decode_frame(&mut net, &c.vae, features, scale)?; // [8h * 8w, 48 scale^2]
    let picture = features.to_i420(&mut net, scale * c.vae.patch_size, x.size.width, x.size.height)?;
    Ok(TickPlan { recorded: net.finish()?, inputs, picture, latent: kept.tensor })
}

/// Arithmetic of a tick in floating-point operations.
pub fn tick_flops(model: &Model, size: FrameSize, steps: u32, precision: Precision) -> Result<u64, ComputeError> {
    let layout = SessionLayout::new(model.config(), size, steps as usize, precision);
    let context = PlanContext { model, layout: &layout, size, precision, probing: false, seats: 1 };
    Ok(tick_plan(&context, steps, false, None)?.recorded.plan.flops())
}

/// One pass of a frame that is given: its keys and values go into the rings, and the decoder remembers it.
pub struct SeedPlan {
    pub recorded: Recorded,
    /// The tokens are the latent and the noised frame before it (zeros if there is none).
    pub inputs: FrameInputs,
    /// Velocity [N, Z], which nothing but tests reads.
    pub velocity: Tensor,
}

/// Condition vector [1, E] of a given frame.
pub fn seed_condition(config: &Config, tokens: usize, has_previous: bool) -> Vec<f32> {
    let context_noise = config.scheduler.context_noise;
    Condition { level: SEED_LEVEL, step: 0.0, context_noise, has_previous }.vector(&config.msdit, tokens)
}

/// `first`: nothing came before the frame. `kind`: of a video prompt, if there is one.
pub fn seed_plan(x: &PlanContext<'_>, first: bool, kind: Option<&str>) -> Result<SeedPlan, ComputeError> {
    let (c, m) = (x.config(), &x.config().msdit);
    let mut net = x.net("seed");
    let (inputs, tokens, tick, modulation) = frame_inputs(x, &mut net, Some(1), kind)?;
    let latent = tokens.columns(0, m.latent_channels); // [N, Z]
    let v = msdit::pass(&mut net, (m, x.layout), tokens, (modulation, 0), &tick)?; // [N, Z]
    net.builder().output(v.tensor);
    let previous = net.state(x.layout.previous); // [N, Z]
    net.push("previous", Copy { x: latent, y: previous })?;
    vae::decode_memory(&mut net, &c.vae, latent, x.latent(), x.layout.decoder, first)?;
    Ok(SeedPlan { recorded: net.finish()?, inputs, velocity: v.tensor })
}

/// Makes a picture of a latent that is given; its state is the decoder's memory alone.
pub struct DecodePlan {
    pub recorded: Recorded,
    /// The frame's latent [N, Z].
    pub latent: Tensor,
    /// I420 bytes of the picture.
    pub picture: Tensor,
}

/// The layout of the decoder's memory, and the plans of a first frame and of one with a frame before.
pub fn decode_plans(
    model: &Model,
    size: FrameSize,
    precision: Precision,
) -> Result<(Arc<StateLayout>, [DecodePlan; 2]), ComputeError> {
    let c = &model.config().vae;
    let mut layout = StateLayout::default();
    let memory = vae::add_state(c, size.latent(c), precision.dtype(), &mut layout);
    let layout = Arc::new(layout);
    let plan = |first: bool| -> Result<DecodePlan, ComputeError> {
        let name = format!("decode {}x{}", size.width, size.height);
        let mut net = Net::new(&name, precision, model.weights(), &layout, false);
        let (h, w) = size.latent(c);
        let latent = net.builder().input("latent", &[h * w, c.latent_channels], precision.dtype());
        let view = net.view(latent); // [N, Z]
        let features = vae::decode_memory(&mut net, c, view, (h, w), memory, first)?;
        let scale = size.scale(c);
        let features = vae::decode_frame(&mut net, c, features, scale)?; // [8h * 8w, 48 scale^2]
        let picture = features.to_i420(&mut net, scale * c.patch_size, size.width, size.height)?;
        Ok(DecodePlan { recorded: net.finish()?, latent, picture })
    };
    let plans = [plan(true)?, plan(false)?];
    Ok((layout, plans))
}

/// Encodes one picture; works on no session.
pub struct EncodePlan {
    pub recorded: Recorded,
    /// Red, green, blue in -1..1 [H * W, 3] of the padded picture, see [`FrameSize::padded`].
    pub pixels: Tensor,
    /// Latent [N, Z] of mean 0 and deviation 1.
    pub latent: Tensor,
}

pub fn encode_plan(
    model: &Model,
    size: FrameSize,
    precision: Precision,
    state: &Arc<StateLayout>,
    probing: bool,
) -> Result<EncodePlan, ComputeError> {
    let c = &model.config().vae;
    let padded = size.padded(c);
    let name = format!("encode {}x{}", size.width, size.height);
    let mut net = Net::new(&name, precision, model.weights(), state, probing);
    let pixels = net.builder().input("pixels", &[padded.0 * padded.1, 3], precision.dtype());
    let view = net.view(pixels);
    let latent = vae::encode(&mut net, c, view, padded, size.scale(c))?; // [N, Z]
    net.builder().output(latent.tensor);
    Ok(EncodePlan { recorded: net.finish()?, pixels, latent: latent.tensor })
}
