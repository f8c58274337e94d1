//! Element-wise operations.

use super::super::op::{Add, Axpy, Copy, GatedGelu, Map};
use super::super::tensor::View;
use super::{Values, act, gelu, group};

/// Sets every element of `y` to what `f` makes of the values, the row and the column.
fn each(y: &View, values: &mut Values, f: impl Fn(&Values, usize, usize) -> f32) {
    for row in 0..y.rows {
        for col in 0..y.cols {
            let value = f(values, row, col);
            values.set(y, row, col, value);
        }
    }
}

pub fn copy(op: &Copy, values: &mut Values) {
    each(&op.y, values, |v, row, col| v.at(&op.x, row, col));
}

pub fn add(op: &Add, values: &mut Values) {
    each(&op.y, values, |v, row, col| v.at(&op.a, row, col) + v.at(&op.b, group(&op.b, row, op.a.rows), col));
}

pub fn axpy(op: &Axpy, values: &mut Values) {
    each(&op.y, values, |v, row, col| op.alpha * v.at(&op.x, row, col) + op.beta * v.at(&op.v, row, col));
}

pub fn gated_gelu(op: &GatedGelu, values: &mut Values) {
    each(&op.y, values, |v, row, col| gelu(v.at(&op.a, row, col)) * v.at(&op.b, row, col));
}

pub fn map(op: &Map, values: &mut Values) {
    each(&op.y, values, |v, row, col| act(op.act, v.at(&op.x, row, col)));
}
