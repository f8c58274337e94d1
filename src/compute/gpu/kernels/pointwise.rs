//! Element-wise operations: an invocation works on up to four columns of a row.

use super::super::super::op::{Add, Axpy, Copy, GatedGelu, Map};
use super::super::super::tensor::View;
use super::{Dispatch, Fill, KernelId, Lowering, act_code};

impl Fill {
    /// The grid of a kernel with an invocation for every four columns of every row of `y`.
    pub(super) fn over_quads(self, y: &View) -> Dispatch {
        let local = self.kernel.kernel().local_size as usize;
        let groups = (y.rows * y.cols.div_ceil(4)).div_ceil(local);
        self.over(groups, 1)
    }
}

pub(super) fn copy(l: &Lowering<'_>, op: &Copy) -> Dispatch {
    if op.crosses(&l.plan.tensors) {
        return seat_copy(l, op);
    }
    Fill::new(KernelId::Copy)
        .address("x", l.view(&op.x))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols", op.y.cols)
        .word("x_stride", op.x.stride)
        .word("y_stride", op.y.stride)
        .over_quads(&op.y)
}

/// A copy between the states of all seats and rows that follow one another.
fn seat_copy(l: &Lowering<'_>, op: &Copy) -> Dispatch {
    let stores = l.plan.tensors.seats_in(op.y.tensor) > 1;
    let (outside, inside) = if stores { (&op.x, &op.y) } else { (&op.y, &op.x) };
    Fill::new(KernelId::SeatCopy)
        .address("table", l.ctx.seat_table())
        .address("inside", l.view(inside))
        .address("outside", l.view(outside))
        .word("rows", outside.rows)
        .word("cols", outside.cols)
        .word("seat_rows", inside.rows)
        .word("inside_stride", inside.stride)
        .word("outside_stride", outside.stride)
        .word("stores", usize::from(stores))
        .over_quads(outside)
}

pub(super) fn add(l: &Lowering<'_>, op: &Add) -> Dispatch {
    Fill::new(KernelId::Add)
        .address("a", l.view(&op.a))
        .address("b", l.view(&op.b))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols", op.y.cols)
        .word("span", op.a.rows / op.b.rows)
        .word("a_stride", op.a.stride)
        .word("b_stride", op.b.stride)
        .word("y_stride", op.y.stride)
        .over_quads(&op.y)
}

pub(super) fn axpy(l: &Lowering<'_>, op: &Axpy) -> Dispatch {
    Fill::new(KernelId::Axpy)
        .address("x", l.view(&op.x))
        .address("v", l.view(&op.v))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols", op.y.cols)
        .word("x_stride", op.x.stride)
        .word("v_stride", op.v.stride)
        .word("y_stride", op.y.stride)
        .real("alpha", op.alpha)
        .real("beta", op.beta)
        .over_quads(&op.y)
}

pub(super) fn gated_gelu(l: &Lowering<'_>, op: &GatedGelu) -> Dispatch {
    Fill::new(KernelId::GatedGelu)
        .address("a", l.view(&op.a))
        .address("b", l.view(&op.b))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols", op.y.cols)
        .word("a_stride", op.a.stride)
        .word("b_stride", op.b.stride)
        .word("y_stride", op.y.stride)
        .over_quads(&op.y)
}

pub(super) fn map(l: &Lowering<'_>, op: &Map) -> Dispatch {
    Fill::new(KernelId::Map)
        .address("x", l.view(&op.x))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols", op.y.cols)
        .word("x_stride", op.x.stride)
        .word("y_stride", op.y.stride)
        .word("act", act_code(op.act))
        .over_quads(&op.y)
}
