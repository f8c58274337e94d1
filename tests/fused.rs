//! Neighbouring operations that one kernel does give what they give one by one. Needs a Vulkan driver with cooperative
//! matrices; says so where there is none.

use std::sync::Arc;

use gamegend::compute::gpu::{self, GpuExecutor, GpuOptions, Tier, Validation};
use gamegend::compute::op::{Copy, HeadNorm, RingAttention, RingWrite, Rope};
use gamegend::compute::reference::ReferenceExecutor;
use gamegend::compute::{
    ComputeError, DType, Executor, Output, Plan, PlanBuilder, Precision, Profile, Run, StateId, StateLayout, Storage,
    WeightSet,
};

const HEADS: usize = 3;
const HEAD: usize = 64;
const WIDTH: usize = HEADS * HEAD;
const FRAMES: usize = 5;
/// Tokens of a seat: no multiple of anything.
const TOKENS: usize = 23;
const TOLERANCE: f32 = 8e-3;

/// Every device in the matrix tier, or none after saying why.
fn executors() -> Vec<GpuExecutor> {
    let found = gpu::devices();
    let required = std::env::var("GAMEGEND_TEST_REQUIRE").unwrap_or_default();
    assert!(found.is_ok() || !required.split(',').any(|r| r == "gpu"), "a Vulkan driver is required: {found:?}");
    let mut all = Vec::new();
    for entry in found.unwrap_or_default() {
        let (precision, tier) = (Some(Precision::F16), Some(Tier::Matrix));
        let options = GpuOptions { precision, tier, validation: Validation::Core, ..GpuOptions::default() };
        match GpuExecutor::open_with(entry.index, &options) {
            Ok(executor) => all.push(executor),
            Err(ComputeError::NoDevice { what }) => println!("skipped: {what}"),
            Err(other) => panic!("{}: {other}", entry.name),
        }
    }
    if all.is_empty() {
        println!("skipped: no device with cooperative matrices");
    }
    all
}

fn wave(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * step).sin() + 0.3).collect()
}

fn weights() -> Arc<WeightSet> {
    let mut weights = WeightSet::default();
    weights.insert("q", &[HEAD], Storage::Vector, wave(HEAD, 0.7));
    weights.insert("k", &[HEAD], Storage::Vector, wave(HEAD, 0.4));
    Arc::new(weights)
}

/// Keys, values and what comes between: the heads of queries and keys are normalised and turned, keys and values go
/// into the ring, queries attend to it. `again`: the keys are read once more, so that they must have been written.
fn plan(weights: &Arc<WeightSet>, layout: &Arc<StateLayout>, seats: usize, again: bool) -> Plan {
    let rows = seats * TOKENS;
    let mut b = PlanBuilder::new("fused", Precision::F16, Arc::clone(weights), Arc::clone(layout)).for_seats(seats);
    let (slot, count) = (b.param(), b.param());
    let x = b.input("x", &[rows, 3 * WIDTH], DType::F16);
    let [cos, sin] = ["cos", "sin"].map(|n| b.input(n, &[seats, HEAD], DType::F32));
    let (qkv, y) = (b.temp("qkv", &[rows, 3 * WIDTH]), b.temp("y", &[rows, WIDTH]));
    let (x, qkv, y) = (b.view(x), b.view(qkv), b.view(y));
    let [q, k, v] = [0, 1, 2].map(|i| qkv.columns(i * WIDTH, WIDTH));
    let [k_ring, v_ring] = [0, 1].map(|i| b.state(i));
    let (heads, eps, rope) = (HEADS, 1e-6, Some(Rope { cos, sin, each: TOKENS }));
    b.push("fill", Copy { x, y: qkv }).expect("shapes agree");
    for (name, x) in [("q", q), ("k", k)] {
        let weight = b.weight(name).expect("it was inserted");
        b.push(name, HeadNorm { x, heads, weight, rope, eps }).expect("shapes agree");
    }
    for (x, ring) in [(k, k_ring), (v, v_ring)] {
        let whole = b.view(ring);
        b.push("write", RingWrite { x, ring, slot, whole }).expect("shapes agree");
    }
    b.push("attend", RingAttention { q, k_ring, v_ring, heads, scale: 0.125, count, y }).expect("shapes agree");
    b.output(y.tensor);
    if again {
        let kept = b.temp("kept", &[rows, 2 * WIDTH]);
        let kept = b.view(kept);
        b.push("again", Copy { x: qkv.columns(0, 2 * WIDTH), y: kept }).expect("shapes agree");
        b.output(kept.tensor);
    }
    b.finish().expect("every tensor is written before it is read")
}

