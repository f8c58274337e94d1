//! FreeBSD: a jail(2) that the parent makes and the worker attaches to, with its own devfs(5) ruleset and rctl(8)
//! limits.
//!
//! The jail is a list of steps whose guards undo them in reverse when they are dropped. Its names are predictable, so
//! what a crashed parent left is removed at the next start.

use std::ffi::{CStr, CString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::user::Identity;
use super::spec::{JailSpec, Parameter, hides_everything};
use super::{Fences, Role, SandboxError, cache_directory, devices};
use crate::config::Config;

/// Variable by which a worker learns the name of its jail.
pub const JAIL_VARIABLE: &str = "GAMEGEND_JAIL";

/// Room for the kernel's `errmsg`.
const ERROR_BYTES: usize = 256;
/// The jail's root holds mount points only.
const ROOT_SIZE: &str = "1m";

// SAFETY: the declaration is that of rctl(2): two buffers with their lengths, the result in errno.
unsafe extern "C" {
    /// rctl_add_rule(2), which the libc crate does not declare.
    fn rctl_add_rule(
        rule: *const libc::c_char,
        rule_bytes: libc::size_t,
        out: *mut libc::c_char,
        out_bytes: libc::size_t,
    ) -> libc::c_int;
}

/// Attaches to the jail that the parent made and forbids new privileges.
pub fn fence(role: Role, _config: &Config, who: Option<&Identity>) -> Result<Fences, SandboxError> {
    let mut in_force = Vec::new();
    let mut groups = Vec::new();
    if role == Role::Worker && who.is_some() {
        let Ok(name) = std::env::var(JAIL_VARIABLE) else {
            let what = format!("{JAIL_VARIABLE} is not set; a worker of root runs in a jail only");
            return Err(SandboxError::Refused { step: "attach to the jail", what });
        };
        attach(&name).map_err(|source| SandboxError::System { step: "attach to the jail", source })?;
        groups = devices::groups(&devices::nodes(Path::new("/dev")));
        in_force.push(format!("jail {name}"));
    }
    no_new_privileges().map_err(|source| SandboxError::System { step: "forbid new privileges", source })?;
    in_force.push("no new privileges".to_string());
    Ok(Fences { in_force, groups })
}

/// Nothing is left to give up: a driver opens its nodes late, so capability mode would break the worker, and the api
/// opens files of its store by path.
pub fn narrow(_role: Role) -> Result<Option<String>, SandboxError> {
    Ok(None)
}

fn no_new_privileges() -> io::Result<()> {
    let mut enable = libc::PROC_NO_NEW_PRIVS_ENABLE;
    // SAFETY: procctl(2) PROC_NO_NEW_PRIVS_CTL reads one int; P_PID with id 0 is the calling process.
    check(unsafe { libc::procctl(libc::P_PID, 0, libc::PROC_NO_NEW_PRIVS_CTL, (&raw mut enable).cast()) }).map(drop)
}

fn attach(name: &str) -> io::Result<()> {
    let jid = find(name)?;
    // SAFETY: jail_attach(2) takes a number and touches no memory of this process.
    check(unsafe { libc::jail_attach(jid) })?;
    std::env::set_current_dir("/")
}

/// The number of the jail of that name.
fn find(name: &str) -> io::Result<libc::c_int> {
    let mut parameters = Parameters::default();
    parameters.text("name", name)?;
    parameters.call(|iov| {
        // SAFETY: jail_get(2) needs pairs of buffers that live through the call; `Parameters::call` says they do.
        unsafe { libc::jail_get(iov.as_mut_ptr(), iov.len() as libc::c_uint, 0) }
    })
}

/// A worker's jail; dropped, its processes are killed, its mounts undone and its root removed.
#[derive(Debug)]
pub struct Jail {
    // Fields drop in this order: the processes go before the mounts they use, those before the root.
    _created: Created,
    _mounts: Mounts,
    _root: Root,
    name: String,
}

impl Jail {
    /// Refuses a ruleset that would show the host's devices: jail(8) says that 0 means no rules at all.
    ///
    /// Errors: `Ruleset` with what to put into devfs.rules(5).
    pub fn check_ruleset(ruleset: u32) -> Result<(), SandboxError> {
        let refuse = |why: &str| Err(SandboxError::Ruleset { ruleset, why: why.to_string() });
        if ruleset == 0 {
            return refuse("hides nothing, so a worker would see every disk");
        }
        let show = |n: u32| {
            let shown = Command::new("/sbin/devfs").args(["rule", "-s", &n.to_string(), "show"]).output();
            shown.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
        };
        if show(ruleset).trim().is_empty() {
            return refuse("does not exist");
        }
        if !hides_everything(ruleset, &show) {
            return refuse("does not begin by hiding everything");
        }
        Ok(())
    }

    /// Makes the jail of `jails/worker.toml` for this configuration.
    ///
    /// Errors: `Ruleset`; `System` for the step that failed, with everything before it undone.
    pub fn create(config: &Config, _user: &Identity) -> Result<Jail, SandboxError> {
        let ruleset = config.worker.devfs_ruleset;
        Self::check_ruleset(ruleset)?;
        let step = |step| move |source| SandboxError::System { step, source };
        let name = name_for(config);
        remove_stale(&name);
        let spec = JailSpec::worker(&config.model.path, &cache_directory(config));
        let root = Root::make(config).map_err(step("make the jail's root"))?;
        let mut mounts = Mounts::default();
        mounts.tmpfs(&root.0).map_err(step("mount the jail's root"))?;
        for mount in &spec.mounts {
            if mount.optional && !mount.path.exists() {
                continue;
            }
            mounts.nullfs(&root.0, &mount.path, mount.write).map_err(step("mount a folder in the jail"))?;
        }
        mounts.devfs(&root.0, ruleset).map_err(step("mount devfs in the jail"))?;
        let created = Created::create(&name, &root.0, &spec).map_err(step("jail_set"))?;
        limit(&name, &spec).map_err(step("limit the jail by rctl"))?;
        Ok(Jail { _created: created, _mounts: mounts, _root: root, name })
    }

    /// Its name, by which the worker finds it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// One daemon has one pid file, so its directory names the jail.
fn name_for(config: &Config) -> String {
    let stem = config.state.pid_file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let clean: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("{clean}_worker")
}

/// Removes a jail that a crashed parent left; if there is none, that is as well.
fn remove_stale(name: &str) {
    if let Ok(jid) = find(name) {
        log::warn!("jail {name} was left by an earlier run and is removed");
        // SAFETY: jail_remove(2) takes a number and touches no memory of this process.
        unsafe { libc::jail_remove(jid) };
    }
}

/// The directory of the jail's root, in the directory of the pid file, which only root writes.
#[derive(Debug)]
struct Root(PathBuf);

impl Root {
    fn make(config: &Config) -> io::Result<Root> {
        let run = config.state.pid_file.parent().unwrap_or(Path::new("/var/run"));
        let path = run.join("jail-worker");
        // Mounts of an earlier run lie on top of each other at worst; each unmount takes one off.
        for mount in mounted_below(&path)? {
            unmount(&mount);
        }
        std::fs::create_dir_all(&path)?;
        Ok(Root(path))
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // It is made again at the next start if it cannot be removed now.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Mount points at or below a path, the deepest first, as mount(8) prints them.
fn mounted_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let listed = Command::new("/sbin/mount").arg("-p").output()?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let points = text.lines().filter_map(|l| l.split_whitespace().nth(1)).map(PathBuf::from);
    let mut found: Vec<PathBuf> = points.filter(|p| p.starts_with(path)).collect();
    found.reverse();
    Ok(found)
}

/// Mount points in the order they were made.
#[derive(Debug, Default)]
struct Mounts(Vec<PathBuf>);

impl Mounts {
    fn tmpfs(&mut self, root: &Path) -> io::Result<()> {
        self.mount(root, &[("fstype", "tmpfs"), ("size", ROOT_SIZE), ("mode", "755")], libc::MNT_NOSUID)
    }

    fn nullfs(&mut self, root: &Path, folder: &Path, write: bool) -> io::Result<()> {
        let at = inside(root, folder)?;
        let from = path_text(folder)?;
        let flags = if write { libc::MNT_NOEXEC } else { libc::MNT_RDONLY } | libc::MNT_NOSUID;
        self.mount(&at, &[("fstype", "nullfs"), ("target", from)], flags)
    }

    /// The ruleset belongs to the mount, so nodes that appear later are filtered too.
    fn devfs(&mut self, root: &Path, ruleset: u32) -> io::Result<()> {
        let at = inside(root, Path::new("/dev"))?;
        self.mount(&at, &[("fstype", "devfs"), ("from", "devfs"), ("ruleset", &ruleset.to_string())], 0)
    }

    fn mount(&mut self, at: &Path, options: &[(&str, &str)], flags: libc::c_int) -> io::Result<()> {
        let mut parameters = Parameters::default();
        for (key, value) in options {
            parameters.text(key, value)?;
        }
        parameters.text("fspath", path_text(at)?)?;
        parameters.call(|iov| {
            // SAFETY: nmount(2) needs pairs of buffers that live through the call; `Parameters::call` says they do.
            unsafe { libc::nmount(iov.as_mut_ptr(), iov.len() as libc::c_uint, flags) }
        })?;
        self.0.push(at.to_path_buf());
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        while let Some(path) = self.0.pop() {
            unmount(&path);
        }
    }
}

fn unmount(path: &Path) {
    if let Err(e) = nix::mount::unmount(path, nix::mount::MntFlags::MNT_FORCE) {
        log::warn!("unmount {}: {e}", path.display());
    }
}

/// Makes the mount point of an absolute path below the root.
fn inside(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let at = root.join(path.strip_prefix("/").unwrap_or(path));
    std::fs::create_dir_all(&at)?;
    Ok(at)
}

fn path_text(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{}: not UTF-8", path.display())))
}

/// A jail that exists.
#[derive(Debug)]
struct Created(libc::c_int);

impl Created {
    fn create(name: &str, root: &Path, spec: &JailSpec) -> io::Result<Created> {
        let mut parameters = Parameters::default();
        parameters.text("name", name)?;
        parameters.text("path", path_text(root)?)?;
        parameters.text("host.hostname", name)?;
        // It exists before anything is in it, and goes when this guard does.
        parameters.flag("persist")?;
        for (key, value) in &spec.parameters {
            match (value, value.number()) {
                (Parameter::Flag(true), _) => parameters.flag(key)?,
                (_, Some(number)) => parameters.number(key, number)?,
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("jail parameter {key}: {value:?}"),
                    ));
                }
            }
        }
        let jid = parameters.call(|iov| {
            // SAFETY: jail_set(2) needs pairs of buffers that live through the call; `Parameters::call` says they do.
            unsafe { libc::jail_set(iov.as_mut_ptr(), iov.len() as libc::c_uint, libc::JAIL_CREATE) }
        })?;
        Ok(Created(jid))
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        // SAFETY: jail_remove(2) takes a number and touches no memory of this process. It kills what is inside.
        unsafe { libc::jail_remove(self.0) };
    }
}

