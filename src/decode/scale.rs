//! Pictures at another size and rate.

use super::clip::Picture;
use crate::frame::scale::{Side, resample};

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
    let columns = Side::new(width, left, scale, picture.width);
    let rows = Side::new(height, top, scale, picture.height);
    let rgb = resample::<3>(&picture.rgb, &columns, &rows);
    Picture { width, height, rgb }
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
