//! The truth that the other executors are tested against: plain loops, one function for each operation, every tensor a
//! vector of its own. Slow, sequential, and meant to be read beside the doc comments of [`super::op`].

mod attention;
mod conv;
mod image;
mod linear;
mod norm;
mod pointwise;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use half::f16;

use super::op::{Act, Op};
use super::plan::{Home, Tensors};
use super::tensor::{DType, Tensor, View};
use super::{
    ComputeError, DeviceInfo, DeviceKind, Executor, Output, Plan, PlanId, Precision, Run, StateId, StateLayout,
    WeightSet, run,
};

/// Runs plans of one precision. For [`Precision::F16`] whatever a device would store in f16 is rounded to f16 after
/// each operation, while every operation computes in f32.
pub struct ReferenceExecutor {
    info: DeviceInfo,
    weights: Option<Arc<WeightSet>>,
    plans: Vec<Arc<Plan>>,
    states: HashMap<usize, State>,
    next_state: usize,
}

struct State {
    layout: Arc<StateLayout>,
    values: Vec<Vec<f32>>,
}

/// The tensors of one run, indexed like the plan's table. Bytes are whole numbers here. Temporaries begin as NaN, so
/// that a value which no operation wrote shows up in the output.
struct Values(Vec<Vec<f32>>);

/// The tensors of the sessions' states in one run: by seat, then by the index of the plan's tensor.
type Seats = Vec<Vec<(usize, Vec<f32>)>>;

impl Values {
    fn row(&self, v: &View, row: usize) -> &[f32] {
        let start = v.offset + row * v.stride;
        &self.0[v.tensor.0][start..start + v.cols]
    }

    fn row_mut(&mut self, v: &View, row: usize) -> &mut [f32] {
        let start = v.offset + row * v.stride;
        &mut self.0[v.tensor.0][start..start + v.cols]
    }

    fn at(&self, v: &View, row: usize, col: usize) -> f32 {
        self.row(v, row)[col]
    }

    fn set(&mut self, v: &View, row: usize, col: usize, value: f32) {
        self.row_mut(v, row)[col] = value;
    }

    fn all(&self, t: Tensor) -> &[f32] {
        &self.0[t.0]
    }
}

/// The row of `v` (G rows) that belongs to row `row` of `rows`.
fn group(v: &View, row: usize, rows: usize) -> usize {
    row / (rows / v.rows)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The tanh approximation of gelu.
fn gelu(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)).tanh())
}

fn act(kind: Act, x: f32) -> f32 {
    match kind {
        Act::None => x,
        Act::Gelu => gelu(x),
        Act::Silu => x * sigmoid(x),
    }
}

/// Rounds values to what a tensor of this type can hold.
fn round(values: &mut [f32], dtype: DType) {
    if dtype == DType::F16 {
        for v in values {
            *v = f16::from_f32(*v).to_f32();
        }
    }
}

impl ReferenceExecutor {
    pub fn new(precision: Precision) -> ReferenceExecutor {
        ReferenceExecutor {
            info: DeviceInfo {
                kind: DeviceKind::Reference,
                name: "reference".to_string(),
                precision,
                detail: "plain loops".to_string(),
                memory_bytes: 0,
            },
            weights: None,
            plans: Vec::new(),
            states: HashMap::new(),
            next_state: 0,
        }
    }

    fn plan(&self, id: PlanId) -> Result<Arc<Plan>, ComputeError> {
        self.plans.get(id.0).cloned().ok_or_else(|| device(format!("plan {} is not prepared", id.0)))
    }

    /// The states' tensors as a run finds them.
    fn sit(&self, plan: &Plan, run: &Run<'_>) -> Seats {
        let tensors = || {
            plan.tensors.iter().filter_map(|(t, info)| match info.home {
                Home::State(index) => Some((t.0, index)),
                _ => None,
            })
        };
        run.states.iter().map(|s| tensors().map(|(t, i)| (t, self.states[&s.0].values[i].clone())).collect()).collect()
    }

