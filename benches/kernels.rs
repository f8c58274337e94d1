//! Kernels by themselves at the shapes that matter: time, share of the two floors (arithmetic and bytes), and every
//! tile.
//!
//!     cargo bench --bench kernels -- --device vulkan:0 --json kernels.json
//!
//! The binary also works by itself on another machine. `benches/peers/kernels.py` times PyTorch at the same shapes;
//! given its file (`--peer FILE`), each line says how many times faster this kernel is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use gamegend::compute::gpu::{Finish, GpuExecutor, GpuOptions, Tier, Tile};
use gamegend::compute::op::{
    Act, Add, Attention, Conv3x3, Cost, Groups, HeadNorm, Linear, Norm, NormKind, Op, RingAttention, Rope,
};
use gamegend::compute::reference::ReferenceExecutor;
use gamegend::compute::{
    ComputeError, DType, DeviceKind, Executor, Param, PlanBuilder, Precision, Profile, Run, StateLayout, Storage, View,
    WeightSet, testing,
};
use gamegend::model::bench::{Peak, peak};

const USAGE: &str = "usage: kernels [--device vulkan:N] [--tier coopmat|subgroup] [--check yes|no] [--tiles yes|no] \
                     [--only TEXT] [--cache FILE] [--json FILE] [--peer FILE]";

/// Runs of which the fastest counts.
const RUNS: usize = 10;
/// Rows of an operand that differ; further ones repeat them. Peers have random values, and equal rows might be cheaper.
const FILL_ROWS: usize = 1024;
/// What a launch with its barrier costs at least, for predictions.
const LAUNCH: Duration = Duration::from_micros(3);
/// Deviation from the reference that rounding to 16 bits explains.
const TOLERANCE: f32 = 8e-3;

/// Rows, columns and the sum's length of products: the paper's model, then ours alone and in a batch of 16.
const PRODUCTS: &[(usize, usize, usize)] = &[
    (8192, 8192, 8192),
    (4096, 4096, 4096),
    (93600, 4608, 1152),
    (93600, 1152, 4608),
    (93600, 3456, 1152),
    (93600, 1152, 1152),
    (187200, 4608, 1152),
    (82680, 3456, 1152),
    (16640, 1152, 4608),
    (8192, 1152, 1152),
    (3600, 1152, 1152),
    (3840, 1152, 384),
    (3840, 384, 384),
    (3840, 1536, 384),
    (3840, 384, 1536),
    (240, 1152, 384),
    (240, 384, 384),
    (240, 1536, 384),
    (240, 384, 1536),
];

/// Pictures, sides and channels (in, out) of convolutions: the decoder at 1280x720.
const CONVOLUTIONS: &[(usize, usize, usize, usize, usize)] = &[
    (16, 12, 20, 384, 384),
    (16, 24, 40, 256, 256),
    (16, 48, 80, 128, 128),
    (16, 96, 160, 64, 64),
    (16, 96, 160, 64, 192),
    (1, 12, 20, 384, 384),
    (1, 96, 160, 64, 64),
];

/// Sequences, queries, keys, heads and columns of a head: spatial, temporal and to the text; the paper's, then ours.
const ATTENTIONS: &[(usize, usize, usize, usize, usize)] = &[
    (26, 3600, 3600, 16, 72),
    (4, 3600, 3600, 16, 64),
    (7200, 26, 26, 16, 72),
    (26, 3600, 300, 16, 72),
    (26, 1590, 1590, 16, 72),
    (26, 320, 320, 16, 72),
    (16, 240, 240, 6, 64),
    (1, 240, 240, 6, 64),
    (16, 240, 40, 6, 64),
];

/// One line of the result.
struct Line {
    shape: String,
    kernel: String,
    time: Duration,
    cost: Cost,
}

