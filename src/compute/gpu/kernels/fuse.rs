//! Neighbouring operations that one kernel does: a launch instead of several, and no barriers between them.
//!
//! Operations stay what plans are made of: executors without such kernels, and the reference, know nothing of this.

use super::super::super::op::{HeadNorm, Op, RingAttention, RingWrite};
use super::super::super::plan::{Home, Plan, Step};
use super::super::super::tensor::{Param, Tensor, View};
use super::{Addresses, Dispatch, Fill, KernelId, Lowering, Spec, Target, lower, norm};

/// What becomes of a step.
#[derive(Debug)]
pub struct Lowered {
    /// In order; none if a step before has done it.
    pub dispatches: Vec<Dispatch>,
    /// Belongs to the dispatches of the step before: nothing comes between them.
    pub follows: bool,
}

/// The dispatches of every step of a plan.
pub fn lower_plan(plan: &Plan, ctx: &dyn Addresses, target: &Target) -> Vec<Lowered> {
    let lowering = Lowering { plan, ctx, target, elem_bytes: target.precision.dtype().bytes() as u64 };
    let mut all: Vec<Lowered> = Vec::with_capacity(plan.steps.len());
    while let Some(step) = plan.steps.get(all.len()) {
        let fused = ring_step(&lowering, all.len()).map(|one| (one, RING_STEP));
        let fused = fused.or_else(|| two_norms(&lowering, all.len()).map(|one| (one, 2)));
        let (dispatches, count) =
            fused.map_or_else(|| (lower(&step.op, plan, ctx, target), 1), |(one, count)| (vec![one], count));
        all.push(Lowered { dispatches, follows: false });
        all.extend((1..count).map(|_| Lowered { dispatches: Vec::new(), follows: true }));
    }
    all
}

/// Steps that [`ring_step`] takes the place of.
const RING_STEP: usize = 5;

/// Norms of queries and keys, both writes into the rings and the attention to them, from step `first` on, if nobody
/// reads queries, keys and values afterwards.
fn ring_step(l: &Lowering<'_>, first: usize) -> Option<Dispatch> {
    let steps = l.plan.steps.get(first..first + RING_STEP)?;
    let [Op::HeadNorm(q), Op::HeadNorm(k), Op::RingWrite(keys), Op::RingWrite(values), Op::RingAttention(attention)] =
        [&steps[0].op, &steps[1].op, &steps[2].op, &steps[3].op, &steps[4].op]
    else {
        return None;
    };
    let parts = l.matrix(&[Some(q.x), Some(k.x), Some(values.x), Some(attention.y)])?.parts(q.x.cols / q.heads)?;
    let alike = q.rope.is_some() && norms_agree(q, k) && rings_agree(l, (q, k), (keys, values), attention);
    let rest = &l.plan.steps[first + RING_STEP..];
    let fits = parts >= 2 && alike && beside(&q.x, &k.x) && beside(&q.x, &values.x) && unread(l.plan, rest, q.x.tensor);
    fits.then(|| dispatch(l, (q, k), (keys, values), attention, parts))
}

/// Norms of queries and of keys that lie side by side, from step `first` on.
fn two_norms(l: &Lowering<'_>, first: usize) -> Option<Dispatch> {
    let [Op::HeadNorm(q), Op::HeadNorm(k)] = [&l.plan.steps.get(first)?.op, &l.plan.steps.get(first + 1)?.op] else {
        return None;
    };
    let adjoin = beside(&q.x, &k.x) && k.x.offset == q.x.offset + q.x.cols;
    (norms_agree(q, k) && adjoin).then(|| norm::two_head_norms(l, q, k)).flatten()
}

/// Both are of one shape and turn by one table.
fn norms_agree(q: &HeadNorm, k: &HeadNorm) -> bool {
    let table = |n: &HeadNorm| n.rope.map(|r| (r.cos, r.sin, r.each));
    (q.heads, q.x.cols, q.x.rows) == (k.heads, k.x.cols, k.x.rows) && q.eps == k.eps && table(q) == table(k)
}

