//! The masked spatial-temporal diffusion transformer (GameGen-X, arXiv 2411.00769, section 3.2): one frame a pass.
//!
//! Spatial attention within the frame, causal temporal attention over a ring of frames, cross-attention to the text in
//! some blocks, a feed-forward; all but the cross-attention are modulated by adaLN (DiT, arXiv 2212.09748).
//! differs: for streaming, the noised frame before is an input beside the noisy one (diffusion forcing, arXiv
//! 2407.01392), and so is the step size, which makes few steps possible (shortcut models, arXiv 2410.12557).
//!
//! N tokens (latent places) of a frame; D `hidden_size`; H heads of hd; Z latent channels; Dt text channels; L text
//! tokens; E condition channels; W window; S passes whose modulation is computed together. With several seats (see
//! [`Net::for_seats`]) there are as many times N tokens and L text tokens.

use super::config::MsditConfig;
use super::instructnet::{Actions, VideoFeatures, fuse};
use super::net::{Fuse, Net};
use super::state::SessionLayout;
use super::weights::{Expected, Kind};
use crate::compute::op::{Act, Add, Map, NormKind, Rope};
use crate::compute::{ComputeError, Param, View};

/// Folder of the weights, and the first part of their names on a device.
pub const COMPONENT: &str = "transformer";
/// Name of the weight files without number and ending.
pub const STEM: &str = "diffusion_pytorch_model";

/// Shift, scale and gate of spatial attention, temporal attention and feed-forward.
pub const MODULATIONS: usize = 9;
/// Tokens of a 320x192 frame: the resolution's entry of the condition is 0 there.
const REFERENCE_TOKENS: f32 = 60.0;
/// Factor of the frequencies by which noise levels and step sizes are embedded: they run from 0.5 to 500.
const TIME_SCALE: f32 = 0.5;
const TIME_RANGE: f32 = 1000.0;

/// The tensors of the component's files.
pub fn expected(c: &MsditConfig) -> Vec<Expected> {
    let (d, z, dt) = (c.hidden_size, c.latent_channels, c.text_dim);
    let mut all = Vec::new();
    linear(&mut all, "proj_in", d, 2 * z, true);
    linear(&mut all, "pos_proj", d, c.position_channels(), false);
    linear(&mut all, "time_embed.linear_1", d, c.condition_channels(), true);
    linear(&mut all, "time_embed.linear_2", d, d, true);
    linear(&mut all, "text_pool", d, dt, true);
    linear(&mut all, "adaln", MODULATIONS * d, d, true);
    for i in 0..c.num_layers {
        let block = format!("transformer_blocks.{i}");
        all.push(Expected::new(format!("{block}.scale_shift_table"), &[MODULATIONS, d], Kind::Matrix));
        for name in ["spatial_attn", "temporal_attn"] {
            let name = format!("{block}.{name}");
            linear(&mut all, &format!("{name}.to_qkv"), 3 * d, d, false);
            linear(&mut all, &format!("{name}.to_out"), d, d, false);
            head_norms(&mut all, &name, c.head_dim);
        }
        if c.has_cross_attention(i) {
            cross_attention_tensors(&mut all, &format!("{block}.cross_attn"), d, dt, c.head_dim);
        }
        linear(&mut all, &format!("{block}.ff.linear_1"), c.mlp_ratio * d, d, true);
        linear(&mut all, &format!("{block}.ff.linear_2"), d, c.mlp_ratio * d, true);
    }
    linear(&mut all, "norm_out", 2 * d, d, true);
    linear(&mut all, "proj_out", z, d, true);
    all
}

pub(super) fn linear(all: &mut Vec<Expected>, name: &str, out: usize, inner: usize, bias: bool) {
    all.push(Expected::new(format!("{name}.weight"), &[out, inner], Kind::Matrix));
    if bias {
        all.push(Expected::new(format!("{name}.bias"), &[out], Kind::Vector));
    }
}

pub(super) fn cross_attention_tensors(all: &mut Vec<Expected>, name: &str, d: usize, dt: usize, head_dim: usize) {
    linear(all, &format!("{name}.to_q"), d, d, false);
    linear(all, &format!("{name}.to_kv"), 2 * d, dt, false);
    linear(all, &format!("{name}.to_out"), d, d, false);
    head_norms(all, name, head_dim);
}

fn head_norms(all: &mut Vec<Expected>, name: &str, head_dim: usize) {
    for part in ["norm_q", "norm_k"] {
        all.push(Expected::new(format!("{name}.{part}.weight"), &[head_dim], Kind::Vector));
    }
}

