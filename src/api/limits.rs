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
