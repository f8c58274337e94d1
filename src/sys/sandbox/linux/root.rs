//! A root of its own: a tmpfs with nothing in it but what a role needs, bound read-only from the host.
//!
//! ```text
//!  mount namespace -> tmpfs -> pivot_root(2) -> bind each entry from the old root -> /proc -> old root off
//!                  -> read-only
//! ```
//!
//! What shows inside is a list of entries that is made before anything is mounted; `tests` look at it as a value.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Places to stand on while the new root is built; one of them exists everywhere.
const BASES: [&str; 4] = ["/tmp", "/run", "/mnt", "/var"];
/// Where the old root is until everything is bound.
const OLD: &str = "/.old";
/// The root holds mount points and links only.
const ROOT_OPTIONS: &str = "size=1m,nr_inodes=1024,mode=755";
/// Anonymous memory that drivers share with themselves by name.
const SHM_OPTIONS: &str = "size=64m,mode=1777";

/// How an entry shows inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder or file that can be read.
    Read,
    /// A folder that can be written, by whom its rights allow.
    Write,
    /// The node of a device.
    Node,
    /// A symbolic link, copied.
    Link(PathBuf),
}

/// One path that exists inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: PathBuf,
    /// Where it really is outside, with every link followed.
    pub source: PathBuf,
    pub kind: Kind,
}

/// The entries for some paths: those that do not exist are left out, links are copied with what they lead to.
pub fn entries(reads: &[PathBuf], writes: &[PathBuf], nodes: &[PathBuf]) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    for (paths, kind) in [(reads, Kind::Read), (writes, Kind::Write), (nodes, Kind::Node)] {
        for path in paths {
            add(&mut found, path, &kind);
        }
    }
    found
}

fn add(found: &mut Vec<Entry>, path: &Path, kind: &Kind) {
    if !path.is_absolute() || found.iter().any(|e| e.path == path) {
        return;
    }
    let Ok(source) = fs::canonicalize(path) else { return };
    let linked = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_symlink());
    if linked && let Ok(target) = fs::read_link(path) {
        found.push(Entry { path: path.to_path_buf(), source: source.clone(), kind: Kind::Link(target) });
        // What the link leads to shows at its own place, unless it lies in a folder that shows already.
        if !covered(found, &source) {
            add(found, &source, kind);
        }
        return;
    }
    found.push(Entry { path: path.to_path_buf(), source, kind: kind.clone() });
}

fn covered(found: &[Entry], path: &Path) -> bool {
    found.iter().any(|e| !matches!(e.kind, Kind::Link(_)) && path.starts_with(&e.path))
}

/// Moves this process into a root of `entries`. `own_processes`: the process is in a PID namespace of its own, so that
/// a fresh /proc shows nothing else; otherwise the host's is bound.
///
/// The mount namespace must be this process's own. Errors: `Unsupported`, with nothing done, if the root is no mount
/// point, as in a chroot(2) into a folder; what a step returns, with the path it was about.
pub fn enter(entries: &[Entry], own_processes: bool) -> io::Result<()> {
    let none: Option<&str> = None;
    // Mounts made elsewhere from now on do not show here, nor the other way round.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(|e| match e {
        nix::errno::Errno::EINVAL => io::Error::new(io::ErrorKind::Unsupported, "the root is no mount point (chroot)"),
        other => other.into(),
    })?;
    let base = BASES.into_iter().map(Path::new).find(|p| p.is_dir());
    let base = base.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("none of {BASES:?}")))?;
    // An unprivileged role passes through every folder that is made; the daemon's own mask would keep it out.
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::S_IWGRP | nix::sys::stat::Mode::S_IWOTH);
    let built = build(entries, own_processes, base);
    nix::sys::stat::umask(mask);
    built
}

