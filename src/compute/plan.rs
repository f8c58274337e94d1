//! Recorded plans: a list of operations over weights, a session's state, and an arena that is laid out once.
//!
//! A [`PlanBuilder`] checks every operation as it is added; [`PlanBuilder::finish`] assigns each temporary to a slot of
//! the arena. After that nothing about a plan changes: executors prepare it once and replay it every tick.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::ComputeError;
use super::op::{Cost, Op};
use super::tensor::{DType, Precision, Shape, Tensor, View};
use super::weights::{WeightId, WeightSet};

/// Where a tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Uploaded once, shared by all plans and sessions, read-only.
    Weight(WeightId),
    /// One copy a session, kept from run to run; index into the [`StateLayout`].
    State(usize),
    /// Made with the plan, shared by all sessions, read-only. Index into [`Plan::tables`].
    Table(usize),
    /// Temporary: valid from its first write to its last read within one run. Slot index.
    Arena(usize),
}

/// One entry of a plan's tensor table.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    pub name: String,
    pub shape: Shape,
    pub dtype: DType,
    pub home: Home,
}

/// The tensors that a session keeps between runs, shared by every plan that works on the session.
/// Everything in it is zero when a state is created.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateLayout {
    entries: Vec<(String, Shape, DType)>,
}

impl StateLayout {
    /// Adds a tensor and returns its index for [`PlanBuilder::state`].
    pub fn add(&mut self, name: impl Into<String>, dims: &[usize], dtype: DType) -> usize {
        self.entries.push((name.into(), Shape::new(dims), dtype));
        self.entries.len() - 1
    }

    pub fn entries(&self) -> &[(String, Shape, DType)] {
        &self.entries
    }

    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|(_, s, d)| s.elements() * d.bytes()).sum()
    }
}

/// The tensor table of a plan with its precision: what operations are checked against.
#[derive(Clone, Debug)]
pub struct Tensors {
    precision: Precision,
    seats: usize,
    infos: Vec<TensorInfo>,
}

impl Tensors {
    /// Sessions that a run works on at once, see [`PlanBuilder::for_seats`].
    pub fn seats(&self) -> usize {
        self.seats
    }
    /// How many of a tensor there are: one for each seat if it is in a session's state.
    pub fn seats_in(&self, t: Tensor) -> usize {
        if matches!(self.home(t), Home::State(_)) { self.seats } else { 1 }
    }
    pub fn precision(&self) -> Precision {
        self.precision
    }
    pub fn shape(&self, t: Tensor) -> &Shape {
        &self.infos[t.0].shape
    }
    pub fn dtype(&self, t: Tensor) -> DType {
        self.infos[t.0].dtype
    }
    pub fn name(&self, t: Tensor) -> &str {
        &self.infos[t.0].name
    }
    pub fn home(&self, t: Tensor) -> Home {
        self.infos[t.0].home
    }
    pub fn iter(&self) -> impl Iterator<Item = (Tensor, &TensorInfo)> {
        self.infos.iter().enumerate().map(|(i, info)| (Tensor(i), info))
    }
    pub fn bytes(&self, t: Tensor) -> usize {
        self.infos[t.0].shape.elements() * self.infos[t.0].dtype.bytes()
    }
}

/// An operation with the name under which a profile reports it, such as `block.3/spatial_attn.to_qkv`.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: String,
    pub op: Op,
}

/// A finished plan. See the module text.
#[derive(Debug)]
pub struct Plan {
    pub name: String,
    pub tensors: Tensors,
    pub steps: Vec<Step>,
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
    /// How many entries a run's `params` needs.
    pub param_count: usize,
    /// Size of every arena slot in bytes, a multiple of [`SLOT_ALIGN`].
    pub slots: Vec<usize>,
    pub state: Arc<StateLayout>,
    /// Values of the tensors that are made with the plan, f32.
    pub tables: Vec<Vec<f32>>,
}

/// Alignment of arena slots and of state tensors on every device, in bytes.
pub const SLOT_ALIGN: usize = 256;

impl Plan {
    /// Arena memory in bytes.
    pub fn arena_bytes(&self) -> usize {
        self.slots.iter().sum()
    }

