//! How fast a device plays the model, and where a tick's time goes, against what the device can do at best.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::noise::Noise;
use super::{Engine, Flight, Keys, Model, ModelError, Picture, Session, SessionSpec, Turn};
use crate::compute::op::{Act, Copy, Cost, Linear};
use crate::compute::profile::KernelTotal;
use crate::compute::{ComputeError, DeviceInfo, Executor, PlanBuilder, Profile, Run, StateLayout, Storage, WeightSet};

/// Side of the square matrices whose product measures arithmetic.
const PRODUCT_SIDE: usize = 2048;
/// Rows and columns of the copy that measures memory: larger than any cache.
const COPY_SHAPE: [usize; 2] = [8192, 4096];
/// Runs of which the fastest counts.
const PEAK_RUNS: usize = 5;
/// Ticks with a profile, after the timed ones.
const PROFILED_TICKS: usize = 8;
/// Ticks before the clock starts: the first frame and enough to fill caches and pipelines.
const WARM_UP_TICKS: usize = 3;

const PROMPT: &str = "a red knight walks forward in a green meadow during the day, with clear weather.";

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    pub width: u32,
    pub height: u32,
    /// Denoising steps a frame.
    pub steps: u32,
    /// Timed ticks.
    pub ticks: usize,
}

/// The best that the device did on one large operation of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// Arithmetic of a matrix product, in floating-point operations a second.
    pub flops: f64,
    /// Memory traffic of a copy, bytes read and written a second.
    pub bytes: f64,
}

/// The result; [`fmt::Display`] prints it as a table.
#[derive(Clone, Debug)]
pub struct Table {
    pub device: DeviceInfo,
    pub model: String,
    pub options: Options,
    pub peak: Peak,
    pub load: Duration,
    pub open: Duration,
    pub first_frame: Duration,
    /// Times of the ticks without a profile, sorted.
    pub ticks: Vec<Duration>,
    pub tick_flops: u64,
    pub state_bytes: usize,
    /// Totals of one tick by kernel, the longest first.
    pub kernels: Vec<KernelTotal>,
}

/// Loads the model and plays it on a device that `open` opens (twice: once for the peaks).
/// Errors: those of the model folder, the device, and sizes and steps that the model does not have.
pub fn run(
    model: &Path,
    open: &dyn Fn() -> Result<Box<dyn Executor>, ComputeError>,
    options: &Options,
) -> Result<Table, ModelError> {
    let peak = peak(&mut *open()?)?;
    let begin = Instant::now();
    let mut engine = Engine::new(Model::load(model)?, open()?)?;
    let load = begin.elapsed();
    let spec = SessionSpec {
        prompt: PROMPT.to_string(),
        width: options.width,
        height: options.height,
        steps: options.steps,
        seed: 1,
        perspective: Some("third".to_string()),
    };
    let begin = Instant::now();
    let mut session = engine.open(&spec)?;
    let opened = begin.elapsed();
    let mut picture = vec![0; (options.width * options.height * 3 / 2) as usize];
    let mut tick = |profile: Option<&mut Profile>| {
        let begin = Instant::now();
        engine.tick(&mut session, Keys::W, &mut picture, profile).map(|()| begin.elapsed())
    };
    let first_frame = tick(None)?;
    for _ in 0..WARM_UP_TICKS {
        tick(None)?;
    }
    let mut ticks = (0..options.ticks.max(1)).map(|_| tick(None)).collect::<Result<Vec<_>, _>>()?;
    ticks.sort();
    let mut profile = Profile::default();
    for _ in 0..PROFILED_TICKS {
        tick(Some(&mut profile))?;
    }
    let mut kernels = profile.by_kernel();
    for k in &mut kernels {
        k.time /= PROFILED_TICKS as u32;
        k.count /= PROFILED_TICKS;
        k.cost = Cost { flops: k.cost.flops / PROFILED_TICKS as u64, bytes: k.cost.bytes / PROFILED_TICKS as u64 };
    }
    let info = engine.model().info();
    let table = Table {
        device: engine.device().clone(),
        model: format!("{} ({} parameters, {})", info.name, info.parameters, &info.hash[..12]),
        options: options.clone(),
        peak,
        load,
        open: opened,
        first_frame,
        ticks,
        tick_flops: session.tick_flops(),
        state_bytes: engine.state_bytes(&spec),
        kernels,
    };
    engine.close(session);
    Ok(table)
}

