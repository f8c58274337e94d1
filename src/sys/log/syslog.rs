//! syslog(3) through the `syslog` crate, with what that crate lacks: it connects again.
//!
//! newsyslog(8) and a restart of syslogd(8) replace the log socket; the crate's connected socket then fails for ever.
//! Here a failed send opens the socket again, at most once in [`RETRY_AFTER`]; `ENOBUFS`, which BSD answers while the
//! daemon's buffer is full, is waited out briefly. Lines that cannot be sent are counted and the count is told when
//! sending works.

use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use log::Level;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// A log socket that is away is looked for this often.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long, and how often, to wait for a full buffer before a line is given up.
const BUFFER_WAIT: Duration = Duration::from_millis(2);
const BUFFER_TRIES: u32 = 5;

/// A connection to the log daemon that survives the log daemon.
pub struct Syslog {
    facility: Facility,
    /// `None`: the places where log daemons listen on this system.
    path: Option<PathBuf>,
    logger: Option<Logger<LoggerBackend, Formatter3164>>,
    tried: Option<Instant>,
    lost: u64,
}

impl Syslog {
    /// For a facility by its name in syslog.conf(5). `None` if there is no such facility.
    pub fn new(facility: &str) -> Option<Syslog> {
        let facility = facility.parse().ok()?;
        Some(Syslog { facility, path: None, logger: None, tried: None, lost: 0 })
    }

    /// Sends one line, or counts it as lost. Blocks for a few milliseconds at most.
    pub fn send(&mut self, level: Level, line: &str) {
        let reconnected = self.logger.is_none() && self.connect();
        if self.try_send(level, line).is_ok() {
            self.tell_losses();
            return;
        }
        // The socket was replaced since the last line: one fresh try, unless this was one.
        self.logger = None;
        if reconnected || !self.connect() || self.try_send(level, line).is_err() {
            self.lost += 1;
        } else {
            self.tell_losses();
        }
    }

    fn tell_losses(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 && self.try_send(Level::Warn, &format!("parent: {lost} log lines were lost")).is_err() {
            self.lost = lost;
        }
    }

    fn connect(&mut self) -> bool {
        if self.tried.is_some_and(|t| t.elapsed() < RETRY_AFTER) {
            return false;
        }
        let formatter = Formatter3164 {
            facility: self.facility,
            hostname: None,
            process: "gamegend".to_string(),
            pid: std::process::id(),
        };
        self.logger = match &self.path {
            Some(path) => syslog::unix_custom(formatter, path).ok(),
            None => syslog::unix(formatter).ok(),
        };
        // Only a failure makes the next try wait.
        self.tried = self.logger.is_none().then(Instant::now);
        self.logger.is_some()
    }

    fn try_send(&mut self, level: Level, line: &str) -> io::Result<()> {
        let Some(logger) = self.logger.as_mut() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        for _ in 0..BUFFER_TRIES {
            let sent = match level {
                Level::Error => logger.err(line),
                Level::Warn => logger.warning(line),
                Level::Info => logger.info(line),
                Level::Debug | Level::Trace => logger.debug(line),
            };
            match sent {
                Ok(()) => return Ok(()),
                Err(e) if is_full(&e) => sleep(BUFFER_WAIT),
                Err(e) => return Err(io::Error::other(e.to_string())),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// True if the error's source is `ENOBUFS`.
fn is_full(error: &syslog::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        if e.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) == Some(nix::errno::Errno::ENOBUFS as i32) {
            return true;
        }
        source = e.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    fn line(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("not zero");
        let n = socket.recv(&mut buffer).expect("a line within five seconds");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    #[test]
    fn the_log_survives_a_new_log_socket() {
        let path = std::env::temp_dir().join(format!("gamegend-syslog-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let first = UnixDatagram::bind(&path).expect("a free path");
        let mut log = Syslog::new("local3").expect("a facility");
        log.path = Some(path.clone());
        log.send(Level::Info, "one");
        let text = line(&first);
        // local3 is 19, info is 6: RFC 3164 says 19 * 8 + 6.
        assert!(text.starts_with("<158>") && text.ends_with("one"), "{text}");

        drop(first);
        std::fs::remove_file(&path).expect("ours");
        log.send(Level::Info, "nobody listens");
        log.send(Level::Info, "still nobody");
        assert_eq!(log.lost, 2);

        let second = UnixDatagram::bind(&path).expect("a free path");
        sleep(RETRY_AFTER);
        log.send(Level::Error, "two");
        assert!(line(&second).ends_with("two"));
        assert!(line(&second).ends_with("2 log lines were lost"));
        std::fs::remove_file(&path).expect("ours");
        assert!(Syslog::new("nonsense").is_none());
    }
}
