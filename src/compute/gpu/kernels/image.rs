//! Space and channels exchanged, and pictures.

use super::super::super::op::{GroupMean, Shuffle, ToI420, Unshuffle};
use super::{Dispatch, Fill, KernelId, Lowering};

pub(super) fn unshuffle(l: &Lowering<'_>, op: &Unshuffle) -> Dispatch {
    Fill::new(KernelId::Unshuffle)
        .address("x", l.view(&op.x))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols", op.y.cols)
        .word("width", op.width / op.r)
        .word("r", op.r)
        .word("x_stride", op.x.stride)
        .word("y_stride", op.y.stride)
        .over_quads(&op.y)
}

pub(super) fn group_mean(l: &Lowering<'_>, op: &GroupMean) -> Dispatch {
    Fill::new(KernelId::GroupMean)
        .address("x", l.view(&op.x))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols", op.y.cols)
        .word("size", op.x.cols / op.y.cols)
        .word("x_stride", op.x.stride)
        .word("y_stride", op.y.stride)
        .over_quads(&op.y)
}

pub(super) fn shuffle(l: &Lowering<'_>, op: &Shuffle) -> Dispatch {
    let repeat = op.shortcut.map_or(0, |_| op.repeat());
    Fill::new(KernelId::Shuffle)
        .address("x", l.view(&op.x))
        .address("shortcut", l.optional_view(op.shortcut.as_ref()))
        .address("y", l.view(&op.y))
        .word("rows", op.y.rows)
        .word("cols", op.y.cols)
        .word("width", op.width)
        .word("r", op.r)
        .word("repeat", repeat)
        .word("x_stride", op.x.stride)
        .word("s_stride", op.shortcut.map_or(0, |s| s.stride))
        .word("y_stride", op.y.stride)
        .over_quads(&op.y)
}

pub(super) fn to_i420(l: &Lowering<'_>, op: &ToI420) -> Dispatch {
    let blocks = op.height * op.width;
    let squares = op.out_width / 2 * (op.out_height / 2);
    let fill = Fill::new(KernelId::ToI420)
        .address("x", l.view(&op.x))
        .address("y", l.ctx.tensor(op.y))
        .word("width", op.width)
        .word("x_stride", op.x.stride)
        .word("out_width", op.out_width)
        .word("out_height", op.out_height)
        .word("r", op.r)
        .word("x_each", blocks * op.x.stride)
        .word("y_each", op.picture_bytes());
    let local = fill.kernel.kernel().local_size as usize;
    fill.over(squares.div_ceil(local), op.x.rows / blocks)
}