/// Where the tokens of an h x w latent are.
pub struct Geometry {
    /// Cosines and sines of the spatial rotary positions, each [N, hd].
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    /// Position features [N, 4 * position_frequencies].
    pub features: Vec<f32>,
}

/// Rotary tables and position features of an `h` x `w` latent, tokens in row order.
pub fn geometry(c: &MsditConfig, (h, w): (usize, usize)) -> Geometry {
    let mut g = Geometry { cos: Vec::new(), sin: Vec::new(), features: Vec::new() };
    let frequencies: Vec<f32> =
        (0..c.position_frequencies).map(|j| (j as f32 * 4.0 / c.position_frequencies as f32).exp2()).collect();
    for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
        let quarter = c.head_dim / 4;
        let mut angles = rope_angles(y as f32, quarter, c.rope_spatial_base);
        angles.extend(rope_angles(x as f32, quarter, c.rope_spatial_base));
        push_rope(&mut g.cos, &mut g.sin, &angles);
        let place = |i: usize, n: usize| (i as f32 + 0.5) / n as f32 * 2.0 - 1.0;
        for at in [place(y, h), place(x, w)] {
            g.features.extend(frequencies.iter().map(|f| (at * f).sin()));
            g.features.extend(frequencies.iter().map(|f| (at * f).cos()));
        }
    }
    g
}

/// Rotary tables of frame number `position`, each [1, hd].
pub fn temporal_rope(c: &MsditConfig, position: u64) -> (Vec<f32>, Vec<f32>) {
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    push_rope(&mut cos, &mut sin, &rope_angles(position as f32, c.head_dim / 2, c.rope_temporal_base));
    (cos, sin)
}

/// RoPE (arXiv 2104.09864): `count` angles of a position.
fn rope_angles(position: f32, count: usize, base: f32) -> Vec<f32> {
    (0..count).map(|j| position * (1.0 / base.powf(j as f32 / count as f32))).collect()
}

/// Appends a row of the rotate-half layout: both halves of a head turn by the same angles.
fn push_rope(cos: &mut Vec<f32>, sin: &mut Vec<f32>, angles: &[f32]) {
    for _ in 0..2 {
        cos.extend(angles.iter().map(|a| a.cos()));
        sin.extend(angles.iter().map(|a| a.sin()));
    }
}

/// What a pass is told about its input.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    /// Noise level of the frame: 0 is all noise, 1 is clean.
    pub level: f32,
    /// Length of the step that is to be taken; 0 for an ordinary Euler step.
    pub step: f32,
    /// Deviation of the noise on the frame before.
    pub context_noise: f32,
    /// Is there a frame before?
    pub has_previous: bool,
}

impl Condition {
    /// The vector [E] for a frame of `tokens` tokens.
    pub fn vector(&self, c: &MsditConfig, tokens: usize) -> Vec<f32> {
        let mut e = Vec::with_capacity(c.condition_channels());
        for value in [self.level, self.step, self.context_noise] {
            let angle = |j: usize| {
                let exponent = TIME_RANGE.ln() * j as f32 / (c.time_frequencies - 1) as f32;
                value * (exponent.exp() * TIME_SCALE)
            };
            e.extend((0..c.time_frequencies).map(|j| angle(j).cos()));
            e.extend((0..c.time_frequencies).map(|j| angle(j).sin()));
        }
        e.push(if self.has_previous { 1.0 } else { 0.0 });
        e.push((tokens as f32 / REFERENCE_TOKENS).log2() / 4.0);
        e
    }
}

/// Modulation of some passes: of each seat rows [S * layers * 9, D] for the blocks and [S, 2D] for the head.
#[derive(Clone, Copy)]
pub struct Modulation {
    pub blocks: View,
    pub head: View,
    pub seats: usize,
}

impl Modulation {
    /// Modulation of block `i` of `layers` in pass `s`.
    fn block(&self, s: usize, i: usize, layers: usize) -> BlockModulation {
        BlockModulation { all: *self, first: (s * layers + i) * MODULATIONS }
    }

    /// Shift and scale [seats, 2D] of the head in pass `s`.
    fn head(&self, s: usize) -> View {
        each_seat(&self.head, s, self.seats)
    }
}

/// Shift, scale and gate of the parts of one block.
#[derive(Clone, Copy)]
struct BlockModulation {
    all: Modulation,
    first: usize,
}

impl BlockModulation {
    /// Number `j` of the nine of every seat [seats, D].
    fn row(&self, j: usize) -> View {
        each_seat(&self.all.blocks, self.first + j, self.all.seats)
    }
}

/// Row `row` of every seat's rows.
fn each_seat(all: &View, row: usize, seats: usize) -> View {
    View { offset: all.offset + row * all.stride, rows: seats, stride: all.rows / seats * all.stride, ..*all }
}

