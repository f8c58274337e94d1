//! Tests that need a Vulkan driver; any will do, lavapipe included. Every one drains its validation messages.

#[path = "../build/assembler.rs"]
mod assembler;

use std::process::Command;
use std::sync::Arc;

use gamegend::compute::gpu::{self, GpuExecutor, GpuOptions, Tier};
use gamegend::compute::op::{Act, Add, Copy, HeadNorm, Linear, Map, Norm, NormKind, RingAttention, RingWrite};
use gamegend::compute::reference::ReferenceExecutor;
use gamegend::compute::testing;
use gamegend::compute::{
    ComputeError, Executor, Output, Plan, PlanBuilder, Precision, Profile, Run, StateId, StateLayout, Storage, Tensor,
    WeightSet,
};
use gamegend::vk::{
    Buffer, Canary, CommandBuffer, Device, Instance, Module, Pipeline, PipelineCache, Place, Recorder, Stage,
    Validation, VkError,
};

/// y[i] = 2 x[i] for 64 floats: `push 0 address of x and y, each 8 bytes`.
const DOUBLE: &str = include_str!("data/double.spvasm");

/// An instance with the given checks, or `None` after saying why there is none. `GAMEGEND_TEST_REQUIRE=gpu` makes that
/// a failure, so that a machine that should test Vulkan cannot skip it silently.
fn instance(validation: Validation) -> Option<Instance> {
    let usable = Instance::new(validation).and_then(|i| Ok((i.devices()?, i)));
    match usable {
        Ok((devices, instance)) if !devices.is_empty() => Some(instance),
        other => {
            let required = std::env::var("GAMEGEND_TEST_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|r| r == "gpu"), "a Vulkan driver is required: {:?}", other.err());
            println!("skipped: no Vulkan driver");
            None
        }
    }
}

/// Fails if the layers complained. Call it when everything of the instance is dropped, to include what leaked.
fn silent(canary: &Canary) {
    let messages = canary.drain();
    assert!(messages.is_empty(), "validation: {}", messages.join("\n"));
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn module(words: &[u32], push_bytes: u32) -> Module<'_> {
    Module { words, push_bytes, ..Module::default() }
}

struct Doubling {
    upload: Arc<Buffer>,
    download: Arc<Buffer>,
    commands: CommandBuffer,
}

fn doubling(device: &Device, cache: &PipelineCache) -> Result<Doubling, VkError> {
    let buffer = |name: &str, place| Buffer::new(device, name, 256, place).map(Arc::new);
    let (upload, download) = (buffer("upload", Place::Upload)?, buffer("download", Place::Download)?);
    let (x, y) = (buffer("x", Place::Device)?, buffer("y", Place::Device)?);
    let words = assembler::assemble(DOUBLE).expect("the kernel is right");
    let pipeline = Arc::new(Pipeline::new(device, cache, "double", module(&words, 16))?);
    let push: Vec<u8> = [x.address(), y.address()].iter().flat_map(|a| a.to_le_bytes()).collect();
    let mut r = Recorder::new(device, "doubling", 2)?;
    r.zero(&y);
    r.copy(&upload, 0, &x, 0, 256);
    r.timestamp();
    r.barrier(Stage::Transfer, Stage::Compute);
    r.dispatch(&pipeline, &push, [2, 1, 1]);
    r.barrier(Stage::Compute, Stage::Transfer);
    r.copy(&y, 0, &download, 0, 256);
    r.barrier(Stage::Transfer, Stage::Host);
    r.timestamp();
    Ok(Doubling { upload, download, commands: r.finish()? })
}

/// Each device runs a kernel twice, the second time with other data.
fn replay(validation: Validation) {
    let Some(instance) = instance(validation) else { return };
    let canary = Arc::clone(instance.canary());
    let file = std::env::temp_dir().join(format!("gamegend-vulkan-{}-{validation:?}", std::process::id()));
    for entry in instance.devices().expect("listed before") {
        let device = Device::open(&instance, entry.index, 1).expect("the device opens");
        let cache = PipelineCache::open(&device, Some(&file)).expect("a missing file is fine");
        let mut run = doubling(&device, &cache).expect("the recording is made");
        cache.save();
        for scale in [1.0, 3.0] {
            let x: Vec<f32> = (0..64).map(|i| i as f32 * scale).collect();
            run.upload.map(|b| b.copy_from_slice(&bytes(&x))).expect("mapped");
            run.commands.run().expect("the device works");
            let y = run.download.map(|b| b.to_vec()).expect("mapped");
            assert_eq!(y, bytes(&x.iter().map(|v| v * 2.0).collect::<Vec<_>>()), "{}", entry.name);
        }
        let times = run.commands.intervals().expect("it ran");
        assert!(times.len() == 1 || device.limits().timestamp_ns.is_none(), "{times:?}");
        let again = PipelineCache::open(&device, Some(&file)).expect("the file of this driver");
        doubling(&device, &again).expect("the cached pipeline is used");
    }
    let _ = std::fs::remove_file(&file);
    drop(instance);
    silent(&canary);
}

#[test]
fn recordings_replay_under_core_validation() {
    replay(Validation::Core);
}

#[test]
fn recordings_replay_under_synchronization_validation() {
    replay(Validation::Synchronization);
}

/// The canary must be alive: a module that breaks a rule has to reach it.
#[test]
fn validation_messages_reach_the_canary() {
    let Some(instance) = instance(Validation::Core) else { return };
    if instance.validation() == Validation::Off {
        println!("skipped: the validation layer is not installed");
        return;
    }
    let device = Device::open(&instance, 0, 1).expect("the device opens");
    let cache = PipelineCache::open(&device, None).expect("no file");
    // Push constants of 16 bytes in the module, none in the layout.
    let words = assembler::assemble(DOUBLE).expect("the kernel is right");
    let _ = Pipeline::new(&device, &cache, "wrong", module(&words, 0));
    let messages = instance.canary().drain();
    assert!(messages.iter().any(|m| m.contains("VUID")), "{messages:?}");
}

#[test]
fn memory_that_no_device_has_is_an_error() {
    let Some(instance) = instance(Validation::Core) else { return };
    let device = Device::open(&instance, 0, 1).expect("the device opens");
    let error = Buffer::new(&device, "everything", 1 << 50, Place::Device).expect_err("a pebibyte");
    assert!(matches!(&error, VkError::OutOfMemory { what, .. } if what == "everything"), "{error:?}");
    silent(instance.canary());
}

#[test]
fn a_device_beyond_the_list_is_an_error() {
    let Some(instance) = instance(Validation::Off) else { return };
    let error = Device::open(&instance, 1000, 1).expect_err("there are fewer devices");
    assert!(matches!(error, VkError::NoDevice { index: 1000, .. }), "{error:?}");
}

/// Runs one test of this file in a child process without drivers: the loader reads its environment once.
#[test]
fn no_driver_is_a_clear_error() {
    const CHILD: &str = "GAMEGEND_TEST_NO_DRIVER";
    if std::env::var_os(CHILD).is_some() {
        let error = gamegend::vk::devices().map(|d| assert!(d.is_empty(), "{d:?}"));
        match error {
            // Newer loaders say so, older ones list nothing.
            Err(VkError::NoDriver { what }) => println!("no Vulkan driver: {what}"),
            Ok(()) => println!("no Vulkan device"),
            Err(other) => panic!("{other}"),
        }
        return;
    }
    let me = std::env::current_exe().expect("a test knows its program");
    let missing = "/nonexistent/driver.json";
    let child = Command::new(me)
        .args(["--exact", "no_driver_is_a_clear_error", "--nocapture"])
        .envs([(CHILD, "1"), ("VK_DRIVER_FILES", missing), ("VK_ICD_FILENAMES", missing)])
        .output()
        .expect("the child starts");
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("no Vulkan"), "{text}");
}

