//! Attention: scores of a few rows at a time, never a whole matrix of them.

use std::ops::Range;

use pulp::Simd;

use super::super::op::{Attention, RingAttention, RingWrite};
use super::super::tensor::Param;
use super::gemm::{self, TILE_ROWS, packed_len, sums};
use super::math::{LANES, Lanes, dot, each, exp, load, store, sum};
use super::memory::{Mat, Memory, Operands, Scratch};
use super::tasks::{Body, Context, Split};

/// Elements of packed keys and values of one sequence, and of scores for each task.
pub fn space(op: &Attention) -> (usize, usize) {
    let (hd, keys) = (op.q.cols / op.heads, op.lengths().1);
    (op.heads * head_len(keys, hd), TILE_ROWS * keys.next_multiple_of(LANES))
}

/// Packed keys and values of one head.
fn head_len(keys: usize, hd: usize) -> usize {
    packed_len(keys, hd) + packed_len(hd, keys)
}

/// A param's value; the run was checked before.
fn value(param: Param, params: &[u32]) -> usize {
    param.value(params).unwrap_or_default() as usize
}

/// Softmax of a row of scores without the division: returns `1 / sum`.
#[inline(always)]
fn softmax(scores: &mut [f32]) -> f32 {
    let mut max = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        (0..LANES).for_each(|i| max[i] = max[i].max(chunk[i]));
    }
    let max = max.iter().chain(rest).fold(f32::NEG_INFINITY, |m, s| m.max(*s));
    let mut total = [0.0; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        chunk.iter_mut().for_each(|s| *s = exp(*s - max));
        (0..LANES).for_each(|i| total[i] += chunk[i]);
    }
    let mut tail = 0.0;
    for s in rest {
        *s = exp(*s - max);
        tail += *s;
    }
    1.0 / (sum(&total) + tail)
}

/// Packs the keys and values of some heads.
struct PackHeads<'a> {
    k: Mat<'a>,
    v: Mat<'a>,
    hd: usize,
}

impl Body for PackHeads<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, _: S, heads: Range<usize>, out: &mut [f32], _: &mut [f32]) {
        let (keys, hd) = (self.k.rows, self.hd);
        for (head, out) in heads.zip(out.chunks_exact_mut(head_len(keys, hd))) {
            let (k, v) = out.split_at_mut(packed_len(keys, hd));
            gemm::pack(&self.k.columns(head * hd, hd), k);
            gemm::pack_transposed(&self.v.columns(head * hd, hd), v);
        }
    }
}

/// Attention of some query rows over packed keys and values.
struct Attend<'a> {
    q: Mat<'a>,
    heads: usize,
    hd: usize,
    /// Keys that count; no others are packed.
    keys: usize,
    scale: f32,
    bias: Option<&'a [f32]>,
    /// Length of a row of the bias: keys that are there.
    bias_row: usize,
    packed: &'a [f32],
    stride: usize,
}

impl Body for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>, y: &mut [f32], work: &mut [f32]) {
        for (head, packed) in (0..self.heads).zip(self.packed.chunks_exact(head_len(self.keys, self.hd))) {
            let mut row = rows.start;
            while row < rows.end {
                let y = &mut y[(row - rows.start) * self.stride..];
                let count = TILE_ROWS.min(rows.end - row);
                match count {
                    6 => self.tile::<S, 6>(simd, head, row, packed, y, work),
                    5 => self.tile::<S, 5>(simd, head, row, packed, y, work),
                    4 => self.tile::<S, 4>(simd, head, row, packed, y, work),
                    3 => self.tile::<S, 3>(simd, head, row, packed, y, work),
                    2 => self.tile::<S, 2>(simd, head, row, packed, y, work),
                    _ => self.tile::<S, 1>(simd, head, row, packed, y, work),
                }
                row += count;
            }
        }
    }
}

impl Attend<'_> {
    /// M query rows of one head.
    #[inline(always)]
    fn tile<S: Simd, const M: usize>(
        &self,
        simd: S,
        head: usize,
        row: usize,
        packed: &[f32],
        y: &mut [f32],
        work: &mut [f32],
    ) {
        let (hd, padded) = (self.hd, self.keys.next_multiple_of(LANES));
        let (k, v) = packed.split_at(packed_len(self.keys, hd));
        let q = self.q.columns(head * hd, hd);
        for panel in 0..self.keys.div_ceil(LANES) {
            let k = &k[panel * hd * LANES..(panel + 1) * hd * LANES];
            let tile: [Lanes; M] = sums::<S, M>(simd, k, 1, hd, |r, _| q.row(row + r));
            for (r, mut scores) in tile.into_iter().enumerate() {
                scores.iter_mut().for_each(|s| *s *= self.scale);
                if let Some(bias) = self.bias {
                    let start = (head * self.q.rows + row + r) * self.bias_row;
                    let bias = load(&bias[start..start + self.keys], panel * LANES);
                    (0..LANES).for_each(|i| scores[i] += bias[i]);
                }
                work[r * padded + panel * LANES..][..LANES].copy_from_slice(&scores);
            }
        }
        let mut inverse = [0.0; M];
        for (r, inverse) in inverse.iter_mut().enumerate() {
            *inverse = softmax(&mut work[r * padded..r * padded + self.keys]);
        }
        let work = &*work;
        for (panel, v) in v.chunks_exact(self.keys * LANES).enumerate() {
            let tile: [Lanes; M] = sums::<S, M>(simd, v, 1, self.keys, |r, _| &work[r * padded..][..self.keys]);
            let cols = LANES.min(hd - panel * LANES);
            for (r, mut sums) in tile.into_iter().enumerate() {
                sums.iter_mut().for_each(|s| *s *= inverse[r]);
                store(&sums, &mut y[r * self.stride + head * hd + panel * LANES..][..cols]);
            }
        }
    }
}

