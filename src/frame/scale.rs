//! Pictures at another size. Every pixel is the mean of the area that it covers, so nothing flickers when a large
//! picture becomes small; a larger one is blended between its neighbours.

/// For each pixel along one side of a picture, those of another picture that it covers, with weights that sum to 1.
#[derive(Clone, Debug)]
pub struct Side {
    inputs: usize,
    parts: Vec<Vec<(usize, f32)>>,
}

impl Side {
    /// `count` pixels from `inputs` ones: pixel `i` begins at `offset + i * scale`; one narrower than an input blends
    /// its two neighbours.
    pub fn new(count: u32, offset: f64, scale: f64, inputs: u32) -> Side {
        let last = f64::from(inputs.saturating_sub(1));
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
        Side { inputs: inputs as usize, parts: (0..count).map(one).collect() }
    }

    /// The whole of a side.
    fn whole(count: u32, inputs: u32) -> Side {
        Side::new(count, 0.0, f64::from(inputs) / f64::from(count.max(1)), inputs)
    }
}

/// A picture of `C` bytes a pixel, rows from the top, at another size.
///
/// Panics if `pixels` has another length than the sides' inputs say.
pub fn resample<const C: usize>(pixels: &[u8], columns: &Side, rows: &Side) -> Vec<u8> {
    assert_eq!(pixels.len(), columns.inputs * rows.inputs * C, "a picture of the size that its sides were made for");
    let row_values = columns.parts.len() * C;
    let mut wide = vec![0f32; rows.inputs * row_values];
    for (line, out) in pixels.chunks_exact(columns.inputs * C).zip(wide.chunks_exact_mut(row_values)) {
        for (out, column) in out.chunks_exact_mut(C).zip(&columns.parts) {
            for (i, weight) in column {
                for (o, v) in out.iter_mut().zip(&line[C * i..]) {
                    *o += weight * f32::from(*v);
                }
            }
        }
    }
    let mut out = Vec::with_capacity(rows.parts.len() * row_values);
    for row in &rows.parts {
        let mut sum = vec![0f32; row_values];
        for (y, weight) in row {
            for (s, v) in sum.iter_mut().zip(&wide[y * row_values..][..row_values]) {
                *s += weight * v;
            }
        }
        out.extend(sum.iter().map(|v| (v + 0.5) as u8));
    }
    out
}

/// An RGB picture of `from` (width, height) pixels at size `to`.
///
/// Panics if `rgb` is no picture of size `from`.
pub fn rgb(rgb: &[u8], from: (u32, u32), to: (u32, u32)) -> Vec<u8> {
    if from == to {
        return rgb.to_vec();
    }
    resample::<3>(rgb, &Side::whole(to.0, from.0), &Side::whole(to.1, from.1))
}

/// An I420 picture of `from` (width, height) pixels at size `to`; all sides are even.
///
/// Panics if `picture` is no picture of size `from`.
pub fn i420(picture: &[u8], from: (u32, u32), to: (u32, u32)) -> Vec<u8> {
    if from == to {
        return picture.to_vec();
    }
    let (luma, chroma) = picture.split_at(from.0 as usize * from.1 as usize);
    let mut out = resample::<1>(luma, &Side::whole(to.0, from.0), &Side::whole(to.1, from.1));
    let (columns, rows) = (Side::whole(to.0 / 2, from.0 / 2), Side::whole(to.1 / 2, from.1 / 2));
    for plane in chroma.chunks_exact((chroma.len() / 2).max(1)) {
        out.extend(resample::<1>(plane, &columns, &rows));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::i420_bytes;

    #[test]
    fn flat_colours_stay_and_the_same_size_changes_nothing() {
        let flat = [10, 200, 30].repeat(100 * 40);
        for to in [(64, 64), (20, 40), (200, 300)] {
            let scaled = rgb(&flat, (100, 40), to);
            assert_eq!(scaled, [10, 200, 30].repeat((to.0 * to.1) as usize), "{to:?}");
        }
        let noise: Vec<u8> = (0..100 * 40 * 3).map(|i| (i * 7 % 251) as u8).collect();
        assert_eq!(rgb(&noise, (100, 40), (100, 40)), noise);
    }

    #[test]
    fn planes_are_scaled_each_by_itself() {
        let (from, to) = ((64, 48), (128, 72));
        let mut picture = vec![50; 64 * 48];
        picture.extend(vec![90; 32 * 24]);
        picture.extend(vec![160; 32 * 24]);
        let scaled = i420(&picture, from, to);
        assert_eq!(scaled.len(), i420_bytes(to.0, to.1));
        assert!(scaled[..128 * 72].iter().all(|v| *v == 50));
        assert!(scaled[128 * 72..][..64 * 36].iter().all(|v| *v == 90));
        assert!(scaled[128 * 72 + 64 * 36..].iter().all(|v| *v == 160));
        assert_eq!(i420(&picture, from, from), picture);
    }

    #[test]
    fn a_gradient_keeps_its_direction_and_its_mean() {
        let from: Vec<u8> = (0..64u32 * 4).flat_map(|i| [(i % 64 * 4) as u8; 3]).collect();
        let to = rgb(&from, (64, 4), (16, 2));
        let line: Vec<u8> = to.iter().take(16 * 3).step_by(3).copied().collect();
        assert!(line.windows(2).all(|pair| pair[0] < pair[1]), "{line:?}");
        let mean = |values: &[u8]| values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
        assert!((mean(&from) - mean(&to)).abs() < 2.0);
    }
}
