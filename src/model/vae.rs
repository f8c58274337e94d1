//! The causal video autoencoder (GameGen-X, arXiv 2411.00769, section 3.1), 32 x 32 pixels to one latent.
//!
//! Large pictures have a scale of 2: patches at both ends are twice as long, everything between is the same network,
//! and a latent stands for 64 x 64 pixels. So a 1280x720 frame costs what one of 640x360 costs.
//!
//! Space is exchanged for channels with shortcuts (DC-AE, arXiv 2410.10733). differs: the temporal factor is 1, so that
//! a key acts on the very next frame; two temporal mixes of the decoder look one frame back instead.
//!
//! Z latent channels; h, w latent sides; P pixels or features of a level; C channels; s scale, 1 or 2.

use super::config::VaeConfig;
use super::net::{Fuse, Net};
use super::weights::{Expected, HostTensors, Kind};
use crate::compute::op::{Act, Copy, GroupMean, Norm, NormKind, Shuffle, Unshuffle};
use crate::compute::{ComputeError, DType, StateLayout, Storage, Tensor, View, WeightSet};

/// Folder of the weights, and the first part of their names on a device.
pub const COMPONENT: &str = "vae";
/// Name of the weight file without its ending.
pub const STEM: &str = "diffusion_pytorch_model";

/// Block at the decoder's end that only scale 2 has.
const LAST_BLOCK: &str = "decoder.block";

/// Stage before whose blocks the second temporal mix stands; the first one follows `conv_in`.
const SECOND_MIX: usize = 1;

/// The tensors of the component's file.
pub fn expected(c: &VaeConfig) -> Vec<Expected> {
    let z = c.latent_channels;
    let mut all = Vec::new();
    let (e, d) = (&c.encoder_channels, &c.decoder_channels);
    let (first, last) = (e[0], e[e.len() - 1]);
    for scale in scales(c) {
        conv3x3(&mut all, &at_scale("encoder.conv_in", scale), first, c.patch_channels(scale));
    }
    for (s, &width) in e.iter().enumerate() {
        let stage = format!("encoder.down.{s}");
        if s > 0 {
            pointwise(&mut all, &format!("{stage}.downsample.conv"), width, 4 * e[s - 1]);
        }
        blocks(&mut all, &stage, width, c.encoder_blocks[s]);
    }
    conv3x3(&mut all, "encoder.conv_out", 2 * z, last);
    conv3x3(&mut all, "decoder.conv_in", d[0], z);
    for (m, &width) in d.iter().enumerate().take(SECOND_MIX + 1) {
        let name = format!("decoder.temporal.{m}");
        all.push(Expected::new(format!("{name}.norm.weight"), &[width], Kind::Vector));
        all.push(Expected::new(format!("{name}.conv.weight"), &[width, 2 * width, 1, 1], Kind::TwoFrames));
        all.push(Expected::new(format!("{name}.conv.bias"), &[width], Kind::Vector));
    }
    for (s, &width) in d.iter().enumerate() {
        let stage = format!("decoder.up.{s}");
        if s > 0 {
            pointwise(&mut all, &format!("{stage}.upsample.conv"), 4 * width, d[s - 1]);
        }
        blocks(&mut all, &stage, width, c.decoder_blocks[s]);
    }
    let last = d[d.len() - 1];
    if c.two_fold_from.is_some() {
        residual(&mut all, &at_scale(LAST_BLOCK, 2), last);
    }
    for scale in scales(c) {
        all.push(Expected::new(at_scale("decoder.norm_out", scale) + ".weight", &[last], Kind::Vector));
        conv3x3(&mut all, &at_scale("decoder.conv_out", scale), c.patch_channels(scale), last);
    }
    all.push(Expected::new("latents_mean", &[z], Kind::Host));
    all.push(Expected::new("latents_std", &[z], Kind::Host));
    all
}

pub(super) fn conv3x3(all: &mut Vec<Expected>, name: &str, out: usize, inner: usize) {
    all.push(Expected::new(format!("{name}.weight"), &[out, inner, 3, 3], Kind::Conv3x3));
    all.push(Expected::new(format!("{name}.bias"), &[out], Kind::Vector));
}

pub(super) fn pointwise(all: &mut Vec<Expected>, name: &str, out: usize, inner: usize) {
    all.push(Expected::new(format!("{name}.weight"), &[out, inner, 1, 1], Kind::Pointwise));
    all.push(Expected::new(format!("{name}.bias"), &[out], Kind::Vector));
}

