//! The frame ring: one writer, many readers, a sequence lock for each slot.
//!
//! Nobody waits for anybody: the writer overwrites the oldest slot, and a reader that was too slow finds out from the
//! lock. That no frame of a stored generation is lost is the scheduler's doing, by the consumed count of the control
//! block.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::layout::{Geometry, HEADER_USED, LOCK_BYTES, NEWEST_AT};
use super::snapshot::{self, About, History};
use super::{RingError, Snapshot};
use crate::sys::shm::{Access, SharedMemory};

const TIME_AT: usize = 8;
const META_BYTES: usize = 20;

/// What goes with a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameMeta {
    pub tick: u64,
    /// Presentation time in microseconds since the session began.
    pub time_us: u64,
    /// `seq` of the newest control that the frame reflects, 0 for none.
    pub seq: u32,
    /// `FLAG_*` of [`crate::proto::wire`].
    pub flags: u32,
    /// Sides of the picture in pixels: the ring's, or smaller ones while the device has too much to do. Written as 0,
    /// they are the ring's.
    pub width: u16,
    pub height: u16,
}

impl FrameMeta {
    fn encode(&self) -> [u8; META_BYTES] {
        let mut b = [0; META_BYTES];
        b[0..8].copy_from_slice(&self.time_us.to_le_bytes());
        b[8..12].copy_from_slice(&self.seq.to_le_bytes());
        b[12..16].copy_from_slice(&self.flags.to_le_bytes());
        b[16..18].copy_from_slice(&self.width.to_le_bytes());
        b[18..20].copy_from_slice(&self.height.to_le_bytes());
        b
    }

    fn decode(tick: u64, b: &[u8; META_BYTES]) -> FrameMeta {
        let time_us = u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        let word = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let side = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        FrameMeta { tick, time_us, seq: word(8), flags: word(12), width: side(16), height: side(18) }
    }

    /// Sides in pixels of the picture that is in a ring of this geometry.
    fn size_in(&self, geometry: &Geometry) -> (u32, u32) {
        match (self.width, self.height) {
            (0, 0) => (geometry.width(), geometry.height()),
            (width, height) => (width.into(), height.into()),
        }
    }
}

/// The writing end, owned by the worker's session.
pub struct FrameRing {
    memory: Arc<SharedMemory>,
    geometry: Geometry,
    /// Number of snapshots written; chooses the buffer.
    snapshots: u64,
}

