//! Users: looking one up, becoming one for good, acting as one for a moment.

use std::io;

use nix::unistd::{Gid, Uid, User, getegid, geteuid, getgid, getgroups, getuid, setgid, setuid};

/// Whose name stands in where the configured user does not exist.
const FALLBACK: &str = "nobody";

/// A user that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// As in passwd(5).
    pub name: String,
    /// Numeric user.
    pub uid: Uid,
    /// The user's own group; no supplementary groups are kept.
    pub gid: Gid,
}

/// Why a process is not who it should be.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("neither user {0:?} nor user {FALLBACK:?} exists")]
    Unknown(String),
    #[error("user {0:?} is root; allowed: a user without privileges")]
    Root(String),
    #[error("look up user {name:?}")]
    Lookup {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("become user {name:?}: {step}")]
    Drop {
        name: String,
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("after becoming user {name:?} the process still has {what}")]
    NotDropped { name: String, what: String },
}

/// True if this process may do everything.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// The user of that name, or `nobody` if there is none.
///
/// Errors: `Unknown` if neither exists, `Root` if it is uid 0, `Lookup` if the user database cannot be read.
pub fn find(name: &str) -> Result<Identity, UserError> {
    let look =
        |name: &str| User::from_name(name).map_err(|e| UserError::Lookup { name: name.to_string(), source: e.into() });
    let user = match look(name)? {
        Some(user) => user,
        None => look(FALLBACK)?.ok_or_else(|| UserError::Unknown(name.to_string()))?,
    };
    if user.uid.is_root() {
        return Err(UserError::Root(user.name));
    }
    Ok(Identity { name: user.name, uid: user.uid, gid: user.gid })
}

/// Becomes `who` for good: groups, then group, then user, and reads all of them back. `groups` are kept beside the
/// user's own: those that the device's nodes belong to.
///
/// Errors: `Drop` for the step that failed, `NotDropped` if the kernel says afterwards that something was kept.
pub fn become_user(who: &Identity, groups: &[Gid]) -> Result<(), UserError> {
    let failed =
        |step| move |source: nix::errno::Errno| UserError::Drop { name: who.name.clone(), step, source: source.into() };
    let others = others(who.gid, groups);
    // The user's own comes first: FreeBSD before 15 takes the first one for the effective group, which setgid replaces.
    nix::unistd::setgroups(&[&[who.gid], others.as_slice()].concat()).map_err(failed("setgroups"))?;
    setgid(who.gid).map_err(failed("setgid"))?;
    setuid(who.uid).map_err(failed("setuid"))?;

    let surprise = |what: String| UserError::NotDropped { name: who.name.clone(), what };
    for (id, name) in [(getuid(), "real"), (geteuid(), "effective")] {
        if id != who.uid {
            return Err(surprise(format!("{name} uid {id}")));
        }
    }
    for (id, name) in [(getgid(), "real"), (getegid(), "effective")] {
        if id != who.gid {
            return Err(surprise(format!("{name} gid {id}")));
        }
    }
    let kept = getgroups().map_err(failed("getgroups"))?;
    if self::others(who.gid, &kept) != others {
        return Err(surprise(format!("groups {kept:?}")));
    }
    // The saved user cannot be read everywhere, but trying to go back shows it.
    if setuid(Uid::from_raw(0)).is_ok() {
        return Err(surprise("the way back to root".to_string()));
    }
    Ok(())
}

/// Those groups without `own`, each once, rising.
fn others(own: Gid, groups: &[Gid]) -> Vec<Gid> {
    let rest: std::collections::BTreeSet<u32> = groups.iter().filter(|g| **g != own).map(|g| g.as_raw()).collect();
    rest.into_iter().map(Gid::from_raw).collect()
}

/// Runs `probe` with the effective identity of `who`, to see what that user will be able to open; a process that is not
/// root runs it as itself. For the single-threaded parent only: identities belong to the whole process.
///
/// Errors: `Drop` if the identity cannot be taken. Panics if the way back fails, since nothing may go on then.
pub fn acting_as<T>(who: Option<&Identity>, probe: impl FnOnce() -> T) -> Result<T, UserError> {
    let Some(who) = who else {
        return Ok(probe());
    };
    let failed =
        |step| move |source: nix::errno::Errno| UserError::Drop { name: who.name.clone(), step, source: source.into() };
    let groups = getgroups().map_err(failed("getgroups"))?;
    let (uid, gid) = (geteuid(), getegid());
    let back = || {
        nix::unistd::seteuid(uid)
            .and_then(|()| nix::unistd::setegid(gid))
            .and_then(|()| nix::unistd::setgroups(&groups))
    };
    let taken = nix::unistd::setgroups(&[who.gid])
        .and_then(|()| nix::unistd::setegid(who.gid))
        .and_then(|()| nix::unistd::seteuid(who.uid));
    let result = taken.map(|()| probe());
    back().expect("a process whose real user is root can return to its own identity");
    result.map_err(failed("seteuid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_users_fall_back_and_root_is_refused() {
        let nobody = find("no-such-user-here").expect("every system has nobody");
        assert_eq!(nobody.name, FALLBACK);
        assert!(matches!(find("root"), Err(UserError::Root(_))));
    }

    #[test]
    fn groups_beside_the_own_are_told_once() {
        let gids = |numbers: &[u32]| numbers.iter().map(|n| Gid::from_raw(*n)).collect::<Vec<_>>();
        assert_eq!(others(Gid::from_raw(9), &gids(&[44, 9, 7, 44])), gids(&[7, 44]));
        assert_eq!(others(Gid::from_raw(9), &[]), []);
    }

    #[test]
    fn acting_as_nobody_and_back() {
        if !is_root() {
            println!("skipped: only root can act as another user");
            return;
        }
        // In a child process, since other tests of this program run in threads beside this one.
        let nobody = find(FALLBACK).expect("every system has nobody");
        let secret = std::env::temp_dir().join(format!("gamegend-user-{}", std::process::id()));
        std::fs::write(&secret, "secret").expect("a temporary file");
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
        // SAFETY: fork needs a child that keeps to what is safe after it: the child makes system calls, allocates
        // little and ends with _exit; glibc and FreeBSD's libc keep their allocators usable after a fork.
        let child = unsafe { nix::unistd::fork() }.expect("a child");
        if let nix::unistd::ForkResult::Parent { child } = child {
            let status = nix::sys::wait::waitpid(child, None).expect("our child");
            std::fs::remove_file(&secret).expect("ours");
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            return;
        }
        let hidden = acting_as(Some(&nobody), || std::fs::File::open(&secret).is_err());
        let back = std::fs::File::open(&secret).is_ok();
        let dropped =
            become_user(&nobody, &[Gid::from_raw(7), nobody.gid]).is_ok() && std::fs::File::open(&secret).is_err();
        let good = matches!(hidden, Ok(true)) && back && dropped;
        // SAFETY: _exit takes a number and does not return; nothing of this copied process needs to be run down.
        unsafe { libc::_exit(i32::from(!good)) }
    }
}
