//! What a session keeps on the device between ticks.
//!
//! N tokens of a frame, D `hidden_size`, Z latent channels, L text tokens, Li instruction tokens, S denoising steps, W
//! window.

use std::sync::Arc;

use super::config::{Config, VaeConfig};
use super::msdit::{MODULATIONS, Modulation};
use super::net::Net;
use super::vae;
use crate::compute::{ComputeError, Precision, StateLayout};

/// Size of a session's frames. Pixels are padded up to whole latents inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameSize {
    pub width: usize,
    pub height: usize,
}

impl FrameSize {
    /// Scale of the autoencoder for pictures of this size.
    pub fn scale(self, c: &VaeConfig) -> usize {
        c.scale(self.width, self.height)
    }

    /// Latent height and width.
    pub fn latent(self, c: &VaeConfig) -> (usize, usize) {
        let factor = c.spatial_factor * self.scale(c);
        (self.height.div_ceil(factor), self.width.div_ceil(factor))
    }

    /// Height and width in pixels of the whole latents.
    pub fn padded(self, c: &VaeConfig) -> (usize, usize) {
        let (factor, (h, w)) = (c.spatial_factor * self.scale(c), self.latent(c));
        (h * factor, w * factor)
    }
}

/// Where the tensors of a session's state are in its layout.
#[derive(Debug)]
pub struct SessionLayout {
    pub layout: Arc<StateLayout>,
    /// Position embedding [N, D].
    pub position: usize,
    /// Keys and values of the prompt [L, 2D], for every block that attends to it.
    pub text_keys: Vec<Option<usize>>,
    /// Keys and values of the instruction [Li, 2D], for every block that a fusion block follows.
    pub instruct_keys: Vec<Option<usize>>,
    /// Pooled prompt [1, D].
    pub text_pool: usize,
    /// Modulation of the steps of a tick: blocks [S * layers * 9, D], head [S, 2D].
    modulation: usize,
    head: usize,
    /// Keys and values of the window's frames [W, N, D], for every block.
    pub rings: Vec<(usize, usize)>,
    /// Latent of the frame before [N, Z]; zeros at the start.
    pub previous: usize,
    /// The decoder's memory of the frame before.
    pub decoder: [usize; 2],
}

impl SessionLayout {
    /// The layout of sessions of one size and number of steps.
    pub fn new(config: &Config, size: FrameSize, steps: usize, precision: Precision) -> SessionLayout {
        let c = &config.msdit;
        let (h, w) = size.latent(&config.vae);
        let (n, d, float) = (h * w, c.hidden_size, precision.dtype());
        let (long, short) = (config.text.max_length, config.text.instruction_length());
        let mut layout = StateLayout::default();
        let mut keys = |name: String, l: usize, there: bool| there.then(|| layout.add(name, &[l, 2 * d], float));
        let text_keys =
            (0..c.num_layers).map(|i| keys(format!("text_keys.{i}"), long, c.has_cross_attention(i))).collect();
        let instruct = &config.instruct;
        let instruct_keys =
            (0..c.num_layers).map(|i| keys(format!("instruct_keys.{i}"), short, instruct.applies(i))).collect();
        let mut ring = |name: String| layout.add(name, &[c.window, n, d], float);
        let rings = (0..c.num_layers).map(|i| (ring(format!("ring_k.{i}")), ring(format!("ring_v.{i}")))).collect();
        SessionLayout {
            text_keys,
            instruct_keys,
            rings,
            position: layout.add("position", &[n, d], float),
            text_pool: layout.add("text_pool", &[1, d], float),
            modulation: layout.add("modulation", &[steps * c.num_layers * MODULATIONS, d], float),
            head: layout.add("head_modulation", &[steps, 2 * d], float),
            previous: layout.add("previous", &[n, c.latent_channels], float),
            decoder: vae::add_state(&config.vae, (h, w), float, &mut layout),
            layout: Arc::new(layout),
        }
    }

    /// Where the modulation of a tick's steps is written.
    pub(super) fn modulation(&self, net: &mut Net) -> Modulation {
        Modulation { blocks: net.state(self.modulation), head: net.state(self.head), seats: 1 }
    }

    /// The modulation of a tick's steps, of all seats.
    pub(super) fn gather_modulation(&self, net: &mut Net) -> Result<Modulation, ComputeError> {
        let own = self.modulation(net);
        let (blocks, head) = (net.gather("modulation", own.blocks)?, net.gather("head_modulation", own.head)?);
        Ok(Modulation { blocks, head, seats: net.seats() })
    }
}
