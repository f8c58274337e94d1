//! What a role gives up before it meets input that it cannot trust.
//!
//! One interface, two systems. On FreeBSD the parent makes a jail and the worker attaches to it; on Linux the role
//! leaves its namespaces, moves into a root of its own, takes Landlock rules and, once everything is loaded, a seccomp
//! filter. Either way it becomes
//! an unprivileged user first if it was started as root, and says afterwards in words what is in force, and never
//! more.
//!
//! What each role keeps, and why:
//!
//! - `api`: the state directory, to store generations; the token file, to read it; sockets that it inherited. It opens
//!   no connection and no device.
//! - `worker`: the model, to read it; the device's nodes, the Vulkan loader, its drivers and their libraries, since a
//!   driver opens all of these late and by itself (for the same reason it cannot be in Capsicum's capability mode);
//!   `cache` under the state directory, for compiled pipelines and shaders. It has no network.
//! - `decoder`: nothing but its link and memory. It opens no file, on FreeBSD in Capsicum's capability mode.

pub mod devfs;
mod devices;
#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;
pub mod plan;
pub mod spec;

#[cfg(target_os = "freebsd")]
use freebsd as os;
#[cfg(target_os = "linux")]
use linux as os;

#[cfg(target_os = "freebsd")]
pub use freebsd::{JAIL_VARIABLE, Jail};
#[cfg(target_os = "linux")]
pub use linux::Group;
pub use os::apart;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::user::{self, UserError};
use crate::config::Config;

/// Variable by which the parent, if it is root, tells a decoder which user it becomes.
pub const DECODER_USER_VARIABLE: &str = "GAMEGEND_DECODER_USER";
/// The directory below `state.directory` that a worker may write.
pub const CACHE_DIRECTORY: &str = "cache";

/// Whose powers are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The network and local front.
    Api,
    /// The owner of one device.
    Worker,
    /// A process that reads one upload.
    Decoder,
}

impl Role {
    /// As on the command line, in the log and in ps(1).
    pub fn name(self) -> &'static str {
        match self {
            Role::Api => "api",
            Role::Worker => "worker",
            Role::Decoder => "decoder",
        }
    }
}

/// A step that failed although the system offers it.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("give up the identity of root")]
    User(#[source] UserError),
    #[error("tie the process to its parent")]
    Parent(#[source] io::Error),
    #[error("{step}")]
    System {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{step}: {what}")]
    Refused { step: &'static str, what: String },
    #[error(
        "worker.devfs_ruleset: {ruleset} {why}; allowed: the number of a ruleset that hides everything but the \
             device, as in devfs.rules.sample: add it to /etc/devfs.rules, run service devfs restart, and name it here"
    )]
    Ruleset { ruleset: u32, why: String },
}

/// What protects this process now.
#[derive(Debug)]
pub struct Protections {
    role: Role,
    in_force: Vec<String>,
    as_user: bool,
}

impl Protections {
    /// Gives up the rest, once start-up no longer needs it: on Linux a seccomp filter over all threads, on FreeBSD the
    /// api's capability mode and the rights of `listeners` and `links` that it does not use.
    ///
    /// Errors: `System`, `Refused`.
    pub fn narrow(&mut self, listeners: &[BorrowedFd<'_>], links: &[BorrowedFd<'_>]) -> Result<(), SandboxError> {
        self.in_force.extend(os::narrow(self.role, listeners, links)?);
        log::info!("protections of {}: {self}", self.role.name());
        Ok(())
    }
}

impl std::fmt::Display for Protections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = if self.in_force.is_empty() { "none".to_string() } else { self.in_force.join(", ") };
        if self.as_user {
            text.push_str(" (started as an ordinary user)");
        }
        f.write_str(&text)
    }
}

/// Enters the sandbox of `role`. To be called while the process has one thread, before it reads anything from a
/// client or opens a device; the parent has made the directories. Paths of `config` are replaced where the user that
/// the process becomes could not follow them; they hold as long as the process lives.
///
/// Errors: any step that the system offers and that fails; what the system does not offer is left out of the words.
pub fn enter(role: Role, config: &mut Config) -> Result<Protections, SandboxError> {
    let parent = super::process::parent();
    let as_user = !user::is_root();
    let mut in_force = Vec::new();
    let who = if as_user { None } else { Some(user::find(&config.worker.user).map_err(SandboxError::User)?) };
    if let Some(who) = who.as_ref().filter(|who| who.name != config.worker.user) {
        log::warn!("{}: worker.user {:?} does not exist; user {} stands in", role.name(), config.worker.user, who.name);
    }
    let fences = os::fence(role, config, who.as_ref())?;
    if let Some(who) = &who {
        user::become_user(who, &fences.groups).map_err(SandboxError::User)?;
        // The kernel forgets the tie when a process changes its user.
        super::process::die_with_parent(parent).map_err(SandboxError::Parent)?;
        in_force.push(format!("user {}", who.name));
    }
    in_force.extend(fences.in_force);
    Ok(Protections { role, in_force, as_user })
}

/// Replaces the paths of folders that the role uses by such as the user can follow: an administrator's model or state
/// may lie below a folder that is closed to everybody else. For a process that gets no root of its own: there the
/// folders are mounted, and an open folder of the host would lead out of it.
#[cfg(target_os = "linux")]
fn hold_folders(role: Role, config: &mut Config) -> Result<(), SandboxError> {
    if role == Role::Decoder {
        return Ok(());
    }
    let mut folders = vec![&mut config.state.directory];
    if role == Role::Worker {
        folders.push(&mut config.model.path);
    }
    for folder in folders {
        let reach = Reach::new(folder).map_err(|source| SandboxError::System { step: "open a folder", source })?;
        *folder = reach.path().to_path_buf();
        // Left open for the life of the process: the configuration has no other way to the folder from here on.
        std::mem::forget(reach);
    }
    Ok(())
}

/// A folder that stays reachable for this process whoever it becomes, whatever the rights of the folders above it.
#[derive(Debug)]
pub struct Reach {
    _folder: File,
    path: PathBuf,
}

impl Reach {
    /// Opens the folder. Errors: what open(2) returns.
    pub fn new(folder: &Path) -> io::Result<Reach> {
        let opened = File::open(folder)?;
        // Linux leads through the open folder; FreeBSD has no such path, and there a jail mounts the folder instead.
        let path = if cfg!(target_os = "linux") {
            PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()))
        } else {
            folder.to_path_buf()
        };
        Ok(Reach { _folder: opened, path })
    }

    /// A path to the folder, for as long as this value lives.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What the system-specific part did, and the groups that the device's nodes need.
struct Fences {
    in_force: Vec<String>,
    groups: Vec<nix::unistd::Gid>,
}

/// Where a worker keeps compiled shaders and pipelines.
pub fn cache_directory(config: &Config) -> PathBuf {
    config.state.directory.join(CACHE_DIRECTORY)
}
