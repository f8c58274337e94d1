//! Frames as JPEG, straight from the planes of the frame ring.
//!
//! JFIF pictures are full-range BT.601 with chroma at half resolution, which is how the ring stores frames, so no
//! colour is converted on the way.

use std::sync::{Condvar, LazyLock, Mutex, PoisonError};
use std::thread;

use turbojpeg::{Compressor, Subsamp, YuvImage};

/// Quality of streamed frames: above it the size grows faster than what a player sees.
pub const LIVE_QUALITY: i32 = 82;
/// Quality of posters, which are looked at standing still.
pub const POSTER_QUALITY: i32 = 90;

/// Why a frame could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("a frame of {width}x{height} has {expected} bytes of I420, found {found}")]
    Size { width: u32, height: u32, expected: usize, found: usize },
    #[error("cannot encode a JPEG")]
    Jpeg(#[source] turbojpeg::Error),
    #[error("cannot encode a picture of a video")]
    Video(#[source] openh264::Error),
    #[error("the video encoder skipped frame {0}")]
    Skipped(u64),
    #[error("cannot write the video")]
    Mux(#[source] muxide::api::MuxerError),
    #[error("the video is larger than {0} bytes")]
    TooLarge(u64),
}

/// Bytes of one I420 frame: luma, then the two chroma planes at half resolution. Width and height are even.
pub fn i420_bytes(width: u32, height: u32) -> usize {
    let luma = width as usize * height as usize;
    luma + luma / 2
}

/// Checks that `i420` is one frame of `width` x `height` pixels.
pub fn check_size(i420: &[u8], width: u32, height: u32) -> Result<(), EncodeError> {
    let expected = i420_bytes(width, height);
    if i420.len() != expected || !width.is_multiple_of(2) || !height.is_multiple_of(2) {
        return Err(EncodeError::Size { width, height, expected, found: i420.len() });
    }
    Ok(())
}

/// The threads of all sessions take turns here: as many encode at once as there are processors. More would only make
/// every one of their frames late.
struct Turns {
    free: Mutex<usize>,
    returned: Condvar,
}

static TURNS: LazyLock<Turns> = LazyLock::new(|| Turns::new(thread::available_parallelism().map_or(1, usize::from)));

impl Turns {
    fn new(count: usize) -> Turns {
        Turns { free: Mutex::new(count), returned: Condvar::new() }
    }

    /// Does `work` in a turn. Blocks until there is one.
    fn take<R>(&self, work: impl FnOnce() -> R) -> R {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.returned.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        drop(free);
        let result = work();
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.returned.notify_one();
        result
    }
}

/// A JPEG encoder; keeps its buffers from frame to frame.
pub struct JpegEncoder {
    compressor: Compressor,
}

impl JpegEncoder {
    /// `quality`: 1 to 100.
    pub fn new(quality: i32) -> Result<JpegEncoder, EncodeError> {
        let mut compressor = Compressor::new().map_err(EncodeError::Jpeg)?;
        compressor.set_quality(quality).map_err(EncodeError::Jpeg)?;
        Ok(JpegEncoder { compressor })
    }

    /// Encodes one full-range I420 frame, [height + height / 2 rows of width bytes].
    ///
    /// Blocks: about a millisecond for a picture of 1280x720 pixels, and while all processors encode other pictures.
    pub fn encode(&mut self, i420: &[u8], width: u32, height: u32) -> Result<turbojpeg::OwnedBuf, EncodeError> {
        check_size(i420, width, height)?;
        let image = YuvImage {
            pixels: i420,
            width: width as usize,
            align: 1,
            height: height as usize,
            subsamp: Subsamp::Sub2x2,
        };
        TURNS.take(|| self.compressor.compress_yuv_to_owned(image)).map_err(EncodeError::Jpeg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_has_the_size_and_the_colours_of_the_frame() {
        let (width, height) = (70, 66);
        // Full-range BT.601 of a pure red: Y 76, Cb 85, Cr 255.
        let mut frame = vec![76; i420_bytes(width, height)];
        frame[70 * 66..70 * 66 * 5 / 4].fill(85);
        frame[70 * 66 * 5 / 4..].fill(255);
        let jpeg = JpegEncoder::new(LIVE_QUALITY).and_then(|mut e| e.encode(&frame, width, height)).expect("even size");
        let image = turbojpeg::decompress(&jpeg, turbojpeg::PixelFormat::RGB).expect("a JPEG");
        assert_eq!((image.width, image.height), (70, 66));
        let middle = 33 * image.pitch + 3 * 35;
        let pixel = &image.pixels[middle..middle + 3];
        assert!(pixel[0] > 245 && pixel[1] < 12 && pixel[2] < 12, "red became {pixel:?}");
    }

    #[test]
    fn no_more_encode_at_once_than_there_are_turns() {
        let (turns, now, most) = (Turns::new(3), Mutex::new(0), Mutex::new(0));
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    turns.take(|| {
                        let mut working = now.lock().expect("nobody panics");
                        *working += 1;
                        let mut seen = most.lock().expect("nobody panics");
                        *seen = (*seen).max(*working);
                        drop((working, seen));
                        thread::sleep(std::time::Duration::from_millis(2));
                        *now.lock().expect("nobody panics") -= 1;
                    });
                });
            }
        });
        assert_eq!(*turns.free.lock().expect("nobody panics"), 3, "every turn came back");
        let most = *most.lock().expect("nobody panics");
        assert!((1..=3).contains(&most), "{most} at once");
    }

    #[test]
    fn a_frame_of_another_size_is_refused() {
        let mut encoder = JpegEncoder::new(LIVE_QUALITY).expect("the quality is in range");
        assert!(matches!(encoder.encode(&[0; 100], 64, 64), Err(EncodeError::Size { expected: 6144, found: 100, .. })));
    }
}
