//! Convolution.

use super::super::ComputeError;
use super::super::plan::Tensors;
use super::super::tensor::{Tensor, View};
use super::{Act, Operation, apart, matrix, pictures, require, vector};

/// 3x3 convolution with zero padding 1 and stride 1 over P pictures of `height` x `width` pixels, one below the other:
/// `y = res + act(conv(x, w) + bias)`.
///
/// Shapes: `x` [P * height * width, Cin]; `w` [Cout, 3, 3, Cin] (kernel row, kernel column, input channel), so that a
/// row of `w` is one output channel's dot product; `bias` [Cout] f32; `res` and `y` [P * height * width, Cout]. `res`
/// may be the same view as `y`. 1x1 convolutions are [`Linear`](super::Linear).
#[derive(Clone, Debug)]
pub struct Conv3x3 {
    pub x: View,
    pub height: usize,
    pub width: usize,
    pub w: Tensor,
    pub bias: Option<Tensor>,
    pub act: Act,
    pub res: Option<View>,
    pub y: View,
}

impl Operation for Conv3x3 {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        const OP: &str = "conv3x3";
        let (p, cin, cout) = (self.x.rows, self.x.cols, self.y.cols);
        pictures(OP, p, self.height * self.width)?;
        matrix(t, OP, "x", &self.x, p, cin)?;
        matrix(t, OP, "y", &self.y, p, cout)?;
        let w = t.shape(self.w);
        require(w.dims() == [cout, 3, 3, cin], OP, || format!("w is {w:?}, needs [{cout}, 3, 3, {cin}]"))?;
        require(t.dtype(self.w) == t.precision().dtype(), OP, || format!("w is {:?}", t.dtype(self.w)))?;
        if let Some(b) = self.bias {
            vector(t, OP, "bias", b, cout)?;
        }
        if let Some(r) = &self.res {
            matrix(t, OP, "res", r, p, cout)?;
        }
        apart(OP, &self.y, &self.reads(), self.res.as_ref())
    }

    fn reads(&self) -> Vec<View> {
        [Some(self.x), self.res].into_iter().flatten().collect()
    }

    fn constants(&self) -> Vec<Tensor> {
        [Some(self.w), self.bias].into_iter().flatten().collect()
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        18 * (self.y.rows * self.x.cols * self.y.cols) as u64
    }
}
