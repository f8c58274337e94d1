//! Tests that need a Vulkan driver; any will do, lavapipe included. Every one drains its validation messages.

#[path = "../build/assembler.rs"]
mod assembler;

use std::process::Command;
use std::sync::Arc;

use gamegend::vk::{
    Buffer, Canary, CommandBuffer, Device, Instance, Pipeline, PipelineCache, Place, Recorder, Stage, Validation,
    VkError,
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
    let pipeline = Arc::new(Pipeline::new(device, cache, "double", &words, 16)?);
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
        let device = Device::open(&instance, entry.index).expect("the device opens");
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
    let device = Device::open(&instance, 0).expect("the device opens");
    let cache = PipelineCache::open(&device, None).expect("no file");
    // Push constants of 16 bytes in the module, none in the layout.
    let words = assembler::assemble(DOUBLE).expect("the kernel is right");
    let _ = Pipeline::new(&device, &cache, "wrong", &words, 0);
    let messages = instance.canary().drain();
    assert!(messages.iter().any(|m| m.contains("VUID")), "{messages:?}");
}

#[test]
fn memory_that_no_device_has_is_an_error() {
    let Some(instance) = instance(Validation::Off) else { return };
    let device = Device::open(&instance, 0).expect("the device opens");
    let error = Buffer::new(&device, "everything", 1 << 50, Place::Device).expect_err("a pebibyte");
    assert!(matches!(&error, VkError::OutOfMemory { what, .. } if what == "everything"), "{error:?}");
}

#[test]
fn a_device_beyond_the_list_is_an_error() {
    let Some(instance) = instance(Validation::Off) else { return };
    let error = Device::open(&instance, 1000).expect_err("there are fewer devices");
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
