use super::*;
use crate::compute::op::*;
use crate::compute::reference::ReferenceExecutor;
use crate::compute::{PlanBuilder, Profile, Storage, View, testing};

const TOLERANCE: f32 = 1e-4;
const F32: Precision = Precision::F32;

/// Tokens, width, heads and slots of the chain of operations below. 60 tokens of this width are split over threads.
const TOKENS: usize = 60;
const WIDTH: usize = 96;
const HEADS: usize = 3;
const SLOTS: usize = 4;

fn executor(threads: usize) -> CpuExecutor {
    CpuExecutor::new(threads).expect("threads can be started")
}

#[test]
fn every_case_matches_the_reference() {
    let cases = testing::cases();
    for threads in [1, 2, 3] {
        let (mut reference, mut cpu) = (ReferenceExecutor::new(F32), executor(threads));
        let (count, worst) = testing::check(&cases, &mut reference, &mut cpu, F32, TOLERANCE)
            .unwrap_or_else(|failures| panic!("{threads} threads:\n{failures}"));
        println!("{count} cases on {threads} threads, worst deviation {worst:e}");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let cases = testing::cases();
    for threads in [2, 5] {
        let (mut one, mut many) = (executor(1), executor(threads));
        testing::check(&cases, &mut one, &mut many, F32, 0.0)
            .unwrap_or_else(|failures| panic!("{threads} threads:\n{failures}"));
    }
}

/// Weights, layout and plan of a block with attention over space and time, all in one arena.
fn block(precision: Precision) -> (Arc<WeightSet>, Arc<StateLayout>, Plan) {
    let mut set = WeightSet::default();
    let mut value = 0u32;
    let mut random = |n: usize| -> Vec<f32> {
        (0..n)
            .map(|_| {
                value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (value >> 8) as f32 / (1 << 23) as f32 * 0.2 - 0.2
            })
            .collect()
    };
    for (name, dims) in [("qkv", [3 * WIDTH, WIDTH]), ("proj", [WIDTH, WIDTH]), ("up", [4 * WIDTH, WIDTH])] {
        set.insert(name, &dims, Storage::Matrix, random(dims[0] * dims[1]));
    }
    set.insert("down", &[WIDTH, 2 * WIDTH], Storage::Matrix, random(2 * WIDTH * WIDTH));
    set.insert("head", &[WIDTH / HEADS], Storage::Vector, random(WIDTH / HEADS));
    let mut layout = StateLayout::default();
    let rings = ["k", "v"].map(|name| layout.add(name, &[SLOTS, TOKENS, WIDTH], precision.dtype()));
    let (set, layout) = (Arc::new(set), Arc::new(layout));
    let mut b = PlanBuilder::new("block", precision, Arc::clone(&set), Arc::clone(&layout));
    let x = b.input("x", &[TOKENS, WIDTH], precision.dtype());
    let h = b.temp("h", &[TOKENS, WIDTH]);
    let [x, hv] = [x, h].map(|t| b.view(t));
    build(&mut b, x, hv, rings).expect("shapes agree");
    b.output(h);
    let plan = b.finish().expect("everything is written before it is read");
    (set, layout, plan)
}

fn build(b: &mut PlanBuilder, x: View, h: View, rings: [usize; 2]) -> Result<(), ComputeError> {
    let temp = |b: &mut PlanBuilder, cols: usize| {
        let t = b.temp("temporary", &[TOKENS, cols]);
        b.view(t)
    };
    let [n, qkv, o, up] = [WIDTH, 3 * WIDTH, WIDTH, 4 * WIDTH].map(|cols| temp(b, cols));
    let [w_qkv, w_proj, w_up, w_down, head] = ["qkv", "proj", "up", "down", "head"].map(|name| b.weight(name));
    let [k_ring, v_ring] = rings.map(|i| b.state(i));
    let [k_whole, v_whole] = [k_ring, v_ring].map(|t| b.view(t));
    let (slot, count) = (b.param(), b.param());
    let plain = |x, w, y| Linear { x, w, bias: None, act: Act::None, gate: None, res: None, y };
    let scale = 1.0 / ((WIDTH / HEADS) as f32).sqrt();
    let [q, k, v] = [0, 1, 2].map(|i| qkv.columns(i * WIDTH, WIDTH));
    let norm = NormKind::Weight { weight: None, act: Act::None };

    b.push("copy", Copy { x, y: h })?;
    b.push("norm", Norm { x: h, kind: norm, eps: 1e-6, y: n })?;
    b.push("qkv", plain(n, w_qkv?, qkv))?;
    b.push("head", HeadNorm { x: q, heads: HEADS, weight: head?, rope: None, eps: 1e-6 })?;
    b.push(
        "space",
        Attention { q, k, v, heads: HEADS, scale, key_count: None, bias: None, groups: Groups::ONE, y: o },
    )?;
    let w_proj = w_proj?;
    b.push("proj", Linear { res: Some(h), ..plain(o, w_proj, h) })?;
    b.push("k", RingWrite { x: k, ring: k_ring, slot, whole: k_whole })?;
    b.push("v", RingWrite { x: v, ring: v_ring, slot, whole: v_whole })?;
    b.push("time", RingAttention { q, k_ring, v_ring, heads: HEADS, scale, count, y: o })?;
    b.push("proj", Linear { res: Some(h), ..plain(o, w_proj, h) })?;
    b.push("up", plain(h, w_up?, up))?;
    let (a, gate) = (up.columns(0, 2 * WIDTH), up.columns(2 * WIDTH, 2 * WIDTH));
    b.push("gelu", GatedGelu { a, b: gate, y: a })?;
    b.push("down", Linear { res: Some(h), ..plain(a, w_down?, h) })
}

/// The chain on an executor.
struct Session<'a> {
    executor: &'a mut dyn Executor,
    plan: PlanId,
    x: Tensor,
    y: Tensor,
}

