//! Normalisations: a subgroup works on a row, or on one head of a row.

use super::super::super::op::{Act, HeadNorm, Norm, NormKind};
use super::super::super::tensor::{Tensor, View};
use super::{Dispatch, Fill, KernelId, Lowering, Matrix, Spec, act_code, flags};

const HAS_WEIGHT: usize = 1;
const ROTATES: usize = 1;

/// Pieces of eight columns that a lane holds at most.
const CHUNKS_MAX: u32 = 16;

pub(super) fn norm(l: &Lowering<'_>, op: &Norm) -> Dispatch {
    if let Some(matrix) = l.matrix(&[Some(op.x), Some(op.y)])
        && let Some(dispatch) = by_eights(l, op, matrix)
    {
        return dispatch;
    }
    let fill = match &op.kind {
        NormKind::Weight { weight, act } => Fill::new(KernelId::NormWeight)
            .address("x", l.view(&op.x))
            .address("weight", l.optional_tensor(*weight))
            .address("y", l.view(&op.y))
            .word("rows", op.y.rows)
            .word("cols", op.y.cols)
            .word("x_stride", op.x.stride)
            .word("y_stride", op.y.stride)
            .real("eps", op.eps)
            .word("act", act_code(*act))
            .word("flags", flags(&[(weight.is_some(), HAS_WEIGHT)])),
        NormKind::Modulate { scale, shift } => modulate(l, op, scale, shift),
        NormKind::Film { scale, shift, gate } => film(l, op, scale, shift, gate),
    };
    fill.over(op.y.rows, 1)
}

/// A row a subgroup, loaded by eights. `None`: the operands or the activation are not of that kind.
fn by_eights(l: &Lowering<'_>, op: &Norm, matrix: &Matrix) -> Option<Dispatch> {
    const LOCAL: u32 = 128;
    let (kind, weight, act, operands) = match op.kind {
        NormKind::Weight { weight, act } => (0, weight, act, [None; 3]),
        NormKind::Modulate { scale, shift } => (1, None, Act::None, [Some(scale), Some(shift), None]),
        NormKind::Film { scale, shift, gate } => (2, None, Act::None, [Some(scale), Some(shift), Some(gate)]),
    };
    let local = LOCAL.max(matrix.lanes);
    let chunks = u32::try_from((op.x.cols / 8).div_ceil(matrix.lanes as usize)).ok()?;
    let fits = act != Act::Gelu && chunks <= CHUNKS_MAX && l.matrix(&operands).is_some();
    let spec = [local, matrix.lanes, chunks, kind, u32::from(weight.is_some()), act_code(act) as u32];
    let span = |v: Option<View>| v.map_or(1, |v| op.y.rows / v.rows);
    let stride8 = |v: Option<View>| v.map_or(0, |v| v.stride / 8);
    let [scale, shift, gate] = operands;
    let fill = Fill::new(KernelId::NormRows)
        .variant((KernelId::NormRows, Spec::new(&spec)))
        .address("x", l.view(&op.x))
        .address("weight", l.optional_tensor(weight))
        .address("scale", l.optional_view(scale.as_ref()))
        .address("shift", l.optional_view(shift.as_ref()))
        .address("gate", l.optional_view(gate.as_ref()))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols8", op.x.cols / 8)
        .word("x_stride8", op.x.stride / 8)
        .word("y_stride8", op.y.stride / 8)
        .word("scale_span", span(scale))
        .word("shift_span", span(shift))
        .word("gate_span", span(gate))
        .word("scale_stride8", stride8(scale))
        .word("shift_stride8", stride8(shift))
        .word("gate_stride8", stride8(gate))
        .real("eps", op.eps);
    fits.then(|| fill.over(op.y.rows.div_ceil((local / matrix.lanes) as usize), 1))
}

fn modulate(l: &Lowering<'_>, op: &Norm, scale: &View, shift: &View) -> Fill {
    Fill::new(KernelId::NormModulate)
        .address("x", l.view(&op.x))
        .address("scale", l.view(scale))
        .address("shift", l.view(shift))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols", op.y.cols)
        .word("scale_span", op.y.rows / scale.rows)
        .word("shift_span", op.y.rows / shift.rows)
        .word("x_stride", op.x.stride)
        .word("scale_stride", scale.stride)
        .word("shift_stride", shift.stride)
        .word("y_stride", op.y.stride)
        .real("eps", op.eps)
}

