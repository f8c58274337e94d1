//! What the parent does with its privileges before any role runs: directories, listeners, the pid file, checks.
//!
//! Everything here happens in the foreground, so that a mistake in the configuration is a message on the terminal and
//! an exit code, not a line in a log.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::upgrade::Inheritance;
use crate::config::{self, Config, ConfigError};
use crate::exit::Exit;
use crate::sys::log::JsonFile;
use crate::sys::pidfile::{PidFile, PidFileError};
use crate::sys::sandbox::{Reach, cache_directory};
use crate::sys::user::{self, Identity, UserError};

/// Mode of directories that only the daemon and its group enter.
const PRIVATE_DIRECTORY: u32 = 0o750;
/// Mode of the directory of the socket and the pid file: local tools pass through it.
const RUN_DIRECTORY: u32 = 0o755;
/// How long sockets of a killed daemon are waited for, and how often they are tried.
const ROLES_END_LIMIT: Duration = Duration::from_secs(1);
const ROLES_END_STEP: Duration = Duration::from_millis(20);
/// Mode of the Unix socket: its owner and group talk to the daemon.
const SOCKET_MODE: u32 = 0o660;

/// Why the daemon does not start. Each message names the key and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("worker.user")]
    User(#[from] UserError),
    #[error("{key}: {path} cannot be {what}; allowed: {allowed}")]
    Path {
        key: &'static str,
        path: PathBuf,
        what: &'static str,
        allowed: String,
        #[source]
        source: io::Error,
    },
    #[error("http.token_file: {path} {what}; allowed: a file with one token a line that others cannot read")]
    TokenFile { path: PathBuf, what: String },
    #[error("http.listen: {address} cannot be listened on; allowed: a free port of an address of this machine")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("control.socket: {0} is in use by a running daemon; allowed: a path of its own for each daemon")]
    SocketInUse(PathBuf),
    #[error("control.socket: {0} exists and is not a socket; allowed: a free path, or a socket that nobody listens on")]
    NotASocket(PathBuf),
    #[error("state.pid_file")]
    PidFile(#[from] PidFileError),
    #[cfg(target_os = "freebsd")]
    #[error(transparent)]
    Sandbox(#[from] crate::sys::sandbox::SandboxError),
}

impl PrepareError {
    /// The exit code that tells it.
    pub fn exit(&self) -> Exit {
        match self {
            PrepareError::Config(e) => e.exit(),
            PrepareError::User(_) | PrepareError::TokenFile { .. } => Exit::Config,
            PrepareError::Path { what: "read", .. } => Exit::NoInput,
            PrepareError::Path { .. } | PrepareError::PidFile(PidFileError::Io { .. }) => Exit::CantCreate,
            PrepareError::Listen { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Exit::NoPermission,
                io::ErrorKind::AddrNotAvailable => Exit::Config,
                _ => Exit::Unavailable,
            },
            PrepareError::SocketInUse(_) | PrepareError::PidFile(PidFileError::Running { .. }) => Exit::Unavailable,
            PrepareError::NotASocket(_) => Exit::Config,
            #[cfg(target_os = "freebsd")]
            PrepareError::Sandbox(_) => Exit::Config,
        }
    }
}

/// Everything that the roles need and only the parent can make. Dropped: the socket and the pid file go.
#[derive(Debug)]
pub struct Prepared {
    /// With `model.path` resolved.
    pub config: Config,
    pub http: TcpListener,
    pub local: LocalSocket,
    pub pid_file: PidFile,
    /// Whom the roles become; `None` if the daemon was started by an ordinary user.
    pub user: Option<Identity>,
}

/// The bound Unix socket; its path goes when this is dropped.
#[derive(Debug)]
pub struct LocalSocket {
    pub listener: UnixListener,
    path: PathBuf,
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // If somebody else removed it already there is nothing left to do.
        let _ = fs::remove_file(&self.path);
    }
}

/// Checks what the configuration names and opens what the roles need. Errors: the first obstacle.
///
/// `inherited`: the descriptors of the program that this one replaces in the same process.
pub fn prepare(mut config: Config, program: &Path, inherited: Option<Inheritance>) -> Result<Prepared, PrepareError> {
    let user = if user::is_root() { Some(user::find(&config.worker.user)?) } else { None };
    config.model.path = config::resolve_model(&config, program)?;
    readable_model(&config, user.as_ref())?;
    if let Some(path) = &config.http.token_file {
        check_token_file(path, user.as_ref())?;
    }
    #[cfg(target_os = "freebsd")]
    if user.is_some() {
        crate::sys::sandbox::Jail::check_ruleset(&config)?;
    }
    for (key, path) in [("control.socket", &config.control.socket), ("state.pid_file", &config.state.pid_file)] {
        run_directory(key, path)?;
    }
    let (http, local, pid_file) = match inherited {
        Some(Inheritance { http, local, pid_file }) => (Some(http), Some(local), Some(pid_file)),
        None => (None, None, None),
    };
    let pid_file = match pid_file {
        Some(fd) => PidFile::adopt(fd, &config.state.pid_file)?,
        None => PidFile::lock(&config.state.pid_file)?,
    };
    state_directory(&config, user.as_ref())?;
    log_file(&config)?;
    let http = listen(config.http.listen, http)?;
    let local = match local.and_then(|fd| adopt_local(fd, &config.control.socket)) {
        Some(local) => local,
        None => patiently(
            || bind_local(&config.control.socket, user.as_ref()),
            |e| matches!(e, PrepareError::SocketInUse(_)),
        )?,
    };
    Ok(Prepared { config, http, local, pid_file, user })
}

/// The listener of the network: the inherited one if it has the configured address, where port 0 is any.
fn listen(address: SocketAddr, inherited: Option<OwnedFd>) -> Result<TcpListener, PrepareError> {
    if let Some(listener) = inherited.map(TcpListener::from)
        && let Ok(found) = listener.local_addr()
        && found.ip() == address.ip()
        && (address.port() == 0 || found.port() == address.port())
    {
        return Ok(listener);
    }
    let bound = patiently(|| TcpListener::bind(address), |e| e.kind() == io::ErrorKind::AddrInUse);
    bound.map_err(|source| PrepareError::Listen { address, source })
}

/// Tries again for a moment while `busy` says that somebody else has what is wanted: roles of a daemon that was killed
/// just now hold its sockets until they have ended too.
fn patiently<T, E>(mut attempt: impl FnMut() -> Result<T, E>, busy: impl Fn(&E) -> bool) -> Result<T, E> {
    let deadline = Instant::now() + ROLES_END_LIMIT;
    loop {
        match attempt() {
            Err(e) if busy(&e) && Instant::now() < deadline => std::thread::sleep(ROLES_END_STEP),
            result => return result,
        }
    }
}

/// The inherited Unix socket, if it is the one at `path`.
fn adopt_local(fd: OwnedFd, path: &Path) -> Option<LocalSocket> {
    let listener = UnixListener::from(fd);
    let bound = listener.local_addr().ok()?;
    if bound.as_pathname() == Some(path) && path.exists() {
        return Some(LocalSocket { listener, path: path.to_path_buf() });
    }
    if let Some(old) = bound.as_pathname() {
        // Its place is another one now; nobody would take the old file away later.
        let _ = fs::remove_file(old);
    }
    None
}

/// The log file must be one that can be appended to.
fn log_file(config: &Config) -> Result<(), PrepareError> {
    let path = &config.log.file;
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    JsonFile::open(path).map(drop).map_err(|source| PrepareError::Path {
        key: "log.file",
        path: path.clone(),
        what: "appended to",
        allowed: "a file in a directory that exists and can be written".to_string(),
        source,
    })
}

/// The model's index must be readable by the user that the worker becomes.
fn readable_model(config: &Config, user: Option<&Identity>) -> Result<(), PrepareError> {
    let index = config.model.path.join("model_index.json");
    let folder = Reach::new(&config.model.path);
    let opened = folder.and_then(|folder| {
        let index = folder.path().join("model_index.json");
        user::acting_as(user, || fs::File::open(index).map(drop)).map_err(io::Error::other)?
    });
    let who = user.map_or("the user that runs it", |u| &u.name);
    opened.map_err(|source| PrepareError::Path {
        key: "model.path",
        path: index.clone(),
        what: "read",
        allowed: format!("a folder with model_index.json that {who} can read"),
        source,
    })
}

fn check_token_file(path: &Path, user: Option<&Identity>) -> Result<(), PrepareError> {
    let wrong = |what: String| PrepareError::TokenFile { path: path.to_path_buf(), what };
    let text = user::acting_as(user, || -> io::Result<(u32, String)> {
        Ok((fs::metadata(path)?.mode(), fs::read_to_string(path)?))
    })?;
    let who = user.map_or("the user that runs the daemon", |u| &u.name);
    let (mode, text) = text.map_err(|e| wrong(format!("cannot be read by {who}: {e}")))?;
    if mode & 0o007 != 0 {
        return Err(wrong(format!("has mode {:o}, so others can read or write it", mode & 0o777)));
    }
    if text.lines().all(|line| line.trim().is_empty()) {
        return Err(wrong("holds no token".to_string()));
    }
    Ok(())
}

/// Makes the directory of a file in /var/run, which is empty after a boot.
fn run_directory(key: &'static str, file: &Path) -> Result<(), PrepareError> {
    let Some(directory) = file.parent() else {
        return Ok(());
    };
    fs::DirBuilder::new().recursive(true).mode(RUN_DIRECTORY).create(directory).map_err(|source| PrepareError::Path {
        key,
        path: directory.to_path_buf(),
        what: "made",
        allowed: "a path in a directory that can be written".to_string(),
        source,
    })
}

/// Makes the state directory and its cache, gives them to the role's user if they are new, and tries to write there as
/// that user.
fn state_directory(config: &Config, user: Option<&Identity>) -> Result<(), PrepareError> {
    let failed = |path: &Path, what, source| PrepareError::Path {
        key: "state.directory",
        path: path.to_path_buf(),
        what,
        allowed: match user {
            Some(user) => format!("a directory that user {} can write", user.name),
            None => "a directory that can be written".to_string(),
        },
        source,
    };
    for directory in [config.state.directory.clone(), cache_directory(config)] {
        let directory = directory.as_path();
        if !directory.exists() {
            if let Some(parent) = directory.parent() {
                fs::create_dir_all(parent).map_err(|e| failed(directory, "made", e))?;
            }
            let made = fs::DirBuilder::new().mode(PRIVATE_DIRECTORY).create(directory);
            made.map_err(|e| failed(directory, "made", e))?;
            if let Some(user) = user {
                let (uid, gid) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
                std::os::unix::fs::chown(directory, uid, gid).map_err(|e| failed(directory, "given away", e))?;
            }
        }
        // Only a file that was really made shows that the disk, the mount and the rights are as they must be.
        let reach = Reach::new(directory).map_err(|e| failed(directory, "opened", e))?;
        let probe = reach.path().join(format!(".probe-{}", std::process::id()));
        let written = user::acting_as(user, || fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)))?;
        match written {
            // A disk that is full takes no clips, but sessions can be played: no reason to refuse the service.
            Err(e) if e.kind() == io::ErrorKind::StorageFull => log::warn!("{}: {e}", directory.display()),
            written => written.map_err(|e| failed(directory, "written", e))?,
        }
    }
    Ok(())
}

/// Binds the Unix socket. A socket that a dead daemon left is replaced; one that answers is not.
fn bind_local(path: &Path, user: Option<&Identity>) -> Result<LocalSocket, PrepareError> {
    let failed = |what, source| PrepareError::Path {
        key: "control.socket",
        path: path.to_path_buf(),
        what,
        allowed: "a path in a directory that can be written".to_string(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            return Err(PrepareError::NotASocket(path.to_path_buf()));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(PrepareError::SocketInUse(path.to_path_buf())),
        Ok(_) => fs::remove_file(path).map_err(|e| failed("replaced", e))?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(|e| failed("bound", e))?;
    let local = LocalSocket { listener, path: path.to_path_buf() };
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(|e| failed("given its mode", e))?;
    if let Some(user) = user {
        let gid = Some(user.gid.as_raw());
        std::os::unix::fs::chown(path, None, gid).map_err(|e| failed("given its group", e))?;
    }
    Ok(local)
}
