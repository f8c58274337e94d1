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
}

/// How a product is cut up: `bm` x `bn` of the result a workgroup, `wm` x `wn` of it a subgroup, `bk` of the sum a
/// stage, of which one or two are kept in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tile {
    pub bm: u32,
    pub bn: u32,
    pub bk: u32,
    pub wm: u32,
    pub wn: u32,
    pub stages: u32,
    /// When the next stage is loaded, see `linear_cm`.
    pub ahead: u32,
}

const fn tile(bm: u32, bn: u32, bk: u32, wm: u32, wn: u32, stages: u32) -> Tile {
    Tile { bm, bn, bk, wm, wn, stages, ahead: 1 }
}

/// The next stage is loaded in `ahead` parts.
const fn parts(bm: u32, bn: u32, bk: u32, wm: u32, wn: u32, ahead: u32) -> Tile {
    Tile { bm, bn, bk, wm, wn, stages: 1, ahead }
}

/// All tiles, larger ones first. A device runs those that fit it, see [`Matrix::tiles`].
const TILES: &[Tile] = &[
    tile(192, 128, 64, 48, 64, 1),
    tile(128, 128, 64, 64, 64, 1),
    tile(128, 128, 64, 64, 32, 1),
    tile(96, 128, 64, 48, 64, 1),
    tile(128, 64, 64, 64, 32, 1),
    tile(64, 128, 64, 32, 64, 1),
    tile(96, 64, 64, 48, 32, 1),
    tile(64, 64, 64, 32, 32, 1),
    parts(64, 64, 64, 32, 32, 2),
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

/// True if `a` is `b` once or several times.
fn divides(b: u32, a: u32) -> bool {
    a >= b && a.is_multiple_of(b)
}

impl Tile {
    /// Invocations of a workgroup.
    fn local(&self, lanes: u32) -> u32 {
        self.bm / self.wm * (self.bn / self.wn) * lanes
    }

    /// True if the device can run the tile, and the kernels' loops come out even.
    pub fn fits(&self, matrix: &Matrix) -> bool {
        let MatrixShape { m, n, k } = matrix.shape;
        let (local, Tile { wm, wn, .. }) = (self.local(matrix.lanes), *self);
        if !(divides(m, wm) && divides(n, wn) && divides(k, self.bk)) {
            return false;
        }
        let per_row = self.bk / 8;
        let loads = divides(per_row, local) && divides(local / per_row, self.bm) && divides(local / per_row, self.bn);
        let stores = divides(matrix.lanes, m * wn / 8) && divides(wn / 8, matrix.lanes);
        let parts = self.ahead <= self.bk / k;
        let sums = wm * wn / matrix.lanes <= SUMS_MAX;
        // The header of `linear_cm` has the formula.
        let staged = self.stages * (self.bm + self.bn) * (per_row + 1);
        let out = local / matrix.lanes * m * (wn / 4 + 1);
        let shared = 16 * staged.max(out);
        loads && stores && parts && sums && local <= matrix.local_max && shared <= matrix.shared_bytes
    }

    /// Specialization constants of the kernel that computes a product with this tile.
    pub fn variant(&self, matrix: &Matrix, product: &Product) -> Variant {
        let MatrixShape { m, n, k } = matrix.shape;
        let Tile { bm, bn, bk, wm, wn, stages, ahead } = *self;
        let tail = u32::from(!product.k.is_multiple_of(bk as usize));
        let (local, Finish { act, flags }) = (self.local(matrix.lanes), product.finish);
        let spec = [local, matrix.lanes, bm, bn, bk, wm, wn, m, n, k, stages, tail, ahead, act, flags];
        (product.kernel, Spec::new(&spec))
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
    pub finish: Finish,
}

/// What happens to the sums before they are stored: constants ACT and FLAGS of the kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finish {
    pub act: u32,
    pub flags: u32,
}

impl Matrix {
    /// The tiles by which the device can compute a product, larger ones first.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> + '_ {
        TILES.iter().copied().filter(|t| t.fits(self))
    }

    /// True if the device can run any: only then has it the matrix tier.
    pub fn usable(&self) -> bool {
        self.tiles().next().is_some()
    }

    /// Invocations that share a head of `columns` columns, eight each; `None`: it does not fit a subgroup evenly.
    pub fn parts(&self, columns: usize) -> Option<u32> {
        self.team(columns).and_then(|(parts, team)| (parts == team).then_some(parts))
    }

    /// The same for kernels that leave some of a team without columns: how many have some, and how many there are,
    /// a power of two.
    pub fn team(&self, columns: usize) -> Option<(u32, u32)> {
        let parts = u32::try_from(columns / 8).ok().filter(|p| *p > 0)?;
        let team = parts.next_power_of_two();
        (columns.is_multiple_of(8) && team <= self.lanes).then_some((parts, team))
    }

    /// A tile by guess: the largest one that gives enough workgroups.
    pub fn guess(&self, product: &Product) -> Tile {
        let busy = |t: &Tile| t.groups(product.m, product.n) >= GROUPS_WANTED as usize;
        let last = self.tiles().min_by_key(|t| t.bm * t.bn);
        self.tiles().find(busy).or(last).expect("a device without tiles has no matrix tier")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(side: u32, lanes: u32, shared_bytes: u32) -> Matrix {
        let shape = MatrixShape { m: side, n: side, k: side };
        Matrix { shape, lanes, shared_bytes, local_max: 1024 }
    }

    #[test]
    fn known_devices_have_tiles() {
        assert!(matrix(16, 32, 48 << 10).tiles().count() >= 12, "Hopper");
        assert!(matrix(8, 8, 32 << 10).tiles().count() >= 2, "lavapipe");
        assert!(matrix(16, 64, 64 << 10).usable() && matrix(16, 32, 32 << 10).usable(), "wave32 and wave64");
        assert!(!matrix(16, 32, 1 << 10).usable());
    }

    #[test]
    fn a_small_product_gets_small_tiles() {
        let device = matrix(16, 32, 48 << 10);
        let product = |m| Product { kernel: KernelId::LinearCm, m, n: 384, k: 384, finish: Finish::default() };
        let (small, large) = (device.guess(&product(240)), device.guess(&product(93_600)));
        assert!(small.bm * small.bn < large.bm * large.bn, "{small:?} {large:?}");
    }
}