fn build(entries: &[Entry], own_processes: bool, base: &Path) -> io::Result<()> {
    let none: Option<&str> = None;
    let nowhere = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), base, Some("tmpfs"), nowhere, Some(ROOT_OPTIONS))?;
    let old = base.join(OLD.trim_start_matches('/'));
    fs::DirBuilder::new().mode(0o700).create(&old)?;
    nix::unistd::pivot_root(base, &old)?;
    std::env::set_current_dir("/")?;
    for entry in entries {
        show(entry).map_err(|e| about(&entry.path, &e))?;
    }
    show_processes(own_processes).map_err(|e| about(Path::new("/proc"), &e))?;
    make_folder(Path::new("/dev/shm"))?;
    mount(Some("tmpfs"), "/dev/shm", Some("tmpfs"), nowhere | MsFlags::MS_NOEXEC, Some(SHM_OPTIONS))?;
    umount2(OLD, MntFlags::MNT_DETACH)?;
    fs::remove_dir(OLD)?;
    mount(none, "/", none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | nowhere, none)?;
    Ok(())
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn show(entry: &Entry) -> io::Result<()> {
    if let Some(parent) = entry.path.parent() {
        make_folder(parent)?;
    }
    if let Kind::Link(target) = &entry.kind {
        return std::os::unix::fs::symlink(target, &entry.path);
    }
    let from = Path::new(OLD).join(entry.source.strip_prefix("/").unwrap_or(&entry.source));
    if from.is_dir() {
        make_folder(&entry.path)?;
    } else if !entry.path.exists() {
        fs::File::create(&entry.path)?;
    }
    let none: Option<&str> = None;
    mount(Some(&from), &entry.path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    let device = entry.kind == Kind::Node && fs::metadata(&from).is_ok_and(|m| !m.is_file());
    let mut attributes = MOUNT_ATTR_NOSUID;
    if entry.kind == Kind::Read {
        attributes |= MOUNT_ATTR_RDONLY;
    }
    if !device {
        attributes |= MOUNT_ATTR_NODEV;
    }
    if entry.kind != Kind::Read {
        attributes |= MOUNT_ATTR_NOEXEC;
    }
    restrict(&entry.path, attributes)
}

/// A fresh /proc where the kernel allows one, read-only: the role's own processes and facts about the machine.
fn show_processes(own: bool) -> io::Result<()> {
    make_folder(Path::new("/proc"))?;
    let none: Option<&str> = None;
    if own {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
        mount(Some("proc"), "/proc", Some("proc"), flags, none)?;
        return Ok(());
    }
    let from = Path::new(OLD).join("proc");
    mount(Some(&from), "/proc", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    restrict(Path::new("/proc"), MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;
/// `AT_RECURSIVE` of mount_setattr(2).
const AT_RECURSIVE: libc::c_int = 0x8000;

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    namespace: u64,
}

/// Adds restrictions to a mount and to every mount below it.
fn restrict(path: &Path, set: u64) -> io::Result<()> {
    let attributes = MountAttributes { set, clear: 0, propagation: 0, namespace: 0 };
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: mount_setattr(2) reads a NUL-terminated path and as many bytes of the attributes as it is told; both live
    // through the call, and nothing of this process's memory is written.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            AT_RECURSIVE,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// True if a path is the node of a character device.
pub fn is_node(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.file_type().is_char_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_follow_links_and_leave_out_what_is_not_there() {
        let dir = std::env::temp_dir().join(format!("gamegend-root-{}", std::process::id()));
        let dir = {
            fs::create_dir_all(dir.join("usr/lib")).expect("a temporary directory");
            fs::canonicalize(dir).expect("it exists")
        };
        fs::create_dir(dir.join("apart")).expect("ours");
        std::os::unix::fs::symlink("usr/lib", dir.join("lib")).expect("ours");
        std::os::unix::fs::symlink(dir.join("apart"), dir.join("far")).expect("ours");
        let at = |name: &str| dir.join(name);
        let found = entries(&[at("usr"), at("lib"), at("far"), at("missing")], &[], &["/dev/null".into()]);
        let seen: Vec<(PathBuf, Kind)> = found.into_iter().map(|e| (e.path, e.kind)).collect();
        let expected = [
            (at("usr"), Kind::Read),
            (at("lib"), Kind::Link("usr/lib".into())),
            (at("far"), Kind::Link(at("apart"))),
            (at("apart"), Kind::Read),
            (PathBuf::from("/dev/null"), Kind::Node),
        ];
        assert_eq!(seen, expected);
        assert!(is_node(Path::new("/dev/null")) && !is_node(&dir));
        fs::remove_dir_all(&dir).expect("ours");
    }
}
