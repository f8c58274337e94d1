//! Rules of devfs(5) by the ioctls that devfs(8) uses, on an open folder of the mount that they are about.
//!
//! The rule is laid out by hand, since no crate declares it; its size is part of the ioctls' numbers, so a kernel with
//! another layout refuses them. The layout is tested everywhere.

use super::spec::First;

/// `DEVFS_MAGIC` of fs/devfs/devfs.h.
const MAGIC: u32 = 0xdb0a_087a;
/// `DEVFS_MAXPTRNLEN`.
const PATTERN_BYTES: usize = 200;
/// `DRC_PATHPTRN`: the rule holds for paths that match its pattern.
const IF_PATH: i32 = 0x002;
/// `DRA_BACTS`: the rule hides or shows.
const HIDES_OR_SHOWS: i32 = 0x001;
/// `DRA_INCSET`: the rule is another ruleset.
const INCLUDES: i32 = 0x010;
/// `DRB_HIDE` and `DRB_UNHIDE`.
const HIDE: i32 = 0x001;
const SHOW: i32 = 0x002;

/// `struct devfs_rule`, which program and kernel share as it is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rule {
    magic: u32,
    /// The ruleset in the upper half, the rule's number in the lower.
    id: u32,
    conditions: i32,
    driver_flags: i32,
    pattern: [u8; PATTERN_BYTES],
    actions: i32,
    hide_or_show: i32,
    user: u32,
    group: u32,
    mode: u16,
    included: u16,
}

impl Rule {
    const EMPTY: Rule = Rule {
        magic: MAGIC,
        id: 0,
        conditions: 0,
        driver_flags: 0,
        pattern: [0; PATTERN_BYTES],
        actions: 0,
        hide_or_show: 0,
        user: 0,
        group: 0,
        mode: 0,
        included: 0,
    };

    /// Shows the node of that name; a longer one than the kernel takes is cut.
    pub fn show(name: &str) -> Rule {
        let mut rule = Rule { conditions: IF_PATH, actions: HIDES_OR_SHOWS, hide_or_show: SHOW, ..Rule::EMPTY };
        let bytes = name.len().min(PATTERN_BYTES - 1);
        rule.pattern[..bytes].copy_from_slice(&name.as_bytes()[..bytes]);
        rule
    }

    /// The question for the first rule of a ruleset.
    pub fn before_first_of(ruleset: u16) -> Rule {
        Rule { id: u32::from(ruleset) << 16, ..Rule::EMPTY }
    }

    /// What it does to every node.
    pub fn effect(&self) -> First {
        match (self.conditions, self.actions) {
            (0, HIDES_OR_SHOWS) if self.hide_or_show == HIDE => First::HidesAll,
            (0, INCLUDES) => First::Includes(u32::from(self.included)),
            _ => First::Other,
        }
    }
}

/// A number as `_IOW` and `_IOWR` of sys/ioccom.h make it. `inout`: which way the argument goes.
const fn ioctl_number(inout: u64, number: u64) -> u64 {
    inout | ((size_of::<Rule>() as u64) << 16) | ((b'D' as u64) << 8) | number
}

const IN: u64 = 0x8000_0000;
const INOUT: u64 = 0xc000_0000;
/// `DEVFSIO_RAPPLY`: applies a rule to the nodes of one mount and keeps it nowhere.
pub const APPLY: u64 = ioctl_number(IN, 2);
/// `DEVFSIO_RGETNEXT`: the rule that follows the given number.
pub const NEXT: u64 = ioctl_number(INOUT, 4);

#[cfg(target_os = "freebsd")]
mod calls {
    use super::*;
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    /// The first rule of a ruleset; `None` if the kernel has no such ruleset, or an empty one.
    ///
    /// Errors: what ioctl(2) returns, `PermissionDenied` for everybody but root outside of jails.
    pub fn first(ruleset: u32) -> io::Result<Option<First>> {
        let Ok(ruleset) = u16::try_from(ruleset) else { return Ok(None) };
        let dev = File::open("/dev")?;
        let mut rule = Rule::before_first_of(ruleset);
        // SAFETY: DEVFSIO_RGETNEXT reads and writes one rule, which lives through the call; the size is in its number.
        if unsafe { libc::ioctl(dev.as_raw_fd(), NEXT, &raw mut rule) } == 0 {
            return Ok(Some(rule.effect()));
        }
        match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::NotFound => Ok(None),
            e => Err(e),
        }
    }

    /// Shows nodes of one mount, whatever its ruleset hides. Those that appear later are the ruleset's to decide.
    pub fn show(mount: &Path, names: &[&str]) -> io::Result<()> {
        let dev = File::open(mount)?;
        for name in names {
            let rule = Rule::show(name);
            // SAFETY: DEVFSIO_RAPPLY reads one rule, which lives through the call; the size is in its number.
            if unsafe { libc::ioctl(dev.as_raw_fd(), APPLY, &raw const rule) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

#[cfg(target_os = "freebsd")]
pub use calls::{first, show};

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_rule_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(size_of::<Rule>(), 236);
        let offsets = [
            offset_of!(Rule, id),
            offset_of!(Rule, conditions),
            offset_of!(Rule, pattern),
            offset_of!(Rule, actions),
            offset_of!(Rule, hide_or_show),
            offset_of!(Rule, mode),
            offset_of!(Rule, included),
        ];
        assert_eq!(offsets, [4, 8, 16, 216, 220, 232, 234]);
        assert_eq!((APPLY, NEXT), (0x80ec_4402, 0xc0ec_4404));
    }

    #[test]
    fn rules_are_told_apart() {
        let hide = Rule { actions: HIDES_OR_SHOWS, hide_or_show: HIDE, ..Rule::EMPTY };
        assert_eq!(hide.effect(), First::HidesAll);
        assert_eq!(Rule { conditions: IF_PATH, ..hide }.effect(), First::Other, "it hides some");
        assert_eq!(Rule { actions: INCLUDES, included: 7, ..Rule::EMPTY }.effect(), First::Includes(7));
        let show = Rule::show("null");
        assert_eq!((show.effect(), &show.pattern[..5]), (First::Other, &b"null\0"[..]));
        assert_eq!(Rule::show(&"x".repeat(300)).pattern[PATTERN_BYTES - 1], 0, "it ends with a zero byte");
        assert_eq!(Rule::before_first_of(8420).id, 8420 << 16);
    }
}
