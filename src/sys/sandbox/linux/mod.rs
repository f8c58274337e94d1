//! Linux: namespaces (unshare(2)), a root of its own, Landlock (landlock(7)) and seccomp(2).
//!
//! Older kernels and containers lack some of these. Each one that is missing is left out of the words that status and
//! log show; none of them is silently taken for granted.

mod calls;
mod cgroup;
mod root;

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
    path_beneath_rules,
};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::super::user::Identity;
use super::{Fences, Role, SandboxError, cache_directory, devices};
use crate::config::Config;

pub use cgroup::Group;

/// The Landlock version whose rules are asked for; older kernels enforce the part that they know.
const LANDLOCK: ABI = ABI::V6;

/// What a Vulkan loader, its drivers and the C library read, beside the model.
const WORKER_READS: [&str; 7] =
    ["/usr", "/lib", "/lib64", "/etc/vulkan", "/etc/ld.so.cache", "/etc/drirc", "/etc/nvidia"];
/// Facts about devices, shown to a worker that has one.
const DEVICE_READS: [&str; 1] = ["/sys"];
/// Parts of /proc that Landlock leaves open to the worker.
const WORKER_PROC: [&str; 6] =
    ["/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/driver", "/proc/sys", "/proc/devices"];

/// Variables with paths of drivers and layers outside [`WORKER_READS`], set by whoever starts the daemon.
const DRIVER_VARIABLES: [&str; 5] =
    ["VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_LAYER_PATH", "VK_ADD_LAYER_PATH"];

/// Nodes without a device behind them, for both roles.
const PLAIN_NODES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"];

/// Paths that a role may reach.
struct Paths {
    reads: Vec<PathBuf>,
    writes: Vec<PathBuf>,
    nodes: Vec<PathBuf>,
}

impl Paths {
    fn of(role: Role, config: &Config) -> Paths {
        let plain = PLAIN_NODES.iter().map(PathBuf::from);
        match role {
            Role::Api => Paths {
                reads: config.http.token_file.iter().cloned().collect(),
                writes: vec![config.state.directory.clone()],
                nodes: plain.collect(),
            },
            Role::Decoder => Paths { reads: vec![], writes: vec![], nodes: plain.collect() },
            Role::Worker => {
                let leased = leased(config);
                let facts: &[&str] = if leased.is_empty() { &[] } else { &DEVICE_READS };
                let mut reads: Vec<PathBuf> = WORKER_READS.iter().chain(facts).map(PathBuf::from).collect();
                reads.push(config.model.path.clone());
                reads.extend(driver_directories());
                let writes = [vec![cache_directory(config)], user_cache()].concat();
                Paths { reads, writes, nodes: plain.chain(leased).collect() }
            }
        }
    }
}

/// Nodes of the device that the parent leases to the worker: the configured ones, else those of every graphics device;
/// none for the executor on the processor.
fn leased(config: &Config) -> Vec<PathBuf> {
    match (config.gpu.device.as_str(), config.gpu.nodes.as_slice()) {
        ("cpu", _) => Vec::new(),
        (_, []) => devices::nodes(Path::new("/dev")),
        (_, nodes) => nodes.iter().filter(|n| n.is_dir() || root::is_node(n)).cloned().collect(),
    }
}

/// Namespaces, limits, the root and Landlock, while the process still is who it was started as.
pub fn fence(role: Role, config: &mut Config, who: Option<&Identity>) -> Result<Fences, SandboxError> {
    let mut in_force = Vec::new();
    let mut paths = Paths::of(role, config);
    let groups = if role == Role::Worker && who.is_some() { devices::groups(&leased(config)) } else { Vec::new() };
    if role == Role::Worker && who.is_some() {
        limit(config).map_err(|source| SandboxError::System { step: "limit descriptors", source })?;
    }
    match leave_namespaces(who.is_some()) {
        Ok(words) => {
            in_force.push(words);
            let own_processes = std::process::id() == 1;
            let entries = root::entries(&paths.reads, &paths.writes, &paths.nodes);
            match root::enter(&entries, own_processes) {
                Ok(()) => in_force.push("own root".to_string()),
                // Some systems grant an ordinary user a namespace and then nothing within it.
                Err(e) if who.is_none() => log::warn!("{}: no root of its own: {e}", role.name()),
                Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                    log::warn!("{}: no root of its own: {e}", role.name());
                    super::hold_folders(role, config)?;
                    paths = Paths::of(role, config);
                }
                Err(source) => return Err(SandboxError::System { step: "make a root of its own", source }),
            }
            if who.is_none() {
                drop_capabilities().map_err(|source| SandboxError::System { step: "drop capabilities", source })?;
            }
        }
        Err(e) => {
            log::warn!("{}: no namespaces: {e}", role.name());
            if who.is_some() {
                super::hold_folders(role, config)?;
                paths = Paths::of(role, config);
            }
        }
    }
    // Landlock and seccomp ask for it, and it ends every set-user-id way back.
    nix::sys::prctl::set_no_new_privs()
        .map_err(|e| SandboxError::System { step: "forbid new privileges", source: e.into() })?;
    in_force.extend(landlock(role, &paths)?);
    Ok(Fences { in_force, groups })
}

