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

    /// The plan's tensors as a run finds them.
    fn begin(&self, plan: &Plan, state: &State, run: &Run<'_>) -> Result<Values, ComputeError> {
        let mut all = Vec::new();
        for (_, info) in plan.tensors.iter() {
            let mut values = match info.home {
                Home::Weight(id) => match &self.weights {
                    Some(set) => set.get(id).data.to_vec(),
                    None => return Err(device("no weights are loaded".to_string())),
                },
                Home::State(index) => state.values[index].clone(),
                Home::Arena(_) => vec![f32::NAN; info.shape.elements()],
            };
            round(&mut values, info.dtype);
            all.push(values);
        }
        for (t, values) in run.inputs {
            all[t.0].copy_from_slice(values);
            round(&mut all[t.0], plan.tensors.dtype(*t));
        }
        Ok(Values(all))
    }
}

fn device(what: String) -> ComputeError {
    ComputeError::Device { what }
}

fn execute(op: &Op, values: &mut Values, params: &[u32], tensors: &Tensors) {
    match op {
        Op::Linear(op) => linear::linear(op, values),
        Op::Conv3x3(op) => conv::conv3x3(op, values),
        Op::Norm(op) => norm::norm(op, values),
        Op::HeadNorm(op) => norm::head_norm(op, values),
        Op::Attention(op) => attention::attention(op, values, params),
        Op::RingAttention(op) => attention::ring_attention(op, values, params),
        Op::RingWrite(op) => attention::ring_write(op, values, params),
        Op::Copy(op) => pointwise::copy(op, values),
        Op::Add(op) => pointwise::add(op, values),
        Op::Axpy(op) => pointwise::axpy(op, values),
        Op::GatedGelu(op) => pointwise::gated_gelu(op, values),
        Op::Map(op) => pointwise::map(op, values),
        Op::Unshuffle(op) => image::unshuffle(op, values),
        Op::GroupMean(op) => image::group_mean(op, values),
        Op::Shuffle(op) => image::shuffle(op, values),
        Op::ToI420(op) => image::to_i420(op, values),
    }
    for v in op.writes() {
        round(&mut values.0[v.tensor.0], tensors.dtype(v.tensor));
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
        let state =
            self.states.get(&run.state.0).ok_or_else(|| device(format!("state {} does not exist", run.state.0)))?;
        run::check(&plan, &run, &state.layout)?;
        let mut values = self.begin(&plan, state, &run)?;
        for step in &plan.steps {
            let start = Instant::now();
            execute(&step.op, &mut values, run.params, &plan.tensors);
            if let Some(profile) = run.profile.as_deref_mut() {
                profile.push(&step.name, step.op.label(), start.elapsed(), plan.cost(step));
            }
        }
        for (t, output) in run.outputs.iter_mut() {
            match output {
                Output::F32(out) => out.copy_from_slice(values.all(*t)),
                // Values of byte tensors are whole numbers from 0 to 255.
                Output::Bytes(out) => out.iter_mut().zip(values.all(*t)).for_each(|(o, v)| *o = *v as u8),
            }
        }
        if let Some(state) = self.states.get_mut(&run.state.0) {
            for (t, info) in plan.tensors.iter() {
                if let Home::State(index) = info.home {
                    state.values[index] = std::mem::take(&mut values.0[t.0]);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
