//! Values worked out by hand: the reference has nothing else to be compared with.

use std::f32::consts::SQRT_2;
use std::sync::Arc;

use super::*;
use crate::compute::op::*;
use crate::compute::{Param, PlanBuilder, Storage};

/// Runs one operation: `weights` and `inputs` are dims and values, tensors are passed in that order.
fn one<O: Into<Op>>(
    precision: Precision,
    weights: &[(&[usize], Storage, &[f32])],
    inputs: &[(&[usize], &[f32])],
    out: &[usize],
    make: impl FnOnce(&[Tensor], View) -> O,
) -> Vec<f32> {
    let mut set = WeightSet::default();
    for (i, (dims, storage, data)) in weights.iter().enumerate() {
        set.insert(format!("w{i}"), dims, *storage, data.to_vec());
    }
    let (set, layout) = (Arc::new(set), Arc::new(StateLayout::default()));
    let mut b = PlanBuilder::new("one", precision, Arc::clone(&set), Arc::clone(&layout));
    let mut tensors = Vec::new();
    for i in 0..weights.len() {
        tensors.push(b.weight(&format!("w{i}")).expect("inserted above"));
    }
    for (dims, _) in inputs {
        tensors.push(b.input("x", dims, precision.dtype()));
    }
    let y = b.temp("y", out);
    let view = b.view(y);
    b.push("op", make(&tensors, view)).expect("shapes agree");
    b.output(y);
    let mut executor = ReferenceExecutor::new(precision);
    executor.load_weights(&set).expect("the reference takes any weights");
    let plan = executor.prepare(Arc::new(b.finish().expect("y is written"))).expect("same precision");
    let state = executor.create_state(&layout).expect("states are vectors");
    let given: Vec<(Tensor, &[f32])> =
        tensors[weights.len()..].iter().zip(inputs).map(|(t, (_, data))| (*t, *data)).collect();
    let mut result = vec![0.0; out.iter().product()];
    let outputs = &mut [(y, Output::F32(&mut result))];
    executor
        .run(Run { plan, states: &[state], inputs: &given, params: &[], outputs, profile: None })
        .expect("a valid run");
    result
}

fn whole(tensor: Tensor, rows: usize, cols: usize) -> View {
    View { tensor, offset: 0, rows, cols, stride: cols }
}

#[track_caller]
fn near(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 2e-6), "{got:?}, expected {want:?}");
}

const F32: Precision = Precision::F32;

#[test]
fn linear_multiplies_by_the_transposed_weight_then_gates_then_adds() {
    let weights: &[(&[usize], Storage, &[f32])] =
        &[(&[2, 3], Storage::Matrix, &[1., 2., 3., 4., 5., 6.]), (&[2], Storage::Vector, &[10., 20.])];
    let inputs: &[(&[usize], &[f32])] = &[(&[1, 3], &[1., 0., -1.]), (&[1, 2], &[2., 3.]), (&[1, 2], &[100., 200.])];
    let y = one(F32, weights, inputs, &[1, 2], |t, y| Linear {
        x: whole(t[2], 1, 3),
        w: t[0],
        bias: Some(t[1]),
        act: Act::None,
        gate: Some(whole(t[3], 1, 2)),
        res: Some(whole(t[4], 1, 2)),
        y,
    });
    near(&y, &[100. + 2. * (10. - 2.), 200. + 3. * (20. - 2.)]);
}

#[test]
fn convolution_sees_zeros_outside_and_kernel_rows_first() {
    // A kernel that is 1 at row 0, column 2 takes the pixel above and to the right.
    let mut kernel = [0.0; 9];
    kernel[2] = 1.0;
    let y = one(
        F32,
        &[(&[1, 3, 3, 1], Storage::Matrix, &kernel)],
        &[(&[6, 1], &[1., 2., 3., 4., 5., 6.])],
        &[6, 1],
        |t, y| Conv3x3 { x: whole(t[1], 6, 1), height: 2, width: 3, w: t[0], bias: None, act: Act::None, res: None, y },
    );
    near(&y, &[0., 0., 0., 2., 3., 0.]);
}

