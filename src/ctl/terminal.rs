//! The terminal: one line that is rewritten, and single keys without waiting for return.

use std::io::{self, IsTerminal, Write};
use std::process::{Command, Stdio};

/// A line that shows how something goes on: rewritten in place on a terminal, else printed now and then by the caller.
pub struct Line {
    rewrites: bool,
    shown: bool,
}

impl Line {
    pub fn new() -> Line {
        Line { rewrites: io::stderr().is_terminal(), shown: false }
    }

    /// True if the line is on a terminal.
    pub fn rewrites(&self) -> bool {
        self.rewrites
    }

    pub fn show(&mut self, text: &str) {
        let mut err = io::stderr().lock();
        let _ = match self.rewrites {
            true => write!(err, "\r\x1b[2K{text}"),
            false => writeln!(err, "{text}"),
        };
        let _ = err.flush();
        self.shown = true;
    }

    /// Goes on below the line.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.shown) && self.rewrites {
            eprintln!();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.end();
    }
}

/// A bar of `width` characters, `part` of it filled.
pub fn bar(part: f64, width: usize) -> String {
    let filled = (part.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("[{}{}]", "=".repeat(filled), " ".repeat(width - filled))
}

/// Standard input without lines and echo until it is dropped. stty(1) is everywhere where there are terminals.
pub struct SingleKeys {
    before: String,
}

impl SingleKeys {
    /// `None` if standard input is not a terminal.
    pub fn new() -> io::Result<Option<SingleKeys>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = stty(&["-g"])?;
        stty(&["-icanon", "-echo", "min", "1", "time", "0"])?;
        Ok(Some(SingleKeys { before: before.trim().to_string() }))
    }
}

impl Drop for SingleKeys {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = stty(&[&self.before]);
    }
}

fn stty(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("stty").args(arguments).stdin(Stdio::inherit()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("stty {}: {}", arguments.join(" "), output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_it_should_be() {
        for part in [-1.0, 0.0, 0.33, 1.0, 7.0] {
            assert_eq!(bar(part, 20).len(), 22);
        }
        assert_eq!(bar(0.5, 4), "[==  ]");
    }
}
