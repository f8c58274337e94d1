//! What a player and an operator get from a device: frames a second, sessions that keep their deadlines, key to frame,
//! start, memory, and the paper's step beside PyTorch's. Writes one JSON file for each device.
//!
//!     cargo bench --bench scenarios -- --device auto --out benches/results
//!
//! The binary also works by itself on another machine: `scenarios --model DIR --paper DIR --gamegend PATH --out DIR`.
//! Files of the peers (`benches/peers/`) come in by `--peer` and `--peer-cpu`.

#[path = "scenarios/arguments.rs"]
mod arguments;
#[path = "scenarios/daemon.rs"]
mod daemon;
#[path = "scenarios/frames.rs"]
mod frames;
#[path = "scenarios/paper.rs"]
mod paper;
#[path = "scenarios/soak.rs"]
mod soak;
#[path = "scenarios/worker.rs"]
mod worker;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use arguments::{Arguments, USAGE};
use gamegend::compute::Profile;
use gamegend::compute::profile::KernelTotal;
use gamegend::model::Engine;
use serde_json::{Map, Value, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let a = match Arguments::parse(std::env::args().skip(1)) {
        Ok(a) => a,
        Err(e) => {
            eprintln!("scenarios: {e}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    match run(&a) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("scenarios: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Time of every kernel in a run, the longest first, with what it moves and computes.
fn kernel_rows(profile: &Profile) -> Value {
    let row = |t: &KernelTotal| {
        let seconds = t.time.as_secs_f64().max(1e-9);
        let (tflops, gbytes) = (t.cost.flops as f64 / seconds / 1e12, t.cost.bytes as f64 / seconds / 1e9);
        eprintln!("  {:40} {:5} {:9.3} ms {tflops:7.2} TFLOP/s {gbytes:6.0} GB/s", t.kernel, t.count, seconds * 1e3);
        json!({"kernel": t.kernel, "count": t.count, "ms": seconds * 1e3, "tflops": tflops, "gb_per_s": gbytes})
    };
    profile.by_kernel().iter().map(row).collect()
}

/// Runs the scenarios that were asked for and writes the file. One that fails leaves its reason among `skipped`.
fn run(a: &Arguments) -> Outcome<()> {
    let (engine, device) = frames::open(a)?;
    let mut all = Map::new();
    let mut skipped = Map::new();
    all.insert("device".to_string(), json!(device.name));
    all.insert("detail".to_string(), json!(device.detail));
    all.insert("size".to_string(), json!(format!("{}x{}", a.width, a.height)));
    let mut engine = Some(engine);
    for name in &a.scenarios {
        eprintln!("== {name}");
        let found = scenario(a, name, &mut engine);
        match found {
            Ok(values) => {
                println!("{name}: {}", Value::Object(values.clone()));
                all.extend(values);
            }
            Err(e) => {
                println!("{name}: skipped: {e}");
                skipped.insert(name.clone(), json!(e.to_string()));
            }
        }
        // What is there counts even if the next one is cut short.
        let (mut so_far, mut without) = (all.clone(), skipped.clone());
        peers(a, &mut so_far, &mut without);
        so_far.insert("skipped".to_string(), Value::Object(without));
        write(&a.out, &device.name, &Value::Object(so_far))?;
    }
    Ok(())
}

/// Runs one scenario. The daemon and the paper's model want the device for themselves: both models need not fit.
fn scenario(a: &Arguments, name: &str, engine: &mut Option<Engine>) -> Outcome<Map<String, Value>> {
    match name {
        "paper" => {
            *engine = None;
            return paper::run(a);
        }
        "daemon" => {
            *engine = None;
            return daemon::run(a);
        }
        "soak" => {
            *engine = None;
            return soak::run(a);
        }
        _ => {}
    }
    let mut whole = match engine.take() {
        Some(whole) => whole,
        None => frames::open(a)?.0,
    };
    let (values, whole) = match name {
        "frames" => (frames::run(a, &mut whole)?, whole),
        "jpeg" => (frames::jpeg(a, &mut whole)?, whole),
        "batch" => (frames::batch(a, &mut whole)?, whole),
        "sessions" => worker::run(a, whole)?,
        other => return Err(format!("there is no scenario {other:?}").into()),
    };
    *engine = Some(whole);
    Ok(values)
}

/// What PyTorch did on the same machine, and our shares of it.
fn peers(a: &Arguments, all: &mut Map<String, Value>, skipped: &mut Map<String, Value>) {
    for (key, path) in [("peer", &a.peer), ("peer_cpu", &a.peer_cpu)] {
        let text = path.as_ref().map(fs::read_to_string);
        let peer: Value = match text {
            Some(Ok(text)) => serde_json::from_str(text.trim()).unwrap_or_else(|_| json!({ "skipped": text.trim() })),
            Some(Err(e)) => json!({ "skipped": e.to_string() }),
            None => json!({ "skipped": "no file of it was given" }),
        };
        if let Some(reason) = peer.get("skipped") {
            skipped.insert(key.to_string(), reason.clone());
            continue;
        }
        if key == "peer" {
            all.insert("peer_eager_step_ms".to_string(), peer["eager_ms"].clone());
            all.insert("peer_compiled_step_ms".to_string(), peer["compiled_ms"].clone());
            for (ours, theirs, share) in [
                ("gemm_tflops", "gemm_tflops", "gemm_share"),
                ("attention_tflops", "attention_tflops", "attention_share"),
            ] {
                let shares = shares(all.get(ours).unwrap_or(&Value::Null), &peer[theirs]);
                all.insert(share.to_string(), shares);
            }
        }
        all.insert(key.to_string(), peer);
    }
}

/// Ours divided by theirs, for every shape that both have.
fn shares(ours: &Value, theirs: &Value) -> Value {
    let mut out = Map::new();
    for (shape, value) in ours.as_object().into_iter().flatten() {
        if let (Some(a), Some(b)) = (value.as_f64(), theirs[shape].as_f64()) {
            out.insert(shape.clone(), json!((a / b * 1000.0).round() / 1000.0));
        }
    }
    Value::Object(out)
}

fn write(folder: &Path, device: &str, value: &Value) -> Outcome<()> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = device.chars().map(plain).collect();
    let name = name.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{name}.json"));
    Ok(fs::write(&path, serde_json::to_string_pretty(value)? + "\n")?)
}