    /// The plan's other tensors as a run finds them.
    fn enter(&self, plan: &Plan, run: &Run<'_>) -> Result<Values, ComputeError> {
        let mut all = Vec::new();
        for (_, info) in plan.tensors.iter() {
            let mut values = match info.home {
                Home::Weight(id) => match &self.weights {
                    Some(set) => set.get(id).data.to_vec(),
                    None => return Err(device("no weights are loaded".to_string())),
                },
                Home::State(_) => Vec::new(),
                Home::Table(i) => plan.tables[i].clone(),
                Home::Arena(_) => vec![f32::NAN; info.shape.elements()],
            };
            round(&mut values, info.dtype);
            all.push(values);
        }
        for &t in &plan.inputs {
            let given = run.inputs.iter().filter(|(given, _)| *given == t);
            for ((_, values), to) in given.zip(all[t.0].chunks_exact_mut(plan.seat_elements(t))) {
                to.copy_from_slice(values);
            }
            round(&mut all[t.0], plan.tensors.dtype(t));
        }
        Ok(Values(all))
    }
}

fn device(what: String) -> ComputeError {
    ComputeError::Device { what }
}

/// Runs a step: one that reaches states once for each seat, with the state of that seat in its place.
fn execute(op: &Op, values: &mut Values, seats: &mut Seats, params: &[u32], plan: &Plan) {
    let tensors = &plan.tensors;
    let of_seat = |seat: usize| &params[seat * plan.param_count..];
    match op {
        Op::RingAttention(op) => {
            seated(values, seats, |v, seat| attention::ring_attention(&op.seat(seat, tensors), v, of_seat(seat)));
        }
        Op::RingWrite(op) => {
            seated(values, seats, |v, seat| attention::ring_write(&op.seat(seat, tensors), v, of_seat(seat)));
        }
        Op::Copy(op) if op.crosses(tensors) => {
            seated(values, seats, |v, seat| pointwise::copy(&op.seat(seat, tensors), v));
        }
        Op::Attention(op) => {
            // Sequences of seats without a session have no params.
            let sequences = op.groups.count * seats.len() / tensors.seats();
            one_seat(values, seats, tensors, |v| {
                for g in 0..sequences {
                    let seat = g * tensors.seats() / op.groups.count;
                    attention::attention(&op.sequence(g), v, of_seat(seat));
                }
            });
        }
        op => one_seat(values, seats, tensors, |v| alike(op, v)),
    }
    for v in op.writes() {
        round(&mut values.0[v.tensor.0], tensors.dtype(v.tensor));
        for (_, values) in seats.iter_mut().flatten().filter(|(t, _)| *t == v.tensor.0) {
            round(values, tensors.dtype(v.tensor));
        }
    }
}

/// Puts the state of each seat among the tensors, one after the other.
fn seated(values: &mut Values, seats: &mut Seats, f: impl Fn(&mut Values, usize)) {
    for (seat, state) in seats.iter_mut().enumerate() {
        state.iter_mut().for_each(|(t, own)| std::mem::swap(&mut values.0[*t], own));
        f(values, seat);
        state.iter_mut().for_each(|(t, own)| std::mem::swap(&mut values.0[*t], own));
    }
}

/// As [`seated`] where there is one seat; with more of them the step reaches no state.
fn one_seat(values: &mut Values, seats: &mut Seats, tensors: &Tensors, f: impl Fn(&mut Values)) {
    if tensors.seats() == 1 { seated(values, seats, |v, _| f(v)) } else { f(values) }
}

/// The steps that treat all rows alike.
fn alike(op: &Op, values: &mut Values) {
    match op {
        Op::Linear(op) => linear::linear(op, values),
        Op::Conv3x3(op) => conv::conv3x3(op, values),
        Op::Norm(op) => norm::norm(op, values),
        Op::HeadNorm(op) => norm::head_norm(op, values),
        Op::Copy(op) => pointwise::copy(op, values),
        Op::Add(op) => pointwise::add(op, values),
        Op::Axpy(op) => pointwise::axpy(op, values),
        Op::GatedGelu(op) => pointwise::gated_gelu(op, values),
        Op::Map(op) => pointwise::map(op, values),
        Op::Unshuffle(op) => image::unshuffle(op, values),
        Op::GroupMean(op) => image::group_mean(op, values),
        Op::Shuffle(op) => image::shuffle(op, values),
        Op::ToI420(op) => image::to_i420(op, values),
        Op::Attention(_) | Op::RingAttention(_) | Op::RingWrite(_) => unreachable!("they have a seat or a sequence"),
    }
}

