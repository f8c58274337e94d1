//! Capsicum rights of a descriptor (rights(4), cap_rights_limit(2)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A set of `CAP_*` rights.
pub struct Rights(libc::cap_rights_t);

impl Rights {
    /// The set of exactly these rights.
    pub fn new(rights: &[u64]) -> Rights {
        let mut set = MaybeUninit::<libc::cap_rights_t>::uninit();
        // SAFETY: __cap_rights_init writes the whole of the set that it is given and reads rights until a 0; there are
        // none here but the 0.
        unsafe { libc::__cap_rights_init(libc::CAP_RIGHTS_VERSION, set.as_mut_ptr(), 0u64) };
        // SAFETY: __cap_rights_init has just written it.
        let mut set = unsafe { set.assume_init() };
        for &right in rights {
            // SAFETY: __cap_rights_set needs an initialised set and a list of u64 rights that ends with 0.
            unsafe { libc::__cap_rights_set(&mut set, right, 0u64) };
        }
        Rights(set)
    }

    /// Takes every other right from the descriptor, for good.
    pub fn limit(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: cap_rights_limit reads an initialised set and changes nothing but the descriptor, which is borrowed.
        match unsafe { libc::cap_rights_limit(fd.as_raw_fd(), &self.0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// What [`super::dir::Dir`] does with a folder and with what it opens there.
pub fn folder() -> Rights {
    Rights::new(&[
        libc::CAP_LOOKUP,
        libc::CAP_READ,
        libc::CAP_WRITE,
        libc::CAP_SEEK,
        libc::CAP_MMAP_R,
        libc::CAP_CREATE,
        libc::CAP_FTRUNCATE,
        libc::CAP_FSYNC,
        libc::CAP_FSTAT,
        libc::CAP_FSTATFS,
        libc::CAP_FCNTL,
        libc::CAP_MKDIRAT,
        libc::CAP_UNLINKAT,
        libc::CAP_RENAMEAT_SOURCE,
        libc::CAP_RENAMEAT_TARGET,
    ])
}

/// A listening socket and, since they inherit its rights, the connections that it accepts.
pub fn listener() -> Rights {
    Rights::new(&[
        libc::CAP_ACCEPT,
        libc::CAP_READ,
        libc::CAP_WRITE,
        libc::CAP_EVENT,
        libc::CAP_SHUTDOWN,
        libc::CAP_GETSOCKNAME,
        libc::CAP_GETPEERNAME,
        libc::CAP_GETSOCKOPT,
        libc::CAP_SETSOCKOPT,
        libc::CAP_FSTAT,
        libc::CAP_FCNTL,
        libc::CAP_IOCTL,
    ])
}

/// A link to another role.
pub fn link() -> Rights {
    Rights::new(&[
        libc::CAP_READ,
        libc::CAP_WRITE,
        libc::CAP_EVENT,
        libc::CAP_SHUTDOWN,
        libc::CAP_GETSOCKOPT,
        libc::CAP_SETSOCKOPT,
        libc::CAP_FSTAT,
        libc::CAP_FCNTL,
    ])
}

/// A standard stream.
pub fn stream() -> Rights {
    Rights::new(&[libc::CAP_READ, libc::CAP_WRITE, libc::CAP_FSTAT, libc::CAP_EVENT])
}
