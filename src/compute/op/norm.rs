//! Root-mean-square normalisation, its modulated forms, and the per-head form with rotary positions.

use super::super::ComputeError;
use super::super::plan::Tensors;
use super::super::tensor::{Tensor, View};
use super::{Act, Operation, apart, grouped, matrix, require, vector};

/// What follows the normalisation `r = x / sqrt(mean(x^2) + eps)` of a row.
#[derive(Clone, Copy, Debug)]
pub enum NormKind {
    /// `act(r * weight)`; without a weight `act(r)`. `weight` [D] f32.
    Weight { weight: Option<Tensor>, act: Act },
    /// `r * (1 + scale) + shift`; both [G, D], see [`Linear`](super::Linear) for G.
    Modulate { scale: View, shift: View },
    /// `silu(r * (1 + scale) + shift) * sigmoid(gate + 1)`; all [G, D]. InstructNet's operation fusion.
    Film { scale: View, shift: View, gate: View },
}

/// Row-wise RMS normalisation. Shapes: `x` and `y` [M, D]. `y` may be the same view as `x`.
#[derive(Clone, Debug)]
pub struct Norm {
    pub x: View,
    pub kind: NormKind,
    pub eps: f32,
    pub y: View,
}

impl Operation for Norm {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "norm";
        let (m, d) = (self.x.rows, self.x.cols);
        matrix(t, OP, "x", &self.x, m, d)?;
        matrix(t, OP, "y", &self.y, m, d)?;
        if let NormKind::Weight { weight: Some(w), .. } = self.kind {
            vector(t, OP, "weight", w, d)?;
        }
        for v in self.modulation() {
            grouped(t, OP, "modulation", &v, m, d)?;
        }
        require(self.eps > 0.0, OP, || format!("eps is {}", self.eps))?;
        apart(OP, &self.y, &self.reads(), Some(&self.x))
    }

    fn reads(&self) -> Vec<View> {
        let mut all = vec![self.x];
        all.extend(self.modulation());
        all
    }

    fn constants(&self) -> Vec<Tensor> {
        match self.kind {
            NormKind::Weight { weight, .. } => weight.into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        4 * (self.x.rows * self.x.cols) as u64
    }
}

impl Norm {
    fn modulation(&self) -> Vec<View> {
        match self.kind {
            NormKind::Weight { .. } => Vec::new(),
            NormKind::Modulate { scale, shift } => vec![scale, shift],
            NormKind::Film { scale, shift, gate } => vec![scale, shift, gate],
        }
    }
}

/// Rotary tables, rotate-half layout: with `(a, b)` the two halves of a head, `y = x * cos + (-b, a) * sin`. Shapes:
/// `cos` and `sin` [R, hd] f32. Row m of x has the position of table row `(m / each) % R`: with `each` = 1 every
/// picture of R tokens has the same table, with `each` > 1 so many rows share a position.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    pub cos: Tensor,
    pub sin: Tensor,
    pub each: usize,
}

/// Per-head RMS normalisation in place, times a weight, then optionally rotary positions (QK-norm and RoPE).
///
/// Shapes: `x` [M, heads * hd] where hd is even; `weight` [hd] f32.
#[derive(Clone, Debug)]
pub struct HeadNorm {
    pub x: View,
    pub heads: usize,
    pub weight: Tensor,
    pub rope: Option<Rope>,
    pub eps: f32,
}

impl Operation for HeadNorm {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "head_norm";
        matrix(t, OP, "x", &self.x, self.x.rows, self.x.cols)?;
        require(self.heads > 0 && self.x.cols.is_multiple_of(2 * self.heads), OP, || {
            format!("{} columns, {} heads", self.x.cols, self.heads)
        })?;
        let hd = self.x.cols / self.heads;
        vector(t, OP, "weight", self.weight, hd)?;
        if let Some(rope) = self.rope {
            let rows = t.shape(rope.cos).rows();
            let whole = rope.each > 0 && (rows == 1 || self.x.rows.is_multiple_of(rows * rope.each));
            require(whole, OP, || format!("cos has {rows} rows for {} each, x has {}", rope.each, self.x.rows))?;
            vector(t, OP, "cos", rope.cos, rows * hd)?;
            vector(t, OP, "sin", rope.sin, rows * hd)?;
        }
        Ok(())
    }

    fn reads(&self) -> Vec<View> {
        vec![self.x]
    }

    fn constants(&self) -> Vec<Tensor> {
        let mut all = vec![self.weight];
        all.extend(self.rope.iter().flat_map(|r| [r.cos, r.sin]));
        all
    }

    fn writes(&self) -> Vec<View> {
        vec![self.x]
    }

    fn flops(&self) -> u64 {
        7 * (self.x.rows * self.x.cols) as u64
    }
}
