//! Tiles of the kernels that work on cooperative matrices: which ones a device can run, and which one a product gets.
//!
//! A tile decides speed only. Every tile sums over `k` in the same steps and the same order, and whether an operation
//! goes to these kernels depends on its columns and strides, never on its rows: a session's frames are the same alone
//! and in every batch.

use std::collections::BTreeMap;

use super::{KernelId, Spec};
use crate::vk::MatrixShape;

/// What the matrix tier knows about its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub shape: MatrixShape,
    /// Lanes of a subgroup.
    pub lanes: u32,
    /// Shared memory of a workgroup in bytes.
    pub shared_bytes: u32,
    /// Invocations of a workgroup at most.
    pub local_max: u32,
}

/// How a product is cut up: `bm` x `bn` of the result a workgroup, `wm` x `wn` a subgroup, `bk` of the sum a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    pub bm: u32,
    pub bn: u32,
    pub bk: u32,
    pub wm: u32,
    pub wn: u32,
    pub stages: u32,
}

const fn tile(bm: u32, bn: u32, bk: u32, wm: u32, wn: u32, stages: u32) -> Tile {
    Tile { bm, bn, bk, wm, wn, stages }
}

/// All tiles, larger ones first. A device runs those that fit it, see [`Matrix::tiles`].
const TILES: &[Tile] = &[
    tile(256, 128, 32, 64, 64, 1),
    tile(128, 256, 32, 64, 64, 1),
    tile(128, 128, 64, 64, 64, 1),
    tile(128, 128, 32, 64, 64, 2),
    tile(128, 128, 32, 64, 64, 1),
    tile(128, 128, 32, 64, 32, 2),
    tile(128, 64, 64, 64, 32, 1),
    tile(128, 64, 32, 64, 32, 2),
    tile(64, 128, 32, 32, 64, 2),
    tile(64, 64, 64, 32, 32, 2),
    tile(64, 64, 32, 32, 32, 2),
    tile(64, 32, 64, 32, 16, 2),
    tile(32, 64, 64, 16, 32, 2),
    tile(32, 32, 64, 16, 16, 2),
    tile(16, 32, 64, 16, 16, 2),
    tile(32, 32, 16, 16, 16, 1),
    tile(16, 32, 16, 8, 16, 2),
];

/// Accumulators that an invocation can hold: 32-bit sums in registers.
const SUMS_MAX: u32 = 128;

/// Workgroups that keep a large device busy; without measurements the largest tile that gives so many is taken.
const GROUPS_WANTED: u32 = 120;

impl Tile {
    /// Invocations of a workgroup.
    fn local(&self, lanes: u32) -> u32 {
        self.bm / self.wm * (self.bn / self.wn) * lanes
    }

    /// Shared memory in bytes: the header of `linear_cm` has the formula.
    fn shared_bytes(&self, matrix: &Matrix) -> u32 {
        let staged = self.stages * (self.bm + self.bn) * (self.bk / 8 + 1);
        let out = self.local(matrix.lanes) / matrix.lanes * matrix.shape.m * (self.wn / 4 + 1);
        16 * staged.max(out)
    }

    /// True if the device can run the tile, and the kernels' loops come out even.
    pub fn fits(&self, matrix: &Matrix) -> bool {
        let MatrixShape { m, n, k } = matrix.shape;
        let whole = |a: u32, b: u32| a >= b && a.is_multiple_of(b);
        if !(whole(self.wm, m) && whole(self.wn, n) && whole(self.bk, k)) {
            return false;
        }
        let (local, per_row) = (self.local(matrix.lanes), self.bk / 8);
        let loads = whole(local, per_row) && whole(self.bm, local / per_row) && whole(self.bn, local / per_row);
        let stores = whole(m * self.wn / 8, matrix.lanes);
        let sums = self.wm * self.wn / matrix.lanes <= SUMS_MAX;
        loads && stores && sums && local <= matrix.local_max && self.shared_bytes(matrix) <= matrix.shared_bytes
    }

    /// Specialization constants of `linear_cm` and `conv3x3_cm` for a sum over `k`.
    pub fn spec(&self, matrix: &Matrix, k: usize) -> Spec {
        let MatrixShape { m, n, k: step } = matrix.shape;
        let tail = u32::from(!k.is_multiple_of(self.bk as usize));
        let local = self.local(matrix.lanes);
        let shape = [self.bm, self.bn, self.bk, self.wm, self.wn];
        let [bm, bn, bk, wm, wn] = shape;
        Spec::new(&[local, matrix.lanes, bm, bn, bk, wm, wn, m, n, step, self.stages, tail])
    }

    /// Workgroups for `m` x `n` results.
    pub fn groups(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.bm as usize) * n.div_ceil(self.bn as usize)
    }
}

/// A product as tiles are chosen for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Product {
    pub kernel: KernelId,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// How `attention_cm` is cut up: subgroups of a workgroup, each with the rows of one matrix as queries, and columns of a
/// head with what fills up its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub subgroups: u32,
    columns: u32,
}

