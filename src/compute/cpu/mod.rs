//! Native execution of plans on the processor's cores.
//!
//! Weights are packed once for the product kernel in [`gemm`]; everything else runs row by row. A run allocates
//! nothing: arena, packed matrices and scratch memory are made when a plan is prepared. Vector instructions are chosen
//! when the program starts ([`pulp::Arch`]), since the binary itself is built for any processor of its architecture.

mod attention;
mod conv;
mod gemm;
mod image;
mod linear;
mod math;
mod memory;
mod norm;
mod pointwise;
mod tasks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use pulp::Arch;
use rayon::{ThreadPool, ThreadPoolBuilder};

use self::memory::{Mat, Memory, Scratch};
use self::tasks::Context;
use super::op::Op;
use super::plan::Home;
use super::tensor::{DType, Tensor};
use super::{
    ComputeError, DeviceInfo, DeviceKind, Executor, Output, Plan, PlanId, Precision, Run, StateId, StateLayout,
    WeightSet, run,
};

/// Threads that an executor may be asked for.
pub const THREADS_MAX: usize = 256;

/// Runs f32 plans on a pool of threads. Same inputs give the same bits, whatever else runs and on how many threads.
pub struct CpuExecutor {
    info: DeviceInfo,
    arch: Arch,
    pool: ThreadPool,
    weights: Arc<WeightSet>,
    /// Packed weights by weight index; empty for those that no product reads.
    packed: Vec<Vec<f32>>,
    plans: Vec<Prepared>,
    states: HashMap<usize, State>,
    next_state: usize,
    /// The states of a run while it lasts.
    seats: Vec<State>,
    arena: Vec<Vec<f32>>,
    scratch: Scratch,
}

struct Prepared {
    plan: Arc<Plan>,
    /// Byte tensors by tensor index; the others are empty.
    bytes: Vec<Vec<u8>>,
}

/// A session's state.
struct State {
    layout: Arc<StateLayout>,
    values: Vec<Vec<f32>>,
}

fn device(what: String) -> ComputeError {
    ComputeError::Device { what }
}

