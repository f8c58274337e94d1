//! Attention: over a sequence, and over the frames of a session's ring of keys and values.

use super::super::ComputeError;
use super::super::plan::Tensors;
use super::super::tensor::{Param, Tensor, View};
use super::{Operation, apart, matrix, require, seated, vector};

/// Sequences that do not see each other and are attended to in one operation: the pictures of a batch, or the places
/// of a picture over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    pub count: usize,
    pub order: Order,
}

/// Which rows a sequence of L rows among G has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Sequence g has rows `g * L .. (g + 1) * L`.
    Blocks,
    /// Row i of sequence g is `i * G + g`.
    Interleaved,
}

impl Groups {
    /// A single sequence.
    pub const ONE: Groups = Groups { count: 1, order: Order::Blocks };

    /// Sequences one after the other.
    pub const fn blocks(count: usize) -> Groups {
        Groups { count, order: Order::Blocks }
    }

    /// Sequences whose rows take turns.
    pub const fn interleaved(count: usize) -> Groups {
        Groups { count, order: Order::Interleaved }
    }

    /// The rows of sequence `g` of a view that holds all of them.
    pub fn view(self, all: &View, g: usize) -> View {
        let rows = all.rows / self.count;
        match self.order {
            Order::Blocks => all.rows(g * rows, rows),
            Order::Interleaved => {
                View { offset: all.offset + g * all.stride, rows, stride: all.stride * self.count, ..*all }
            }
        }
    }
}

/// Scaled dot-product attention, all heads side by side in the columns; no score matrix is kept in memory.
///
/// Shapes: `q` and `y` [G * Lq, heads * hd]; `k` and `v` [G * Lk, heads * hd], G sequences of [`Groups`]; `bias`
/// [heads, Lq, Lk] f32, added to the scaled scores of every sequence. Only the first `key_count` keys of a sequence
/// count (1 <= key_count <= Lk; `None`: all); in a plan of several seats with a param that each seat has for itself,
/// every seat has one sequence. `scale` multiplies the scores.
#[derive(Clone, Debug)]
pub struct Attention {
    pub q: View,
    pub k: View,
    pub v: View,
    pub heads: usize,
    pub scale: f32,
    pub key_count: Option<Param>,
    pub bias: Option<Tensor>,
    pub groups: Groups,
    pub y: View,
}

impl Attention {
    /// One of the sequences by itself.
    pub(crate) fn sequence(&self, g: usize) -> Attention {
        let part = |v: &View| self.groups.view(v, g);
        let [q, k, v, y] = [&self.q, &self.k, &self.v, &self.y].map(part);
        Attention { q, k, v, y, groups: Groups::ONE, ..*self }
    }

    /// Queries and keys of one sequence.
    pub fn lengths(&self) -> (usize, usize) {
        (self.q.rows / self.groups.count, self.k.rows / self.groups.count)
    }
}

impl Operation for Attention {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "attention";
        let (q_rows, k_rows, d, groups) = (self.q.rows, self.k.rows, self.q.cols, self.groups.count);
        matrix(t, OP, "q", &self.q, q_rows, d)?;
        matrix(t, OP, "k", &self.k, k_rows, d)?;
        matrix(t, OP, "v", &self.v, k_rows, d)?;
        matrix(t, OP, "y", &self.y, q_rows, d)?;
        require(groups > 0 && q_rows.is_multiple_of(groups) && k_rows.is_multiple_of(groups), OP, || {
            format!("{q_rows} queries and {k_rows} keys in {groups} sequences")
        })?;
        let shared = t.seats() == 1 || !matches!(self.key_count, Some(Param::Slot(_)));
        require(shared || groups == t.seats(), OP, || format!("{groups} sequences, {} seats", t.seats()))?;
        let (lq, lk) = self.lengths();
        require(self.heads > 0 && d.is_multiple_of(self.heads), OP, || format!("{d} columns, {} heads", self.heads))?;
        if let Some(b) = self.bias {
            vector(t, OP, "bias", b, self.heads * lq * lk)?;
        }
        apart(OP, &self.y, &self.reads(), None)
    }

    fn reads(&self) -> Vec<View> {
        vec![self.q, self.k, self.v]
    }

    fn constants(&self) -> Vec<Tensor> {
        self.bias.into_iter().collect()
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        4 * (self.q.rows * self.lengths().1 * self.q.cols) as u64
    }
}

