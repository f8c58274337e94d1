//! One denoising step of GameGen-X at the paper's size (arXiv 2411.00769, section 3.2), for speed tables only: its
//! weights are random numbers that are made when it is loaded, and nobody sees its pictures.
//!
//! 28 spatial and 28 temporal blocks of self-attention, cross-attention to 300 tokens of text and a feed-forward, adaLN
//! from the noise level, guidance as two halves of a batch. `benches/peers/paper_step.py` is the same step in PyTorch.
//!
//! T latent frames, N tokens of a frame, D `hidden_size`, Z channels of a token, L text tokens. The rows of a tensor
//! are halves, then frames, then tokens: [2 * T * N, ..].

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::ModelError;
use super::config::{Checker, read};
use super::net::{Fuse, Net};
use crate::compute::op::{Act, Add, Attention, Axpy, Copy, Groups, NormKind, Rope};
use crate::compute::{ComputeError, DType, Plan, Precision, StateLayout, Storage, Tensor, View, WeightSet};

/// Steps of the schedule of which one is taken.
const STEPS: f32 = 30.0;
/// Shift, scale and gate of attention and of feed-forward.
const MODULATIONS: usize = 6;
/// Conditional and unconditional.
const HALVES: usize = 2;

/// `config.json` of a folder of this kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Frames of a clip, and how many of them a latent frame stands for.
    pub frames: usize,
    pub temporal_factor: usize,
    /// Pixels along a side of a latent, and latents along a side of a token.
    pub spatial_factor: usize,
    pub patch_size: usize,
    pub latent_channels: usize,
    pub hidden_size: usize,
    pub num_heads: usize,
    /// Pairs of a spatial and a temporal block.
    pub num_layers: usize,
    pub mlp_ratio: usize,
    pub text_tokens: usize,
    pub time_frequencies: usize,
    pub guidance: f32,
    pub rope_spatial_base: f32,
    pub rope_temporal_base: f32,
    pub norm_eps: f32,
}

impl PaperConfig {
    /// Reads `config.json` of a folder. Errors: the field that is wrong.
    pub fn load(dir: &Path) -> Result<PaperConfig, ModelError> {
        let config: PaperConfig = read(dir, "config.json")?;
        let c = Checker::new(dir, "config.json");
        c.same("_class_name", config.class_name.as_str(), "GameGenXPaper")?;
        for (field, value, max) in [
            ("frames", config.frames, 1024),
            ("temporal_factor", config.temporal_factor, 64),
            ("spatial_factor", config.spatial_factor, 64),
            ("patch_size", config.patch_size, 8),
            ("latent_channels", config.latent_channels, 64),
            ("hidden_size", config.hidden_size, 8192),
            ("num_layers", config.num_layers, 128),
            ("mlp_ratio", config.mlp_ratio, 16),
            ("text_tokens", config.text_tokens, 4096),
            ("time_frequencies", config.time_frequencies, 1024),
        ] {
            c.within(field, value, 1, max)?;
        }
        let heads = config.num_heads;
        let whole = heads > 0 && config.hidden_size.is_multiple_of(2 * heads);
        c.that(whole, "num_heads", heads, format!("an even part of hidden_size {}", config.hidden_size))?;
        c.positive("norm_eps", config.norm_eps, 1e-2)?;
        Ok(config)
    }

    /// Channels of a token.
    fn channels(&self) -> usize {
        self.latent_channels * self.patch_size * self.patch_size
    }

    fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Latent frames, and tokens of each for pictures of `width` x `height`.
    pub fn tokens(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let side = self.spatial_factor * self.patch_size;
        (self.frames.div_ceil(self.temporal_factor), (width / side) * (height / side))
    }

