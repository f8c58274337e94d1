//! One session as fast as it goes, its pixels in shared memory; runs of several, and JPEG.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gamegend::compute::gpu::GpuOptions;
use gamegend::compute::{self, DeviceInfo, Profile, SharedId};
use gamegend::model::bench::{self, Group};
use gamegend::model::{Engine, Keys, Model, Picture, Session, SessionSpec};
use gamegend::sys::shm::SharedMemory;
use serde_json::{Map, Value, json};

use super::arguments::Arguments;
use super::{Outcome, kernel_rows};

const PROMPT: &str = "a castle in a forest at sunset";
const WARM_UP: u64 = 16;
const BATCH_RUNS: usize = 9;
/// Quality of streamed frames.
const JPEG_QUALITY: i32 = 82;
const JPEG_RUNS: u32 = 100;
const MEBIBYTE: f64 = (1 << 20) as f64;

/// Opens the device with the model, and what the device is.
pub fn open(a: &Arguments) -> Outcome<(Engine, DeviceInfo)> {
    let cache = std::env::temp_dir().join("gamegend-bench-pipelines");
    let options = GpuOptions { pipeline_cache: Some(cache), tune: a.tune, ..GpuOptions::default() };
    let (executor, _) = compute::select_with(&a.device, a.threads, &options)?;
    let device = executor.device().clone();
    Ok((Engine::new(Model::load(&a.model)?, executor)?, device))
}

/// Denoising steps of a frame.
pub fn steps(a: &Arguments, engine: &Engine) -> u32 {
    if a.steps > 0 { a.steps } else { engine.model().info().default_steps }
}

fn spec(a: &Arguments, engine: &Engine, seed: u64) -> SessionSpec {
    let (prompt, steps) = (PROMPT.to_string(), steps(a, engine));
    SessionSpec { prompt, width: a.width, height: a.height, steps, seed, perspective: None }
}

/// Room for a few pictures, where the device writes by itself if it can.
struct Target {
    memory: Arc<SharedMemory>,
    shared: Option<SharedId>,
    picture: Vec<u8>,
    next: usize,
}

impl Target {
    fn new(a: &Arguments, engine: &mut Engine) -> Outcome<Target> {
        let bytes = (a.width * a.height * 3 / 2) as usize;
        let memory = Arc::new(SharedMemory::create("bench", (4 * bytes).next_multiple_of(4096))?);
        Ok(Target { shared: engine.share(&memory)?, memory, picture: vec![0; bytes], next: 0 })
    }

    /// The next frame, in shared memory when this returns.
    fn tick(&mut self, engine: &mut Engine, session: &mut Session) -> Outcome<()> {
        let offset = self.next % 4 * self.picture.len();
        self.next += 1;
        match self.shared {
            Some(shared) => engine.tick_into(session, Keys::W, Picture::Shared(shared, offset), None)?,
            None => {
                engine.tick(session, Keys::W, &mut self.picture, None)?;
                self.memory.write(offset, &self.picture);
            }
        }
        Ok(())
    }
}

