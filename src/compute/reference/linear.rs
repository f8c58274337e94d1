//! Matrix product.

use super::super::op::Linear;
use super::{Values, act, group};

/// The sum of the products of two rows.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = 0.0;
    for (a, b) in a.iter().zip(b) {
        sum += a * b;
    }
    sum
}

/// `y = res + gate * act(x W^T + bias)`.
pub fn linear(op: &Linear, values: &mut Values) {
    let (m, k, n) = (op.x.rows, op.x.cols, op.y.cols);
    for row in 0..m {
        for col in 0..n {
            let mut sum = dot(values.row(&op.x, row), &values.all(op.w)[col * k..(col + 1) * k]);
            if let Some(bias) = op.bias {
                sum += values.all(bias)[col];
            }
            let mut y = act(op.act, sum);
            if let Some(gate) = &op.gate {
                y *= values.at(gate, group(gate, row, m), col);
            }
            if let Some(res) = &op.res {
                y += values.at(res, row, col);
            }
            values.set(&op.y, row, col, y);
        }
    }
}
