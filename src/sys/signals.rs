//! Signals as readable bytes: handlers write to a pipe that the parent's poll loop reads (the self-pipe trick).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The pipe's writing end, for the handler; -1 before [`Signals::install`].
static WRITER: AtomicI32 = AtomicI32::new(-1);

/// The caught signals of this process.
#[derive(Debug)]
pub struct Signals {
    reader: File,
}

impl Signals {
    /// Catches `signals` from now on. Once a process: handlers are global.
    ///
    /// Errors: `AlreadyExists` the second time; what pipe(2), fcntl(2) and sigaction(2) return.
    pub fn install(signals: &[Signal]) -> io::Result<Signals> {
        let (reader, writer) = pipe()?;
        if WRITER.load(Ordering::SeqCst) != -1 {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "signals are caught already"));
        }
        // The writing end is leaked: a handler may run until the process is gone.
        WRITER.store(writer.into_raw_fd(), Ordering::SeqCst);
        let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
        for &signal in signals {
            // SAFETY: sigaction needs a handler that only does what is safe within a signal: ours loads an atomic and
            // calls write(2), which sigaction(2) lists as async-signal-safe, and preserves errno.
            unsafe { sigaction(signal, &action) }?;
        }
        Ok(Signals { reader: reader.into() })
    }

    /// The signals that arrived since the last call, in order. Does not wait.
    pub fn take(&mut self) -> Vec<Signal> {
        let mut bytes = [0; 64];
        match self.reader.read(&mut bytes) {
            Ok(n) => bytes[..n].iter().filter_map(|&b| Signal::try_from(i32::from(b)).ok()).collect(),
            Err(_) => Vec::new(),
        }
    }
}

/// Holds every signal back until [`release`], also over exec(2).
pub fn hold() -> io::Result<()> {
    Ok(nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?)
}

/// Delivers signals again, those that were held back included.
pub fn release() -> io::Result<()> {
    Ok(nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// A pipe, closed on exec, that never blocks: a full one holds enough signals to act on.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
    for end in [&reader, &writer] {
        fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    Ok((reader, writer))
}

extern "C" fn on_signal(number: libc::c_int) {
    let errno = nix::errno::Errno::last_raw();
    let byte = [number as u8];
    // SAFETY: write(2) needs a valid buffer of the given length, and one byte on the stack is one; the descriptor is
    // the leaked end of our pipe. A full pipe fails with EAGAIN, which loses nothing that matters.
    unsafe { libc::write(WRITER.load(Ordering::SeqCst), byte.as_ptr().cast(), 1) };
    nix::errno::Errno::set_raw(errno);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_becomes_readable() {
        let mut signals = Signals::install(&[Signal::SIGUSR2]).expect("once in this test program");
        assert_eq!(signals.take(), []);
        nix::sys::signal::raise(Signal::SIGUSR2).expect("it is caught");
        assert_eq!(signals.take(), [Signal::SIGUSR2]);
        assert!(Signals::install(&[]).is_err());
    }
}
