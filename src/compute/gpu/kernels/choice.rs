//! Which kernel an operation gets: in the matrix tier its columns and strides decide, never its rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::super::op::{Act, Attention, Conv3x3, Groups, Linear, Op, RingAttention};
use super::super::super::{DType, Plan, PlanBuilder, StateLayout, Storage, WeightSet};
use super::*;
use crate::vk::MatrixShape;

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

fn target(matrix: bool) -> Target {
    let shape = MatrixShape { m: 16, n: 16, k: 16 };
    let hopper = Matrix { shape, lanes: 32, shared_bytes: 48 << 10, local_max: 1024 };
    let matrix = matrix.then_some(hopper);
    Target { precision: Precision::F16, matrix, tuned: BTreeMap::new(), layout: None, forced: None }
}

/// A plan with a product, a convolution, an attention and one over a ring of `rows` rows, `width` columns.
fn plan(rows: usize, width: usize) -> Plan {
    let mut weights = WeightSet::default();
    weights.insert("w", &[width, width], Storage::Matrix, vec![0.0; width * width]);
    weights.insert("conv", &[width, 3, 3, width], Storage::Matrix, vec![0.0; 9 * width * width]);
    let mut layout = StateLayout::default();
    let ring = layout.add("ring", &[4, rows, width], DType::F16);
    let mut b = PlanBuilder::new("choice", Precision::F16, Arc::new(weights), Arc::new(layout));
    let x = b.input("x", &[rows, width], DType::F16);
    let (y, w, conv, ring) = (b.temp("y", &[rows, width]), b.weight("w"), b.weight("conv"), b.state(ring));
    let (x, y, w, conv) = (b.view(x), b.view(y), w.expect("inserted"), conv.expect("inserted"));
    let (heads, scale, bias, act) = (2, 1.0, None, Act::None);
    let ops: [Op; 4] = [
        Linear { x, w, bias, act, gate: None, res: None, y }.into(),
        Conv3x3 { x, height: rows, width: 1, w: conv, bias, act, res: None, y }.into(),
        Attention { q: x, k: x, v: x, heads, scale, key_count: None, bias, groups: Groups::ONE, y }.into(),
        RingAttention { q: x, k_ring: ring, v_ring: ring, heads, scale, count: Param::Const(4), y }.into(),
    ];
    for op in ops {
        b.push("op", op).expect("shapes agree");
    }
    b.finish().expect("every tensor is written before it is read")
}

fn chosen(rows: usize, width: usize, target: &Target) -> Vec<KernelId> {
    let plan = plan(rows, width);
    plan.steps.iter().flat_map(|s| lower(&s.op, &plan, &Nowhere, target)).map(|d| d.kernel).collect()
}

#[test]
fn rows_decide_nothing_in_the_matrix_tier() {
    use KernelId::{AttentionCm, AttentionRing, Conv3x3Cm, LinearCm};
    for rows in [1, 2, 3, 15, 16, 17, 240, 3840] {
        assert_eq!(chosen(rows, 64, &target(true)), [LinearCm, Conv3x3Cm, AttentionCm, AttentionRing], "{rows} rows");
    }
}

#[test]
fn odd_columns_and_the_other_tier_get_the_kernels_of_subgroups() {
    use KernelId::{AttentionRow, AttentionTile, Conv3x3Any, Conv3x3Tile, LinearAny, LinearGemv, LinearTile};
    assert_eq!(chosen(240, 36, &target(true)), [LinearTile, Conv3x3Tile, AttentionRow, AttentionRow]);
    assert_eq!(chosen(240, 34, &target(true)), [LinearAny, Conv3x3Any, AttentionRow, AttentionRow]);
    assert_eq!(chosen(240, 64, &target(false)), [LinearTile, Conv3x3Tile, AttentionTile, AttentionRow]);
    assert_eq!(chosen(1, 64, &target(false))[0], LinearGemv);
}

#[test]
fn profiles_name_the_tile() {
    let plan = plan(240, 64);
    let label = lower(&plan.steps[0].op, &plan, &Nowhere, &target(true))[0].label();
    assert!(label.starts_with("linear_cm ") && label.matches('x').count() == 2, "{label}");
}
