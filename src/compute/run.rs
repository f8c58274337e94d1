//! What every executor checks about a run before it touches anything.

use super::op::Op;
use super::plan::{Plan, StateLayout, Tensors};
use super::tensor::{DType, Param};
use super::{ComputeError, Output, Run, StateId};

/// Fails unless the run fits its plan: all inputs with their lengths, outputs that the plan has, a state of the plan's
/// layout, and params inside the bounds of the operations that use them.
pub(crate) fn check<'s>(
    plan: &Plan,
    run: &Run<'_>,
    layout: impl Fn(StateId) -> Option<&'s StateLayout>,
) -> Result<(), ComputeError> {
    let fail = |what: String| Err(ComputeError::Run { plan: plan.name.clone(), what });
    let count = run.states.len();
    if !(1..=plan.seats()).contains(&count) {
        return fail(format!("{count} sessions, allowed: 1 to {}", plan.seats()));
    }
    for (seat, state) in run.states.iter().enumerate() {
        match layout(*state) {
            None => return fail(format!("state {} does not exist", state.0)),
            Some(layout) if *layout != *plan.state => {
                return fail("the state has another layout than the plan".to_string());
            }
            _ if run.states[..seat].contains(state) => {
                return fail(format!("state {} has two seats", state.0));
            }
            _ => {}
        }
    }
    inputs(plan, run, count)?;
    outputs(plan, run, count)?;
    let params = plan.param_count * count;
    if run.params.len() < params {
        return fail(format!("{} params, needs {params}", run.params.len()));
    }
    for step in &plan.steps {
        let Some((param, allowed)) = bounds(&step.op, &plan.tensors) else { continue };
        for seat in 0..count {
            match param.value(&run.params[seat * plan.param_count..]) {
                Some(v) if allowed.contains(&(v as usize)) => {}
                v => return fail(format!("{}: param is {v:?}, needs {allowed:?}", step.name)),
            }
        }
    }
    Ok(())
}

/// Every input once for each session.
fn inputs(plan: &Plan, run: &Run<'_>, count: usize) -> Result<(), ComputeError> {
    let fail = |what: String| Err(ComputeError::Run { plan: plan.name.clone(), what });
    for &t in &plan.inputs {
        match run.inputs.iter().filter(|(given, _)| *given == t).count() {
            0 => return fail(format!("input {} is missing", plan.tensors.name(t))),
            n if n != count => {
                return fail(format!("input {} is given {n} times, needs {count}", plan.tensors.name(t)));
            }
            _ => {}
        }
    }
    for (t, values) in run.inputs {
        if !plan.inputs.contains(t) {
            return fail(format!("tensor {} is not an input", t.index()));
        }
        let need = plan.seat_elements(*t);
        if values.len() != need {
            return fail(format!("input {} has {} values, needs {need}", plan.tensors.name(*t), values.len()));
        }
    }
    Ok(())
}

/// Outputs that the plan has, each once for each session.
fn outputs(plan: &Plan, run: &Run<'_>, count: usize) -> Result<(), ComputeError> {
    let fail = |what: String| Err(ComputeError::Run { plan: plan.name.clone(), what });
    for (t, output) in run.outputs.iter() {
        if !plan.outputs.contains(t) {
            return fail(format!("tensor {} is not an output", t.index()));
        }
        let need = plan.seat_elements(*t);
        let (len, bytes) = match output {
            Output::F32(v) => (v.len(), false),
            Output::Bytes(v) => (v.len(), true),
            // Where it ends is looked at by whoever has the memory.
            Output::Shared { .. } => (need, true),
        };
        if len != need {
            return fail(format!("output {} has room for {len} values, needs {need}", plan.tensors.name(*t)));
        }
        if bytes != (plan.tensors.dtype(*t) == DType::U8) {
            return fail(format!("output {} is {:?}", plan.tensors.name(*t), plan.tensors.dtype(*t)));
        }
        let n = run.outputs.iter().filter(|(given, _)| given == t).count();
        if n != count {
            return fail(format!("output {} is given {n} times, needs {count}", plan.tensors.name(*t)));
        }
    }
    Ok(())
}

/// The param of an operation and the values it may have.
fn bounds(op: &Op, t: &Tensors) -> Option<(Param, std::ops::RangeInclusive<usize>)> {
    match op {
        Op::Attention(a) => a.key_count.map(|p| (p, 1..=a.lengths().1)),
        Op::RingAttention(a) => Some((a.count, 1..=t.shape(a.k_ring).dims()[0])),
        Op::RingWrite(w) => Some((w.slot, 0..=t.shape(w.ring).dims()[0] - 1)),
        _ => None,
    }
}
