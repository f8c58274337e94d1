//! What each key may hold, beyond its type. Pure: nothing here looks at files; the parent does, as it starts.

use std::path::{Component, Path};

use super::Config;
use crate::proto::limits::SESSIONS_MAX;

/// Longest path of a Unix socket in bytes: `sun_path` has 104 on FreeBSD, 108 on Linux, the last one a NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 103;
/// Threads of the CPU executor at most; more than any machine that this was tried on has processors.
pub const THREADS_MAX: usize = 1024;
/// Stored generations at most: each is a video file and a row in a list that is read at start.
pub const GENERATIONS_MAX: usize = 100_000;
/// devfs(8) numbers its rulesets with 16 bits.
pub const DEVFS_RULESET_MAX: u32 = 65_535;

const LEVELS: [&str; 4] = ["error", "warn", "info", "debug"];
const FACILITIES: [&str; 9] =
    ["daemon", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"];

/// Every key of the file with what is allowed, for messages and the tests of the manual page and the sample.
pub const KEYS: [(&str, &str); 21] = [
    ("http.listen", "ADDRESS:PORT, for instance \"127.0.0.1:8420\" or \"[::1]:8420\""),
    ("http.token_file", "an absolute path"),
    ("control.socket", "an absolute path of at most 103 bytes"),
    ("state.directory", "an absolute path"),
    ("state.pid_file", "an absolute path"),
    ("state.generations_max", "1 to 100000"),
    ("gpu.device", "\"auto\", \"cpu\" or \"vulkan:N\""),
    ("gpu.threads", "0 to 1024"),
    ("gpu.nodes", "absolute paths below /dev"),
    ("limits.memory_mib", "0, or 256 to 16777216"),
    ("limits.descriptors", "0, or 256 to 1048576"),
    ("limits.threads", "0, or 64 to 65536"),
    ("limits.cpu_percent", "0 to 102400"),
    ("model.path", "an absolute path, or \"\" for the shipped model"),
    ("log.level", "\"error\", \"warn\", \"info\" or \"debug\""),
    ("log.facility", "\"daemon\" or \"local0\" to \"local7\""),
    ("log.file", "an absolute path, or \"\" for none"),
    ("worker.user", "the name of a user without privileges"),
    ("worker.devfs_ruleset", "0 to 65535"),
    ("worker.sessions_max", "1 to 128"),
    ("worker.hang_seconds", "0, or 5 to 3600"),
];

/// A value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {value} is not allowed; allowed: {allowed}")]
pub struct CheckError {
    pub key: &'static str,
    pub value: String,
    pub allowed: String,
}

impl CheckError {
    /// A message about `key`, with what [`KEYS`] allows for it.
    pub fn new(key: &'static str, value: impl std::fmt::Debug) -> CheckError {
        let allowed = allowed(key).unwrap_or("see gamegend.toml(5)").to_string();
        CheckError { key, value: format!("{value:?}"), allowed }
    }
}

/// What [`KEYS`] says about a key.
pub fn allowed(key: &str) -> Option<&'static str> {
    KEYS.iter().find(|(k, _)| *k == key).map(|(_, allowed)| *allowed)
}

