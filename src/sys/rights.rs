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
