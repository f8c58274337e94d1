//! The configuration files of a model folder, field for field, and what their numbers must satisfy.
//!
//! Every number of a model comes from these files; a field that is unknown, missing or outside of what the modules can
//! run is an error that names it.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ModelError;
use super::limits::{
    ACTIONS_MAX, CHANNELS_MAX, HEIGHT_MAX, INSTRUCTION_TOKENS_MAX, LAYERS_MAX, STEPS_MAX, TOKENS_MAX,
    VIDEO_PROMPTS_MAX, VOCABULARY_MAX, WIDTH_MAX, WINDOW_MAX,
};
use super::weights::read_limited;
use crate::proto::keys::KEY_NAMES;

/// `model_index.json`: what a person can ask of the model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub name: String,
    /// Frames a second of the footage it was trained on.
    pub frame_rate: u32,
    /// Names of the keys, in the order of the action vector.
    pub actions: Vec<String>,
    /// Numbers of denoising steps that the model was trained for.
    pub steps: Vec<u32>,
    pub default_steps: u32,
    /// Sizes `[width, height]` that the model was trained on; others work less well.
    pub sizes: Vec<[u32; 2]>,
    pub vocabulary: VocabularyConfig,
    /// How the known parts of the environment are said to InstructNet.
    #[serde(default)]
    pub instruction_parts: InstructionParts,
    /// Kinds of video prompts that sessions may have; some of those that InstructNet knows.
    #[serde(default)]
    pub video_prompts: Vec<String>,
    /// The three parts in one text, in folders from before the parts were told one by one. Not used.
    #[serde(default)]
    pub instruction_template: Option<String>,
}

/// Texts of the parts of the environment, each with the place of its word, such as `{weather}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstructionParts {
    pub lighting: String,
    pub weather: String,
    pub effects: String,
}

impl Default for InstructionParts {
    fn default() -> InstructionParts {
        InstructionParts {
            lighting: "environment light: {lighting}.".to_string(),
            weather: "weather: {weather}.".to_string(),
            effects: "effect: {effects}.".to_string(),
        }
    }
}

/// The words for each part of the environment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VocabularyConfig {
    pub weather: Vec<String>,
    pub lighting: Vec<String>,
    pub effects: Vec<String>,
    pub perspective: Vec<String>,
}

/// `text_encoder/config.json`, with the names of Hugging Face's T5.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    pub model_type: String,
    pub vocab_size: usize,
    pub d_model: usize,
    pub d_kv: usize,
    pub d_ff: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub relative_attention_num_buckets: usize,
    pub relative_attention_max_distance: usize,
    pub feed_forward_proj: String,
    pub layer_norm_epsilon: f32,
    /// Longest text in tokens, the end token included.
    pub max_length: usize,
    /// Scores are divided by `sqrt(d_kv)`; T5's own checkpoints have it folded into their weights instead.
    pub scale_attention: bool,
}

/// `vae/config.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub latent_channels: usize,
    /// Frames that one latent frame stands for.
    pub temporal_factor: usize,
    /// Side of the square of pixels that becomes one feature at the finest level.
    pub patch_size: usize,
    /// Pixels along a side that one latent stands for.
    pub spatial_factor: usize,
    pub encoder_channels: Vec<usize>,
    pub encoder_blocks: Vec<usize>,
    pub decoder_channels: Vec<usize>,
    pub decoder_blocks: Vec<usize>,
    pub norm_eps: f32,
    /// Pixels of a picture from which on patches are twice as long and a latent stands for twice as many pixels along a
    /// side. Absent: no such layers.
    #[serde(default)]
    pub two_fold_from: Option<usize>,
}

/// `transformer/config.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsditConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub latent_channels: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub head_dim: usize,
    pub mlp_ratio: usize,
    /// Every how many blocks there is a cross-attention to the text, from block 0 on.
    pub cross_attention_every: usize,
    pub text_dim: usize,
    pub time_frequencies: usize,
    pub position_frequencies: usize,
    pub rope_spatial_base: f32,
    pub rope_temporal_base: f32,
    /// Frames that temporal attention sees, the newest included.
    pub window: usize,
    pub norm_eps: f32,
}