/// What some ticks give: all outputs of each, then the rings, and the kernels of the last.
fn run(executor: &mut dyn Executor, weights: &Arc<WeightSet>, seats: usize, again: bool) -> (Vec<f32>, String) {
    let mut layout = StateLayout::default();
    for name in ["k", "v"] {
        layout.add(name, &[FRAMES, TOKENS, WIDTH], DType::F16);
    }
    let layout = Arc::new(layout);
    let plan = Arc::new(plan(weights, &layout, seats, again));
    executor.load_weights(weights).expect("weights");
    let id = executor.prepare(Arc::clone(&plan)).expect("a plan");
    let states: Vec<StateId> = (0..seats).map(|_| executor.create_state(&layout).expect("a state")).collect();
    let mut all = Vec::new();
    let mut kernels = String::new();
    for tick in 0..FRAMES as u32 + 2 {
        let x = wave(seats * TOKENS * 3 * WIDTH, 0.37 + tick as f32 * 0.11);
        let angles: Vec<f32> = (0..seats * HEAD).map(|i| (i % HEAD % (HEAD / 2)) as f32 * 0.1 + tick as f32).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let given = [&x, &cos, &sin];
        let mut inputs = Vec::new();
        for (t, values) in plan.inputs.iter().zip(given) {
            let each = values.len() / seats;
            inputs.extend(values.chunks(each).map(|part| (*t, part)));
        }
        let params: Vec<u32> = (0..seats).flat_map(|_| [tick % FRAMES as u32, (tick + 1).min(FRAMES as u32)]).collect();
        let mut results: Vec<(gamegend::compute::Tensor, Vec<f32>)> = Vec::new();
        for &t in &plan.outputs {
            let each = plan.seat_elements(t);
            results.extend((0..seats).map(|_| (t, vec![0.0; each])));
        }
        let mut outputs: Vec<_> = results.iter_mut().map(|(t, values)| (*t, Output::F32(values))).collect();
        let mut profile = Profile::default();
        let (inputs, outputs) = (&inputs[..], &mut outputs[..]);
        let profiled = Some(&mut profile);
        let run = Run { plan: id, states: &states, inputs, params: &params, outputs, profile: profiled };
        executor.run(run).expect("the run fits its plan");
        all.extend(results.into_iter().flat_map(|(_, values)| values));
        kernels = profile.entries.iter().map(|e| e.kernel.clone()).collect::<Vec<_>>().join(", ");
    }
    for &state in &states {
        for index in 0..2 {
            let mut ring = vec![0.0; FRAMES * TOKENS * WIDTH];
            executor.read_state(state, index, &mut ring).expect("an entry of the state");
            all.extend(ring);
        }
    }
    (all, kernels)
}

fn agree(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let deviation = (got - want).abs() / (1.0 + want.abs());
        assert!(deviation <= TOLERANCE, "{what}: value {i} is {got}, expected {want}");
    }
}

#[test]
fn a_step_of_the_ring_is_one_launch() {
    let weights = weights();
    for mut executor in executors() {
        let canary = executor.canary();
        for seats in [1, 3] {
            let (want, _) = run(&mut ReferenceExecutor::new(Precision::F16), &weights, seats, false);
            let (got, kernels) = run(&mut executor, &weights, seats, false);
            assert_eq!(kernels.matches("ring_step").count(), 1, "{kernels}");
            assert!(!kernels.contains("head_norm_parts") && !kernels.contains("attention_ring"), "{kernels}");
            agree(&got, &want, &format!("{seats} seats"));
        }
        drop(executor);
        let messages = canary.drain();
        assert!(messages.is_empty(), "validation: {}", messages.join("\n"));
    }
}

#[test]
fn what_is_read_later_is_written() {
    let weights = weights();
    for mut executor in executors() {
        let (want, _) = run(&mut ReferenceExecutor::new(Precision::F16), &weights, 1, true);
        let (got, kernels) = run(&mut executor, &weights, 1, true);
        assert!(!kernels.contains("ring_step"), "{kernels}");
        assert_eq!(kernels.matches("head_norm_parts").count(), 1, "queries and keys share a launch: {kernels}");
        agree(&got, &want, "keys read again");
    }
}
