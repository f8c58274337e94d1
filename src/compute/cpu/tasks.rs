//! Work split over the threads by rows of the output.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::math::LANES;
use super::memory::Mat;

/// Tasks for each thread if there are rows enough: a thread that is held up by another process then costs less.
pub const TASKS_PER_THREAD: usize = 4;

/// Rows for each task below which more tasks than threads only cost.
const ROWS_PER_TASK: usize = 48;

/// Work, in elementary operations, that is worth waking another thread.
const WORTH_SPLITTING: usize = 200_000;

/// What a run gives its steps besides memory.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub arch: Arch,
    pub threads: usize,
    pub params: &'a [u32],
    /// Packed weights by weight index.
    pub packed: &'a [Vec<f32>],
}

/// Rows of an output and how they may be split.
#[derive(Clone, Copy)]
pub struct Split {
    pub rows: usize,
    /// Elements from row to row.
    pub stride: usize,
    /// Tasks begin at multiples of this many rows.
    pub step: usize,
    /// Elementary operations for all rows.
    pub cost: usize,
    /// Elements of `work` for each task.
    pub work: usize,
}

/// What is done to a range of rows, compiled for the processor's vectors.
pub trait Body: Sync {
    /// `y` begins with row `rows.start`; `work` is this task's own.
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>, y: &mut [f32], work: &mut [f32]);
}

struct Call<'a, B> {
    body: &'a B,
    rows: Range<usize>,
    y: &'a mut [f32],
    work: &'a mut [f32],
}

impl<B: Body> WithSimd for Call<'_, B> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.body.run(simd, self.rows, self.y, self.work);
    }
}

impl Context<'_> {
    /// How many tasks work of this size is split into.
    pub fn tasks(&self, rows: usize, cost: usize) -> usize {
        if cost < WORTH_SPLITTING {
            1
        } else if rows >= ROWS_PER_TASK * TASKS_PER_THREAD * self.threads {
            TASKS_PER_THREAD * self.threads
        } else {
            self.threads
        }
    }

    /// Runs `body` on all rows of `y`, whose first element is that of the first row.
    pub fn rows<B: Body>(&self, y: &mut [f32], split: Split, work: &mut [f32], body: &B) {
        self.part(0..split.rows, self.tasks(split.rows, split.cost), y, split, work, body);
    }

    fn part<B: Body>(&self, rows: Range<usize>, tasks: usize, y: &mut [f32], split: Split, work: &mut [f32], body: &B) {
        let left = tasks / 2;
        let count = (rows.len() * left).div_ceil(tasks).next_multiple_of(split.step);
        if left == 0 || count >= rows.len() {
            return self.arch.dispatch(Call { body, rows, y, work });
        }
        let middle = rows.start + count;
        let (y_left, y_right) = y.split_at_mut(count * split.stride);
        let (work_left, work_right) = work.split_at_mut(left * split.work);
        rayon::join(
            || self.part(rows.start..middle, left, y_left, split, work_left, body),
            || self.part(middle..rows.end, tasks - left, y_right, split, work_right, body),
        );
    }

    /// Runs `f` on every row of `y` after copying the row of `x` into it, if there is an `x`: whatever works in place
    /// then works between tensors as well. `cost` is that of one element.
    pub fn each_row(&self, y: &mut [f32], split: RowSplit, x: Option<Mat<'_>>, f: impl Fn(usize, &mut [f32]) + Sync) {
        let RowSplit { rows, cols, stride, cost } = split;
        let split = Split { rows, stride, step: 1, cost: rows * cols * cost, work: 0 };
        self.rows(y, split, &mut [], &EachRow { cols, stride, x, f });
    }
}

/// Rows of an output for [`Context::each_row`].
#[derive(Clone, Copy)]
pub struct RowSplit {
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
    /// Elementary operations for each element.
    pub cost: usize,
}

struct EachRow<'a, F> {
    cols: usize,
    stride: usize,
    x: Option<Mat<'a>>,
    f: F,
}

impl<F: Fn(usize, &mut [f32]) + Sync> Body for EachRow<'_, F> {
    #[inline(always)]
    fn run<S: Simd>(&self, _: S, rows: Range<usize>, y: &mut [f32], _: &mut [f32]) {
        for (i, row) in rows.enumerate() {
            let y = &mut y[i * self.stride..i * self.stride + self.cols];
            if let Some(x) = &self.x {
                y.copy_from_slice(x.row(row));
            }
            (self.f)(row, y);
        }
    }
}

/// Panels of a packed matrix with `n` rows.
pub fn panels(n: usize) -> usize {
    n.div_ceil(LANES)
}