/// Deviation from the reference that another order of sums explains, by precision; see `testing::compare`.
const TOLERANCES: [(Precision, f32); 2] = [(Precision::F32, 2e-4), (Precision::F16, 8e-3)];

/// Every device in a precision and in every tier that it has, or none after saying why.
fn executors(precision: Precision) -> Vec<GpuExecutor> {
    let Some(instance) = instance(Validation::Core) else { return Vec::new() };
    let mut all = Vec::new();
    for entry in gpu::devices().expect("there is a driver") {
        let tiers: &[Tier] = match precision {
            Precision::F32 => &[Tier::Subgroup],
            Precision::F16 => &[Tier::Subgroup, Tier::Matrix],
        };
        for &tier in tiers {
            let (precision, tier) = (Some(precision), Some(tier));
            let options = GpuOptions { precision, tier, validation: Validation::Core, ..GpuOptions::default() };
            match GpuExecutor::open_with(entry.index, &options) {
                Ok(executor) => all.push(executor),
                Err(ComputeError::NoDevice { what }) => println!("skipped: {what}"),
                Err(other) => panic!("{}: {other}", entry.name),
            }
        }
    }
    drop(instance);
    all
}

/// Every case of every operation on every device against the reference.
#[test]
fn kernels_agree_with_the_reference() {
    for (precision, tolerance) in TOLERANCES {
        for mut executor in executors(precision) {
            let mut cases = testing::cases();
            testing::share_weights(&mut cases);
            let mut reference = ReferenceExecutor::new(precision);
            let canary = executor.canary();
            let judged = testing::check(&cases, &mut reference, &mut executor, precision, tolerance);
            let (count, worst) = judged.unwrap_or_else(|e| panic!("{precision:?}:\n{e}"));
            let info = executor.device();
            println!("{} ({}): {count} cases in {precision:?}, worst {worst:e}", info.name, info.detail);
            assert!(count > 100, "{count} cases");
            // `coopmat kernels of 16x16x16 and 16x8x16`: heads of 72 columns end in the narrow ones.
            if info.detail.contains("coopmat") && !info.detail.contains(" and ") {
                println!(
                    "skipped: {} has no narrow matrices: heads that end in the midst of one fill it up",
                    info.name
                );
            }
            drop(executor);
            silent(&canary);
        }
    }
}