impl CpuExecutor {
    /// An executor with `threads` threads of its own.
    /// Errors: [`ComputeError::Device`] if `threads` is not in `1..=`[`THREADS_MAX`] or a thread cannot be started.
    pub fn new(threads: usize) -> Result<CpuExecutor, ComputeError> {
        if !(1..=THREADS_MAX).contains(&threads) {
            return Err(device(format!("threads is {threads}, needs 1 to {THREADS_MAX}")));
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("compute {i}"))
            .build()
            .map_err(|e| device(format!("cannot start {threads} compute threads: {e}")))?;
        let arch = Arch::new();
        // The variant's own name; the rest of its debug text lists every instruction set that it implies.
        let level = format!("{arch:?}");
        let level = level.split('(').next().unwrap_or_default();
        let detail = format!("{threads} threads, {} vectors {level}", std::env::consts::ARCH);
        Ok(CpuExecutor {
            info: DeviceInfo {
                kind: DeviceKind::Cpu,
                name: crate::sys::process::processor_name(),
                precision: Precision::F32,
                detail,
                memory_bytes: 0,
            },
            arch,
            pool,
            weights: Arc::new(WeightSet::default()),
            packed: Vec::new(),
            plans: Vec::new(),
            states: HashMap::new(),
            next_state: 0,
            seats: Vec::new(),
            arena: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    /// Packs the weights of a plan's products that are not packed yet.
    fn pack_weights(&mut self, plan: &Plan) {
        for step in &plan.steps {
            let w = match &step.op {
                Op::Linear(op) => op.w,
                Op::Conv3x3(op) => op.w,
                _ => continue,
            };
            let Home::Weight(id) = plan.tensors.home(w) else { continue };
            if self.packed[id.index()].is_empty() {
                // A convolution's weight is [Cout, 3, 3, Cin]: a matrix with one row for each output channel.
                let n = plan.tensors.shape(w).dims()[0];
                let data = &self.weights.get(id).data;
                let k = data.len() / n;
                let mut packed = vec![0.0; gemm::packed_len(n, k)];
                gemm::pack(&Mat { data, rows: n, cols: k, stride: k }, &mut packed);
                self.packed[id.index()] = packed;
            }
        }
    }
}

/// Runs a step: one that reaches states once for each seat, attention once for each sequence.
fn execute(op: &Op, plan: &Plan, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let (tensors, all) = (&plan.tensors, memory.seats.len());
    let of_seat = |seat: usize| Context { params: &cx.params[seat * plan.param_count..], ..*cx };
    match op {
        Op::Attention(op) => {
            // Sequences of seats without a session have no params.
            for g in 0..op.groups.count * all / tensors.seats() {
                let cx = of_seat(g * tensors.seats() / op.groups.count);
                attention::attention(&op.sequence(g), memory, scratch, &cx);
            }
        }
        op if op.is_seated() => {
            for seat in 0..all {
                memory.seat = seat;
                match op {
                    Op::RingAttention(op) => {
                        attention::ring_attention(&op.seat(seat, tensors), memory, scratch, &of_seat(seat));
                    }
                    Op::RingWrite(op) => {
                        attention::ring_write(&op.seat(seat, tensors), memory, scratch, &of_seat(seat));
                    }
                    Op::Copy(op) => pointwise::copy(&op.seat(seat, tensors), memory, scratch, cx),
                    _ => {}
                }
            }
            memory.seat = 0;
        }
        op => alike(op, memory, scratch, cx),
    }
}

/// The steps that treat all rows alike.
fn alike(op: &Op, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    match op {
        Op::Linear(op) => linear::linear(op, memory, scratch, cx),
        Op::Conv3x3(op) => conv::conv3x3(op, memory, scratch, cx),
        Op::Norm(op) => norm::norm(op, memory, scratch, cx),
        Op::HeadNorm(op) => norm::head_norm(op, memory, cx),
        Op::Add(op) => pointwise::add(op, memory, scratch, cx),
        Op::Axpy(op) => pointwise::axpy(op, memory, scratch, cx),
        Op::GatedGelu(op) => pointwise::gated_gelu(op, memory, scratch, cx),
        Op::Map(op) => pointwise::map(op, memory, scratch, cx),
        Op::Unshuffle(op) => image::unshuffle(op, memory, scratch, cx),
        Op::GroupMean(op) => image::group_mean(op, memory, scratch, cx),
        Op::Shuffle(op) => image::shuffle(op, memory, scratch, cx),
        Op::ToI420(op) => image::to_i420(op, memory),
        Op::Attention(_) | Op::RingAttention(_) | Op::RingWrite(_) | Op::Copy(_) => {
            unreachable!("they have a seat or a sequence")
        }
    }
}

impl Executor for CpuExecutor {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn taken_bytes(&self) -> u64 {
        let weights = self.weights.iter().map(|(_, w)| w.data.len());
        let states = self.states.values().flat_map(|state| &state.values).map(Vec::len);
        let work = self.packed.iter().chain(&self.arena).map(Vec::len);
        4 * weights.chain(states).chain(work).sum::<usize>() as u64
    }

    fn load_weights(&mut self, weights: &Arc<WeightSet>) -> Result<(), ComputeError> {
        self.weights = Arc::clone(weights);
        self.packed = vec![Vec::new(); weights.len()];
        Ok(())
    }

    fn prepare(&mut self, plan: Arc<Plan>) -> Result<PlanId, ComputeError> {
        if plan.tensors.precision() != Precision::F32 {
            return Err(device(format!(
                "{} is a plan of {:?}, the processor runs F32",
                plan.name,
                plan.tensors.precision()
            )));
        }
        let mut bytes = vec![Vec::new(); plan.tensors.iter().count()];
        for (t, info) in plan.tensors.iter() {
            match info.home {
                Home::Weight(id) if id.index() >= self.packed.len() => {
                    return Err(device(format!("weight {} of {} is not loaded", info.name, plan.name)));
                }
                Home::Arena(slot) if slot < plan.slots.len() => {
                    if self.arena.len() <= slot {
                        self.arena.resize(slot + 1, Vec::new());
                    }
                    if info.dtype == DType::U8 {
                        bytes[t.index()] = vec![0; info.shape.elements()];
                    } else if self.arena[slot].len() < info.shape.elements() {
                        self.arena[slot].resize(info.shape.elements(), 0.0);
                    }
                }
                _ => {}
            }
        }
        self.pack_weights(&plan);
        self.scratch.reserve(&plan, self.pool.current_num_threads());
        self.plans.push(Prepared { plan, bytes });
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
        match self.states.get_mut(&state.0).and_then(|s| s.values.get_mut(index)) {
            Some(entry) if entry.len() == values.len() => entry.copy_from_slice(values),
            _ => return Err(device(format!("state {} has no entry {index} of {} values", state.0, values.len()))),
        }
        Ok(())
    }

    fn run(&mut self, mut run: Run<'_>) -> Result<(), ComputeError> {
        let CpuExecutor { pool, plans, states, seats, weights, packed, arena, scratch, arch, .. } = self;
        let Prepared { plan, bytes } =
            plans.get_mut(run.plan.0).ok_or_else(|| device(format!("plan {} is not prepared", run.plan.0)))?;
        run::check(plan, &run, |id| states.get(&id.0).map(|s| &*s.layout))?;
        seats.clear();
        seats.extend(run.states.iter().filter_map(|id| states.remove(&id.0)));
        let mut memory = Memory { tensors: &plan.tensors, weights, tables: &plan.tables, seats, seat: 0, arena, bytes };
        for &t in &plan.inputs {
            for (seat, (_, values)) in run.inputs.iter().filter(|(given, _)| *given == t).enumerate() {
                memory.fill(t, seat, values);
            }
        }
        let cx = Context { arch: *arch, threads: pool.current_num_threads(), params: run.params, packed };
        let mut profile = run.profile.take();
        let plan: &Plan = plan;
        pool.install(|| {
            for step in &plan.steps {
                let start = Instant::now();
                execute(&step.op, plan, &mut memory, scratch, &cx);
                if let Some(profile) = profile.as_deref_mut() {
                    profile.push(&step.name, step.op.label(), start.elapsed(), plan.cost(step));
                }
            }
        });
        for &t in &plan.outputs {
            let wanted = run.outputs.iter_mut().filter(|(wanted, _)| *wanted == t);
            for (seat, (_, output)) in wanted.enumerate() {
                match output {
                    Output::F32(out) => out.copy_from_slice(&memory.vector(t)[seat * out.len()..][..out.len()]),
                    Output::Bytes(out) => {
                        out.copy_from_slice(&memory.bytes[Tensor::index(t)][seat * out.len()..][..out.len()]);
                    }
                    // Nothing is shared with this executor, so nobody has an id.
                    Output::Shared { .. } => {}
                }
            }
        }
        states.extend(run.states.iter().map(|id| id.0).zip(seats.drain(..)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
