//! A clip or a sequence of pictures, picture by picture, as RGB.
//!
//! Every number of a file is checked before anything is allocated for it: a few bytes of a picture file can claim
//! billions of pixels, and a few bytes of a clip millions of frames.

use openh264::OpenH264API;
use openh264::decoder::{Decoder, DecoderConfig};
use openh264::formats::YUVSource;
use re_mp4::{Mp4, StsdBoxContent, Track, TrackKind};

use super::DecodeError;
use crate::proto::decode::{Media, Part};
use crate::proto::limits;

/// The widest and the highest picture that is read: what a session may have.
const WIDTH_MAX: u32 = *limits::WIDTH_PX.end();
const HEIGHT_MAX: u32 = *limits::HEIGHT_PX.end();
/// The smallest: below it nothing can be recognised.
const SIDE_MIN: u32 = 16;
/// What a decoder of PNG may allocate: one picture with four 16-bit channels, and as much again.
const PNG_BYTES_MAX: usize = 2 * 8 * WIDTH_MAX as usize * HEIGHT_MAX as usize;
/// Bytes of parameter sets and sample sizes that announce a start of a unit.
const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// RGB, three bytes a pixel, rows from the top.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub width: u32,
    pub height: u32,
    pub rgb: Vec<u8>,
}

/// The files of an upload.
pub struct Clip<'a> {
    files: Vec<(Media, &'a [u8])>,
    fps: f64,
    frames: u32,
}

/// Takes a picture; answers whether it wants another one.
pub type Taker<'a> = dyn FnMut(Picture) -> Result<bool, DecodeError> + 'a;

fn bad(what: impl Into<String>) -> DecodeError {
    DecodeError::File(what.into())
}

fn check_size(width: u32, height: u32) -> Result<(), DecodeError> {
    if (SIDE_MIN..=WIDTH_MAX).contains(&width) && (SIDE_MIN..=HEIGHT_MAX).contains(&height) {
        return Ok(());
    }
    let allowed = format!("{SIDE_MIN}x{SIDE_MIN} to {WIDTH_MAX}x{HEIGHT_MAX}");
    Err(bad(format!("a picture of {width}x{height} pixels; allowed: {allowed}")))
}

