//! A plan with its addresses becomes a recording.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::super::plan::{Home, Plan};
use super::super::tensor::{Param, Tensor};
use super::super::{ComputeError, Profile};
use super::kernels::{self, Addresses, Dispatch, Lowered, Target, Variant};
use super::launches;
use super::memory::{Layout, Slots, State, Tables, Weights};
use super::{Key, Passage, Prepared};
use crate::vk::{Buffer, CommandBuffer, Device, Pipeline, Recorder, Stage};

/// Everything that a recording works on.
pub(super) struct Memory<'a> {
    pub prepared: &'a Prepared,
    pub passage: &'a Passage,
    /// The session's state, for a plan of one seat.
    pub state: Option<&'a State>,
    pub weights: &'a Weights,
    pub arena: &'a [Arc<Buffer>],
}

/// Where the tensors and params of a plan are on the device.
pub(super) struct Addressing<'a> {
    plan: &'a Plan,
    slots: &'a Slots,
    arena: &'a [Arc<Buffer>],
    params: u64,
    table: u64,
    tables: Option<&'a Tables>,
    /// Where entries of a state lie in it.
    places: Option<&'a Layout>,
    /// State and weights; `None` while only kernels and constants are looked for.
    homes: Option<(Option<&'a State>, &'a Weights)>,
    constants: RefCell<Vec<u32>>,
}

impl<'a> Addressing<'a> {
    /// Without memory: finds which kernels a plan needs and which constants are among its params.
    pub fn dry(plan: &'a Plan, slots: &'a Slots) -> Self {
        Addressing {
            plan,
            slots,
            arena: &[],
            params: 0,
            table: 0,
            tables: None,
            places: None,
            homes: None,
            constants: RefCell::default(),
        }
    }

    fn new(memory: &Memory<'a>) -> Self {
        let prepared = memory.prepared;
        Addressing {
            plan: &prepared.plan,
            slots: &prepared.slots,
            arena: memory.arena,
            params: memory.passage.params.address() + prepared.words_at(),
            table: memory.passage.params.address(),
            tables: prepared.tables.as_ref(),
            places: Some(&prepared.places),
            homes: Some((memory.state, memory.weights)),
            constants: RefCell::new(prepared.constants.clone()),
        }
    }

    /// Constants in the order of their words, which follow the words of the slots.
    pub fn constants(self) -> Vec<u32> {
        self.constants.into_inner()
    }
}

impl Addresses for Addressing<'_> {
    fn tensor(&self, t: Tensor) -> u64 {
        match (self.plan.tensors.home(t), self.homes) {
            (Home::Arena(slot), _) => {
                let (buffer, offset) = self.slots.place(slot);
                self.arena.get(buffer).map_or(0, |b| b.address()) + offset
            }
            (Home::State(i), Some((state, _))) => {
                // With several seats the table has where each state begins.
                let own = state.map_or(0, |s| s.buffer.address());
                own + self.places.map_or(0, |places| places.offset(i))
            }
            (Home::Weight(id), Some((_, weights))) => weights.address(id),
            (Home::Table(i), Some(_)) => self.tables.map_or(0, |tables| tables.address(i)),
            (_, None) => 0,
        }
    }

    fn seat_table(&self) -> u64 {
        self.table
    }

    fn param(&self, p: Param, seat: usize) -> u64 {
        let word = match p {
            Param::Slot(i) => seat * self.plan.param_count + i,
            Param::Const(c) => {
                let mut constants = self.constants.borrow_mut();
                let known = constants.iter().position(|&k| k == c);
                let index = known.unwrap_or_else(|| {
                    constants.push(c);
                    constants.len() - 1
                });
                self.plan.seats() * self.plan.param_count + index
            }
        };
        self.params + 4 * word as u64
    }
}

/// The dispatches of every step.
pub(super) fn lower(memory: &Memory<'_>, target: &Target) -> Result<Vec<Lowered>, ComputeError> {
    let addressing = Addressing::new(memory);
    let plan = &memory.prepared.plan;
    let steps = kernels::lower_plan(plan, &addressing, target);
    assert_eq!(addressing.constants(), memory.prepared.constants, "lowering is the same each time");
    Ok(steps)
}

/// A recorded run.
pub(super) struct Recording {
    pub commands: CommandBuffer,
    /// Kernel of every step, if the recording is profiled.
    kernels: Vec<String>,
}