fn blocks(all: &mut Vec<Expected>, stage: &str, width: usize, count: usize) {
    for j in 0..count {
        residual(all, &format!("{stage}.block.{j}"), width);
    }
}

pub(super) fn residual(all: &mut Vec<Expected>, name: &str, width: usize) {
    all.push(Expected::new(format!("{name}.norm.weight"), &[width], Kind::Vector));
    conv3x3(all, &format!("{name}.conv1"), width, width);
    pointwise(all, &format!("{name}.conv2"), width, width);
}

/// Scales that the model has.
fn scales(c: &VaeConfig) -> impl Iterator<Item = usize> {
    1..=if c.two_fold_from.is_some() { 2 } else { 1 }
}

/// Name of a layer at a scale.
fn at_scale(name: &str, scale: usize) -> String {
    if scale == 1 { name.to_string() } else { format!("{name}_{scale}x") }
}

/// Adds the change between latents of mean 0 and deviation 1, on which the transformer works, and those of the
/// autoencoder, as diagonal 1x1 convolutions. It cannot be folded into `conv_in`, whose padding is of zeros.
///
/// Errors: a deviation that is not positive, as a message.
pub fn derive(c: &VaeConfig, host: &HostTensors, set: &mut WeightSet) -> Result<(), String> {
    let z = c.latent_channels;
    let (mean, std) = (&host["latents_mean"], &host["latents_std"]); // [Z]
    if let Some(i) = std.iter().position(|s| *s <= 0.0) {
        return Err(format!("has the value {} at {i}, needs values above 0", std[i]));
    }
    let diagonal = |value: &dyn Fn(usize) -> f32| -> Vec<f32> {
        (0..z * z).map(|i| if i / z == i % z { value(i / z) } else { 0.0 }).collect()
    };
    let mut add = |name: &str, scale: Vec<f32>, shift: Vec<f32>| {
        set.insert(format!("{COMPONENT}.{name}.weight"), &[z, z], Storage::Matrix, scale);
        set.insert(format!("{COMPONENT}.{name}.bias"), &[z], Storage::Vector, shift);
    };
    add("denormalize", diagonal(&|i| std[i]), mean.clone());
    add("normalize", diagonal(&|i| 1.0 / std[i]), mean.iter().zip(std).map(|(m, s)| -m / s).collect());
    Ok(())
}

/// Adds what the decoder keeps between frames: the normalised features of the frame before, at both temporal mixes.
pub fn add_state(c: &VaeConfig, (h, w): (usize, usize), dtype: DType, layout: &mut StateLayout) -> [usize; 2] {
    let d = &c.decoder_channels;
    let wide = h * w * 4usize.pow(SECOND_MIX as u32);
    [
        layout.add("vae.decoder.temporal.0", &[h * w, d[0]], dtype),
        layout.add("vae.decoder.temporal.1", &[wide, d[SECOND_MIX]], dtype),
    ]
}

/// Latent [h * w, Z] of mean 0 and deviation 1 of a frame of pixels in -1..1 [32sh * 32sw, 3]. `size` is (32sh, 32sw).
pub fn encode(
    net: &mut Net,
    c: &VaeConfig,
    pixels: View,
    size: (usize, usize),
    scale: usize,
) -> Result<View, ComputeError> {
    net.at(COMPONENT, |net| {
        let p = scale * c.patch_size;
        let x = unshuffle(net, pixels, size, p)?; // [8h * 8w, 48 s^2]
        let (mut height, mut width) = (size.0 / p, size.1 / p);
        let mut x = net.conv3x3(&at_scale("encoder.conv_in", scale), x, (height, width), Act::None)?; // [P, C0]
        net.probe("encoder.conv_in", x)?;
        for s in 0..c.encoder_channels.len() {
            let stage = format!("encoder.down.{s}");
            if s > 0 {
                x = net.at(&stage, |net| downsample(net, x, (height, width), c.encoder_channels[s]))?; // [P/4, C]
                (height, width) = (height / 2, width / 2);
            }
            for j in 0..c.encoder_blocks[s] {
                net.at(&format!("{stage}.block.{j}"), |net| block(net, c.norm_eps, x, (height, width)))?; // [P, C]
            }
            net.probe(&stage, x)?;
        }
        let moments = net.conv3x3("encoder.conv_out", x, (height, width), Act::None)?; // [h * w, 2Z]
        let mean = moments.columns(0, c.latent_channels); // [h * w, Z]
        net.probe("encoder.mean", mean)?;
        net.linear("normalize", mean, Fuse::default()) // [h * w, Z]
    })
}

