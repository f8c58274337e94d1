//! Anonymous memory that two roles share: one process creates and writes it, others map it read-only.
//!
//! The object has no name in any file system, so it reaches a jail or a namespace by its descriptor alone. Its size is
//! sealed (memfd_create(2), fcntl(2) `F_ADD_SEALS`): a peer that shrinks it could otherwise end a reader with SIGBUS.
//! A reader's descriptor cannot be mapped for writing: on Linux `F_SEAL_FUTURE_WRITE` forbids new writable mappings of
//! the object, on FreeBSD the descriptor's rights are limited (cap_rights_limit(2)).
//!
//! Another process may write while this one reads, so every access is atomic: words through [`SharedU64`] and
//! [`SharedU32`], bytes in relaxed pieces. A reader that needs a consistent whole builds it on top (a sequence lock).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The largest object that [`SharedMemory`] creates or maps, in bytes: a ring of eight 1920x1088 frames and a snapshot
/// stay below 64 MiB, and nothing else comes near.
pub const SHARED_BYTES_MAX: usize = 256 << 20;

/// Size of the words that bytes are copied by.
const WORD: usize = size_of::<u64>();

/// How a received descriptor is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Stores panic, and the mapping itself would fault.
    ReadOnly,
    /// Loads and stores.
    ReadWrite,
}

/// A mapped memory object.
///
/// Panics: like indexing a slice, every accessor panics if the range does not lie inside the object, if a word is not
/// aligned, or if a read-only object is written. Sizes that come from a peer are checked against [`len`](Self::len)
/// first.
#[derive(Debug)]
pub struct SharedMemory {
    fd: OwnedFd,
    map: MmapRaw,
    access: Access,
}

impl SharedMemory {
    /// Makes an object of `bytes` zero bytes, sealed against shrinking and growing. `name` is for debuggers only.
    ///
    /// Errors: `InvalidInput` if `bytes` is 0 or above [`SHARED_BYTES_MAX`] or the name contains a NUL; what
    /// memfd_create(2), ftruncate(2), fcntl(2) and mmap(2) return.
    pub fn create(name: &str, bytes: usize) -> io::Result<SharedMemory> {
        check_size(bytes as u64)?;
        let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
        file.set_len(bytes as u64)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
        let map = MmapOptions::new().len(bytes).map_raw(&file)?;
        Ok(SharedMemory { fd: file.into(), map, access: Access::ReadWrite })
    }