/// A device in the matrix tier, with what else the options say, or none after saying why.
fn matrix_executor(index: usize, options: GpuOptions) -> Option<GpuExecutor> {
    let (precision, tier) = (Some(Precision::F16), Some(Tier::Matrix));
    let options = GpuOptions { precision, tier, validation: Validation::Core, ..options };
    match GpuExecutor::open_with(index, &options) {
        Ok(executor) => Some(executor),
        Err(ComputeError::NoDevice { what }) => {
            println!("skipped: {what}");
            None
        }
        Err(other) => panic!("device {index}: {other}"),
    }
}

/// A tile decides speed only: every one gives the bits of every other.
#[test]
fn every_tile_gives_the_same_bits() {
    let Some(_instance) = instance(Validation::Core) else { return };
    let mut cases = testing::cases();
    cases.retain(|c| ["linear", "conv3x3"].iter().any(|op| c.name.starts_with(op)));
    let weights = testing::share_weights(&mut cases);
    for entry in gpu::devices().expect("there is a driver") {
        let mut expected: Vec<Vec<testing::Values>> = Vec::new();
        let Some(executor) = matrix_executor(entry.index, GpuOptions::default()) else { continue };
        for tile in 0..executor.tiles().len() {
            let options = GpuOptions { tile: Some(tile), ..GpuOptions::default() };
            let mut executor = matrix_executor(entry.index, options).expect("it opened before");
            let canary = executor.canary();
            executor.load_weights(&weights).expect("weights");
            for (i, case) in cases.iter().enumerate() {
                let got = testing::run_case(case, &mut executor, Precision::F16).expect("cases are valid plans");
                match expected.get(i) {
                    None => expected.push(got),
                    Some(first) => assert!(*first == got, "{}: {:?}", case.name, executor.tiles()[tile]),
                }
            }
            println!("{}: {:?}", entry.name, executor.tiles()[tile]);
            drop(executor);
            silent(&canary);
        }
    }
}

/// A plan whose product is measured is written to the file, from which another executor takes it.
#[test]
fn measured_tiles_are_kept() {
    let Some(_instance) = instance(Validation::Core) else { return };
    for entry in gpu::devices().expect("there is a driver") {
        let file = std::env::temp_dir().join(format!("gamegend-tiles-{}-{}", std::process::id(), entry.index));
        let tiles = file.with_extension("tiles.json");
        let mut texts = Vec::new();
        for damage in [false, false, true] {
            if damage {
                std::fs::write(&tiles, "{\"version\": 1").expect("a temporary file");
            }
            let options = GpuOptions { tune: Some(true), pipeline_cache: Some(file.clone()), ..GpuOptions::default() };
            let Some(mut executor) = matrix_executor(entry.index, options) else { return };
            let canary = executor.canary();
            let (weights, _, plan) = network(Precision::F16);
            executor.load_weights(&weights).expect("weights");
            executor.prepare(Arc::new(plan)).expect("a plan");
            let text = std::fs::read_to_string(&tiles).expect("the tuner wrote it");
            assert!(text.contains("linear_cm") && text.contains("\"bm\""), "{text}");
            texts.push(text);
            drop(executor);
            silent(&canary);
        }
        assert_eq!(texts[0], texts[1], "the second executor measured again");
        let _ = std::fs::remove_file(&file);
        let _ = std::fs::remove_file(&tiles);
    }
}

const TOKENS: usize = 24;
const WIDTH: usize = 32;
const FRAMES: usize = 3;