impl Executor for ReferenceExecutor {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn load_weights(&mut self, weights: &Arc<WeightSet>) -> Result<(), ComputeError> {
        self.weights = Some(Arc::clone(weights));
        Ok(())
    }

    fn prepare(&mut self, plan: Arc<Plan>) -> Result<PlanId, ComputeError> {
        if plan.tensors.precision() != self.info.precision {
            return Err(device(format!("{} is a plan of {:?}", plan.name, plan.tensors.precision())));
        }
        self.plans.push(plan);
        Ok(PlanId(self.plans.len() - 1))
    }

    fn create_state(&mut self, layout: &Arc<StateLayout>) -> Result<StateId, ComputeError> {
        let values = layout.entries().iter().map(|(_, shape, _)| vec![0.0; shape.elements()]).collect();
        self.states.insert(self.next_state, State { layout: Arc::clone(layout), values });
        self.next_state += 1;
        Ok(StateId(self.next_state - 1))
    }

    fn destroy_state(&mut self, state: StateId) {
        self.states.remove(&state.0);
    }

    fn read_state(&mut self, state: StateId, index: usize, out: &mut [f32]) -> Result<(), ComputeError> {
        match self.states.get(&state.0).and_then(|s| s.values.get(index)) {
            Some(values) if values.len() == out.len() => out.copy_from_slice(values),
            _ => return Err(device(format!("state {} has no entry {index} of {} values", state.0, out.len()))),
        }
        Ok(())
    }

    fn write_state(&mut self, state: StateId, index: usize, values: &[f32]) -> Result<(), ComputeError> {
        let entry = self.states.get_mut(&state.0).and_then(|s| {
            let dtype = s.layout.entries().get(index)?.2;
            Some((dtype, s.values.get_mut(index)?))
        });
        match entry {
            Some((dtype, entry)) if entry.len() == values.len() => {
                entry.copy_from_slice(values);
                round(entry, dtype);
                Ok(())
            }
            _ => Err(device(format!("state {} has no entry {index} of {} values", state.0, values.len()))),
        }
    }

    fn run(&mut self, mut run: Run<'_>) -> Result<(), ComputeError> {
        let plan = self.plan(run.plan)?;
        run::check(&plan, &run, |id| self.states.get(&id.0).map(|s| &*s.layout))?;
        let mut values = self.enter(&plan, &run)?;
        let mut seats = self.sit(&plan, &run);
        for step in &plan.steps {
            let start = Instant::now();
            execute(&step.op, &mut values, &mut seats, run.params, &plan);
            if let Some(profile) = run.profile.as_deref_mut() {
                profile.push(&step.name, step.op.label(), start.elapsed(), plan.cost(step));
            }
        }
        for &t in &plan.outputs {
            let wanted = run.outputs.iter_mut().filter(|(wanted, _)| *wanted == t);
            // An output in a state is read with one seat only.
            let from = if values.all(t).is_empty() { own(&seats, t) } else { values.all(t) };
            for ((_, output), from) in wanted.zip(from.chunks_exact(plan.seat_elements(t))) {
                match output {
                    Output::F32(out) => out.copy_from_slice(from),
                    // Values of byte tensors are whole numbers from 0 to 255.
                    // Nothing is shared with this executor, so nobody has an id.
                    Output::Shared { .. } => {}
                    Output::Bytes(out) => out.iter_mut().zip(from).for_each(|(o, v)| *o = *v as u8),
                }
            }
        }
        for (id, seat) in run.states.iter().zip(seats) {
            let Some(state) = self.states.get_mut(&id.0) else { continue };
            for (t, values) in seat {
                if let Home::State(index) = plan.tensors.home(Tensor(t)) {
                    state.values[index] = values;
                }
            }
        }
        Ok(())
    }
}

/// A tensor of the first seat's state.
fn own(seats: &Seats, t: Tensor) -> &[f32] {
    seats[0].iter().find(|(own, _)| *own == t.0).map_or(&[], |(_, values)| values)
}

#[cfg(test)]
mod tests;
