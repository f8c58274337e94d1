//! Matrix products: weights packed once into panels, and a kernel that keeps a tile of the result in registers.
//!
//! A panel holds [`LANES`] rows of W (columns of the result), column after column of W, so that the kernel reads it
//! from front to back. A tile is up to [`TILE_ROWS`] rows times one panel: 12 AVX2 accumulators of 16 registers. Where
//! a panel is one vector (AVX-512) it is two panels: as many accumulators, which is what hides the latency of an
//! addition. Every element of the result is one chain of fused multiply-adds in the order of k, whatever tile, thread
//! or position it falls into: results do not depend on how the work was split.

use std::hint::black_box;

use pulp::Simd;

use super::super::op::Act;
use super::math::{LANES, Lanes, act, load, store};
use super::memory::Mat;

/// Rows of a tile.
pub const TILE_ROWS: usize = 6;

/// Bytes of x that stay in the second-level cache while all panels pass by.
const BLOCK_BYTES: usize = 128 << 10;

/// Length of `n` rows of `k` once packed.
pub fn packed_len(n: usize, k: usize) -> usize {
    n.div_ceil(LANES) * LANES * k
}

/// Packs `w` [n, k] into panels; rows beyond n are zeros.
pub fn pack(w: &Mat<'_>, out: &mut [f32]) {
    let (n, k) = (w.rows, w.cols);
    for (p, panel) in out[..packed_len(n, k)].chunks_exact_mut(k * LANES).enumerate() {
        if n < (p + 1) * LANES {
            panel.fill(0.0);
        }
        for (c, row) in (p * LANES..n.min((p + 1) * LANES)).enumerate() {
            for (to, x) in panel[c..].iter_mut().step_by(LANES).zip(w.row(row)) {
                *to = *x;
            }
        }
    }
}

/// Packs the transpose of `w` [k, n]: the same panels as [`pack`] makes of [n, k].
pub fn pack_transposed(w: &Mat<'_>, out: &mut [f32]) {
    let (k, n) = (w.rows, w.cols);
    for (p, panel) in out[..packed_len(n, k)].chunks_exact_mut(k * LANES).enumerate() {
        for (row, to) in panel.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            *to = load(w.row(row), p * LANES);
        }
    }
}

/// Where a product's rows of x come from: a row is the concatenation of `taps()` segments of equal length.
pub trait Rows: Sync {
    /// A row, found once for all its segments.
    type Row: Copy;
    fn taps(&self) -> usize;
    /// Elements of a segment.
    fn len(&self) -> usize;
    fn find(&self, row: usize) -> Self::Row;
    fn segment(&self, row: Self::Row, tap: usize) -> &[f32];
}

impl Rows for Mat<'_> {
    type Row = usize;

    #[inline(always)]
    fn taps(&self) -> usize {
        1
    }
    #[inline(always)]
    fn len(&self) -> usize {
        self.cols
    }
    #[inline(always)]
    fn find(&self, row: usize) -> usize {
        row
    }
    #[inline(always)]
    fn segment(&self, row: usize, _: usize) -> &[f32] {
        self.row(row)
    }
}

/// What is added to `y`.
#[derive(Clone, Copy)]
pub enum Residual<'a> {
    None,
    /// What `y` holds.
    InPlace,
    Of(Mat<'a>),
}

/// `y = res + gate * act(sum + bias)`.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    pub bias: Option<&'a [f32]>,
    pub act: Act,
    /// Gate rows and to how many rows of y each applies.
    pub gate: Option<(Mat<'a>, usize)>,
    pub res: Residual<'a>,
}

impl Epilogue<'_> {
    /// Finishes the sums of columns `col ..` of row `row`; `y` is that part of the row, at most [`LANES`] long.
    #[inline(always)]
    fn finish(&self, mut sums: Lanes, row: usize, col: usize, y: &mut [f32]) {
        if let Some(bias) = self.bias {
            let bias = load(bias, col);
            (0..LANES).for_each(|i| sums[i] += bias[i]);
        }
        act(self.act, &mut sums);
        if let Some((gate, repeat)) = &self.gate {
            let gate = load(gate.row(row / repeat), col);
            (0..LANES).for_each(|i| sums[i] *= gate[i]);
        }
        match &self.res {
            Residual::None => {}
            Residual::InPlace => {
                let res = load(y, 0);
                (0..LANES).for_each(|i| sums[i] += res[i]);
            }
            Residual::Of(res) => {
                let res = load(res.row(row), col);
                (0..LANES).for_each(|i| sums[i] += res[i]);
            }
        }
        store(&sums, y);
    }
}

