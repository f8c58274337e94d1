//! Convolution as a product whose rows are gathered on the way: nothing is copied together first.

use super::super::op::Conv3x3;
use super::gemm::{Epilogue, Product, Residual, Rows, TILE_ROWS};
use super::linear::packed;
use super::memory::{Mat, Memory, Operands, Scratch};
use super::tasks::{Context, Split};

/// The nine neighbours of each pixel, with zeros beyond the edges.
struct Neighbours<'a> {
    x: Mat<'a>,
    height: usize,
    width: usize,
    zeros: &'a [f32],
}

impl Rows for Neighbours<'_> {
    /// Line in the picture, line among all pictures, column.
    type Row = (usize, usize, usize);

    #[inline(always)]
    fn taps(&self) -> usize {
        9
    }
    #[inline(always)]
    fn len(&self) -> usize {
        self.x.cols
    }
    #[inline(always)]
    fn find(&self, row: usize) -> (usize, usize, usize) {
        let line = row / self.width;
        (line % self.height, line, row % self.width)
    }
    #[inline(always)]
    fn segment(&self, (i, line, j): (usize, usize, usize), tap: usize) -> &[f32] {
        // Coordinates in a picture with a border of one pixel.
        let (i, line, j) = (i + tap / 3, line + tap / 3, j + tap % 3);
        if i == 0 || j == 0 || i > self.height || j > self.width {
            self.zeros
        } else {
            self.x.row((line - 1) * self.width + j - 1)
        }
    }
}

pub fn conv3x3(op: &Conv3x3, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.y.tensor);
    {
        let memory: &Memory<'_> = memory;
        let (m, n, cin) = (op.y.rows, op.y.cols, op.x.cols);
        let mut operands = Operands::new(memory, op.y.tensor, &mut scratch.stage);
        let x = operands.get(&op.x, &buffer);
        let res = match &op.res {
            None => Residual::None,
            Some(res) => operands.get_unless(res, &op.y, &buffer).map_or(Residual::InPlace, Residual::Of),
        };
        let product = Product {
            x: Neighbours { x, height: op.height, width: op.width, zeros: &scratch.zeros[..cin] },
            packed: packed(op.w, n, 9 * cin, memory, cx, &mut scratch.packed),
            n,
            stride: op.y.stride,
            epilogue: Epilogue { bias: op.bias.map(|b| memory.vector(b)), act: op.act, gate: None, res },
        };
        let split = Split { rows: m, stride: op.y.stride, step: TILE_ROWS, cost: 18 * m * n * cin, work: 0 };
        cx.rows(&mut buffer[op.y.offset..op.y.end()], split, &mut [], &product);
    }
    memory.put(op.y.tensor, buffer);
}
