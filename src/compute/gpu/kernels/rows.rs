//! How `attention_rows` is cut up, which keeps whole rows of scores in registers: it must know which places of a matrix
//! each lane has.
//!
//! The length of a block of keys decides the order of sums. It depends on the shape of one sequence and of one head,
//! never on how many sequences there are: a session's frames are the same alone and in every batch.

use super::{Dispatch, Fill, KernelId, Matrix, Spec, Variant};
use crate::vk::MatrixShape;

/// Columns of a head at most.
const HEAD_MAX: u32 = 128;
/// Keys from which on this kernel is taken: below, the shortest block is mostly empty.
const KEYS_MIN: usize = 17;
/// Keys of the shortest block, which holds all of them where there are no more.
const KEYS_SHORT: u32 = 32;
/// Queries of a sequence from which on a subgroup has two bands and loads ahead: half the reads of shared memory, half
/// the workgroups.
const SOME: usize = 256;
/// Keys up to which a last block that is mostly empty costs more than what longer blocks cost in registers.
const FEW: usize = 512;

/// Where the elements of a matrix of sums are: a lane has `lines` rows of it, `span` neighbouring elements of one row
/// and then as many of the next, and `cluster` neighbouring lanes have the same rows. Left factors lie as sums do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    pub span: u32,
    pub lines: u32,
    pub cluster: u32,
    pub tail: Option<Tail>,
}

/// Matrices of sums with fewer columns, of which a lane has elements of the same rows as of the others, in the same
/// turn: a head that ends in the midst of a matrix ends in one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    pub columns: u32,
    pub span: u32,
}

impl Tail {
    /// From what `matrix_layout` wrote of the matrices of `layout`, and of those with fewer columns.
    pub fn find(
        layout: &RowLayout,
        (shape, places): (MatrixShape, &[u32]),
        (narrow, few): (MatrixShape, &[u32]),
        lanes: u32,
    ) -> Option<Tail> {
        let sums = few.get(..(narrow.m * narrow.n) as usize)?;
        let (own, own_few) = (shape.m * shape.n / lanes, narrow.m * narrow.n / lanes);
        let row = |lane: u32, e: u32| sums[(lane * own_few + e) as usize] / narrow.n;
        let row_of_line =
            |lane: u32, line: u32| places.get((lane * own + line * layout.span) as usize).map(|p| p / shape.n);
        let span = (1..=own_few).take_while(|&e| row(0, e - 1) == row(0, 0)).last()?;
        let regular = |lane, e| row_of_line(lane, e / span % layout.lines) == Some(row(lane, e));
        let mut seen: Vec<u32> = sums.to_vec();
        seen.sort_unstable();
        let whole = seen.iter().copied().eq(0..narrow.m * narrow.n);
        let known = whole && (0..lanes).all(|lane| (0..own_few).all(|e| regular(lane, e)));
        known.then_some(Tail { columns: narrow.n, span })
    }
}

impl RowLayout {
    /// From what `matrix_layout` wrote: the places of every lane, of sums and then of left factors. `None`: they are in
    /// no order that the kernel knows.
    pub fn find(shape: MatrixShape, lanes: u32, places: &[u32]) -> Option<RowLayout> {
        let (all, columns) = ((shape.m * shape.n) as usize, shape.n);
        let own = all / lanes as usize;
        let (sums, left) = (places.get(..all)?, places.get(all..2 * all)?);
        let mut seen = vec![false; all];
        for &place in sums {
            let known = seen.get_mut(place as usize)?;
            if std::mem::replace(known, true) {
                return None;
            }
        }
        let row = |lane: usize, e: usize| sums[lane * own + e] / columns;
        let span = (1..=own).take_while(|&e| row(0, e - 1) == row(0, 0)).count();
        let lines = (0..own).step_by(span).take_while(|&e| e == 0 || row(0, e) != row(0, 0)).count();
        let cluster = (0..lanes as usize).take_while(|&lane| row(lane, 0) == row(0, 0)).count();
        let even =
            own.is_multiple_of(span * lines) && cluster.is_power_of_two() && (lanes as usize).is_multiple_of(cluster);
        let regular =
            |lane: usize, e: usize| row(lane, e) == row(lane / cluster * cluster, e % (span * lines) / span * span);
        if sums != left
            || !even
            || !own.is_multiple_of(2)
            || !(0..lanes as usize).all(|lane| (0..own).all(|e| regular(lane, e)))
        {
            return None;
        }
        // Lines of one lane are different rows, and so are those of two clusters: every place was seen once.
        let word = |n: usize| u32::try_from(n).ok();
        Some(RowLayout { span: word(span)?, lines: word(lines)?, cluster: word(cluster)?, tail: None })
    }
}

