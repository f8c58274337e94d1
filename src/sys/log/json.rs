//! The log as a file of JSON lines, for programs: one object a line with `time`, `level`, `role` and `message`.
//!
//! newsyslog(8) and logrotate(8) move the file away and send SIGHUP; the parent then opens the path again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use log::Level;
use serde::Serialize;

use super::utc;

/// The file is the administrator's; its group may read it.
const MODE: u32 = 0o640;

/// An open log file.
#[derive(Debug)]
pub struct JsonFile {
    file: File,
    /// True while writing fails, so that a full disk is told once.
    failing: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    level: String,
    role: &'a str,
    message: &'a str,
}

impl JsonFile {
    /// Opens a file to append to, and makes it if it does not exist.
    pub fn open(path: &Path) -> io::Result<JsonFile> {
        let file = OpenOptions::new().append(true).create(true).mode(MODE).open(path)?;
        Ok(JsonFile { file, failing: false })
    }

    /// Writes one line. Errors: the first of several failures in a row; the log proper has the line all the same.
    pub fn write(&mut self, level: Level, role: &str, message: &str) -> io::Result<()> {
        let level = level.as_str().to_ascii_lowercase();
        let mut line = serde_json::to_vec(&Line { time: utc(SystemTime::now()), level, role, message })?;
        line.push(b'\n');
        // One call, so that lines of a file that several daemons share do not mix.
        match self.file.write_all(&line) {
            Ok(()) => self.failing = false,
            Err(e) if !std::mem::replace(&mut self.failing, true) => return Err(e),
            Err(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_objects_and_a_new_file_is_opened_by_name() {
        let path = std::env::temp_dir().join(format!("gamegend-json-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut file = JsonFile::open(&path).expect("a temporary file");
        file.write(Level::Warn, "worker", "a \"quoted\" word\nand a line").expect("room");
        file.write(Level::Info, "parent", "second").expect("room");
        let text = std::fs::read_to_string(&path).expect("ours");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|l| serde_json::from_str(l).expect("a line is JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["level"], &lines[0]["role"]), (&"warn".into(), &"worker".into()));
        assert_eq!(lines[0]["message"], "a \"quoted\" word\nand a line");
        assert!(lines[1]["time"].as_str().is_some_and(|t| t.ends_with('Z')));
        std::fs::remove_file(&path).expect("ours");
        if cfg!(target_os = "linux") {
            let mut full = JsonFile::open(Path::new("/dev/full")).expect("a device");
            assert!(full.write(Level::Info, "parent", "no room").is_err());
            assert!(full.write(Level::Info, "parent", "told once").is_ok());
        }
    }
}
