//! Attention over a sequence and over a ring of frames.

use super::super::super::op::{Attention, RingAttention, RingWrite};
use super::super::super::tensor::{Param, Tensor, View};
use super::{Dispatch, Fill, Heads, KernelId, Lowering, Matrix, RowCut, RowLayout, Spec, by_fours, flags};

/// Queries of a workgroup of the tiled kernel.
const TILE_QUERIES: usize = 8;

/// Columns of a head that the tiled kernel can hold: four for each invocation of a workgroup.
const TILE_HEAD_MAX: usize = 128;

const HAS_BIAS: usize = 1;

/// The operands of the kernel with one query a workgroup.
struct ByRow<'a> {
    q: &'a View,
    y: &'a View,
    heads: usize,
    keys: Keys,
    values: Keys,
    key_rows: usize,
    bias: Option<Tensor>,
    count: u64,
    scale: f32,
    /// Queries of a seat, and whether keys and values are in the states of the seats.
    seat_rows: usize,
    in_states: bool,
}

/// Where key (or value) `j` of query `i` begins: `address` + `i * row` + `j * key` elements.
struct Keys {
    address: u64,
    row: usize,
    key: usize,
}

pub(super) fn attention(l: &Lowering<'_>, op: &Attention) -> Vec<Dispatch> {
    let views = [op.q, op.k, op.v, op.y];
    if let Some(matrix) = l.matrix(&views.map(Some)).filter(|_| op.bias.is_none())
        && let Some((cut, layout)) = row_cut(l, op, matrix)
    {
        return vec![whole_rows(l, op, matrix, (cut, layout))];
    }
    if let Some(matrix) = l.matrix(&views.map(Some)).filter(|_| op.bias.is_none())
        && let Some(heads) = Heads::choose(matrix, op.lengths().0, op.q.cols / op.heads)
    {
        return vec![sequences(l, op, matrix, heads)];
    }
    let seat = |g| g * l.plan.seats() / op.groups.count;
    (0..op.groups.count).map(|g| sequence(l, &op.sequence(g), seat(g))).collect()
}

/// How the kernel that keeps rows of scores in registers is cut up for an operation, if it is the one to take.
fn row_cut<'a>(l: &Lowering<'a>, op: &Attention, matrix: &Matrix) -> Option<(RowCut, &'a RowLayout)> {
    let layout = l.target.layout.as_ref()?;
    let columns = op.q.cols / op.heads;
    let cut = RowCut::choose(matrix, layout, op.lengths(), columns).filter(|_| op.scale >= 0.0)?;
    Some((cut, layout))
}

/// The attention of all sequences at once, with rows of scores in registers.
fn whole_rows(l: &Lowering<'_>, op: &Attention, matrix: &Matrix, (cut, layout): (RowCut, &RowLayout)) -> Dispatch {
    by_matrices(l, op, KernelId::AttentionRows).variant(cut.variant(matrix, layout, op.q.cols / op.heads)).grid([
        op.lengths().0.div_ceil(cut.queries(matrix)),
        op.heads,
        op.groups.count,
    ])
}

/// The attention of all sequences at once, with scores in shared memory.
fn sequences(l: &Lowering<'_>, op: &Attention, matrix: &Matrix, heads: Heads) -> Dispatch {
    by_matrices(l, op, KernelId::AttentionCm).variant(heads.variant(matrix)).grid([
        op.lengths().0.div_ceil(heads.queries(matrix)),
        op.heads,
        op.groups.count,
    ])
}

/// What both kernels of the matrix tier are told.
fn by_matrices(l: &Lowering<'_>, op: &Attention, kernel: KernelId) -> Fill {
    let ((lq, lk), groups) = (op.lengths(), op.groups.count);
    let all_keys = u32::try_from(lk).expect("tensors of a plan have fewer than 2^32 elements");
    let count_step = match op.key_count {
        Some(Param::Slot(_)) if l.plan.seats() > 1 => l.plan.param_count,
        _ => 0,
    };
    let views = [op.q, op.k, op.v, op.y];
    // From row to row of a sequence, and from one sequence to the next, in groups of eight elements.
    let row = |v: &View| op.groups.view(v, 0).stride / 8;
    let group = |v: &View| if groups == 1 { 0 } else { (op.groups.view(v, 1).offset - v.offset) / 8 };
    let [q_row, k_row, v_row, y_row] = views.each_ref().map(row);
    let [q_group, k_group, v_group, y_group] = views.each_ref().map(group);
    let fill = Fill::new(kernel)
        .address("q", l.view(&op.q))
        .address("k", l.view(&op.k))
        .address("v", l.view(&op.v))
        .address("y", l.view(&op.y))
        .address("count_at", l.ctx.param(op.key_count.unwrap_or(Param::Const(all_keys)), 0))
        .word("count_step", count_step)
        .word("lq", lq)
        .word("lk", lk);
    // The other kernel has the columns of a head as a constant.
    let fill = if kernel == KernelId::AttentionCm { fill.word("hd8", op.q.cols / op.heads / 8) } else { fill };
    fill.word("q_stride8", q_row)
        .word("k_stride8", k_row)
        .word("v_stride8", v_row)
        .word("y_stride8", y_row)
        .word("q_group8", q_group)
        .word("k_group8", k_group)
        .word("v_group8", v_group)
        .word("y_group8", y_group)
        .real("scale", op.scale)
}

