//! What a plan's values are: element types, shapes, and the handles by which operations name them.

use std::fmt;

/// Element type in the memory of a device. Hosts always exchange `f32` (and `u8` for pictures) with an executor,
/// which converts at the boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    F16,
    U8,
}

impl DType {
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 => 2,
            DType::U8 => 1,
        }
    }
}

/// In which type the matrices and the activations of a plan are stored; sums are always kept in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    F32,
    F16,
}

impl Precision {
    pub const fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
        }
    }
}

/// Row-major shape of one to four dimensions, none of them zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    /// # Panics
    /// If `dims` has no or more than four entries, or one of them is zero: shapes come from a checked configuration.
    pub fn new(dims: &[usize]) -> Shape {
        assert!((1..=4).contains(&dims.len()) && dims.iter().all(|&d| d > 0), "shape {dims:?}");
        let mut all = [1; 4];
        all[..dims.len()].copy_from_slice(dims);
        Shape { dims: all, rank: dims.len() }
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Length of the innermost dimension: a tensor seen as a matrix is `[rows(), cols()]`.
    pub fn cols(&self) -> usize {
        self.dims[self.rank - 1]
    }

    pub fn rows(&self) -> usize {
        self.elements() / self.cols()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dims().fmt(f)
    }
}

/// A value of one plan: an index into [`Plan::tensors`](super::plan::Plan).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tensor(pub(crate) usize);

impl Tensor {
    pub fn index(self) -> usize {
        self.0
    }
}

/// A rectangle of a tensor seen as a matrix: `rows` x `cols` elements, row `r` begins at `offset + r * stride`.
/// Units: elements, not bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub tensor: Tensor,
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl View {
    /// Columns `from .. from + cols` of this view.
    pub fn columns(self, from: usize, cols: usize) -> View {
        assert!(from + cols <= self.cols, "columns {from}..{} of {}", from + cols, self.cols);
        View { offset: self.offset + from, cols, ..self }
    }

    /// Rows `from .. from + rows` of this view.
    pub fn rows(self, from: usize, rows: usize) -> View {
        assert!(from + rows <= self.rows, "rows {from}..{} of {}", from + rows, self.rows);
        View { offset: self.offset + from * self.stride, rows, ..self }
    }

    /// True if the rows follow one another without a gap.
    pub fn is_contiguous(&self) -> bool {
        self.stride == self.cols || self.rows == 1
    }

    /// One past the last element that the view touches.
    pub fn end(&self) -> usize {
        self.offset + (self.rows - 1) * self.stride + self.cols
    }
}

/// A number that changes from run to run without a new recording: a fixed value, or an entry of the `params` slice of
/// a [`Run`](super::Run).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    Const(u32),
    Slot(usize),
}

impl Param {
    /// The value in a run; `None` if the slot is beyond the slice.
    pub fn value(self, params: &[u32]) -> Option<u32> {
        match self {
            Param::Const(v) => Some(v),
            Param::Slot(i) => params.get(i).copied(),
        }
    }
}
