//! Every limit of the model code. Model files come from outside, so each size is checked before it is believed.

/// Frame sides in pixels; both sides are even.
pub const WIDTH_MIN: u32 = 64;
pub const WIDTH_MAX: u32 = 1920;
pub const HEIGHT_MIN: u32 = 64;
pub const HEIGHT_MAX: u32 = 1088;

/// Largest configuration or tokenizer file in bytes.
pub const JSON_BYTES_MAX: u64 = 16 << 20;
/// Largest weight file in bytes.
pub const WEIGHTS_BYTES_MAX: u64 = 4 << 30;
/// Largest header of a weight file in bytes.
pub const HEADER_BYTES_MAX: u64 = 4 << 20;
/// Most shards that an index may name.
pub const SHARDS_MAX: usize = 64;

/// Widest hidden size, feed-forward width or channel count.
pub const CHANNELS_MAX: usize = 16384;
/// Most layers, blocks or stages of one module.
pub const LAYERS_MAX: usize = 128;
/// Most words of a vocabulary.
pub const VOCABULARY_MAX: usize = 1 << 18;
/// Longest text in tokens.
pub const TOKENS_MAX: usize = 512;
/// Longest instruction in tokens; they are encoded between two frames.
pub const INSTRUCTION_TOKENS_MAX: usize = 64;
/// Longest text in bytes that is given to the tokenizer.
pub const TEXT_BYTES_MAX: usize = 16 << 10;
/// Most kinds of video prompts of a model.
pub const VIDEO_PROMPTS_MAX: usize = 8;
/// Most frames that temporal attention sees.
pub const WINDOW_MAX: usize = 256;
/// Most denoising steps of one frame.
pub const STEPS_MAX: u32 = 64;
/// Most keys that a model knows; a set of keys is one byte.
pub const ACTIONS_MAX: usize = 8;
