//! Where everything lies inside a ring's memory object; pure arithmetic.

use super::RingError;
use crate::proto::limits;

/// Bytes in front of the snapshot buffers: one page, so that what follows is aligned for any copy.
pub(super) const HEADER_BYTES: usize = 4096;
/// Bytes of the header that carry numbers.
pub(super) const HEADER_USED: usize = 32;
/// Offset of the number of complete frames; a cache line of its own, as it changes with every frame.
pub(super) const NEWEST_AT: usize = 64;
/// Bytes in front of a slot's picture and of a snapshot's record: a cache line.
pub(super) const LOCK_BYTES: usize = 64;
pub(super) const MAGIC: &[u8; 8] = b"GGRING01";
const VERSION: u32 = 1;

/// A ring of one slot would be overwritten while it is read.
pub const SLOTS_MIN: u32 = 2;
/// More slots than this would only hide a reader that does not keep up.
pub const SLOTS_MAX: u32 = 64;
/// One snapshot buffer: 16 latents of 1920 x 1088 at 4 values a 8 x 8 block fit twice over.
pub const SNAPSHOT_BYTES_MAX: usize = 64 << 20;

/// Sizes of one ring, checked against every limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    width: u32,
    height: u32,
    slots: u32,
    snapshot_bytes: usize,
}

/// Bytes of a picture in 4:2:0; its sides are even.
pub fn i420_bytes(width: u32, height: u32) -> usize {
    width as usize * height as usize / 2 * 3
}

fn field(field: &'static str, value: u64, min: u64, max: u64, step: u64) -> Result<(), RingError> {
    if (min..=max).contains(&value) && value.is_multiple_of(step) {
        return Ok(());
    }
    let kind = if step > 1 { format!(", a multiple of {step}") } else { String::new() };
    Err(RingError::Field { field, value, allowed: format!("{min} to {max}{kind}") })
}

impl Geometry {
    /// Frames of `width` x `height` pixels in `slots` slots, and two buffers of `snapshot_bytes` bytes, rounded up to
    /// whole pages. Errors: `Field` for the first number out of range.
    pub fn new(width: u32, height: u32, slots: u32, snapshot_bytes: usize) -> Result<Geometry, RingError> {
        let (w, h) = (&limits::WIDTH_PX, &limits::HEIGHT_PX);
        field("width", width.into(), (*w.start()).into(), (*w.end()).into(), 2)?;
        field("height", height.into(), (*h.start()).into(), (*h.end()).into(), 2)?;
        field("slots", slots.into(), SLOTS_MIN.into(), SLOTS_MAX.into(), 1)?;
        field("snapshot bytes", snapshot_bytes as u64, 1, SNAPSHOT_BYTES_MAX as u64, 1)?;
        Ok(Geometry { width, height, slots, snapshot_bytes: snapshot_bytes.next_multiple_of(HEADER_BYTES) })
    }

    pub fn width(&self) -> u32 {
        self.width
    }

    pub fn height(&self) -> u32 {
        self.height
    }

    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Bytes of one I420 picture of the ring's size, the largest that there are in it.
    pub fn frame_bytes(&self) -> usize {
        i420_bytes(self.width, self.height)
    }

    /// Bytes of a picture of this size; `None` if it is none that a slot may have: sides are even, more than zero, and
    /// at most the ring's.
    pub fn picture_bytes(&self, width: u32, height: u32) -> Option<usize> {
        let fits = |side: u32, most: u32| (1..=most).contains(&side) && side.is_multiple_of(2);
        (fits(width, self.width) && fits(height, self.height)).then(|| i420_bytes(width, height))
    }

    /// Bytes of one snapshot buffer, its lock included.
    pub(super) fn snapshot_bytes(&self) -> usize {
        self.snapshot_bytes
    }

    pub(super) fn snapshot_at(&self, buffer: usize) -> usize {
        HEADER_BYTES + (buffer & 1) * self.snapshot_bytes
    }

    pub(super) fn slots_at(&self) -> usize {
        HEADER_BYTES + 2 * self.snapshot_bytes
    }

    pub(super) fn slot_at(&self, tick: u64) -> usize {
        let slot_bytes = LOCK_BYTES + self.frame_bytes().next_multiple_of(LOCK_BYTES);
        self.slots_at() + (tick % u64::from(self.slots)) as usize * slot_bytes
    }