#[test]
fn norms_divide_by_the_root_mean_square() {
    let inputs: &[(&[usize], &[f32])] = &[(&[1, 2], &[1., 7.]), (&[1, 6], &[1., 1., 0.5, 0., -1., -1.])];
    let weight = NormKind::Weight { weight: None, act: Act::None };
    let y = one(F32, &[], inputs, &[1, 2], |t, y| Norm { x: whole(t[0], 1, 2), kind: weight, eps: 1e-9, y });
    near(&y, &[0.2, 1.4]);
    let y = one(F32, &[], inputs, &[1, 2], |t, y| {
        let (scale, shift) = (whole(t[1], 1, 6).columns(0, 2), whole(t[1], 1, 6).columns(2, 2));
        Norm { x: whole(t[0], 1, 2), kind: NormKind::Modulate { scale, shift }, eps: 1e-9, y }
    });
    near(&y, &[0.9, 2.8]);
    let y = one(F32, &[], inputs, &[1, 2], |t, y| {
        let v = whole(t[1], 1, 6);
        let kind = NormKind::Film { scale: v.columns(0, 2), shift: v.columns(2, 2), gate: v.columns(4, 2) };
        Norm { x: whole(t[0], 1, 2), kind, eps: 1e-9, y }
    });
    // The gate is sigmoid(-1 + 1) = 1/2; silu(0.9) = 0.639855, silu(2.8) = 2.639495.
    near(&y, &[0.639_855_2 / 2., 2.639_494_6 / 2.]);
}

#[test]
fn head_norm_turns_by_a_quarter() {
    // A quarter turn makes (a, b) to (-b, a).
    let mut values = Values(vec![vec![1., 2.], vec![0., 0.], vec![1., 1.], vec![3., 3., 1., -1.]]);
    let op = HeadNorm {
        x: whole(Tensor(3), 1, 4),
        heads: 2,
        weight: Tensor(0),
        rope: Some(Rope { cos: Tensor(1), sin: Tensor(2), each: 1 }),
        eps: 1e-12,
    };
    norm::head_norm(&op, &mut values);
    near(&values.0[3], &[-2., 1., 2., 1.]);
}

#[test]
fn attention_averages_what_scores_the_same_and_stops_at_the_count() {
    let op = Attention {
        q: whole(Tensor(0), 1, 2),
        k: whole(Tensor(1), 3, 2),
        v: whole(Tensor(2), 3, 2),
        heads: 2,
        scale: 1.0,
        key_count: Some(Param::Slot(0)),
        bias: None,
        groups: Groups::ONE,
        y: whole(Tensor(3), 1, 2),
    };
    let k = vec![1., 0., 1., 2f32.ln(), 9., 9.];
    let mut values = Values(vec![vec![5., 1.], k, vec![2., 3., 4., 6., 100., 100.], vec![0.; 2]]);
    attention::attention(&op, &mut values, &[2]);
    near(&values.0[3], &[3., 5.]);
}

#[test]
fn ring_attention_meets_only_its_own_token() {
    let op = RingAttention {
        q: whole(Tensor(0), 2, 1),
        k_ring: Tensor(1),
        v_ring: Tensor(2),
        heads: 1,
        scale: 1.0,
        count: Param::Const(2),
        y: whole(Tensor(3), 2, 1),
    };
    let k = vec![0., 0., 3f32.ln(), 0., 9., 9.];
    let mut values = Values(vec![vec![1., 1.], k, vec![4., 10., 8., 20., 0., 0.], vec![0.; 2]]);
    attention::ring_attention(&op, &mut values, &[]);
    near(&values.0[3], &[7., 15.]);
    let write =
        RingWrite { x: whole(Tensor(0), 2, 1), ring: Tensor(1), slot: Param::Slot(1), whole: whole(Tensor(1), 6, 1) };
    attention::ring_write(&write, &mut values, &[0, 2]);
    near(&values.0[1], &[0., 0., 3f32.ln(), 0., 1., 1.]);
}

#[test]
fn shuffle_undoes_unshuffle_and_repeats_the_shortcut() {
    let x: Vec<f32> = (0..8).map(|i| i as f32).collect();
    let y = one(F32, &[], &[(&[4, 2], &x)], &[1, 8], |t, y| Unshuffle {
        x: whole(t[0], 4, 2),
        height: 2,
        width: 2,
        r: 2,
        y,
    });
    near(&y, &[0., 2., 4., 6., 1., 3., 5., 7.]);
    let inputs: &[(&[usize], &[f32])] = &[(&[1, 8], &y), (&[1, 4], &[0., 10., 20., 30.])];
    let z = one(F32, &[], inputs, &[4, 2], |t, y| Shuffle {
        x: whole(t[0], 1, 8),
        shortcut: Some(whole(t[1], 1, 4)),
        height: 1,
        width: 1,
        r: 2,
        y,
    });
    near(&z, &[0., 21., 2., 23., 14., 35., 16., 37.]);
    let means = one(F32, &[], &[(&[1, 4], &[1., 3., 5., 9.])], &[1, 2], |t, y| GroupMean { x: whole(t[0], 1, 4), y });
    near(&means, &[2., 7.]);
}