    /// The least that a step moves and computes: every operand once.
    pub fn cost(&self, step: &Step) -> Cost {
        let view = |v: &View| v.rows * v.cols * self.tensors.dtype(v.tensor).bytes();
        let moved: usize = match &step.op {
            // It writes one slot of the ring, wherever that is.
            Op::RingWrite(op) => 2 * view(&op.x),
            Op::Copy(op) => 2 * view(&op.x).max(view(&op.y)),
            op => op.reads().iter().chain(&op.writes()).map(view).sum(),
        };
        let constants: usize = step.op.constants().iter().map(|&t| self.tensors.bytes(t)).sum();
        Cost { flops: step.op.flops(), bytes: (moved + constants) as u64 }
    }

    /// Sessions that a run works on at once, at the most.
    pub fn seats(&self) -> usize {
        self.tensors.seats
    }

    /// Elements of an input or output that belong to one seat.
    pub fn seat_elements(&self, t: Tensor) -> usize {
        self.tensors.shape(t).elements() / self.tensors.seats
    }

    /// Arithmetic of one run.
    pub fn flops(&self) -> u64 {
        self.steps.iter().map(|s| s.op.flops()).sum()
    }
}

/// Builds a plan. Methods that take names use them in messages and profiles only.
pub struct PlanBuilder {
    name: String,
    weights: Arc<WeightSet>,
    state: Arc<StateLayout>,
    tensors: Tensors,
    steps: Vec<Step>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    scope: Vec<String>,
    weight_of: BTreeMap<WeightId, Tensor>,
    state_of: BTreeMap<usize, Tensor>,
    tables: Vec<Vec<f32>>,
    params: usize,
}

impl PlanBuilder {
    pub fn new(
        name: impl Into<String>,
        precision: Precision,
        weights: Arc<WeightSet>,
        state: Arc<StateLayout>,
    ) -> Self {
        PlanBuilder {
            name: name.into(),
            weights,
            state,
            tensors: Tensors { precision, seats: 1, infos: Vec::new() },
            steps: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            scope: Vec::new(),
            weight_of: BTreeMap::new(),
            state_of: BTreeMap::new(),
            tables: Vec::new(),
            params: 0,
        }
    }

    /// Makes the plan one for `seats` sessions at once. Inputs and outputs have the values of all of them one after the
    /// other, seat by seat; a tensor of the state is that of each seat's own session; each seat has params of its own.
    ///
    /// # Panics
    /// If `seats` is 0.
    pub fn for_seats(mut self, seats: usize) -> Self {
        assert!(seats > 0, "{} has no seats", self.name);
        self.tensors.seats = seats;
        self
    }

    pub fn precision(&self) -> Precision {
        self.tensors.precision
    }

    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Runs `build` with `name` in front of the names of its steps.
    pub fn scoped<R>(&mut self, name: impl Into<String>, build: impl FnOnce(&mut Self) -> R) -> R {
        self.scope.push(name.into());
        let result = build(self);
        self.scope.pop();
        result
    }

    fn insert(&mut self, name: String, shape: Shape, dtype: DType, home: Home) -> Tensor {
        self.tensors.infos.push(TensorInfo { name, shape, dtype, home });
        Tensor(self.tensors.infos.len() - 1)
    }

    /// A weight by its checkpoint name. Matrices take the plan's precision, vectors stay f32.
    /// Errors: [`ComputeError::UnknownWeight`].
    pub fn weight(&mut self, name: &str) -> Result<Tensor, ComputeError> {
        let id = self.weights.find(name).ok_or_else(|| ComputeError::UnknownWeight { name: name.to_string() })?;
        if let Some(&t) = self.weight_of.get(&id) {
            return Ok(t);
        }
        let weight = self.weights.get(id);
        let dtype = weight.dtype(self.tensors.precision);
        let (name, shape) = (weight.name.clone(), weight.shape);
        let t = self.insert(name, shape, dtype, Home::Weight(id));
        self.weight_of.insert(id, t);
        Ok(t)
    }

