//! Normalisation, row by row in place.

use super::super::op::{HeadNorm, Norm, NormKind};
use super::math::{LANES, act, dot, each, sigmoid};
use super::memory::{Memory, Operands, Scratch};
use super::pointwise::rows_of;
use super::tasks::Context;

/// Elementary operations for an element of a norm, and of one with an activation.
const NORM_COST: usize = 4;
const FILM_COST: usize = 24;

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

pub fn norm(op: &Norm, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.y.tensor);
    {
        let memory: &Memory<'_> = memory;
        let mut operands = Operands::new(memory, op.y.tensor, &mut scratch.stage);
        let (m, eps) = (op.x.rows, op.eps);
        let x = operands.get_unless(&op.x, &op.y, &buffer);
        match op.kind {
            NormKind::Weight { weight, act: kind } => {
                let weight = weight.map(|w| memory.vector(w));
                let rows = &mut buffer[op.y.offset..op.y.end()];
                cx.each_row(
                    rows,
                    rows_of(&op.y, NORM_COST),
                    x,
                    #[inline(always)]
                    |_, y| {
                        let r = inverse_rms(y, eps);
                        if let Some(weight) = weight {
                            each(y, [weight], |y, [w]| (0..LANES).for_each(|i| y[i] = y[i] * r * w[i]));
                        } else {
                            each(y, [], |y, []| y.iter_mut().for_each(|y| *y *= r));
                        }
                        each(
                            y,
                            [],
                            #[inline(always)]
                            |y, []| act(kind, y),
                        );
                    },
                );
            }
            NormKind::Modulate { scale, shift } => {
                let (scale, shift) = (operands.get(&scale, &buffer), operands.get(&shift, &buffer));
                let rows = &mut buffer[op.y.offset..op.y.end()];
                cx.each_row(
                    rows,
                    rows_of(&op.y, NORM_COST),
                    x,
                    #[inline(always)]
                    |row, y| {
                        let r = inverse_rms(y, eps);
                        let tables = [scale.row(row / (m / scale.rows)), shift.row(row / (m / shift.rows))];
                        each(y, tables, |y, [scale, shift]| {
                            (0..LANES).for_each(|i| y[i] = y[i] * r * (1.0 + scale[i]) + shift[i]);
                        });
                    },
                );
            }
            NormKind::Film { scale, shift, gate } => {
                let [scale, shift, gate] = [scale, shift, gate].map(|v| operands.get(&v, &buffer));
                let rows = &mut buffer[op.y.offset..op.y.end()];
                cx.each_row(
                    rows,
                    rows_of(&op.y, FILM_COST),
                    x,
                    #[inline(always)]
                    |row, y| {
                        let r = inverse_rms(y, eps);
                        let tables = [&scale, &shift, &gate].map(|v| v.row(row / (m / v.rows)));
                        each(
                            y,
                            tables,
                            #[inline(always)]
                            |y, [scale, shift, gate]| {
                                (0..LANES).for_each(|i| {
                                    let x = y[i] * r * (1.0 + scale[i]) + shift[i];
                                    y[i] = x * sigmoid(x) * sigmoid(gate[i] + 1.0);
                                });
                            },
                        );
                    },
                );
            }
        }
    }
    memory.put(op.y.tensor, buffer);
}

pub fn head_norm(op: &HeadNorm, memory: &mut Memory<'_>, cx: &Context<'_>) {
    let mut buffer = memory.take(op.x.tensor);
    let (hd, eps) = (op.x.cols / op.heads, op.eps);
    let weight = memory.vector(op.weight);
    let rope = op.rope.map(|r| (memory.vector(r.cos), memory.vector(r.sin), r.each));
    let rows = &mut buffer[op.x.offset..op.x.end()];
    cx.each_row(
        rows,
        rows_of(&op.x, NORM_COST),
        None,
        #[inline(always)]
        |row, x| {
            for head in x.chunks_exact_mut(hd) {
                let r = inverse_rms(head, eps);
                each(head, [weight], |x, [w]| (0..LANES).for_each(|i| x[i] = x[i] * r * w[i]));
                if let Some((cos, sin, each)) = rope {
                    let at = row / each % (cos.len() / hd) * hd;
                    rotate(head, &cos[at..at + hd], &sin[at..at + hd]);
                }
            }
        },
    );
    memory.put(op.x.tensor, buffer);
}

/// `x * cos + (-b, a) * sin` where a and b are the halves of x.
#[inline(always)]
fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = x.len() / 2;
    let (a, b) = x.split_at_mut(half);
    let ((cos_a, cos_b), (sin_a, sin_b)) = (cos.split_at(half), sin.split_at(half));
    let tables = cos_a.iter().zip(cos_b).zip(sin_a.iter().zip(sin_b));
    for ((a, b), ((cos_a, cos_b), (sin_a, sin_b))) in a.iter_mut().zip(b).zip(tables) {
        (*a, *b) = (*a * cos_a - *b * sin_a, *b * cos_b + *a * sin_b);
    }
}
