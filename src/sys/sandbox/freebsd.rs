//! FreeBSD: a jail(2) that the parent makes and the worker attaches to, with its own devfs(5) ruleset and rctl(8)
//! limits.
//!
//! What is done, and in which order, is the value of [`super::plan`]; it is undone in reverse when the jail is dropped.
//! Its names are predictable, so what a crashed parent left is removed at the next start. The api enters capability
//! mode (capsicum(4)).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::super::user::Identity;
use super::plan::{self, Flag, Host, Leased, Plan, Step, Undo, Value};
use super::spec::{JailSpec, hides_everything};
use super::{Fences, Role, SandboxError, devfs, devices};
use crate::config::Config;
use crate::sys::rights::{self, Rights};

/// Variable by which a worker learns the name of its jail.
pub const JAIL_VARIABLE: &str = "GAMEGEND_JAIL";

/// Room for the kernel's `errmsg`.
const ERROR_BYTES: usize = 256;

// SAFETY: the declaration is that of rctl(2): two buffers with their lengths, the result in errno.
unsafe extern "C" {
    /// rctl_add_rule(2), which the libc crate does not declare.
    fn rctl_add_rule(
        rule: *const libc::c_char,
        rule_bytes: libc::size_t,
        out: *mut libc::c_char,
        out_bytes: libc::size_t,
    ) -> libc::c_int;
    /// rctl_remove_rule(2), likewise.
    fn rctl_remove_rule(
        filter: *const libc::c_char,
        filter_bytes: libc::size_t,
        out: *mut libc::c_char,
        out_bytes: libc::size_t,
    ) -> libc::c_int;
}

