//! Going to the background, without losing the answer to "did it start?".
//!
//! daemon(3) ends the process that was called before the daemon has done anything, so a script learns nothing from its
//! exit code. Here that process waits at a pipe until the daemon is ready or has failed, and ends accordingly.

use std::io::{self, PipeReader, PipeWriter, Read, Write};

use daemonize::{Daemonize, Outcome};

use crate::exit::Exit;

/// Files that the daemon makes are readable for its group at most.
const UMASK: u32 = 0o027;

/// The two processes after [`detach`].
pub enum Side {
    /// The one that was called; the daemon has told how it went.
    Launcher(Exit),
    /// The daemon. It tells through this.
    Daemon(Waiting),
}

/// The launcher at the other end of the pipe. Dropped untold, it counts as a failure.
#[derive(Debug)]
pub struct Waiting(PipeWriter);

impl Waiting {
    /// Lets the launcher end with `exit`, and with `text` on its standard error if there is any.
    pub fn tell(mut self, exit: Exit, text: &str) {
        // A launcher that was killed needs no answer.
        let _ = self.0.write_all(&[exit as u8]).and_then(|()| self.0.write_all(text.as_bytes()));
    }
}

/// Forks; must happen while the process has one thread. The standard streams of the daemon lead to /dev/null, its
/// directory is the root, and it is in a session of its own.
///
/// Errors: what pipe(2), fork(2), setsid(2) return.
pub fn detach() -> io::Result<Side> {
    let (reader, writer) = io::pipe()?;
    match Daemonize::new().working_directory("/").umask(UMASK).execute() {
        Outcome::Parent(Ok(_)) => {
            drop(writer);
            Ok(Side::Launcher(wait(reader)))
        }
        Outcome::Child(Ok(_)) => {
            drop(reader);
            Ok(Side::Daemon(Waiting(writer)))
        }
        Outcome::Parent(Err(e)) | Outcome::Child(Err(e)) => Err(io::Error::other(e.to_string())),
    }
}

fn wait(mut reader: PipeReader) -> Exit {
    let mut told = Vec::new();
    // An error reads as no answer.
    let _ = reader.read_to_end(&mut told);
    let (exit, text) = match told.split_first() {
        Some((&code, text)) => (Exit::from_code(code.into()).unwrap_or(Exit::Software), text),
        None => (Exit::Software, &b"the daemon ended before it was ready; the system log says why"[..]),
    };
    if !text.is_empty() {
        eprintln!("gamegend: {}", String::from_utf8_lossy(text));
    }
    exit
}