struct Arguments {
    device: usize,
    tier: Option<Tier>,
    check: bool,
    tiles: bool,
    only: String,
    cache: Option<PathBuf>,
    json: Option<String>,
    peer: Option<String>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let only = String::new();
    let mut a =
        Arguments { device: 0, tier: None, check: false, tiles: false, only, cache: None, json: None, peer: None };
    while let Some(word) = words.next() {
        if word == "--bench" {
            continue; // cargo adds it
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let yes = || match value.as_str() {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => Err(format!("{word} is {value:?}, needs yes or no")),
        };
        match word.as_str() {
            "--device" => {
                let index = value.strip_prefix("vulkan:").and_then(|n| n.parse().ok());
                a.device = index.ok_or_else(|| format!("--device is {value:?}, needs vulkan:N"))?;
            }
            "--tier" => {
                let tier = Tier::parse(&value);
                a.tier = Some(tier.ok_or_else(|| format!("--tier is {value:?}, needs coopmat or subgroup"))?);
            }
            "--check" => a.check = yes()?,
            "--tiles" => a.tiles = yes()?,
            "--only" => a.only = value,
            "--cache" => a.cache = Some(PathBuf::from(value)),
            "--json" => a.json = Some(value),
            "--peer" => a.peer = Some(value),
            _ => return Err(format!("unknown option {word}")),
        }
    }
    Ok(a)
}

/// Values between -1 and 1 that differ from one to the next.
fn values(count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Sides of the tensors that an operation reads and writes.
type Dims<'a> = &'a [&'a [usize]];
/// Weights by name, with their sides.
type Named<'a> = &'a [(&'a str, &'a [usize])];

/// Builds a plan of one operation on states of the given sides, runs it and returns its kernel and its shortest time.
fn time(
    executor: &mut GpuExecutor,
    (shape, states, weights): (&str, Dims<'_>, Named<'_>),
    make: impl FnOnce(&[View], &mut PlanBuilder) -> Result<Op, ComputeError>,
) -> Result<Line, ComputeError> {
    let mut set = WeightSet::default();
    for (name, dims) in weights {
        let storage = if dims.len() > 1 { Storage::Matrix } else { Storage::Vector };
        set.insert(*name, dims, storage, values(dims.iter().product()));
    }
    let set = Arc::new(set);
    executor.load_weights(&set)?;
    let mut layout = StateLayout::default();
    let indices: Vec<usize> = states.iter().map(|dims| layout.add("state", dims, DType::F16)).collect();
    let sides = |dims: &[usize]| {
        let cols = dims[dims.len() - 1];
        (dims.iter().product::<usize>() / cols, cols)
    };
    let blocks: Vec<usize> = states
        .iter()
        .map(|dims| layout.add("block", &[sides(dims).0.min(FILL_ROWS), sides(dims).1], DType::F16))
        .collect();
    let layout = Arc::new(layout);
    let state = executor.create_state(&layout)?;
    let mut fill = PlanBuilder::new("fill", Precision::F16, Arc::clone(&set), Arc::clone(&layout));
    for ((&index, &block), dims) in indices.iter().zip(&blocks).zip(states) {
        let (rows, cols) = sides(dims);
        executor.write_state(state, block, &values(rows.min(FILL_ROWS) * cols))?;
        let (all, block) = (fill.state(index), fill.state(block));
        let (all, block) = (fill.view(all), fill.view(block));
        for from in (0..rows).step_by(FILL_ROWS) {
            let count = FILL_ROWS.min(rows - from);
            let part = all.rows(from, count);
            fill.push("fill", Add { a: part, b: block.rows(0, count), y: part })?;
        }
    }
    let fill = executor.prepare(Arc::new(fill.finish()?))?;
    executor.run(Run { plan: fill, states: &[state], inputs: &[], params: &[], outputs: &mut [], profile: None })?;
    let mut b = PlanBuilder::new(shape, Precision::F16, set, layout);
    let views: Vec<View> = indices
        .iter()
        .map(|&i| {
            let t = b.state(i);
            b.view(t)
        })
        .collect();
    let op = make(&views, &mut b)?;
    b.push("op", op)?;
    let plan = executor.prepare(Arc::new(b.finish()?))?;
    let mut best: Option<Line> = None;
    for _ in 0..RUNS {
        let mut profile = Profile::default();
        let profiled = Some(&mut profile);
        executor.run(Run { plan, states: &[state], inputs: &[], params: &[], outputs: &mut [], profile: profiled })?;
        let Some(e) = profile.entries.first() else { continue };
        if best.as_ref().is_none_or(|b| e.time < b.time) {
            let (shape, kernel) = (shape.to_string(), e.kernel.clone());
            best = Some(Line { shape, kernel, time: e.time, cost: e.cost });
        }
    }
    executor.destroy_state(state);
    best.ok_or_else(|| ComputeError::Device { what: "the device has no timestamps".to_string() })
}

fn linear(x: &mut GpuExecutor, (m, n, k): (usize, usize, usize)) -> Result<Line, ComputeError> {
    let shape = format!("linear {m}x{n}x{k}");
    time(x, (&shape, &[&[m, k], &[m, n]], &[("w", &[n, k])]), |v, b| {
        let w = b.weight("w")?;
        Ok(Linear { x: v[0], w, bias: None, act: Act::None, gate: None, res: None, y: v[1] }.into())
    })
}

/// The product with everything that the model puts around it.
fn fused(x: &mut GpuExecutor, (m, n, k): (usize, usize, usize)) -> Result<Line, ComputeError> {
    let shape = format!("fused {m}x{n}x{k}");
    time(x, (&shape, &[&[m, k], &[m, n], &[1, n]], &[("w", &[n, k]), ("bias", &[n])]), |v, b| {
        let (w, bias) = (b.weight("w")?, b.weight("bias")?);
        let (gate, res) = (Some(v[2]), Some(v[1]));
        Ok(Linear { x: v[0], w, bias: Some(bias), act: Act::Gelu, gate, res, y: v[1] }.into())
    })
}

fn convolution(
    x: &mut GpuExecutor,
    (p, height, width, cin, cout): (usize, usize, usize, usize, usize),
) -> Result<Line, ComputeError> {
    let shape = format!("conv3x3 {p}x{height}x{width} {cin}->{cout}");
    let m = p * height * width;
    time(x, (&shape, &[&[m, cin], &[m, cout]], &[("w", &[cout, 3, 3, cin]), ("bias", &[cout])]), |v, b| {
        let (w, bias) = (b.weight("w")?, b.weight("bias")?);
        let bias = Some(bias);
        Ok(Conv3x3 { x: v[0], height, width, w, bias, act: Act::Silu, res: None, y: v[1] }.into())
    })
}

fn attention(
    x: &mut GpuExecutor,
    (g, lq, lk, heads, hd): (usize, usize, usize, usize, usize),
) -> Result<Line, ComputeError> {
    let shape = format!("attention {g}x{lq}x{lk} {heads}x{hd}");
    let n = heads * hd;
    time(x, (&shape, &[&[g * lq, n], &[g * lk, 2 * n], &[g * lq, n]], &[]), |v, _| {
        let (k, value) = (v[1].columns(0, n), v[1].columns(n, n));
        let (key_count, bias, groups) = (None, None, Groups::blocks(g));
        let scale = 1.0 / (hd as f32).sqrt();
        Ok(Attention { q: v[0], k, v: value, heads, scale, key_count, bias, groups, y: v[2] }.into())
    })
}

type Measure = Box<dyn Fn(&mut GpuExecutor) -> Result<Line, ComputeError>>;

/// Everything else that a tick of our model launches: one session of 240 tokens, then rows of sixteen.
fn others() -> Vec<Measure> {
    let (n, d, heads, window) = (240, 384, 6, 16);
    let ring: Measure = Box::new(move |x| {
        time(x, ("ring 240x16 6x64", &[&[n, d], &[window, n, d], &[window, n, d], &[n, d]], &[]), |v, _| {
            let (k_ring, v_ring, count) = (v[1].tensor, v[2].tensor, Param::Const(window as u32));
            Ok(RingAttention { q: v[0], k_ring, v_ring, heads, scale: 0.125, count, y: v[3] }.into())
        })
    });
    let mut all = vec![ring];
    for rows in [n, 16 * n] {
        all.push(Box::new(move |x| {
            let shape = format!("norm_modulate {rows}x{d}");
            time(x, (&shape, &[&[rows, d], &[2, d], &[rows, d]], &[]), |v, _| {
                let kind = NormKind::Modulate { scale: v[1].rows(0, 1), shift: v[1].rows(1, 1) };
                Ok(Norm { x: v[0], kind, eps: 1e-6, y: v[2] }.into())
            })
        }));
        all.push(Box::new(move |x| {
            let shape = format!("head_norm {rows}x{heads}x64");
            let tables: Named<'_> = &[("weight", &[64]), ("cos", &[64]), ("sin", &[64])];
            time(x, (&shape, &[&[rows, d]], tables), |v, b| {
                let [weight, cos, sin] = [b.weight("weight")?, b.weight("cos")?, b.weight("sin")?];
                let rope = Some(Rope { cos, sin, each: 1 });
                Ok(HeadNorm { x: v[0], heads, weight, rope, eps: 1e-6 }.into())
            })
        }));
    }
    all
}

/// Every operation in every tier against the reference.
fn check(device: usize, cache: Option<&PathBuf>) -> Result<bool, ComputeError> {
    let mut right = true;
    for tier in [Tier::Subgroup, Tier::Matrix] {
        let (precision, pipeline_cache) = (Some(Precision::F16), cache.cloned());
        let options =
            GpuOptions { precision, tier: Some(tier), pipeline_cache, tune: Some(false), ..GpuOptions::default() };
        let mut executor = GpuExecutor::open_with(device, &options)?;
        let count = if tier == Tier::Matrix { executor.tiles().len() } else { 0 };
        for tile in (0..count).map(Some).chain([None]) {
            executor = GpuExecutor::open_with(device, &GpuOptions { tile, ..options.clone() })?;
            let mut cases = testing::cases();
            cases.retain(|c| tile.is_none() || c.name.starts_with("linear") || c.name.starts_with("conv"));
            testing::share_weights(&mut cases);
            let mut reference = ReferenceExecutor::new(Precision::F16);
            let judged = testing::check(&cases, &mut reference, &mut executor, Precision::F16, TOLERANCE);
            right &= judged.is_ok();
            let what = tile.map_or("guessed tiles".to_string(), |t| format!("{:?}", executor.tiles()[t]));
            match judged {
                Ok((n, worst)) => println!("check    {} {what}: {n} cases, worst {worst:.2e}", tier.name()),
                Err(e) => println!("check    {} {what}: WRONG\n{e}", tier.name()),
            }
        }
    }
    Ok(right)
}

/// Peer's seconds by shape.
fn peer(path: &str) -> Result<BTreeMap<String, f64>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    let all: serde_json::Value = serde_json::from_str(&text).map_err(|e| format!("{path}: {e}"))?;
    let seconds = all["seconds"].as_object().ok_or_else(|| format!("{path}: no object \"seconds\""))?;
    Ok(seconds.iter().filter_map(|(shape, s)| Some((shape.clone(), s.as_f64()?))).collect())
}

fn run(a: &Arguments) -> Result<ExitCode, String> {
    let text = |e: ComputeError| e.to_string();
    let peer = a.peer.as_deref().map(peer).transpose()?.unwrap_or_default();
    let right = if a.check { check(a.device, a.cache.as_ref()).map_err(text)? } else { true };
    let pipeline_cache = a.cache.clone();
    let options = GpuOptions { precision: Some(Precision::F16), tier: a.tier, pipeline_cache, ..GpuOptions::default() };
    let mut x = GpuExecutor::open_with(a.device, &options).map_err(text)?;
    if x.device().kind == DeviceKind::VulkanCpu && a.only.is_empty() {
        println!(
            "skipped: {} is a software driver, these shapes are for hardware (--only TEXT runs some)",
            x.device().name
        );
        return Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let best = peak(&mut x).map_err(text)?;
    println!("device   {} ({})", x.device().name, x.device().detail);
    println!("peak     {:.0} GFLOP/s (matrix product), {:.0} GB/s (copy)", best.flops / 1e9, best.bytes / 1e9);
    let wanted = |shape: &str| shape.contains(&a.only);
    println!(
        "\n{:<34} {:<30} {:>9} {:>9} {:>9} {:>9} {:>8} {:>6}",
        "shape", "kernel", "us", "floor us", "TFLOP/s", "GB/s", "floor/us", "peer x"
    );
    let mut json = serde_json::Map::new();
    let mut push = |line: Result<Line, ComputeError>| match line {
        Ok(line) => {
            println!("{}", row(&line, &best, &peer));
            json.insert(line.shape, line.time.as_secs_f64().into());
        }
        Err(e) => println!("{e}"),
    };
    for &shape in ATTENTIONS.iter().filter(|_| wanted("attention")) {
        push(attention(&mut x, shape));
    }
    for &shape in CONVOLUTIONS.iter().filter(|_| wanted("conv3x3")) {
        push(convolution(&mut x, shape));
    }
    for other in others().into_iter().filter(|_| wanted("others")) {
        push(other(&mut x));
    }
    for &shape in PRODUCTS.iter().filter(|_| wanted("linear")) {
        if a.tiles {
            tiles(&mut x, shape).map_err(text)?;
        }
        push(linear(&mut x, shape));
        push(fused(&mut x, shape));
    }
    if let Some(path) = &a.json {
        let all = serde_json::json!({ "device": x.device().name, "detail": x.device().detail, "seconds": json });
        std::fs::write(path, format!("{all:#}\n")).map_err(|e| format!("{path}: {e}"))?;
    }
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A line of the table. The floor is what the device's best product, its best copy or a launch would take.
fn row(line: &Line, best: &Peak, peer: &BTreeMap<String, f64>) -> String {
    let seconds = line.time.as_secs_f64();
    let (flops, bytes) = (line.cost.flops as f64, line.cost.bytes as f64);
    let floor = (flops / best.flops).max(bytes / best.bytes).max(LAUNCH.as_secs_f64());
    let faster = peer.get(&line.shape).map_or(String::new(), |p| format!("{:.2}", p / seconds));
    format!(
        "{:<34} {:<30} {:>9.1} {:>9.1} {:>9.2} {:>9.0} {:>7.0}% {:>6}",
        line.shape,
        line.kernel,
        seconds * 1e6,
        floor * 1e6,
        flops / seconds / 1e12,
        bytes / seconds / 1e9,
        100.0 * floor / seconds,
        faster
    )
}

/// Prints what every tile takes for a product, plain and with everything that the model puts around it.
fn tiles(x: &mut GpuExecutor, (m, n, k): (usize, usize, usize)) -> Result<(), ComputeError> {
    let name = |t: &Tile| {
        let Tile { bm, bn, bk, wm, wn, stages, ahead } = t;
        format!("{bm}x{bn}x{bk} subgroups {wm}x{wn} stages {stages} ahead {ahead}")
    };
    for (what, finish) in [("linear", Finish::default()), ("fused", Finish { act: 1, flags: 7 })] {
        for timed in x.measure("linear_cm", (m, n, k), finish)? {
            let seconds = timed.time.as_secs_f64();
            let rate = 2.0 * (m * n * k) as f64 / seconds / 1e12;
            let tile = name(&timed.tile);
            println!("tile     {what} {m}x{n}x{k} {tile:<50} {:>9.1} us {rate:>7.1} TFLOP/s", seconds * 1e6);
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let result = parse(std::env::args().skip(1)).map_err(|e| format!("{e}\n{USAGE}")).and_then(|a| run(&a));
    result.unwrap_or_else(|e| {
        eprintln!("kernels: {e}");
        ExitCode::FAILURE
    })
}
