//! Limits of a worker by a control group of version 2 (cgroups(7)): memory, threads, processor time.
//!
//! The daemon's own group must be its to divide: the root of the hierarchy, or a group that holds nobody else
//! (systemd's `Delegate=yes`). The daemon moves into a group `parent` below it, since a group that is divided holds
//! no process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Limits;

/// The kernel counts processor time in periods of this many microseconds.
const PERIOD_US: u64 = 100_000;
/// The group of the daemon itself below its own.
const PARENT: &str = "parent";
/// What a worker's group is named; the daemon's number follows, and it is the only one of that daemon.
const WORKER: &str = "gamegend-worker";

/// A worker's group; dropped, it is removed.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

/// What has to be written into which file of a group, with the controller that must be there for it.
fn settings(limits: &Limits) -> Vec<(&'static str, &'static str, String)> {
    let mut settings = Vec::new();
    if limits.memory_mib != 0 {
        settings.push(("memory", "memory.max", (limits.memory_mib << 20).to_string()));
    }
    if limits.threads != 0 {
        settings.push(("pids", "pids.max", limits.threads.to_string()));
    }
    if limits.cpu_percent != 0 {
        settings.push(("cpu", "cpu.max", format!("{} {PERIOD_US}", limits.cpu_percent * PERIOD_US / 100)));
    }
    settings
}

impl Group {
    /// Makes the group of a worker with its limits. `None`, with words in the log, if this system has no such groups or
    /// they are not ours to divide. A controller that the kernel has elsewhere is named in the log.
    pub fn create(limits: &Limits) -> io::Result<Option<Group>> {
        let settings = settings(limits);
        if settings.is_empty() {
            return Ok(None);
        }
        let own = match own_group() {
            Ok(own) => own,
            Err(why) => {
                log::warn!("no limits for the worker: {why}");
                return Ok(None);
            }
        };
        remove_stale(&own);
        Group::create_below(&own, &settings, std::process::id()).map(Some)
    }

    fn create_below(own: &Path, settings: &[(&str, &str, String)], pid: u32) -> io::Result<Group> {
        let there = fs::read_to_string(own.join("cgroup.controllers"))?;
        let path = own.join(format!("{WORKER}-{pid}"));
        let mut wanted = Vec::new();
        for (controller, _, value) in settings {
            if there.split_whitespace().any(|c| c == *controller) {
                wanted.push(format!("+{controller}"));
            } else {
                log::warn!("no limit {value} for the worker: the control group has no controller {controller}");
            }
        }
        if !wanted.is_empty() {
            fs::write(own.join("cgroup.subtree_control"), wanted.join(" "))?;
        }
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let group = Group { path };
        for (controller, file, value) in settings {
            if wanted.iter().any(|w| w[1..] == **controller) {
                fs::write(group.path.join(file), value)?;
            }
        }
        Ok(group)
    }

    /// Moves a process into the group, before it has used anything worth counting.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group can be removed once its last process is gone for good, which takes the kernel a moment.
        for _ in 0..50 {
            match fs::remove_dir(&self.path) {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                _ => return,
            }
        }
        log::warn!("{} cannot be removed", self.path.display());
    }
}

/// Removes the groups that killed daemons left: those of processes that are no more.
fn remove_stale(own: &Path) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let daemon = name.strip_prefix(WORKER).and_then(|rest| rest.strip_prefix('-'));
        if daemon.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // One that cannot be removed still has a process, which ends with its link.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The daemon's own group, if it may be divided. Errors: why not, in words.
fn own_group() -> Result<PathBuf, String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
    let mount = mount_point(&mounts).ok_or("this system has no control groups of version 2")?;
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("/proc/self/cgroup: {e}"))?;
    let own = own.lines().find_map(|l| l.strip_prefix("0::")).ok_or("the daemon is in no control group")?;
    let own = own.strip_suffix(PARENT).unwrap_or(own).trim_matches('/');
    let group = mount.join(own);
    if own.is_empty() {
        return Ok(group);
    }
    let members = fs::read_to_string(group.join("cgroup.procs")).map_err(|e| format!("{}: {e}", group.display()))?;
    let me = std::process::id().to_string();
    if members.lines().any(|pid| pid != me) {
        return Err(format!("{} holds other processes too; systemd: Delegate=yes", group.display()));
    }
    let inner = group.join(PARENT);
    let moved = fs::create_dir_all(&inner).and_then(|()| fs::write(inner.join("cgroup.procs"), &me));
    moved.map_err(|e| format!("{}: {e}", inner.display()))?;
    Ok(group)
}

/// Where the hierarchy of version 2 is mounted, from the text of /proc/self/mountinfo.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    let line = mounts.lines().find(|l| l.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup2 ")))?;
    line.split_whitespace().nth(4).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { memory_mib: 512, descriptors: 4096, threads: 100, cpu_percent: 150 };

    #[test]
    fn limits_become_files() {
        let expected = [
            ("memory", "memory.max", "536870912".to_string()),
            ("pids", "pids.max", "100".to_string()),
            ("cpu", "cpu.max", "150000 100000".to_string()),
        ];
        assert_eq!(settings(&LIMITS), expected);
        let none = Limits { memory_mib: 0, descriptors: 9, threads: 0, cpu_percent: 0 };
        assert_eq!(settings(&none), []);
    }

    #[test]
    fn the_hierarchy_is_found() {
        let text = "25 1 0:22 / /sys rw - sysfs sysfs rw\n\
                    30 25 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(text), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("25 1 0:22 / /sys rw - sysfs sysfs rw\n"), None);
    }

    /// A folder that looks like a group: the order of writes and their values, without a kernel behind them.
    #[test]
    fn a_group_has_the_limits_that_its_controllers_allow() {
        let own = std::env::temp_dir().join(format!("gamegend-cgroup-{}", std::process::id()));
        fs::create_dir_all(&own).expect("a temporary directory");
        fs::write(own.join("cgroup.controllers"), "cpu memory\n").expect("ours");
        let group = Group::create_below(&own, &settings(&LIMITS), 7).expect("a folder");
        assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).expect("written"), "+memory +cpu");
        assert_eq!(fs::read_to_string(group.path.join("memory.max")).expect("written"), "536870912");
        assert_eq!(fs::read_to_string(group.path.join("cpu.max")).expect("written"), "150000 100000");
        assert!(!group.path.join("pids.max").exists(), "there is no such controller");
        group.add(99).expect("a file");
        assert_eq!(fs::read_to_string(group.path.join("cgroup.procs")).expect("written"), "99");
        fs::remove_dir_all(&own).expect("ours");
    }
}