/// Causal temporal attention of one frame of every seat: token n attends to token n of the frames in its seat's ring.
///
/// Shapes: `q` and `y` [seats * N, heads * hd]; `k_ring` and `v_ring` [W, N, heads * hd] in a session's state. The
/// first `count` slots hold frames (1 <= count <= W); their order does not matter, positions are in the rotated keys.
#[derive(Clone, Debug)]
pub struct RingAttention {
    pub q: View,
    pub k_ring: Tensor,
    pub v_ring: Tensor,
    pub heads: usize,
    pub scale: f32,
    pub count: Param,
    pub y: View,
}

impl RingAttention {
    /// What it does for one seat.
    pub(crate) fn seat(&self, seat: usize, t: &Tensors) -> RingAttention {
        let rows = self.q.rows / t.seats();
        RingAttention { q: self.q.rows(seat * rows, rows), y: self.y.rows(seat * rows, rows), ..*self }
    }
}

impl Operation for RingAttention {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "ring_attention";
        let (rows, d) = (self.q.rows, self.q.cols);
        matrix(t, OP, "q", &self.q, rows, d)?;
        matrix(t, OP, "y", &self.y, rows, d)?;
        let n = seated(t, OP, rows)?;
        require(self.heads > 0 && d.is_multiple_of(self.heads), OP, || format!("{d} columns, {} heads", self.heads))?;
        for ring in [self.k_ring, self.v_ring] {
            let dims = t.shape(ring).dims().to_vec();
            require(dims.len() == 3 && dims[1..] == [n, d], OP, || format!("ring is {dims:?}, needs [W, {n}, {d}]"))?;
            require(t.dtype(ring) == t.precision().dtype(), OP, || format!("ring is {:?}", t.dtype(ring)))?;
        }
        require(t.shape(self.k_ring) == t.shape(self.v_ring), OP, || "the rings differ in length".to_string())?;
        apart(OP, &self.y, &[self.q], None)
    }

    fn reads(&self) -> Vec<View> {
        vec![self.q]
    }

    fn constants(&self) -> Vec<Tensor> {
        vec![self.k_ring, self.v_ring]
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        match self.count {
            Param::Const(c) => 4 * u64::from(c) * (self.q.rows * self.q.cols) as u64,
            Param::Slot(_) => 4 * (self.q.rows * self.q.cols * 16) as u64,
        }
    }
}

/// Copies `x` [seats * N, D] into slot `slot` of every seat's `ring` [W, N, D] (0 <= slot < W).
#[derive(Clone, Debug)]
pub struct RingWrite {
    pub x: View,
    pub ring: Tensor,
    pub slot: Param,
    /// The whole ring as a `[W * N, D]` view, which is what this operation writes to.
    pub whole: View,
}

impl RingWrite {
    /// What it does for one seat.
    pub(crate) fn seat(&self, seat: usize, t: &Tensors) -> RingWrite {
        let rows = self.x.rows / t.seats();
        RingWrite { x: self.x.rows(seat * rows, rows), ..*self }
    }
}

impl Operation for RingWrite {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "ring_write";
        let (rows, d) = (self.x.rows, self.x.cols);
        matrix(t, OP, "x", &self.x, rows, d)?;
        let n = seated(t, OP, rows)?;
        let dims = t.shape(self.ring).dims().to_vec();
        require(dims.len() == 3 && dims[1..] == [n, d], OP, || format!("ring is {dims:?}, needs [W, {n}, {d}]"))?;
        matrix(t, OP, "ring", &self.whole, dims[0] * n, d)?;
        require(self.whole.tensor == self.ring, OP, || "whole is not a view of the ring".to_string())
    }

    fn reads(&self) -> Vec<View> {
        vec![self.x]
    }

    fn writes(&self) -> Vec<View> {
        vec![self.whole]
    }
}
