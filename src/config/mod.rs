//! `gamegend.toml`: every key with its default, its meaning and its check.

mod check;
mod diff;
mod load;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::{CheckError, KEYS};
pub use diff::{Changes, diff};
pub use load::{ConfigError, MODEL_CURRENT, MODELS_DIRECTORY, default_path, load, reload, resolve_model};

/// The whole configuration. Every key is optional in the file; unknown keys are errors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub http: Http,
    pub control: Control,
    pub state: State,
    pub gpu: Gpu,
    pub limits: Limits,
    pub model: Model,
    pub log: Log,
    pub worker: Worker,
}

/// The network front.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address and port. A non-loopback address is refused unless `token_file` is set.
    pub listen: SocketAddr,
    /// File with one bearer token a line, not readable by others. Clients then send `Authorization: Bearer TOKEN`.
    pub token_file: Option<PathBuf>,
}

/// The local front.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Path of the Unix socket for `gamegendctl` and other local tools.
    pub socket: PathBuf,
}

/// What survives a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Directory for stored generations and the pipeline cache; made if it does not exist.
    pub directory: PathBuf,
    /// PID file of the background daemon.
    pub pid_file: PathBuf,
    /// Stored generations kept; the oldest go first.
    pub generations_max: usize,
}

/// The device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gpu {
    /// `auto`: the first hardware Vulkan device, else the CPU executor. `vulkan:N`: device N of `gamegendctl gpu`.
    /// `cpu`.
    pub device: String,
    /// Threads of the CPU executor, 0: one a processor.
    pub threads: usize,
    /// Device nodes that the worker may open (Linux, started as root). Empty: those of every graphics device, or none
    /// if `device` is `cpu`.
    pub nodes: Vec<PathBuf>,
}

/// What the worker may use at the most; 0: no limit. In force when the daemon is started as root: by rctl(8) on
/// FreeBSD, by a control group on Linux.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Processor time in percent of one processor.
    pub cpu_percent: u64,
}

/// The model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Folder with `model_index.json`. Empty: the first of the share directory and `models/` beside the program.
    pub path: PathBuf,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info` or `debug`; `-v` raises it.
    pub level: String,
    /// syslog(3) facility in the background: `daemon` or `local0` to `local7`.
    pub facility: String,
    /// File that gets every line as an object of JSON beside the log proper; opened again at SIGHUP. Empty: none.
    pub file: PathBuf,
}

/// The worker process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// User that `api` and `worker` become when the parent runs as root.
    pub user: String,
    /// devfs(8) ruleset of the worker's jail (FreeBSD); must exist and hide everything but the device's nodes.
    pub devfs_ruleset: u32,
    /// Interactive sessions at once on one worker.
    pub sessions_max: usize,
    /// A worker whose device does not answer for this many seconds is started again; 0: never.
    pub hang_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { memory_mib: 0, descriptors: 4096, threads: 1024, cpu_percent: 0 }
    }
}

impl Default for Http {
    fn default() -> Self {
        Http { listen: SocketAddr::from(([127, 0, 0, 1], 8420)), token_file: None }
    }
}

impl Default for Control {
    fn default() -> Self {
        Control { socket: PathBuf::from("/var/run/gamegend/gamegend.sock") }
    }
}

impl Default for State {
    fn default() -> Self {
        State {
            directory: PathBuf::from("/var/db/gamegend"),
            pid_file: PathBuf::from("/var/run/gamegend/gamegend.pid"),
            generations_max: 100,
        }
    }
}

impl Default for Gpu {
    fn default() -> Self {
        Gpu { device: "auto".to_string(), threads: 0, nodes: Vec::new() }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "info".to_string(), facility: "daemon".to_string(), file: PathBuf::new() }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Worker { user: "_gamegen".to_string(), devfs_ruleset: 0, sessions_max: 32, hang_seconds: 30 }
    }
}