/// `instructnet/config.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstructConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub action_count: usize,
    pub action_dim: usize,
    /// Every how many transformer blocks a fusion block follows, from block 0 on.
    pub every: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub text_dim: usize,
    /// Channels of a latent, where there are video prompts.
    #[serde(default)]
    pub latent_channels: Option<usize>,
    /// Kinds of video prompts.
    #[serde(default)]
    pub video_prompts: Vec<String>,
}

/// `scheduler/scheduler_config.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Deviation of the noise that is mixed into the frame before the one that is generated.
    pub context_noise: f32,
    /// Strength of classifier-free guidance; 1 is none.
    pub guidance: f32,
    /// Steps of the first frame of a world that begins from text alone: few-step sampling needs a frame before.
    #[serde(default = "usual_first_frame_steps")]
    pub first_frame_steps: u32,
    /// The first frame's steps are told their length, as all others are, instead of 0.
    #[serde(default)]
    pub first_frame_shortcut: bool,
}

fn usual_first_frame_steps() -> u32 {
    16
}

impl TextConfig {
    /// Longest instruction in tokens, the end token included.
    pub fn instruction_length(&self) -> usize {
        self.max_length.min(INSTRUCTION_TOKENS_MAX)
    }

    /// Lengths to which texts are padded, shorter first: most prompts are as short as instructions.
    pub fn lengths(&self) -> Vec<usize> {
        let mut all = vec![self.instruction_length(), self.max_length];
        all.dedup();
        all
    }
}

impl VaeConfig {
    /// 2 for pictures that are large enough for the two-fold layers, else 1.
    pub fn scale(&self, width: usize, height: usize) -> usize {
        if self.two_fold_from.is_some_and(|from| width * height >= from) { 2 } else { 1 }
    }

    /// Features of one patch at a scale: its pixels times three colours.
    pub fn patch_channels(&self, scale: usize) -> usize {
        3 * (scale * self.patch_size).pow(2)
    }
}

impl MsditConfig {
    pub fn heads(&self) -> usize {
        self.hidden_size / self.head_dim
    }

    /// Length of the vector of noise level, step size, context noise, presence of a frame before, and resolution.
    pub fn condition_channels(&self) -> usize {
        6 * self.time_frequencies + 2
    }

    /// Length of the position features of one token.
    pub fn position_channels(&self) -> usize {
        4 * self.position_frequencies
    }

    /// Does block `i` attend to the text?
    pub fn has_cross_attention(&self, i: usize) -> bool {
        i.is_multiple_of(self.cross_attention_every)
    }
}

impl InstructConfig {
    /// Does a fusion block follow transformer block `i`?
    pub fn applies(&self, i: usize) -> bool {
        i.is_multiple_of(self.every)
    }
}

/// All configuration files of a folder, checked one by one and against each other.
#[derive(Clone, Debug)]
pub struct Config {
    pub index: IndexConfig,
    pub text: TextConfig,
    pub vae: VaeConfig,
    pub msdit: MsditConfig,
    pub instruct: InstructConfig,
    pub scheduler: SchedulerConfig,
}

impl Config {
    /// Reads and checks the files of a model folder. Errors: the first file or field that is wrong.
    pub fn load(dir: &Path) -> Result<Config, ModelError> {
        let config = Config {
            index: read(dir, "model_index.json")?,
            text: read(dir, "text_encoder/config.json")?,
            vae: read(dir, "vae/config.json")?,
            msdit: read(dir, "transformer/config.json")?,
            instruct: read(dir, "instructnet/config.json")?,
            scheduler: read(dir, "scheduler/scheduler_config.json")?,
        };
        config.check(dir)?;
        Ok(config)
    }

