//! Tiles of the kernels that work on cooperative matrices: which ones a device can run, and which one a product gets.
//!
//! A tile decides speed only. Every tile sums over `k` in the same steps and the same order, and whether an operation
//! goes to these kernels depends on its columns and strides, never on its rows: a session's frames are the same alone
//! and in every batch.

use serde::{Deserialize, Serialize};

use super::{KernelId, Spec, Variant};
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
    /// The same for workgroups that multiply as a whole; 0: none do.
    pub whole_local_max: u32,
}

/// How a product is cut up: `bm` x `bn` of the result a workgroup, `bk` of the sum a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tile {
    pub bm: u32,
    pub bn: u32,
    pub bk: u32,
    pub cut: Cut,
}

/// Who computes what of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// `wm` x `wn` a subgroup; one or two stages are kept in shared memory; the next one is loaded ahead of the sums of
    /// this one, or after them, which leaves registers to more workgroups: `linear_cm`, `conv3x3_cm`.
    Subgroups { wm: u32, wn: u32, stages: u32, ahead: bool },
    /// All of it the workgroup: `linear_cm2`.
    Whole { local: u32 },
}

const fn tile(bm: u32, bn: u32, bk: u32, wm: u32, wn: u32, stages: u32) -> Tile {
    Tile { bm, bn, bk, cut: Cut::Subgroups { wm, wn, stages, ahead: true } }
}

const fn late(bm: u32, bn: u32, bk: u32, wm: u32, wn: u32) -> Tile {
    Tile { bm, bn, bk, cut: Cut::Subgroups { wm, wn, stages: 1, ahead: false } }
}

const fn whole(bm: u32, bn: u32, bk: u32, local: u32) -> Tile {
    Tile { bm, bn, bk, cut: Cut::Whole { local } }
}

/// All tiles, larger ones first. A device runs those that fit it, see [`Matrix::tiles`].
const TILES: &[Tile] = &[
    tile(256, 128, 32, 64, 64, 1),
    tile(128, 256, 32, 64, 64, 1),
    tile(128, 128, 64, 64, 64, 1),
    late(128, 128, 64, 64, 64),
    late(128, 128, 64, 64, 32),
    tile(128, 128, 64, 64, 32, 1),
    tile(128, 128, 32, 64, 64, 2),
    tile(128, 128, 32, 64, 64, 1),
    tile(128, 128, 32, 64, 32, 2),
    tile(128, 64, 64, 64, 32, 1),
    tile(128, 64, 32, 64, 32, 2),
    tile(64, 128, 32, 32, 64, 2),
    late(128, 64, 64, 64, 32),
    late(64, 128, 64, 32, 64),
    tile(64, 64, 64, 32, 32, 2),
    late(64, 64, 128, 32, 32),
    tile(64, 64, 32, 32, 32, 2),
    tile(64, 32, 64, 32, 16, 2),
    tile(32, 64, 64, 16, 32, 2),
    tile(32, 32, 64, 16, 16, 2),
    tile(16, 32, 64, 16, 16, 2),
    tile(32, 32, 16, 16, 16, 1),
    tile(16, 32, 16, 8, 16, 2),
    whole(128, 128, 64, 128),
    whole(128, 64, 64, 128),
    whole(64, 128, 64, 128),
    whole(64, 64, 64, 128),
];

/// Accumulators that an invocation can hold: 32-bit sums in registers.
const SUMS_MAX: u32 = 128;

/// Workgroups that keep a large device busy; without measurements the largest tile that gives so many is taken.
const GROUPS_WANTED: u32 = 120;

/// True if `a` is `b` once or several times.
fn divides(b: u32, a: u32) -> bool {
    a >= b && a.is_multiple_of(b)
}

impl Tile {
    /// Invocations of a workgroup.
    fn local(&self, lanes: u32) -> u32 {
        match self.cut {
            Cut::Subgroups { wm, wn, .. } => self.bm / wm * (self.bn / wn) * lanes,
            Cut::Whole { local } => local,
        }
    }

    /// True if the device can run the tile, and the kernels' loops come out even.
    pub fn fits(&self, matrix: &Matrix) -> bool {
        let MatrixShape { m, n, k } = matrix.shape;
        let local = self.local(matrix.lanes);
        let Cut::Subgroups { wm, wn, stages, .. } = self.cut else {
            return local <= matrix.whole_local_max && divides(matrix.lanes, local);
        };
        if !(divides(m, wm) && divides(n, wn) && divides(k, self.bk)) {
            return false;
        }
        let per_row = self.bk / 8;
        let loads = divides(per_row, local) && divides(local / per_row, self.bm) && divides(local / per_row, self.bn);
        let stores = divides(matrix.lanes, m * wn / 8);
        let sums = wm * wn / matrix.lanes <= SUMS_MAX;
        // The header of `linear_cm` has the formula.
        let staged = stages * (self.bm + self.bn) * (per_row + 1);
        let out = local / matrix.lanes * m * (wn / 4 + 1);
        loads && stores && sums && local <= matrix.local_max && 16 * staged.max(out) <= matrix.shared_bytes
    }