/// Sets the limits where the kernel counts resources; says plainly where it does not.
fn limit(name: &str, spec: &JailSpec) -> io::Result<()> {
    if !racct_enabled() {
        log::warn!("no resource limits for the worker: set kern.racct.enable=1 in /boot/loader.conf and reboot");
        return Ok(());
    }
    for (resource, amount) in &spec.limits {
        let rule = text(&format!("jail:{name}:{resource}:deny={amount}"))?;
        let bytes = rule.as_bytes_with_nul().len();
        // SAFETY: rctl_add_rule(2) reads a NUL-terminated rule of the given length and writes nothing for a null
        // output.
        check(unsafe { rctl_add_rule(rule.as_ptr(), bytes, std::ptr::null_mut(), 0) })?;
    }
    Ok(())
}

fn racct_enabled() -> bool {
    let mut value: u8 = 0;
    let mut bytes = size_of::<u8>();
    let name = c"kern.racct.enable";
    // SAFETY: sysctlbyname(3) writes at most `bytes` bytes to a buffer of that size; nothing is set.
    let done =
        unsafe { libc::sysctlbyname(name.as_ptr(), (&raw mut value).cast(), &raw mut bytes, std::ptr::null(), 0) };
    done == 0 && value != 0
}

/// Name and value pairs as jail_set(2) and nmount(2) take them.
#[derive(Default)]
struct Parameters(Vec<(CString, Vec<u8>)>);