    /// Random weights, the same ones for every block: 1.2 billion different numbers would say nothing more about speed.
    pub fn weights(&self) -> WeightSet {
        let (d, z) = (self.hidden_size, self.channels());
        let mut set = WeightSet::default();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut matrix = |set: &mut WeightSet, name: &str, out: usize, inner: usize, bias: bool| {
            set.insert(format!("{name}.weight"), &[out, inner], Storage::Matrix, random.matrix(out, inner));
            if bias {
                set.insert(format!("{name}.bias"), &[out], Storage::Vector, vec![0.0; out]);
            }
        };
        matrix(&mut set, "embed", d, z, true);
        matrix(&mut set, "time.0", d, 2 * self.time_frequencies, true);
        matrix(&mut set, "time.2", d, d, true);
        matrix(&mut set, "modulation", MODULATIONS * d, d, true);
        matrix(&mut set, "head_modulation", 2 * d, d, true);
        matrix(&mut set, "head", z, d, true);
        let mut block = WeightSet::default();
        matrix(&mut block, "attention.qkv", 3 * d, d, false);
        matrix(&mut block, "attention.out", d, d, false);
        matrix(&mut block, "cross.q", d, d, false);
        matrix(&mut block, "cross.kv", 2 * d, d, false);
        matrix(&mut block, "cross.out", d, d, false);
        matrix(&mut block, "up", self.mlp_ratio * d, d, true);
        matrix(&mut block, "down", d, self.mlp_ratio * d, true);
        block.insert("table", &[MODULATIONS, d], Storage::Matrix, random.matrix(MODULATIONS, d));
        for part in ["attention", "cross"] {
            for norm in ["norm_q", "norm_k"] {
                block.insert(
                    format!("{part}.{norm}.weight"),
                    &[self.head_dim()],
                    Storage::Vector,
                    vec![1.0; self.head_dim()],
                );
            }
        }
        for i in 0..2 * self.num_layers {
            for (_, w) in block.iter() {
                set.insert(format!("blocks.{i}.{}", w.name), w.shape.dims(), w.storage, Arc::clone(&w.data));
            }
        }
        set
    }
}

/// Uniform numbers.
struct Random(u64);

impl Random {
    /// A matrix that keeps the size of what it multiplies.
    fn matrix(&mut self, out: usize, inner: usize) -> Vec<f32> {
        let scale = (3.0 / inner as f32).sqrt() / (1u32 << 23) as f32;
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            ((self.0 >> 40) as f32 - (1u32 << 23) as f32) * scale
        };
        (0..out * inner).map(|_| next()).collect()
    }
}

/// The plan of a step, on no session's state.
pub struct PaperStep {
    pub plan: Arc<Plan>,
    /// Noisy tokens [T * N, Z], features of the noise level [1, 2 * time_frequencies], text [2 * L, D] (that of no text
    /// in its second half).
    pub inputs: [Tensor; 3],
    /// Tokens after the step [T * N, Z].
    pub output: Tensor,
}

/// What the blocks have in common.
struct Shared {
    frames: usize,
    tokens: usize,
    text: View,
    step: View,
    space: Rope,
    time: Rope,
}

/// Records the step for pictures of a size.
pub fn step_plan(
    c: &PaperConfig,
    weights: &Arc<WeightSet>,
    state: &Arc<StateLayout>,
    precision: Precision,
    size: (usize, usize),
) -> Result<PaperStep, ComputeError> {
    let ((t, n), d, z) = (c.tokens(size), c.hidden_size, c.channels());
    let name = format!("paper step {}x{}", size.0, size.1);
    let mut net = Net::new(&name, precision, weights, state, false);
    let input = |net: &mut Net, name: &str, rows: usize, cols: usize| {
        let tensor = net.builder().input(name, &[rows, cols], precision.dtype());
        net.view(tensor)
    };
    let x = input(&mut net, "x", t * n, z);
    let level = input(&mut net, "level", 1, 2 * c.time_frequencies);
    let text = input(&mut net, "text", HALVES * c.text_tokens, d);
    let e = net.linear("time.0", level, Fuse::act(Act::Silu))?; // [1, D]
    let e = net.linear("time.2", e, Fuse::act(Act::Silu))?; // [1, D]
    let step = net.linear("modulation", e, Fuse::default())?; // [1, 6D]
    let head = net.linear("head_modulation", e, Fuse::default())?; // [1, 2D]
    let space = rope(&mut net, "rope_space", c, (n, c.rope_spatial_base), 1);
    let time = rope(&mut net, "rope_time", c, (t, c.rope_temporal_base), n);
    let shared = Shared { frames: t, tokens: n, text, step, space, time };

    let h = net.temp("h", HALVES * t * n, d); // [2 * T * N, D]
    net.linear("embed", x, Fuse::into(h.rows(0, t * n)))?;
    net.push("embed.both", Copy { x: h.rows(0, t * n), y: h.rows(t * n, t * n) })?;
    for i in 0..2 * c.num_layers {
        net.at(&format!("blocks.{i}"), |net| block(net, c, h, &shared, i % 2 == 1))?;
    }
    let kind = NormKind::Modulate { shift: head.columns(0, d), scale: head.columns(d, d) };
    let y = net.norm("head.norm", h, kind, c.norm_eps)?; // [2 * T * N, D]
    let v = net.linear("head", y, Fuse::default())?; // [2 * T * N, Z]
    let (with, without) = (v.rows(0, t * n), v.rows(t * n, t * n));
    let guided = net.temp("guided", t * n, z); // [T * N, Z]
    net.push("guidance", Axpy { x: with, v: without, alpha: c.guidance, beta: 1.0 - c.guidance, y: guided })?;
    let next = net.temp("next", t * n, z); // [T * N, Z]
    net.push("euler", Axpy { x, v: guided, alpha: 1.0, beta: 1.0 / STEPS, y: next })?;
    net.builder().output(next.tensor);
    let inputs = [x.tensor, level.tensor, text.tensor];
    Ok(PaperStep { plan: net.finish()?.plan, inputs, output: next.tensor })
}