/// The dispatch that finds the layout out: it writes a word for each place of a matrix of sums and of a left factor.
pub fn layout_probe(MatrixShape { m, n, k }: MatrixShape, lanes: u32, out: u64) -> Option<Dispatch> {
    let even = |places: u32| places.is_multiple_of(8) && places.is_multiple_of(lanes);
    let fits = m * k <= 2048 && even(m * n) && even(m * k) && n.is_multiple_of(4);
    let spec = Spec::new(&[lanes, lanes, m, n, k]);
    fits.then(|| {
        Fill::new(KernelId::MatrixLayout).variant((KernelId::MatrixLayout, spec)).address("out", out).grid([1; 3])
    })
}

/// How a workgroup is cut up: subgroups with `bands` matrices of queries each, blocks of `keys` keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCut {
    pub subgroups: u32,
    pub bands: u32,
    pub keys: u32,
    /// The next block is loaded before this one's sums.
    pub ahead: bool,
}

impl RowCut {
    /// True if the device can run it.
    pub fn fits(&self, matrix: &Matrix, layout: &RowLayout, columns: usize) -> bool {
        let MatrixShape { m, n, k } = matrix.shape;
        let Some(width) = u32::try_from(columns).ok().filter(|c| *c <= HEAD_MAX && c.is_multiple_of(8)) else {
            return false;
        };
        let divides = |b: u32, a: u32| a >= b && a.is_multiple_of(b);
        let even =
            divides(n, self.keys) && divides(k, self.keys) && n % 8 == 0 && k % 8 == 0 && m * n / 8 <= matrix.lanes;
        let known = layout.cluster.is_power_of_two() && n == k;
        even && known
            && (width / 8..=matrix.local_max).contains(&(self.subgroups * matrix.lanes))
            && 16 * self.shared(matrix, head(matrix, width)) <= matrix.shared_bytes
    }

    /// Shared memory in pieces of 16 bytes; the header of `attention_rows` has the same formula.
    fn shared(&self, matrix: &Matrix, head: u32) -> u32 {
        let MatrixShape { m, n, .. } = matrix.shape;
        let row = head / 8 + 1;
        let queries = self.subgroups * self.bands * m * row;
        let in_loop = 2 * self.keys * row + self.keys / 4;
        in_loop.max(queries).max(self.subgroups * m * (n / 4 + 1))
    }

    /// Queries of a workgroup.
    pub fn queries(&self, matrix: &Matrix) -> usize {
        (self.subgroups * self.bands * matrix.shape.m) as usize
    }

    /// The kernel with its specialization constants.
    pub fn variant(&self, matrix: &Matrix, layout: &RowLayout, columns: usize) -> Variant {
        let MatrixShape { m, n, k } = matrix.shape;
        let width = columns as u32;
        let local = self.subgroups * matrix.lanes;
        let tail = tail(matrix, layout, width).unwrap_or(Tail { columns: n, span: layout.span });
        let spec = [
            local,
            matrix.lanes,
            m,
            n,
            k,
            head(matrix, width),
            width / 8,
            self.keys,
            self.bands,
            layout.span,
            layout.lines,
            layout.cluster.ilog2(),
            u32::from(self.ahead),
            tail.columns,
            tail.span,
        ];
        (KernelId::AttentionRows, Spec::new(&spec))
    }

    /// What attention of `queries` queries to `keys` keys with heads of `columns` columns gets.
    pub fn choose(
        matrix: &Matrix,
        layout: &RowLayout,
        (queries, keys): (usize, usize),
        columns: usize,
    ) -> Option<RowCut> {
        if keys < KEYS_MIN {
            return None;
        }
        let all = if keys <= KEYS_SHORT as usize { KEYS_SHORT } else { 64 };
        let short = RowCut { subgroups: 4, bands: 1, keys: all, ahead: false };
        let width = u32::try_from(columns).ok()?;
        let long = RowCut { bands: 2, keys: long_keys(width, keys, tail(matrix, layout, width)), ahead: true, ..short };
        let wanted = u32::try_from(queries.div_ceil(matrix.shape.m as usize)).unwrap_or(4).clamp(1, 4);
        let ways = (1..=wanted).rev().map(|subgroups| RowCut { subgroups, ..short });
        let first = (queries >= SOME && all > KEYS_SHORT).then_some(long);
        first.into_iter().chain(ways).find(|c| c.fits(matrix, layout, columns))
    }
}

/// Keys of a block of two bands, as measured (`benches/KERNELS.md`): the more columns, the fewer registers are left.
fn long_keys(width: u32, keys: usize, tail: Option<Tail>) -> u32 {
    match width {
        ..=64 => 64,
        65..=80 if tail.is_some() && keys <= FEW => 64,
        65..=80 => 48,
        _ => 32,
    }
}

/// The narrower matrices that the last columns of a head are in, if it has full ones before and these few are enough.
fn tail(matrix: &Matrix, layout: &RowLayout, width: u32) -> Option<Tail> {
    let n = matrix.shape.n;
    layout.tail.filter(|t| width > n && (1..=t.columns).contains(&(width % n)))
}