    /// Checks every file. Errors: [`ModelError::Config`] with the field, its value and what is allowed.
    pub fn check(&self, dir: &Path) -> Result<(), ModelError> {
        self.index.check(&Checker::new(dir, "model_index.json"))?;
        self.text.check(&Checker::new(dir, "text_encoder/config.json"))?;
        self.vae.check(&Checker::new(dir, "vae/config.json"))?;
        self.msdit.check(&Checker::new(dir, "transformer/config.json"), &self.vae, &self.text)?;
        self.instruct.check(&Checker::new(dir, "instructnet/config.json"), &self.msdit, &self.index)?;
        self.index.check_video_prompts(&Checker::new(dir, "model_index.json"), &self.instruct)?;
        self.scheduler.check(&Checker::new(dir, "scheduler/scheduler_config.json"))
    }
}

/// Reads and parses one file.
pub(super) fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<T, ModelError> {
    let path = dir.join(name);
    parse(&path, &read_limited(&path, super::limits::JSON_BYTES_MAX)?)
}

/// Parses the bytes of the file at `path`.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, ModelError> {
    serde_json::from_slice(bytes).map_err(|source| ModelError::Json { path: path.to_path_buf(), source })
}

/// Builds the errors of one file.
pub(super) struct Checker {
    path: PathBuf,
}

impl Checker {
    pub fn new(dir: &Path, name: &str) -> Checker {
        Checker { path: dir.join(name) }
    }

    pub fn that(&self, ok: bool, field: &str, found: impl Debug, needs: impl Into<String>) -> Result<(), ModelError> {
        if ok {
            return Ok(());
        }
        let (path, field) = (self.path.clone(), field.to_string());
        Err(ModelError::Config { path, field, found: format!("{found:?}"), needs: needs.into() })
    }

    pub fn same<T: PartialEq + Debug>(&self, field: &str, found: T, needs: T) -> Result<(), ModelError> {
        let ok = found == needs;
        self.that(ok, field, found, format!("{needs:?}"))
    }

    pub fn within(&self, field: &str, found: usize, min: usize, max: usize) -> Result<(), ModelError> {
        self.that((min..=max).contains(&found), field, found, format!("{min}..={max}"))
    }

    pub fn positive(&self, field: &str, found: f32, max: f32) -> Result<(), ModelError> {
        self.that(found > 0.0 && found <= max, field, found, format!("above 0, at most {max}"))
    }
}

impl IndexConfig {
    fn check(&self, c: &Checker) -> Result<(), ModelError> {
        c.same("_class_name", self.class_name.as_str(), "GameGenX")?;
        c.that(!self.name.is_empty() && self.name.len() <= 64, "name", &self.name, "1 to 64 bytes")?;
        c.within("frame_rate", self.frame_rate as usize, 1, 240)?;
        c.within("number of actions", self.actions.len(), 1, ACTIONS_MAX)?;
        let known = |name: &String| KEY_NAMES.contains(&name.as_str());
        let order = self.actions.iter().zip(KEY_NAMES).all(|(a, b)| a == b);
        c.that(order && self.actions.iter().all(known), "actions", &self.actions, format!("{:?}", KEY_NAMES))?;
        c.within("number of steps", self.steps.len(), 1, 16)?;
        let steps = self.steps.iter().all(|s| (1..=STEPS_MAX).contains(s));
        c.that(steps, "steps", &self.steps, format!("each 1..={STEPS_MAX}"))?;
        c.that(
            self.steps.contains(&self.default_steps),
            "default_steps",
            self.default_steps,
            format!("one of {:?}", self.steps),
        )?;
        let sizes = self.sizes.iter().all(|s| s[0] > 0 && s[0] <= WIDTH_MAX && s[1] > 0 && s[1] <= HEIGHT_MAX);
        c.that(sizes, "sizes", &self.sizes, format!("at most {WIDTH_MAX}x{HEIGHT_MAX}"))?;
        let v = &self.vocabulary;
        for (field, words) in [("weather", &v.weather), ("lighting", &v.lighting), ("effects", &v.effects)] {
            c.that(!words.is_empty() && words.len() <= 64, &format!("vocabulary.{field}"), words, "1 to 64 words")?;
        }
        c.that(v.perspective.len() <= 2, "vocabulary.perspective", &v.perspective, "at most third and first")?;
        let p = &self.instruction_parts;
        for (name, text) in [("lighting", &p.lighting), ("weather", &p.weather), ("effects", &p.effects)] {
            let (field, place) = (format!("instruction_parts.{name}"), format!("{{{name}}}"));
            c.that(text.contains(&place), &field, text, format!("a text with the place {place}"))?;
        }
        Ok(())
    }