/// Leaves the host's mounts, network, System V and POSIX message objects, control groups and host name behind.
/// Listeners that were inherited stay in the network where they were bound, so even the api has none of its own.
fn leave_namespaces(as_root: bool) -> io::Result<String> {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    if as_root {
        unshare(flags)?;
        // The parent makes the one of processes, which holds for children only.
        let processes = if std::process::id() == 1 { "pid, " } else { "" };
        return Ok(format!("namespaces ({processes}mount, net, ipc, uts, cgroup)"));
    }
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(flags | CloneFlags::CLONE_NEWUSER)?;
    // The process keeps its own numbers inside; group changes are given up, as user_namespaces(7) asks.
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    Ok("namespaces (user, mount, net, ipc, uts, cgroup)".to_string())
}

/// Descriptors by setrlimit(2); the other limits are the control group's. No core file shows what was in memory.
fn limit(config: &Config) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let wanted = config.limits.descriptors;
    if wanted != 0 {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let value = wanted.min(hard);
        setrlimit(Resource::RLIMIT_NOFILE, value, value)?;
    }
    Ok(())
}

/// Gives up what a new user namespace grants within itself.
fn drop_capabilities() -> io::Result<()> {
    /// `struct __user_cap_header_struct` of capset(2).
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two words for each set.
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: capset(2) reads a header and, in version 3, two structs of three words; both live through the call.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Confines the files that can be opened from now on; no TCP address can be bound or connected to, no process outside
/// be signalled. Returns the words, or nothing where the kernel has no Landlock.
fn landlock(role: Role, paths: &Paths) -> Result<Option<String>, SandboxError> {
    let proc = if role == Role::Worker { &WORKER_PROC[..] } else { &WORKER_PROC[..1] };
    let reads: Vec<PathBuf> = paths.reads.iter().cloned().chain(proc.iter().map(PathBuf::from)).collect();
    let shared = (role == Role::Worker).then(|| PathBuf::from("/dev/shm"));
    let writes: Vec<PathBuf> = paths.writes.iter().chain(&paths.nodes).cloned().chain(shared).collect();
    let restrict = || {
        Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?
            .add_rules(path_beneath_rules(&reads, AccessFs::from_read(LANDLOCK)))?
            .add_rules(path_beneath_rules(&writes, AccessFs::from_all(LANDLOCK)))?
            .restrict_self()
    };
    let status = restrict()
        .map_err(|e| SandboxError::Refused { step: "restrict the file system by landlock", what: e.to_string() })?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Some("landlock".to_string()),
        RulesetStatus::PartiallyEnforced => Some("landlock (in part)".to_string()),
        RulesetStatus::NotEnforced => {
            log::warn!("{}: no landlock: this kernel does not have it", role.name());
            None
        }
    })
}

/// Folders that the driver variables name.
fn driver_directories() -> Vec<PathBuf> {
    let values = DRIVER_VARIABLES.iter().filter_map(std::env::var_os);
    let paths: Vec<PathBuf> = values.flat_map(|v| std::env::split_paths(&v).collect::<Vec<_>>()).collect();
    paths.iter().filter_map(|p| if p.is_dir() { Some(p.clone()) } else { p.parent().map(Path::to_path_buf) }).collect()
}

/// Where Mesa caches compiled shaders if the daemon was told a place of the user's.
fn user_cache() -> Vec<PathBuf> {
    ["XDG_CACHE_HOME", "MESA_SHADER_CACHE_DIR"].iter().filter_map(std::env::var_os).map(PathBuf::from).collect()
}

/// The seccomp filter over all threads. Returns the words. Descriptors need no limits of their own here.
pub fn narrow(
    role: Role,
    _listeners: &[std::os::fd::BorrowedFd<'_>],
    _links: &[std::os::fd::BorrowedFd<'_>],
) -> Result<Option<String>, SandboxError> {
    let refused = |e: String| SandboxError::Refused { step: "restrict system calls by seccomp", what: e };
    for program in calls::filters(role).map_err(|e| refused(e.to_string()))? {
        seccompiler::apply_filter_all_threads(&program).map_err(|e| refused(e.to_string()))?;
    }
    Ok(Some("seccomp".to_string()))
}

/// Runs `start`, which starts a process, so that this process is the first of a PID namespace of its own and sees no
/// other one. Where that cannot be had (an ordinary user, some containers), it runs as ever; the role says in words
/// what is in force. For a process with one thread.
pub fn apart<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = std::fs::File::open("/proc/self/ns/pid");
    let Ok(own) = own.and_then(|own| unshare(CloneFlags::CLONE_NEWPID).map(|()| own).map_err(io::Error::from)) else {
        return start();
    };
    let started = start();
    match nix::sched::setns(&own, CloneFlags::CLONE_NEWPID) {
        Ok(()) => started,
        // The next process would be born into a namespace that ends with this one.
        Err(Errno::EPERM | Errno::EINVAL) | Err(_) => Err(io::Error::other("cannot leave the role's PID namespace")),
    }
}
