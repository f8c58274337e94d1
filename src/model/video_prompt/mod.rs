//! Video prompts taken from pictures: edges, motion of blocks, and poses of the player's figure (GameGen-X, arXiv
//! 2411.00769, section 3.3). Pictures come in as RGB and control pictures go out as RGB of the same size; the
//! autoencoder encodes them, see [`Engine::set_video_prompt`](super::Engine::set_video_prompt).
//!
//! All arithmetic on pixels is of whole numbers and gives the bytes of `training/gamegen/video_prompts.py`. Pictures
//! repeat the pixel at their border outside of it.

mod canny;
mod motion;
mod pose;

use super::ModelError;
use super::judges::Judges;
pub use canny::canny;
pub use motion::{BLOCK, Field, motion_field, motion_picture, motion_vectors};
pub use pose::{Joint, pose_picture};

/// Kinds of video prompts, as `instructnet/config.json` names them.
pub const CANNY: &str = "canny";
pub const MOTION_VECTORS: &str = "motion_vectors";
pub const POSE: &str = "pose";
pub const KINDS: [&str; 3] = [CANNY, MOTION_VECTORS, POSE];

/// A picture: red, green and blue bytes, rows from top to bottom without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// Errors: bytes that are not those of a picture of this size.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Picture, ModelError> {
        let wanted = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(3));
        if width == 0 || height == 0 || wanted != Some(rgb.len()) {
            let found = format!("{} bytes for {width}x{height} pixels", rgb.len());
            let allowed = "3 bytes a pixel and 1 pixel or more".to_string();
            return Err(ModelError::Request { field: "picture", found, allowed });
        }
        Ok(Picture { width, height, rgb })
    }

    /// The picture of a frame: I420 in full-range BT.601 (JPEG), sides even.
    ///
    /// Errors: bytes that are not those of such a frame.
    pub fn from_i420(width: usize, height: usize, frame: &[u8]) -> Result<Picture, ModelError> {
        if !width.is_multiple_of(2) || !height.is_multiple_of(2) || frame.len() != width * height * 3 / 2 {
            let found = format!("{} bytes for {width}x{height} pixels", frame.len());
            let allowed = "even sides and 3 bytes for 2 pixels".to_string();
            return Err(ModelError::Request { field: "frame", found, allowed });
        }
        let (luma, chroma) = frame.split_at(width * height);
        let (blue, red) = chroma.split_at(width * height / 4);
        let pixel = |i: usize| {
            let at = i / width / 2 * (width / 2) + i % width / 2;
            let [y, cb, cr] = [luma[i], blue[at], red[at]].map(f32::from);
            // The inverse of the weights with which the decoder's last kernel makes the planes.
            let (b, r) = (y + (cb - 128.0) / 0.564, y + (cr - 128.0) / 0.713);
            [r, (y - 0.299 * r - 0.114 * b) / 0.587, b].map(|v| (v + 0.5) as u8)
        };
        Picture::new(width, height, (0..width * height).flat_map(pixel).collect())
    }

    fn black(width: usize, height: usize) -> Picture {
        Picture { width, height, rgb: vec![0; width * height * 3] }
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn height(&self) -> usize {
        self.height
    }

    /// Bytes of all pixels.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    fn set(&mut self, x: usize, y: usize, color: [u8; 3]) {
        self.rgb[(y * self.width + x) * 3..][..3].copy_from_slice(&color);
    }

    /// Brightness: (77 R + 150 G + 29 B + 128) / 256, rounded down.
    fn grey(&self) -> Plane {
        let weigh = |p: &[u8]| (77 * i32::from(p[0]) + 150 * i32::from(p[1]) + 29 * i32::from(p[2]) + 128) / 256;
        Plane { width: self.width, height: self.height, values: self.rgb.chunks_exact(3).map(weigh).collect() }
    }
}

/// Control pictures of one of [`KINDS`] from frames that follow one another. Poses need the pose judge.
///
/// Errors: another kind, frames of different sizes, no pose judge.
pub fn control_pictures(
    kind: &str,
    frames: &[Picture],
    judges: Option<&mut Judges>,
) -> Result<Vec<Picture>, ModelError> {
    match (kind, judges) {
        (CANNY, _) => Ok(frames.iter().map(canny).collect()),
        (MOTION_VECTORS, _) => motion_vectors(frames),
        (POSE, Some(judges)) => frames.iter().map(|frame| judges.pose(frame)).collect(),
        (POSE, None) => {
            let allowed = "canny or motion_vectors: there is no pose judge".to_string();
            Err(ModelError::Request { field: "video_prompt", found: format!("{kind:?}"), allowed })
        }
        _ => {
            let allowed = format!("one of {KINDS:?}");
            Err(ModelError::Request { field: "video_prompt", found: format!("{kind:?}"), allowed })
        }
    }
}

