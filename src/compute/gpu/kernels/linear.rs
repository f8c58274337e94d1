//! Matrix products and convolutions.

use super::super::super::op::{Conv3x3, Linear};
use super::super::super::tensor::View;
use super::{
    Dispatch, Fill, Finish, KernelId, Lowering, Matrix, Operands, Product, Target, Tile, act_code, by_fours, flags,
};

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

/// The product that the matrix tier computes for an operation, if it does.
pub(super) fn linear_product(l: &Lowering<'_>, op: &Linear) -> Option<Product> {
    l.matrix(&[Some(op.x), op.gate, op.res, Some(op.y)])?;
    let finish = Finish { act: act_code(op.act) as u32, flags: linear_flags(op) as u32 };
    Some(Product { kernel: KernelId::LinearCm, m: op.x.rows, n: op.y.cols, k: op.x.cols, finish })
}

/// The same for a convolution: its taps and channels are what is summed over.
pub(super) fn conv_product(l: &Lowering<'_>, op: &Conv3x3) -> Option<Product> {
    l.matrix(&[Some(op.x), op.res, Some(op.y)])?;
    let finish = Finish { act: act_code(op.act) as u32, flags: conv_flags(op) as u32 };
    Some(Product { kernel: KernelId::Conv3x3Cm, m: op.y.rows, n: op.y.cols, k: 9 * op.x.cols, finish })
}

fn linear_flags(op: &Linear) -> usize {
    flags(&[(op.bias.is_some(), HAS_BIAS), (op.gate.is_some(), HAS_GATE), (op.res.is_some(), HAS_RES)])
}

fn conv_flags(op: &Conv3x3) -> usize {
    flags(&[(op.bias.is_some(), HAS_BIAS), (op.res.is_some(), HAS_RES)])
}

pub(super) fn linear(l: &Lowering<'_>, op: &Linear) -> Dispatch {
    let (m, k, n) = (op.x.rows, op.x.cols, op.y.cols);
    let product = linear_product(l, op);
    let kernel = match (product, by_fours(&op.x), l.seat_rows(m) <= GEMV_ROWS_MAX) {
        (Some(_), _, _) => KernelId::LinearCm,
        (None, false, _) => KernelId::LinearAny,
        (None, true, true) => KernelId::LinearGemv,
        (None, true, false) => KernelId::LinearTile,
    };
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
        .word("span", op.gate.map_or(m, |g| m / g.rows));
    if let (Some(product), Some(matrix)) = (product, &l.target.matrix) {
        let tile = l.target.tile(matrix, &product);
        return fill.variant(tile.variant(matrix, &product)).over(tile.groups(m, n), 1);
    }
    let fill = fill.word("act", act_code(op.act)).word("flags", linear_flags(op));
    match kernel {
        KernelId::LinearTile => fill.over(m.div_ceil(TILE_ROWS), n.div_ceil(TILE_COLS)),
        _ => fill.over(m, n.div_ceil(GEMV_COLS)),
    }
}

pub(super) fn conv3x3(l: &Lowering<'_>, op: &Conv3x3) -> Vec<Dispatch> {
    if let (Some(product), Some(matrix)) = (conv_product(l, op), &l.target.matrix) {
        return vec![pictures(l, op, matrix, &product)];
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
        .word("flags", conv_flags(op));
    match kernel {
        KernelId::Conv3x3Tile => fill.over(pixels.div_ceil(TILE_ROWS), cout.div_ceil(TILE_COLS)),
        _ => {
            let local = kernel.kernel().local_size as usize;
            fill.over((pixels * cout).div_ceil(local), 1)
        }
    }
}

/// A product with a tile, to be measured: contiguous, one row of gates; a convolution's picture is 64 pixels wide.
pub(super) fn sample(target: &Target, product: &Product, tile: Tile, operands: Operands) -> Dispatch {
    const WIDTH: usize = 64;
    let matrix = target.matrix.as_ref().expect("only the matrix tier has products");
    let Product { kernel, m, n, k, .. } = *product;
    let Operands { x, w, y } = operands;
    let fill = Fill::new(kernel).variant(tile.variant(matrix, product));
    let fill = match kernel {
        KernelId::Conv3x3Cm => fill
            .address("x", x)
            .address("w", w)
            .address("bias", w)
            .address("res", y)
            .address("y", y)
            .word("m", m)
            .word("n", n)
            .word("k", k)
            .word("height", m.div_ceil(WIDTH))
            .word("width", WIDTH)
            .word("cin", k / 9)
            .word("x_stride", k / 9)
            .word("res_stride", n)
            .word("y_stride", n),
        _ => fill
            .address("x", x)
            .address("w", w)
            .address("bias", w)
            .address("gate", w)
            .address("res", y)
            .address("y", y)
            .word("m", m)
            .word("n", n)
            .word("k", k)
            .word("x_stride", k)
            .word("gate_stride", n)
            .word("res_stride", n)
            .word("y_stride", n)
            .word("span", m),
    };
    fill.over(tile.groups(m, n), 1)
}

/// The convolution of all pictures at once.
fn pictures(l: &Lowering<'_>, op: &Conv3x3, matrix: &Matrix, product: &Product) -> Dispatch {
    let Product { m, n, k, .. } = *product;
    let tile = l.target.tile(matrix, product);
    Fill::new(product.kernel)
        .variant(tile.variant(matrix, product))
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
        .word("cin", op.x.cols)
        .word("x_stride", op.x.stride)
        .word("res_stride", op.res.map_or(0, |r| r.stride))
        .word("y_stride", op.y.stride)
        .over(tile.groups(m, n), 1)
}
