//! Convolution.

use super::super::op::Conv3x3;
use super::linear::dot;
use super::{Values, act};

/// `y = res + act(conv(x, w) + bias)`, zeros beyond the edges.
pub fn conv3x3(op: &Conv3x3, values: &mut Values) {
    let (cin, cout) = (op.x.cols, op.y.cols);
    for line in 0..op.x.rows / op.width {
        // The line in its picture.
        let i = line % op.height;
        for j in 0..op.width {
            for col in 0..cout {
                let mut sum = 0.0;
                for di in 0..3 {
                    for dj in 0..3 {
                        // Coordinates in a picture with a border of one pixel, which holds zeros.
                        let (pi, pj) = (i + di, j + dj);
                        if (1..=op.height).contains(&pi) && (1..=op.width).contains(&pj) {
                            let x = values.row(&op.x, (line + di - 1) * op.width + (pj - 1));
                            let w = ((col * 3 + di) * 3 + dj) * cin;
                            sum += dot(x, &values.all(op.w)[w..w + cin]);
                        }
                    }
                }
                if let Some(bias) = op.bias {
                    sum += values.all(bias)[col];
                }
                let row = line * op.width + j;
                let mut y = act(op.act, sum);
                if let Some(res) = &op.res {
                    y += values.at(res, row, col);
                }
                values.set(&op.y, row, col, y);
            }
        }
    }
}