    /// The kernel by which a tile computes what `kernel` names, with its specialization constants.
    pub fn variant(&self, matrix: &Matrix, product: &Product) -> Variant {
        let (local, Tile { bm, bn, bk, .. }) = (self.local(matrix.lanes), *self);
        let even = |side: usize, part: u32| side.is_multiple_of(part as usize);
        match self.cut {
            Cut::Subgroups { wm, wn, stages, ahead } => {
                let MatrixShape { m, n, k } = matrix.shape;
                let tail = u32::from(!even(product.k, bk));
                let spec = [local, matrix.lanes, bm, bn, bk, wm, wn, m, n, k, stages, tail, u32::from(ahead)];
                (product.kernel, Spec::new(&spec))
            }
            Cut::Whole { .. } => {
                let clamp = !(even(product.m, bm) && even(product.n, bn) && even(product.k, bk));
                (KernelId::LinearCm2, Spec::new(&[local, bm, bn, bk, u32::from(clamp)]))
            }
        }
    }

    /// Workgroups for `m` x `n` results.
    pub fn groups(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.bm as usize) * n.div_ceil(self.bn as usize)
    }
}

/// A product as tiles are chosen for it: `linear_cm` or `conv3x3_cm` with its sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Product {
    pub kernel: KernelId,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Matrix {
    /// The tiles by which the device can compute a product, those of subgroups before whole ones, larger ones first.
    pub fn tiles(&self, kernel: KernelId) -> impl Iterator<Item = Tile> + '_ {
        let known = move |t: &Tile| kernel == KernelId::LinearCm || matches!(t.cut, Cut::Subgroups { .. });
        TILES.iter().copied().filter(move |t| known(t) && t.fits(self))
    }

    /// True if the device can run any: only then has it the matrix tier.
    pub fn usable(&self) -> bool {
        self.tiles(KernelId::Conv3x3Cm).next().is_some()
    }

    /// Invocations that share a head of `columns` columns, eight each; `None`: it does not fit a subgroup evenly.
    pub fn parts(&self, columns: usize) -> Option<u32> {
        let parts = u32::try_from(columns / 8).ok()?;
        (columns.is_multiple_of(8) && parts.is_power_of_two() && parts <= self.lanes).then_some(parts)
    }

    /// A tile by guess: the largest one of subgroups that gives enough workgroups.
    pub fn guess(&self, product: &Product) -> Tile {
        let all = || self.tiles(KernelId::Conv3x3Cm);
        let busy = |t: &Tile| t.groups(product.m, product.n) >= GROUPS_WANTED as usize;
        let last = all().min_by_key(|t| t.bm * t.bn);
        all().find(busy).or(last).expect("a device without tiles has no matrix tier")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(side: u32, lanes: u32, shared_bytes: u32) -> Matrix {
        let shape = MatrixShape { m: side, n: side, k: side };
        Matrix { shape, lanes, shared_bytes, local_max: 1024, whole_local_max: 0 }
    }

    #[test]
    fn known_devices_have_tiles() {
        let hopper = Matrix { whole_local_max: 256, ..matrix(16, 32, 48 << 10) };
        let count = |m: &Matrix, kernel| m.tiles(kernel).count();
        assert!(count(&hopper, KernelId::Conv3x3Cm) >= 12);
        assert_eq!(count(&hopper, KernelId::LinearCm), count(&hopper, KernelId::Conv3x3Cm) + 4);
        assert!(count(&matrix(8, 8, 32 << 10), KernelId::LinearCm) >= 2, "lavapipe");
        assert!(matrix(16, 64, 64 << 10).usable() && matrix(16, 32, 32 << 10).usable(), "wave32 and wave64");
        assert!(!matrix(16, 32, 1 << 10).usable());
    }

    #[test]
    fn a_small_product_gets_small_tiles() {
        let device = matrix(16, 32, 48 << 10);
        let product = |m| Product { kernel: KernelId::LinearCm, m, n: 384, k: 384 };
        let (small, large) = (device.guess(&product(240)), device.guess(&product(93_600)));
        assert!(small.bm * small.bn < large.bm * large.bn, "{small:?} {large:?}");
    }
}
