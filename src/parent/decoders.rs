//! Decoders: processes that read one upload each. The api talks to them; the parent only starts and buries them.
//!
//! A decoder opens no file, so what it needs of the model's folder, the network that finds joints, is on its standard
//! input when it starts: a copy in memory, which it can read and not change.

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::child;
use crate::exit::chain;
use crate::proto::decode::{JUDGE_FILES, JudgeFiles};
use crate::proto::limits::JUDGE_BYTES_MAX;
use crate::sys::log;
use crate::sys::sandbox::{DECODER_USER_VARIABLE, Reach, Role};
use crate::sys::shm::SharedMemory;
use crate::sys::user::{self, Identity};

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
    /// Starts one with its end of a link and the pose judge of the folder `model`. `user` is whom it becomes if this
    /// process is root. One that cannot be started closes the link, which is how the api hears of it.
    pub fn start(&mut self, program: &Path, user: Option<&Identity>, model: &Path, link: OwnedFd) {
        if self.running.len() >= COUNT_MAX {
            return ::log::warn!("decoder: {COUNT_MAX} run already");
        }
        let extra: Vec<(&str, &str)> = user.iter().map(|u| (DECODER_USER_VARIABLE, u.name.as_str())).collect();
        let input = judge(model, user).unwrap_or_else(|e| {
            ::log::warn!("decoder: no pose judge: {}", chain(&e));
            Stdio::null()
        });
        match child::start(Role::Decoder, program, ::log::max_level(), &extra, &link, input) {
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

/// The pose judge of a model's folder, to be read by a decoder; nothing if the folder has none.
fn judge(model: &Path, user: Option<&Identity>) -> io::Result<Stdio> {
    let model = Reach::new(model)?;
    let [config, weights] = JUDGE_FILES.map(|name| model.path().join(name));
    let read = || -> io::Result<Option<JudgeFiles>> {
        if !config.is_file() || !weights.is_file() {
            return Ok(None);
        }
        Ok(Some(JudgeFiles { config: whole(&config)?, weights: whole(&weights)? }))
    };
    // With the rights of whoever may read the model, not with those of this process.
    let Some(files) = user::acting_as(user, read).map_err(io::Error::other)?? else { return Ok(Stdio::null()) };
    let bytes = postcard::to_stdvec(&files).map_err(io::Error::other)?;
    if bytes.len() > JUDGE_BYTES_MAX {
        return Err(io::Error::other(format!("its files have more than {JUDGE_BYTES_MAX} bytes")));
    }
    let memory = SharedMemory::create("gamegend-judge", bytes.len())?;
    memory.write(0, &bytes);
    Ok(memory.read_only_fd()?.into())
}

/// A whole file that is not too large to be a judge's.
fn whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(JUDGE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
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
