//! InstructNet (GameGen-X, arXiv 2411.00769, section 3.3): keys and instructions change the features of the
//! transformer after some of its blocks.
//!
//! Operation fusion turns the keys into scale, shift and gate; instruction fusion attends to the text of the
//! environment; the features of a video prompt (edges, motion vectors, poses, encoded by the autoencoder) are added at
//! the embedding. differs: they also enter at every fusion block.
//!
//! N tokens, D `hidden_size`, A keys, Da `action_dim`, L text tokens, Dt text channels, Z latent channels, B fusion
//! blocks.

use super::config::{InstructConfig, MsditConfig};
use super::msdit::{Tick, cross_attention, cross_attention_tensors, linear};
use super::net::{Fuse, Net};
use super::weights::Expected;
use crate::compute::op::{Act, Add, NormKind};
use crate::compute::{ComputeError, View};

/// Folder of the weights, and the first part of their names on a device.
pub const COMPONENT: &str = "instructnet";
/// Name of the weight file without its ending.
pub const STEM: &str = "diffusion_pytorch_model";

/// The tensors of the component's file.
pub fn expected(c: &InstructConfig, head_dim: usize) -> Vec<Expected> {
    let (d, da) = (c.hidden_size, c.action_dim);
    let mut all = Vec::new();
    linear(&mut all, "action_embed.linear_1", da, 2 * c.action_count, true);
    linear(&mut all, "action_embed.linear_2", da, da, true);
    for i in (0..c.num_layers).filter(|&i| c.applies(i)) {
        let block = format!("blocks.{i}");
        linear(&mut all, &format!("{block}.operation.linear_1"), da, da, true);
        linear(&mut all, &format!("{block}.operation.linear_2"), 3 * d, da, true);
        linear(&mut all, &format!("{block}.operation.proj"), d, d, false);
        cross_attention_tensors(&mut all, &format!("{block}.instruction"), d, c.text_dim, head_dim);
        if c.latent_channels.is_some() {
            linear(&mut all, &format!("{block}.video_prompt"), d, d, false);
        }
    }
    for kind in &c.video_prompts {
        let embed = format!("video_prompt_embed.{kind}");
        linear(&mut all, &format!("{embed}.linear_1"), d, c.latent_channels.unwrap_or_default(), true);
        linear(&mut all, &format!("{embed}.linear_2"), d, d, true);
    }
    all
}

/// Scale, shift and gate of the fusion blocks in order, for each [seats, 3D]: the same for all passes of a tick.
#[derive(Clone, Copy)]
pub struct Actions {
    all: View,
    every: usize,
    seats: usize,
}

/// The keys of this frame and of the one before [seats, 2A], as every fusion block wants them.
pub fn actions(net: &mut Net, c: &InstructConfig, keys: View) -> Result<Actions, ComputeError> {
    let d = c.hidden_size;
    let blocks: Vec<usize> = (0..c.num_layers).filter(|&i| c.applies(i)).collect();
    net.at(COMPONENT, |net| {
        let seats = net.seats();
        let all = net.temp("operation", blocks.len() * seats, 3 * d); // [blocks * seats, 3D]
        let a = net.linear("action_embed.linear_1", keys, Fuse::act(Act::Silu))?; // [seats, Da]
        let a = net.linear("action_embed.linear_2", a, Fuse::default())?; // [seats, Da]
        net.probe("action_embed", a)?;
        // Layer by layer, so that those of all blocks run side by side.
        let mut inner = Vec::with_capacity(blocks.len());
        for i in &blocks {
            let operation = format!("blocks.{i}.operation");
            inner.push(net.at(&operation, |net| net.linear("linear_1", a, Fuse::act(Act::Silu)))?); // [seats, Da]
        }
        for (n, (i, x)) in blocks.iter().zip(inner).enumerate() {
            let into = Fuse::into(all.rows(n * seats, seats));
            net.at(&format!("blocks.{i}.operation"), |net| net.linear("linear_2", x, into))?; // [seats, 3D]
        }
        Ok(Actions { all, every: c.every, seats })
    })
}

/// The features of a video prompt where they enter: the same for all passes of a tick.
#[derive(Clone, Copy)]
pub struct VideoFeatures {
    /// Added to the embedded tokens, with the position embedding in it [N, D].
    pub embedded: View,
    /// Added at the fusion blocks in order [B * N, D].
    blocks: View,
}

/// Features of a video prompt of a kind from the latent [N, Z] of its picture. `position` [N, D] is the embedding of
/// the tokens' places.
pub fn video_features(
    net: &mut Net,
    c: &InstructConfig,
    kind: &str,
    latent: View,
    position: View,
) -> Result<VideoFeatures, ComputeError> {
    let (n, d) = (position.rows, position.cols);
    let blocks: Vec<usize> = (0..c.num_layers).filter(|&i| c.applies(i)).collect();
    net.at(COMPONENT, |net| {
        let embed = format!("video_prompt_embed.{kind}");
        let x = net.linear(&format!("{embed}.linear_1"), latent, Fuse::act(Act::Silu))?; // [N, D]
        let x = net.linear(&format!("{embed}.linear_2"), x, Fuse::default())?; // [N, D]
        net.probe("video_features", x)?;
        let embedded = net.temp("video_embedded", n, d); // [N, D]
        net.push("video_embedded", Add { a: x, b: position, y: embedded })?;
        let all = net.temp("video_blocks", blocks.len() * n, d); // [B * N, D]
        for (b, i) in blocks.into_iter().enumerate() {
            net.linear(&format!("blocks.{i}.video_prompt"), x, Fuse::into(all.rows(b * n, n)))?; // [N, D]
        }
        Ok(VideoFeatures { embedded, blocks: all })
    })
}

/// Fusion after transformer block `i`, in place on `h` [N, D]. Returns whether there is one.
pub fn fuse(net: &mut Net, c: &MsditConfig, i: usize, h: View, tick: &Tick) -> Result<bool, ComputeError> {
    let Some(keys) = tick.instruct_keys[i] else {
        return Ok(false);
    };
    let (d, seats) = (c.hidden_size, tick.actions.seats);
    let film = tick.actions.all.rows(i / tick.actions.every * seats, seats); // [seats, 3D]
    net.at(&format!("{COMPONENT}.blocks.{i}"), |net| {
        let (scale, shift, gate) = (film.columns(0, d), film.columns(d, d), film.columns(2 * d, d));
        let x = net.norm("operation.norm", h, NormKind::Film { scale, shift, gate }, c.norm_eps)?; // [N, D]
        net.linear("operation.proj", x, Fuse::add_to(h, None))?; // [N, D]
        if let Some(video) = &tick.video {
            let b = video.blocks.rows(i / tick.actions.every * h.rows, h.rows); // [N, D]
            net.push("video_prompt.add", Add { a: h, b, y: h })?;
        }
        net.at("instruction", |net| cross_attention(net, c, h, keys, tick.instruct_count))?; // [N, D]
        Ok(true)
    })
}
