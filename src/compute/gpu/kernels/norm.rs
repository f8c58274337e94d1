//! Normalisations: a subgroup works on a row, or on one head of a row.

use super::super::super::op::{HeadNorm, Norm, NormKind};
use super::super::super::tensor::View;
use super::{Dispatch, Fill, KernelId, Lowering, Spec, act_code, flags};

const HAS_WEIGHT: usize = 1;
const ROTATES: usize = 1;

pub(super) fn norm(l: &Lowering<'_>, op: &Norm) -> Dispatch {
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

pub(super) fn head_norm(l: &Lowering<'_>, op: &HeadNorm) -> Dispatch {
    let hd = op.x.cols / op.heads;
    let (rope_rows, rope_each) = op.rope.map_or((1, 1), |r| (l.plan.tensors.shape(r.cos).rows(), r.each));
    if let Some(parts) = l.matrix(&[Some(op.x)]).and_then(|matrix| matrix.parts(hd)) {
        const LOCAL: u32 = 128;
        return Fill::new(KernelId::HeadNormParts)
            .variant((KernelId::HeadNormParts, Spec::new(&[LOCAL, parts])))
            .address("x", l.view(&op.x))
            .address("weight", l.ctx.tensor(op.weight))
            .address("cos", l.optional_tensor(op.rope.map(|r| r.cos)))
            .address("sin", l.optional_tensor(op.rope.map(|r| r.sin)))
            .word("rows", op.x.rows)
            .word("heads", op.heads)
            .word("x_stride4", op.x.stride / 4)
            .word("rope_rows", rope_rows)
            .real("eps", op.eps)
            .word("flags", flags(&[(op.rope.is_some(), ROTATES)]))
            .word("rope_each", rope_each)
            .over((op.x.rows * op.x.cols / 8).div_ceil(LOCAL as usize), 1);
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
