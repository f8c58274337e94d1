//! From `Start` to ready: protections, device, model, greeting.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use super::WorkerError;
use super::engine::{self, Facts};
use super::serve::Server;
use super::sessions::Sessions;
use crate::compute::gpu::GpuOptions;
use crate::compute::{self, DeviceInfo, DeviceKind, Precision};
use crate::config::Config;
use crate::model::bench::{self, Group};
use crate::model::{Engine, Model, ModelError, ModelInfo, video_prompt};
use crate::proto::api::Vocabulary;
use crate::proto::keys::Keys;
use crate::proto::link::{AboutWorker, FromWorkerToParent, OpenSession, SessionNumber, ToWorkerFromParent, build_id};
use crate::sys::link::Link;
use crate::sys::sandbox::{self, Role};

const PARENT: &str = "parent";
/// The driver's compiled kernels, below the cache directory.
const PIPELINES_FILE: &str = "pipelines";
/// What the device was measured to do, in the same place.
const CAPACITY_FILE: &str = "capacity";
/// Size of the session that warms the device up: the default of a request.
const WARM_SIZE_PX: (u32, u32) = (320, 192);
const WARM_SESSION: SessionNumber = 0;
/// What the capacity is measured with: runs of this many sessions of this size, so many on each lane.
const CALIBRATION_SIZE_PX: (u32, u32) = (1280, 720);
const CALIBRATION_SESSIONS: usize = 8;
const CALIBRATION_RUNS: usize = 3;

