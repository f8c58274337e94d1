//! The log: roles write lines to the parent, the parent writes syslog(3) or its standard error.
//!
//! A role's logger ([`init_role`]) prints `<level> text` on standard error, which is a pipe to the parent; so a jail
//! needs no log socket. The parent's logger ([`init_parent`]) stamps role and time. Levels: `error` someone must act,
//! `warn` something is degraded, `info` changes of state, `debug` everything else.

mod json;
mod syslog;

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};

pub use self::json::JsonFile;
pub use self::syslog::Syslog;

/// Name of the environment variable by which a role learns the level.
pub const LEVEL_VARIABLE: &str = "GAMEGEND_LOG";

/// A longer line is cut: syslog(3) datagrams are limited, and a role must not flood the log with one line.
pub const LINE_BYTES_MAX: usize = 2000;

/// Crates whose chatter is of no use to an operator below `warn`.
const QUIET: [&str; 6] = ["hyper", "tokio", "tungstenite", "tokio_tungstenite", "axum", "gpu_allocator"];

static PARENT: ParentLog = ParentLog { out: Mutex::new(None), file: Mutex::new(None) };
static ROLE: RoleLog = RoleLog;
/// True once a logger is installed; both kinds in one process would be a bug that tests could still do.
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Where the parent writes.
pub enum Output {
    /// Standard error, each line with the time: foreground.
    Stderr,
    /// syslog(3): background.
    Syslog(Box<Syslog>),
}

struct RoleLog;

struct ParentLog {
    out: Mutex<Option<Output>>,
    file: Mutex<Option<JsonFile>>,
}

/// Sends this role's log to the parent at the level that the parent chose.
pub fn init_role() {
    let level = std::env::var(LEVEL_VARIABLE).ok().and_then(|l| l.parse().ok()).unwrap_or(LevelFilter::Info);
    install(&ROLE);
    log::set_max_level(level);
}

/// Writes this process's log, and what roles send it, to `output`. May be called again to change the output.
pub fn init_parent(output: Output, level: LevelFilter) {
    *PARENT.out.lock().unwrap_or_else(|e| e.into_inner()) = Some(output);
    install(&PARENT);
    log::set_max_level(level);
}

/// Writes every line to `file` as well from now on, or to none.
pub fn also_to(file: Option<JsonFile>) {
    *PARENT.file.lock().unwrap_or_else(|e| e.into_inner()) = file;
}

fn install(logger: &'static dyn Log) {
    if !INSTALLED.swap(true, Ordering::SeqCst) {
        // It fails only if a logger is set, and the flag says that none is.
        let _ = log::set_logger(logger);
    }
}

/// Writes a line that a role sent, `<level> text`; a line without a level (a panic, a driver's message) is a warning.
pub fn relay(role: &str, line: &str) {
    let (level, text) = split_level(line);
    if level <= log::max_level() && !text.trim().is_empty() {
        PARENT.write(level, role, text);
    }
}

/// The level of a role's line and its text.
fn split_level(line: &str) -> (Level, &str) {
    let tagged = line.strip_prefix('<').and_then(|rest| rest.split_once("> "));
    match tagged.and_then(|(level, text)| Some((level.parse().ok()?, text))) {
        Some(found) => found,
        None => (Level::Warn, line),
    }
}

fn wanted(metadata: &Metadata<'_>) -> bool {
    let quiet = || QUIET.iter().any(|q| metadata.target().split("::").next() == Some(q));
    metadata.level() <= log::max_level() && (metadata.level() <= Level::Warn || !quiet())
}

/// One line, cut to its limit at a character's boundary, control characters replaced: a client's text may be in it.
fn clean(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > LINE_BYTES_MAX {
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        line.push_str(" ...");
    }
    line
}

impl Log for RoleLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        wanted(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            let line = format!("<{level}> {}\n", clean(&record.args().to_string()));
            // Nobody is left to tell if the parent's pipe is gone; the role ends with its link.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

impl ParentLog {
    fn write(&self, level: Level, role: &str, text: &str) {
        let text = clean(text);
        let written = match self.file.lock().unwrap_or_else(|e| e.into_inner()).as_mut() {
            Some(file) => file.write(level, role, &text),
            None => Ok(()),
        };
        self.write_out(level, &format!("{role}: {text}"));
        if let Err(e) = written {
            self.write_out(Level::Error, &format!("parent: log.file cannot be written: {e}"));
        }
    }

    fn write_out(&self, level: Level, line: &str) {
        match self.out.lock().unwrap_or_else(|e| e.into_inner()).as_mut() {
            Some(Output::Syslog(syslog)) => syslog.send(level, line),
            Some(Output::Stderr) => {
                let level = level.as_str().to_ascii_lowercase();
                // A closed standard error is no reason to end a daemon.
                let _ = writeln!(std::io::stderr().lock(), "{} {level} {line}", utc(SystemTime::now()));
            }
            None => {}
        }
    }
}

impl Log for ParentLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        wanted(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.write(record.level(), "parent", &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// RFC 3339 in UTC with milliseconds; the calendar is Howard Hinnant's `civil_from_days` arithmetic.
fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = ((since.as_secs() / 86_400) as i64, since.as_secs() % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_rfc_3339() {
        let at = |s: u64| utc(UNIX_EPOCH + Duration::from_millis(s * 1000 + 7));
        assert_eq!(at(0), "1970-01-01T00:00:00.007Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59.007Z");
    }

    #[test]
    fn a_line_carries_its_level() {
        assert_eq!(split_level("<info> model loaded"), (Level::Info, "model loaded"));
        assert_eq!(split_level("thread 'main' panicked"), (Level::Warn, "thread 'main' panicked"));
        assert_eq!(split_level("<b> bold"), (Level::Warn, "<b> bold"));
    }

    #[test]
    fn a_line_is_one_line_of_bounded_length() {
        assert_eq!(clean("a\nb\x1b[1m"), "a b [1m");
        let long = clean(&"ä".repeat(LINE_BYTES_MAX));
        assert!(long.len() <= LINE_BYTES_MAX + 4 && long.ends_with(" ..."));
    }
}
