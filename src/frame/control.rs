//! The control block: the player's keys as a level, their presses as counters, and how far frames were consumed.
//!
//! ```text
//!  0  magic u64, version u32
//! 64  state u64: seq << 32 | keys held        written whole, so seq and keys always belong together
//! 72  taps u32 x 6                            presses since the block was made, one counter a key, wrapping
//! 96  consumed u64                            frames taken out of the ring by the api, counted from tick 0
//! ```
//!
//! Held keys are a level: the newest state wins and no queue grows stale. A press that was already released when the
//! worker looks still shows as a counter that rose. The api is the only writer; the worker's mapping is read-only.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use super::RingError;
use crate::proto::keys::{KEY_NAMES, Keys};
use crate::sys::shm::{Access, SharedMemory};

const MAGIC: &[u8; 8] = b"GGCTRL01";
const VERSION: u32 = 1;
const STATE_AT: usize = 64;
const TAPS_AT: usize = 72;
const CONSUMED_AT: usize = 96;
/// One page: a memory object is not smaller anywhere.
const BLOCK_BYTES: usize = 4096;
/// Bits of a state that are keys.
const KEY_MASK: u8 = (1 << KEY_NAMES.len()) - 1;

/// Presses of each key that a reader has already acted on.
pub type TapCounts = [u32; KEY_NAMES.len()];

/// What one tick acts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latched {
    /// `seq` of the newest control.
    pub seq: u32,
    /// Keys held now or pressed since the last latch.
    pub keys: Keys,
}

/// The api's end.
pub struct ControlWriter {
    memory: SharedMemory,
}

impl ControlWriter {
    /// A block with no key held, and its read-only descriptor for the worker.
    pub fn create() -> Result<(ControlWriter, OwnedFd), RingError> {
        let memory = SharedMemory::create("gamegend-control", BLOCK_BYTES)?;
        memory.write(8, &VERSION.to_le_bytes());
        memory.write(0, MAGIC);
        let fd = memory.read_only_fd()?;
        Ok((ControlWriter { memory }, fd))
    }

    /// Another read-only descriptor of the same block, for the next worker.
    pub fn read_only_fd(&self) -> Result<OwnedFd, RingError> {
        Ok(self.memory.read_only_fd()?)
    }

    /// Replaces the held keys; `seq` is the control's that says so. Call [`ControlWriter::tap`] before it, so that
    /// whoever sees the number also sees the presses.
    pub fn set(&self, seq: u32, keys_held: Keys) {
        let state = u64::from(seq) << 32 | u64::from(keys_held.0 & KEY_MASK);
        self.memory.atomic_u64(STATE_AT).store(state, Ordering::Release);
    }

    /// Counts one press of each of `keys`.
    pub fn tap(&self, keys: Keys) {
        for i in (0..KEY_NAMES.len()).filter(|i| keys.0 >> i & 1 == 1) {
            self.memory.atomic_u32(TAPS_AT + 4 * i).fetch_add(1, Ordering::Release);
        }
    }

    /// Says that the first `tick_count` frames of the session were taken out of the ring.
    pub fn consumed(&self, tick_count: u64) {
        self.memory.atomic_u64(CONSUMED_AT).store(tick_count, Ordering::Release);
    }
}

/// The worker's end.
pub struct ControlReader {
    memory: SharedMemory,
}

impl ControlReader {
    /// Maps a block from the api. Errors: `Truncated`, `Magic` or `Version`.
    pub fn open(fd: OwnedFd) -> Result<ControlReader, RingError> {
        let memory = SharedMemory::from_fd(fd, Access::ReadOnly)?;
        if memory.len() < BLOCK_BYTES {
            return Err(RingError::Truncated { found: memory.len() as u64, needed: BLOCK_BYTES as u64 });
        }
        let (mut magic, mut version) = ([0; 8], [0; 4]);
        memory.read(0, &mut magic);
        memory.read(8, &mut version);
        if &magic != MAGIC {
            return Err(RingError::Magic { wanted: "control block", found: magic });
        }
        let version = u32::from_le_bytes(version);
        if version != VERSION {
            return Err(RingError::Version { wanted: "control block", found: version, known: VERSION });
        }
        Ok(ControlReader { memory })
    }