    /// Bytes of the whole memory object.
    pub fn total_bytes(&self) -> usize {
        let slot_bytes = LOCK_BYTES + self.frame_bytes().next_multiple_of(LOCK_BYTES);
        (self.slots_at() + self.slots as usize * slot_bytes).next_multiple_of(HEADER_BYTES)
    }

    pub(super) fn encode(&self) -> [u8; HEADER_USED] {
        let mut b = [0; HEADER_USED];
        b[0..8].copy_from_slice(MAGIC);
        let snapshot_bytes = self.snapshot_bytes as u32; // at most SNAPSHOT_BYTES_MAX
        for (i, v) in [VERSION, self.width, self.height, self.slots, snapshot_bytes].into_iter().enumerate() {
            b[8 + 4 * i..12 + 4 * i].copy_from_slice(&v.to_le_bytes());
        }
        b
    }

    /// Reads a header of unknown origin. The result's `total_bytes` still has to be compared with the object's size.
    pub(super) fn decode(b: &[u8; HEADER_USED]) -> Result<Geometry, RingError> {
        let magic: [u8; 8] = [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]];
        if &magic != MAGIC {
            return Err(RingError::Magic { wanted: "frame ring", found: magic });
        }
        let word = |i: usize| u32::from_le_bytes([b[8 + 4 * i], b[9 + 4 * i], b[10 + 4 * i], b[11 + 4 * i]]);
        if word(0) != VERSION {
            return Err(RingError::Version { wanted: "frame ring", found: word(0), known: VERSION });
        }
        let snapshot_bytes = word(4) as usize;
        field("snapshot bytes", snapshot_bytes as u64, 1, SNAPSHOT_BYTES_MAX as u64, HEADER_BYTES as u64)?;
        Geometry::new(word(1), word(2), word(3), snapshot_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_do_not_overlap() {
        let g = Geometry::new(322, 190, 3, 5000).expect("legal numbers");
        assert_eq!(g.frame_bytes(), 322 * 190 * 3 / 2);
        assert_eq!(g.snapshot_at(1) - g.snapshot_at(0), 8192);
        assert_eq!(g.slots_at(), 4096 + 2 * 8192);
        assert!(g.slot_at(1) - g.slot_at(0) >= LOCK_BYTES + g.frame_bytes());
        assert_eq!(g.slot_at(3), g.slot_at(0));
        assert!(g.total_bytes() >= g.slot_at(2) + LOCK_BYTES + g.frame_bytes());
        assert_eq!(g.picture_bytes(160, 96), Some(160 * 96 * 3 / 2));
        for (width, height) in [(0, 64), (64, 0), (324, 64), (64, 192), (63, 64)] {
            assert_eq!(g.picture_bytes(width, height), None, "{width}x{height}");
        }
        assert_eq!(Geometry::decode(&g.encode()).expect("its own header"), g);
    }

    #[test]
    fn sizes_out_of_range_are_named() {
        for (w, h, slots, bytes, name) in [
            (63, 64, 8, 1, "width"),
            (65, 64, 8, 1, "width"),
            (1922, 64, 8, 1, "width"),
            (64, 1090, 8, 1, "height"),
            (64, 64, 1, 1, "slots"),
            (64, 64, 65, 1, "slots"),
            (64, 64, 8, SNAPSHOT_BYTES_MAX + 1, "snapshot bytes"),
        ] {
            let error = Geometry::new(w, h, slots, bytes).expect_err("out of range");
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }

    proptest! {
        /// A header of any bytes is an error or a geometry inside the limits, and never a panic.
        #[test]
        fn any_header_is_an_error_or_legal(mut bytes in any::<[u8; HEADER_USED]>(), sane in any::<bool>()) {
            bytes[0..8].copy_from_slice(MAGIC);
            if sane {
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
            }
            if let Ok(g) = Geometry::decode(&bytes) {
                prop_assert!(limits::WIDTH_PX.contains(&g.width()) && limits::HEIGHT_PX.contains(&g.height()));
                prop_assert!(g.total_bytes() < 1 << 30);
            }
        }
    }
}
