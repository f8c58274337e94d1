//! The pid file: one instance at a time, and its number for rc(8) and for people.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// A locked pid file; the lock and the file go when this is dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    lock: Flock<File>,
}

/// Why there is no pid file.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    #[error("another instance runs{}", .pid.map(|p| format!(" as process {p}")).unwrap_or_default())]
    Running { pid: Option<u32> },
    #[error("open and lock {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl PidFile {
    /// Opens and locks the file; a file that a dead process left is taken over. The lock outlives a fork, so it is
    /// taken before the process goes to the background.
    ///
    /// Errors: `Running` if another process holds the lock, with its pid where the file tells it; `Io`.
    pub fn lock(path: &Path) -> Result<PidFile, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.to_path_buf(), source };
        loop {
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // An instance that ended between the open and the lock took the file away: lock the path's new one.
                Ok(lock) if !is_at(&lock, path) => {}
                Ok(lock) => return Ok(PidFile { path: path.to_path_buf(), lock }),
                Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                    let mut text = String::new();
                    // A file that cannot be read is an instance all the same; only its number is unknown.
                    let _ = file.read_to_string(&mut text);
                    return Err(PidFileError::Running { pid: text.trim().parse().ok() });
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }

    /// Goes on with a file that is open and locked already: the lock belongs to the open file, so it is taken without
    /// a moment in which nobody has it.
    ///
    /// Errors: `Running` if the file is locked by somebody else after all, `Io` if `path` leads to another file.
    pub fn adopt(fd: OwnedFd, path: &Path) -> Result<PidFile, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.to_path_buf(), source };
        match Flock::lock(File::from(fd), FlockArg::LockExclusiveNonblock) {
            Ok(lock) if is_at(&lock, path) => Ok(PidFile { path: path.to_path_buf(), lock }),
            Ok(_) => Err(failed(io::Error::new(io::ErrorKind::NotFound, "another file lies there now"))),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(PidFileError::Running { pid: None }),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// Writes the number of this process.
    pub fn write(&mut self) -> io::Result<()> {
        self.lock.set_len(0)?;
        self.lock.rewind()?;
        writeln!(self.lock, "{}", std::process::id())
    }
}

/// True if `path` still leads to the file that is open.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

impl AsFd for PidFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Removed while still locked, so that no other instance can have taken it over.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_instance_at_a_time() {
        let path = std::env::temp_dir().join(format!("gamegend-pid-{}", std::process::id()));
        std::fs::write(&path, "999999\n").expect("a temporary file");
        let mut first = PidFile::lock(&path).expect("a file without its process is stale");
        first.write().expect("room on the disk");
        let second = PidFile::lock(&path).expect_err("the first one holds it");
        assert!(matches!(second, PidFileError::Running { pid: Some(p) } if p == std::process::id()), "{second}");
        drop(first);
        assert!(!path.exists());
    }
}