    /// Maps an object that another process created; its size is what fstat(2) says.
    ///
    /// Errors: `InvalidData` if it is empty, above [`SHARED_BYTES_MAX`], or not sealed against shrinking; what fstat(2)
    /// and mmap(2) return.
    pub fn from_fd(fd: OwnedFd, access: Access) -> io::Result<SharedMemory> {
        let file = File::from(fd);
        let bytes = file.metadata()?.len();
        check_size(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        check_sealed(&file)?;
        let mut options = MmapOptions::new();
        options.len(bytes as usize);
        let map = match access {
            Access::ReadOnly => options.map_raw_read_only(&file)?,
            Access::ReadWrite => options.map_raw(&file)?,
        };
        Ok(SharedMemory { fd: file.into(), map, access })
    }

    /// A descriptor of this object that can be mapped for reading only, to be sent to another role.
    ///
    /// On Linux the whole object refuses new writable mappings from then on; the existing one goes on writing.
    /// Errors: what fcntl(2), dup(2) and cap_rights_limit(2) return.
    pub fn read_only_fd(&self) -> io::Result<OwnedFd> {
        os::limit_to_reading(self.fd.as_fd())
    }

    /// Size in bytes; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Where the object is mapped, for a device that writes there by itself. Whoever gives it away keeps the object.
    pub fn start(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// The 64-bit word at `offset` bytes, a multiple of 8.
    pub fn atomic_u64(&self, offset: usize) -> SharedU64<'_> {
        self.check_range(offset, size_of::<u64>());
        assert!(offset.is_multiple_of(align_of::<AtomicU64>()), "offset {offset} is not a multiple of 8");
        // SAFETY: `from_ptr` needs an aligned pointer to 8 bytes that stay valid for the lifetime given to it. The
        // range and the alignment were checked above (mappings begin at a page), the mapping lives as long as `self`,
        // its object cannot shrink, and every access to it in this process is atomic.
        let word = unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(offset).cast()) };
        SharedU64 { word, access: self.access }
    }

    /// The 32-bit word at `offset` bytes, a multiple of 4.
    pub fn atomic_u32(&self, offset: usize) -> SharedU32<'_> {
        self.check_range(offset, size_of::<u32>());
        assert!(offset.is_multiple_of(align_of::<AtomicU32>()), "offset {offset} is not a multiple of 4");
        // SAFETY: as in `atomic_u64`, with 4 bytes.
        let word = unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(offset).cast()) };
        SharedU32 { word, access: self.access }
    }

    /// Copies the bytes at `offset` into `to`. A writer may be at work: what is read can be a mixture.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        self.check_range(offset, to.len());
        let (head, words) = split(offset, to.len());
        let (first, rest) = to.split_at_mut(head);
        for (i, byte) in first.iter_mut().enumerate() {
            *byte = self.byte(offset + i).load(Ordering::Relaxed);
        }
        let (middle, last) = rest.split_at_mut(words * WORD);
        for (i, chunk) in middle.chunks_exact_mut(WORD).enumerate() {
            chunk.copy_from_slice(&self.word(offset + head + i * WORD).load(Ordering::Relaxed).to_ne_bytes());
        }
        for (i, byte) in last.iter_mut().enumerate() {
            *byte = self.byte(offset + head + words * WORD + i).load(Ordering::Relaxed);
        }
    }

    /// Copies `from` to the bytes at `offset`. Readers may see a mixture until a word they trust says otherwise.
    pub fn write(&self, offset: usize, from: &[u8]) {
        assert_writable(self.access);
        self.check_range(offset, from.len());
        let (head, words) = split(offset, from.len());
        let (first, rest) = from.split_at(head);
        for (i, byte) in first.iter().enumerate() {
            self.byte(offset + i).store(*byte, Ordering::Relaxed);
        }
        let (middle, last) = rest.split_at(words * WORD);
        for (i, chunk) in middle.as_chunks::<WORD>().0.iter().enumerate() {
            self.word(offset + head + i * WORD).store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
        }
        for (i, byte) in last.iter().enumerate() {
            self.byte(offset + head + words * WORD + i).store(*byte, Ordering::Relaxed);
        }
    }

    fn check_range(&self, offset: usize, bytes: usize) {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.len());
        assert!(inside, "{bytes} bytes at {offset} are outside a shared object of {} bytes", self.len());
    }

    /// Callers have checked the range and the alignment.
    fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(WORD) && offset + WORD <= self.len());
        // SAFETY: as in `atomic_u64`; `read` and `write`, the only callers, have checked the whole range and begin
        // their words at a multiple of 8.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(offset).cast()) }
    }

    /// Callers have checked the range.
    fn byte(&self, offset: usize) -> &AtomicU8 {
        debug_assert!(offset < self.len());
        // SAFETY: as in `atomic_u64`, with one byte, which is always aligned.
        unsafe { AtomicU8::from_ptr(self.map.as_mut_ptr().add(offset)) }
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Splits a range into single bytes before the first aligned word, and the number of whole words after them.
fn split(offset: usize, bytes: usize) -> (usize, usize) {
    let head = (offset.next_multiple_of(WORD) - offset).min(bytes);
    (head, (bytes - head) / WORD)
}

fn check_size(bytes: u64) -> io::Result<()> {
    if bytes == 0 || bytes > SHARED_BYTES_MAX as u64 {
        let text = format!("shared memory of {bytes} bytes; allowed: 1 to {SHARED_BYTES_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

fn check_sealed(file: &File) -> io::Result<()> {
    let unsealed = || io::Error::new(io::ErrorKind::InvalidData, "shared memory that is not sealed against shrinking");
    // Anything but a memory object answers EINVAL; such a descriptor could be truncated under the mapping.
    let seals = fcntl(file.as_fd(), FcntlArg::F_GET_SEALS).map_err(|_| unsealed())?;
    if SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK) { Ok(()) } else { Err(unsealed()) }
}

fn assert_writable(access: Access) {
    assert!(access == Access::ReadWrite, "a read-only shared object is never written");
}

macro_rules! shared_word {
    ($name:ident, $atomic:ty, $int:ty, $text:literal) => {
        #[doc = $text]
        ///
        /// Panics: the methods that store panic if the object was mapped read-only.
        #[derive(Clone, Copy, Debug)]
        pub struct $name<'a> {
            word: &'a $atomic,
            access: Access,
        }

        impl $name<'_> {
            /// The value now.
            pub fn load(&self, order: Ordering) -> $int {
                self.word.load(order)
            }

            /// Replaces the value.
            pub fn store(&self, value: $int, order: Ordering) {
                assert_writable(self.access);
                self.word.store(value, order);
            }

            /// Adds, wrapping, and returns the value before.
            pub fn fetch_add(&self, value: $int, order: Ordering) -> $int {
                assert_writable(self.access);
                self.word.fetch_add(value, order)
            }

            /// Raises the value to at least `value` and returns the value before.
            pub fn fetch_max(&self, value: $int, order: Ordering) -> $int {
                assert_writable(self.access);
                self.word.fetch_max(value, order)
            }

            /// Replaces the value and returns the value before.
            pub fn swap(&self, value: $int, order: Ordering) -> $int {
                assert_writable(self.access);
                self.word.swap(value, order)
            }

            /// Stores `new` if the value is `current`; either way tells the value before.
            pub fn compare_exchange(
                &self,
                current: $int,
                new: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                assert_writable(self.access);
                self.word.compare_exchange(current, new, success, failure)
            }
        }
    };
}

shared_word!(SharedU64, AtomicU64, u64, "A 64-bit word of a shared object.");
shared_word!(SharedU32, AtomicU32, u32, "A 32-bit word of a shared object.");

#[cfg(target_os = "linux")]
mod os {
    use super::*;

    /// Seals the object, then duplicates: an existing writable mapping stays, no new one can be made.
    pub fn limit_to_reading(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        fcntl(fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE))?;
        fd.try_clone_to_owned()
    }
}