/// A small recurrent network: slots are reused, columns are joined, the state is read and written, params move.
fn network(precision: Precision) -> (Arc<WeightSet>, Arc<StateLayout>, Plan) {
    let mut weights = WeightSet::default();
    let wave = |n: usize, scale: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * 0.7).sin() * scale).collect() };
    weights.insert("in", &[2 * WIDTH, WIDTH], Storage::Matrix, wave(2 * WIDTH * WIDTH, 0.2));
    weights.insert("out", &[WIDTH, 2 * WIDTH], Storage::Matrix, wave(2 * WIDTH * WIDTH, 0.1));
    weights.insert("bias", &[2 * WIDTH], Storage::Vector, wave(2 * WIDTH, 0.5));
    weights.insert("norm", &[WIDTH / 2], Storage::Vector, wave(WIDTH / 2, 1.0));
    let weights = Arc::new(weights);
    let mut layout = StateLayout::default();
    let ring_index = layout.add("ring", &[FRAMES, TOKENS, WIDTH], precision.dtype());
    let memory_index = layout.add("memory", &[TOKENS, WIDTH], precision.dtype());
    let layout = Arc::new(layout);

    let mut b = PlanBuilder::new("network", precision, Arc::clone(&weights), Arc::clone(&layout));
    let x = b.input("x", &[TOKENS, WIDTH], precision.dtype());
    let [w_in, w_out, bias, norm] = ["in", "out", "bias", "norm"].map(|n| b.weight(n).expect("it was inserted"));
    let (ring, memory) = (b.state(ring_index), b.state(memory_index));
    let (slot, count) = (b.param(), b.param());
    let mut last = b.view(x);
    for layer in 0..4 {
        let [h, wide, y] = [("h", WIDTH), ("wide", 2 * WIDTH), ("y", WIDTH)].map(|(name, cols)| {
            let t = b.temp(&format!("{name}{layer}"), &[TOKENS, cols]);
            b.view(t)
        });
        let push = |b: &mut PlanBuilder, name: &str, op: gamegend::compute::op::Op| {
            b.push(name, op).expect("shapes agree");
        };
        let kind = NormKind::Weight { weight: None, act: Act::None };
        push(&mut b, "norm", Norm { x: last, kind, eps: 1e-6, y: h }.into());
        let wide_op = Linear { x: h, w: w_in, bias: Some(bias), act: Act::Silu, gate: None, res: None, y: wide };
        push(&mut b, "in", wide_op.into());
        let left = wide.columns(0, WIDTH);
        push(&mut b, "heads", HeadNorm { x: left, heads: 2, weight: norm, rope: None, eps: 1e-6 }.into());
        push(&mut b, "right", Copy { x: h, y: wide.columns(WIDTH, WIDTH) }.into());
        let out_op = Linear { x: wide, w: w_out, bias: None, act: Act::None, gate: None, res: Some(last), y };
        push(&mut b, "out", out_op.into());
        last = y;
    }
    let (whole, memory) = (b.view(ring), b.view(memory));
    let steps: [(&str, gamegend::compute::op::Op); 2] = [
        ("remember", RingWrite { x: last, ring, slot, whole }.into()),
        ("add", Add { a: memory, b: last, y: memory }.into()),
    ];
    for (name, op) in steps {
        b.push(name, op).expect("shapes agree");
    }
    let (recalled, result) = (b.temp("recalled", &[TOKENS, WIDTH]), b.temp("result", &[TOKENS, WIDTH]));
    let (recalled, result) = (b.view(recalled), b.view(result));
    let recall = RingAttention { q: last, k_ring: ring, v_ring: ring, heads: 2, scale: 0.25, count, y: recalled };
    b.push("recall", recall).expect("shapes agree");
    b.push("sum", Add { a: recalled, b: memory, y: result }).expect("shapes agree");
    b.push("last", Map { x: result, act: Act::Gelu, y: result }).expect("shapes agree");
    b.output(result.tensor);
    (weights, layout, b.finish().expect("every tensor is written before it is read"))
}

/// One tick of a session that starts from `seed`.
fn tick(
    executor: &mut dyn Executor,
    plan: (&Plan, gamegend::compute::PlanId),
    state: StateId,
    seed: usize,
    n: u32,
) -> Vec<f32> {
    let (plan, id) = plan;
    let x: Vec<f32> = (0..TOKENS * WIDTH).map(|i| ((i * (seed + 3) + n as usize) as f32 * 0.37).sin()).collect();
    let mut y = vec![0.0; TOKENS * WIDTH];
    let params = [n % FRAMES as u32, (n + 1).min(FRAMES as u32)];
    let inputs: [(Tensor, &[f32]); 1] = [(plan.inputs[0], &x)];
    let outputs = &mut [(plan.outputs[0], Output::F32(&mut y))];
    let run = Run { plan: id, states: &[state], inputs: &inputs, params: &params, outputs, profile: None };
    executor.run(run).expect("the run fits its plan");
    y
}