fn film(l: &Lowering<'_>, op: &Norm, scale: &View, shift: &View, gate: &View) -> Fill {
    Fill::new(KernelId::NormFilm)
        .address("x", l.view(&op.x))
        .address("scale", l.view(scale))
        .address("shift", l.view(shift))
        .address("gate", l.view(gate))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols", op.y.cols)
        .word("scale_span", op.y.rows / scale.rows)
        .word("shift_span", op.y.rows / shift.rows)
        .word("gate_span", op.y.rows / gate.rows)
        .word("x_stride", op.x.stride)
        .word("scale_stride", scale.stride)
        .word("shift_stride", shift.stride)
        .word("gate_stride", gate.stride)
        .word("y_stride", op.y.stride)
        .real("eps", op.eps)
}

/// Norms of the heads of queries and of keys, whose columns follow those of the queries, at once. `None`: the kernel
/// cannot.
pub(super) fn two_head_norms(l: &Lowering<'_>, q: &HeadNorm, k: &HeadNorm) -> Option<Dispatch> {
    let team = l.matrix(&[Some(q.x), Some(k.x)])?.team(q.x.cols / q.heads)?;
    let both = View { cols: 2 * q.x.cols, ..q.x };
    Some(head_parts(l, q, (both, 2 * q.heads), k.weight, team))
}

/// Norms of the heads of `x`, with the weight of `op` for as many as it has and `rest` for those beyond.
fn head_parts(
    l: &Lowering<'_>,
    op: &HeadNorm,
    (x, heads): (View, usize),
    rest: Tensor,
    (parts, team): (u32, u32),
) -> Dispatch {
    const LOCAL: u32 = 128;
    let (rope_rows, rope_each) = rope_lines(l, op);
    Fill::new(KernelId::HeadNormParts)
        .variant((KernelId::HeadNormParts, Spec::new(&[LOCAL, parts, team])))
        .address("x", l.view(&x))
        .address("weight", l.ctx.tensor(op.weight))
        .address("weight_rest", l.ctx.tensor(rest))
        .address("cos", l.optional_tensor(op.rope.map(|r| r.cos)))
        .address("sin", l.optional_tensor(op.rope.map(|r| r.sin)))
        .word("rows", x.rows)
        .word("heads", heads)
        .word("heads_first", op.heads)
        .word("x_stride4", x.stride / 4)
        .word("rope_rows", rope_rows)
        .real("eps", op.eps)
        .word("flags", flags(&[(op.rope.is_some(), ROTATES)]))
        .word("rope_each", rope_each)
        .over((x.rows * heads * team as usize).div_ceil(LOCAL as usize), 1)
}

/// Rows of the rotary tables, and how many rows in turn share one.
fn rope_lines(l: &Lowering<'_>, op: &HeadNorm) -> (usize, usize) {
    op.rope.map_or((1, 1), |r| (l.plan.tensors.shape(r.cos).rows(), r.each))
}

pub(super) fn head_norm(l: &Lowering<'_>, op: &HeadNorm) -> Dispatch {
    let hd = op.x.cols / op.heads;
    let (rope_rows, rope_each) = rope_lines(l, op);
    if let Some(team) = l.matrix(&[Some(op.x)]).and_then(|matrix| matrix.team(hd)) {
        return head_parts(l, op, (op.x, op.heads), op.weight, team);
    }
    Fill::new(KernelId::HeadNorm)
        .address("x", l.view(&op.x))
        .address("weight", l.ctx.tensor(op.weight))
        .address("cos", l.optional_tensor(op.rope.map(|r| r.cos)))
        .address("sin", l.optional_tensor(op.rope.map(|r| r.sin)))
        .word("rows", op.x.rows)
        .word("hd", hd)
        .word("x_stride", op.x.stride)
        .word("rope_rows", rope_rows)
        .real("eps", op.eps)
        .word("flags", flags(&[(op.rope.is_some(), ROTATES)]))
        .word("rope_each", rope_each)
        .over(op.x.rows, op.heads)
}
