//! A folder by its descriptor: files in it are reached by name alone, never by a path.
//!
//! A role that holds its folders this way needs no path once it runs. On FreeBSD that is what capability mode asks for
//! (capsicum(4)); on Linux it makes the rights of the folders above irrelevant.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::{Dir as Entries, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Mode of folders that are made.
const FOLDER_MODE: Mode = Mode::S_IRWXU;
/// Mode of files that are made: for the daemon's user alone.
const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// An open folder. Clones are the same folder.
#[derive(Clone, Debug)]
pub struct Dir {
    fd: Arc<OwnedFd>,
    /// For messages only.
    path: PathBuf,
}

impl Dir {
    /// Opens a folder by its path. Errors: what open(2) returns.
    pub fn open(path: &Path) -> io::Result<Dir> {
        let fd = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Dir { fd: Arc::new(fd), path: path.to_path_buf() })
    }

    /// The folder `name` inside, which is made if it does not exist.
    pub fn folder(&self, name: &str) -> io::Result<Dir> {
        check(name)?;
        match mkdirat(&*self.fd, name, FOLDER_MODE) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let fd = openat(&*self.fd, name, flags, Mode::empty())?;
        Ok(Dir { fd: Arc::new(fd), path: self.path.join(name) })
    }

    /// Where the folder lay when it was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an empty file, or empties the one that is there; it can be read and written, by the daemon's user only.
    pub fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        check(name)?;
        Ok(openat(&*self.fd, name, flags, FILE_MODE)?.into())
    }

    /// Opens a file to read.
    pub fn file(&self, name: &str) -> io::Result<File> {
        check(name)?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        Ok(openat(&*self.fd, name, flags, Mode::empty())?.into())
    }

    /// The whole of a file. Errors: `InvalidData` if it is longer than `bytes_max`.
    pub fn read(&self, name: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file(name)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            let text = format!("{}: more than {bytes_max} bytes", self.path.join(name).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(bytes)
    }

    /// Gives a file another name; one that has it already is replaced.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check(from)?;
        check(to)?;
        Ok(renameat(&*self.fd, from, &*self.fd, to)?)
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        check(name)?;
        Ok(unlinkat(&*self.fd, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// True if something has that name.
    pub fn has(&self, name: &str) -> bool {
        check(name).is_ok() && fstatat(&*self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// Names of the files inside, in no order; folders and names that are not UTF-8 are left out.
    pub fn names(&self) -> io::Result<Vec<String>> {
        // A descriptor of its own, since reading moves its position.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut entries = Entries::from_fd(openat(&*self.fd, ".", flags, Mode::empty())?)?;
        let mut names = Vec::new();
        for entry in entries.iter() {
            let entry = entry?;
            if let (Ok(name), false) = (entry.file_name().to_str(), entry.file_type() == Some(Type::Directory)) {
                names.push(name.to_string());
            }
        }
        names.retain(|n| n != "." && n != "..");
        Ok(names)
    }

    /// Makes renames outlive a power failure.
    pub fn sync(&self) -> io::Result<()> {
        Ok(nix::unistd::fsync(&*self.fd)?)
    }

    /// Takes from the descriptor, and from all that is opened through it later, every right that this interface does
    /// not need (rights(4)).
    #[cfg(target_os = "freebsd")]
    pub fn limit(&self) -> io::Result<()> {
        super::rights::folder().limit(self.fd.as_fd())
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A name is one component of a path and leads nowhere else.
fn check(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not the name of a file")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_folder_is_reached_by_names_only() {
        let path = std::env::temp_dir().join(format!("gamegend-dir-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary directory");
        let outer = Dir::open(&path).expect("it exists");
        let dir = outer.folder("inner").expect("it can be made");
        outer.folder("inner").expect("and opened again");
        dir.create("a").expect("room").write_all(b"text").expect("room");
        dir.rename("a", "b").expect("ours");
        assert_eq!(dir.read("b", 4).expect("ours"), b"text");
        assert_eq!(dir.read("b", 3).expect_err("too long").kind(), io::ErrorKind::InvalidData);
        assert_eq!(dir.names().expect("ours"), ["b"]);
        assert_eq!(outer.names().expect("ours"), Vec::<String>::new(), "folders are not files");
        assert!(dir.has("b") && !dir.has("a"));
        std::os::unix::fs::symlink("/etc/passwd", path.join("inner/link")).expect("ours");
        assert!(dir.file("link").is_err(), "a link leads elsewhere");
        for name in ["", ".", "..", "../x", "/etc/passwd", "a/b"] {
            assert!(dir.file(name).is_err() && dir.create(name).is_err(), "{name:?}");
        }
        dir.remove("b").expect("ours");
        dir.sync().expect("a folder can be synchronised");
        std::fs::remove_dir_all(&path).expect("ours");
    }
}