/// Columns of a head with what fills up its matrices.
fn head(matrix: &Matrix, width: u32) -> u32 {
    width.next_multiple_of(matrix.shape.n.max(matrix.shape.k))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(lanes: u32, own: u32, at: impl Fn(u32, u32) -> (u32, u32), columns: u32) -> Vec<u32> {
        let one = || (0..lanes).flat_map(|l| (0..own).map(move |e| (l, e)));
        let all: Vec<u32> = one()
            .map(|(l, e)| {
                let (r, c) = at(l, e);
                r * columns + c
            })
            .collect();
        [all.clone(), all].concat()
    }

    #[test]
    fn known_layouts_are_found() {
        let wide = MatrixShape { m: 16, n: 16, k: 16 };
        let eights = |l: u32, e: u32| (l / 4 + e / 2 % 2 * 8, l % 4 * 2 + e % 2 + e / 4 * 8);
        let found = RowLayout { span: 2, lines: 2, cluster: 4, tail: None };
        assert_eq!(RowLayout::find(wide, 32, &places(32, 8, eights, 16)), Some(found));
        let fours = |l: u32, e: u32| (l / 4 + e / 4 * 8, l % 4 * 2 + e % 2 + e / 2 % 2 * 8);
        assert_eq!(
            RowLayout::find(wide, 32, &places(32, 8, fours, 16)),
            Some(RowLayout { span: 4, ..found }),
            "Hopper"
        );
        let small = MatrixShape { m: 8, n: 8, k: 8 };
        let columns = RowLayout { span: 1, lines: 8, cluster: 8, tail: None };
        assert_eq!(RowLayout::find(small, 8, &places(8, 8, |l, e| (e, l), 8)), Some(columns));
        let rows = RowLayout { span: 8, lines: 1, cluster: 1, tail: None };
        assert_eq!(RowLayout::find(small, 8, &places(8, 8, |l, e| (l, e), 8)), Some(rows));
    }

    /// A Hopper's matrices, its narrow ones with lanes that may be turned about.
    fn hopper(turn: u32) -> (RowLayout, Option<Tail>) {
        let (wide, narrow) = (MatrixShape { m: 16, n: 16, k: 16 }, MatrixShape { m: 16, n: 8, k: 16 });
        let all = places(32, 8, |l, e| (l / 4 + e / 4 * 8, l % 4 * 2 + e % 2 + e / 2 % 2 * 8), 16);
        let few = places(32, 4, |l, e| ((l + turn) % 32 / 4 + e / 2 * 8, l % 4 * 2 + e % 2), 8);
        let layout = RowLayout::find(wide, 32, &all).expect("known");
        (layout, Tail::find(&layout, (wide, &all), (narrow, &few[..128]), 32))
    }

    #[test]
    fn narrow_matrices_are_taken_if_lanes_have_the_same_rows() {
        assert_eq!(hopper(0).1, Some(Tail { columns: 8, span: 2 }));
        assert_eq!(hopper(4).1, None);
    }

    /// Cuts of the shapes that were measured.
    #[test]
    fn blocks_are_as_long_as_registers_allow() {
        let shape = MatrixShape { m: 16, n: 16, k: 16 };
        let matrix = Matrix { shape, lanes: 32, shared_bytes: 48 << 10, local_max: 1024 };
        let (layout, tail) = hopper(0);
        let keys = |tail, lengths, columns| {
            let layout = RowLayout { tail, ..layout };
            let cut = RowCut::choose(&matrix, &layout, lengths, columns)?;
            let spec = cut.variant(&matrix, &layout, columns).1;
            Some((cut.bands, cut.keys, spec.values()[13]))
        };
        assert_eq!(keys(tail, (3600, 3600), 72), Some((2, 48, 8)));
        assert_eq!(keys(None, (3600, 3600), 72), Some((2, 48, 16)));
        assert_eq!(keys(tail, (3600, 300), 72), Some((2, 64, 8)));
        assert_eq!(keys(None, (3600, 300), 72), Some((2, 48, 16)));
        assert_eq!(keys(tail, (3600, 3600), 64), Some((2, 64, 16)));
        assert_eq!(keys(tail, (3600, 3600), 128), Some((2, 32, 16)));
        assert_eq!(keys(tail, (240, 240), 64), Some((1, 64, 16)));
        assert_eq!(keys(tail, (240, 240), 8), Some((1, 64, 16)), "no full matrix before the last one");
        assert_eq!(keys(tail, (26, 26), 72), Some((1, 32, 8)));
        assert_eq!(keys(tail, (16, 16), 72), None);
    }

    #[test]
    fn others_are_not() {
        let small = MatrixShape { m: 8, n: 8, k: 8 };
        let mut odd = places(8, 8, |l, e| (e, l), 8);
        odd.swap(3, 17);
        assert_eq!(RowLayout::find(small, 8, &odd), None);
        assert_eq!(RowLayout::find(small, 8, &[0; 128]), None);
        assert_eq!(RowLayout::find(small, 8, &[0; 3]), None);
        let mut turned = places(8, 8, |l, e| (e, l), 8);
        turned[64..].copy_from_slice(&places(8, 8, |l, e| (l, e), 8)[..64]);
        assert_eq!(RowLayout::find(small, 8, &turned), None);
    }
}
