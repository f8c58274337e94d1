//! How attention in the matrix tier is cut up.
//!
//! The length of a block of keys decides the order of sums. Everything here depends on the shape of one sequence and of
//! one head, never on how many sequences there are: a session's frames are the same alone and in every batch.

use super::{KernelId, Matrix, Spec, Variant};
use crate::vk::MatrixShape;

/// Keys of a block.
const KEYS: u32 = 32;
/// Subgroups of a workgroup at most: more would share each block of keys, but start later.
const SUBGROUPS_MAX: u32 = 4;
/// Columns of a head at most.
const HEAD_MAX: u32 = 128;

/// How `attention_cm` is cut up: subgroups of a workgroup, each with the rows of one matrix as queries; columns of a
/// head with what fills up its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub subgroups: u32,
    pub columns: u32,
}

impl Heads {
    /// How attention of sequences of `queries` queries with heads of `columns` columns is cut up on a device. `None`:
    /// it does not fit the device.
    pub fn choose(matrix: &Matrix, queries: usize, columns: usize) -> Option<Heads> {
        let divides = |b: u32, a: u32| a >= b && a.is_multiple_of(b);
        let MatrixShape { m, n, k } = matrix.shape;
        let width = u32::try_from(columns).ok().filter(|c| *c <= HEAD_MAX && c.is_multiple_of(8))?;
        let columns = width.next_multiple_of(n.max(k));
        let rows = divides(m, matrix.lanes) && divides(matrix.lanes / m, KEYS / 8) && m.is_multiple_of(4);
        let sides = divides(n.min(k), n.max(k)) && divides(n, KEYS) && divides(k, KEYS);
        let even = rows && sides && m * n / 8 <= matrix.lanes;
        let wanted = u32::try_from(queries.div_ceil(m as usize)).unwrap_or(SUBGROUPS_MAX).min(SUBGROUPS_MAX);
        let ways = (1..=wanted).rev().map(|subgroups| Heads { subgroups, columns });
        ways.filter(|_| even).find(|h| h.fits(matrix))
    }

    /// The header of `attention_cm` has the formula of the shared memory.
    fn fits(&self, matrix: &Matrix) -> bool {
        let (row, queries) = (self.columns / 8 + 1, self.subgroups * matrix.shape.m);
        let staged = 2 * KEYS * row + queries * (KEYS / 4 + 1 + KEYS / 8 + 1) + queries / 4;
        16 * staged.max(queries * row) <= matrix.shared_bytes && self.subgroups * matrix.lanes <= matrix.local_max
    }

    /// Queries of a workgroup.
    pub fn queries(&self, matrix: &Matrix) -> usize {
        (self.subgroups * matrix.shape.m) as usize
    }

    /// The kernel with its specialization constants.
    pub fn variant(&self, matrix: &Matrix) -> Variant {
        let MatrixShape { m, n, k } = matrix.shape;
        let local = self.subgroups * matrix.lanes;
        (KernelId::AttentionCm, Spec::new(&[local, matrix.lanes, m, n, k, self.columns, KEYS]))
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
    fn attention_fits_known_devices() {
        let hopper = matrix(16, 32, 48 << 10);
        let of = |device: &Matrix, columns| Heads::choose(device, 240, columns);
        assert_eq!(of(&hopper, 64), Some(Heads { subgroups: 4, columns: 64 }));
        assert_eq!(of(&hopper, 72), Some(Heads { subgroups: 4, columns: 80 }));
        assert_eq!(of(&matrix(16, 64, 64 << 10), 64), Some(Heads { subgroups: 4, columns: 64 }));
        assert!(of(&matrix(8, 8, 32 << 10), 72).is_some(), "lavapipe");
        assert_eq!(of(&hopper, 136), None);
        assert_eq!(Heads::choose(&hopper, 9, 64), Some(Heads { subgroups: 1, columns: 64 }));
    }
}
