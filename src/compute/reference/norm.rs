//! Normalisation.

use super::super::op::{HeadNorm, Norm, NormKind};
use super::linear::dot;
use super::{Values, act, group, sigmoid};

/// `x / sqrt(mean(x^2) + eps)`.
fn rms(x: &[f32], eps: f32) -> Vec<f32> {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    x.iter().map(|x| x * scale).collect()
}

pub fn norm(op: &Norm, values: &mut Values) {
    let m = op.x.rows;
    for row in 0..m {
        let r = rms(values.row(&op.x, row), op.eps);
        for (col, r) in r.into_iter().enumerate() {
            let y = match op.kind {
                NormKind::Weight { weight, act: kind } => act(kind, weight.map_or(r, |w| r * values.all(w)[col])),
                NormKind::Modulate { scale, shift } => {
                    let g = group(&scale, row, m);
                    let h = group(&shift, row, m);
                    r * (1.0 + values.at(&scale, g, col)) + values.at(&shift, h, col)
                }
                NormKind::Film { scale, shift, gate } => {
                    let (g, h, i) = (group(&scale, row, m), group(&shift, row, m), group(&gate, row, m));
                    let y = r * (1.0 + values.at(&scale, g, col)) + values.at(&shift, h, col);
                    y * sigmoid(y) * sigmoid(values.at(&gate, i, col) + 1.0)
                }
            };
            values.set(&op.y, row, col, y);
        }
    }
}

pub fn head_norm(op: &HeadNorm, values: &mut Values) {
    let hd = op.x.cols / op.heads;
    for row in 0..op.x.rows {
        for head in 0..op.heads {
            let x = &values.row(&op.x, row)[head * hd..(head + 1) * hd];
            let mut r = rms(x, op.eps);
            for (r, w) in r.iter_mut().zip(values.all(op.weight)) {
                *r *= w;
            }
            for col in 0..hd {
                let mut y = r[col];
                if let Some(rope) = op.rope {
                    let (cos, sin) = (values.all(rope.cos), values.all(rope.sin));
                    let at = row / rope.each % (cos.len() / hd) * hd + col;
                    let turned = if col < hd / 2 { -r[col + hd / 2] } else { r[col - hd / 2] };
                    y = r[col] * cos[at] + turned * sin[at];
                }
                values.set(&op.x, row, head * hd + col, y);
            }
        }
    }
}