pub(super) fn unshuffle(
    net: &mut Net,
    x: View,
    (height, width): (usize, usize),
    r: usize,
) -> Result<View, ComputeError> {
    let y = net.temp("unshuffle", x.rows / (r * r), x.cols * r * r);
    net.push("unshuffle", Unshuffle { x, height, width, r, y })?;
    Ok(y)
}

/// Space to channel by 2 and a 1x1 convolution; the mean of groups of channels is a shortcut where it divides.
pub(super) fn downsample(net: &mut Net, x: View, size: (usize, usize), c_out: usize) -> Result<View, ComputeError> {
    let x = unshuffle(net, x, size, 2)?; // [P/4, 4C]
    if !x.cols.is_multiple_of(c_out) {
        return net.linear("downsample.conv", x, Fuse::default()); // [P/4, Cout]
    }
    let y = net.temp("downsample.shortcut", x.rows, c_out); // [P/4, Cout]
    net.push("downsample.shortcut", GroupMean { x, y })?;
    net.linear("downsample.conv", x, Fuse::add_to(y, None)) // [P/4, Cout]
}

/// Residual block, in place: `x + conv2(silu(conv1(norm(x))))`, 3x3 then 1x1. `x` [P, C].
pub(super) fn block(net: &mut Net, eps: f32, x: View, size: (usize, usize)) -> Result<(), ComputeError> {
    let y = net.weighted_norm("norm", x, Act::None, eps)?; // [P, C]
    let y = net.conv3x3("conv1", y, size, Act::Silu)?; // [P, C]
    net.linear("conv2", y, Fuse::add_to(x, None))?; // [P, C]
    Ok(())
}

/// The features of a frame on their way through the decoder, or of one frame of each seat.
#[derive(Clone, Copy)]
pub struct Features {
    x: View,
    height: usize,
    width: usize,
}

/// The part of the decoder that looks back: from the latent [h * w, Z] (mean 0, deviation 1) to the second temporal
/// mix. `memory` is the state of [`add_state`]; `first`: nothing was decoded before this frame.
pub fn decode_memory(
    net: &mut Net,
    c: &VaeConfig,
    latent: View,
    (height, width): (usize, usize),
    memory: [usize; 2],
    first: bool,
) -> Result<Features, ComputeError> {
    net.at(COMPONENT, |net| {
        let x = net.linear("denormalize", latent, Fuse::default())?; // [h * w, Z]
        let x = net.conv3x3("decoder.conv_in", x, (height, width), Act::None)?; // [h * w, C0]
        net.probe("decoder.conv_in", x)?;
        let x = net.at("decoder.temporal.0", |net| mix(net, c, x, memory[0], first))?; // [h * w, C0]
        net.probe("decoder.temporal.0", x)?;
        let f = stage_blocks(net, c, Features { x, height, width }, 0)?; // [h * w, C0]
        let f = upsample(net, c, f, SECOND_MIX)?; // [4 * h * w, C1]
        let x = net.at("decoder.temporal.1", |net| mix(net, c, f.x, memory[1], first))?; // [4 * h * w, C1]
        net.probe("decoder.temporal.1", x)?;
        Ok(Features { x, ..f })
    })
}

/// The rest of the decoder, frame by frame: features of patches of 4s x 4s pixels [8h * 8w, 48 s^2].
pub fn decode_frame(net: &mut Net, c: &VaeConfig, features: Features, scale: usize) -> Result<Features, ComputeError> {
    net.at(COMPONENT, |net| {
        let mut f = stage_blocks(net, c, features, SECOND_MIX)?; // [P, C1]
        for s in SECOND_MIX + 1..c.decoder_channels.len() {
            f = upsample(net, c, f, s)?; // [4P, C]
            f = stage_blocks(net, c, f, s)?; // [P, C]
        }
        let size = (f.height, f.width);
        if scale > 1 {
            net.at(&at_scale(LAST_BLOCK, scale), |net| block(net, c.norm_eps, f.x, size))?; // [P, C3]
        }
        let x = net.weighted_norm(&at_scale("decoder.norm_out", scale), f.x, Act::Silu, c.norm_eps)?; // [P, C3]
        let x = net.conv3x3(&at_scale("decoder.conv_out", scale), x, size, Act::None)?; // [P, 48 s^2]
        net.probe("decoder.conv_out", x)?;
        Ok(Features { x, ..f })
    })
}