    /// A tensor of the session's state.
    ///
    /// # Panics
    /// If `index` did not come from the layout this builder was made with.
    pub fn state(&mut self, index: usize) -> Tensor {
        if let Some(&t) = self.state_of.get(&index) {
            return t;
        }
        let (name, shape, dtype) = self.state.entries()[index].clone();
        let t = self.insert(name, shape, dtype, Home::State(index));
        self.state_of.insert(index, t);
        t
    }

    /// A table of f32 that is part of the plan, such as rotary positions.
    ///
    /// # Panics
    /// If the number of values does not match the shape.
    pub fn table(&mut self, name: &str, dims: &[usize], values: Vec<f32>) -> Tensor {
        let shape = Shape::new(dims);
        assert_eq!(shape.elements(), values.len(), "values of {name}");
        self.tables.push(values);
        self.insert(name.to_string(), shape, DType::F32, Home::Table(self.tables.len() - 1))
    }

    /// A tensor that the host writes before a run; every input must be given to every run.
    pub fn input(&mut self, name: &str, dims: &[usize], dtype: DType) -> Tensor {
        let t = self.insert(name.to_string(), Shape::new(dims), dtype, Home::Arena(usize::MAX));
        self.inputs.push(t);
        t
    }

    /// A temporary in the plan's precision.
    pub fn temp(&mut self, name: &str, dims: &[usize]) -> Tensor {
        let dtype = self.tensors.precision.dtype();
        self.insert(name.to_string(), Shape::new(dims), dtype, Home::Arena(usize::MAX))
    }

    /// A temporary of bytes: a picture.
    pub fn bytes(&mut self, name: &str, len: usize) -> Tensor {
        self.insert(name.to_string(), Shape::new(&[len]), DType::U8, Home::Arena(usize::MAX))
    }

    /// Marks a temporary as readable by the host after a run.
    pub fn output(&mut self, t: Tensor) {
        if !self.outputs.contains(&t) {
            self.outputs.push(t);
        }
    }

    /// Reserves an entry of the run's `params`.
    pub fn param(&mut self) -> super::tensor::Param {
        self.params += 1;
        super::tensor::Param::Slot(self.params - 1)
    }

    /// The whole tensor as a matrix: rows are all dimensions but the last.
    pub fn view(&self, t: Tensor) -> View {
        let s = self.tensors.shape(t);
        View { tensor: t, offset: 0, rows: s.rows(), cols: s.cols(), stride: s.cols() }
    }

    /// Adds an operation. Errors: whatever its check finds.
    pub fn push(&mut self, name: &str, op: impl Into<Op>) -> Result<(), ComputeError> {
        let op = op.into();
        op.check(&self.tensors)?;
        self.check_seats(&op)?;
        for v in op.writes() {
            if matches!(self.tensors.home(v.tensor), Home::Weight(_) | Home::Table(_)) {
                return Err(ComputeError::Shape { op: op.label(), what: "writes to a constant".to_string() });
            }
        }
        let mut full = self.scope.join("/");
        if !full.is_empty() {
            full.push('/');
        }
        full.push_str(name);
        self.steps.push(Step { name: full, op });
        Ok(())
    }

    /// With several seats only some operations can reach states, and no temporary is one seat's alone.
    fn check_seats(&self, op: &Op) -> Result<(), ComputeError> {
        if self.tensors.seats == 1 || op.is_seated() {
            return Ok(());
        }
        let views = op.reads().into_iter().chain(op.writes()).map(|v| v.tensor);
        match views.chain(op.constants()).find(|&t| matches!(self.tensors.home(t), Home::State(_))) {
            None => Ok(()),
            Some(t) => {
                let what = format!("cannot reach {} of {} seats", self.tensors.name(t), self.tensors.seats);
                Err(ComputeError::Shape { op: op.label(), what })
            }
        }
    }

    /// Lays out the arena and closes the plan. Errors: a temporary that is read before it is written.
    pub fn finish(mut self) -> Result<Plan, ComputeError> {
        let lives = self.lifetimes()?;
        let slots = self.assign_slots(&lives);
        Ok(Plan {
            name: self.name,
            tensors: self.tensors,
            steps: self.steps,
            inputs: self.inputs,
            outputs: self.outputs,
            param_count: self.params,
            slots,
            state: self.state,
            tables: self.tables,
        })
    }