/// Measures a large product and a large copy.
pub fn peak(executor: &mut dyn Executor) -> Result<Peak, ComputeError> {
    let precision = executor.device().precision;
    let (n, dtype) = (PRODUCT_SIDE, precision.dtype());
    let mut values = vec![0.0; n * n];
    Noise::new(0).fill(0, &mut values);
    let mut weights = WeightSet::default();
    weights.insert("matrix", &[n, n], Storage::Matrix, values.clone());
    let weights = Arc::new(weights);
    executor.load_weights(&weights)?;

    let mut layout = StateLayout::default();
    let (x, y) = (layout.add("x", &[n, n], dtype), layout.add("y", &[n, n], dtype));
    let (a, b) = (layout.add("a", &COPY_SHAPE, dtype), layout.add("b", &COPY_SHAPE, dtype));
    let layout = Arc::new(layout);
    let state = executor.create_state(&layout)?;
    executor.write_state(state, x, &values)?;

    let mut builder = PlanBuilder::new("peak", precision, weights, layout);
    let [x, y, a, b] = [x, y, a, b].map(|i| {
        let t = builder.state(i);
        builder.view(t)
    });
    let w = builder.weight("matrix")?;
    builder.push("product", Linear { x, w, bias: None, act: Act::None, gate: None, res: None, y })?;
    builder.push("copy", Copy { x: a, y: b })?;
    let plan = executor.prepare(Arc::new(builder.finish()?))?;
    let mut peak = Peak { flops: 0.0, bytes: 0.0 };
    for _ in 0..PEAK_RUNS {
        let mut profile = Profile::default();
        let run =
            Run { plan, states: &[state], inputs: &[], params: &[], outputs: &mut [], profile: Some(&mut profile) };
        executor.run(run)?;
        for entry in &profile.entries {
            let seconds = entry.time.as_secs_f64().max(1e-9);
            match entry.step.as_str() {
                "product" => peak.flops = peak.flops.max(entry.cost.flops as f64 / seconds),
                _ => peak.bytes = peak.bytes.max(entry.cost.bytes as f64 / seconds),
            }
        }
    }
    executor.destroy_state(state);
    Ok(peak)
}

/// Sessions that go together, with a frame behind them, and room for their pictures.
pub struct Group {
    sessions: Vec<Session>,
    pictures: Vec<Vec<u8>>,
}

impl Group {
    /// Opens `count` sessions. Errors: those of [`Engine::open`].
    pub fn open(
        engine: &mut Engine,
        count: usize,
        (width, height): (u32, u32),
        steps: u32,
    ) -> Result<Group, ModelError> {
        let mut group = Group { sessions: Vec::new(), pictures: Vec::new() };
        for seed in 0..count as u64 {
            let prompt = PROMPT.to_string();
            let mut session = engine.open(&SessionSpec { prompt, width, height, steps, seed, perspective: None })?;
            // Cheaper than a first frame, which has many steps.
            let nothing = vec![0.0; engine.last_latent(&session).len()];
            engine.seed(&mut session, &[(nothing, Keys::NONE)])?;
            group.sessions.push(session);
            group.pictures.push(vec![0; (width * height * 3 / 2) as usize]);
        }
        Ok(group)
    }

    /// The next frames of the first `count` of them.
    pub fn turns(&mut self, count: usize) -> Vec<Turn<'_>> {
        let all = self.sessions.iter_mut().zip(&mut self.pictures).take(count);
        all.map(|(session, picture)| Turn { session, keys: Keys::W, picture: Picture::Bytes(picture) }).collect()
    }

    pub fn close(self, engine: &mut Engine) {
        self.sessions.into_iter().for_each(|session| engine.close(session));
    }
}

