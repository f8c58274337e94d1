//! Space, channels and pictures.

use super::super::op::{GroupMean, Shuffle, ToI420, Unshuffle};
use super::Values;

pub fn unshuffle(op: &Unshuffle, values: &mut Values) {
    let (r, wide) = (op.r, op.width / op.r);
    for i in 0..op.height {
        for j in 0..op.width {
            for c in 0..op.x.cols {
                let value = values.at(&op.x, i * op.width + j, c);
                let (row, k) = (i / r * wide + j / r, c * r * r + i % r * r + j % r);
                values.set(&op.y, row, k, value);
            }
        }
    }
}

pub fn group_mean(op: &GroupMean, values: &mut Values) {
    let size = op.x.cols / op.y.cols;
    for row in 0..op.x.rows {
        for b in 0..op.y.cols {
            let sum: f32 = values.row(&op.x, row)[b * size..(b + 1) * size].iter().sum();
            values.set(&op.y, row, b, sum / size as f32);
        }
    }
}

pub fn shuffle(op: &Shuffle, values: &mut Values) {
    let (r, wide) = (op.r, op.width * op.r);
    for i in 0..op.height * r {
        for j in 0..wide {
            for c in 0..op.y.cols {
                let (row, k) = (i / r * op.width + j / r, c * r * r + i % r * r + j % r);
                let mut value = values.at(&op.x, row, k);
                if let Some(s) = &op.shortcut {
                    value += values.at(s, row, k / op.repeat());
                }
                values.set(&op.y, i * wide + j, c, value);
            }
        }
    }
}

/// Red, green and blue of a pixel in steps of one byte.
fn rgb(op: &ToI420, values: &Values, picture: usize, i: usize, j: usize) -> [f32; 3] {
    let (r, first) = (op.r, picture * op.height * op.width);
    [0, 1, 2].map(|c| {
        let x = values.at(&op.x, first + i / r * op.width + j / r, c * r * r + i % r * r + j % r);
        (x.clamp(-1.0, 1.0) + 1.0) * 127.5
    })
}

fn luma([r, g, b]: [f32; 3]) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

pub fn to_i420(op: &ToI420, values: &mut Values) {
    (0..op.x.rows / (op.height * op.width)).for_each(|picture| planes(op, values, picture));
}

fn planes(op: &ToI420, values: &mut Values, picture: usize) {
    let start = picture * op.picture_bytes();
    let (h, w) = (op.out_height, op.out_width);
    let byte = |x: f32| (x + 0.5).floor().clamp(0.0, 255.0);
    for i in 0..h {
        for j in 0..w {
            let y = luma(rgb(op, values, picture, i, j));
            values.set(&op.whole, 0, start + i * w + j, byte(y));
        }
    }
    for i in 0..h / 2 {
        for j in 0..w / 2 {
            let (mut cb, mut cr) = (0.0, 0.0);
            for (di, dj) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let pixel = rgb(op, values, picture, 2 * i + di, 2 * j + dj);
                cb += 128.0 + 0.564 * (pixel[2] - luma(pixel));
                cr += 128.0 + 0.713 * (pixel[0] - luma(pixel));
            }
            let at = start + h * w + i * (w / 2) + j;
            values.set(&op.whole, 0, at, byte(cb / 4.0));
            values.set(&op.whole, 0, at + h * w / 4, byte(cr / 4.0));
        }
    }
}
