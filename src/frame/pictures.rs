//! Pictures on their way to a worker: the frames that a session continues, or its video prompt.
//!
//! ```text
//!  0  magic u64, version u32, count u32, width u32, height u32
//! 64  count pictures, RGB, 3 bytes a pixel, rows from the top
//! ```
//!
//! Whoever decodes an upload writes them once; the worker maps them read-only. The same bytes as a file are pictures
//! too, so that a stored session can be made again.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use super::RingError;
use crate::proto::limits;
use crate::sys::shm::{SHARED_BYTES_MAX, SharedMemory};

const MAGIC: &[u8; 8] = b"GGPICS01";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 64;
const NUMBERS_AT: usize = 8;

/// Bytes of one picture.
pub fn picture_bytes(width: u32, height: u32) -> usize {
    width as usize * height as usize * 3
}

/// Pictures of this size that fit one object.
pub fn count_max(width: u32, height: u32) -> u32 {
    let fit = (SHARED_BYTES_MAX - HEAD_BYTES) / picture_bytes(width, height).max(1);
    u32::try_from(fit).unwrap_or(u32::MAX).min(limits::PICTURES_MAX)
}

/// The end that writes.
pub struct PicturesWriter {
    memory: SharedMemory,
    bytes: usize,
    count: u32,
}

impl PicturesWriter {
    /// Memory for `count` pictures. Errors: `Field` if there are none or they do not fit.
    pub fn create(count: u32, width: u32, height: u32) -> Result<PicturesWriter, RingError> {
        check(count, width, height)?;
        let bytes = picture_bytes(width, height);
        let memory = SharedMemory::create("gamegend-pictures", HEAD_BYTES + count as usize * bytes)?;
        memory.write(0, MAGIC);
        for (i, number) in [VERSION, count, width, height].into_iter().enumerate() {
            memory.write(NUMBERS_AT + 4 * i, &number.to_le_bytes());
        }
        Ok(PicturesWriter { memory, bytes, count })
    }

    /// Writes picture `index`. Panics if there is no such picture or its length is another.
    pub fn write(&self, index: u32, rgb: &[u8]) {
        assert!(index < self.count && rgb.len() == self.bytes, "picture {index} of {} bytes", rgb.len());
        self.memory.write(HEAD_BYTES + index as usize * self.bytes, rgb);
    }

    /// A descriptor that can be mapped for reading only.
    pub fn read_only_fd(&self) -> Result<OwnedFd, RingError> {
        Ok(self.memory.read_only_fd()?)
    }
}

/// Pictures that somebody else wrote. Nothing is mapped: a file that shrinks meanwhile is an error, not a fault.
#[derive(Debug)]
pub struct Pictures {
    file: File,
    count: u32,
    width: u32,
    height: u32,
}

impl Pictures {
    /// Checks what a descriptor holds. Errors: `Magic`, `Version`, `Field`, `Truncated`.
    pub fn open(fd: impl AsFd) -> Result<Pictures, RingError> {
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        let found = file.metadata()?.len();
        let mut head = [0; HEAD_BYTES];
        if found < HEAD_BYTES as u64 {
            return Err(RingError::Truncated { found, needed: HEAD_BYTES as u64 });
        }
        file.read_exact_at(&mut head, 0)?;
        let magic = [head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]];
        if &magic != MAGIC {
            return Err(RingError::Magic { wanted: "block of pictures", found: magic });
        }
        let number = |i: usize| {
            let at = NUMBERS_AT + 4 * i;
            u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
        };
        if number(0) != VERSION {
            return Err(RingError::Version { wanted: "block of pictures", found: number(0), known: VERSION });
        }
        let (count, width, height) = (number(1), number(2), number(3));
        check(count, width, height)?;
        let needed = (HEAD_BYTES + count as usize * picture_bytes(width, height)) as u64;
        if found < needed {
            return Err(RingError::Truncated { found, needed });
        }
        Ok(Pictures { file, count, width, height })
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Replaces `rgb` with picture `index`, the last one if there are not so many.
    pub fn read(&self, index: u64, rgb: &mut Vec<u8>) -> Result<(), RingError> {
        let bytes = picture_bytes(self.width, self.height);
        rgb.resize(bytes, 0);
        let index = index.min(u64::from(self.count) - 1);
        self.file.read_exact_at(rgb, HEAD_BYTES as u64 + index * bytes as u64)?;
        Ok(())
    }
}

fn check(count: u32, width: u32, height: u32) -> Result<(), RingError> {
    let (w, h) = (&limits::WIDTH_PX, &limits::HEIGHT_PX);
    let max = if w.contains(&width) && h.contains(&height) { count_max(width, height) } else { u32::MAX };
    for (field, value, low, high) in
        [("width", width, *w.start(), *w.end()), ("height", height, *h.start(), *h.end()), ("pictures", count, 1, max)]
    {
        if !(low..=high).contains(&value) {
            let allowed = format!("{low} to {high}");
            return Err(RingError::Field { field, value: value.into(), allowed });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_reach_the_other_end_and_the_last_one_stays() {
        let writer = PicturesWriter::create(3, 64, 64).expect("a small object");
        for i in 0..3u8 {
            writer.write(u32::from(i), &vec![i + 1; picture_bytes(64, 64)]);
        }
        let pictures = Pictures::open(writer.read_only_fd().expect("a descriptor")).expect("our own");
        assert_eq!((pictures.count(), pictures.size()), (3, (64, 64)));
        let mut rgb = Vec::new();
        for (index, byte) in [(0, 1), (2, 3), (99, 3)] {
            pictures.read(index, &mut rgb).expect("it is there");
            assert!(rgb.len() == picture_bytes(64, 64) && rgb.iter().all(|b| *b == byte));
        }
    }

    #[test]
    fn what_is_no_block_of_pictures_is_refused() {
        assert!(matches!(PicturesWriter::create(0, 64, 64), Err(RingError::Field { field: "pictures", .. })));
        assert!(matches!(PicturesWriter::create(1, 60, 64), Err(RingError::Field { field: "width", .. })));
        let too_many = count_max(1920, 1088) + 1;
        assert!(matches!(PicturesWriter::create(too_many, 1920, 1088), Err(RingError::Field { .. })));
        let memory = SharedMemory::create("gamegend-test", 4096).expect("a page");
        let open = || Pictures::open(memory.read_only_fd().expect("a descriptor"));
        assert!(matches!(open(), Err(RingError::Magic { .. })));
        memory.write(0, MAGIC);
        assert!(matches!(open(), Err(RingError::Version { found: 0, .. })));
        for (i, number) in [1u32, 9, 64, 64].into_iter().enumerate() {
            memory.write(NUMBERS_AT + 4 * i, &number.to_le_bytes());
        }
        assert!(matches!(open(), Err(RingError::Truncated { .. })));
    }
}