/// Attaches to the jail that the parent made and forbids new privileges.
pub fn fence(role: Role, _config: &mut Config, who: Option<&Identity>) -> Result<Fences, SandboxError> {
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

/// The api enters capability mode: it reaches its folders and sockets by the descriptors that it has, with the rights
/// that they need, and nothing by name. The worker cannot: a driver opens its nodes and libraries late, by path; its
/// jail is its fence.
pub fn narrow(
    role: Role,
    listeners: &[BorrowedFd<'_>],
    links: &[BorrowedFd<'_>],
) -> Result<Option<String>, SandboxError> {
    if role == Role::Worker {
        return Ok(None);
    }
    let step = |step| move |source| SandboxError::System { step, source };
    let limited = |rights: Rights, fds: &[BorrowedFd<'_>]| fds.iter().try_for_each(|fd| rights.limit(*fd));
    limited(rights::listener(), listeners).map_err(step("limit a listener"))?;
    limited(rights::link(), links).map_err(step("limit a link"))?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    limited(rights::stream(), &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]).map_err(step("limit a stream"))?;
    // SAFETY: cap_enter(2) takes nothing and touches no memory of this process.
    check(unsafe { libc::cap_enter() }).map_err(step("enter capability mode"))?;
    Ok(Some("capability mode".to_string()))
}

/// Processes of a jail see no others; nothing is to be done at the start.
pub fn apart<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    start()
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
    name: String,
    /// Set once it was made.
    jid: Option<libc::c_int>,
    /// What to take back, in the order in which it was done.
    done: Vec<Undo>,
}

impl Jail {
    /// Refuses a configuration whose worker would see the host's devices: jail(8) says that ruleset 0 means no rules at
    /// all.
    ///
    /// Errors: `Ruleset` with what to put into devfs.rules(5).
    pub fn check_ruleset(config: &Config) -> Result<(), SandboxError> {
        let ruleset = ruleset_for(config);
        let refuse = |why: &str| Err(SandboxError::Ruleset { ruleset, why: why.to_string() });
        if ruleset == 0 {
            return refuse("hides nothing, so a worker would see every disk");
        }
        let begins =
            devfs::first(ruleset).map_err(|source| SandboxError::System { step: "read devfs rules", source })?;
        if begins.is_none() {
            return refuse("does not exist");
        }
        if !hides_everything(ruleset, &|n| devfs::first(n).ok().flatten()) {
            return refuse("does not begin by hiding everything");
        }
        Ok(())
    }

    /// Makes the jail of `jails/worker.toml` for this configuration, after taking away what a crashed daemon left of
    /// it.
    ///
    /// Errors: `Ruleset`; `System` for the step that failed, with everything before it undone.
    pub fn create(config: &Config, _user: &Identity) -> Result<Jail, SandboxError> {
        Self::check_ruleset(config)?;
        let spec = JailSpec::worker(config);
        let resolve = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let host = Host { exists: &|path| path.exists(), resolve: &resolve };
        let plan = plan::plan(config, &spec, ruleset_for(config), &host);
        remove_stale(&plan).map_err(|source| SandboxError::System { step: "take away an old jail", source })?;
        let mut jail = Jail { name: plan.name.clone(), jid: None, done: Vec::new() };
        let limits = racct_enabled();
        if !limits {
            log::warn!("no resource limits for the worker: set kern.racct.enable=1 in /boot/loader.conf and reboot");
        }
        for step in &plan.steps {
            if !limits && matches!(step, Step::Limit(_)) {
                continue;
            }
            jail.take(step)?;
        }
        Ok(jail)
    }

    /// Its name, by which the worker finds it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn take(&mut self, step: &Step) -> Result<(), SandboxError> {
        let failed = |what| move |source| SandboxError::System { step: what, source };
        match step {
            Step::MakeFolder(path) => std::fs::create_dir_all(path).map_err(failed("make the jail's root"))?,
            Step::Mount { at, options, flags } => {
                mount(at, options, flags).map_err(failed("mount a folder in the jail"))?;
            }
            Step::Show { at, nodes } => devfs::show(at, nodes).map_err(failed("show nodes in the jail"))?,
            Step::CheckNodes { at, device } => check_nodes(at, device)?,
            Step::Create(parameters) => self.jid = Some(create(parameters).map_err(failed("jail_set"))?),
            Step::Limit(rule) => limit(rule).map_err(failed("limit the jail by rctl"))?,
        }
        self.done.extend(step.undo(&self.name));
        Ok(())
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        while let Some(undo) = self.done.pop() {
            match undo {
                // It is made again at the next start if it cannot be removed now.
                Undo::RemoveFolder(path) => drop(std::fs::remove_dir(path)),
                Undo::Unmount(path) => unmount(&path),
                Undo::RemoveJail => remove(self.jid),
                Undo::RemoveLimits(filter) => remove_limits(&filter),
            }
        }
    }
}

fn ruleset_for(config: &Config) -> u32 {
    plan::ruleset(config, !devices::nodes(Path::new("/dev")).is_empty())
}

/// Removes the jail, the rules and the mounts that a crashed parent left; if there are none, that is as well.
fn remove_stale(plan: &Plan) -> io::Result<()> {
    if let Ok(jid) = find(&plan.name) {
        log::warn!("jail {} was left by an earlier run and is removed", plan.name);
        remove(Some(jid));
        remove_limits(&format!("jail:{}", plan.name));
    }
    // Mounts of an earlier run lie on top of each other at worst; each unmount takes one off.
    for mount in mounted_below(&plan.root)? {
        unmount(&mount);
    }
    Ok(())
}

fn remove(jid: Option<libc::c_int>) {
    if let Some(jid) = jid {
        // SAFETY: jail_remove(2) takes a number and touches no memory of this process. It kills what is inside.
        unsafe { libc::jail_remove(jid) };
    }
}

/// Mount points at or below a path, the newest first (getfsstat(2)).
fn mounted_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    // The kernel knows mount points by their real names.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    // SAFETY: getfsstat(2) without a buffer writes nothing and answers how many file systems there are.
    let count = check(unsafe { libc::getfsstat(std::ptr::null_mut(), 0, libc::MNT_NOWAIT) })? as usize;
    // Room for some that are mounted meanwhile.
    let mut all: Vec<libc::statfs> = Vec::with_capacity(count + 16);
    let bytes = all.capacity() * size_of::<libc::statfs>();
    // SAFETY: getfsstat(2) writes at most `bytes` bytes, the capacity of the vector, and answers the number of entries.
    let count = check(unsafe { libc::getfsstat(all.as_mut_ptr(), bytes as libc::c_long, libc::MNT_NOWAIT) })?;
    // SAFETY: the kernel has just written that many entries, and they fit.
    unsafe { all.set_len(count as usize) };
    let at = |fs: &libc::statfs| {
        let bytes: Vec<u8> = fs.f_mntonname.iter().map(|&c| c as u8).take_while(|&b| b != 0).collect();
        PathBuf::from(std::ffi::OsString::from_vec(bytes))
    };
    Ok(all.iter().rev().map(at).filter(|p| p.starts_with(&path)).collect())
}

