//! Frames a second, time by kernel, and share of the device's measured peak.
//!
//!     cargo bench --bench engine -- --device cpu --size 320x192
//!
//! The binary also works by itself on another machine: `engine --model DIR --device auto`.

use std::path::PathBuf;
use std::process::ExitCode;

use gamegend::compute::gpu::{GpuOptions, Tier};
use gamegend::compute::select_with;
use gamegend::compute::{ComputeError, Executor};
use gamegend::model::bench::{Options, run};

const USAGE: &str = "usage: engine [--device auto|cpu|vulkan:N] [--tier coopmat|subgroup] [--size WxH] [--steps N] \
     [--ticks N] [--threads N] [--model DIR]";

struct Arguments {
    device: String,
    /// `None`: the best that a Vulkan device has.
    tier: Option<Tier>,
    /// 0: one for each processor.
    threads: usize,
    model: PathBuf,
    options: Options,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut a = Arguments {
        device: "auto".to_string(),
        tier: None,
        threads: 0,
        model: PathBuf::from("models/gamegen-x-mini"),
        options: Options { width: 320, height: 192, steps: 2, ticks: 48 },
    };
    while let Some(word) = words.next() {
        if word == "--bench" {
            continue; // cargo adds it
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<usize>().map_err(|_| format!("{word} is {value:?}, needs a number"));
        match word.as_str() {
            "--device" => a.device = value,
            "--tier" => {
                let tier = Tier::parse(&value);
                a.tier = Some(tier.ok_or_else(|| format!("--tier is {value:?}, needs coopmat or subgroup"))?);
            }
            "--model" => a.model = PathBuf::from(value),
            "--threads" => a.threads = number()?,
            "--ticks" => a.options.ticks = number()?,
            "--steps" => a.options.steps = number()? as u32,
            "--size" => {
                let sides = value.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
                (a.options.width, a.options.height) = sides.ok_or_else(|| format!("--size is {value:?}, needs WxH"))?;
            }
            _ => return Err(format!("unknown option {word}")),
        }
    }
    Ok(a)
}

fn main() -> ExitCode {
    let a = match parse(std::env::args().skip(1)) {
        Ok(a) => a,
        Err(e) => {
            eprintln!("engine: {e}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let options = GpuOptions { tier: a.tier, ..GpuOptions::default() };
    let open = || -> Result<Box<dyn Executor>, ComputeError> { Ok(select_with(&a.device, a.threads, &options)?.0) };
    match run(&a.model, &open, &a.options) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&e);
            while let Some(e) = cause {
                eprintln!("engine: {e}");
                cause = e.source();
            }
            ExitCode::FAILURE
        }
    }
}
