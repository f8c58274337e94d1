//! Limits of the api role that no client needs to know by number; the others are in [`crate::proto::limits`].

use std::time::Duration;

/// A request's head must be complete after this: a client that sends a byte a minute must not hold a connection.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// A request's body likewise.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(10);
/// One message to a viewer must be written after this, or the viewer is gone.
pub const VIEWER_SEND_TIME_MAX: Duration = Duration::from_secs(15);
/// Recordings that run when the daemon is asked to stop have this long to finish.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(20);
/// How often idle sessions are looked for.
pub const IDLE_CHECK_PERIOD: Duration = Duration::from_secs(5);
/// At most one `progress` message in this time and session.
pub const PROGRESS_PERIOD: Duration = Duration::from_millis(100);
/// Ended sessions whose status is still told.
pub const ENDED_KEPT_MAX: usize = 64;
/// Clients whose request rates are remembered; beyond it those that are not limited now are forgotten.
pub const RATE_CLIENTS_MAX: usize = 4096;
/// Controls on one WebSocket in a second: twice what a player with two thumbs at 60 frames/s can send.
pub const WS_CONTROLS_PER_SECOND: u32 = 240;
/// Messages to a viewer that wait beside the newest frame; a viewer that is further behind is told its state anew.
pub const VIEWER_EVENTS_MAX: usize = 64;
/// Controls of one session whose frame is awaited, to tell which were superseded.
pub const CONTROLS_AWAITED_MAX: usize = 256;
/// Bytes of a stored object that are read and sent at once.
pub const FILE_PIECE_BYTES: usize = 64 * 1024;
/// Tokens in a token file.
pub const TOKENS_MAX: usize = 1024;
/// Units of an H.264 stream that wait for a viewer; one that is further behind goes on at the next key frame.
pub const VIDEO_UNITS_MAX: usize = 16;
/// A key frame because a viewer wants one comes at most this often: it costs every viewer a large frame.
pub const KEY_FRAME_PAUSE: Duration = Duration::from_millis(300);
/// A stream that was lost can be resumed for so long.
pub const RESUME_TIME_MAX: Duration = Duration::from_secs(60);
/// Streams that can be resumed.
pub const RESUME_MAX: usize = 4096;
/// Keys that a lost stream held are released after this, unless it was resumed.
pub const KEYS_HELD_AFTER_LOSS: Duration = Duration::from_secs(2);
/// Idempotency keys that are remembered, and for how long.
pub const IDEMPOTENCY_KEPT_MAX: usize = 2048;
pub const IDEMPOTENCY_TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// An upload must have arrived after this: 32 MiB in it are 0.5 MiB/s.
pub const UPLOAD_TIME_MAX: Duration = Duration::from_secs(60);
/// A decoder must have answered after this.
pub const DECODE_TIME_MAX: Duration = Duration::from_secs(25);
/// Decoders at once; whoever comes later waits.
pub const DECODERS_MAX: usize = 2;
/// Whoever waits for a decoder longer than this is told to come again.
pub const DECODER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Bytes of a form beside the files in it.
pub const FORM_BYTES_MAX: usize = 64 * 1024;
