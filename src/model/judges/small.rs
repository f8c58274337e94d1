//! Pictures as judges see them: 160x96, averaged down from larger sizes.

use super::config::{HEIGHT, WIDTH};
use crate::model::ModelError;
use crate::model::video_prompt::Picture;

/// Red, green and blue in -1..1 [96 * 160, 3] of a picture that was averaged down.
#[derive(Clone, Debug, PartialEq)]
pub struct Small {
    pub pixels: Vec<f32>,
    /// Pixels of the picture along a side of one here.
    pub factor: usize,
    /// Rows that repeat the picture's first and last one, on each side.
    pub border: usize,
}

impl Small {
    /// The mean of every square of pixels. A height of 90 after that (16:9) is extended by its first and last row, so
    /// that figures keep their shape.
    ///
    /// Errors: a size that is no multiple of 160x96 or of 160 by an even number of fewer rows.
    pub fn new(picture: &Picture) -> Result<Small, ModelError> {
        let (width, height) = (picture.width(), picture.height());
        let factor = width / WIDTH;
        let rows = height.checked_div(factor).unwrap_or(0);
        let whole = factor > 0 && width == factor * WIDTH && height == factor * rows;
        if !whole || rows == 0 || rows > HEIGHT || !(HEIGHT - rows).is_multiple_of(2) {
            let (found, allowed) =
                (format!("{width}x{height} pixels"), "multiples of 160x96 and of 160x90".to_string());
            return Err(ModelError::Request { field: "picture to judge", found, allowed });
        }
        let border = (HEIGHT - rows) / 2;
        let area = (factor * factor) as f32;
        let mut pixels = Vec::with_capacity(WIDTH * HEIGHT * 3);
        for y in 0..HEIGHT {
            let top = y.saturating_sub(border).min(rows - 1) * factor;
            for x in 0..WIDTH {
                for c in 0..3 {
                    let line = |y: usize| picture.rgb()[(y * width + x * factor) * 3..][..factor * 3].iter();
                    let bytes = (top..top + factor).flat_map(|y| line(y).skip(c).step_by(3));
                    let sum: u32 = bytes.map(|b| u32::from(*b)).sum();
                    pixels.push(sum as f32 / area / 127.5 - 1.0);
                }
            }
        }
        Ok(Small { pixels, factor, border })
    }

    /// The size that is looked at and is nearest to a picture's, by width first.
    pub fn nearest(width: u32, height: u32) -> (u32, u32) {
        let (side, rows_max) = (WIDTH as u32, HEIGHT as u32);
        let factor = ((width + side / 2) / side).max(1);
        let pairs = (u64::from(height) * u64::from(side) / 2 + u64::from(width) / 2) / u64::from(width.max(1));
        let rows = (2 * pairs).clamp(2, u64::from(rows_max)) as u32;
        (side * factor, rows * factor)
    }

    /// Brightness of every pixel by the weights of the colours.
    pub fn luma(&self, weights: [f32; 3]) -> impl Iterator<Item = f32> {
        self.pixels.chunks_exact(3).map(move |p| weights[0] * p[0] + weights[1] * p[1] + weights[2] * p[2])
    }
}
