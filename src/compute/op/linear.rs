//! Matrix product with a fused epilogue.

use super::super::ComputeError;
use super::super::plan::Tensors;
use super::super::tensor::{Tensor, View};
use super::{Act, Operation, apart, grouped, matrix, require, vector};

/// `y = res + gate * act(x W^T + bias)`, each of `bias`, `gate` and `res` optional.
///
/// Shapes: `x` [M, K], `w` [N, K] contiguous, `bias` [N] f32, `gate` [G, N] with M divisible by G (row m uses gate row
/// m / (M / G)), `res` and `y` [M, N]. `res` may be the same view as `y`.
#[derive(Clone, Debug)]
pub struct Linear {
    pub x: View,
    pub w: Tensor,
    pub bias: Option<Tensor>,
    pub act: Act,
    pub gate: Option<View>,
    pub res: Option<View>,
    pub y: View,
}

impl Operation for Linear {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "linear";
        let (m, k, n) = (self.x.rows, self.x.cols, self.y.cols);
        matrix(t, OP, "x", &self.x, m, k)?;
        matrix(t, OP, "y", &self.y, m, n)?;
        let w = t.shape(self.w);
        require(w.rows() == n && w.cols() == k, OP, || format!("w is {w:?}, needs [{n}, {k}]"))?;
        require(t.dtype(self.w) == t.precision().dtype(), OP, || format!("w is {:?}", t.dtype(self.w)))?;
        if let Some(b) = self.bias {
            vector(t, OP, "bias", b, n)?;
        }
        if let Some(g) = &self.gate {
            grouped(t, OP, "gate", g, m, n)?;
        }
        if let Some(r) = &self.res {
            matrix(t, OP, "res", r, m, n)?;
        }
        apart(OP, &self.y, &self.reads(), self.res.as_ref())
    }

    fn reads(&self) -> Vec<View> {
        [Some(self.x), self.gate, self.res].into_iter().flatten().collect()
    }

    fn constants(&self) -> Vec<Tensor> {
        [Some(self.w), self.bias].into_iter().flatten().collect()
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        2 * (self.x.rows * self.x.cols * self.y.cols) as u64
    }
}