/// The ruleset belongs to the mount, so nodes that appear later are filtered too.
fn mount(at: &Path, options: &[(&'static str, String)], flags: &[Flag]) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    let mut parameters = Parameters::default();
    for (key, value) in options {
        parameters.text(key, value)?;
    }
    parameters.text("fspath", path_text(at)?)?;
    let flags = flags.iter().fold(0, |all, flag| {
        all | match flag {
            Flag::ReadOnly => libc::MNT_RDONLY,
            Flag::NoSetUserId => libc::MNT_NOSUID,
            Flag::NoExec => libc::MNT_NOEXEC,
        }
    });
    let done = parameters.call(|iov| {
        // SAFETY: nmount(2) needs pairs of buffers that live through the call; `Parameters::call` says they do.
        unsafe { libc::nmount(iov.as_mut_ptr(), iov.len() as libc::c_uint, flags) }
    });
    done.map(drop).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", at.display())))
}

fn unmount(path: &Path) {
    if let Err(e) = nix::mount::unmount(path, nix::mount::MntFlags::MNT_FORCE) {
        log::warn!("unmount {}: {e}", path.display());
    }
}

/// The rules were read before; this is what they come to.
fn check_nodes(dev: &Path, device: &Leased) -> Result<(), SandboxError> {
    let mut names = Vec::new();
    let looked = names_below(dev, "", &mut names);
    looked.map_err(|source| SandboxError::System { step: "look at the jail's devices", source })?;
    let forbidden = plan::forbidden_nodes(&names, device);
    if forbidden.is_empty() {
        return Ok(());
    }
    let mut what = format!("its devfs ruleset shows {}", forbidden.join(", "));
    if let Leased::Only(nodes) = device {
        let leased: Vec<_> = nodes.iter().map(|n| n.display().to_string()).collect();
        what.push_str(&format!("; allowed by gpu.nodes: {}", leased.join(", ")));
    }
    Err(SandboxError::Refused { step: "look at the jail's devices", what })
}

/// Everything below a folder, as paths from there; links are named and not followed.
fn names_below(folder: &Path, prefix: &str, names: &mut Vec<String>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            names_below(&entry.path(), &format!("{name}/"), names)?;
        }
        names.push(name);
    }
    Ok(())
}

fn path_text(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{}: not UTF-8", path.display())))
}

fn create(parameters: &[(String, Value)]) -> io::Result<libc::c_int> {
    let mut all = Parameters::default();
    for (key, value) in parameters {
        match value {
            Value::Text(text) => all.text(key, text)?,
            Value::Number(number) => all.number(key, *number)?,
            Value::None => all.flag(key)?,
        }
    }
    all.call(|iov| {
        // SAFETY: jail_set(2) needs pairs of buffers that live through the call; `Parameters::call` says they do.
        unsafe { libc::jail_set(iov.as_mut_ptr(), iov.len() as libc::c_uint, libc::JAIL_CREATE) }
    })
}

fn limit(rule: &str) -> io::Result<()> {
    let rule = text(rule)?;
    let bytes = rule.as_bytes_with_nul().len();
    // SAFETY: rctl_add_rule(2) reads a NUL-terminated rule of the given length and writes nothing for a null output.
    check(unsafe { rctl_add_rule(rule.as_ptr(), bytes, std::ptr::null_mut(), 0) }).map(drop)
}

fn remove_limits(filter: &str) {
    if !racct_enabled() {
        return;
    }
    if let Ok(filter) = text(filter) {
        let bytes = filter.as_bytes_with_nul().len();
        // SAFETY: rctl_remove_rule(2) reads a NUL-terminated filter of the given length and writes nothing for a null
        // output. It fails only if there is no such rule.
        unsafe { rctl_remove_rule(filter.as_ptr(), bytes, std::ptr::null_mut(), 0) };
    }
}

fn racct_enabled() -> bool {
    // An int in older kernels, a bool in newer ones: room for either, and any bit set means yes.
    let mut value = [0u8; size_of::<libc::c_int>()];
    let mut bytes = value.len();
    let name = c"kern.racct.enable";
    // SAFETY: sysctlbyname(3) writes at most `bytes` bytes to a buffer of that size; nothing is set.
    let done =
        unsafe { libc::sysctlbyname(name.as_ptr(), value.as_mut_ptr().cast(), &raw mut bytes, std::ptr::null(), 0) };
    done == 0 && value != [0; 4]
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
        if words.is_empty() {
            Err(error)
        } else {
            Err(io::Error::new(error.kind(), format!("{error}: {}", plan::explain(&words))))
        }
    }
}

fn text(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}