    fn check_video_prompts(&self, c: &Checker, instruct: &InstructConfig) -> Result<(), ModelError> {
        let known = &instruct.video_prompts;
        let all = self.video_prompts.iter().all(|kind| known.contains(kind));
        c.that(all, "video_prompts", &self.video_prompts, format!("some of {known:?}"))
    }
}

impl TextConfig {
    fn check(&self, c: &Checker) -> Result<(), ModelError> {
        c.same("model_type", self.model_type.as_str(), "t5")?;
        c.same("feed_forward_proj", self.feed_forward_proj.as_str(), "gated-gelu")?;
        c.within("vocab_size", self.vocab_size, 3, VOCABULARY_MAX)?;
        c.within("d_model", self.d_model, 1, CHANNELS_MAX)?;
        c.within("d_kv", self.d_kv, 1, CHANNELS_MAX)?;
        c.within("d_ff", self.d_ff, 1, CHANNELS_MAX)?;
        c.within("num_layers", self.num_layers, 1, LAYERS_MAX)?;
        c.within("num_heads", self.num_heads, 1, CHANNELS_MAX / self.d_kv.max(1))?;
        c.that(
            self.d_model.is_multiple_of(self.num_heads),
            "d_model",
            self.d_model,
            format!("a multiple of the {} heads", self.num_heads),
        )?;
        let buckets = self.relative_attention_num_buckets;
        c.that(
            buckets.is_multiple_of(4) && (4..=1024).contains(&buckets),
            "relative_attention_num_buckets",
            buckets,
            "a multiple of 4, 4..=1024",
        )?;
        c.within("relative_attention_max_distance", self.relative_attention_max_distance, buckets / 4 + 1, 1 << 20)?;
        c.within("max_length", self.max_length, 8, TOKENS_MAX)?;
        c.positive("layer_norm_epsilon", self.layer_norm_epsilon, 1e-2)
    }
}

impl VaeConfig {
    fn check(&self, c: &Checker) -> Result<(), ModelError> {
        c.same("_class_name", self.class_name.as_str(), "AutoencoderKLCausal3D")?;
        c.within("latent_channels", self.latent_channels, 1, CHANNELS_MAX)?;
        c.same("temporal_factor", self.temporal_factor, 1)?;
        c.same("patch_size", self.patch_size, 4)?;
        let stages = self.encoder_channels.len();
        c.within("number of encoder_channels", stages, 2, 6)?;
        for (field, list) in [
            ("encoder_blocks", &self.encoder_blocks),
            ("decoder_channels", &self.decoder_channels),
            ("decoder_blocks", &self.decoder_blocks),
        ] {
            c.that(list.len() == stages, field, list, format!("{stages} entries, as encoder_channels"))?;
        }
        c.same("spatial_factor", self.spatial_factor, self.patch_size << (stages - 1))?;
        for (field, list) in
            [("encoder_channels", &self.encoder_channels), ("decoder_channels", &self.decoder_channels)]
        {
            c.that(
                list.iter().all(|n| (1..=CHANNELS_MAX).contains(n)),
                field,
                list,
                format!("each 1..={CHANNELS_MAX}"),
            )?;
        }
        for (field, list) in [("encoder_blocks", &self.encoder_blocks), ("decoder_blocks", &self.decoder_blocks)] {
            c.that(list.iter().all(|n| *n <= LAYERS_MAX), field, list, format!("each 0..={LAYERS_MAX}"))?;
        }
        let from = self.two_fold_from;
        c.that(from != Some(0), "two_fold_from", from, "1 or more pixels, or no such field")?;
        c.positive("norm_eps", self.norm_eps, 1e-2)
    }
}

