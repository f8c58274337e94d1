//! The operations a plan is made of: one file per family, each with its shapes, its checks and its cost.
//!
//! An operation is plain data. The three executors ([`cpu`](super::cpu), [`gpu`](super::gpu) and, in tests,
//! [`reference`](super::reference)) give it meaning; the doc comment of each struct is the contract that all three
//! keep.
//!
//! Layout rules, for every operation:
//! - matrices and activations are `[rows, cols]` views in the plan's precision; rows are tokens or pixels (row-major
//!   over height, width), columns are channels;
//! - weights of rank >= 2 are stored in the plan's precision; vectors (biases, norm weights) and rotary tables are
//!   always f32;
//! - an output may be the same view as an input only where the struct says so;
//! - every sum runs in f32 and in an order that does not depend on any other session's work: not on which seat of a
//!   batch a session has, and not on how many seats there are;
//! - in a plan of several seats the rows of all sessions follow one another, seat by seat, and only [`RingAttention`],
//!   [`RingWrite`] and [`Copy`] touch states: what else needs a session's own values gets them from a copy.

mod attention;
mod conv;
mod image;
mod linear;
mod norm;
mod pointwise;

pub use attention::{Attention, Groups, Order, RingAttention, RingWrite};
pub use conv::Conv3x3;
pub use image::{GroupMean, Shuffle, ToI420, Unshuffle};
pub use linear::Linear;
pub use norm::{HeadNorm, Norm, NormKind, Rope};
pub use pointwise::{Add, Axpy, Copy, GatedGelu, Map};

use super::ComputeError;
use super::plan::Tensors;
use super::tensor::{DType, Tensor, View};

/// Activation fused into an operation. Gelu is the tanh approximation, as in the reference modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    None,
    Gelu,
    Silu,
}

/// What an operation costs at least: the two floors a profile compares with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub flops: u64,
    pub bytes: u64,
}

macro_rules! operations {
    ($($name:ident => $label:literal),* $(,)?) => {
        /// One step of a plan.
        #[derive(Clone, Debug)]
        pub enum Op { $($name($name)),* }

        $(impl From<$name> for Op { fn from(op: $name) -> Op { Op::$name(op) } })*

        impl Op {
            /// Name of the family in profiles and messages.
            pub fn label(&self) -> &'static str { match self { $(Op::$name(_) => $label),* } }
            /// Checks shapes, types and aliasing against the tensors of a plan.
            pub fn check(&self, t: &Tensors) -> Result<(), ComputeError> {
                match self { $(Op::$name(op) => op.check(t)),* }
            }
            /// Everything the operation reads.
            pub fn reads(&self) -> Vec<View> { match self { $(Op::$name(op) => op.reads()),* } }
            /// Matrix weights, vectors and tables that are read whole.
            pub fn constants(&self) -> Vec<Tensor> { match self { $(Op::$name(op) => op.constants()),* } }
            /// Everything the operation writes. A view that is also among `reads` is updated in place.
            pub fn writes(&self) -> Vec<View> { match self { $(Op::$name(op) => op.writes()),* } }
            /// True for the operations that reach the states of all seats of a plan.
            pub fn is_seated(&self) -> bool {
                matches!(self, Op::RingAttention(_) | Op::RingWrite(_) | Op::Copy(_))
            }
            /// Arithmetic beyond moving data, in floating-point operations.
            pub fn flops(&self) -> u64 { match self { $(Op::$name(op) => op.flops()),* } }
        }
    };
}

operations! {
    Linear => "linear", Conv3x3 => "conv3x3", Norm => "norm", HeadNorm => "head_norm", Attention => "attention",
    RingAttention => "ring_attention", RingWrite => "ring_write", Copy => "copy", Add => "add", Axpy => "axpy",
    GatedGelu => "gated_gelu", Map => "map", Unshuffle => "unshuffle", GroupMean => "group_mean", Shuffle => "shuffle",
    ToI420 => "to_i420",
}