/// A product `y = epilogue(x W^T)` with W packed.
pub struct Product<'a, R> {
    pub x: R,
    pub packed: &'a [f32],
    /// Columns of the result.
    pub n: usize,
    /// Elements from row to row of the result.
    pub stride: usize,
    pub epilogue: Epilogue<'a>,
}

impl<R: Rows> Product<'_, R> {
    /// Computes rows `rows` and the columns of panels `panels` into `y`, whose first element is the first of them and
    /// whose rows are `stride` apart.
    #[inline(always)]
    pub fn block<S: Simd>(
        &self,
        simd: S,
        rows: std::ops::Range<usize>,
        panels: std::ops::Range<usize>,
        y: &mut [f32],
        stride: usize,
    ) {
        let panel_len = self.x.taps() * self.x.len() * LANES;
        let rows_at_once = (BLOCK_BYTES / (4 * self.x.len() * TILE_ROWS)).max(4) * TILE_ROWS;
        let first_col = panels.start * LANES;
        for block in rows.clone().step_by(rows_at_once) {
            let block_end = rows.end.min(block + rows_at_once);
            let mut panel = panels.start;
            while panel < panels.end {
                let pair = S::F32_LANES == LANES && panel + 1 < panels.end;
                let packed = &self.packed[panel * panel_len..(panel + 1 + usize::from(pair)) * panel_len];
                let col = panel * LANES;
                panel += 1 + usize::from(pair);
                let cols = (panel * LANES).min(self.n) - col;
                let mut row = block;
                while row < block_end {
                    let count = TILE_ROWS.min(block_end - row);
                    let y = &mut y[(row - rows.start) * stride + col - first_col..];
                    match count {
                        6 if pair => self.pair::<S, 6>(simd, row, packed, col, cols, y, stride),
                        5 if pair => self.pair::<S, 5>(simd, row, packed, col, cols, y, stride),
                        4 if pair => self.pair::<S, 4>(simd, row, packed, col, cols, y, stride),
                        3 if pair => self.pair::<S, 3>(simd, row, packed, col, cols, y, stride),
                        2 if pair => self.pair::<S, 2>(simd, row, packed, col, cols, y, stride),
                        _ if pair => self.pair::<S, 1>(simd, row, packed, col, cols, y, stride),
                        6 => self.tile::<S, 6>(simd, row, packed, col, cols, y, stride),
                        5 => self.tile::<S, 5>(simd, row, packed, col, cols, y, stride),
                        4 => self.tile::<S, 4>(simd, row, packed, col, cols, y, stride),
                        3 => self.tile::<S, 3>(simd, row, packed, col, cols, y, stride),
                        2 => self.tile::<S, 2>(simd, row, packed, col, cols, y, stride),
                        _ => self.tile::<S, 1>(simd, row, packed, col, cols, y, stride),
                    }
                    row += count;
                }
            }
        }
    }

    /// M rows times two panels, each of one vector; `packed` holds both.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn pair<S: Simd, const M: usize>(
        &self,
        simd: S,
        row: usize,
        packed: &[f32],
        col: usize,
        cols: usize,
        y: &mut [f32],
        stride: usize,
    ) {
        let x: [_; M] = std::array::from_fn(|r| self.x.find(row + r));
        let halves = packed.split_at(packed.len() / 2);
        let sums = pair_sums::<S, M>(simd, halves, self.x.taps(), self.x.len(), |r, tap| self.x.segment(x[r], tap));
        for (r, [left, right]) in sums.into_iter().enumerate() {
            let (near, far) = y[r * stride..r * stride + cols].split_at_mut(LANES);
            self.epilogue.finish(left, row + r, col, near);
            self.epilogue.finish(right, row + r, col + LANES, far);
        }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn tile<S: Simd, const M: usize>(
        &self,
        simd: S,
        row: usize,
        packed: &[f32],
        col: usize,
        cols: usize,
        y: &mut [f32],
        stride: usize,
    ) {
        let x: [_; M] = std::array::from_fn(|r| self.x.find(row + r));
        let sums = sums::<S, M>(simd, packed, self.x.taps(), self.x.len(), |r, tap| self.x.segment(x[r], tap));
        for (r, sums) in sums.into_iter().enumerate() {
            self.epilogue.finish(sums, row + r, col, &mut y[r * stride..r * stride + cols]);
        }
    }
}