/// Rotary tables of `count` positions, each held by `each` rows.
fn rope(net: &mut Net, name: &str, c: &PaperConfig, (count, base): (usize, f32), each: usize) -> Rope {
    let half = c.head_dim() / 2;
    let angle = |p: usize, j: usize| p as f32 * base.powf(-((j % half) as f32) / half as f32);
    let all = || (0..count).flat_map(|p| (0..2 * half).map(move |j| (p, j)));
    let dims = [count, 2 * half];
    let cos = net.builder().table(&format!("{name}_cos"), &dims, all().map(|(p, j)| angle(p, j).cos()).collect());
    let sin = net.builder().table(&format!("{name}_sin"), &dims, all().map(|(p, j)| angle(p, j).sin()).collect());
    Rope { cos, sin, each }
}

/// One block, in place on `h` [2 * T * N, D].
fn block(net: &mut Net, c: &PaperConfig, h: View, s: &Shared, temporal: bool) -> Result<(), ComputeError> {
    let (d, heads, scale) = (c.hidden_size, c.num_heads, 1.0 / (c.head_dim() as f32).sqrt());
    let table = net.weight("table")?;
    let (table, m) = (net.view(table), net.temp("step", MODULATIONS, d)); // 2 x [6, D]
    let step = View { rows: MODULATIONS, cols: d, stride: d, ..s.step };
    net.push("step", Add { a: step, b: table, y: m })?;
    let modulated = |first: usize| NormKind::Modulate { shift: m.rows(first, 1), scale: m.rows(first + 1, 1) };

    let x = net.norm("attention.norm", h, modulated(0), c.norm_eps)?; // [2 * T * N, D]
    let y = net.temp("attention", h.rows, d); // [2 * T * N, D]
    net.at("attention", |net| {
        let qkv = net.linear("qkv", x, Fuse::default())?; // [2 * T * N, 3D]
        let [q, k, v] = [0, d, 2 * d].map(|from| qkv.columns(from, d));
        let rope = Some(if temporal { s.time } else { s.space });
        net.head_norm("norm_q", q, heads, rope, c.norm_eps)?;
        net.head_norm("norm_k", k, heads, rope, c.norm_eps)?;
        let attend = |q: View, k: View, v: View, y: View, groups: Groups| Attention {
            q,
            k,
            v,
            heads,
            scale,
            key_count: None,
            bias: None,
            groups,
            y,
        };
        if !temporal {
            return net.push("space", attend(q, k, v, y, Groups::blocks(HALVES * s.frames)));
        }
        let rows = s.frames * s.tokens;
        for half in 0..HALVES {
            let [q, k, v, y] = [q, k, v, y].map(|view| view.rows(half * rows, rows));
            net.push("time", attend(q, k, v, y, Groups::interleaved(s.tokens)))?;
        }
        Ok(())
    })?;
    net.linear("attention.out", y, Fuse::add_to(h, Some(m.rows(2, 1))))?; // [2 * T * N, D]

    net.at("cross", |net| {
        let x = net.norm("norm", h, NormKind::Weight { weight: None, act: Act::None }, c.norm_eps)?;
        let q = net.linear("q", x, Fuse::default())?; // [2 * T * N, D]
        let kv = net.linear("kv", s.text, Fuse::default())?; // [2 * L, 2D]
        let (k, v) = (kv.columns(0, d), kv.columns(d, d));
        net.head_norm("norm_q", q, heads, None, c.norm_eps)?;
        net.head_norm("norm_k", k, heads, None, c.norm_eps)?;
        let (y, groups) = (net.temp("y", h.rows, d), Groups::blocks(HALVES)); // [2 * T * N, D]
        net.push("attention", Attention { q, k, v, heads, scale, key_count: None, bias: None, groups, y })?;
        net.linear("out", y, Fuse::add_to(h, None)) // [2 * T * N, D]
    })?;

    let x = net.norm("mlp.norm", h, modulated(3), c.norm_eps)?; // [2 * T * N, D]
    let x = net.linear("up", x, Fuse::act(Act::Gelu))?; // [2 * T * N, 4D]
    net.linear("down", x, Fuse::add_to(h, Some(m.rows(5, 1))))?; // [2 * T * N, D]
    Ok(())
}

