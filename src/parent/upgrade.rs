//! Upgrade in place: this process becomes the program that now lies at its path, with its listening sockets, its pid
//! file's lock and its number.
//!
//! ```text
//!  SIGUSR2 -> new program: -n -> worker drains (snapshots) -> api writes the sessions down -> exec(2) -> roles start
//! ```
//!
//! The listeners stay open all the time, so a client that connects meanwhile waits in their queues and is never
//! refused. Sessions come back from their checkpoints. If anything is wrong before exec(2), this program goes on.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Args;
use super::prepare::Prepared;
use crate::sys::process::{inherited, set_inherited};

/// A new program that does not judge the configuration within this time is not taken.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// Numbers of the descriptors that a new program takes over: `--adopt HTTP,LOCAL,PID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    pub http: RawFd,
    pub local: RawFd,
    pub pid_file: RawFd,
}

impl std::str::FromStr for Adopted {
    type Err = String;

    fn from_str(text: &str) -> Result<Adopted, String> {
        let numbers: Vec<RawFd> = text.split(',').filter_map(|n| n.parse().ok()).filter(|n| *n > 2).collect();
        match numbers[..] {
            [http, local, pid_file] => Ok(Adopted { http, local, pid_file }),
            _ => Err("three numbers of descriptors, set by the program that is replaced".to_string()),
        }
    }
}

/// What was taken over, as owned descriptors.
#[derive(Debug)]
pub struct Inheritance {
    pub http: OwnedFd,
    pub local: OwnedFd,
    pub pid_file: OwnedFd,
}

impl Adopted {
    /// Takes the descriptors. Errors: what is not there, or not what it should be.
    pub fn take(self) -> io::Result<Inheritance> {
        Ok(Inheritance {
            http: inherited(self.http)?,
            local: inherited(self.local)?,
            pid_file: inherited(self.pid_file)?,
        })
    }
}

/// Asks the program at `path` whether it would run with this configuration. Errors: why not, in words.
pub fn check(path: &Path, config: Option<&Path>) -> Result<(), String> {
    let mut command = Command::new(path);
    command.arg("-n").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(config) = config {
        command.arg("-c").arg(config);
    }
    let mut child = command.spawn().map_err(|e| format!("{}: {e}", path.display()))?;
    let begin = Instant::now();
    while begin.elapsed() < CHECK_LIMIT {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                let mut said = String::new();
                if let Some(mut stderr) = child.stderr.take() {
                    // What cannot be read is not needed to know that it failed.
                    let _ = io::Read::read_to_string(&mut stderr, &mut said);
                }
                return Err(format!("{} -n ended with {status}: {}", path.display(), said.trim()));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("{} -n did not end within {} s", path.display(), CHECK_LIMIT.as_secs()))
}

/// Becomes the program at `path`. Comes back only with the reason why not.
pub fn exec(path: &Path, args: &Args, config: Option<&Path>, prepared: &Prepared) -> io::Error {
    let fds = [prepared.http.as_fd(), prepared.local.listener.as_fd(), prepared.pid_file.as_fd()];
    let adopt = fds.map(|fd| fd.as_raw_fd().to_string()).join(",");
    let mut words: Vec<Vec<u8>> = vec![path.as_os_str().as_encoded_bytes().to_vec()];
    if let Some(config) = config {
        words.extend([b"-c".to_vec(), config.as_os_str().as_encoded_bytes().to_vec()]);
    }
    for (flag, given) in [("-d", args.foreground), ("-f", args.attached), ("-v", args.verbose)] {
        words.extend(given.then(|| flag.as_bytes().to_vec()));
    }
    words.extend([b"--adopt".to_vec(), adopt.into_bytes()]);
    let become_it = || -> io::Result<()> {
        let words = words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        for fd in fds {
            set_inherited(fd, true)?;
        }
        // A signal that comes meanwhile waits for the new program's handlers.
        crate::sys::signals::hold()?;
        nix::unistd::execv(&words[0], &words)?;
        Ok(())
    };
    let error = become_it().err().unwrap_or_else(|| io::Error::other("execv came back"));
    let _ = crate::sys::signals::release();
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_told_by_number() {
        assert_eq!("5,6,7".parse(), Ok(Adopted { http: 5, local: 6, pid_file: 7 }));
        for wrong in ["", "5,6", "5,6,x", "1,6,7", "5,6,7,8"] {
            assert!(wrong.parse::<Adopted>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_program_that_refuses_the_configuration_is_not_taken() {
        assert_eq!(check(Path::new("/bin/true"), None), Ok(()));
        let said = check(Path::new("/bin/false"), None).expect_err("it fails");
        assert!(said.contains("/bin/false -n ended with"), "{said}");
        assert!(check(Path::new("/nonexistent"), None).is_err());
    }
}