impl FrameRing {
    /// A ring for pictures of `width` x `height` in `slots` slots, with room for snapshots of latents of
    /// `latent_elements` values. Returns the writer and a descriptor that can only be read.
    pub fn create(
        width: u32,
        height: u32,
        slots: u32,
        latent_elements: usize,
    ) -> Result<(FrameRing, OwnedFd), RingError> {
        let geometry = Geometry::new(width, height, slots, LOCK_BYTES + snapshot::record_bytes_max(latent_elements))?;
        let memory = Arc::new(SharedMemory::create("gamegend-frames", geometry.total_bytes())?);
        memory.write(0, &geometry.encode());
        let fd = memory.read_only_fd()?;
        Ok((FrameRing { memory, geometry, snapshots: 0 }, fd))
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Another descriptor of the ring that can only be read.
    pub fn read_only_fd(&self) -> Result<OwnedFd, RingError> {
        Ok(self.memory.read_only_fd()?)
    }

    /// Writes one picture (I420 of the size in `meta`) as frame `meta.tick` and makes it the newest.
    ///
    /// Panics if the picture has the wrong length or is larger than the ring's: the session's scratch picture is made
    /// from the same sizes.
    pub fn publish(&mut self, meta: &FrameMeta, picture: &[u8]) {
        let (width, height) = meta.size_in(&self.geometry);
        assert_eq!(Some(picture.len()), self.geometry.picture_bytes(width, height), "a picture of the session's size");
        let at = self.reserve(meta.tick);
        self.memory.write(at, picture);
        self.commit(meta);
    }

    /// The memory object, for a device that writes pictures there by itself.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// Makes the slot of frame `tick` ready to be written by somebody else: at most `frame_bytes` bytes from the
    /// returned offset on, a multiple of 64. Until [`commit`](Self::commit) readers find no whole frame there.
    pub fn reserve(&mut self, tick: u64) -> usize {
        self.begin(tick);
        self.geometry.slot_at(tick) + LOCK_BYTES
    }

    /// The picture of frame `meta.tick` is whole, in the slot that [`reserve`](Self::reserve) gave: it is the newest.
    pub fn commit(&mut self, meta: &FrameMeta) {
        let at = self.geometry.slot_at(meta.tick);
        self.memory.write(at + TIME_AT, &meta.encode());
        self.memory.atomic_u64(at).store(2 * meta.tick + 2, Ordering::Release);
        self.memory.atomic_u64(NEWEST_AT).store(meta.tick + 1, Ordering::Release);
    }

    /// Marks the slot of `tick` as being written, before any of its bytes change.
    fn begin(&mut self, tick: u64) {
        self.memory.atomic_u64(self.geometry.slot_at(tick)).store(2 * tick + 1, Ordering::Relaxed);
        // Orders the lock before the data that follow: a reader that sees new data also sees the odd lock.
        fence(Ordering::Release);
    }

    /// Writes a snapshot into the older of the two buffers. `scratch` is kept by the caller so that nothing is
    /// allocated here once it has grown to its size. Errors: `Snapshot` if it does not fit.
    pub fn snapshot(
        &mut self,
        about: &About,
        trace: &[u8],
        history: &History,
        scratch: &mut Vec<u8>,
    ) -> Result<(), RingError> {
        snapshot::encode_into(scratch, (about, history.size_px()), trace, history.iter())?;
        let room = self.geometry.snapshot_bytes() - LOCK_BYTES;
        if scratch.len() > room {
            let what = format!("{} bytes, the buffer has {room}", scratch.len());
            return Err(RingError::Snapshot { what });
        }
        let at = self.begin_snapshot();
        self.memory.write(at + LOCK_BYTES, scratch);
        self.memory.atomic_u64(at).store(2 * self.snapshots + 2, Ordering::Release);
        self.snapshots += 1;
        Ok(())
    }

    /// Marks the older snapshot buffer as being written; returns where it begins.
    pub(super) fn begin_snapshot(&mut self) -> usize {
        let at = self.geometry.snapshot_at(self.snapshots as usize & 1);
        self.memory.atomic_u64(at).store(2 * self.snapshots + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        at
    }
}

/// A reading end.
pub struct RingReader {
    memory: SharedMemory,
    geometry: Geometry,
}

impl RingReader {
    /// Maps a descriptor from another process, read-only. Errors: what is wrong with its header, or `Truncated` if the
    /// object is smaller than the header says.
    pub fn open(fd: OwnedFd) -> Result<RingReader, RingError> {
        let memory = SharedMemory::from_fd(fd, Access::ReadOnly)?;
        if memory.len() < LOCK_BYTES {
            return Err(RingError::Truncated { found: memory.len() as u64, needed: LOCK_BYTES as u64 });
        }
        let mut header = [0; HEADER_USED];
        memory.read(0, &mut header);
        let geometry = Geometry::decode(&header)?;
        if memory.len() < geometry.total_bytes() {
            return Err(RingError::Truncated { found: memory.len() as u64, needed: geometry.total_bytes() as u64 });
        }
        Ok(RingReader { memory, geometry })
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub fn width(&self) -> u32 {
        self.geometry.width()
    }

    pub fn height(&self) -> u32 {
        self.geometry.height()
    }

    /// Bytes of one picture of the ring's size, I420.
    pub fn frame_bytes(&self) -> usize {
        self.geometry.frame_bytes()
    }

    /// Tick of the newest complete frame.
    pub fn newest(&self) -> Option<u64> {
        self.memory.atomic_u64(NEWEST_AT).load(Ordering::Acquire).checked_sub(1)
    }

    /// Copies frame `tick` into `picture`, which gets its length from the size that is returned with it.
    ///
    /// Errors: `Overwritten` if a newer frame took the slot before or during the copy (the buffer then holds rubbish),
    /// `NotYet` if the frame is not complete, `Field` if its size is none that the ring can have.
    pub fn read(&self, tick: u64, picture: &mut Vec<u8>) -> Result<FrameMeta, RingError> {
        let at = self.geometry.slot_at(tick);
        let lock = self.memory.atomic_u64(at);
        let whole = tick.checked_mul(2).and_then(|t| t.checked_add(2)).ok_or(RingError::NotYet)?;
        match lock.load(Ordering::Acquire) {
            found if found < whole => return Err(RingError::NotYet),
            found if found > whole => return Err(RingError::Overwritten),
            _ => {}
        }
        let mut bytes = [0; META_BYTES];
        self.memory.read(at + TIME_AT, &mut bytes);
        let meta = FrameMeta::decode(tick, &bytes);
        let (width, height) = meta.size_in(&self.geometry);
        // A size from another process: one that does not fit the slot is nothing to read by.
        let length = self.geometry.picture_bytes(width, height);
        picture.resize(length.unwrap_or(0), 0);
        self.memory.read(at + LOCK_BYTES, picture);
        // Orders the copy before the second look at the lock.
        fence(Ordering::Acquire);
        if lock.load(Ordering::Relaxed) != whole {
            return Err(RingError::Overwritten);
        }
        if length.is_none() {
            let (value, whole) = (u64::from(width.max(height)), (self.width(), self.height()));
            return Err(RingError::Field {
                field: "side of a frame",
                value,
                allowed: format!("even, within {whole:?}"),
            });
        }
        // Both are at most the ring's, whose limits are far below 65536.
        Ok(FrameMeta { width: width as u16, height: height as u16, ..meta })
    }

    /// The newest snapshot in the ring. Errors: `NoSnapshot` if none is complete.
    pub fn snapshot(&self) -> Result<Snapshot, RingError> {
        Snapshot::read_fd(self.memory.as_fd())
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