/// The rings get these keys and values, and are what these queries attend to.
fn rings_agree(
    l: &Lowering<'_>,
    (q, k): (&HeadNorm, &HeadNorm),
    (keys, values): (&RingWrite, &RingWrite),
    a: &RingAttention,
) -> bool {
    let place = |t: Tensor| match l.plan.tensors.home(t) {
        Home::State(i) => Some(i),
        _ => None,
    };
    let places = (place(a.k_ring), place(a.v_ring));
    // One word after the other, in the params of the same seat.
    let params = match (keys.slot, a.count) {
        (Param::Slot(slot), Param::Slot(count)) => slot < count,
        _ => false,
    };
    (keys.x, keys.ring, keys.slot) == (k.x, a.k_ring, values.slot)
        && (values.ring, a.q, a.heads) == (a.v_ring, q.x, q.heads)
        && matches!(places, (Some(k), Some(v)) if k < v)
        && params
}

/// `other` has other columns of the same rows, behind those of `one`.
fn beside(one: &View, other: &View) -> bool {
    let same = (one.tensor, one.rows, one.cols, one.stride) == (other.tensor, other.rows, other.cols, other.stride);
    same && other.offset >= one.offset + one.cols && other.offset - one.offset < one.stride
}

/// No later step touches the temporary, and no output is it.
fn unread(plan: &Plan, rest: &[Step], t: Tensor) -> bool {
    let touches =
        |s: &Step| s.op.reads().iter().chain(&s.op.writes()).any(|v| v.tensor == t) || s.op.constants().contains(&t);
    matches!(plan.tensors.home(t), Home::Arena(_)) && !plan.outputs.contains(&t) && !rest.iter().any(touches)
}

fn dispatch(
    l: &Lowering<'_>,
    (q, k): (&HeadNorm, &HeadNorm),
    (keys, values): (&RingWrite, &RingWrite),
    a: &RingAttention,
    parts: u32,
) -> Dispatch {
    const LOCAL: u32 = 128;
    let rope = q.rope.expect("norms agree on a table");
    let (tokens, cols) = (l.seat_rows(q.x.rows), q.x.cols);
    let heads = u32::try_from(q.heads).expect("a head has columns");
    let (table, step) = l.seats();
    let (slot_at, count_at) = (l.ctx.param(keys.slot, 0), l.ctx.param(a.count, 0));
    let (k_ring, v_ring) = (l.ctx.tensor(a.k_ring), l.ctx.tensor(a.v_ring));
    let pieces = |from: u64, to: u64, bytes: u64| usize::try_from((to - from) / bytes).expect("a buffer fits memory");
    Fill::new(KernelId::RingStep)
        .variant((KernelId::RingStep, Spec::new(&[LOCAL, parts, heads])))
        .address("q", l.view(&q.x))
        .address("q_weight", l.ctx.tensor(q.weight))
        .address("k_weight", l.ctx.tensor(k.weight))
        .address("cos", l.ctx.tensor(rope.cos))
        .address("sin", l.ctx.tensor(rope.sin))
        .address("k_ring", k_ring)
        .address("slot_at", slot_at)
        .address("table", table)
        .address("y", l.view(&a.y))
        .word("count_word", pieces(slot_at, count_at, 4))
        .word("v_ring8", pieces(k_ring, v_ring, 16))
        .word("k_at8", (k.x.offset - q.x.offset) / 8)
        .word("v_at8", (values.x.offset - q.x.offset) / 8)
        .word("rows", q.x.rows)
        .word("x_stride8", q.x.stride / 8)
        .word("y_stride8", a.y.stride / 8)
        .word("rope_rows", l.plan.tensors.shape(rope.cos).rows())
        .word("rope_each", rope.each)
        .word("window", l.plan.tensors.shape(a.k_ring).dims()[0])
        .word("seat_rows", tokens)
        .word("step", step)
        .real("eps", q.eps)
        .real("scale", a.scale)
        .over((q.x.rows * cols / 8).div_ceil(LOCAL as usize), 1)
}