#[cfg(target_os = "freebsd")]
mod os {
    use super::*;

    /// Duplicates and takes from the duplicate every right but reading, mapping for reading, fstat(2) and asking for
    /// the seals. Rights can never be added again, not even by a process that receives the descriptor.
    pub fn limit_to_reading(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let copy = fd.try_clone_to_owned()?;
        let rights = super::super::rights::Rights::new(&[libc::CAP_MMAP_R, libc::CAP_FSTAT, libc::CAP_FCNTL]);
        rights.limit(copy.as_fd())?;
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_the_writer_stores() {
        let writer = SharedMemory::create("test", 4096).expect("4096 bytes can be had");
        let reader = SharedMemory::from_fd(writer.read_only_fd().expect("sealing"), Access::ReadOnly).expect("mapping");
        assert_eq!(reader.len(), 4096);
        writer.atomic_u64(8).store(1 << 40, Ordering::Release);
        writer.atomic_u32(4).fetch_add(7, Ordering::AcqRel);
        assert_eq!(reader.atomic_u64(8).load(Ordering::Acquire), 1 << 40);
        assert_eq!(reader.atomic_u32(4).load(Ordering::Acquire), 7);
    }

    #[test]
    fn bytes_survive_at_every_alignment() {
        let shared = SharedMemory::create("test", 256).expect("256 bytes can be had");
        for offset in 0..17 {
            for length in 0..40 {
                let data: Vec<u8> = (0..length).map(|i| (i * 7 + offset) as u8 | 1).collect();
                shared.write(0, &[0; 128]);
                shared.write(offset, &data);
                let mut all = [0; 128];
                shared.read(0, &mut all);
                assert_eq!(&all[offset..offset + length], data.as_slice());
                assert!(all[..offset].iter().chain(&all[offset + length..]).all(|&b| b == 0));
                let mut back = vec![0; length];
                shared.read(offset, &mut back);
                assert_eq!(back, data);
            }
        }
    }

    #[test]
    fn a_read_only_descriptor_cannot_be_mapped_for_writing_or_resized() {
        let writer = SharedMemory::create("test", 4096).expect("4096 bytes can be had");
        let fd = writer.read_only_fd().expect("sealing");
        let file = File::from(fd.try_clone().expect("dup"));
        assert!(file.set_len(0).is_err(), "the size is sealed");
        assert!(SharedMemory::from_fd(fd, Access::ReadWrite).is_err());
        writer.atomic_u64(0).store(1, Ordering::Relaxed);
    }

    #[test]
    fn what_is_not_a_sealed_object_is_refused() {
        let path = std::env::temp_dir().join(format!("gamegend-shm-{}", std::process::id()));
        std::fs::write(&path, [0; 64]).expect("a temporary file");
        let file = File::open(&path).expect("it was just written");
        let error = SharedMemory::from_fd(file.into(), Access::ReadOnly).expect_err("a file can be truncated");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        std::fs::remove_file(&path).expect("ours");
        assert!(SharedMemory::create("test", 0).is_err());
        assert!(SharedMemory::create("test", SHARED_BYTES_MAX + 1).is_err());
    }

    #[test]
    fn ranges_alignment_and_access_are_checked() {
        let shared = SharedMemory::create("test", 64).expect("64 bytes can be had");
        let panics = |f: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
        assert!(panics(&|| assert_eq!(shared.atomic_u64(60).load(Ordering::Relaxed), 0)));
        assert!(panics(&|| assert_eq!(shared.atomic_u64(4).load(Ordering::Relaxed), 0)));
        assert!(panics(&|| assert_eq!(shared.atomic_u32(2).load(Ordering::Relaxed), 0)));
        assert!(panics(&|| shared.write(60, &[0; 5])));
        assert!(panics(&|| shared.read(usize::MAX, &mut [0; 2])));
        assert!(!panics(&|| shared.write(60, &[0; 4])));
        let reader = SharedMemory::from_fd(shared.read_only_fd().expect("sealing"), Access::ReadOnly).expect("mapping");
        assert!(panics(&|| reader.atomic_u64(0).store(1, Ordering::Relaxed)));
        assert!(panics(&|| reader.write(0, &[1])));
    }
}
