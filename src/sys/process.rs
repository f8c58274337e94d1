//! What a process is to the system: its title, its open descriptors, its tie to the parent.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Pid;

/// Descriptors are looked for below this number: above the limit that systems grant by default, and asked in
/// milliseconds.
const FDS_SCANNED: RawFd = 65_536;

/// Why a role refuses to start with what it was given.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("descriptor {0} is not an open socket; roles are started by the parent only")]
    NoLink(RawFd),
    #[error("open descriptors {found:?}, expected {expected:?}")]
    Descriptors { found: Vec<RawFd>, expected: Vec<RawFd> },
}

/// Takes over the inherited link to the parent after checking that nothing else is open.
///
/// Errors: `NoLink` if `fd` is no open socket, `Descriptors` if anything but 0, 1, 2 and `fd` is open.
pub fn inherited_link(fd: RawFd) -> Result<OwnedFd, StartError> {
    let expected = vec![0, 1, 2, fd];
    let found = open_descriptors();
    if fd < 3 || !found.contains(&fd) {
        return Err(StartError::NoLink(fd));
    }
    if found != expected {
        return Err(StartError::Descriptors { found, expected });
    }
    // SAFETY: from_raw_fd needs an open descriptor that nobody else owns: it was just found open, standard streams are
    // excluded, and this process has opened nothing but them so far.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set_inherited(fd.as_fd(), false).map_err(|_| StartError::NoLink(expected[3]))?;
    match nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::SockType) {
        Ok(nix::sys::socket::SockType::Stream) => Ok(fd),
        _ => Err(StartError::NoLink(expected[3])),
    }
}

/// Takes over a descriptor by its number, for a program that replaced another one in the same process: nobody else in
/// it can own one that it was told of on its command line. To be called once for each number, before anything else
/// opens a descriptor.
///
/// Errors: `NotFound` if it is a standard stream or not open.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 3 || !open_descriptors().contains(&fd) {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("descriptor {fd} is not there to be taken over")));
    }
    // SAFETY: from_raw_fd needs an open descriptor that nobody else owns: it was just found open, and the caller says
    // by its command line that it was left for this.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set_inherited(fd.as_fd(), false)?;
    Ok(fd)
}

/// Whether a child of this process was stopped by a signal since the last time this was asked. Its exit is left to be
/// waited for.
pub fn was_stopped(pid: u32) -> bool {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
    matches!(waitid(Id::Pid(Pid::from_raw(pid as i32)), flags), Ok(WaitStatus::Stopped(..)))
}

/// Lets a stopped process run again.
pub fn go_on(pid: u32) {
    // It fails only for a process that is gone, whose end is seen otherwise.
    let _ = nix::sys::signal::kill(Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGCONT);
}

/// Numbers of the open descriptors of this process, rising.
pub fn open_descriptors() -> Vec<RawFd> {
    let open = |fd: &RawFd| {
        // SAFETY: borrow_raw needs a descriptor that stays open while borrowed. F_GETFD only asks whether the number is
        // open and is defined for every number, so the borrow is never used to reach a file.
        let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
        fcntl(fd, FcntlArg::F_GETFD).is_ok()
    };
    (0..FDS_SCANNED).filter(open).collect()
}

/// Marks what this process got from its caller, standard streams apart, as closed on exec, so that no role inherits it.
/// For the very start of the parent.
pub fn keep_descriptors_here() -> io::Result<()> {
    for fd in open_descriptors().into_iter().filter(|&fd| fd > 2) {
        // SAFETY: borrow_raw needs a descriptor that stays open while borrowed: it was just found open. F_SETFD is
        // defined for every number, so one that another thread closed meanwhile gives EBADF and nothing else.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        match fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
            Ok(_) | Err(nix::errno::Errno::EBADF) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Says whether a descriptor stays open over exec.
pub fn set_inherited(fd: BorrowedFd<'_>, inherited: bool) -> io::Result<()> {
    let flags = if inherited { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// The process that started this one, or whoever took its place.
pub fn parent() -> Pid {
    nix::unistd::getppid()
}

/// Asks the kernel to kill this process when `parent` ends, and checks that it has not ended before.
///
/// On Linux the tie is lost when the process changes its user, so it is made again after that.
/// Errors: `BrokenPipe` if the parent is another one already; what prctl(2) or procctl(2) returns.
pub fn die_with_parent(parent: Pid) -> io::Result<()> {
    os::die_with_parent()?;
    if self::parent() == parent {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::BrokenPipe, "the parent has ended"))
}

/// Sets what ps(1) shows, as far as the system can: `gamegend: worker`.
pub fn set_title(role: &str) {
    os::set_title(role);
}

/// The processor as the system names it, or its architecture where the system does not tell.
pub fn processor_name() -> String {
    os::processor_name().unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

#[cfg(target_os = "linux")]
mod os {
    use super::*;

    pub fn processor_name() -> Option<String> {
        let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = text.lines().find(|l| l.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_string())
    }

    pub fn die_with_parent() -> io::Result<()> {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        Ok(())
    }

    /// The name of the thread, which ps(1) shows as the command; 15 bytes of it.
    pub fn set_title(role: &str) {
        if let Ok(title) = std::ffi::CString::new(format!("gamegend:{role}")) {
            // PR_SET_NAME has no way to fail but a bad pointer.
            let _ = nix::sys::prctl::set_name(&title);
        }
    }
}

#[cfg(target_os = "freebsd")]
mod os {
    use super::*;

    pub fn die_with_parent() -> io::Result<()> {
        let mut signal = libc::SIGKILL;
        // SAFETY: procctl(2) PROC_PDEATHSIG_CTL reads one int; P_PID with id 0 is the calling process.
        let done = unsafe { libc::procctl(libc::P_PID, 0, libc::PROC_PDEATHSIG_CTL, (&raw mut signal).cast()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// sysctl(3) `hw.model`.
    pub fn processor_name() -> Option<String> {
        let mut text = [0u8; 128];
        let mut bytes = text.len();
        // SAFETY: sysctlbyname(3) writes at most `bytes` bytes to the buffer, and their count to `bytes`; nothing is
        // set.
        let done = unsafe {
            libc::sysctlbyname(c"hw.model".as_ptr(), text.as_mut_ptr().cast(), &raw mut bytes, std::ptr::null(), 0)
        };
        let name = std::ffi::CStr::from_bytes_until_nul(&text).ok()?.to_str().ok()?;
        (done == 0 && !name.is_empty()).then(|| name.to_string())
    }

    pub fn set_title(role: &str) {
        if let Ok(role) = std::ffi::CString::new(role) {
            // SAFETY: setproctitle(3) reads a format string and one string for its %s, both NUL-terminated and alive.
            unsafe { libc::setproctitle(c"%s".as_ptr(), role.as_ptr()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn open_descriptors_are_found() {
        let (a, b) = io::pipe().expect("a pipe");
        let open = open_descriptors();
        assert!(open.contains(&a.as_raw_fd()) && open.contains(&b.as_raw_fd()));
        assert!(open.is_sorted());
    }

    #[test]
    fn a_wrong_link_is_refused() {
        assert!(matches!(inherited_link(1), Err(StartError::NoLink(1))));
        assert!(matches!(inherited_link(FDS_SCANNED + 5), Err(StartError::NoLink(_))));
    }
}