/// The attention of one sequence, which belongs to a seat.
fn sequence(l: &Lowering<'_>, op: &Attention, seat: usize) -> Dispatch {
    let hd = op.q.cols / op.heads;
    let key_rows = u32::try_from(op.k.rows).expect("tensors of a plan have fewer than 2^32 elements");
    let count = l.ctx.param(op.key_count.unwrap_or(Param::Const(key_rows)), seat);
    let tiled = hd.is_multiple_of(4) && hd <= TILE_HEAD_MAX && [op.q, op.k, op.v, op.y].iter().all(by_fours);
    if !tiled {
        let shared = |v: &View| Keys { address: l.view(v), row: 0, key: v.stride };
        let (keys, values, key_rows) = (shared(&op.k), shared(&op.v), op.k.rows);
        let (q, y, heads, scale) = (&op.q, &op.y, op.heads, op.scale);
        let (seat_rows, in_states) = (q.rows, false);
        let rows = ByRow { q, y, heads, keys, values, key_rows, bias: op.bias, count, scale, seat_rows, in_states };
        return by_row(l, &rows);
    }
    Fill::new(KernelId::AttentionTile)
        .address("q", l.view(&op.q))
        .address("k", l.view(&op.k))
        .address("v", l.view(&op.v))
        .address("bias", l.optional_tensor(op.bias))
        .address("y", l.view(&op.y))
        .address("count_at", count)
        .word("lq", op.q.rows)
        .word("lk", op.k.rows)
        .word("hd4", hd / 4)
        .word("q_stride4", op.q.stride / 4)
        .word("k_stride4", op.k.stride / 4)
        .word("v_stride4", op.v.stride / 4)
        .word("y_stride4", op.y.stride / 4)
        .real("scale", op.scale)
        .word("flags", flags(&[(op.bias.is_some(), HAS_BIAS)]))
        .over(op.q.rows.div_ceil(TILE_QUERIES), op.heads)
}

pub(super) fn ring_attention(l: &Lowering<'_>, op: &RingAttention) -> Dispatch {
    let (tokens, cols) = (l.seat_rows(op.q.rows), op.q.cols);
    let frames = l.plan.tensors.shape(op.k_ring).dims()[0];
    if let Some(matrix) = l.matrix(&[Some(op.q), Some(op.y)])
        && let Some(parts) = matrix.parts(cols / op.heads)
    {
        return ring_by_eights(l, op, parts);
    }
    let own = |ring| Keys { address: l.ctx.tensor(ring), row: cols, key: tokens * cols };
    let rows = ByRow {
        q: &op.q,
        y: &op.y,
        heads: op.heads,
        keys: own(op.k_ring),
        values: own(op.v_ring),
        key_rows: frames,
        bias: None,
        count: l.ctx.param(op.count, 0),
        scale: op.scale,
        seat_rows: tokens,
        in_states: true,
    };
    by_row(l, &rows)
}

fn ring_by_eights(l: &Lowering<'_>, op: &RingAttention, parts: u32) -> Dispatch {
    const LOCAL: u32 = 128;
    let (tokens, cols) = (l.seat_rows(op.q.rows), op.q.cols);
    let (table, step) = l.seats();
    Fill::new(KernelId::AttentionRing)
        .variant((KernelId::AttentionRing, Spec::new(&[LOCAL, parts])))
        .address("q", l.view(&op.q))
        .address("k", l.ctx.tensor(op.k_ring))
        .address("v", l.ctx.tensor(op.v_ring))
        .address("y", l.view(&op.y))
        .address("count_at", l.ctx.param(op.count, 0))
        .address("table", table)
        .word("rows", op.q.rows)
        .word("window", l.plan.tensors.shape(op.k_ring).dims()[0])
        .word("heads", op.heads)
        .word("q_stride8", op.q.stride / 8)
        .word("k_row8", cols / 8)
        .word("k_key8", tokens * cols / 8)
        .word("v_row8", cols / 8)
        .word("v_key8", tokens * cols / 8)
        .word("y_stride8", op.y.stride / 8)
        .real("scale", op.scale)
        .word("count_step", step)
        .word("seat_rows", tokens)
        .over((op.q.rows * cols / 8).div_ceil(LOCAL as usize), 1)
}

fn by_row(l: &Lowering<'_>, a: &ByRow<'_>) -> Dispatch {
    let (table, step) = if a.in_states { l.seats() } else { (0, 0) };
    Fill::new(KernelId::AttentionRow)
        .address("q", l.view(a.q))
        .address("k", a.keys.address)
        .address("v", a.values.address)
        .address("bias", l.optional_tensor(a.bias))
        .address("y", l.view(a.y))
        .address("count_at", a.count)
        .word("lq", a.q.rows)
        .word("lk", a.key_rows)
        .word("hd", a.q.cols / a.heads)
        .word("q_stride", a.q.stride)
        .word("k_row", a.keys.row)
        .word("k_key", a.keys.key)
        .word("v_row", a.values.row)
        .word("v_key", a.values.key)
        .word("y_stride", a.y.stride)
        .real("scale", a.scale)
        .word("flags", flags(&[(a.bias.is_some(), HAS_BIAS)]))
        .word("count_step", step)
        .address("table", table)
        .word("seat_rows", a.seat_rows)
        .over(a.q.rows, a.heads)
}

pub(super) fn ring_write(l: &Lowering<'_>, op: &RingWrite) -> Dispatch {
    let (table, step) = l.seats();
    Fill::new(KernelId::RingWrite)
        .address("x", l.view(&op.x))
        .address("ring", l.ctx.tensor(op.ring))
        .address("slot_at", l.ctx.param(op.slot, 0))
        .word("rows", op.x.rows)
        .word("cols", op.x.cols)
        .word("x_stride", op.x.stride)
        .word("slot_step", step)
        .address("table", table)
        .word("seat_rows", l.seat_rows(op.x.rows))
        .over_quads(&op.x)
}