impl MsditConfig {
    fn check(&self, c: &Checker, vae: &VaeConfig, text: &TextConfig) -> Result<(), ModelError> {
        c.same("_class_name", self.class_name.as_str(), "MSDiT")?;
        c.same("latent_channels", self.latent_channels, vae.latent_channels)?;
        c.same("text_dim", self.text_dim, text.d_model)?;
        c.within("hidden_size", self.hidden_size, 1, CHANNELS_MAX)?;
        c.within("num_layers", self.num_layers, 1, LAYERS_MAX)?;
        c.that(
            (4..=256).contains(&self.head_dim) && self.head_dim.is_multiple_of(4),
            "head_dim",
            self.head_dim,
            "a multiple of 4, 4..=256",
        )?;
        c.that(
            self.hidden_size.is_multiple_of(self.head_dim),
            "hidden_size",
            self.hidden_size,
            format!("a multiple of head_dim {}", self.head_dim),
        )?;
        c.within("mlp_ratio", self.mlp_ratio, 1, 16)?;
        c.within("cross_attention_every", self.cross_attention_every, 1, LAYERS_MAX)?;
        c.within("time_frequencies", self.time_frequencies, 2, 1024)?;
        c.within("position_frequencies", self.position_frequencies, 1, 1024)?;
        c.within("window", self.window, 1, WINDOW_MAX)?;
        c.positive("rope_spatial_base", self.rope_spatial_base, 1e6)?;
        c.positive("rope_temporal_base", self.rope_temporal_base, 1e6)?;
        c.positive("norm_eps", self.norm_eps, 1e-2)
    }
}

impl InstructConfig {
    fn check(&self, c: &Checker, msdit: &MsditConfig, index: &IndexConfig) -> Result<(), ModelError> {
        c.same("_class_name", self.class_name.as_str(), "InstructNet")?;
        c.same("action_count", self.action_count, index.actions.len())?;
        c.within("action_dim", self.action_dim, 1, CHANNELS_MAX)?;
        c.within("every", self.every, 1, LAYERS_MAX)?;
        c.same("hidden_size", self.hidden_size, msdit.hidden_size)?;
        c.same("num_layers", self.num_layers, msdit.num_layers)?;
        c.same("text_dim", self.text_dim, msdit.text_dim)?;
        let kinds = &self.video_prompts;
        let named = kinds.iter().all(|k| !k.is_empty() && k.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        let apart = kinds.iter().enumerate().all(|(i, k)| !kinds[..i].contains(k));
        c.that(
            kinds.len() <= VIDEO_PROMPTS_MAX && named && apart,
            "video_prompts",
            kinds,
            format!("at most {VIDEO_PROMPTS_MAX} different names of a-z and _"),
        )?;
        match (kinds.is_empty(), self.latent_channels) {
            (true, None) => Ok(()),
            (_, channels) => c.same("latent_channels", channels, Some(msdit.latent_channels)),
        }
    }
}

impl SchedulerConfig {
    fn check(&self, c: &Checker) -> Result<(), ModelError> {
        c.same("_class_name", self.class_name.as_str(), "FlowMatchEulerShortcut")?;
        let noise = self.context_noise;
        c.that((0.0..=1.0).contains(&noise), "context_noise", noise, "0..=1")?;
        c.same("guidance", self.guidance, 1.0)?;
        c.within("first_frame_steps", self.first_frame_steps as usize, 1, STEPS_MAX as usize)
    }
}