impl Session<'_> {
    fn step(&mut self, state: StateId, seed: usize, frame: usize) -> Vec<f32> {
        let x: Vec<f32> =
            (0..TOKENS * WIDTH).map(|i| ((i * (seed + 3 * frame + 7)) % 101) as f32 / 50.0 - 1.0).collect();
        let mut out = vec![0.0; TOKENS * WIDTH];
        let params = [(frame % SLOTS) as u32, (frame + 1).min(SLOTS) as u32];
        let outputs = &mut [(self.y, Output::F32(&mut out))];
        let inputs = &[(self.x, &x[..])];
        let run = Run { plan: self.plan, states: &[state], inputs, params: &params, outputs, profile: None };
        self.executor.run(run).expect("a valid run");
        out
    }
}

fn session<'a>(executor: &'a mut dyn Executor) -> (Session<'a>, Arc<StateLayout>) {
    let (weights, layout, plan) = block(F32);
    let (x, y) = (plan.inputs[0], plan.outputs[0]);
    executor.load_weights(&weights).expect("weights fit");
    let plan = executor.prepare(Arc::new(plan)).expect("a plan of f32");
    (Session { executor, plan, x, y }, layout)
}

#[test]
fn a_chain_of_operations_matches_the_reference_over_frames() {
    let (mut reference, mut cpu) = (ReferenceExecutor::new(F32), executor(2));
    let ((mut a, layout), (mut b, _)) = (session(&mut reference), session(&mut cpu));
    let states = [&mut a, &mut b].map(|s| s.executor.create_state(&layout).expect("states are vectors"));
    for frame in 0..6 {
        let (want, got) = (a.step(states[0], 1, frame), b.step(states[1], 1, frame));
        let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0, f32::max);
        assert!(worst <= TOLERANCE && got.iter().all(|v| v.is_finite()), "frame {frame}: {worst:e}");
    }
    let read = |s: &mut Session<'_>, state, out: &mut [f32]| s.executor.read_state(state, 0, out).is_ok();
    let (mut want, mut got) = (vec![0.0; SLOTS * TOKENS * WIDTH], vec![0.0; SLOTS * TOKENS * WIDTH]);
    assert!(read(&mut a, states[0], &mut want) && read(&mut b, states[1], &mut got));
    assert!(want.iter().any(|v| *v != 0.0) && want.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-3));
}