/// Keys of a block of `attention_cm`: it decides the order of sums, so it is one number for all.
const KEYS: u32 = 32;
/// Subgroups of a workgroup at most: more would share each block of keys, but start later.
const SUBGROUPS_MAX: u32 = 4;
/// Columns of a head at most.
const HEAD_MAX: u32 = 128;

impl Heads {
    /// Queries of a workgroup.
    pub fn queries(&self, matrix: &Matrix) -> usize {
        (self.subgroups * matrix.shape.m) as usize
    }

    /// Specialization constants of `attention_cm`.
    pub fn spec(&self, matrix: &Matrix) -> Spec {
        let MatrixShape { m, n, k } = matrix.shape;
        Spec::new(&[self.subgroups * matrix.lanes, matrix.lanes, m, n, k, self.columns, KEYS])
    }

    fn shared_bytes(&self, matrix: &Matrix) -> u32 {
        let (row, queries) = (self.columns / 8 + 1, self.subgroups * matrix.shape.m);
        let blocks = 2 * KEYS * row + queries * (KEYS / 4 + 1 + KEYS / 8 + 1) + queries / 4;
        16 * blocks.max(queries * row)
    }
}

impl Matrix {
    /// How attention of `queries` queries with heads of `columns` columns is cut up; `None`: it does not fit the device.
    pub fn heads(&self, queries: usize, columns: usize) -> Option<Heads> {
        let MatrixShape { m, n, k } = self.shape;
        let whole = |a: u32, b: u32| a >= b && a.is_multiple_of(b);
        let width = u32::try_from(columns).ok().filter(|c| *c <= HEAD_MAX && c.is_multiple_of(8))?;
        let columns = width.next_multiple_of(n.max(k));
        let even = whole(n.max(k), n.min(k)) && whole(self.lanes, m) && whole(KEYS / 8, self.lanes / m);
        let blocks = whole(KEYS, n) && whole(KEYS, k) && m.is_multiple_of(4) && m * n / 8 <= self.lanes;
        let wanted = u32::try_from(queries.div_ceil(m as usize)).unwrap_or(SUBGROUPS_MAX).min(SUBGROUPS_MAX);
        let fits = |h: &Heads| h.shared_bytes(self) <= self.shared_bytes && h.subgroups * self.lanes <= self.local_max;
        let all = (1..=wanted).rev().map(|subgroups| Heads { subgroups, columns });
        all.filter(|_| even && blocks).find(fits)
    }

    /// The tiles that the device can run, larger ones first.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> + '_ {
        TILES.iter().copied().filter(|t| t.fits(self))
    }

    /// True if the device can run any: only then has it the matrix tier.
    pub fn usable(&self) -> bool {
        self.tiles().next().is_some()
    }

    /// The tile that was measured to be the best, or a guess.
    pub fn choose(&self, tuned: &BTreeMap<Product, Tile>, product: &Product) -> Tile {
        if let Some(tile) = tuned.get(product) {
            return *tile;
        }
        let busy = |t: &Tile| t.groups(product.m, product.n) >= GROUPS_WANTED as usize;
        let last = self.tiles().min_by_key(|t| t.bm * t.bn);
        self.tiles().find(busy).or(last).expect("a device without tiles has no matrix tier")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(side: u32, lanes: u32, shared_bytes: u32) -> Matrix {
        Matrix { shape: MatrixShape { m: side, n: side, k: side }, lanes, shared_bytes, local_max: 1024 }
    }

    #[test]
    fn known_devices_have_tiles() {
        let hopper = matrix(16, 32, 48 << 10);
        let count = hopper.tiles().count();
        assert!(count >= 12, "{count}");
        assert!(hopper.tiles().all(|t| t.shared_bytes(&hopper) <= 48 << 10));
        assert!(matrix(8, 8, 32 << 10).tiles().count() >= 2, "lavapipe");
        assert!(matrix(16, 64, 64 << 10).usable() && matrix(16, 32, 32 << 10).usable(), "wave32 and wave64");
        assert!(!matrix(16, 32, 1 << 10).usable());
        for (device, columns) in
            [(hopper, 72), (hopper, 128), (matrix(8, 8, 32 << 10), 64), (matrix(16, 64, 64 << 10), 64)]
        {
            let heads = device.heads(240, columns).expect("attention fits");
            assert!(heads.subgroups == 4 || device.lanes == 8, "{heads:?}");
        }
        assert_eq!(hopper.heads(9, 64).map(|h| h.subgroups), Some(1));
        assert_eq!(hopper.heads(240, 136), None);
    }

    #[test]
    fn a_small_product_gets_small_tiles_and_a_measured_one_its_own() {
        let device = matrix(16, 32, 48 << 10);
        let product = |m| Product { kernel: KernelId::LinearCm, m, n: 384, k: 384 };
        let mut tuned = BTreeMap::new();
        let (small, large) = (device.choose(&tuned, &product(240)), device.choose(&tuned, &product(93_600)));
        assert!(small.bm * small.bn < large.bm * large.bn, "{small:?} {large:?}");
        tuned.insert(product(240), large);
        assert_eq!(device.choose(&tuned, &product(240)), large);
    }
}