#[test]
fn pictures_have_the_colours_of_the_formula() {
    // One block of pure red, cropped to 2x2 pixels.
    let x: Vec<f32> = (0..48).map(|k| if k < 16 { 1.5 } else { -1.0 }).collect();
    let mut values = Values(vec![x, vec![0.0; 6]]);
    let op = ToI420 {
        x: whole(Tensor(0), 1, 48),
        height: 1,
        width: 1,
        r: 4,
        out_height: 2,
        out_width: 2,
        y: Tensor(1),
        whole: whole(Tensor(1), 1, 6),
    };
    image::to_i420(&op, &mut values);
    // Y = 0.299 * 255 = 76.2, Cb = 128 - 0.564 * 76.2 = 85.0, Cr = 128 + 0.713 * 178.8 = 255.5.
    assert_eq!(values.0[1], [76., 76., 76., 76., 85., 255.]);
}

#[test]
fn element_wise_operations_match_their_formulas() {
    let inputs: &[(&[usize], &[f32])] = &[(&[2, 1], &[1., -2.]), (&[1, 1], &[0.5])];
    let add = one(F32, &[], inputs, &[2, 1], |t, y| Add { a: whole(t[0], 2, 1), b: whole(t[1], 1, 1), y });
    near(&add, &[1.5, -1.5]);
    let inputs: &[(&[usize], &[f32])] = &[(&[2, 1], &[1., -2.]), (&[2, 1], &[3., 4.])];
    let axpy = one(F32, &[], inputs, &[2, 1], |t, y| Axpy {
        x: whole(t[0], 2, 1),
        v: whole(t[1], 2, 1),
        alpha: 2.0,
        beta: -1.0,
        y,
    });
    near(&axpy, &[-1., -8.]);
    let gated = one(F32, &[], inputs, &[2, 1], |t, y| GatedGelu { a: whole(t[0], 2, 1), b: whole(t[1], 2, 1), y });
    // gelu(1) = 0.841192, gelu(-2) = -0.045402.
    near(&gated, &[3. * 0.841_192, 4. * -0.045_402_3]);
    let silu = one(F32, &[], inputs, &[2, 1], |t, y| Map { x: whole(t[0], 2, 1), act: Act::Silu, y });
    near(&silu, &[0.731_058_6, -0.238_405_84]);
    let copy = one(F32, &[], inputs, &[2, 1], |t, y| Copy { x: whole(t[1], 2, 1), y });
    near(&copy, &[3., 4.]);
}

#[test]
fn half_precision_rounds_what_is_stored() {
    let copy = one(Precision::F16, &[], &[(&[1, 2], &[SQRT_2, 1e6])], &[1, 2], |t, y| Copy { x: whole(t[0], 1, 2), y });
    assert_eq!(copy, [1.4140625, f32::INFINITY]);
    let sum = one(Precision::F16, &[], &[(&[1, 1], &[1.0]), (&[1, 1], &[0.0004])], &[1, 1], |t, y| Add {
        a: whole(t[0], 1, 1),
        b: whole(t[1], 1, 1),
        y,
    });
    assert_eq!(sum, [1.0], "1.0004 is not an f16");
}

#[test]
fn a_run_with_the_wrong_input_is_refused() {
    let layout = Arc::new(StateLayout::default());
    let mut b = PlanBuilder::new("one", F32, Arc::new(WeightSet::default()), Arc::clone(&layout));
    let x = b.input("x", &[2, 2], DType::F32);
    let view = b.view(x);
    b.push("map", Map { x: view, act: Act::Silu, y: view }).expect("shapes agree");
    let mut executor = ReferenceExecutor::new(F32);
    let plan = executor.prepare(Arc::new(b.finish().expect("x is an input"))).expect("same precision");
    let state = executor.create_state(&layout).expect("states are vectors");
    for inputs in [&[][..], &[(x, &[1.0f32; 3][..])]] {
        let run = Run { plan, states: &[state], inputs, params: &[], outputs: &mut [], profile: None };
        assert!(matches!(executor.run(run), Err(ComputeError::Run { .. })));
    }
    let inputs = &[(x, &[1.0; 4][..])];
    let run = Run { plan, states: &[state], inputs, params: &[], outputs: &mut [], profile: None };
    executor.run(run).expect("four values for four elements");
}