    /// The keys for one tick: those held, and those pressed since `seen`, which is brought up to date.
    pub fn latch(&self, seen: &mut TapCounts) -> Latched {
        // The state comes first: a tap is counted before its seq is stored, so no seq is seen without its taps.
        let state = self.memory.atomic_u64(STATE_AT).load(Ordering::Acquire);
        let mut keys = state as u8 & KEY_MASK;
        for (i, seen) in seen.iter_mut().enumerate() {
            let count = self.memory.atomic_u32(TAPS_AT + 4 * i).load(Ordering::Acquire);
            if rose(*seen, count) {
                keys |= 1 << i;
            }
            *seen = count;
        }
        Latched { seq: (state >> 32) as u32, keys: Keys(keys) }
    }

    /// True if a latch now would tell something that `seq` and `seen` do not have yet.
    pub fn is_newer(&self, seq: u32, seen: &TapCounts) -> bool {
        let state = self.memory.atomic_u64(STATE_AT).load(Ordering::Acquire);
        let count = |i: usize| self.memory.atomic_u32(TAPS_AT + 4 * i).load(Ordering::Acquire);
        (state >> 32) as u32 != seq || seen.iter().enumerate().any(|(i, seen)| rose(*seen, count(i)))
    }

    /// Frames taken out of the ring so far, counted from tick 0.
    pub fn consumed(&self) -> u64 {
        self.memory.atomic_u64(CONSUMED_AT).load(Ordering::Acquire)
    }
}

/// Counters wrap; one that is behind belongs to a newer block and says nothing.
fn rose(seen: u32, count: u32) -> bool {
    let ahead = count.wrapping_sub(seen);
    ahead != 0 && ahead < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> (ControlWriter, ControlReader) {
        let (writer, fd) = ControlWriter::create().expect("memory for one page");
        (writer, ControlReader::open(fd).expect("a block of our own"))
    }

    #[test]
    fn held_keys_are_a_level_and_the_newest_wins() {
        let (writer, reader) = block();
        let mut seen = TapCounts::default();
        assert_eq!(reader.latch(&mut seen), Latched::default());
        writer.set(1, Keys::W);
        writer.set(2, Keys::W.union(Keys::D));
        assert!(reader.is_newer(0, &seen));
        assert_eq!(reader.latch(&mut seen), Latched { seq: 2, keys: Keys::W.union(Keys::D) });
        assert_eq!(reader.latch(&mut seen), Latched { seq: 2, keys: Keys::W.union(Keys::D) });
        assert!(!reader.is_newer(2, &seen));
    }

    #[test]
    fn a_tap_shorter_than_a_tick_acts_on_exactly_one_tick() {
        let (writer, reader) = block();
        let mut seen = TapCounts::default();
        writer.tap(Keys::SPACE);
        writer.tap(Keys::SPACE);
        writer.set(5, Keys::A);
        assert_eq!(reader.latch(&mut seen), Latched { seq: 5, keys: Keys::A.union(Keys::SPACE) });
        assert_eq!(reader.latch(&mut seen), Latched { seq: 5, keys: Keys::A });
        writer.tap(Keys::SHIFT);
        assert!(reader.is_newer(5, &seen), "a tap alone is news");
    }

    #[test]
    fn counters_wrap_and_an_older_count_is_no_press() {
        assert!(rose(u32::MAX, 0));
        assert!(rose(3, 4));
        assert!(!rose(4, 4));
        assert!(!rose(7, 0), "a fresh block starts at 0 whatever the last one counted");
    }

    #[test]
    fn keys_beyond_the_sixth_do_not_exist() {
        let (writer, reader) = block();
        writer.set(u32::MAX, Keys(0xff));
        assert_eq!(reader.latch(&mut TapCounts::default()), Latched { seq: u32::MAX, keys: Keys(0x3f) });
    }

    #[test]
    fn consumed_frames_are_counted() {
        let (writer, reader) = block();
        assert_eq!(reader.consumed(), 0);
        writer.consumed(41);
        assert_eq!(reader.consumed(), 41);
    }

    #[test]
    fn what_is_not_a_control_block_is_refused() {
        let memory = SharedMemory::create("gamegend-test", BLOCK_BYTES).expect("memory for one page");
        let fd = memory.read_only_fd().expect("a descriptor");
        assert!(matches!(ControlReader::open(fd), Err(RingError::Magic { .. })));
        memory.write(0, MAGIC);
        memory.write(8, &9u32.to_le_bytes());
        let fd = memory.read_only_fd().expect("a descriptor");
        assert!(matches!(ControlReader::open(fd), Err(RingError::Version { found: 9, .. })));
        let small = SharedMemory::create("gamegend-test", 64).expect("a small object");
        let fd = small.read_only_fd().expect("a descriptor");
        assert!(matches!(ControlReader::open(fd), Err(RingError::Truncated { .. })));
    }
}
