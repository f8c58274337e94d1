//! Pictures at another size and rate.

use super::clip::Picture;

/// The part of a picture that [`cover`] shows.
pub struct Cut {
    /// Its upper left corner, in pixels of the picture.
    left: f64,
    top: f64,
    /// Pixels of the picture along a side of one that is shown.
    scale: f64,
}

impl Cut {
    /// The largest part in the middle that has the shape of `width` x `height`.
    pub fn of(picture: &Picture, width: u32, height: u32) -> Cut {
        let (from_w, from_h) = (f64::from(picture.width), f64::from(picture.height));
        let scale = (from_w / f64::from(width)).min(from_h / f64::from(height));
        let (cut_w, cut_h) = (scale * f64::from(width), scale * f64::from(height));
        Cut { left: (from_w - cut_w) / 2.0, top: (from_h - cut_h) / 2.0, scale }
    }

    /// Where a place that is shown lies in the picture.
    pub fn back_x(&self, x: f32) -> f32 {
        (self.left + f64::from(x) * self.scale) as f32
    }

    pub fn back_y(&self, y: f32) -> f32 {
        (self.top + f64::from(y) * self.scale) as f32
    }
}

/// Cuts the middle of a picture so that it has the shape of `width` x `height`, and scales it.
///
/// Every pixel is the mean of the area that it covers, so nothing flickers when a large clip becomes small.
pub fn cover(picture: &Picture, width: u32, height: u32) -> Picture {
    if (picture.width, picture.height) == (width, height) {
        return picture.clone();
    }
    let Cut { left, top, scale } = Cut::of(picture, width, height);
    let columns = weights(width, left, scale, picture.width);
    let rows = weights(height, top, scale, picture.height);
    let mut wide = vec![0f32; picture.height as usize * width as usize * 3];
    for y in 0..picture.height as usize {
        let line = &picture.rgb[y * picture.width as usize * 3..][..picture.width as usize * 3];
        let out = &mut wide[y * width as usize * 3..][..width as usize * 3];
        for (x, column) in columns.iter().enumerate() {
            for (i, weight) in column {
                for c in 0..3 {
                    out[3 * x + c] += weight * f32::from(line[3 * i + c]);
                }
            }
        }
    }
    let row_values = width as usize * 3;
    let mut rgb = Vec::with_capacity(height as usize * row_values);
    for row in &rows {
        let mut sum = vec![0f32; row_values];
        for (y, weight) in row {
            for (s, v) in sum.iter_mut().zip(&wide[y * row_values..][..row_values]) {
                *s += weight * v;
            }
        }
        rgb.extend(sum.iter().map(|v| (v + 0.5) as u8));
    }
    Picture { width, height, rgb }
}

/// For each of `count` outputs the inputs that it covers, with weights that sum to 1. Output `i` begins at
/// `offset + i * scale`; one narrower than an input blends its two neighbours.
fn weights(count: u32, offset: f64, scale: f64, inputs: u32) -> Vec<Vec<(usize, f32)>> {
    let last = f64::from(inputs - 1);
    let radius = scale.max(1.0);
    let one = |i: u32| {
        let centre = offset + (f64::from(i) + 0.5) * scale - 0.5;
        let (first, end) = ((centre - radius).ceil().max(0.0), (centre + radius).floor().min(last));
        let mut parts: Vec<(usize, f32)> = (first as usize..=end as usize)
            .map(|k| (k, (1.0 - (k as f64 - centre).abs() / radius).max(0.0) as f32))
            .collect();
        let sum: f32 = parts.iter().map(|p| p.1).sum();
        if sum <= 0.0 {
            return vec![(centre.clamp(0.0, last).round() as usize, 1.0)];
        }
        parts.iter_mut().for_each(|p| p.1 /= sum);
        parts
    };
    (0..count).map(one).collect()
}

/// How often each picture of a clip is shown at the rate of a session.
pub struct Pace {
    /// Frames of the session for one of the clip.
    ratio: f64,
    seen: u64,
    shown: u64,
}

impl Pace {
    /// `clip_fps` of 0: every picture is one frame.
    pub fn new(clip_fps: f64, session_fps: u32) -> Pace {
        let ratio = if clip_fps > 0.0 { f64::from(session_fps) / clip_fps } else { 1.0 };
        Pace { ratio, seen: 0, shown: 0 }
    }

    /// Frames that the next picture stands for.
    pub fn repeats(&mut self) -> u64 {
        self.seen += 1;
        let due = (self.seen as f64 * self.ratio).round() as u64;
        let now = due.saturating_sub(self.shown);
        self.shown = due;
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_cut_and_flat_colours_stay() {
        let flat = Picture { width: 100, height: 40, rgb: [10, 200, 30].repeat(4000) };
        for (width, height) in [(64, 64), (20, 40), (200, 300), (100, 40)] {
            let scaled = cover(&flat, width, height);
            assert_eq!((scaled.width, scaled.height), (width, height));
            assert!(scaled.rgb.chunks(3).all(|p| p == [10, 200, 30]), "{width}x{height}");
        }
        // Left third red, the rest black: a square cut from the middle has no red.
        let mut rgb = Vec::new();
        for _ in 0..30 {
            rgb.extend([255, 0, 0].repeat(30));
            rgb.extend([0, 0, 0].repeat(60));
        }
        let cut = cover(&Picture { width: 90, height: 30, rgb }, 30, 30);
        assert!(cut.rgb.chunks(3).skip(1).step_by(30).all(|p| p[0] < 140), "at most the seam is red");
        assert!(cut.rgb[3 * 15..3 * 16] == [0, 0, 0]);
    }

    #[test]
    fn a_clip_keeps_its_duration_at_another_rate() {
        let count = |fps: f64, session: u32, pictures: u32| {
            let mut pace = Pace::new(fps, session);
            (0..pictures).map(|_| pace.repeats()).sum::<u64>()
        };
        assert_eq!(count(30.0, 24, 30), 24);
        assert_eq!(count(12.0, 24, 12), 24);
        assert_eq!(count(24.0, 24, 24), 24);
        assert_eq!(count(0.0, 60, 7), 7);
    }
}
