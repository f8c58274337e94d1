//! What every executor checks about a run before it touches anything.

use super::op::Op;
use super::plan::{Plan, StateLayout, Tensors};
use super::tensor::{DType, Param};
use super::{ComputeError, Output, Run};

/// Fails unless the run fits its plan: all inputs with their lengths, outputs that the plan has, a state of the plan's
/// layout, and params inside the bounds of the operations that use them.
pub(crate) fn check(plan: &Plan, run: &Run<'_>, state: &StateLayout) -> Result<(), ComputeError> {
    let fail = |what: String| Err(ComputeError::Run { plan: plan.name.clone(), what });
    if *state != *plan.state {
        return fail("the state has another layout than the plan".to_string());
    }
    for &t in &plan.inputs {
        if !run.inputs.iter().any(|(given, _)| *given == t) {
            return fail(format!("input {} is missing", plan.tensors.name(t)));
        }
    }
    for (t, values) in run.inputs {
        if !plan.inputs.contains(t) {
            return fail(format!("tensor {} is not an input", t.index()));
        }
        let need = plan.tensors.shape(*t).elements();
        if values.len() != need {
            return fail(format!("input {} has {} values, needs {need}", plan.tensors.name(*t), values.len()));
        }
    }
    for (t, output) in run.outputs.iter() {
        if !plan.outputs.contains(t) {
            return fail(format!("tensor {} is not an output", t.index()));
        }
        let (len, bytes) = match output {
            Output::F32(v) => (v.len(), false),
            Output::Bytes(v) => (v.len(), true),
        };
        let need = plan.tensors.shape(*t).elements();
        if len != need {
            return fail(format!("output {} has room for {len} values, needs {need}", plan.tensors.name(*t)));
        }
        if bytes != (plan.tensors.dtype(*t) == DType::U8) {
            return fail(format!("output {} is {:?}", plan.tensors.name(*t), plan.tensors.dtype(*t)));
        }
    }
    if run.params.len() < plan.param_count {
        return fail(format!("{} params, needs {}", run.params.len(), plan.param_count));
    }
    for step in &plan.steps {
        if let Some((param, allowed)) = bounds(&step.op, &plan.tensors) {
            match param.value(run.params) {
                Some(v) if allowed.contains(&(v as usize)) => {}
                v => return fail(format!("{}: param is {v:?}, needs {allowed:?}", step.name)),
            }
        }
    }
    Ok(())
}

/// The param of an operation and the values it may have.
fn bounds(op: &Op, t: &Tensors) -> Option<(Param, std::ops::RangeInclusive<usize>)> {
    match op {
        Op::Attention(a) => a.key_count.map(|p| (p, 1..=a.k.rows)),
        Op::RingAttention(a) => Some((a.count, 1..=t.shape(a.k_ring).dims()[0])),
        Op::RingWrite(w) => Some((w.slot, 0..=t.shape(w.ring).dims()[0] - 1)),
        _ => None,
    }
}