pub fn run(a: &Arguments, engine: &mut Engine) -> Outcome<Map<String, Value>> {
    let spec = spec(a, engine, 1);
    let mut session = engine.open(&spec)?;
    let mut target = Target::new(a, engine)?;
    for _ in 0..WARM_UP {
        target.tick(engine, &mut session)?;
    }
    let (begin, mut ticks) = (Instant::now(), Vec::new());
    while begin.elapsed() < Duration::from_secs(a.seconds) {
        let start = Instant::now();
        target.tick(engine, &mut session)?;
        ticks.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let fps = ticks.len() as f64 / begin.elapsed().as_secs_f64();
    ticks.sort_by(f64::total_cmp);
    let at = |share: f64| ticks[((ticks.len() - 1) as f64 * share) as usize];
    let (p50, p95, p99) = (at(0.5), at(0.95), at(0.99));
    target.shared.into_iter().for_each(|shared| engine.unshare(shared));
    engine.close(session);
    let flops = engine.tick_flops(a.width, a.height, spec.steps)?;
    let state = engine.state_bytes(&spec) as f64 / MEBIBYTE;
    let values = json!({
        "mini_fps": fps,
        "mini_720p_fps": ((a.width, a.height) == (1280, 720)).then_some(fps),
        "mini_tick_ms": {"p50": p50, "p95": p95, "p99": p99},
        "mini_steps": spec.steps,
        "mini_gflop_per_frame": flops as f64 / 1e9,
        "mini_tflops": flops as f64 * fps / 1e12,
        "pixels_written_by_device": target.shared.is_some(),
        "state_mib_per_session": state,
    });
    Ok(values.as_object().cloned().unwrap_or_default())
}

/// JPEG of a frame as viewers get it: by one thread, and by one on every processor at once.
pub fn jpeg(a: &Arguments, engine: &mut Engine) -> Outcome<Map<String, Value>> {
    let mut session = engine.open(&spec(a, engine, 1))?;
    let mut picture = vec![0; (a.width * a.height * 3 / 2) as usize];
    engine.tick(&mut session, Keys::W, &mut picture, None)?;
    engine.close(session);
    let (width, height) = (a.width as usize, a.height as usize);
    let encode = || -> turbojpeg::Result<usize> {
        let mut compressor = turbojpeg::Compressor::new()?;
        compressor.set_quality(JPEG_QUALITY)?;
        let mut bytes = 0;
        for _ in 0..JPEG_RUNS {
            let (pixels, subsamp) = (&picture[..], turbojpeg::Subsamp::Sub2x2);
            let image = turbojpeg::YuvImage { pixels, width, align: 1, height, subsamp };
            bytes = compressor.compress_yuv_to_owned(image)?.len();
        }
        Ok(bytes)
    };
    let begin = Instant::now();
    let bytes = encode()?;
    let one = begin.elapsed().as_secs_f64() / f64::from(JPEG_RUNS);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let begin = Instant::now();
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(encode))));
    let all = f64::from(JPEG_RUNS) * cores as f64 / begin.elapsed().as_secs_f64();
    let values = json!({
        "jpeg_ms": one * 1e3, "jpeg_kib": bytes as f64 / 1024.0, "jpeg_cores": cores, "jpeg_fps_all_cores": all,
        "jpeg_sessions_24fps": (all / 24.0).floor(),
    });
    Ok(values.as_object().cloned().unwrap_or_default())
}

/// Runs of several sessions: milliseconds of a run by its sessions, alone and while there is one on every lane; and by
/// kernel where there are the most of them.
pub fn batch(a: &Arguments, engine: &mut Engine) -> Outcome<Map<String, Value>> {
    let most = a.batches.iter().copied().max().unwrap_or(1);
    let before = engine.batch_max();
    engine.set_batch_max(most);
    let (size, steps) = ((a.width, a.height), steps(a, engine));
    let mut group = Group::open(engine, most, size, steps)?;
    let (mut times, mut kernels) = (Map::new(), Value::Null);
    for &count in &a.batches {
        let mut go = |profile: Option<&mut Profile>| -> Outcome<f64> {
            let turns = group.turns(count);
            let begin = Instant::now();
            engine.tick_batch(turns, profile)?;
            Ok(begin.elapsed().as_secs_f64() * 1e3)
        };
        go(None)?;
        let mut all = (0..BATCH_RUNS).map(|_| go(None)).collect::<Outcome<Vec<_>>>()?;
        all.sort_by(f64::total_cmp);
        times.insert(count.to_string(), json!(all[BATCH_RUNS / 2]));
        if count == most {
            let mut profile = Profile::default();
            go(Some(&mut profile))?;
            kernels = kernel_rows(&profile);
        }
    }
    group.close(engine);
    let mut overlapped = Map::new();
    for &count in &a.batches {
        let lanes = engine.lanes();
        let mut groups = (0..lanes).map(|_| Group::open(engine, count, size, steps)).collect::<Result<Vec<_>, _>>()?;
        let time = bench::overlapped(engine, &mut groups, BATCH_RUNS)?;
        overlapped.insert(count.to_string(), json!(time.as_secs_f64() * 1e3));
        groups.into_iter().for_each(|group| group.close(engine));
    }
    engine.set_batch_max(before);
    let values = json!({
        "batch_run_ms": times, "batch_run_ms_overlapped": overlapped, "lanes": engine.lanes(), "batch_kernels": kernels,
    });
    Ok(values.as_object().cloned().unwrap_or_default())
}