/// Takes `Start` from the parent, makes everything ready and says so. Errors: what keeps this worker from working.
pub(super) fn start(parent: Link) -> Result<Server<Engine>, WorkerError> {
    let (mut config, api) = receive(&parent)?;
    let began = Instant::now();
    // Asked before the fences go up, which could only say that they cannot let a missing folder through.
    let path = &config.model.path;
    std::fs::metadata(path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
    // Single-threaded until here: namespaces and a change of user must hold for every thread that comes.
    let mut protections = sandbox::enter(Role::Worker, &mut config).map_err(WorkerError::Sandbox)?;
    let device = config.gpu.device.clone();
    let cache = sandbox::cache_directory(&config).join(PIPELINES_FILE);
    let options = GpuOptions { pipeline_cache: Some(cache), ..GpuOptions::default() };
    let (executor, why) = compute::select_with(&device, config.gpu.threads, &options)
        .map_err(|source| WorkerError::Device { device, source })?;
    let model = Model::load(Path::new(&config.model.path))?;
    let mut engine = Engine::new(model.clone(), executor)?;
    warm_up(&mut engine, model.info())?;
    let rate = capacity(&mut engine, model.info(), &sandbox::cache_directory(&config).join(CAPACITY_FILE))?;
    // A size that nobody had yet is met while others play, who would wait for every tile to be timed.
    engine.executor().measure_no_more();
    // From here on the driver has loaded what it needs.
    protections.narrow(&[], &[]).map_err(WorkerError::Sandbox)?;

    let about = about(&engine, model.info(), why, protections.to_string());
    let summary = summary(&about, engine.device(), began.elapsed().as_secs_f64());
    let facts = Facts {
        model_hash: about.model_hash.clone(),
        device: format!("{} {} {}", about.device_kind, about.precision, engine.device().detail),
        vocabulary: about.vocabulary.clone(),
        real_time_max: config.worker.sessions_max,
        trained_px_min: trained_px_min(model.info()),
        rate,
    };
    let clock = Instant::now();
    let sessions = Sessions::new(engine, facts, clock.elapsed());
    let ready = FromWorkerToParent::Ready { build: build_id(), summary };
    parent.send(&ready, &[]).map_err(|source| WorkerError::Send { peer: PARENT, source })?;
    Server::new(sessions, (parent, api), about, clock, sandbox::cache_directory(&config))
}

fn trained_px_min(info: &ModelInfo) -> u32 {
    info.sizes.iter().map(|[width, height]| width * height).min().unwrap_or(0)
}

/// The first message on the link to the parent.
fn receive(parent: &Link) -> Result<(Config, Link), WorkerError> {
    let protocol = |found: String| WorkerError::Protocol { peer: PARENT, found, expected: "Start with a link" };
    let received = parent.recv().map_err(|source| WorkerError::Link { peer: PARENT, source })?;
    let Some((message, fds)) = received else { return Err(protocol("nothing".to_string())) };
    let ToWorkerFromParent::Start { build, config, .. } = message else {
        return Err(protocol(format!("{message:?}")));
    };
    let ours = build_id();
    if build != ours {
        return Err(WorkerError::Build { peer: PARENT, found: build, ours });
    }
    let [api]: [OwnedFd; 1] =
        fds.try_into().map_err(|fds: Vec<OwnedFd>| protocol(format!("Start with {} descriptors", fds.len())))?;
    Ok((*config, Link::from_fd(api)))
}

/// Opens a session of the default size and, on a Vulkan device, runs it for a frame: plans are recorded, kernels
/// compiled and the driver's libraries loaded before anybody waits for them.
fn warm_up(device: &mut Engine, info: &ModelInfo) -> Result<(), WorkerError> {
    let (width, height) = WARM_SIZE_PX;
    let request = OpenSession::from_text(WARM_SESSION, "a meadow", WARM_SIZE_PX, info.frame_rate, info.default_steps);
    let mut session = engine::Engine::open(device, &request)?;
    if matches!(device.device().kind, DeviceKind::VulkanGpu) {
        let mut picture = vec![0; width as usize * height as usize * 3 / 2];
        device.tick(&mut session, Keys::NONE, &mut picture, None)?;
    }
    engine::Engine::close(device, session);
    Ok(())
}

/// Floating-point operations a second in runs of several sessions; `None` on a device that is not one for many. What
/// was measured for this device, model and program before is in `file`; runs correct it soon enough.
fn capacity(device: &mut Engine, info: &ModelInfo, file: &Path) -> Result<Option<f64>, WorkerError> {
    if device.batch_max() == 1 {
        return Ok(None);
    }
    let about = device.device();
    let key = format!("{} | {} | {} | {}", about.name, about.detail, info.hash, build_id());
    let known = std::fs::read_to_string(file).ok().and_then(|text| known_rate(&text, &key));
    if known.is_some() && device.executor().measured_before() {
        return Ok(known);
    }
    meet_sizes(device, info)?;
    let rate = measured_rate(device, info)?;
    if let Err(e) = std::fs::write(file, format!("{key}\n{rate:e}\n")) {
        log::warn!("the next start measures the device again: {}: {e}", file.display());
    }
    Ok(Some(rate))
}

/// The rate in a file of [`capacity`], if it is of this key and a rate at all.
fn known_rate(text: &str, key: &str) -> Option<f64> {
    let (found, rate) = text.split_once('\n')?;
    let rate: f64 = rate.trim().parse().ok()?;
    (found == key && rate.is_finite() && rate > 0.0).then_some(rate)
}

/// Prepares the plans of full runs of every size that the model is made for, so that their kernels are compiled and
/// their tiles measured before anybody plays.
fn meet_sizes(device: &mut Engine, info: &ModelInfo) -> Result<(), WorkerError> {
    for &[width, height] in &info.sizes {
        Group::open(device, device.batch_max(), (width, height), info.default_steps)?.close(device);
    }
    Ok(())
}

/// Runs of a few sessions of the size that is asked for most, on every lane at once.
fn measured_rate(device: &mut Engine, info: &ModelInfo) -> Result<f64, WorkerError> {
    let (width, height) = CALIBRATION_SIZE_PX;
    let (seats, steps) = (CALIBRATION_SESSIONS.min(device.batch_max()), info.default_steps);
    let mut groups = Vec::new();
    for _ in 0..device.lanes() {
        groups.push(Group::open(device, seats, (width, height), steps)?);
    }
    let time = bench::overlapped(device, &mut groups, CALIBRATION_RUNS)?;
    groups.into_iter().for_each(|group| group.close(device));
    let work = device.tick_flops(width, height, steps)? as f64 * seats as f64;
    Ok(work / time.as_secs_f64().max(1e-9))
}

fn about(engine: &Engine, info: &ModelInfo, why: String, sandbox: String) -> AboutWorker {
    let device = engine.device();
    AboutWorker {
        kept: 0,
        device: device.name.clone(),
        device_kind: kind_text(device.kind).to_string(),
        device_why: why,
        precision: precision_text(device.precision).to_string(),
        sandbox,
        model: info.name.clone(),
        model_hash: info.hash.clone(),
        parameters: info.parameters,
        vocabulary: Vocabulary {
            weather: info.weather.clone(),
            lighting: info.lighting.clone(),
            effects: info.effects.clone(),
            perspectives: info.perspectives.clone(),
            steps: info.steps.clone(),
            default_steps: info.default_steps,
            prompt_tokens_max: info.prompt_tokens_max,
            video_prompts: info.video_prompts.clone(),
            extractions: extractions(info),
        },
    }
}

/// What a decoder can take from pictures, given what the model's folder has.
fn extractions(info: &ModelInfo) -> Vec<String> {
    let there = |kind: &&&str| **kind != video_prompt::POSE || info.pose_judge;
    video_prompt::KINDS.iter().filter(there).map(|kind| kind.to_string()).collect()
}

/// One line for the log: what frames are made of, on what, and why there.
fn summary(about: &AboutWorker, device: &DeviceInfo, seconds: f64) -> String {
    format!(
        "ready after {seconds:.1} s: {} ({}; {}), chosen because {}; {}; model {} {:.12}, {} parameters; sandbox: {}",
        about.device,
        about.device_kind,
        device.detail,
        about.device_why,
        about.precision,
        about.model,
        about.model_hash,
        about.parameters,
        about.sandbox,
    )
}

fn kind_text(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cpu => "cpu",
        DeviceKind::VulkanGpu => "vulkan gpu",
        DeviceKind::VulkanCpu => "vulkan cpu",
        DeviceKind::Reference => "reference",
    }
}

fn precision_text(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::F16 => "f16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_start_measures_what_later_ones_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gamegen-x-mini");
        let model = Model::load(&folder).expect("the model loads");
        let (executor, _) = compute::select_with("cpu", 2, &GpuOptions::default()).expect("there is a processor");
        let mut engine = Engine::new(model.clone(), executor).expect("the model fits");
        let file = std::env::temp_dir().join(format!("gamegend-capacity-{}", std::process::id()));
        let ask = |engine: &mut Engine| capacity(engine, model.info(), &file).expect("it works");
        assert_eq!(ask(&mut engine), None, "a processor is shared as well as it goes");
        // As a device for many, it runs two sessions of every size at once.
        engine.set_batch_max(2);
        let rate = ask(&mut engine);
        assert!(rate.is_some_and(|rate| rate > 1e6), "{rate:?} operations a second");
        assert_eq!(ask(&mut engine), rate, "read, not measured again: two measurements differ");
        std::fs::remove_file(&file).expect("it was written");
    }

    #[test]
    fn only_a_rate_of_this_device_is_believed() {
        assert_eq!(known_rate("card | model\n2.5e13\n", "card | model"), Some(2.5e13));
        for wrong in
            ["", "card | model", "card | model\n", "other\n2.5e13\n", "card | model\n-1\n", "card | model\ninf\n"]
        {
            assert_eq!(known_rate(wrong, "card | model"), None, "{wrong:?}");
        }
    }
}
