//! The command line.

use std::path::PathBuf;

pub const USAGE: &str = "usage: scenarios [--device auto|cpu|vulkan:N] [--size WxH] [--steps N] [--threads N] \
     [--model DIR]\n    [--paper DIR] [--paper-sizes WxH,..] [--gamegend PATH] [--out DIR] [--seconds N] \
     [--sessions N,N,..]\n    [--batches N,N,..] [--viewers N,N] [--soak-seconds N] [--tune yes|no] \
     [--scenarios frames,batch,jpeg,sessions,paper,daemon,soak]\n    [--peer FILE] [--peer-cpu FILE]";

pub struct Arguments {
    pub device: String,
    /// 0: one for each processor.
    pub threads: usize,
    pub width: u32,
    pub height: u32,
    /// 0: the model's default.
    pub steps: u32,
    pub model: PathBuf,
    pub paper: PathBuf,
    pub paper_sizes: Vec<(usize, usize)>,
    pub gamegend: PathBuf,
    pub out: PathBuf,
    /// How long each measurement lasts.
    pub seconds: u64,
    pub soak_seconds: u64,
    /// Numbers of sessions that are tried, in order.
    pub sessions: Vec<usize>,
    /// Numbers of sessions of one run.
    pub batches: Vec<usize>,
    /// Numbers of sessions that are played through the daemon.
    pub viewers: Vec<usize>,
    pub scenarios: Vec<String>,
    /// Measure tiles of products; `None`: as the device likes it.
    pub tune: Option<bool>,
    pub peer: Option<PathBuf>,
    pub peer_cpu: Option<PathBuf>,
}

fn size<T: std::str::FromStr>(text: &str) -> Option<(T, T)> {
    let (w, h) = text.split_once('x')?;
    Some((w.parse().ok()?, h.parse().ok()?))
}

impl Arguments {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut a = Arguments {
            device: "auto".to_string(),
            threads: 0,
            width: 1280,
            height: 720,
            steps: 0,
            model: PathBuf::from("models/gamegen-x-mini"),
            paper: PathBuf::from("models/gamegen-x"),
            paper_sizes: vec![(320, 256), (848, 480), (1280, 720)],
            gamegend: PathBuf::from("target/release/gamegend"),
            out: PathBuf::from("benches/results"),
            seconds: 4,
            soak_seconds: 60,
            sessions: vec![1, 8, 24, 48, 72, 100, 120],
            batches: vec![1, 2, 4, 8, 16, 32],
            viewers: vec![1, 50],
            scenarios: ["frames", "batch", "jpeg", "sessions", "daemon", "paper"].map(str::to_string).to_vec(),
            tune: None,
            peer: None,
            peer_cpu: None,
        };
        while let Some(word) = words.next() {
            if word == "--bench" {
                continue; // cargo adds it
            }
            let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
            let number = |text: &str| text.parse::<usize>().map_err(|_| format!("{word} is {value:?}, needs a number"));
            let numbers = || value.split(',').map(number).collect::<Result<Vec<_>, _>>();
            let no_size = || format!("{word} is {value:?}, needs WxH");
            match word.as_str() {
                "--device" => a.device = value,
                "--model" => a.model = PathBuf::from(value),
                "--paper" => a.paper = PathBuf::from(value),
                "--gamegend" => a.gamegend = PathBuf::from(value),
                "--out" => a.out = PathBuf::from(value),
                "--tune" => a.tune = Some(value == "yes"),
                "--peer" => a.peer = Some(PathBuf::from(value)),
                "--peer-cpu" => a.peer_cpu = Some(PathBuf::from(value)),
                "--threads" => a.threads = number(&value)?,
                "--steps" => a.steps = number(&value)? as u32,
                "--seconds" => a.seconds = number(&value)? as u64,
                "--soak-seconds" => a.soak_seconds = number(&value)? as u64,
                "--sessions" => a.sessions = numbers()?,
                "--batches" => a.batches = numbers()?,
                "--viewers" => a.viewers = numbers()?,
                "--scenarios" => a.scenarios = value.split(',').map(str::to_string).collect(),
                "--size" => (a.width, a.height) = size(&value).ok_or_else(no_size)?,
                "--paper-sizes" => {
                    let sizes: Option<Vec<_>> = value.split(',').map(size).collect();
                    a.paper_sizes = sizes.ok_or_else(no_size)?;
                }
                _ => return Err(format!("unknown option {word}")),
            }
        }
        Ok(a)
    }
}
