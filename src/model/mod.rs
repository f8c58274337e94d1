//! The model: a folder of weights and configuration, and what runs it.
//!
//! In the paper's order (GameGen-X, arXiv 2411.00769): [`config`], [`weights`] and [`tokenizer`] read a model folder;
//! [`t5`] encodes text, [`vae`] goes between pixels and latents, [`msdit`] denoises a latent frame under the control of
//! [`instructnet`]; [`plans`] puts them together, [`sampler`] streams frames, [`engine`] serves sessions.
//!
//! Everything is recorded into plans of [`crate::compute`]: nothing here names a device's interface, and nothing here
//! reads a model folder after [`Model::load`].

pub mod bench;
pub mod config;
pub mod engine;
mod environment;
mod error;
pub mod eval;
pub mod instructnet;
pub mod judges;
pub mod limits;
pub mod msdit;
pub mod net;
pub mod noise;
pub mod paper;
pub mod plans;
pub mod sampler;
pub mod state;
pub mod t5;
pub mod tokenizer;
pub mod vae;
pub mod video_prompt;
pub mod weights;

use std::path::Path;
use std::sync::Arc;

use crate::compute::WeightSet;
pub use crate::proto::keys::Keys;
use config::Config;
pub use engine::{Engine, Session, SessionSpec, Turn, VideoPrompt};
pub use environment::Environment;
pub use error::ModelError;
pub use sampler::{Flight, Picture};
use tokenizer::TextTokenizer;
use weights::Loader;

/// What a person can ask of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    pub name: String,
    /// SHA-256 over the weight files in order of their paths, in hexadecimal.
    pub hash: String,
    pub parameters: u64,
    /// Names of the keys.
    pub actions: Vec<String>,
    /// Numbers of denoising steps a frame.
    pub steps: Vec<u32>,
    pub default_steps: u32,
    /// Frames a second.
    pub frame_rate: u32,
    pub weather: Vec<String>,
    pub lighting: Vec<String>,
    pub effects: Vec<String>,
    pub perspectives: Vec<String>,
    /// Longest prompt in tokens, the end token included, with room for a perspective.
    pub prompt_tokens_max: usize,
    /// Sizes `[width, height]` that it was trained on.
    pub sizes: Vec<[u32; 2]>,
    /// Kinds of video prompts that a session may have.
    pub video_prompts: Vec<String>,
    /// True if the folder has the judge that finds a figure's joints, see [`judges`].
    pub pose_judge: bool,
}

/// A model folder, read and checked once; shared by engines.
pub struct Model {
    info: ModelInfo,
    config: Config,
    tokenizer: TextTokenizer,
    /// Table of words [vocabulary, Dt], which stays on the host.
    words: Vec<f32>,
    weights: Arc<WeightSet>,
}

impl Model {
    /// Reads a model folder. Errors: the file, field or tensor that is missing or wrong.
    pub fn load(dir: &Path) -> Result<Arc<Model>, ModelError> {
        let config = Config::load(dir)?;
        let tokenizer = TextTokenizer::load(dir, config.text.vocab_size)?;
        let mut loader = Loader::new();
        let expected = t5::expected(&config.text);
        let host = loader.component(dir, t5::COMPONENT, t5::STEM, &expected)?;
        let words = t5::derive(&config.text, host, loader.set());
        let host = loader.component(dir, vae::COMPONENT, vae::STEM, &vae::expected(&config.vae))?;
        vae::derive(&config.vae, &host, loader.set()).map_err(|what| {
            let path = dir.join(vae::COMPONENT);
            ModelError::Tensor { path, tensor: "latents_std".to_string(), what }
        })?;
        loader.component(dir, msdit::COMPONENT, msdit::STEM, &msdit::expected(&config.msdit))?;
        let expected = instructnet::expected(&config.instruct, config.msdit.head_dim);
        loader.component(dir, instructnet::COMPONENT, instructnet::STEM, &expected)?;
        let (weights, parameters, hash) = loader.finish();
        let mut info = info(&config, &tokenizer, hash, parameters);
        info.pose_judge = judges::Part::Pose.is_in(&dir.join(judges::FOLDER));
        Ok(Arc::new(Model { info, config, tokenizer, words, weights: Arc::new(weights) }))
    }

    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Tokens of a text without padding, the end token included.
    pub fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer.count(text)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    pub fn words(&self) -> &[f32] {
        &self.words
    }

    pub fn weights(&self) -> &Arc<WeightSet> {
        &self.weights
    }
}

fn info(config: &Config, tokenizer: &TextTokenizer, hash: String, parameters: u64) -> ModelInfo {
    let index = config.index.clone();
    // Without its end token; the prompt has one of its own.
    let perspective = tokenizer.count("third person view.") - 1;
    ModelInfo {
        name: index.name,
        hash,
        parameters,
        actions: index.actions,
        steps: index.steps,
        default_steps: index.default_steps,
        frame_rate: index.frame_rate,
        weather: index.vocabulary.weather,
        lighting: index.vocabulary.lighting,
        effects: index.vocabulary.effects,
        perspectives: index.vocabulary.perspective,
        prompt_tokens_max: config.text.max_length.saturating_sub(perspective),
        sizes: index.sizes,
        video_prompts: index.video_prompts,
        pose_judge: false,
    }
}
