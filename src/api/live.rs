//! Frames as an H.264 stream for viewers that can decode one: a tenth of the bytes of JPEG.
//!
//! Constrained baseline without reordering: every unit can be shown as soon as it is decoded. As in the recorder the
//! quantiser is constant and no frame is left out; a viewer whose network is too slow skips to the next key frame.

use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Complexity, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, MatrixCoefficients,
    RateControlMode, SpsPpsStrategy, UsageType, VuiConfig,
};
use openh264::formats::YUVSlices;

use super::encode::{EncodeError, check_size, i420_bytes};
use super::record::limit_range;

/// Bits a second that the encoder's buffers are laid out for; nothing is held to it.
const BITS_A_SECOND: u32 = 20_000_000;
/// Seconds between key frames that nobody asked for.
const KEY_FRAME_SECONDS: u32 = 10;

/// Encodes one session's frames.
pub struct LiveEncoder {
    encoder: Encoder,
    width: u32,
    height: u32,
    limited: Vec<u8>,
}

impl LiveEncoder {
    /// A stream of `width` x `height` pixels at about `fps` frames a second.
    pub fn new(width: u32, height: u32, fps: u32) -> Result<LiveEncoder, EncodeError> {
        let colours = VuiConfig::bt709().matrix_coefficients(MatrixCoefficients::Smpte170M).full_range(false);
        let config = EncoderConfig::new()
            .usage_type(UsageType::CameraVideoRealTime)
            .complexity(Complexity::Low)
            .rate_control_mode(RateControlMode::Off)
            .bitrate(BitRate::from_bps(BITS_A_SECOND))
            .skip_frames(false)
            .max_frame_rate(FrameRate::from_hz(fps as f32))
            .intra_frame_period(IntraFramePeriod::from_num_frames(KEY_FRAME_SECONDS * fps))
            .sps_pps_strategy(SpsPpsStrategy::ConstantId)
            .background_detection(false)
            .adaptive_quantization(false)
            .scene_change_detect(false)
            .num_threads(1)
            .vui(colours);
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config).map_err(EncodeError::Video)?;
        Ok(LiveEncoder { encoder, width, height, limited: vec![0; i420_bytes(width, height)] })
    }

    /// Appends the unit of one full-range I420 frame to `out`. Answers whether it is a key frame, `None` if the encoder
    /// left the frame out.
    ///
    /// Blocks: some milliseconds.
    pub fn encode(&mut self, i420: &[u8], key: bool, out: &mut Vec<u8>) -> Result<Option<bool>, EncodeError> {
        check_size(i420, self.width, self.height)?;
        let (width, height) = (self.width as usize, self.height as usize);
        limit_range(i420, width * height, &mut self.limited);
        let (y, chroma) = self.limited.split_at(width * height);
        let (u, v) = chroma.split_at(chroma.len() / 2);
        if key {
            self.encoder.force_intra_frame();
        }
        let source = YUVSlices::new((y, u, v), (width, height), (width, width / 2, width / 2));
        let coded = self.encoder.encode(&source).map_err(EncodeError::Video)?;
        let before = out.len();
        coded.write_vec(out);
        let is_key = matches!(coded.frame_type(), FrameType::IDR | FrameType::I);
        Ok((out.len() > before).then_some(is_key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openh264::decoder::Decoder;
    use openh264::formats::YUVSource;

    #[test]
    fn every_unit_decodes_and_a_key_frame_comes_when_it_is_wanted() {
        let (width, height) = (96, 64);
        let mut encoder = LiveEncoder::new(width, height, 24).expect("even size");
        let mut decoder = Decoder::new().expect("a decoder");
        let mut frame = vec![128; i420_bytes(width, height)];
        for tick in 0..30u8 {
            frame[..96 * 64].fill(60 + tick * 4);
            let mut unit = Vec::new();
            let key = encoder.encode(&frame, tick == 20, &mut unit).expect("a frame of the right size");
            assert_eq!(key, Some(tick == 0 || tick == 20), "tick {tick}");
            let picture = decoder.decode(&unit).expect("a sound unit").expect("shown at once");
            assert_eq!(picture.dimensions(), (96, 64));
            let expected = 16 + (i32::from(60 + tick * 4) * 219) / 255;
            let found = i32::from(picture.y()[32 * picture.strides().0 + 48]);
            assert!((found - expected).abs() < 10, "tick {tick}: {found} instead of {expected}");
        }
    }
}
