//! The worker's jail as data: `jails/worker.toml`, and the check of its devfs ruleset. Pure, so it is tested
//! everywhere.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::config::Config;

/// The file that describes the jail, part of this program.
const WORKER: &str = include_str!("../../../jails/worker.toml");

/// Rulesets that include rulesets that include ...: deeper than anybody needs.
const INCLUDE_DEPTH_MAX: u32 = 8;

/// What `jails/worker.toml` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailSpec {
    /// Parameters of jail_set(2) by name.
    pub parameters: BTreeMap<String, Parameter>,
    /// Folders of the host that show inside, in order.
    pub mounts: Vec<Mount>,
    /// Resources of rctl(8) and their limits for the whole jail.
    pub limits: BTreeMap<String, u64>,
}

/// A parameter's value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Parameter {
    /// A parameter that only has a name, such as `allow.nomount`.
    Flag(bool),
    /// A number.
    Number(i32),
    /// `disable`, `new` or `inherit` of jail(8).
    Word(String),
}

/// A folder of the host, at the same path inside.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    pub path: PathBuf,
    /// May be written; all others are read-only.
    #[serde(default)]
    pub write: bool,
    /// Left out if the host does not have it.
    #[serde(default)]
    pub optional: bool,
}

impl JailSpec {
    /// The worker's jail with `{model}` and `{cache}` replaced, and the limits of the configuration among its own.
    pub fn worker(config: &Config) -> JailSpec {
        let (model, cache) = (&config.model.path, super::cache_directory(config));
        let mut spec: JailSpec = toml::from_str(WORKER).expect("the file is part of this program and a test parses it");
        for mount in &mut spec.mounts {
            match mount.path.to_str() {
                Some("{model}") => mount.path.clone_from(model),
                Some("{cache}") => mount.path.clone_from(&cache),
                _ => {}
            }
        }
        let limits = &config.limits;
        for (resource, amount) in [
            ("memoryuse", limits.memory_mib << 20),
            ("openfiles", limits.descriptors),
            ("nthr", limits.threads),
            ("pcpu", limits.cpu_percent),
        ] {
            if amount != 0 {
                spec.limits.insert(resource.to_string(), amount);
            }
        }
        spec
    }
}

impl Parameter {
    /// The number that jail_set(2) takes for a word of jail(8), as `JAIL_SYS_*` in sys/jail.h.
    pub fn number(&self) -> Option<i32> {
        match self {
            Parameter::Flag(_) => None,
            Parameter::Number(n) => Some(*n),
            Parameter::Word(word) => ["disable", "new", "inherit"].iter().position(|w| w == word).map(|n| n as i32),
        }
    }
}

/// What the first rule of a devfs ruleset does to every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    HidesAll,
    /// What that ruleset does.
    Includes(u32),
    Other,
}

/// True if a devfs ruleset begins by hiding everything, itself or through an `include`. `first` gives the first rule of
/// a ruleset, if there is one.
pub fn hides_everything(ruleset: u32, first: &dyn Fn(u32) -> Option<First>) -> bool {
    let mut ruleset = ruleset;
    for _ in 0..INCLUDE_DEPTH_MAX {
        match first(ruleset) {
            Some(First::HidesAll) => return true,
            Some(First::Includes(other)) => ruleset = other,
            Some(First::Other) | None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_worker_jail_is_closed() {
        let mut config = Config::default();
        config.model.path = "/m".into();
        config.state.directory = "/c".into();
        let spec = JailSpec::worker(&config);
        assert_eq!(spec.parameters["children.max"], Parameter::Number(0));
        assert_eq!(spec.parameters["ip4"].number(), Some(0));
        assert_eq!(spec.parameters["allow.nomount"], Parameter::Flag(true));
        assert!(spec.parameters.values().all(|p| matches!(p, Parameter::Flag(true)) || p.number().is_some()));
        let writable: Vec<&Path> = spec.mounts.iter().filter(|m| m.write).map(|m| m.path.as_path()).collect();
        assert_eq!(writable, [Path::new("/c/cache")]);
        assert!(spec.mounts.iter().any(|m| m.path == Path::new("/m") && !m.write));
        assert!(spec.mounts.iter().all(|m| m.path.is_absolute()));
        assert_eq!(spec.limits["maxproc"], 1);
    }

    #[test]
    fn a_ruleset_must_begin_by_hiding() {
        let first = |n: u32| match n {
            1 => Some(First::HidesAll),
            8420 => Some(First::Includes(1)),
            5 => Some(First::Other),
            6 => Some(First::Includes(6)),
            7 => Some(First::Includes(9)),
            _ => None,
        };
        assert!(hides_everything(1, &first) && hides_everything(8420, &first));
        for n in [5, 6, 7, 9] {
            assert!(!hides_everything(n, &first), "{n}");
        }
    }
}
