//! What a run costs in launches and barriers, told from its plan alone.

use std::collections::BTreeMap;

use super::super::{Param, Plan, Precision, Tensor};
use super::hazard;
use super::kernels::{self, Addresses, Lowered, Matrix, RowLayout, Target};
use crate::vk::MatrixShape;

/// Launches of kernels, and barriers between them at which the device drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launches {
    pub dispatches: usize,
    pub barriers: usize,
}

/// The steps between barriers, those that a step before has done left out.
pub(super) fn intervals(plan: &Plan, steps: &[Lowered]) -> Vec<Vec<usize>> {
    let firsts: Vec<usize> = (0..steps.len()).filter(|&at| !steps[at].follows).collect();
    let ends = firsts.iter().skip(1).copied().chain([steps.len()]);
    let ops = |(&at, end): (&usize, usize)| plan.steps[at..end].iter().map(|s| &s.op).collect();
    let groups: Vec<_> = firsts.iter().zip(ends).map(ops).collect();
    let all = hazard::intervals(&groups, &plan.tensors);
    all.into_iter().map(|interval| interval.into_iter().map(|group| firsts[group]).collect()).collect()
}

/// What a run of an f16 plan takes on a device with 16x16x16 matrices, such as a Hopper.
///
/// # Panics
/// If the plan is of another precision: such a device runs f16.
pub fn launches(plan: &Plan) -> Launches {
    assert_eq!(plan.tensors.precision(), Precision::F16, "{}", plan.name);
    let shape = MatrixShape { m: 16, n: 16, k: 16 };
    let matrix = Matrix { shape, lanes: 32, shared_bytes: 48 << 10, local_max: 1024 };
    let layout = Some(RowLayout { span: 4, lines: 2, cluster: 4, tail: None });
    let (matrix, tuned) = (Some(matrix), BTreeMap::new());
    let target = Target { precision: Precision::F16, matrix, tuned, layout, forced: None };
    let steps = kernels::lower_plan(plan, &Nowhere, &target);
    let waits = steps.iter().flat_map(|s| s.dispatches.iter().skip(1)).filter(|d| d.waits).count();
    Launches {
        dispatches: steps.iter().map(|s| s.dispatches.len()).sum(),
        barriers: waits + intervals(plan, &steps).len().saturating_sub(1),
    }
}

/// No memory behind it: choices depend on no address.
struct Nowhere;

impl Addresses for Nowhere {
    fn tensor(&self, _: Tensor) -> u64 {
        0
    }
    fn param(&self, _: Param, _: usize) -> u64 {
        0
    }
    fn seat_table(&self) -> u64 {
        0
    }
}
