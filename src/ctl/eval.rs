//! `gamegendctl eval`: measures a model folder on a device of this machine. Needs no daemon.

use std::path::PathBuf;

use clap::Args;

use super::{CtlError, print};
use crate::compute::{ComputeError, Executor, select};
use crate::config::{default_path, load};
use crate::model::eval::{Options, Part, run};

/// What is measured, and on what.
#[derive(Debug, Args)]
pub struct Evaluate {
    /// Model folder; by default that of the configuration.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Parts, with commas between them.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = part)]
    parts: Vec<Part>,
    /// Use so many entries of each list of prompts.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// auto, cpu, or vulkan:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Denoising steps a frame; by default those of the protocol.
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// File to write.
    #[arg(short, long = "output", value_name = "FILE", default_value = "eval.json")]
    output: PathBuf,
}

fn part(name: &str) -> Result<Part, String> {
    let allowed = || Part::ALL.map(Part::name).join(", ");
    Part::named(name).ok_or_else(|| format!("there is no such part; parts are {}", allowed()))
}

/// Measures and prints the figures.
pub fn evaluate(asked: Evaluate) -> Result<(), CtlError> {
    let model = match asked.model {
        Some(model) => model,
        None => load(default_path().as_deref())?.model.path,
    };
    let open = || -> Result<Box<dyn Executor>, ComputeError> { Ok(select(&asked.device, 0)?.0) };
    let parts = if asked.parts.is_empty() { Part::USUAL.to_vec() } else { asked.parts };
    let options = Options {
        model: &model,
        parts: &parts,
        count: asked.count.map(|n| n as usize),
        steps: asked.steps,
        output: &asked.output,
    };
    let table = run(&options, &open, &|line| print(&format!("{line}\n"))).map_err(Box::new)?;
    print(&format!("\n{table}written: {}\n", asked.output.display()));
    Ok(())
}
