//! What a new configuration means for a daemon that runs: keep, reload or restart, per role.

use super::Config;

/// What has to happen for a new configuration to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The parent's log takes other values at once: keys under `log`.
    pub reload_log: bool,
    /// The watchdog takes another limit at once.
    pub reload_watchdog: bool,
    /// The worker is started again; its sessions go on from their snapshots.
    pub restart_worker: bool,
    /// The api is started again; the listeners stay open, clients connect again.
    pub restart_api: bool,
    /// Keys that only the next start of the daemon can take, such as the address: they keep their old values until
    /// then.
    pub next_start: Vec<&'static str>,
}

impl Changes {
    /// True if both configurations mean the same.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

/// Compares two configurations. Pure; the caller acts.
pub fn diff(old: &Config, new: &Config) -> Changes {
    let mut next_start = Vec::new();
    let mut fixed = |changed: bool, key: &'static str| {
        if changed {
            next_start.push(key);
        }
    };
    fixed(old.http.listen != new.http.listen, "http.listen");
    fixed(old.control.socket != new.control.socket, "control.socket");
    fixed(old.state.directory != new.state.directory, "state.directory");
    fixed(old.state.pid_file != new.state.pid_file, "state.pid_file");
    fixed(old.worker.user != new.worker.user, "worker.user");
    fixed(old.worker.devfs_ruleset != new.worker.devfs_ruleset, "worker.devfs_ruleset");
    let sessions = old.worker.sessions_max != new.worker.sessions_max;
    Changes {
        reload_log: old.log != new.log,
        reload_watchdog: old.worker.hang_seconds != new.worker.hang_seconds,
        restart_worker: old.gpu != new.gpu || old.model != new.model || old.limits != new.limits || sessions,
        restart_api: old.http.token_file != new.http.token_file
            || old.state.generations_max != new.state.generations_max
            || sessions,
        next_start,
    }
}

/// The configuration in force after a reload: `new`, but for the keys that wait for the next start.
pub fn merged(old: &Config, new: &Config) -> Config {
    let mut merged = new.clone();
    merged.http.listen = old.http.listen;
    merged.control = old.control.clone();
    merged.state.directory = old.state.directory.clone();
    merged.state.pid_file = old.state.pid_file.clone();
    merged.worker.user = old.worker.user.clone();
    merged.worker.devfs_ruleset = old.worker.devfs_ruleset;
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of one key.
    type Change = (&'static str, fn(&mut Config));

    /// Every key with a change of it, in the order of KEYS.
    fn changes() -> [Change; 21] {
        [
            ("http.listen", |c| c.http.listen.set_port(1)),
            ("http.token_file", |c| c.http.token_file = Some("/t".into())),
            ("control.socket", |c| c.control.socket = "/s".into()),
            ("state.directory", |c| c.state.directory = "/d".into()),
            ("state.pid_file", |c| c.state.pid_file = "/p".into()),
            ("state.generations_max", |c| c.state.generations_max = 1),
            ("gpu.device", |c| c.gpu.device = "cpu".into()),
            ("gpu.threads", |c| c.gpu.threads = 1),
            ("gpu.nodes", |c| c.gpu.nodes = vec!["/dev/dri/renderD128".into()]),
            ("limits.memory_mib", |c| c.limits.memory_mib = 1024),
            ("limits.descriptors", |c| c.limits.descriptors = 512),
            ("limits.threads", |c| c.limits.threads = 64),
            ("limits.cpu_percent", |c| c.limits.cpu_percent = 50),
            ("model.path", |c| c.model.path = "/m".into()),
            ("log.level", |c| c.log.level = "debug".into()),
            ("log.facility", |c| c.log.facility = "local1".into()),
            ("log.file", |c| c.log.file = "/l".into()),
            ("worker.user", |c| c.worker.user = "other".into()),
            ("worker.devfs_ruleset", |c| c.worker.devfs_ruleset = 9),
            ("worker.sessions_max", |c| c.worker.sessions_max = 1),
            ("worker.hang_seconds", |c| c.worker.hang_seconds = 5),
        ]
    }

    #[test]
    fn every_key_has_exactly_its_consequence() {
        let old = Config::default();
        assert!(diff(&old, &old).is_empty());
        assert_eq!(changes().map(|(key, _)| key), super::super::KEYS.map(|(key, _)| key));
        for (key, change) in changes() {
            let mut new = old.clone();
            change(&mut new);
            let found = diff(&old, &new);
            let expected = match key {
                "log.level" | "log.facility" | "log.file" => Changes { reload_log: true, ..Changes::default() },
                "worker.hang_seconds" => Changes { reload_watchdog: true, ..Changes::default() },
                "model.path" => Changes { restart_worker: true, ..Changes::default() },
                key if key.starts_with("gpu.") || key.starts_with("limits.") => {
                    Changes { restart_worker: true, ..Changes::default() }
                }
                "http.token_file" | "state.generations_max" => Changes { restart_api: true, ..Changes::default() },
                "worker.sessions_max" => Changes { restart_worker: true, restart_api: true, ..Changes::default() },
                _ => Changes { next_start: vec![key], ..Changes::default() },
            };
            assert_eq!(found, expected, "{key}");
            // What waits for the next start is the old value, everything else is the new one.
            let merged = merged(&old, &new);
            assert_eq!(merged == old, !found.next_start.is_empty(), "{key}");
        }
    }
}