#[test]
fn other_sessions_do_not_change_a_bit() {
    let mut alone = executor(2);
    let (mut one, layout) = session(&mut alone);
    let state = one.executor.create_state(&layout).expect("states are vectors");
    let want: Vec<Vec<f32>> = (0..6).map(|frame| one.step(state, 1, frame)).collect();
    let mut shared = executor(2);
    let (mut many, layout) = session(&mut shared);
    let [first, state, last] = [0; 3].map(|_| many.executor.create_state(&layout).expect("states are vectors"));
    let mut other = Vec::new();
    for (frame, want) in want.iter().enumerate() {
        other = many.step(first, 2, frame);
        assert!(many.step(state, 1, frame) == *want, "frame {frame} depends on another session");
        many.step(last, 3, frame + 1);
    }
    assert!(other != want[5], "sessions with other inputs have other outputs");
}

#[test]
fn a_profile_has_every_step() {
    let mut cpu = executor(2);
    let (weights, layout, plan) = block(F32);
    let (names, x, flops) =
        (plan.steps.iter().map(|s| s.name.clone()).collect::<Vec<_>>(), plan.inputs[0], plan.flops());
    cpu.load_weights(&weights).expect("weights fit");
    let plan = cpu.prepare(Arc::new(plan)).expect("a plan of f32");
    let state = cpu.create_state(&layout).expect("states are vectors");
    let mut profile = Profile::default();
    let inputs = &[(x, &vec![0.5; TOKENS * WIDTH][..])];
    let run = Run { plan, states: &[state], inputs, params: &[0, 1], outputs: &mut [], profile: Some(&mut profile) };
    cpu.run(run).expect("a valid run");
    assert_eq!(profile.entries.iter().map(|e| e.step.clone()).collect::<Vec<_>>(), names);
    assert_eq!(profile.entries.iter().map(|e| e.cost.flops).sum::<u64>(), flops);
    assert!(profile.total() > std::time::Duration::ZERO);
}

#[test]
fn what_cannot_run_is_refused() {
    assert!(CpuExecutor::new(0).is_err() && CpuExecutor::new(THREADS_MAX + 1).is_err());
    let mut cpu = executor(1);
    let (weights, layout, plan) = block(F32);
    let x = plan.inputs[0];
    let plan = Arc::new(plan);
    assert!(cpu.prepare(Arc::clone(&plan)).is_err(), "its weights are not loaded");
    cpu.load_weights(&weights).expect("weights fit");
    let (_, _, half) = block(Precision::F16);
    assert!(cpu.prepare(Arc::new(half)).is_err(), "a plan of f16");
    let plan = cpu.prepare(plan).expect("a plan of f32");
    let state = cpu.create_state(&layout).expect("states are vectors");
    let values = vec![0.5; TOKENS * WIDTH];
    let inputs = &[(x, &values[..])];
    let mut go = |plan: usize, state: usize, params: &[u32]| {
        cpu.run(Run { plan: PlanId(plan), states: &[StateId(state)], inputs, params, outputs: &mut [], profile: None })
    };
    assert!(go(plan.0 + 1, state.0, &[0, 1]).is_err(), "no such plan");
    assert!(go(plan.0, state.0 + 1, &[0, 1]).is_err(), "no such state");
    assert!(go(plan.0, state.0, &[0]).is_err(), "a param is missing");
    assert!(go(plan.0, state.0, &[SLOTS as u32, 1]).is_err(), "no such slot");
    assert!(go(plan.0, state.0, &[0, SLOTS as u32 + 1]).is_err(), "more frames than slots");
    assert!(go(plan.0, state.0, &[0, 0]).is_err(), "no frame to attend to");
    go(plan.0, state.0, &[SLOTS as u32 - 1, SLOTS as u32]).expect("the last slot of a full ring");
    let empty = Arc::new(StateLayout::default());
    let wrong = cpu.create_state(&empty).expect("a state without entries");
    let run = Run { plan, states: &[wrong], inputs, params: &[0, 1], outputs: &mut [], profile: None };
    assert!(cpu.run(run).is_err(), "a state of another layout");
}
