//! Element-wise operations: rows copied where they go, then worked on in place.

use super::super::op::{Act, Add, Axpy, Copy, GatedGelu, Map};
use super::super::tensor::View;
use super::math::{LANES, act, each, gelu};
use super::memory::{Mat, Memory, Operands, Scratch};
use super::tasks::{Context, RowSplit};

/// Elementary operations for an element of an activation.
const ACT_COST: usize = 12;

/// Rows of an output view with a cost for each element.
pub fn rows_of(y: &View, cost: usize) -> RowSplit {
    RowSplit { rows: y.rows, cols: y.cols, stride: y.stride, cost }
}

pub fn copy(op: &Copy, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.y.tensor);
    {
        let x = Operands::new(memory, op.y.tensor, &mut scratch.stage).get(&op.x, &buffer);
        let y = &mut buffer[op.y.offset..op.y.end()];
        cx.each_row(y, rows_of(&op.y, 1), Some(x), |_, _| {});
    }
    memory.put(op.y.tensor, buffer);
}

/// Applies `f` to every row of `y` after `x` was copied into it, with the row of `with` beside it.
fn binary(
    (x, with, y): (&View, &View, &View),
    cost: usize,
    memory: &mut Memory<'_>,
    scratch: &mut Scratch,
    cx: &Context<'_>,
    f: impl Fn(&Mat<'_>, usize, &mut [f32]) + Sync,
) {
    let mut buffer = memory.take(y.tensor);
    {
        let mut operands = Operands::new(memory, y.tensor, &mut scratch.stage);
        let x = operands.get_unless(x, y, &buffer);
        let with = operands.get(with, &buffer);
        let rows = &mut buffer[y.offset..y.end()];
        cx.each_row(
            rows,
            rows_of(y, cost),
            x,
            #[inline(always)]
            |row, y| f(&with, row, y),
        );
    }
    memory.put(y.tensor, buffer);
}

pub fn add(op: &Add, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let repeat = op.a.rows / op.b.rows;
    let views = (&op.a, &op.b, &op.y);
    binary(
        views,
        1,
        memory,
        scratch,
        cx,
        #[inline(always)]
        |b, row, y| each(y, [b.row(row / repeat)], |y, [b]| (0..LANES).for_each(|i| y[i] += b[i])),
    );
}

pub fn axpy(op: &Axpy, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let (alpha, beta) = (op.alpha, op.beta);
    let views = (&op.x, &op.v, &op.y);
    binary(
        views,
        1,
        memory,
        scratch,
        cx,
        #[inline(always)]
        |v, row, y| each(y, [v.row(row)], |y, [v]| (0..LANES).for_each(|i| y[i] = alpha * y[i] + beta * v[i])),
    );
}

pub fn gated_gelu(op: &GatedGelu, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let views = (&op.a, &op.b, &op.y);
    binary(
        views,
        ACT_COST,
        memory,
        scratch,
        cx,
        #[inline(always)]
        |b, row, y| {
            each(
                y,
                [b.row(row)],
                #[inline(always)]
                |y, [b]| (0..LANES).for_each(|i| y[i] = gelu(y[i]) * b[i]),
            );
        },
    );
}

pub fn map(op: &Map, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.y.tensor);
    {
        let x = Operands::new(memory, op.y.tensor, &mut scratch.stage).get_unless(&op.x, &op.y, &buffer);
        let rows = &mut buffer[op.y.offset..op.y.end()];
        let kind: Act = op.act;
        cx.each_row(
            rows,
            rows_of(&op.y, ACT_COST),
            x,
            #[inline(always)]
            |_, y| {
                each(
                    y,
                    [],
                    #[inline(always)]
                    |y, []| act(kind, y),
                );
            },
        );
    }
    memory.put(op.y.tensor, buffer);
}
