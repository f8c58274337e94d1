//! The 40-byte little-endian header in front of every streamed frame.

/// Length of an encoded [`FrameHeader`] in bytes.
pub const FRAME_HEADER_BYTES: usize = 40;
const MAGIC: &[u8; 4] = b"GGF1";
const VERSION: u16 = 1;

/// The encoding of a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Format {
    Jpeg = 1,
    H264 = 2,
    I420 = 3,
}

/// Flags of a frame.
pub const FLAG_KEY_FRAME: u32 = 1;
pub const FLAG_RECOVERED: u32 = 2;
pub const FLAG_DEGRADED: u32 = 4;

/// What precedes a payload on `/ws/stream`. All sizes in bytes, times in microseconds since the session began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub format: Format,
    pub tick: u64,
    pub time_us: u64,
    /// `seq` of the newest control that the frame reflects, 0 for none.
    pub seq: u32,
    pub width: u16,
    pub height: u16,
    pub payload_bytes: u32,
    pub flags: u32,
}

/// Why bytes are not a frame header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("a frame header has {FRAME_HEADER_BYTES} bytes, found {0}")]
    Short(usize),
    #[error("not a frame: the magic is {0:?}")]
    Magic([u8; 4]),
    #[error("frame header version {0}, this program knows {VERSION}")]
    Version(u16),
    #[error("unknown frame format {0}")]
    Format(u16),
}

impl FrameHeader {
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut b = [0; FRAME_HEADER_BYTES];
        b[0..4].copy_from_slice(MAGIC);
        b[4..6].copy_from_slice(&VERSION.to_le_bytes());
        b[6..8].copy_from_slice(&(self.format as u16).to_le_bytes());
        b[8..16].copy_from_slice(&self.tick.to_le_bytes());
        b[16..24].copy_from_slice(&self.time_us.to_le_bytes());
        b[24..28].copy_from_slice(&self.seq.to_le_bytes());
        b[28..30].copy_from_slice(&self.width.to_le_bytes());
        b[30..32].copy_from_slice(&self.height.to_le_bytes());
        b[32..36].copy_from_slice(&self.payload_bytes.to_le_bytes());
        b[36..40].copy_from_slice(&self.flags.to_le_bytes());
        b
    }

    /// Reads the header at the front of a message.
    pub fn decode(b: &[u8]) -> Result<FrameHeader, HeaderError> {
        let b: &[u8; FRAME_HEADER_BYTES] = b.first_chunk().ok_or(HeaderError::Short(b.len()))?;
        let u16_at = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        if &b[0..4] != MAGIC {
            return Err(HeaderError::Magic([b[0], b[1], b[2], b[3]]));
        }
        if u16_at(4) != VERSION {
            return Err(HeaderError::Version(u16_at(4)));
        }
        let format = match u16_at(6) {
            1 => Format::Jpeg,
            2 => Format::H264,
            3 => Format::I420,
            other => return Err(HeaderError::Format(other)),
        };
        Ok(FrameHeader {
            format,
            tick: u64_at(8),
            time_us: u64_at(16),
            seq: u32_at(24),
            width: u16_at(28),
            height: u16_at(30),
            payload_bytes: u32_at(32),
            flags: u32_at(36),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire() {
        let h = FrameHeader {
            format: Format::Jpeg,
            tick: 1 << 40,
            time_us: 123_456_789_012,
            seq: 7,
            width: 320,
            height: 192,
            payload_bytes: 9000,
            flags: FLAG_KEY_FRAME | FLAG_DEGRADED,
        };
        assert_eq!(FrameHeader::decode(&h.encode()), Ok(h));
        let mut bytes = h.encode();
        bytes[6] = 9;
        assert_eq!(FrameHeader::decode(&bytes), Err(HeaderError::Format(9)));
        assert_eq!(FrameHeader::decode(&bytes[..39]), Err(HeaderError::Short(39)));
    }
}
