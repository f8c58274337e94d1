//! Matrix product with a fused epilogue.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::super::op::Linear;
use super::super::plan::Home;
use super::super::tensor::Tensor;
use super::gemm::{self, Epilogue, Product, Residual, Rows, TILE_ROWS};
use super::math::LANES;
use super::memory::{Mat, Memory, Operands, Scratch};
use super::tasks::{Body, Context, Split, panels};

/// Below this many rows for each thread the columns are split instead of the rows.
const ROWS_TO_SPLIT: usize = 2 * TILE_ROWS;

/// The packed form of `w` [n, k]: made once for a weight, or made now in `space` for anything else.
pub fn packed<'a>(
    w: Tensor,
    n: usize,
    k: usize,
    memory: &'a Memory<'_>,
    cx: &Context<'a>,
    space: &'a mut [f32],
) -> &'a [f32] {
    if let Home::Weight(id) = memory.tensors.home(w) {
        return &cx.packed[id.index()];
    }
    gemm::pack(&Mat { data: memory.vector(w), rows: n, cols: k, stride: k }, space);
    space
}

impl<R: Rows> Body for Product<'_, R> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>, y: &mut [f32], _: &mut [f32]) {
        self.block(simd, rows, 0..panels(self.n), y, self.stride);
    }
}

/// All rows of a product for a range of panels, one panel after the other in `out`.
struct Columns<'a, 'p, R> {
    product: &'a Product<'p, R>,
    m: usize,
    panels: Range<usize>,
    out: &'a mut [f32],
}

impl<R: Rows> WithSimd for Columns<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (panel, out) in self.panels.zip(self.out.chunks_exact_mut(self.m * LANES)) {
            self.product.block(simd, 0..self.m, panel..panel + 1, out, LANES);
        }
    }
}

impl<R: Rows> Columns<'_, '_, R> {
    fn split(self, tasks: usize, cx: &Context<'_>) {
        let Columns { product, m, panels, out } = self;
        let (left, count) = (tasks / 2, (panels.len() * (tasks / 2)).div_ceil(tasks));
        if left == 0 || count == 0 {
            return cx.arch.dispatch(Columns { product, m, panels, out });
        }
        let (out_left, out_right) = out.split_at_mut(count * m * LANES);
        let middle = panels.start + count;
        rayon::join(
            || Columns { product, m, panels: panels.start..middle, out: out_left }.split(left, cx),
            || Columns { product, m, panels: middle..panels.end, out: out_right }.split(tasks - left, cx),
        );
    }
}

pub fn linear(op: &Linear, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.y.tensor);
    let (m, n) = (op.y.rows, op.y.cols);
    {
        let memory: &Memory<'_> = memory;
        let mut operands = Operands::new(memory, op.y.tensor, &mut scratch.stage);
        let x = operands.get(&op.x, &buffer);
        let gate = op.gate.as_ref().map(|g| (operands.get(g, &buffer), m / g.rows));
        let res = op.res.as_ref().map(|r| operands.get_unless(r, &op.y, &buffer));
        let mut product = Product {
            x,
            packed: packed(op.w, n, op.x.cols, memory, cx, &mut scratch.packed),
            n,
            stride: op.y.stride,
            epilogue: Epilogue {
                bias: op.bias.map(|b| memory.vector(b)),
                act: op.act,
                gate,
                res: match res {
                    None => Residual::None,
                    Some(None) => Residual::InPlace,
                    Some(Some(mat)) => Residual::Of(mat),
                },
            },
        };
        let y = &mut buffer[op.y.offset..op.y.end()];
        let cost = 2 * m * n * op.x.cols;
        if m >= ROWS_TO_SPLIT * cx.threads || cx.tasks(m, cost) == 1 {
            let split = Split { rows: m, stride: op.y.stride, step: TILE_ROWS, cost, work: 0 };
            cx.rows(y, split, &mut [], &product);
        } else {
            if let Residual::InPlace = product.epilogue.res {
                product.epilogue.res = Residual::Of(Mat { data: y, rows: m, cols: n, stride: op.y.stride });
            }
            let out = &mut scratch.work[..gemm::packed_len(n, m)];
            Columns { product: &product, m, panels: 0..panels(n), out: &mut *out }.split(cx.threads, cx);
            for (panel, sums) in out.chunks_exact(m * LANES).enumerate() {
                let cols = LANES.min(n - panel * LANES);
                for (row, sums) in sums.chunks_exact(LANES).enumerate() {
                    y[row * op.y.stride + panel * LANES..][..cols].copy_from_slice(&sums[..cols]);
                }
            }
        }
    }
    memory.put(op.y.tensor, buffer);
}