/// What each operation struct provides to the table above.
pub(crate) trait Operation {
    fn check(&self, t: &Tensors) -> Result<(), ComputeError>;
    fn reads(&self) -> Vec<View>;
    fn constants(&self) -> Vec<Tensor> {
        Vec::new()
    }
    fn writes(&self) -> Vec<View>;
    fn flops(&self) -> u64 {
        0
    }
}

/// Fails with the operation's name and a sentence unless `ok`.
pub(crate) fn require(ok: bool, op: &'static str, what: impl FnOnce() -> String) -> Result<(), ComputeError> {
    if ok { Ok(()) } else { Err(ComputeError::Shape { op, what: what() }) }
}

/// A `[rows, cols]` view of the plan's precision that lies inside its tensor.
pub(crate) fn matrix(
    t: &Tensors,
    op: &'static str,
    name: &str,
    v: &View,
    rows: usize,
    cols: usize,
) -> Result<(), ComputeError> {
    require(v.rows == rows && v.cols == cols, op, || {
        format!("{name} is [{}, {}], needs [{rows}, {cols}]", v.rows, v.cols)
    })?;
    require(v.stride >= v.cols && v.end() <= t.shape(v.tensor).elements(), op, || {
        format!("{name} reaches outside {}", t.name(v.tensor))
    })?;
    require(t.dtype(v.tensor) == t.precision().dtype(), op, || {
        format!("{name} is {:?}, needs {:?}", t.dtype(v.tensor), t.precision())
    })
}

/// A whole f32 tensor of `len` elements: a bias, a norm weight, a rotary table.
pub(crate) fn vector(t: &Tensors, op: &'static str, name: &str, v: Tensor, len: usize) -> Result<(), ComputeError> {
    require(t.shape(v).elements() == len, op, || {
        format!("{name} has {} elements, needs {len}", t.shape(v).elements())
    })?;
    require(t.dtype(v) == DType::F32, op, || format!("{name} is {:?}, needs F32", t.dtype(v)))
}

/// `[groups, cols]` rows that apply to `rows / groups` consecutive rows each.
pub(crate) fn grouped(
    t: &Tensors,
    op: &'static str,
    name: &str,
    v: &View,
    rows: usize,
    cols: usize,
) -> Result<(), ComputeError> {
    require(rows.is_multiple_of(v.rows), op, || {
        format!("{rows} rows cannot be split into {} groups of {name}", v.rows)
    })?;
    matrix(t, op, name, v, v.rows, cols)
}

/// Rows of one seat, of `rows` rows of all.
pub(crate) fn seated(t: &Tensors, op: &'static str, rows: usize) -> Result<usize, ComputeError> {
    let seats = t.seats();
    require(rows.is_multiple_of(seats), op, || format!("{rows} rows for {seats} seats"))?;
    Ok(rows / seats)
}

/// Pictures of `pixels` pixels each that `rows` rows hold, one below the other.
pub(crate) fn pictures(op: &'static str, rows: usize, pixels: usize) -> Result<usize, ComputeError> {
    let whole = pixels > 0 && rows.is_multiple_of(pixels);
    require(whole, op, || format!("{rows} rows are no whole number of pictures of {pixels} pixels"))?;
    Ok(rows / pixels)
}

/// Two views overlap in memory. Conservative: a shared tensor with interleaved rows counts unless the columns are
/// apart.
pub(crate) fn overlap(a: &View, b: &View) -> bool {
    if a.tensor != b.tensor || a.end() <= b.offset || b.end() <= a.offset {
        return false;
    }
    if a.stride != b.stride {
        return true;
    }
    let (ca, cb) = (a.offset % a.stride, b.offset % b.stride);
    // A view whose columns run over the end of a row of the tensor touches the beginning of the next.
    let wraps = ca + a.cols > a.stride || cb + b.cols > b.stride;
    wraps || !(ca + a.cols <= cb || cb + b.cols <= ca)
}

/// `y` must be apart from every one of `inputs`, or exactly `same`.
pub(crate) fn apart(op: &'static str, y: &View, inputs: &[View], same: Option<&View>) -> Result<(), ComputeError> {
    for x in inputs {
        let allowed = same.is_some_and(|s| s == x && x == y);
        require(allowed || !overlap(y, x), op, || "an output overlaps an input".to_string())?;
    }
    Ok(())
}