/// Records a run: params and inputs in, the steps with the barriers that they need, outputs out.
pub(super) fn record(
    device: &Device,
    memory: &Memory<'_>,
    steps: &[Lowered],
    pipelines: &HashMap<Variant, Arc<Pipeline>>,
    key: &Key,
) -> Result<Recording, ComputeError> {
    let (prepared, plan) = (memory.prepared, &memory.prepared.plan);
    for dispatch in steps.iter().flat_map(|s| &s.dispatches) {
        let fits = dispatch.grid.iter().zip(device.limits().grid_max).all(|(&n, max)| n > 0 && n <= max);
        if !fits {
            let (name, grid) = (dispatch.kernel.kernel().name, dispatch.grid);
            let what = format!("{}: {name} needs {grid:?} workgroups, more than the device runs at once", plan.name);
            return Err(ComputeError::Device { what });
        }
    }
    let timestamps = if key.profiled { plan.steps.len() as u32 + 1 } else { 0 };
    let mut r = Recorder::new(device, &plan.name, timestamps)?;
    let state = memory.state.map(|s| &s.buffer);
    for buffer in memory.weights.buffers.iter().chain(memory.arena).chain([&memory.passage.params]).chain(state) {
        r.keep(buffer);
    }
    if let Some(Tables { buffer, .. }) = &prepared.tables {
        r.keep(buffer);
    }
    copy_in(&mut r, memory);
    r.barrier(Stage::Transfer, Stage::Compute);
    if key.profiled {
        r.timestamp();
    }
    let launch = |r: &mut Recorder, at: usize| {
        for (i, dispatch) in steps[at].dispatches.iter().enumerate() {
            if i > 0 && dispatch.waits {
                r.barrier(Stage::Compute, Stage::Compute);
            }
            r.dispatch(&pipelines[&dispatch.variant()], dispatch.push.bytes(), dispatch.grid);
        }
    };
    if key.profiled {
        // Steps one after the other, so that each time is one step's.
        for at in 0..steps.len() {
            launch(&mut r, at);
            r.barrier(Stage::Compute, Stage::Compute);
            r.timestamp();
        }
    } else {
        for (n, interval) in launches::intervals(plan, steps).into_iter().enumerate() {
            if n > 0 {
                r.barrier(Stage::Compute, Stage::Compute);
            }
            interval.into_iter().for_each(|at| launch(&mut r, at));
        }
    }
    if let Some(dispatch) = deliveries(memory, key) {
        r.barrier(Stage::Compute, Stage::Compute);
        r.dispatch(&pipelines[&dispatch.variant()], dispatch.push.bytes(), dispatch.grid);
    }
    r.barrier(Stage::All, Stage::Transfer);
    for t in &key.outputs {
        let at = plan.outputs.iter().position(|o| o == t).expect("a key lists outputs of its plan");
        let bytes = plan.tensors.bytes(*t) as u64;
        let (from, offset) = place(memory, *t);
        r.copy(from, offset, &memory.passage.download, prepared.outputs.offset(at), bytes);
    }
    r.barrier(Stage::All, Stage::Host);
    let names = |(step, all): (&super::super::plan::Step, &Lowered)| {
        let kernels: Vec<String> = all.dispatches.iter().map(Dispatch::label).collect();
        format!("{} {}", step.op.label(), kernels.join("+"))
    };
    let kernels = if key.profiled { plan.steps.iter().zip(steps).map(names).collect() } else { Vec::new() };
    Ok(Recording { commands: r.finish()?, kernels })
}

/// What takes the bytes of a run to the targets of its seats.
pub(super) fn deliveries(memory: &Memory<'_>, key: &Key) -> Option<Dispatch> {
    let (prepared, t) = (memory.prepared, key.delivered?);
    let (buffer, offset) = place(memory, t);
    let seats = prepared.plan.seats();
    let bytes = prepared.plan.seat_elements(t);
    Some(kernels::deliver(
        buffer.address() + offset,
        memory.passage.params.address() + prepared.targets_at(),
        bytes,
        seats,
    ))
}

fn copy_in(r: &mut Recorder, memory: &Memory<'_>) {
    let (prepared, plan) = (memory.prepared, &memory.prepared.plan);
    let Passage { upload, params, .. } = memory.passage;
    r.copy(upload, 0, params, 0, params.bytes());
    for (i, &t) in plan.inputs.iter().enumerate() {
        // An input that no step reads has no slot.
        if matches!(plan.tensors.home(t), Home::Arena(slot) if slot < plan.slots.len()) {
            let (to, offset) = place(memory, t);
            r.copy(upload, prepared.inputs.offset(i + 1), to, offset, plan.tensors.bytes(t) as u64);
        }
    }
}

/// Buffer and offset of an input or an output; weights are neither.
fn place<'a>(memory: &Memory<'a>, t: Tensor) -> (&'a Arc<Buffer>, u64) {
    match memory.prepared.plan.tensors.home(t) {
        Home::Arena(slot) => {
            let (buffer, offset) = memory.prepared.slots.place(slot);
            (&memory.arena[buffer], offset)
        }
        Home::State(i) => {
            let state = memory.state.expect("an output of a plan of several seats is a temporary");
            (&state.buffer, state.places.offset(i))
        }
        Home::Weight(_) | Home::Table(_) => unreachable!("only temporaries and state go to or come from the host"),
    }
}

impl Recording {
    /// Adds the times of the last run to a profile.
    pub fn report(&self, plan: &Plan, profile: &mut Profile) -> Result<(), ComputeError> {
        for ((step, kernel), time) in plan.steps.iter().zip(&self.kernels).zip(self.commands.intervals()?) {
            profile.push(&step.name, kernel, time, plan.cost(step));
        }
        Ok(())
    }
}