impl Parameters {
    fn text(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.0.push((text(key)?, text(value)?.into_bytes_with_nul()));
        Ok(())
    }

    fn number(&mut self, key: &str, value: i32) -> io::Result<()> {
        self.0.push((text(key)?, value.to_ne_bytes().to_vec()));
        Ok(())
    }

    fn flag(&mut self, key: &str) -> io::Result<()> {
        self.0.push((text(key)?, Vec::new()));
        Ok(())
    }

    /// Hands the pairs and an `errmsg` buffer to a system call. All buffers are owned by `self` or this frame, so they
    /// live until `system` returns. The kernel's own words become the error where it gave any.
    fn call(mut self, system: impl FnOnce(&mut [libc::iovec]) -> libc::c_int) -> io::Result<libc::c_int> {
        let mut message = [0u8; ERROR_BYTES];
        let mut iov: Vec<libc::iovec> = Vec::with_capacity(2 * self.0.len() + 2);
        let pair = |bytes: *mut libc::c_void, length| libc::iovec { iov_base: bytes, iov_len: length };
        for (key, value) in &mut self.0 {
            iov.push(pair(key.as_ptr().cast_mut().cast(), key.as_bytes_with_nul().len()));
            let base = if value.is_empty() { std::ptr::null_mut() } else { value.as_mut_ptr().cast() };
            iov.push(pair(base, value.len()));
        }
        iov.push(pair(c"errmsg".as_ptr().cast_mut().cast(), c"errmsg".to_bytes_with_nul().len()));
        iov.push(pair(message.as_mut_ptr().cast(), message.len()));
        let result = system(&mut iov);
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        let words = CStr::from_bytes_until_nul(&message).map(|m| m.to_string_lossy().into_owned()).unwrap_or_default();
        if words.is_empty() { Err(error) } else { Err(io::Error::new(error.kind(), format!("{error}: {words}"))) }
    }
}

fn text(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}