impl<'a> Clip<'a> {
    /// Looks at the files. Errors: they are not one clip, nor pictures of one size.
    pub fn open(bytes: &'a [u8], parts: &[Part]) -> Result<Clip<'a>, DecodeError> {
        let mut files = Vec::new();
        for part in parts {
            let range = usize::try_from(part.at).ok().zip(usize::try_from(part.at.saturating_add(part.bytes)).ok());
            let file = range.and_then(|(from, to)| bytes.get(from..to)).ok_or_else(|| bad("a file is cut off"))?;
            files.push((part.media, file));
        }
        let clips = files.iter().filter(|(media, _)| *media == Media::Mp4).count();
        if files.is_empty() || clips > 1 || (clips == 1 && files.len() > 1) {
            return Err(bad("an upload is one clip, or pictures"));
        }
        let frames = files.len() as u32;
        let mut clip = Clip { files, fps: 0.0, frames };
        if clips == 1 {
            let mp4 = clip.mp4()?;
            let track = video(&mp4)?;
            clip.fps = rate(track);
            clip.frames = u32::try_from(track.samples.len()).unwrap_or(u32::MAX);
        }
        Ok(clip)
    }

    /// Frames a second, 0 for a sequence of pictures.
    pub fn fps(&self) -> f64 {
        self.fps
    }

    /// Number of pictures, as the files say.
    pub fn count(&self) -> u32 {
        self.frames
    }

    /// Gives the pictures from `first` on to `take`, in order, until it has enough or there are none.
    ///
    /// Errors: what is wrong with a file; pictures that differ in size.
    pub fn pictures(&self, first: u32, take: &mut Taker<'_>) -> Result<(), DecodeError> {
        let (mut size, mut count) = (None, 0);
        let mut checked = |picture: Picture| {
            let this = (picture.width, picture.height);
            let first = *size.get_or_insert(this);
            if first != this {
                return Err(bad(format!("pictures of {}x{} and of {}x{} pixels", first.0, first.1, this.0, this.1)));
            }
            count += 1;
            if count > limits::PICTURES_MAX {
                return Ok(false);
            }
            take(picture)
        };
        if let [(Media::Mp4, bytes)] = self.files[..] {
            return self.decode(bytes, first as usize, &mut checked);
        }
        for (media, bytes) in self.files.iter().skip(first as usize) {
            let picture = if *media == Media::Png { png(bytes) } else { jpeg(bytes) }?;
            if !checked(picture)? {
                break;
            }
        }
        Ok(())
    }

    fn mp4(&self) -> Result<Mp4, DecodeError> {
        Mp4::read_bytes(self.files[0].1).map_err(|e| bad(format!("not an MP4 that can be read: {e}")))
    }

    fn decode(&self, bytes: &[u8], first: usize, take: &mut Taker<'_>) -> Result<(), DecodeError> {
        let mp4 = self.mp4()?;
        let track = video(&mp4)?;
        let StsdBoxContent::Avc1(avc) = &track.trak(&mp4).mdia.minf.stbl.stsd.contents else {
            return Err(bad("the clip is not H.264"));
        };
        let config = &avc.avcc.contents;
        let length_bytes = usize::from(config.length_size_minus_one & 3) + 1;
        let mut decoder = Decoder::with_api_config(OpenH264API::from_source(), DecoderConfig::new())
            .map_err(|e| bad(format!("no decoder: {e}")))?;
        let mut unit = Vec::new();
        for set in config.sequence_parameter_sets.iter().chain(&config.picture_parameter_sets) {
            unit.extend_from_slice(&START_CODE);
            unit.extend_from_slice(&set.bytes);
        }
        // Decoding can begin at a key frame; what lies between it and the first wanted picture is not given.
        let upto = &track.samples[..track.samples.len().min(first.saturating_add(1))];
        let begin = upto.iter().rposition(|s| s.is_sync).unwrap_or(0);
        let mut skip = first - begin.min(first);
        let mut give = |picture: Picture| match skip {
            0 => take(picture),
            _ => {
                skip -= 1;
                Ok(true)
            }
        };
        for sample in &track.samples[begin..] {
            let from = usize::try_from(sample.offset).unwrap_or(usize::MAX);
            let to = from.saturating_add(usize::try_from(sample.size).unwrap_or(usize::MAX));
            let sample = bytes.get(from..to).ok_or_else(|| bad("a frame lies outside the file"))?;
            append_units(sample, length_bytes, &mut unit)?;
            let decoded = decoder.decode(&unit).map_err(|e| bad(format!("a frame cannot be decoded: {e}")))?;
            unit.clear();
            if let Some(yuv) = decoded
                && !give(rgb(&yuv)?)?
            {
                return Ok(());
            }
        }
        for yuv in decoder.flush_remaining().map_err(|e| bad(format!("a frame cannot be decoded: {e}")))? {
            if !give(rgb(&yuv)?)? {
                break;
            }
        }
        Ok(())
    }
}

fn video(mp4: &Mp4) -> Result<&Track, DecodeError> {
    let track = mp4.tracks().values().find(|t| t.kind == Some(TrackKind::Video));
    let track = track.ok_or_else(|| bad("the file has no video"))?;
    check_size(track.width.into(), track.height.into())?;
    if track.samples.is_empty() {
        return Err(bad("the video has no frame"));
    }
    Ok(track)
}

/// Frames a second of a track: the mean over all of it, between 1 and 240.
fn rate(track: &Track) -> f64 {
    let units: u64 = track.samples.iter().map(|s| s.duration).fold(0, u64::saturating_add);
    let seconds = units as f64 / track.timescale.max(1) as f64;
    if seconds > 0.0 { (track.samples.len() as f64 / seconds).clamp(1.0, 240.0) } else { 24.0 }
}

/// Units with their length in front become units with start codes.
fn append_units(mut sample: &[u8], length_bytes: usize, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    while !sample.is_empty() {
        let (length, rest) = sample.split_at_checked(length_bytes).ok_or_else(|| bad("a frame is cut off"))?;
        let length = length.iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
        let (unit, rest) = rest.split_at_checked(length).ok_or_else(|| bad("a frame is cut off"))?;
        out.extend_from_slice(&START_CODE);
        out.extend_from_slice(unit);
        sample = rest;
    }
    Ok(())
}

fn rgb(yuv: &openh264::decoder::DecodedYUV<'_>) -> Result<Picture, DecodeError> {
    let (width, height) = yuv.dimensions();
    let size = u32::try_from(width).ok().zip(u32::try_from(height).ok());
    let (width, height) = size.ok_or_else(|| bad("a frame without a size"))?;
    check_size(width, height)?;
    let mut rgb = vec![0; width as usize * height as usize * 3];
    yuv.write_rgb8(&mut rgb);
    Ok(Picture { width, height, rgb })
}

fn png(bytes: &[u8]) -> Result<Picture, DecodeError> {
    let unreadable = |e: png::DecodingError| bad(format!("not a PNG that can be read: {e}"));
    let limits = png::Limits { bytes: PNG_BYTES_MAX };
    let mut decoder = png::Decoder::new_with_limits(std::io::Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let info = decoder.read_header_info().map_err(unreadable)?;
    let (width, height) = (info.width, info.height);
    check_size(width, height)?;
    let mut reader = decoder.read_info().map_err(unreadable)?;
    let room = reader.output_buffer_size().ok_or_else(|| bad("a PNG that is too large"))?;
    let mut pixels = vec![0; room];
    let frame = reader.next_frame(&mut pixels).map_err(unreadable)?;
    let channels = frame.color_type.samples();
    let rgb = pixels[..frame.buffer_size()].chunks_exact(channels);
    // Transparent pixels show what is behind them, which is nothing.
    let over = |c: u8, alpha: u8| (u16::from(c) * u16::from(alpha) / 255) as u8;
    let rgb = rgb.flat_map(|p| match *p {
        [grey] => [grey; 3],
        [grey, alpha] => [over(grey, alpha); 3],
        [r, g, b] => [r, g, b],
        [r, g, b, alpha, ..] => [r, g, b].map(|c| over(c, alpha)),
        [] => [0; 3],
    });
    Ok(Picture { width, height, rgb: rgb.collect() })
}

fn jpeg(bytes: &[u8]) -> Result<Picture, DecodeError> {
    let unreadable = |e: turbojpeg::Error| bad(format!("not a JPEG that can be read: {e}"));
    let header = turbojpeg::read_header(bytes).map_err(unreadable)?;
    let size = u32::try_from(header.width).ok().zip(u32::try_from(header.height).ok());
    let (width, height) = size.ok_or_else(|| bad("a JPEG without a size"))?;
    check_size(width, height)?;
    let image = turbojpeg::decompress(bytes, turbojpeg::PixelFormat::RGB).map_err(unreadable)?;
    let row = width as usize * 3;
    let rgb = image.pixels.chunks(image.pitch).take(height as usize).flat_map(|line| line[..row].to_vec()).collect();
    Ok(Picture { width, height, rgb })
}