/// Whole numbers at the places of a picture.
#[derive(Clone)]
struct Plane {
    width: usize,
    height: usize,
    values: Vec<i32>,
}

impl Plane {
    /// The value at a place; outside, that at the border.
    fn at(&self, x: isize, y: isize) -> i32 {
        let x = x.clamp(0, self.width as isize - 1) as usize;
        let y = y.clamp(0, self.height as isize - 1) as usize;
        self.values[y * self.width + x]
    }

    /// A plane of another size or the same, from a function of the place.
    fn make(width: usize, height: usize, value: impl Fn(isize, isize) -> i32) -> Plane {
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (x as isize, y as isize)));
        Plane { width, height, values: places.map(|(x, y)| value(x, y)).collect() }
    }

    /// A plane of the same size.
    fn map(&self, value: impl Fn(isize, isize) -> i32) -> Plane {
        Plane::make(self.width, self.height, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_have_their_size() {
        let error = Picture::new(2, 2, vec![0; 11]).expect_err("a byte is missing");
        assert!(error.to_string().contains("11 bytes for 2x2 pixels"), "{error}");
        assert!(Picture::new(0, 2, Vec::new()).is_err() && Picture::new(usize::MAX, 2, Vec::new()).is_err());
        assert!(Picture::from_i420(3, 2, &[0; 9]).is_err() && Picture::from_i420(2, 2, &[0; 5]).is_err());
    }

    #[test]
    fn frames_keep_their_colours() {
        // Pure red as the last kernel writes it: Y 76, Cb 85, Cr 255 (cut off at 255.5).
        let red = Picture::from_i420(2, 2, &[76, 76, 76, 76, 85, 255]).expect("a frame");
        assert!(red.rgb().chunks(3).all(|p| p[0] >= 252 && p[1] < 3 && p[2] < 3), "{:?}", red.rgb());
        let grey = Picture::from_i420(2, 2, &[9, 80, 160, 250, 128, 128]).expect("a frame");
        assert_eq!(grey.rgb(), [9, 9, 9, 80, 80, 80, 160, 160, 160, 250, 250, 250]);
    }

    #[test]
    fn a_shifted_picture_moves_by_its_shift() {
        let pixel = |x: usize, y: usize| ((x * x * 7 + y * 13 + x * y) % 251) as u8;
        let shifted = |dx: usize| {
            let pixels = (0..64).flat_map(|y| (0..64).map(move |x| (x, y)));
            let rgb = pixels.flat_map(|(x, y)| [pixel((x + 64 - dx) / 4, y / 4); 3]).collect();
            Picture::new(64, 64, rgb).expect("64x64 pixels")
        };
        let field = motion_field(&shifted(0), &shifted(8)).expect("the same size");
        assert_eq!((field.width, field.height), (2, 2));
        // Eight pixels are four of the half-size picture; blocks at the left edge see what came in.
        assert_eq!(field.steps[1], (4, 0));
        assert_eq!(field.steps[3], (4, 0));
        let pictures = motion_vectors(&[shifted(0), shifted(8)]).expect("the same size");
        assert_eq!(pictures[0].rgb()[..3], [128, 128, 128]);
        assert_eq!(pictures[1].rgb()[40 * 3..][..3], [128 + 88, 128, 128]);
        assert!(motion_field(&shifted(0), &Picture::black(2, 2)).is_err());
    }

    #[test]
    fn flat_pictures_have_no_edges_and_steps_have_one() {
        let flat = Picture::new(16, 16, vec![90; 16 * 16 * 3]).expect("16x16 pixels");
        assert!(canny(&flat).rgb().iter().all(|b| *b == 0));
        let half = (0..16 * 16).flat_map(|i| [if i % 16 < 8 { 0 } else { 255 }; 3]).collect();
        let edges = canny(&Picture::new(16, 16, half).expect("16x16 pixels"));
        for row in edges.rgb().chunks(16 * 3) {
            assert_eq!(row.chunks(3).filter(|p| p[0] == 255).count(), 3);
        }
    }
}