/// The products of M rows with one panel. `segment(r, tap)` is a part of row r, `len` elements long.
#[inline(always)]
pub fn sums<'x, S: Simd, const M: usize>(
    simd: S,
    packed: &[f32],
    taps: usize,
    len: usize,
    segment: impl Fn(usize, usize) -> &'x [f32],
) -> [Lanes; M] {
    match S::F32_LANES {
        16 => sums_in::<S, M, 1>(simd, packed, taps, len, segment),
        8 => sums_in::<S, M, 2>(simd, packed, taps, len, segment),
        4 => sums_in::<S, M, 4>(simd, packed, taps, len, segment),
        _ => sums_in::<S, M, LANES>(simd, packed, taps, len, segment),
    }
}

/// [`sums`] with panels of V vectors.
#[inline(always)]
fn sums_in<'x, S: Simd, const M: usize, const V: usize>(
    simd: S,
    packed: &[f32],
    taps: usize,
    len: usize,
    segment: impl Fn(usize, usize) -> &'x [f32],
) -> [Lanes; M] {
    let mut acc = [[simd.splat_f32s(0.0); V]; M];
    for tap in 0..taps {
        let mut x: [&[f32]; M] = [&[]; M];
        for (r, x) in x.iter_mut().enumerate() {
            *x = segment(r, tap);
        }
        // The compiler must not see that the rows are a stride apart: it would compute their addresses again and
        // again instead of keeping six of them in registers.
        let opaque = black_box(x);
        for (x, opaque) in x.iter_mut().zip(opaque) {
            *x = &opaque[..len];
        }
        let panel = S::as_simd_f32s(&packed[tap * len * LANES..(tap + 1) * len * LANES]).0;
        let panel = &panel.as_chunks::<V>().0[..len];
        for (k, w) in panel.iter().enumerate() {
            for r in 0..M {
                let x = simd.splat_f32s(x[r][k]);
                for v in 0..V {
                    acc[r][v] = if S::F32_LANES == 1 {
                        // Without vectors there is no fused instruction either, and emulating one is slow.
                        simd.add_f32s(simd.mul_f32s(x, w[v]), acc[r][v])
                    } else {
                        simd.mul_add_e_f32s(x, w[v], acc[r][v])
                    };
                }
            }
        }
    }
    let mut out = [[0.0; LANES]; M];
    for (out, acc) in out.iter_mut().zip(&acc) {
        S::as_mut_simd_f32s(out).0.copy_from_slice(acc);
    }
    out
}

/// The products of M rows with two panels of one vector each. The order of every sum is that of [`sums`].
#[inline(always)]
fn pair_sums<'x, S: Simd, const M: usize>(
    simd: S,
    (left, right): (&[f32], &[f32]),
    taps: usize,
    len: usize,
    segment: impl Fn(usize, usize) -> &'x [f32],
) -> [[Lanes; 2]; M] {
    let mut acc = [[simd.splat_f32s(0.0); 2]; M];
    for tap in 0..taps {
        let mut x: [&[f32]; M] = [&[]; M];
        for (r, x) in x.iter_mut().enumerate() {
            *x = segment(r, tap);
        }
        // As in `sums_in`: the rows' addresses stay in registers.
        let opaque = black_box(x);
        for (x, opaque) in x.iter_mut().zip(opaque) {
            *x = &opaque[..len];
        }
        let part = |panel| &S::as_simd_f32s(panel).0[tap * len..(tap + 1) * len];
        for (k, (a, b)) in part(left).iter().zip(part(right)).enumerate() {
            for r in 0..M {
                let x = simd.splat_f32s(x[r][k]);
                acc[r][0] = simd.mul_add_e_f32s(x, *a, acc[r][0]);
                acc[r][1] = simd.mul_add_e_f32s(x, *b, acc[r][1]);
            }
        }
    }
    let mut out = [[[0.0; LANES]; 2]; M];
    for (out, acc) in out.iter_mut().zip(&acc) {
        for (out, acc) in out.iter_mut().zip(acc) {
            S::as_mut_simd_f32s(out).0.copy_from_slice(std::slice::from_ref(acc));
        }
    }
    out
}
