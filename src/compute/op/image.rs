//! Space and channels exchanged, and the last step from features to a picture.

use super::super::ComputeError;
use super::super::plan::Tensors;
use super::super::tensor::{DType, Tensor, View};
use super::{Operation, apart, matrix, pictures, require};

/// Space to channel: `y[(i, j), c * r * r + di * r + dj] = x[(i * r + di, j * r + dj), c]`, the channel order of
/// PyTorch's `pixel_unshuffle`. Pictures one below the other are one tall picture.
///
/// Shapes: `x` [height * width, C]; `y` [(height / r) * (width / r), C * r * r]; r divides both sides.
#[derive(Clone, Debug)]
pub struct Unshuffle {
    pub x: View,
    pub height: usize,
    pub width: usize,
    pub r: usize,
    pub y: View,
}

impl Operation for Unshuffle {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "unshuffle";
        let (h, w, r) = (self.height, self.width, self.r);
        require(r > 0 && h.is_multiple_of(r) && w.is_multiple_of(r), OP, || format!("{w}x{h} by {r}"))?;
        matrix(t, OP, "x", &self.x, h * w, self.x.cols)?;
        matrix(t, OP, "y", &self.y, h / r * (w / r), self.x.cols * r * r)?;
        apart(OP, &self.y, &[self.x], None)
    }

    fn reads(&self) -> Vec<View> {
        vec![self.x]
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }
}

/// Mean over groups of consecutive channels, the shortcut of a down-sampling block: `y[m, b] = mean_j x[m, b * g + j]`.
///
/// Shapes: `x` [M, B * g]; `y` [M, B].
#[derive(Clone, Debug)]
pub struct GroupMean {
    pub x: View,
    pub y: View,
}

impl Operation for GroupMean {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "group_mean";
        let (x, y) = (&self.x, &self.y);
        matrix(t, OP, "x", x, x.rows, x.cols)?;
        matrix(t, OP, "y", y, x.rows, y.cols)?;
        require(x.cols.is_multiple_of(y.cols), OP, || format!("{} channels into {}", x.cols, y.cols))?;
        apart(OP, y, &[*x], None)
    }

    fn reads(&self) -> Vec<View> {
        vec![self.x]
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        (self.x.rows * self.x.cols) as u64
    }
}

/// Channel to space, the inverse of [`Unshuffle`], with an optional duplicating shortcut added first:
/// `y[(i * r + di, j * r + dj), c] = x[(i, j), k] + shortcut[(i, j), k / rep]` where `k = c * r * r + di * r + dj` and
/// `rep = ceil(C * r * r / A)`.
///
/// Shapes: `x` [height * width, C * r * r]; `shortcut` [height * width, A]; `y` [(height * r) * (width * r), C].
#[derive(Clone, Debug)]
pub struct Shuffle {
    pub x: View,
    pub shortcut: Option<View>,
    pub height: usize,
    pub width: usize,
    pub r: usize,
    pub y: View,
}

impl Shuffle {
    /// How many consecutive channels of `x` share one channel of the shortcut.
    pub fn repeat(&self) -> usize {
        self.shortcut.map_or(1, |s| self.x.cols.div_ceil(s.cols))
    }
}

impl Operation for Shuffle {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "shuffle";
        let (p, r) = (self.height * self.width, self.r);
        require(r > 0 && self.x.cols.is_multiple_of(r * r), OP, || format!("{} channels by {r}", self.x.cols))?;
        matrix(t, OP, "x", &self.x, p, self.x.cols)?;
        matrix(t, OP, "y", &self.y, p * r * r, self.x.cols / (r * r))?;
        if let Some(s) = &self.shortcut {
            matrix(t, OP, "shortcut", s, p, s.cols)?;
        }
        apart(OP, &self.y, &self.reads(), None)
    }

    fn reads(&self) -> Vec<View> {
        [Some(self.x), self.shortcut].into_iter().flatten().collect()
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }
}

/// Features to a planar 4:2:0 picture: channel to space by r, clamp to [-1, 1], RGB to full-range BT.601 (JPEG) luma
/// and chroma, chroma averaged over 2x2 pixels, rounded to the nearest byte, cropped to the wanted size.
///
/// `x` [P * height * width, 3 * r * r] with channel `c * r * r + di * r + dj` for colour c (red, green, blue): P
/// pictures, one below the other. `y` is a u8 tensor of P times `out_width * out_height * 3 / 2` bytes: of each picture
/// the Y plane, then Cb, then Cr, rows without padding.
///
/// Units: `height` and `width` count blocks of r x r pixels; `out_width` and `out_height` are pixels, even, at most r
/// times the blocks.
///
/// Y = 0.299 R + 0.587 G + 0.114 B; Cb = 128 + 0.564 (B - Y); Cr = 128 + 0.713 (R - Y) in units of one byte step, with
/// R, G, B = (x + 1) * 127.5 and Y, Cb, Cr clamped to 0..=255.
#[derive(Clone, Debug)]
pub struct ToI420 {
    pub x: View,
    pub height: usize,
    pub width: usize,
    pub r: usize,
    pub out_height: usize,
    pub out_width: usize,
    pub y: Tensor,
    /// `y` as one row, which is what this operation writes to.
    pub whole: View,
}

impl ToI420 {
    /// Bytes of one picture.
    pub fn picture_bytes(&self) -> usize {
        self.out_width * self.out_height * 3 / 2
    }
}

impl Operation for ToI420 {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "to_i420";
        let (w, h, r) = (self.out_width, self.out_height, self.r);
        matrix(t, OP, "x", &self.x, self.x.rows, 3 * r * r)?;
        let count = pictures(OP, self.x.rows, self.height * self.width)?;
        require(
            w.is_multiple_of(2) && h.is_multiple_of(2) && w <= r * self.width && h <= r * self.height && w * h > 0,
            OP,
            || format!("{w}x{h} from {}x{} blocks of {r}", self.width, self.height),
        )?;
        let n = count * self.picture_bytes();
        require(t.dtype(self.y) == DType::U8 && t.shape(self.y).elements() == n, OP, || {
            format!("y must be {n} bytes")
        })?;
        require(self.whole.tensor == self.y && self.whole.end() == n, OP, || "whole is not all of y".to_string())
    }

    fn reads(&self) -> Vec<View> {
        vec![self.x]
    }

    fn writes(&self) -> Vec<View> {
        vec![self.whole]
    }

    fn flops(&self) -> u64 {
        12 * (self.whole.cols * 2 / 3) as u64
    }
}
