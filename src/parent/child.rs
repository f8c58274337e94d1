//! One process of a role: starting it, its link, its log lines, its end.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::supervise::End;
use crate::sys::link::Link;
use crate::sys::log;
use crate::sys::process::{go_on, set_inherited, was_stopped};
use crate::sys::sandbox::{Role, apart};

/// Variables of the parent's environment that a role gets, and prefixes of such; everything else is cleared.
const ENVIRONMENT: [&str; 6] = ["PATH", "HOME", "LANG", "TZ", "XDG_CACHE_HOME", "RUST_BACKTRACE"];
const ENVIRONMENT_PREFIXES: [&str; 3] = ["VK_", "MESA_", "GAMEGEND_"];

/// A role that does not read or finish a message for this long is taken for dead.
const LINK_LIMIT: Duration = Duration::from_secs(2);

/// Bytes of an unfinished log line that are kept.
const LOG_BUFFER_BYTES_MAX: usize = 64 * 1024;

/// A running role.
#[derive(Debug)]
pub struct RoleProcess {
    role: Role,
    child: Child,
    pub link: Link,
    /// False once the role closed its end: there is nothing left to poll for.
    pub link_open: bool,
    log: io::PipeReader,
    unfinished: Vec<u8>,
}

impl RoleProcess {
    /// Starts `program` again as `role`. `extra`: variables for this role alone.
    ///
    /// Nothing runs between fork and exec but what the standard library does: the child sets itself up.
    pub fn spawn(role: Role, program: &Path, level: ::log::LevelFilter, extra: &[(&str, &str)]) -> io::Result<Self> {
        let (link, theirs) = Link::pair()?;
        link.set_timeout(LINK_LIMIT)?;
        let theirs: OwnedFd = theirs.as_fd().try_clone_to_owned()?;
        let (child, log) = start(role, program, level, extra, &theirs, Stdio::null())?;
        Ok(RoleProcess { role, child, link, link_open: true, log, unfinished: Vec::new() })
    }

    /// The process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it go on if somebody stopped it: clients wait for it, and whoever wants to look at it has a debugger.
    pub fn keep_going(&mut self) {
        if was_stopped(self.pid()) {
            ::log::warn!("{} was stopped by a signal; it is let go on", self.role.name());
            go_on(self.pid());
        }
    }

    /// Where its log lines arrive.
    pub fn log_fd(&self) -> BorrowedFd<'_> {
        self.log.as_fd()
    }

    /// Passes on the log lines that have arrived. Does not wait.
    pub fn relay_log(&mut self) {
        let mut bytes = [0; 8192];
        while let Ok(n @ 1..) = self.log.read(&mut bytes) {
            self.unfinished.extend_from_slice(&bytes[..n]);
            while let Some(end) = self.unfinished.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.unfinished.drain(..=end).collect();
                log::relay(self.role.name(), &String::from_utf8_lossy(&line[..end]));
            }
            if self.unfinished.len() > LOG_BUFFER_BYTES_MAX {
                self.finish_log();
            }
        }
    }

    fn finish_log(&mut self) {
        let rest = std::mem::take(&mut self.unfinished);
        log::relay(self.role.name(), &String::from_utf8_lossy(&rest));
    }

    /// Kills it. Its end is seen by [`ended`](Self::ended) as ever.
    pub fn kill(&mut self) {
        // It fails only for a process that has been waited for, and then there is nothing to kill.
        let _ = self.child.kill();
    }

    /// How it ended, once it has; its last log lines are passed on before.
    pub fn ended(&mut self) -> Option<End> {
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) => return None,
            // Nobody else waits for our children; if the kernel says so all the same, it is gone.
            Err(_) => std::process::ExitStatus::from_raw(0),
        };
        self.relay_log();
        self.finish_log();
        Some(match status.signal() {
            Some(signal) => End::Signal(signal),
            None => End::Code(status.code().unwrap_or_default()),
        })
    }
}

impl Drop for RoleProcess {
    /// A parent that ends in an unforeseen way leaves no role behind.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
            // Killed just above; nothing but this wait reaps it.
            let _ = self.child.wait();
        }
    }
}

/// Starts `program` again as `role` with `link` as its link to whoever asked, and `input` to read. Answers where its
/// log lines arrive, too.
pub fn start(
    role: Role,
    program: &Path,
    level: ::log::LevelFilter,
    extra: &[(&str, &str)],
    link: &OwnedFd,
    input: Stdio,
) -> io::Result<(Child, io::PipeReader)> {
    let (log, log_theirs) = io::pipe()?;
    fcntl(&log, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;

    let mut command = Command::new(program);
    command.args(["--role", role.name(), "--link", &link.as_raw_fd().to_string()]);
    command.env_clear();
    for (key, value) in std::env::vars_os().filter(|(key, _)| is_passed_on(&key.to_string_lossy())) {
        command.env(key, value);
    }
    command.env(log::LEVEL_VARIABLE, level.as_str());
    command.envs(extra.iter().copied());
    command.stdin(input).stdout(log_theirs.try_clone()?).stderr(log_theirs);
    // A group of its own: an interrupt from the terminal is for the parent, which then ends its roles in order.
    command.process_group(0).current_dir("/");
    // The parent has one thread, so no other process can be started while the descriptor is inheritable.
    set_inherited(link.as_fd(), true)?;
    Ok((apart(|| command.spawn())?, log))
}

fn is_passed_on(key: &str) -> bool {
    ENVIRONMENT.contains(&key) || ENVIRONMENT_PREFIXES.iter().any(|p| key.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_an_allow_list() {
        let passed = ["PATH", "VK_DRIVER_FILES", "MESA_SHADER_CACHE_DIR", "GAMEGEND_LOG"];
        assert!(passed.iter().all(|k| is_passed_on(k)));
        assert!(!["LD_PRELOAD", "LD_LIBRARY_PATH", "AWS_SECRET_ACCESS_KEY", "PATHS"].iter().any(|k| is_passed_on(k)));
    }
}
