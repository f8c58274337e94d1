//! A stored generation's video: frames to H.264 to MP4.
//!
//! The ring's frames are full-range BT.601; the video is limited-range BT.601 and says so in its parameter set,
//! because players that ignore the range flag assume limited range. Every frame becomes one picture: rate control,
//! which may skip pictures, is off and the quantiser constant.

use std::fs::File;
use std::io::BufWriter;

use muxide::api::{Muxer, MuxerBuilder, VideoCodec};
use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, MatrixCoefficients, RateControlMode,
    VuiConfig,
};
use openh264::formats::YUVSlices;

use super::encode::{EncodeError, check_size, i420_bytes};

/// The muxer holds a video in memory until it is finished and its sample table has 32-bit offsets; the longest clip at
/// 1280x720 has about a third of this.
pub const VIDEO_BYTES_MAX: u64 = 1 << 30;
/// Seconds between pictures at which a player can start.
const KEY_FRAME_SECONDS: u32 = 2;

/// Writes one video.
pub struct Recorder {
    encoder: Encoder,
    muxer: Muxer<BufWriter<File>>,
    width: u32,
    height: u32,
    fps: u32,
    frames: u64,
    bytes: u64,
    limited: Vec<u8>,
    picture: Vec<u8>,
}

impl Recorder {
    /// A video of `width` x `height` pixels at `fps` frames a second, written into `file`.
    pub fn new(file: File, width: u32, height: u32, fps: u32) -> Result<Recorder, EncodeError> {
        let colours = VuiConfig::bt709().matrix_coefficients(MatrixCoefficients::Smpte170M).full_range(false);
        let config = EncoderConfig::new()
            .rate_control_mode(RateControlMode::Off)
            .skip_frames(false)
            .bitrate(BitRate::from_bps(20_000_000))
            .max_frame_rate(FrameRate::from_hz(fps as f32))
            .intra_frame_period(IntraFramePeriod::from_num_frames(KEY_FRAME_SECONDS * fps))
            .background_detection(false)
            .adaptive_quantization(false)
            .scene_change_detect(false)
            .num_threads(1)
            .vui(colours);
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config).map_err(EncodeError::Video)?;
        let muxer = MuxerBuilder::new(BufWriter::new(file))
            .video(VideoCodec::H264, width, height, f64::from(fps))
            .with_fast_start(true)
            .build()
            .map_err(EncodeError::Mux)?;
        let limited = vec![0; i420_bytes(width, height)];
        Ok(Recorder { encoder, muxer, width, height, fps, frames: 0, bytes: 0, limited, picture: Vec::new() })
    }

    /// Appends one full-range I420 frame.
    ///
    /// Blocks: some milliseconds. Errors: the video is not to be continued after one.
    pub fn add(&mut self, i420: &[u8]) -> Result<(), EncodeError> {
        check_size(i420, self.width, self.height)?;
        let (width, height) = (self.width as usize, self.height as usize);
        limit_range(i420, width * height, &mut self.limited);
        let (y, chroma) = self.limited.split_at(width * height);
        let (u, v) = chroma.split_at(chroma.len() / 2);
        let source = YUVSlices::new((y, u, v), (width, height), (width, width / 2, width / 2));
        let coded = self.encoder.encode(&source).map_err(EncodeError::Video)?;
        let key = matches!(coded.frame_type(), FrameType::IDR | FrameType::I);
        self.picture.clear();
        coded.write_vec(&mut self.picture);
        if self.picture.is_empty() {
            return Err(EncodeError::Skipped(self.frames));
        }
        self.bytes += self.picture.len() as u64;
        if self.bytes > VIDEO_BYTES_MAX {
            return Err(EncodeError::TooLarge(VIDEO_BYTES_MAX));
        }
        let seconds = self.frames as f64 / f64::from(self.fps);
        self.muxer.write_video(seconds, &self.picture, key).map_err(EncodeError::Mux)?;
        self.frames += 1;
        Ok(())
    }

    /// Writes the file. Answers its size in bytes.
    pub fn finish(self) -> Result<u64, EncodeError> {
        Ok(self.muxer.finish_with_stats().map_err(EncodeError::Mux)?.bytes_written)
    }
}

/// Full-range to limited-range BT.601 (ITU-R BT.601-7 section 2.5.3): 0..=255 to 16..=235 for the first `luma` bytes,
/// to 16..=240 around 128 for the rest.
pub fn limit_range(full: &[u8], luma: usize, limited: &mut [u8]) {
    for (out, y) in limited.iter_mut().zip(full).take(luma) {
        *out = (16 + (u32::from(*y) * 219 + 127) / 255) as u8;
    }
    for (out, c) in limited.iter_mut().zip(full).skip(luma) {
        // 128 + (c - 128) * 224 / 255, rounded, in unsigned numbers: 4016 is 16 * 251.
        *out = ((u32::from(*c) * 224 + 128 * 31 + 127) / 255) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_becomes_limited_and_grey_stays_grey() {
        let full = [0, 128, 255, 0, 128, 255];
        let mut limited = [0; 6];
        limit_range(&full, 3, &mut limited);
        assert_eq!(limited, [16, 126, 235, 16, 128, 240]);
    }

    #[test]
    fn a_reader_of_mp4_finds_every_frame() {
        let path = std::env::temp_dir().join(format!("gamegend-record-{}.mp4", std::process::id()));
        for frames in [1u64, 61] {
            let file = File::create(&path).expect("a temporary file");
            let mut recorder = Recorder::new(file, 70, 66, 24).expect("even size");
            let mut frame = vec![128; i420_bytes(70, 66)];
            for tick in 0..frames {
                frame[..70 * 66].fill((tick * 3) as u8);
                recorder.add(&frame).expect("a frame of the right size");
            }
            assert_eq!(recorder.frames, frames);
            let bytes = recorder.finish().expect("disk");
            let content = std::fs::read(&path).expect("just written");
            assert_eq!(content.len() as u64, bytes);
            let mp4 = re_mp4::Mp4::read_bytes(&content).expect("an MP4");
            let track = mp4.tracks().values().next().expect("one track");
            assert_eq!((u64::from(track.width), u64::from(track.height)), (70, 66));
            assert_eq!(track.samples.len() as u64, frames);
            if frames > 1 {
                let keys = track.samples.iter().filter(|s| s.is_sync).count();
                assert_eq!(keys, 2, "a player can start every {KEY_FRAME_SECONDS} s");
                let last = track.samples.last().expect("not empty");
                assert_eq!(last.composition_timestamp * 24, 60 * track.timescale as i64);
            }
        }
        let _ = std::fs::remove_file(&path);
    }
}
