//! Every limit that a client can run into, with its unit in the name and its reason beside it.

use std::ops::RangeInclusive;

/// A prompt longer than this is refused before it reaches the tokenizer (whose own limit is the model's).
pub const PROMPT_CHARS_MAX: usize = 2000;
/// An instruction is a sentence, not a story.
pub const INSTRUCTION_CHARS_MAX: usize = 500;
/// Width in pixels, even: chroma is stored at half resolution. The lower end is two latent columns.
pub const WIDTH_PX: RangeInclusive<u32> = 64..=1920;
/// Height in pixels, even.
pub const HEIGHT_PX: RangeInclusive<u32> = 64..=1088;
/// Frames of one stored generation: an hour and a bit at 24 frames/s would be 90 000; a generation is a clip.
pub const FRAMES: RangeInclusive<u32> = 1..=14_400;
/// Frames per second of a session. The model was trained at 24; other rates change how fast the world runs.
pub const FPS: RangeInclusive<u32> = 1..=60;
/// Sessions of one worker, queued and running.
pub const SESSIONS_MAX: usize = 128;
/// Request bodies: the largest legal one is a prompt with its JSON around it.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// One WebSocket message from a client.
pub const WS_MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// One message between roles.
pub const LINK_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Descriptors in one message between roles.
pub const LINK_FDS_MAX: usize = 5;
/// POST /api/v1/generate, requests a minute and client.
pub const GENERATE_PER_MINUTE: u32 = 10;
/// POST /api/v1/control, requests a minute and client.
pub const CONTROL_PER_MINUTE: u32 = 60;
/// GET /api/v1/status, requests a minute and client.
pub const STATUS_PER_MINUTE: u32 = 120;
/// Simultaneous HTTP connections.
pub const CONNECTIONS_MAX: usize = 512;
/// Viewers of one session: each costs a socket and a copy of what is encoded once.
pub const VIEWERS_MAX: usize = 64;
/// Frames and previews that are decoded for a client, requests a minute: each starts a process.
pub const DECODE_PER_MINUTE: u32 = 60;
/// Stored generations that are made at the same time; more only make each other late.
pub const GENERATIONS_RUNNING_MAX: usize = 2;
/// Stored generations that wait.
pub const QUEUE_MAX: usize = 64;
/// Items of one page of a list.
pub const PAGE_MAX: usize = 100;
/// Bytes of one upload, all its files together.
pub const UPLOAD_BYTES_MAX: usize = 32 << 20;
/// Files of one upload: one clip, or a sequence of pictures.
pub const UPLOAD_FILES_MAX: usize = 64;
/// Pictures that are read from one upload, ten seconds at 24 frames/s.
pub const PICTURES_MAX: u32 = 240;
/// Files of the network that finds joints, together in bytes.
pub const JUDGE_BYTES_MAX: usize = 64 << 20;
/// Uploads kept for one client; the oldest must be deleted before another one is taken.
pub const UPLOADS_MAX: usize = 16;
/// An idempotency key.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 128;
/// A request's id that a client chose.
pub const REQUEST_ID_CHARS_MAX: usize = 64;
/// An interactive session that nobody watches or controls for this long is closed.
pub const IDLE_SECONDS_MAX: u64 = 300;
/// Slots of a session's frame ring: enough that an encoder 100 ms behind still finds the frame.
pub const RING_SLOTS: u32 = 8;
/// Sides that a session may be brought to while the device has too much to do, in eighths of those that it asked for.
/// Below a quarter a world cannot be played any more.
pub const SIZE_EIGHTHS: [u32; 4] = [6, 4, 3, 2];
/// A smaller size counts only if its frames need no more than this share of the work of the next larger one's: every
/// change costs a few frames' time.
pub const SIZE_WORK_MAX: f64 = 0.75;
/// A smaller size has at least this share of the pixels of the smallest pictures that the model was trained on: below
/// that worlds come apart.
pub const SIZE_TRAINED_MIN: f64 = 0.75;
/// Latents kept in a snapshot: the window of the model's temporal attention.
pub const SNAPSHOT_FRAMES_MAX: usize = 16;
