//! Where the operands of a step are, and what a step may use besides.

use super::super::op::Op;
use super::super::plan::{Home, Plan, Tensors};
use super::super::tensor::{DType, Tensor, View};
use super::super::weights::WeightSet;
use super::math::LANES;
use super::{State, attention, gemm};

/// A view with its memory: row `r` is `data[r * stride..][..cols]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl<'a> Mat<'a> {
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..row * self.stride + self.cols]
    }

    /// Columns `from .. from + cols`.
    #[inline(always)]
    pub fn columns(&self, from: usize, cols: usize) -> Mat<'a> {
        Mat { data: &self.data[from..], cols, ..*self }
    }
}

/// Every buffer of one run.
pub struct Memory<'a> {
    pub tensors: &'a Tensors,
    pub weights: &'a WeightSet,
    pub tables: &'a [Vec<f32>],
    /// The states of the sessions in the seats.
    pub seats: &'a mut [State],
    /// Whose state steps reach now.
    pub seat: usize,
    /// Slots of the arena; at least as long as the plan's tensors in them.
    pub arena: &'a mut [Vec<f32>],
    /// The plan's byte tensors by tensor index; the others are empty.
    pub bytes: &'a mut [Vec<u8>],
}

impl Memory<'_> {
    /// All elements of a tensor.
    pub fn vector(&self, t: Tensor) -> &[f32] {
        let buffer: &[f32] = match self.tensors.home(t) {
            Home::Weight(id) => &self.weights.get(id).data,
            Home::State(index) => &self.seats[self.seat].values[index],
            Home::Table(i) => &self.tables[i],
            Home::Arena(slot) => &self.arena[slot],
        };
        &buffer[..self.tensors.shape(t).elements()]
    }

    pub fn mat(&self, v: &View) -> Mat<'_> {
        Mat { data: &self.vector(v.tensor)[v.offset..v.end()], rows: v.rows, cols: v.cols, stride: v.stride }
    }

    /// Sets the elements of an input that belong to a seat.
    pub fn fill(&mut self, t: Tensor, seat: usize, values: &[f32]) {
        let range = seat * values.len()..(seat + 1) * values.len();
        match self.tensors.home(t) {
            Home::Arena(_) if self.tensors.dtype(t) == DType::U8 => {
                // Bytes are given as whole numbers from 0 to 255; the cast saturates.
                self.bytes[t.index()][range].iter_mut().zip(values).for_each(|(b, v)| *b = *v as u8);
            }
            Home::Arena(slot) => self.arena[slot][range].copy_from_slice(values),
            // Inputs have slots of the arena.
            Home::Weight(_) | Home::Table(_) | Home::State(_) => {}
        }
    }

    /// Takes the buffer of a tensor out, to be written while the others are read. It comes back with
    /// [`put`](Self::put); until then the tensor is empty.
    pub fn take(&mut self, t: Tensor) -> Vec<f32> {
        match self.tensors.home(t) {
            // A plan never writes to a constant: the builder refuses it.
            Home::Weight(_) | Home::Table(_) => Vec::new(),
            Home::State(index) => std::mem::take(&mut self.seats[self.seat].values[index]),
            Home::Arena(slot) => std::mem::take(&mut self.arena[slot]),
        }
    }

    pub fn put(&mut self, t: Tensor, buffer: Vec<f32>) {
        match self.tensors.home(t) {
            Home::Weight(_) | Home::Table(_) => {}
            Home::State(index) => self.seats[self.seat].values[index] = buffer,
            Home::Arena(slot) => self.arena[slot] = buffer,
        }
    }
}

/// Hands out the operands of a step whose output buffer has been taken. Operands in that same buffer are copied aside.
pub struct Operands<'a> {
    memory: &'a Memory<'a>,
    target: Tensor,
    stage: &'a mut [f32],
}

impl<'a> Operands<'a> {
    pub fn new(memory: &'a Memory<'a>, target: Tensor, stage: &'a mut [f32]) -> Operands<'a> {
        Operands { memory, target, stage }
    }

    /// The operand `v`; `y` is the whole buffer of the target.
    pub fn get(&mut self, v: &View, y: &[f32]) -> Mat<'a> {
        if v.tensor != self.target {
            return self.memory.mat(v);
        }
        let (part, rest) = std::mem::take(&mut self.stage).split_at_mut(v.rows * v.cols);
        for (row, to) in part.chunks_exact_mut(v.cols).enumerate() {
            to.copy_from_slice(&y[v.offset + row * v.stride..][..v.cols]);
        }
        self.stage = rest;
        Mat { data: part, rows: v.rows, cols: v.cols, stride: v.cols }
    }

    /// The operand `v`, or `None` if it is the output itself.
    pub fn get_unless(&mut self, v: &View, output: &View, y: &[f32]) -> Option<Mat<'a>> {
        (v != output).then(|| self.get(v, y))
    }
}

/// Memory that steps share one after the other; its contents mean nothing between steps.
#[derive(Default)]
pub struct Scratch {
    /// Copies of operands that share the output's buffer.
    pub stage: Vec<f32>,
    /// Packed matrices.
    pub packed: Vec<f32>,
    /// One part for each task.
    pub work: Vec<f32>,
    /// Rows beyond the edges of a picture.
    pub zeros: Vec<f32>,
}

impl Scratch {
    /// Grows to what the steps of a plan need with `threads` threads.
    pub fn reserve(&mut self, plan: &Plan, threads: usize) {
        let grow = |v: &mut Vec<f32>, len: usize| {
            if v.len() < len {
                v.resize(len, 0.0);
            }
        };
        for step in &plan.steps {
            let writes = step.op.writes();
            let shares = |v: &&View| writes.iter().any(|w| w.tensor == v.tensor && w != *v);
            let staged: usize = step.op.reads().iter().filter(shares).map(|v| v.rows * v.cols).sum();
            // What is done for one seat or sequence at a time needs less, never more.
            grow(&mut self.stage, staged);
            match &step.op {
                Op::Linear(op) => {
                    grow(&mut self.work, gemm::packed_len(op.y.cols, op.y.rows));
                    if !matches!(plan.tensors.home(op.w), Home::Weight(_)) {
                        grow(&mut self.packed, gemm::packed_len(op.y.cols, op.x.cols));
                    }
                }
                Op::Conv3x3(op) => {
                    grow(&mut self.zeros, op.x.cols);
                    if !matches!(plan.tensors.home(op.w), Home::Weight(_)) {
                        grow(&mut self.packed, gemm::packed_len(op.y.cols, 9 * op.x.cols));
                    }
                }
                Op::Attention(op) => {
                    let (packed, work) = attention::space(op);
                    grow(&mut self.packed, packed);
                    grow(&mut self.work, work * super::tasks::TASKS_PER_THREAD * threads);
                }
                Op::RingAttention(op) => {
                    let slots = plan.tensors.shape(op.k_ring).dims()[0].next_multiple_of(LANES);
                    grow(&mut self.work, slots * super::tasks::TASKS_PER_THREAD * threads);
                }
                _ => {}
            }
        }
    }
}
