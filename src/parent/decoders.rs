//! Decoders: processes that read one upload each. The api talks to them; the parent only starts and buries them.

use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use super::child;
use crate::sys::log;
use crate::sys::sandbox::{DECODER_USER_VARIABLE, Role};
use crate::sys::user::Identity;

/// Decoders at once. The api asks for fewer; one that was taken over must not start more.
const COUNT_MAX: usize = 4;
/// A decoder that lives longer is killed: a job takes seconds, and its limit of processor time is shorter.
const LIFE_MAX: Duration = Duration::from_secs(30);
/// Bytes of a decoder's log lines that are passed on.
const LOG_BYTES_MAX: u64 = 16 * 1024;

struct Decoder {
    process: Child,
    log: PipeReader,
    deadline: Instant,
}

/// Those that run.
#[derive(Default)]
pub struct Decoders {
    running: Vec<Decoder>,
}

impl Decoders {
    /// Starts one with its end of a link. `user` is whom it becomes if this process is root. One that cannot be started
    /// closes the link, which is how the api hears of it.
    pub fn start(&mut self, program: &Path, user: Option<&Identity>, link: OwnedFd) {
        if self.running.len() >= COUNT_MAX {
            return ::log::warn!("decoder: {COUNT_MAX} run already");
        }
        let extra: Vec<(&str, &str)> = user.iter().map(|u| (DECODER_USER_VARIABLE, u.name.as_str())).collect();
        match child::start(Role::Decoder, program, ::log::max_level(), &extra, &link) {
            Ok((process, log)) => {
                ::log::debug!("decoder is process {}", process.id());
                self.running.push(Decoder { process, log, deadline: Instant::now() + LIFE_MAX });
            }
            Err(e) => ::log::error!("decoder cannot be started: {e}"),
        }
    }

    /// Buries those that have ended and kills those that do not end.
    pub fn look_after(&mut self) {
        self.running.retain_mut(|decoder| {
            if Instant::now() >= decoder.deadline {
                ::log::warn!("decoder {}: not in time; it is killed", decoder.process.id());
                // It fails only for a process that has ended, and then there is nothing to kill.
                let _ = decoder.process.kill();
            }
            match decoder.process.try_wait() {
                Ok(None) => true,
                Ok(Some(status)) => {
                    decoder.relay_log();
                    if !status.success() {
                        ::log::warn!("decoder {} ended: {status}", decoder.process.id());
                    }
                    false
                }
                Err(_) => false,
            }
        });
    }

    /// How many run.
    pub fn count(&self) -> usize {
        self.running.len()
    }

    /// Time until one must be killed.
    pub fn rest(&self, now: Instant) -> Option<Duration> {
        self.running.iter().map(|d| d.deadline.saturating_duration_since(now)).min()
    }
}

impl Decoder {
    fn relay_log(&mut self) {
        let mut text = Vec::new();
        // The pipe does not block; what is there when the process has ended is all there will be.
        let _ = self.log.by_ref().take(LOG_BYTES_MAX).read_to_end(&mut text);
        for line in String::from_utf8_lossy(&text).lines() {
            log::relay(Role::Decoder.name(), line);
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            // Killed just above; nothing but this wait reaps it.
            let _ = self.process.wait();
        }
    }
}