/// Mean over the first `count` rows of `text` [L, Dt], projected: [1, D].
pub fn pool_text(net: &mut Net, heads: usize, text: View, count: Param, into: View) -> Result<View, ComputeError> {
    net.at(COMPONENT, |net| {
        // Attention with scores of zero weighs all keys alike: a mean over those that count.
        let mean = net.attention(text.rows(0, 1), (text, text), heads, 0.0, Some(count), None)?; // [1, Dt]
        net.linear("text_pool", mean, Fuse::into(into)) // [1, D]
    })
}

/// Modulation of S passes from their condition vectors [S, E] and the pooled text [1, D], written to `out`.
pub fn modulate(
    net: &mut Net,
    c: &MsditConfig,
    conditions: View,
    pooled: View,
    out: Modulation,
) -> Result<(), ComputeError> {
    net.at(COMPONENT, |net| {
        let e = net.linear("time_embed.linear_1", conditions, Fuse::act(Act::Silu))?; // [S, D]
        let e = net.linear("time_embed.linear_2", e, Fuse::default())?; // [S, D]
        net.push("condition", Add { a: e, b: pooled, y: e })?;
        net.push("condition.silu", Map { x: e, act: Act::Silu, y: e })?;
        net.probe("condition", e)?;
        let m = net.linear("adaln", e, Fuse::default())?; // [S, 9D]
        net.probe("modulation", m)?;
        let d = c.hidden_size;
        for i in 0..c.num_layers {
            let table = net.weight(&format!("transformer_blocks.{i}.scale_shift_table"))?;
            let b = net.view(table); // [9, D]
            for s in 0..conditions.rows {
                let row = m.rows(s, 1);
                let a = View { rows: MODULATIONS, cols: d, stride: d, ..row }; // [9, D]
                let y = out.blocks.rows((s * c.num_layers + i) * MODULATIONS, MODULATIONS); // [9, D]
                net.push(&format!("transformer_blocks.{i}.modulation"), Add { a, b, y })?;
            }
        }
        net.linear("norm_out", e, Fuse::into(out.head))?; // [S, 2D]
        Ok(())
    })
}

/// Position embedding [N, D] from position features [N, 4 * position_frequencies].
pub fn position(net: &mut Net, features: View, into: View) -> Result<View, ComputeError> {
    net.at(COMPONENT, |net| net.linear("pos_proj", features, Fuse::into(into)))
}

/// Writes keys (normalised) and values of a cross-attention to the text [L, Dt] into `keys` [L, 2D].
pub fn cross_keys(net: &mut Net, text: View, heads: usize, keys: View, eps: f32) -> Result<(), ComputeError> {
    net.linear("to_kv", text, Fuse::into(keys))?; // [L, 2D]
    net.head_norm("norm_k", keys.columns(0, keys.cols / 2), heads, None, eps)
}

/// The parts of a plan that all passes of a tick share.
pub struct Tick {
    /// Position embedding of the tokens [seats * N, D], with the video prompt in it if there is one.
    pub start: View,
    /// Spatial rotary tables [N, hd].
    pub rope_space: Rope,
    /// Keys and values of the prompt [seats * L, 2D], for every block that attends to it.
    pub text_keys: Vec<Option<View>>,
    /// Those of the instruction, for every block that a fusion block follows.
    pub instruct_keys: Vec<Option<View>>,
    /// Number of text tokens, number of instruction tokens.
    pub text_count: Param,
    pub instruct_count: Param,
    /// Slot of the ring for this frame, and how many slots hold frames with it.
    pub slot: Param,
    pub ring_count: Param,
    /// Rotary tables of this frame's position.
    pub rope_time: Rope,
    /// InstructNet's view of the keys.
    pub actions: Actions,
    /// Its view of the video prompt, if there is one.
    pub video: Option<VideoFeatures>,
}

/// Velocity [N, Z] of the tokens [N, 2Z] (noisy latent, then the frame before) under pass `s` of `modulation`.
/// Overwrites this frame's slot of every ring.
pub fn pass(
    net: &mut Net,
    (c, state): (&MsditConfig, &SessionLayout),
    tokens: View,
    (modulation, s): (Modulation, usize),
    tick: &Tick,
) -> Result<View, ComputeError> {
    let h = net.at(COMPONENT, |net| {
        let fuse = Fuse { res: Some(tick.start), ..Fuse::default() };
        net.linear("proj_in", tokens, fuse) // [N, D]
    })?;
    net.probe("tokens", h)?;
    for i in 0..c.num_layers {
        let m = modulation.block(s, i, c.num_layers);
        net.at(&format!("{COMPONENT}.transformer_blocks.{i}"), |net| block(net, (c, state), i, h, m, tick))?;
        net.probe(&format!("block.{i}"), h)?;
        if fuse(net, c, i, h, tick)? {
            net.probe(&format!("instruct.{i}"), h)?;
        }
    }
    let d = c.hidden_size;
    let head = modulation.head(s); // [seats, 2D]
    net.at(COMPONENT, |net| {
        let kind = NormKind::Modulate { shift: head.columns(0, d), scale: head.columns(d, d) };
        let x = net.norm("norm_out.norm", h, kind, c.norm_eps)?; // [N, D]
        net.linear("proj_out", x, Fuse::default()) // [N, Z]
    })
}

