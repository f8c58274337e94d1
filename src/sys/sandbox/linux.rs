//! Linux: namespaces (unshare(2)), Landlock (landlock(7)) and seccomp(2).
//!
//! Older kernels and containers lack some of these. Each one that is missing is left out of the words that status and
//! log show; none of them is silently taken for granted.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, path_beneath_rules,
};
use nix::sched::{CloneFlags, unshare};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::super::user::Identity;
use super::{Fences, Role, SandboxError, cache_directory, devices};
use crate::config::Config;

/// The Landlock version whose rules are asked for; older kernels enforce the part that they know.
const LANDLOCK: ABI = ABI::V5;

/// What a Vulkan loader, its drivers and the C library read, beside the model.
const WORKER_READS: [&str; 14] = [
    "/usr",
    "/lib",
    "/lib64",
    "/etc/vulkan",
    "/etc/ld.so.cache",
    "/etc/drirc",
    "/etc/nvidia",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/driver",
    "/proc/sys",
    "/proc/devices",
    "/sys",
];

/// Variables with paths of drivers and layers outside [`WORKER_READS`], set by whoever starts the daemon.
const DRIVER_VARIABLES: [&str; 5] =
    ["VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_LAYER_PATH", "VK_ADD_LAYER_PATH"];

/// Nodes without a device behind them, for both roles.
const PLAIN_NODES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"];

/// System calls that neither role makes once it runs. Allowing all others is the weaker choice, made because drivers of
/// many vendors run in the worker; what is listed is what a hijacked process would want.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_personality,
];

/// Namespaces and Landlock, while the process still is who it was started as.
pub fn fence(role: Role, config: &Config, who: Option<&Identity>) -> Result<Fences, SandboxError> {
    let mut in_force = Vec::new();
    match leave_namespaces(who.is_some()) {
        Ok(words) => in_force.push(words.to_string()),
        Err(e) => log::warn!("{}: no namespaces: {e}", role.name()),
    }
    // Landlock and seccomp ask for it, and it ends every set-user-id way back.
    nix::sys::prctl::set_no_new_privs()
        .map_err(|e| SandboxError::System { step: "forbid new privileges", source: e.into() })?;
    let nodes = devices::nodes(Path::new("/dev"));
    let groups = if role == Role::Worker && who.is_some() { devices::groups(&nodes) } else { Vec::new() };
    in_force.extend(landlock(role, config, &nodes)?);
    Ok(Fences { in_force, groups })
}

/// Leaves the network, System V and POSIX message objects, and the host name behind. Listeners that were inherited stay
/// in the network where they were bound, so even the api has none of its own.
fn leave_namespaces(as_root: bool) -> io::Result<&'static str> {
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if as_root {
        unshare(flags | CloneFlags::CLONE_NEWNS)?;
        // Mounts made elsewhere from now on do not show here, nor the other way round.
        let none: Option<&str> = None;
        nix::mount::mount(none, "/", none, nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE, none)?;
        return Ok("namespaces (net, ipc, uts, mount)");
    }
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(flags | CloneFlags::CLONE_NEWUSER)?;
    // The process keeps its own numbers inside; group changes are given up, as user_namespaces(7) asks.
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    Ok("namespaces (user, net, ipc, uts)")
}

/// Confines the files that can be opened from now on; no TCP address can be bound or connected to. Returns the words,
/// or nothing where the kernel has no Landlock.
fn landlock(role: Role, config: &Config, nodes: &[PathBuf]) -> Result<Option<String>, SandboxError> {
    let (reads, writes) = match role {
        Role::Api => (config.http.token_file.iter().cloned().collect::<Vec<_>>(), vec![config.state.directory.clone()]),
        Role::Worker => {
            let mut reads: Vec<PathBuf> = WORKER_READS.iter().map(PathBuf::from).collect();
            reads.push(config.model.path.clone());
            reads.extend(driver_directories());
            let shared = PathBuf::from("/dev/shm");
            (reads, [nodes, &[cache_directory(config), shared], &user_cache()[..]].concat())
        }
    };
    let plain = PLAIN_NODES.iter().map(PathBuf::from);
    let writes: Vec<PathBuf> = writes.into_iter().chain(plain).collect();
    let restrict = || {
        Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
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

/// The seccomp filter over all threads. Returns the words.
pub fn narrow(role: Role) -> Result<Option<String>, SandboxError> {
    let refused = |e: String| SandboxError::Refused { step: "restrict system calls by seccomp", what: e };
    for program in filters(role).map_err(|e| refused(e.to_string()))? {
        seccompiler::apply_filter_all_threads(&program).map_err(|e| refused(e.to_string()))?;
    }
    Ok(Some("seccomp".to_string()))
}

fn filters(role: Role) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = FORBIDDEN.iter().map(|&call| (call, vec![])).collect();
    let argument = |index, op, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value);
    // Sockets: the api opens none at all, drivers may talk to a local daemon of theirs.
    let sockets = match role {
        Role::Api => vec![],
        Role::Worker => vec![SeccompRule::new(vec![argument(0, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?])?],
    };
    rules.insert(libc::SYS_socket, sockets);
    // Threads yes, new user namespaces no: they open much of the kernel to whoever has none of its privileges.
    let namespace = libc::CLONE_NEWUSER as u64;
    let clone = argument(0, SeccompCmpOp::MaskedEq(namespace), namespace)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![clone])?]);
    let arch = std::env::consts::ARCH.try_into()?;
    let errno = |e: libc::c_int| SeccompAction::Errno(e as u32);
    let deny = SeccompFilter::new(rules, SeccompAction::Allow, errno(libc::EPERM), arch)?;
    // The flags of clone3 are behind a pointer that no filter can follow; without it the C library uses clone.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    let clone3 = SeccompFilter::new(clone3, SeccompAction::Allow, errno(libc::ENOSYS), arch)?;
    Ok(vec![deny.try_into()?, clone3.try_into()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compile_for_both_roles() {
        for role in [Role::Api, Role::Worker] {
            let programs = filters(role).expect("the rules are sound");
            assert_eq!(programs.len(), 2);
            assert!(programs[0].len() > FORBIDDEN.len());
        }
    }
}
