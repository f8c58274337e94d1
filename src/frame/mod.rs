//! What a worker and the api share without copying: a session's frames, its controls and its snapshots.
//!
//! - [`ring`]: the worker writes pictures, the api and local tools map them read-only;
//! - [`control`]: the api writes keys, the worker maps them read-only;
//! - [`snapshot`]: what a session needs to go on in another worker, inside the ring's memory;
//! - [`trace`]: which control acted at which tick, part of a snapshot;
//! - [`scale`]: pictures at another size, for both sides;
//! - [`pictures`]: RGB pictures for a worker: what to continue, or a video prompt.
//!
//! Each object has one writer. A reader never trusts what it maps: sizes are checked once against the descriptor, and
//! every later access stays inside them whatever the writer does to the header.
//!
//! The ring's memory object, all numbers little-endian:
//!
//! ```text
//! 0                 header: magic, version, width, height, slots, snapshot bytes (32 bytes used)
//! 64                newest: u64, tick of the newest complete frame + 1, 0 for none
//! 4096              snapshot buffer 0: lock u64, padding to 64, record (see `snapshot`)
//! 4096 + S          snapshot buffer 1, S = snapshot bytes
//! 4096 + 2 S        slot 0: lock u64, time_us u64, seq u32, flags u32, width u16, height u16, padding to 64,
//!                   picture I420 of that size, at most the header's (0 x 0: the header's)
//! ... + slot bytes  slot 1 and so on; frame `tick` lives in slot `tick % slots`
//! ```
//!
//! A slot's lock is `2 tick + 1` while frame `tick` is written and `2 tick + 2` once it is whole, so one number tells a
//! reader both which frame is there and whether it may be torn. A writer that is killed leaves an odd lock behind.

pub mod control;
mod layout;
pub mod pictures;
pub mod ring;
pub mod scale;
pub mod snapshot;
pub mod trace;

pub use control::{ControlReader, ControlWriter, Latched, TapCounts};
pub use layout::{Geometry, SLOTS_MAX, SLOTS_MIN, SNAPSHOT_BYTES_MAX, i420_bytes};
pub use pictures::{Pictures, PicturesWriter};
pub use ring::{FrameMeta, FrameRing, RingReader};
pub use snapshot::{About, History, Snapshot};

/// Why a ring, a control block or a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The frame was there, and a newer one has taken its slot or is taking it now.
    #[error("the frame was overwritten by a newer one")]
    Overwritten,
    /// The frame has not been written, or is being written now.
    #[error("the frame is not there yet")]
    NotYet,
    #[error("not a {wanted}: the magic is {found:02x?}")]
    Magic { wanted: &'static str, found: [u8; 8] },
    #[error("{wanted} version {found}, this program knows {known}")]
    Version { wanted: &'static str, found: u32, known: u32 },
    #[error("{field} is {value}, allowed: {allowed}")]
    Field { field: &'static str, value: u64, allowed: String },
    #[error("the memory object has {found} bytes, its header needs {needed}")]
    Truncated { found: u64, needed: u64 },
    #[error("no complete snapshot has been written")]
    NoSnapshot,
    #[error("damaged snapshot: {what}")]
    Snapshot { what: String },
    #[error("shared memory")]
    Memory(#[from] std::io::Error),
}
