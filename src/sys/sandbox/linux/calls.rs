//! The system calls that a role may make once it runs: an allow-list, everything else answers `EPERM`.
//!
//! The worker's list is what the C library, this program and the Vulkan drivers of Mesa and NVIDIA use: memory, files,
//! threads, time, `ioctl`. The list decides what kinds of things can be done at all; to which files is Landlock's and
//! the root's matter.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::super::Role;

/// Calls of every role, whatever their arguments.
#[rustfmt::skip]
const BOTH: &[libc::c_long] = &[
    // Reading and writing what is open.
    libc::SYS_read, libc::SYS_readv, libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2,
    libc::SYS_write, libc::SYS_writev, libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2,
    libc::SYS_lseek, libc::SYS_close, libc::SYS_close_range, libc::SYS_dup, libc::SYS_dup3, libc::SYS_fcntl,
    libc::SYS_flock, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_ftruncate, libc::SYS_fallocate,
    libc::SYS_fadvise64, libc::SYS_pipe2, libc::SYS_eventfd2,
    // Files by name: those that the root and Landlock leave.
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs,
    libc::SYS_fstatfs, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_getdents64,
    libc::SYS_getcwd, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_renameat, libc::SYS_renameat2,
    libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_utimensat, libc::SYS_umask,
    // Memory.
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise, libc::SYS_msync,
    libc::SYS_mincore, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_brk, libc::SYS_memfd_create,
    libc::SYS_membarrier, libc::SYS_mbind, libc::SYS_get_mempolicy, libc::SYS_set_mempolicy,
    // Threads.
    libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq,
    libc::SYS_set_tid_address, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_gettid, libc::SYS_tgkill,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getparam,
    libc::SYS_sched_setparam, libc::SYS_sched_getscheduler, libc::SYS_sched_setscheduler, libc::SYS_sched_getattr,
    libc::SYS_sched_setattr, libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min, libc::SYS_getpriority,
    libc::SYS_setpriority, libc::SYS_getcpu, libc::SYS_prctl, libc::SYS_restart_syscall,
    // Waiting and time.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2, libc::SYS_timerfd_create, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime,
    libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime, libc::SYS_clock_getres,
    libc::SYS_gettimeofday, libc::SYS_times,
    // Signals to itself.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigsuspend, libc::SYS_sigaltstack, libc::SYS_signalfd4,
    // Facts.
    libc::SYS_getpid, libc::SYS_getppid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid,
    libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getgroups, libc::SYS_getpgid, libc::SYS_getsid,
    libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrusage, libc::SYS_getrlimit, libc::SYS_getrandom,
    // Messages and descriptors over links that are open.
    libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_shutdown,
    libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
    libc::SYS_ioctl,
    // The kernel answers ENOSYS to it, see `filters`.
    libc::SYS_clone3,
];

/// Calls by their older names, which this architecture still has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLD: &[libc::c_long] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_getdents,
    libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_chmod, libc::SYS_poll,
    libc::SYS_select, libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_pipe, libc::SYS_dup2, libc::SYS_eventfd,
    libc::SYS_time, libc::SYS_getpgrp, libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// What the api does beside: it takes connections.
const API: &[libc::c_long] = &[libc::SYS_accept, libc::SYS_accept4];

fn argument(index: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)
}

/// The programs in the order in which they must be installed: of two that say no, the kernel answers with the last
/// one's error.
///
/// The flags of clone3(2) are behind a pointer that no filter can follow; told that there is none, the C library uses
/// clone(2), of which only threads are allowed.
pub fn filters(role: Role) -> Result<Vec<BpfProgram>, BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let errno = |e: libc::c_int| SeccompAction::Errno(e as u32);
    let clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    let clone3 = SeccompFilter::new(clone3, SeccompAction::Allow, errno(libc::ENOSYS), arch)?;

    let own = if role == Role::Api { API } else { &[] };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        [BOTH, OLD, own].concat().into_iter().map(|call| (call, vec![])).collect();
    let thread = libc::CLONE_THREAD as u64;
    let thread = argument(0, SeccompCmpOp::MaskedEq(thread), thread)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![thread])?]);
    // Limits of its own, which it cannot raise.
    let itself = argument(0, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![itself])?]);
    if role == Role::Api {
        // The runtime wakes itself through a pair.
        let local = argument(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?;
        rules.insert(libc::SYS_socketpair, vec![SeccompRule::new(vec![local])?]);
    }
    let allowed = SeccompFilter::new(rules, errno(libc::EPERM), SeccompAction::Allow, arch)?;
    Ok(vec![clone3.try_into()?, allowed.try_into()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compile_for_every_role() {
        for role in [Role::Api, Role::Worker, Role::Decoder] {
            let programs = filters(role).expect("the rules are sound");
            assert_eq!(programs.len(), 2);
            assert!(programs[1].len() > BOTH.len());
        }
    }

    #[test]
    fn what_a_hijacked_process_would_want_is_not_in_the_list() {
        let all = [BOTH, OLD, API].concat();
        for call in [
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_kill,
            libc::SYS_setuid,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_process_vm_readv,
            libc::SYS_open_by_handle_at,
            libc::SYS_mknodat,
        ] {
            assert!(!all.contains(&call), "{call}");
        }
    }
}