fn stage_blocks(net: &mut Net, c: &VaeConfig, f: Features, s: usize) -> Result<Features, ComputeError> {
    for j in 0..c.decoder_blocks[s] {
        net.at(&format!("decoder.up.{s}.block.{j}"), |net| block(net, c.norm_eps, f.x, (f.height, f.width)))?;
    }
    net.probe(&format!("decoder.up.{s}"), f.x)?;
    Ok(f)
}

/// A 1x1 convolution to 4 * Cout channels plus repeated channels as a shortcut, then channel to space by 2.
fn upsample(net: &mut Net, c: &VaeConfig, f: Features, s: usize) -> Result<Features, ComputeError> {
    let (height, width) = (f.height, f.width);
    let grow = |net: &mut Net| upsampled(net, f.x, (height, width), c.decoder_channels[s]);
    let x = net.at(&format!("decoder.up.{s}"), grow)?; // [4P, Cout]
    Ok(Features { x, height: 2 * height, width: 2 * width })
}

/// The layer `upsample` at this place in the tree, from features [P, C] to [4P, Cout].
pub(super) fn upsampled(
    net: &mut Net,
    shortcut: View,
    (height, width): (usize, usize),
    c_out: usize,
) -> Result<View, ComputeError> {
    let x = net.linear("upsample.conv", shortcut, Fuse::default())?; // [P, 4 * Cout]
    // Several pictures one below the other are one tall picture to the shuffle.
    let height = net.seats() * height;
    let y = net.temp("upsample", 4 * shortcut.rows, c_out); // [4P, Cout]
    net.push("upsample.shuffle", Shuffle { x, shortcut: Some(shortcut), height, width, r: 2, y })?;
    Ok(y)
}

/// Causal temporal mix: `x + conv(cat(y, before))` with `y = norm(x)` and `before` the `y` of the frame before, or `y`
/// itself if there was none. `x` [P, C].
///
/// The convolution is split into its two halves, so nothing is concatenated: the half of the frame before is taken
/// first, then the memory is overwritten by this frame's `y`, from which the other half reads. With several seats both
/// pass through temporaries.
fn mix(net: &mut Net, c: &VaeConfig, x: View, memory: usize, first: bool) -> Result<View, ComputeError> {
    let own = net.state(memory); // [P, C]
    let memory = net.gather("memory", own)?; // [seats * P, C]
    let kind = NormKind::Weight { weight: Some(net.weight("norm.weight")?), act: Act::None };
    let norm = Norm { x, kind, eps: c.norm_eps, y: memory };
    let bias = Some(net.weight("conv.bias")?);
    if first {
        net.push("norm", norm.clone())?;
    }
    let fuse = Fuse { res: Some(x), ..Fuse::default() };
    let y = net.matrix("conv.before", "conv.weight.before", bias, memory, fuse)?; // [P, C]
    if !first {
        net.push("norm", norm)?;
    }
    let y = net.matrix("conv.now", "conv.weight.now", None, memory, Fuse::add_to(y, None))?; // [P, C]
    if memory != own {
        net.push("memory", Copy { x: memory, y: own })?;
    }
    Ok(y)
}

impl Features {
    /// Records the way from features of patches, `r` pixels along a side, to a picture of `width` x `height` pixels in
    /// 4:2:0, one of each seat; returns their bytes.
    pub fn to_i420(self, net: &mut Net, r: usize, width: usize, height: usize) -> Result<Tensor, ComputeError> {
        let seats = net.seats();
        let y = net.builder().bytes("picture", seats * width * height * 3 / 2);
        let whole = net.view(y);
        let op = crate::compute::op::ToI420 {
            x: self.x,
            height: self.height,
            width: self.width,
            r,
            out_height: height,
            out_width: width,
            y,
            whole,
        };
        net.push("to_i420", op)?;
        net.builder().output(y);
        Ok(y)
    }
}
