//! Which steps must wait for which: found from what they read and write, so that independent ones overlap.

use super::super::op::{Op, overlap};
use super::super::plan::{Home, Tensors};
use super::super::tensor::{Tensor, View};

/// Memory that a step touches. Tensors in different places never share memory; weights are never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    State(usize),
    Slot(usize),
}

#[derive(Clone, Copy, Debug)]
struct Access {
    place: Place,
    /// `None`: the whole tensor.
    view: Option<View>,
    tensor: Tensor,
    write: bool,
}

impl Access {
    /// True if the two may not run at once: they share memory, and one of them writes. Tensors that share an arena slot
    /// share its memory in ways that views cannot tell.
    fn conflicts(&self, other: &Access) -> bool {
        let apart = match (&self.view, &other.view) {
            (Some(a), Some(b)) if self.tensor == other.tensor => !overlap(a, b),
            _ => false,
        };
        (self.write || other.write) && self.place == other.place && !apart
    }
}

/// The intervals of a run, by the numbers of the groups of operations in each: those in one do not wait for each other,
/// between two of them is a barrier. Every group comes as early as what it needs allows, so that small launches beside
/// a long chain of others cost it nothing.
pub(super) fn intervals(groups: &[Vec<&Op>], tensors: &Tensors) -> Vec<Vec<usize>> {
    let all: Vec<Vec<Access>> =
        groups.iter().map(|ops| ops.iter().flat_map(|op| accesses(op, tensors)).collect()).collect();
    let conflict = |a: &[Access], b: &[Access]| a.iter().any(|a| b.iter().any(|b| a.conflicts(b)));
    let mut intervals: Vec<Vec<usize>> = Vec::new();
    for (i, own) in all.iter().enumerate() {
        let last = intervals.iter().rposition(|others| others.iter().any(|&j| conflict(own, &all[j])));
        let at = last.map_or(0, |last| last + 1);
        if at == intervals.len() {
            intervals.push(Vec::new());
        }
        intervals[at].push(i);
    }
    intervals
}

fn accesses(op: &Op, tensors: &Tensors) -> Vec<Access> {
    let access = |tensor: Tensor, view: Option<View>, write: bool| {
        let place = match tensors.home(tensor) {
            Home::Weight(_) | Home::Table(_) => return None,
            Home::State(i) => Place::State(i),
            Home::Arena(slot) => Place::Slot(slot),
        };
        Some(Access { place, view, tensor, write })
    };
    let reads = op.reads().into_iter().map(|v| access(v.tensor, Some(v), false));
    let constants = op.constants().into_iter().map(|t| access(t, None, false));
    let writes = op.writes().into_iter().map(|v| access(v.tensor, Some(v), true));
    reads.chain(constants).chain(writes).flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::op::{Act, Copy, Map, RingAttention, RingWrite};
    use super::super::super::{DType, Param, Plan, PlanBuilder, Precision, StateLayout, WeightSet};
    use super::*;

    /// The steps of the plan between barriers.
    fn between_barriers(plan: &Plan) -> Vec<Vec<usize>> {
        intervals(&plan.steps.iter().map(|s| vec![&s.op]).collect::<Vec<_>>(), &plan.tensors)
    }

    fn builder(layout: StateLayout) -> PlanBuilder {
        PlanBuilder::new("test", Precision::F32, Arc::new(WeightSet::default()), Arc::new(layout))
    }

    fn map(b: &mut PlanBuilder, x: View, y: View) {
        b.push("map", Map { x, act: Act::Silu, y }).expect("shapes agree");
    }

    #[test]
    fn independent_steps_need_no_barrier() {
        let mut b = builder(StateLayout::default());
        let x = b.input("x", &[4, 8], DType::F32);
        let (p, q, both) = (b.temp("p", &[4, 8]), b.temp("q", &[4, 8]), b.temp("both", &[4, 16]));
        let (x, p, q, both) = (b.view(x), b.view(p), b.view(q), b.view(both));
        map(&mut b, x, p);
        map(&mut b, x, q);
        // Two columns of one tensor, each from another source: one barrier before both.
        b.push("left", Copy { x: p, y: both.columns(0, 8) }).expect("shapes agree");
        b.push("right", Copy { x: q, y: both.columns(8, 8) }).expect("shapes agree");
        map(&mut b, both, both);
        b.output(both.tensor);
        let plan = b.finish().expect("every tensor is written before it is read");
        assert_eq!(between_barriers(&plan), [vec![0, 1], vec![2, 3], vec![4]]);
    }

    #[test]
    fn what_needs_nothing_comes_first() {
        let mut b = builder(StateLayout::default());
        let x = b.input("x", &[4, 8], DType::F32);
        let (p, q, r) = (b.temp("p", &[4, 8]), b.temp("q", &[4, 8]), b.temp("r", &[4, 8]));
        let (x, p, q, r) = (b.view(x), b.view(p), b.view(q), b.view(r));
        map(&mut b, x, p);
        map(&mut b, p, q);
        map(&mut b, x, r);
        [p, q, r].iter().for_each(|v| b.output(v.tensor));
        let plan = b.finish().expect("every tensor is written before it is read");
        assert_eq!(between_barriers(&plan), [vec![0, 2], vec![1]]);
    }

    #[test]
    fn reuse_of_a_slot_is_a_hazard() {
        let mut b = builder(StateLayout::default());
        let x = b.input("x", &[4, 8], DType::F32);
        let x = b.view(x);
        // `a` dies at the second step, so that the third may write over it: write after read.
        let views: Vec<View> = ["a", "b", "c"]
            .iter()
            .map(|name| {
                let t = b.temp(name, &[4, 8]);
                b.view(t)
            })
            .collect();
        map(&mut b, x, views[0]);
        map(&mut b, views[0], views[1]);
        map(&mut b, x, views[2]);
        b.output(views[1].tensor);
        b.output(views[2].tensor);
        let plan = b.finish().expect("every tensor is written before it is read");
        assert_eq!(plan.tensors.home(views[0].tensor), plan.tensors.home(views[2].tensor), "the slot is shared");
        assert_eq!(between_barriers(&plan), [vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn a_ring_is_written_before_it_is_read() {
        let mut layout = StateLayout::default();
        let (k, v) = (layout.add("k", &[3, 2, 4], DType::F32), layout.add("v", &[3, 2, 4], DType::F32));
        let mut b = builder(layout);
        let x = b.input("x", &[2, 4], DType::F32);
        let y = b.temp("y", &[2, 4]);
        let (k_ring, v_ring) = (b.state(k), b.state(v));
        let (x, y) = (b.view(x), b.view(y));
        for ring in [k_ring, v_ring] {
            let whole = b.view(ring);
            b.push("write", RingWrite { x, ring, slot: Param::Const(0), whole }).expect("shapes agree");
        }
        let attention = RingAttention { q: x, k_ring, v_ring, heads: 1, scale: 1.0, count: Param::Const(1), y };
        b.push("attention", attention).expect("shapes agree");
        b.output(y.tensor);
        let plan = b.finish().expect("every tensor is written before it is read");
        assert_eq!(between_barriers(&plan), [vec![0, 1], vec![2]]);
    }
}