/// A session must give the same frames alone and beside another, and those of the reference but for rounding.
#[test]
fn sessions_are_independent_and_replay() {
    for (precision, tolerance) in TOLERANCES {
        let (weights, layout, plan) = network(precision);
        let plan = Arc::new(plan);
        let mut reference = ReferenceExecutor::new(precision);
        reference.load_weights(&weights).expect("weights");
        let reference_plan = reference.prepare(Arc::clone(&plan)).expect("a plan");
        for mut executor in executors(precision) {
            let canary = executor.canary();
            executor.load_weights(&weights).expect("weights");
            let id = executor.prepare(Arc::clone(&plan)).expect("a plan");
            let alone = executor.create_state(&layout).expect("a state");
            let expected = reference.create_state(&layout).expect("a state");
            let mut frames = Vec::new();
            for n in 0..6 {
                frames.push(tick(&mut executor, (&plan, id), alone, 1, n));
                let truth = tick(&mut reference, (&plan, reference_plan), expected, 1, n);
                for (got, want) in frames[n as usize].iter().zip(&truth) {
                    let deviation = (got - want).abs() / (1.0 + want.abs());
                    assert!(deviation <= 4.0 * tolerance, "{precision:?} tick {n}: {got}, expected {want}");
                }
            }
            executor.destroy_state(alone);
            let (a, b) =
                (executor.create_state(&layout).expect("a state"), executor.create_state(&layout).expect("a state"));
            for n in 0..6 {
                let frame = tick(&mut executor, (&plan, id), a, 1, n);
                tick(&mut executor, (&plan, id), b, 2, n);
                assert_eq!(frame, frames[n as usize], "{precision:?} tick {n}: another session shows");
            }
            drop(executor);
            silent(&canary);
        }
    }
}

#[test]
fn a_profile_has_every_step() {
    for mut executor in executors(Precision::F32) {
        let (weights, layout, plan) = network(Precision::F32);
        let plan = Arc::new(plan);
        executor.load_weights(&weights).expect("weights");
        let id = executor.prepare(Arc::clone(&plan)).expect("a plan");
        let state = executor.create_state(&layout).expect("a state");
        let mut profile = Profile::default();
        let x = vec![0.5; TOKENS * WIDTH];
        let inputs: [(Tensor, &[f32]); 1] = [(plan.inputs[0], &x)];
        let run = Run {
            plan: id,
            states: &[state],
            inputs: &inputs,
            params: &[0, 1],
            outputs: &mut [],
            profile: Some(&mut profile),
        };
        executor.run(run).expect("the run fits its plan");
        assert_eq!(profile.entries.len(), plan.steps.len());
        assert!(profile.total().as_nanos() > 0, "{:?}", profile.entries);
        assert!(profile.entries.iter().all(|e| e.kernel.contains(' ')), "{:?}", profile.entries);
    }
}

#[test]
fn misuse_is_an_error_that_names_it() {
    for mut executor in executors(Precision::F32) {
        let (weights, layout, plan) = network(Precision::F32);
        let plan = Arc::new(plan);
        let missing = executor.prepare(Arc::clone(&plan)).expect_err("no weights are loaded").to_string();
        assert!(missing.contains("in"), "{missing}");
        executor.load_weights(&weights).expect("weights");
        let (_, _, half) = network(Precision::F16);
        let wrong = executor.prepare(Arc::new(half)).expect_err("the precision differs").to_string();
        assert!(wrong.contains("F16") && wrong.contains("F32"), "{wrong}");
        let id = executor.prepare(Arc::clone(&plan)).expect("a plan");
        let state = executor.create_state(&layout).expect("a state");
        let x = vec![0.5; TOKENS * WIDTH];
        let inputs: [(Tensor, &[f32]); 1] = [(plan.inputs[0], &x)];
        let params = [FRAMES as u32, 1];
        let run = Run { plan: id, states: &[state], inputs: &inputs, params: &params, outputs: &mut [], profile: None };
        let beyond = executor.run(run).expect_err("the slot is beyond the ring").to_string();
        assert!(beyond.contains("remember"), "{beyond}");
        let entry = executor.read_state(state, 9, &mut []).expect_err("there are two entries").to_string();
        assert!(entry.contains('9'), "{entry}");
        executor.destroy_state(state);
        let gone = executor.write_state(state, 1, &[]).expect_err("the state is gone").to_string();
        assert!(gone.contains("no state"), "{gone}");
    }
}