    /// Steps between which each temporary must keep its value, in order of the tensor table.
    fn lifetimes(&self) -> Result<Vec<Option<Range<usize>>>, ComputeError> {
        let mut lives: Vec<Option<Range<usize>>> = vec![None; self.tensors.infos.len()];
        for &t in &self.inputs {
            lives[t.0] = Some(0..1);
        }
        for (i, step) in self.steps.iter().enumerate() {
            let read = step.op.reads().into_iter().map(|v| v.tensor).chain(step.op.constants());
            let written: Vec<Tensor> = step.op.writes().into_iter().map(|v| v.tensor).collect();
            for t in read {
                if !matches!(self.tensors.home(t), Home::Arena(_)) {
                    continue;
                }
                match &mut lives[t.0] {
                    Some(life) => life.end = i + 1,
                    None => {
                        return Err(ComputeError::Unwritten {
                            tensor: self.tensors.name(t).to_string(),
                            step: step.name.clone(),
                        });
                    }
                }
            }
            for t in written {
                match &mut lives[t.0] {
                    Some(life) => life.end = i + 1,
                    none => *none = Some(i..i + 1),
                }
            }
        }
        for &t in &self.outputs {
            match &mut lives[t.0] {
                Some(life) => life.end = usize::MAX,
                None => {
                    return Err(ComputeError::Unwritten {
                        tensor: self.tensors.name(t).to_string(),
                        step: "output".to_string(),
                    });
                }
            }
        }
        Ok(lives)
    }

    /// Gives every temporary a slot that no living temporary holds; best fit by size. Inputs keep slots of their own,
    /// since the host writes them all before the first step.
    fn assign_slots(&mut self, lives: &[Option<Range<usize>>]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..lives.len()).filter(|&i| lives[i].is_some()).collect();
        order.retain(|&i| matches!(self.tensors.infos[i].home, Home::Arena(_)));
        order.sort_by_key(|&i| lives[i].as_ref().map_or(0, |l| l.start));
        let mut slots: Vec<(usize, usize)> = Vec::new(); // size in bytes, step from which it is free
        for i in order {
            let Some(life) = lives[i].clone() else { continue };
            let bytes = self.tensors.bytes(Tensor(i)).next_multiple_of(SLOT_ALIGN);
            let free = slots.iter().enumerate().filter(|(_, s)| s.1 <= life.start && !self.inputs.contains(&Tensor(i)));
            let fit = free.min_by_key(|(_, s)| (s.0 < bytes, s.0.abs_diff(bytes))).map(|(n, _)| n);
            let n = fit.unwrap_or_else(|| {
                slots.push((0, 0));
                slots.len() - 1
            });
            slots[n] = (slots[n].0.max(bytes), life.end);
            self.tensors.infos[i].home = Home::Arena(n);
        }
        slots.into_iter().map(|s| s.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::op::{Act, Map};

    fn builder() -> PlanBuilder {
        PlanBuilder::new("test", Precision::F32, Arc::new(WeightSet::default()), Arc::new(StateLayout::default()))
    }

    #[test]
    fn dead_temporaries_share_a_slot() {
        let mut b = builder();
        let x = b.input("x", &[4, 8], DType::F32);
        let names = ["a", "b", "c", "d"];
        let mut last = x;
        for name in names {
            let y = b.temp(name, &[4, 8]);
            let (x, y_view) = (b.view(last), b.view(y));
            b.push(name, Map { x, act: Act::Silu, y: y_view }).expect("shapes agree");
            last = y;
        }
        b.output(last);
        let plan = b.finish().expect("every tensor is written before it is read");
        assert_eq!(plan.slots.len(), 2, "{:?}", plan.slots);
    }

    #[test]
    fn reading_an_unwritten_temporary_is_an_error() {
        let mut b = builder();
        let (x, y) = (b.temp("x", &[2, 2]), b.temp("y", &[2, 2]));
        let (x, y) = (b.view(x), b.view(y));
        b.push("map", Map { x, act: Act::None, y }).expect("shapes agree");
        assert!(matches!(b.finish(), Err(ComputeError::Unwritten { .. })));
    }
}