/// Attention of one sequence, see [`Attention::sequence`].
pub fn attention(op: &Attention, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.y.tensor);
    {
        let memory: &Memory<'_> = memory;
        let mut operands = Operands::new(memory, op.y.tensor, &mut scratch.stage);
        let [q, k, v] = [op.q, op.k, op.v].map(|x| operands.get(&x, &buffer));
        // Keys beyond those that count, such as the padding of a text, cost nothing.
        let keys = op.key_count.map_or(k.rows, |p| value(p, cx.params));
        let [k, v] = [k, v].map(|x| Mat { rows: keys, ..x });
        let (hd, cost) = (op.q.cols / op.heads, 4 * q.rows * keys * q.cols);
        let packed = &mut scratch.packed[..op.heads * head_len(keys, hd)];
        let heads = Split { rows: op.heads, stride: head_len(keys, hd), step: 1, cost: 4 * keys * k.cols, work: 0 };
        cx.rows(packed, heads, &mut [], &PackHeads { k, v, hd });
        let body = Attend {
            q,
            heads: op.heads,
            hd,
            keys,
            scale: op.scale,
            bias: op.bias.map(|b| memory.vector(b)),
            bias_row: op.k.rows,
            packed,
            stride: op.y.stride,
        };
        let split = Split { rows: q.rows, stride: op.y.stride, step: TILE_ROWS, cost, work: space(op).1 };
        cx.rows(&mut buffer[op.y.offset..op.y.end()], split, &mut scratch.work, &body);
    }
    memory.put(op.y.tensor, buffer);
}

/// Attention of some tokens over the frames of their rings.
struct AttendRing<'a> {
    q: Mat<'a>,
    /// Slots and tokens are the rows: token n of slot s is row `s * tokens + n`.
    k: Mat<'a>,
    v: Mat<'a>,
    hd: usize,
    count: usize,
    scale: f32,
    stride: usize,
}

impl Body for AttendRing<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, _: S, rows: Range<usize>, y: &mut [f32], work: &mut [f32]) {
        let (hd, tokens) = (self.hd, self.q.rows);
        let scores = &mut work[..self.count];
        for (token, y) in rows.zip(y.chunks_mut(self.stride)) {
            for (head, y) in y[..self.q.cols].chunks_exact_mut(hd).enumerate() {
                let cols = head * hd..(head + 1) * hd;
                let q = &self.q.row(token)[cols.clone()];
                for (slot, score) in scores.iter_mut().enumerate() {
                    *score = dot(q, &self.k.row(slot * tokens + token)[cols.clone()]) * self.scale;
                }
                let inverse = softmax(scores);
                y.fill(0.0);
                for (slot, score) in scores.iter().enumerate() {
                    let (v, weight) = (&self.v.row(slot * tokens + token)[cols.clone()], score * inverse);
                    each(y, [v], |y, [v]| (0..LANES).for_each(|i| y[i] += weight * v[i]));
                }
            }
        }
    }
}

/// Attention of one seat.
pub fn ring_attention(op: &RingAttention, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.y.tensor);
    {
        let memory: &Memory<'_> = memory;
        let q = Operands::new(memory, op.y.tensor, &mut scratch.stage).get(&op.q, &buffer);
        let (n, d) = (q.rows, q.cols);
        let slots = memory.tensors.shape(op.k_ring).dims()[0];
        let count = value(op.count, cx.params);
        let ring = |t| Mat { data: memory.vector(t), rows: slots * n, cols: d, stride: d };
        let (k, v) = (ring(op.k_ring), ring(op.v_ring));
        let body = AttendRing { q, k, v, hd: d / op.heads, count, scale: op.scale, stride: op.y.stride };
        let work = slots.next_multiple_of(LANES);
        let split = Split { rows: n, stride: op.y.stride, step: 1, cost: 4 * count * n * d, work };
        cx.rows(&mut buffer[op.y.offset..op.y.end()], split, &mut scratch.work, &body);
    }
    memory.put(op.y.tensor, buffer);
}

/// The copy of one seat.
pub fn ring_write(op: &RingWrite, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.ring);
    {
        let x = Operands::new(memory, op.ring, &mut scratch.stage).get(&op.x, &buffer);
        let start = value(op.slot, cx.params) * x.rows;
        for (row, y) in buffer.chunks_exact_mut(x.cols).skip(start).take(x.rows).enumerate() {
            y.copy_from_slice(x.row(row));
        }
    }
    memory.put(op.ring, buffer);
}
