//! Element-wise operations.

use super::super::ComputeError;
use super::super::plan::Tensors;
use super::super::tensor::View;
use super::{Act, Operation, apart, grouped, matrix, require};

/// `y = x`, element by element; moves columns between tensors (concatenation is two copies). Shapes: both [M, D].
///
/// In a plan of several seats one side may be in a session's state: it is [M, D] there, and [seats * M, D] on the other
/// side, seat by seat.
#[derive(Clone, Debug)]
pub struct Copy {
    pub x: View,
    pub y: View,
}

impl Copy {
    /// What it does for one seat: all of it in a plan with one.
    pub(crate) fn seat(&self, seat: usize, t: &Tensors) -> Copy {
        let part = |v: &View| match t.seats_in(v.tensor) {
            1 => v.rows(seat * (v.rows / t.seats()), v.rows / t.seats()),
            _ => *v,
        };
        Copy { x: part(&self.x), y: part(&self.y) }
    }

    /// True if one side is in the sessions' states and the other is not.
    pub(crate) fn crosses(&self, t: &Tensors) -> bool {
        t.seats_in(self.x.tensor) != t.seats_in(self.y.tensor)
    }
}

impl Operation for Copy {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        let (from, to) = (t.seats_in(self.x.tensor), t.seats_in(self.y.tensor));
        require(t.seats() == 1 || from * to == t.seats() || (from, to) == (1, 1), "copy", || {
            "between the states of several seats".to_string()
        })?;
        matrix(t, "copy", "x", &self.x, self.x.rows, self.x.cols)?;
        let rows = self.x.rows * from;
        require(rows.is_multiple_of(to), "copy", || format!("{rows} rows for {to} seats"))?;
        matrix(t, "copy", "y", &self.y, rows / to, self.x.cols)?;
        apart("copy", &self.y, &[self.x], None)
    }

    fn reads(&self) -> Vec<View> {
        vec![self.x]
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }
}

/// `y = a + b`, where `b` [G, D] is repeated over M / G rows each. Shapes: `a`, `y` [M, D]. `y` may be `a`.
#[derive(Clone, Debug)]
pub struct Add {
    pub a: View,
    pub b: View,
    pub y: View,
}

impl Operation for Add {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        matrix(t, "add", "a", &self.a, self.a.rows, self.a.cols)?;
        matrix(t, "add", "y", &self.y, self.a.rows, self.a.cols)?;
        grouped(t, "add", "b", &self.b, self.a.rows, self.a.cols)?;
        apart("add", &self.y, &[self.a, self.b], Some(&self.a))
    }

    fn reads(&self) -> Vec<View> {
        vec![self.a, self.b]
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        (self.a.rows * self.a.cols) as u64
    }
}

/// `y = alpha * x + beta * v`: an Euler step of the sampler, or noise mixed into a latent. Shapes: all [M, D].
/// `y` may be `x`.
#[derive(Clone, Debug)]
pub struct Axpy {
    pub x: View,
    pub v: View,
    pub alpha: f32,
    pub beta: f32,
    pub y: View,
}

impl Operation for Axpy {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        for (name, v) in [("x", &self.x), ("v", &self.v), ("y", &self.y)] {
            matrix(t, "axpy", name, v, self.x.rows, self.x.cols)?;
        }
        apart("axpy", &self.y, &[self.x, self.v], Some(&self.x))
    }

    fn reads(&self) -> Vec<View> {
        vec![self.x, self.v]
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        3 * (self.x.rows * self.x.cols) as u64
    }
}

/// `y = gelu(a) * b` (tanh approximation): the gated feed-forward of T5 v1.1. Shapes: all [M, D]. `y` may be `a`.
#[derive(Clone, Debug)]
pub struct GatedGelu {
    pub a: View,
    pub b: View,
    pub y: View,
}

impl Operation for GatedGelu {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        for (name, v) in [("a", &self.a), ("b", &self.b), ("y", &self.y)] {
            matrix(t, "gated_gelu", name, v, self.a.rows, self.a.cols)?;
        }
        apart("gated_gelu", &self.y, &[self.a, self.b], Some(&self.a))
    }

    fn reads(&self) -> Vec<View> {
        vec![self.a, self.b]
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        10 * (self.a.rows * self.a.cols) as u64
    }
}

/// `y = act(x)`. Shapes: both [M, D]. `y` may be `x`.
#[derive(Clone, Debug)]
pub struct Map {
    pub x: View,
    pub act: Act,
    pub y: View,
}

impl Operation for Map {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
        matrix(t, "map", "x", &self.x, self.x.rows, self.x.cols)?;
        matrix(t, "map", "y", &self.y, self.x.rows, self.x.cols)?;
        apart("map", &self.y, &[self.x], Some(&self.x))
    }

    fn reads(&self) -> Vec<View> {
        vec![self.x]
    }

    fn writes(&self) -> Vec<View> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        5 * (self.x.rows * self.x.cols) as u64
    }
}
