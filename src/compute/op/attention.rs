//! Attention: over a sequence, and over the frames of a session's ring of keys and values.

use super::super::ComputeError;
use super::super::plan::Tensors;
use super::super::tensor::{Param, Tensor, View};
use super::{Operation, apart, matrix, require, vector};

/// Scaled dot-product attention, all heads side by side in the columns; no score matrix is kept in memory.
///
/// Shapes: `q` and `y` [Lq, heads * hd]; `k` and `v` [Lk, heads * hd]; `bias` [heads, Lq, Lk] f32, added to the scaled
/// scores. Only the first `key_count` keys count (1 <= key_count <= Lk; `None`: all). `scale` multiplies the scores.
#[derive(Clone, Debug)]
pub struct Attention {
    pub q: View,
    pub k: View,
    pub v: View,
    pub heads: usize,
    pub scale: f32,
    pub key_count: Option<Param>,
    pub bias: Option<Tensor>,
    pub y: View,
}

impl Operation for Attention {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "attention";
        let (lq, lk, d) = (self.q.rows, self.k.rows, self.q.cols);
        matrix(t, OP, "q", &self.q, lq, d)?;
        matrix(t, OP, "k", &self.k, lk, d)?;
        matrix(t, OP, "v", &self.v, lk, d)?;
        matrix(t, OP, "y", &self.y, lq, d)?;
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
        4 * (self.q.rows * self.k.rows * self.q.cols) as u64
    }
}

/// Causal temporal attention of one frame: token n attends to token n of the frames in the ring.
///
/// Shapes: `q` and `y` [N, heads * hd]; `k_ring` and `v_ring` [W, N, heads * hd] in a session's state. The first
/// `count` slots hold frames (1 <= count <= W); their order does not matter, positions are in the rotated keys.
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

impl Operation for RingAttention {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "ring_attention";
        let (n, d) = (self.q.rows, self.q.cols);
        matrix(t, OP, "q", &self.q, n, d)?;
        matrix(t, OP, "y", &self.y, n, d)?;
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

/// Copies `x` [N, D] into slot `slot` of `ring` [W, N, D] (0 <= slot < W).
#[derive(Clone, Debug)]
pub struct RingWrite {
    pub x: View,
    pub ring: Tensor,
    pub slot: Param,
    /// The whole ring as a `[W * N, D]` view, which is what this operation writes to.
    pub whole: View,
}

impl Operation for RingWrite {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "ring_write";
        let (n, d) = (self.x.rows, self.x.cols);
        matrix(t, OP, "x", &self.x, n, d)?;
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
