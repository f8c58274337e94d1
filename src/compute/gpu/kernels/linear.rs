//! Matrix products and convolutions.

use super::super::super::op::{Conv3x3, Linear};
use super::super::super::tensor::View;
use super::{Dispatch, Fill, KernelId, Lowering, Matrix, Product, act_code, by_fours, flags};

/// Rows and columns of the tile that a workgroup of the tiled kernels computes.
const TILE_ROWS: usize = 16;
const TILE_COLS: usize = 128;

/// Up to this many rows the subgroup-per-output kernel wins: a tile would repeat the missing rows.
const GEMV_ROWS_MAX: usize = 3;

/// Columns that a workgroup of the subgroup-per-output kernels computes.
const GEMV_COLS: usize = 4;

const HAS_BIAS: usize = 1;
const HAS_GATE: usize = 2;
const HAS_RES: usize = 4;

pub(super) fn linear(l: &Lowering<'_>, op: &Linear) -> Dispatch {
    let (m, k, n) = (op.x.rows, op.x.cols, op.y.cols);
    let matrix = l.matrix(&[Some(op.x), op.gate, op.res, Some(op.y)]);
    let kernel = match (matrix, by_fours(&op.x), l.seat_rows(m) <= GEMV_ROWS_MAX) {
        (Some(_), _, _) => KernelId::LinearCm,
        (None, false, _) => KernelId::LinearAny,
        (None, true, true) => KernelId::LinearGemv,
        (None, true, false) => KernelId::LinearTile,
    };
    let present = [(op.bias.is_some(), HAS_BIAS), (op.gate.is_some(), HAS_GATE), (op.res.is_some(), HAS_RES)];
    let fill = Fill::new(kernel)
        .address("x", l.view(&op.x))
        .address("w", l.ctx.tensor(op.w))
        .address("bias", l.optional_tensor(op.bias))
        .address("gate", l.optional_view(op.gate.as_ref()))
        .address("res", l.optional_view(op.res.as_ref()))
        .address("y", l.view(&op.y))
        .word("m", m)
        .word("n", n)
        .word("k", k)
        .word("x_stride", op.x.stride)
        .word("gate_stride", op.gate.map_or(0, |g| g.stride))
        .word("res_stride", op.res.map_or(0, |r| r.stride))
        .word("y_stride", op.y.stride)
        .word("span", op.gate.map_or(m, |g| m / g.rows))
        .word("act", act_code(op.act))
        .word("flags", flags(&present));
    if let Some(matrix) = matrix {
        let tile = matrix.choose(&l.target.tuned, &Product { kernel, m, n, k });
        return fill.spec(tile.spec(matrix, k)).over(tile.groups(m, n), 1);
    }
    match kernel {
        KernelId::LinearTile => fill.over(m.div_ceil(TILE_ROWS), n.div_ceil(TILE_COLS)),
        _ => fill.over(m, n.div_ceil(GEMV_COLS)),
    }
}

pub(super) fn conv3x3(l: &Lowering<'_>, op: &Conv3x3) -> Vec<Dispatch> {
    if let Some(matrix) = l.matrix(&[Some(op.x), op.res, Some(op.y)]) {
        return vec![pictures(l, op, matrix)];
    }
    let pixels = op.height * op.width;
    let part = |v: &View, n: usize| v.rows(n * pixels, pixels);
    let one = |n| {
        let (x, y, res) = (part(&op.x, n), part(&op.y, n), op.res.map(|r| part(&r, n)));
        picture(l, &Conv3x3 { x, y, res, ..*op })
    };
    (0..op.x.rows / pixels).map(one).collect()
}

/// The convolution of one picture.
fn picture(l: &Lowering<'_>, op: &Conv3x3) -> Dispatch {
    let (pixels, cout) = (op.y.rows, op.y.cols);
    let kernel = if by_fours(&op.x) { KernelId::Conv3x3Tile } else { KernelId::Conv3x3Any };
    let present = [(op.bias.is_some(), HAS_BIAS), (op.res.is_some(), HAS_RES)];
    let fill = Fill::new(kernel)
        .address("x", l.view(&op.x))
        .address("w", l.ctx.tensor(op.w))
        .address("bias", l.optional_tensor(op.bias))
        .address("res", l.optional_view(op.res.as_ref()))
        .address("y", l.view(&op.y))
        .word("height", op.height)
        .word("width", op.width)
        .word("cin", op.x.cols)
        .word("cout", cout)
        .word("x_stride", op.x.stride)
        .word("res_stride", op.res.map_or(0, |r| r.stride))
        .word("y_stride", op.y.stride)
        .word("act", act_code(op.act))
        .word("flags", flags(&present));
    match kernel {
        KernelId::Conv3x3Tile => fill.over(pixels.div_ceil(TILE_ROWS), cout.div_ceil(TILE_COLS)),
        _ => {
            let local = kernel.kernel().local_size as usize;
            fill.over((pixels * cout).div_ceil(local), 1)
        }
    }
}

/// The convolution of all pictures at once.
fn pictures(l: &Lowering<'_>, op: &Conv3x3, matrix: &Matrix) -> Dispatch {
    let kernel = KernelId::Conv3x3Cm;
    let (m, n, cin) = (op.y.rows, op.y.cols, op.x.cols);
    let k = 9 * cin;
    let present = [(op.bias.is_some(), HAS_BIAS), (op.res.is_some(), HAS_RES)];
    let tile = matrix.choose(&l.target.tuned, &Product { kernel, m, n, k });
    Fill::new(kernel)
        .spec(tile.spec(matrix, k))
        .address("x", l.view(&op.x))
        .address("w", l.ctx.tensor(op.w))
        .address("bias", l.optional_tensor(op.bias))
        .address("res", l.optional_view(op.res.as_ref()))
        .address("y", l.view(&op.y))
        .word("m", m)
        .word("n", n)
        .word("k", k)
        .word("height", op.height)
        .word("width", op.width)
        .word("cin", cin)
        .word("x_stride", op.x.stride)
        .word("res_stride", op.res.map_or(0, |r| r.stride))
        .word("y_stride", op.y.stride)
        .word("act", act_code(op.act))
        .word("flags", flags(&present))
        .over(tile.groups(m, n), 1)
}