/// Checks every key. Returns every error, not only the first: an operator fixes a file once.
pub fn check(config: &Config) -> Vec<CheckError> {
    let mut errors = Vec::new();
    let mut require = |good: bool, key: &'static str, value: &dyn std::fmt::Debug| {
        if !good {
            errors.push(CheckError::new(key, value));
        }
    };
    let Config { http, control, state, gpu, limits, model, log, worker } = config;
    if let Some(path) = &http.token_file {
        require(path.is_absolute(), "http.token_file", path);
    }
    let socket_bytes = control.socket.as_os_str().len();
    require(control.socket.is_absolute() && socket_bytes <= SOCKET_PATH_BYTES_MAX, "control.socket", &control.socket);
    require(state.directory.is_absolute(), "state.directory", &state.directory);
    require(state.pid_file.is_absolute(), "state.pid_file", &state.pid_file);
    require((1..=GENERATIONS_MAX).contains(&state.generations_max), "state.generations_max", &state.generations_max);
    require(is_device(&gpu.device), "gpu.device", &gpu.device);
    require(gpu.threads <= THREADS_MAX, "gpu.threads", &gpu.threads);
    require(gpu.nodes.iter().all(|node| is_node(node)), "gpu.nodes", &gpu.nodes);
    for (key, value, allowed) in [
        ("limits.memory_mib", limits.memory_mib, 256..=16 << 20),
        ("limits.descriptors", limits.descriptors, 256..=1 << 20),
        ("limits.threads", limits.threads, 64..=1 << 16),
        ("limits.cpu_percent", limits.cpu_percent, 1..=102_400),
        ("worker.hang_seconds", worker.hang_seconds, 5..=3600),
    ] {
        require(value == 0 || allowed.contains(&value), key, &value);
    }
    require(model.path.as_os_str().is_empty() || model.path.is_absolute(), "model.path", &model.path);
    require(LEVELS.contains(&log.level.as_str()), "log.level", &log.level);
    require(FACILITIES.contains(&log.facility.as_str()), "log.facility", &log.facility);
    require(log.file.as_os_str().is_empty() || log.file.is_absolute(), "log.file", &log.file);
    require(!worker.user.is_empty() && worker.user != "root", "worker.user", &worker.user);
    require(worker.devfs_ruleset <= DEVFS_RULESET_MAX, "worker.devfs_ruleset", &worker.devfs_ruleset);
    require((1..=SESSIONS_MAX).contains(&worker.sessions_max), "worker.sessions_max", &worker.sessions_max);
    if !http.listen.ip().is_loopback() && http.token_file.is_none() {
        errors.push(CheckError {
            key: "http.listen",
            value: format!("{} without http.token_file", http.listen),
            allowed: "a loopback address, or any address once http.token_file names a file of tokens".to_string(),
        });
    }
    errors
}

fn is_node(path: &Path) -> bool {
    path.starts_with("/dev") && path != Path::new("/dev") && !path.components().any(|c| c == Component::ParentDir)
}

fn is_device(text: &str) -> bool {
    let number = text.strip_prefix("vulkan:").map(str::parse::<u8>);
    matches!(text, "auto" | "cpu") || matches!(number, Some(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_allowed() {
        assert_eq!(check(&Config::default()), []);
    }

    #[test]
    fn every_wrong_value_is_named() {
        let mut config = Config::default();
        config.http.listen = "0.0.0.0:80".parse().expect("an address");
        config.control.socket = format!("/{}", "x".repeat(SOCKET_PATH_BYTES_MAX)).into();
        config.state.directory = "relative".into();
        config.state.generations_max = 0;
        config.gpu.device = "vulkan:x".to_string();
        config.gpu.threads = THREADS_MAX + 1;
        config.log.level = "loud".to_string();
        config.log.facility = "mail".to_string();
        config.worker.user = "root".to_string();
        config.worker.sessions_max = 0;
        config.worker.devfs_ruleset = DEVFS_RULESET_MAX + 1;
        config.worker.hang_seconds = 1;
        config.limits = super::super::Limits { memory_mib: 1, descriptors: 3, threads: 1, cpu_percent: 1 << 30 };
        config.gpu.nodes = vec!["/dev/../etc/passwd".into()];
        config.log.file = "relative".into();
        let errors = check(&config);
        let keys: Vec<&str> = errors.iter().map(|e| e.key).collect();
        assert_eq!(keys.len(), 18, "{keys:?}");
        let text = errors.iter().find(|e| e.key == "log.level").map(ToString::to_string);
        let expected =
            "log.level: \"loud\" is not allowed; allowed: \"error\", \"warn\", \"info\" or \"debug\"".to_string();
        assert_eq!(text, Some(expected));
        config.http.token_file = Some("/etc/tokens".into());
        assert!(!check(&config).iter().any(|e| e.key == "http.listen"));
    }

    #[test]
    fn the_table_has_every_key() {
        let mut config = Config::default();
        config.http.token_file = Some("/t".into());
        let text = toml::to_string(&config).expect("it serialises");
        let table: toml::Table = text.parse().expect("it was just written");
        let mut keys = Vec::new();
        for (section, value) in &table {
            let section_table = value.as_table().expect("every top level key is a section");
            keys.extend(section_table.keys().map(|key| format!("{section}.{key}")));
        }
        let mut known: Vec<String> = KEYS.iter().map(|(k, _)| k.to_string()).collect();
        keys.sort();
        known.sort();
        assert_eq!(keys, known);
    }
}