/// The layout of the state of runs that belong to no session; one number, since devices have no empty buffers.
pub fn no_state() -> Arc<StateLayout> {
    let mut layout = StateLayout::default();
    layout.add("unused", &[1], DType::F32);
    Arc::new(layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::CpuExecutor;
    use crate::compute::reference::ReferenceExecutor;
    use crate::compute::{Executor, Output, Run};

    fn shipped() -> PaperConfig {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gamegen-x");
        PaperConfig::load(&dir).expect("the configuration in the tree")
    }

    fn one_step(c: &PaperConfig, executor: &mut dyn Executor, size: (usize, usize)) -> Vec<f32> {
        let (weights, layout) = (Arc::new(c.weights()), no_state());
        executor.load_weights(&weights).expect("they fit");
        let step = step_plan(c, &weights, &layout, Precision::F32, size).expect("shapes agree");
        let plan = executor.prepare(step.plan.clone()).expect("a plan of f32");
        let state = executor.create_state(&layout).expect("one number");
        let values: Vec<Vec<f32>> = step
            .inputs
            .iter()
            .map(|t| {
                (0..step.plan.tensors.shape(*t).elements()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
            })
            .collect();
        let inputs: Vec<(Tensor, &[f32])> = step.inputs.iter().copied().zip(values.iter().map(Vec::as_slice)).collect();
        let mut y = vec![0.0; step.plan.tensors.shape(step.output).elements()];
        let outputs = &mut [(step.output, Output::F32(&mut y))];
        let run = Run { plan, states: &[state], inputs: &inputs, params: &[], outputs, profile: None };
        executor.run(run).expect("a step");
        y
    }

    #[test]
    fn a_small_one_agrees_with_the_reference() {
        let c = PaperConfig { hidden_size: 32, num_heads: 2, num_layers: 2, frames: 9, text_tokens: 5, ..shipped() };
        let expected = one_step(&c, &mut ReferenceExecutor::new(Precision::F32), (64, 48));
        let found = one_step(&c, &mut CpuExecutor::new(2).expect("two threads"), (64, 48));
        let worst = expected.iter().zip(&found).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0f32, f32::max);
        assert!(worst < 1e-4 && expected.iter().all(|v| v.is_finite()), "worst deviation {worst}");
    }

    #[test]
    fn the_step_has_the_papers_size() {
        let c = shipped();
        assert_eq!(c.tokens((1280, 720)), (26, 3600));
        assert_eq!(c.tokens((848, 480)), (26, 1590));
        assert_eq!(c.tokens((320, 256)), (26, 320));
        let weights = Arc::new(c.weights());
        let parameters: usize = weights.iter().map(|(_, w)| w.data.len()).sum();
        assert!((1_180_000_000..1_220_000_000).contains(&parameters), "{parameters}");
        let step = step_plan(&c, &weights, &no_state(), Precision::F16, (1280, 720)).expect("shapes agree");
        let bytes = step.plan.arena_bytes() + 2 * parameters;
        assert!(bytes < 40 << 30, "{bytes} bytes on the device");
    }
}