/// How long a run takes while there is one of each group on its way, one for each lane: the mean of `runs` for each,
/// after one that warms it up.
///
/// Errors: those of the device.
pub fn overlapped(engine: &mut Engine, groups: &mut [Group], runs: usize) -> Result<Duration, ModelError> {
    let mut flights = Vec::new();
    let begin = |engine: &mut Engine, groups: &mut [Group], i: usize| -> Result<(usize, Flight), ModelError> {
        Ok((i, engine.begin(groups[i].turns(usize::MAX))?))
    };
    for i in 0..groups.len() {
        flights.push(begin(engine, groups, i)?);
    }
    let (all, mut landed, mut began) = (groups.len() * (runs + 1), 0, Instant::now());
    let mut time = Duration::ZERO;
    while !flights.is_empty() {
        let going: Vec<Flight> = flights.iter().map(|(_, flight)| *flight).collect();
        let Some(place) = engine.landed(&going, Duration::from_secs(1))? else { continue };
        let (i, flight) = flights.remove(place);
        engine.end(flight, groups[i].turns(usize::MAX))?;
        landed += 1;
        if landed == groups.len() {
            began = Instant::now();
        }
        if landed == all {
            time = began.elapsed();
        }
        if landed + flights.len() < all {
            flights.push(begin(engine, groups, i)?);
        }
    }
    Ok(time / (groups.len() * runs).max(1) as u32)
}

impl Table {
    /// Frames a second over the timed ticks.
    pub fn frames_per_second(&self) -> f64 {
        self.ticks.len() as f64 / self.ticks.iter().sum::<Duration>().as_secs_f64()
    }

    /// The time below which `share` of the ticks stayed.
    pub fn percentile(&self, share: f64) -> Duration {
        let last = self.ticks.len() - 1;
        self.ticks[((last as f64 * share).round() as usize).min(last)]
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (o, d) = (&self.options, &self.device);
        writeln!(f, "device   {} ({:?}, {:?}; {})", d.name, d.kind, d.precision, d.detail)?;
        writeln!(f, "model    {}", self.model)?;
        let gflop = self.tick_flops as f64 / 1e9;
        writeln!(f, "session  {}x{}, {} steps, {gflop:.2} GFLOP a frame", o.width, o.height, o.steps)?;
        writeln!(f, "state    {:.1} MiB a session", self.state_bytes as f64 / f64::from(1 << 20))?;
        let [load, open, first] = [self.load, self.open, self.first_frame].map(milliseconds);
        writeln!(f, "start    load {load:.0} ms, open {open:.0} ms, first frame {first:.0} ms")?;
        let (p50, p95) = (milliseconds(self.percentile(0.5)), milliseconds(self.percentile(0.95)));
        let (fps, n) = (self.frames_per_second(), self.ticks.len());
        writeln!(f, "ticks    {fps:.2} frames/s over {n} ticks; median {p50:.2} ms, p95 {p95:.2} ms")?;
        let (flops, bytes) = (self.peak.flops / 1e9, self.peak.bytes / 1e9);
        writeln!(f, "peak     {flops:.1} GFLOP/s (matrix product), {bytes:.1} GB/s (copy)\n")?;
        writeln!(
            f,
            "{:<40} {:>5} {:>9} {:>6} {:>9} {:>8} {:>6}",
            "kernel", "count", "ms/tick", "share", "GFLOP/s", "GB/s", "peak"
        )?;
        let total: f64 = self.kernels.iter().map(|k| k.time.as_secs_f64()).sum();
        for k in &self.kernels {
            let seconds = k.time.as_secs_f64().max(1e-9);
            let (flops, bytes) = (k.cost.flops as f64 / seconds, k.cost.bytes as f64 / seconds);
            let share = 100.0 * (flops / self.peak.flops).max(bytes / self.peak.bytes);
            writeln!(
                f,
                "{:<40} {:>5} {:>9.3} {:>5.1}% {:>9.1} {:>8.1} {:>5.0}%",
                k.kernel,
                k.count,
                seconds * 1e3,
                100.0 * seconds / total,
                flops / 1e9,
                bytes / 1e9,
                share
            )?;
        }
        writeln!(f, "{:<40} {:>5} {:>9.3}", "all", "", total * 1e3)
    }
}