/// One block, in place on `h` [N, D]; `m` has shift, scale and gate of each part.
fn block(
    net: &mut Net,
    (c, state): (&MsditConfig, &SessionLayout),
    i: usize,
    h: View,
    m: BlockModulation,
    tick: &Tick,
) -> Result<(), ComputeError> {
    let part = |j: usize| NormKind::Modulate { shift: m.row(3 * j), scale: m.row(3 * j + 1) };
    let gate = |j: usize| Some(m.row(3 * j + 2)); // [seats, D]
    let (heads, scale) = (c.heads(), 1.0 / (c.head_dim as f32).sqrt());

    let x = net.norm("spatial_attn.norm", h, part(0), c.norm_eps)?; // [N, D]
    let (q, k, v) = net.at("spatial_attn", |net| queries_keys_values(net, c, x, tick.rope_space))?; // 3 x [N, D]
    let y = net.at("spatial_attn", |net| net.attention(q, (k, v), heads, scale, None, None))?; // [N, D]
    net.linear("spatial_attn.to_out", y, Fuse::add_to(h, gate(0)))?; // [N, D]

    let x = net.norm("temporal_attn.norm", h, part(1), c.norm_eps)?; // [N, D]
    let y = net.at("temporal_attn", |net| {
        let (q, k, v) = queries_keys_values(net, c, x, tick.rope_time)?; // 3 x [N, D]
        net.ring_attention(q, (k, v), state.rings[i], heads, (tick.slot, tick.ring_count)) // [N, D]
    })?;
    net.linear("temporal_attn.to_out", y, Fuse::add_to(h, gate(1)))?; // [N, D]

    if let Some(keys) = tick.text_keys[i] {
        net.at("cross_attn", |net| cross_attention(net, c, h, keys, tick.text_count))?;
    }

    let x = net.norm("ff.norm", h, part(2), c.norm_eps)?; // [N, D]
    let x = net.linear("ff.linear_1", x, Fuse::act(Act::Gelu))?; // [N, 4D]
    net.linear("ff.linear_2", x, Fuse::add_to(h, gate(2)))?; // [N, D]
    Ok(())
}

/// Queries and keys, normalised by head (QK-norm) and rotated, and values of `x` [N, D]: each [N, D].
fn queries_keys_values(
    net: &mut Net,
    c: &MsditConfig,
    x: View,
    rope: Rope,
) -> Result<(View, View, View), ComputeError> {
    let qkv = net.linear("to_qkv", x, Fuse::default())?; // [N, 3D]
    let d = c.hidden_size;
    let (q, k, v) = (qkv.columns(0, d), qkv.columns(d, d), qkv.columns(2 * d, d));
    net.head_norm("norm_q", q, c.heads(), Some(rope), c.norm_eps)?;
    net.head_norm("norm_k", k, c.heads(), Some(rope), c.norm_eps)?;
    Ok((q, k, v))
}

/// Attention of the normalised `h` [N, D] to the first `count` rows of `keys` [L, 2D], added to `h`.
pub(super) fn cross_attention(
    net: &mut Net,
    c: &MsditConfig,
    h: View,
    keys: View,
    count: Param,
) -> Result<(), ComputeError> {
    let d = c.hidden_size;
    let kind = NormKind::Weight { weight: None, act: Act::None };
    let x = net.norm("norm", h, kind, c.norm_eps)?; // [N, D]
    let q = net.linear("to_q", x, Fuse::default())?; // [N, D]
    net.head_norm("norm_q", q, c.heads(), None, c.norm_eps)?;
    let scale = 1.0 / (c.head_dim as f32).sqrt();
    let (k, v) = (keys.columns(0, d), keys.columns(d, d)); // 2 x [L, D]
    let y = net.attention(q, (k, v), c.heads(), scale, Some(count), None)?; // [N, D]
    net.linear("to_out", y, Fuse::add_to(h, None))?; // [N, D]
    Ok(())
}
