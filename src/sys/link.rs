//! A message channel between two roles: postcard frames and descriptors over one Unix stream socket.
//!
//! A frame is a u32 little-endian length and that many bytes. Descriptors ride on the first byte of their frame
//! (`SCM_RIGHTS`, unix(4)); since a reader asks for the four length bytes and then for exactly the rest, descriptors
//! and frame never get apart. Limits are those of [`crate::proto::limits`]; whoever breaks them has its link ended.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, recvmsg, sendmsg,
    setsockopt, shutdown, socketpair, sockopt,
};
use nix::sys::time::TimeVal;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::proto::limits::{LINK_FDS_MAX, LINK_MESSAGE_BYTES_MAX};

const LENGTH_BYTES: usize = size_of::<u32>();

/// Why nothing could be received. After any of these the link is out of step and of no further use.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("receive from a link")]
    Io(#[source] io::Error),
    #[error("the peer closed a link within a message")]
    Truncated,
    #[error("a message of {0} bytes on a link; allowed: 1 to {LINK_MESSAGE_BYTES_MAX}")]
    Size(usize),
    #[error("more than {LINK_FDS_MAX} descriptors with one message on a link")]
    Descriptors,
    #[error("a message on a link that this build does not know")]
    Decode(#[source] postcard::Error),
    #[error("the peer did not finish its message in time")]
    Stalled,
}

/// One end of a channel. Clones made with [`try_clone`](Link::try_clone) are the same end: senders take turns, and the
/// socket closes with the last of them.
#[derive(Clone, Debug)]
pub struct Link {
    end: Arc<End>,
}

#[derive(Debug)]
struct End {
    fd: OwnedFd,
    sending: Mutex<()>,
    receiving: Mutex<()>,
}

impl Link {
    /// Both ends of a new channel, closed on exec.
    pub fn pair() -> io::Result<(Link, Link)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Link::from_fd(a), Link::from_fd(b)))
    }

    /// The end that a descriptor is: inherited, or received over another link.
    pub fn from_fd(fd: OwnedFd) -> Link {
        Link { end: Arc::new(End { fd, sending: Mutex::new(()), receiving: Mutex::new(()) }) }
    }

    /// The same end once more, for a reader thread. Never fails today; the result leaves room for a descriptor each.
    pub fn try_clone(&self) -> io::Result<Link> {
        Ok(self.clone())
    }

    /// Ends both directions: the peer and every reader of this end see that the link is closed.
    pub fn close(&self) {
        // ENOTCONN, the only error a connected pair knows, means that the peer was faster.
        let _ = shutdown(self.end.fd.as_raw_fd(), Shutdown::Both);
    }

    /// Bounds every wait of this end: a peer that neither reads nor finishes what it began is an error, not a wait.
    pub fn set_timeout(&self, limit: Duration) -> io::Result<()> {
        let limit = TimeVal::new(limit.as_secs() as _, limit.subsec_micros() as _);
        setsockopt(&self.end.fd, sockopt::ReceiveTimeout, &limit)?;
        Ok(setsockopt(&self.end.fd, sockopt::SendTimeout, &limit)?)
    }

    /// Sends one message and duplicates of `fds`. Blocks while the peer's buffer is full.
    ///
    /// Errors: `InvalidInput` if the message or the number of descriptors is above its limit; `WouldBlock` if a timeout
    /// is set and passed; what sendmsg(2) returns, `BrokenPipe` if the peer is gone.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let mut bytes = vec![0; LENGTH_BYTES];
        bytes = postcard::to_extend(message, bytes).map_err(|e| invalid(e.to_string()))?;
        let length = bytes.len() - LENGTH_BYTES;
        if length > LINK_MESSAGE_BYTES_MAX {
            return Err(invalid(LinkError::Size(length).to_string()));
        }
        if fds.len() > LINK_FDS_MAX {
            return Err(invalid(LinkError::Descriptors.to_string()));
        }
        bytes[..LENGTH_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let mut control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };

        let _turn = lock(&self.end.sending);
        let mut sent = 0;
        while sent < bytes.len() {
            let piece = [IoSlice::new(&bytes[sent..])];
            match sendmsg::<()>(self.end.fd.as_raw_fd(), &piece, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(n) => {
                    sent += n;
                    control = &[];
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Waits for the next message; `None` if the peer closed the link. Received descriptors close on exec.
    ///
    /// Errors: see [`LinkError`]; descriptors that came with a bad message are closed.
    pub fn recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, LinkError> {
        let _turn = lock(&self.end.receiving);
        let mut length = [0; LENGTH_BYTES];
        let (mut have, fds) = self.receive_first(&mut length)?;
        if have == 0 {
            return Ok(None);
        }
        while have < LENGTH_BYTES {
            have += self.receive_more(&mut length[have..])?;
        }
        let bytes = u32::from_le_bytes(length) as usize;
        if bytes > LINK_MESSAGE_BYTES_MAX {
            return Err(LinkError::Size(bytes));
        }
        let mut message = vec![0; bytes];
        let mut have = 0;
        while have < bytes {
            have += self.receive_more(&mut message[have..])?;
        }
        let (value, rest) = postcard::take_from_bytes(&message).map_err(LinkError::Decode)?;
        if !rest.is_empty() {
            return Err(LinkError::Decode(postcard::Error::DeserializeUnexpectedEnd));
        }
        Ok(Some((value, fds)))
    }

    /// The first bytes of a frame with the descriptors on them.
    fn receive_first(&self, to: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), LinkError> {
        let mut space = nix::cmsg_space!([RawFd; LINK_FDS_MAX]);
        loop {
            let mut pieces = [IoSliceMut::new(to)];
            let received =
                recvmsg::<()>(self.end.fd.as_raw_fd(), &mut pieces, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
            let received = match received {
                Ok(received) => received,
                Err(nix::errno::Errno::EINTR) => continue,
                // The peer closed its end before it read everything: closed all the same.
                Err(nix::errno::Errno::ECONNRESET) => return Ok((0, Vec::new())),
                Err(e) => return Err(failed(e)),
            };
            let mut fds = Vec::new();
            let truncated = received.flags.contains(MsgFlags::MSG_CTRUNC);
            for message in received.cmsgs().map_err(failed)? {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    // SAFETY: from_raw_fd needs open descriptors that nobody else owns: the kernel has just made these
                    // for this process, and they are wrapped once.
                    fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            if truncated || fds.len() > LINK_FDS_MAX {
                return Err(LinkError::Descriptors);
            }
            return Ok((received.bytes, fds));
        }
    }

    /// Bytes within a frame: at least one. Descriptors that a peer attaches here are dropped by the kernel, since no
    /// room is offered for them.
    fn receive_more(&self, to: &mut [u8]) -> Result<usize, LinkError> {
        loop {
            match nix::sys::socket::recv(self.end.fd.as_raw_fd(), to, MsgFlags::empty()) {
                Ok(0) => return Err(LinkError::Truncated),
                Ok(n) => return Ok(n),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(failed(e)),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.fd.as_fd()
    }
}

fn failed(error: nix::errno::Errno) -> LinkError {
    match error {
        nix::errno::Errno::EAGAIN => LinkError::Stalled,
        other => LinkError::Io(other.into()),
    }
}

/// The guarded value is `()`, so a panic while it was held broke nothing that could be seen here.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_arrive_in_order_and_then_the_link_is_closed() {
        let (a, b) = Link::pair().expect("a socket pair");
        let sender = std::thread::spawn(move || {
            for i in 0..100u32 {
                a.send(&(i, vec![i as u8; 1000 * i as usize]), &[]).expect("the peer reads");
            }
        });
        for i in 0..100u32 {
            let (message, fds) = b.recv::<(u32, Vec<u8>)>().expect("sound").expect("not closed yet");
            assert_eq!((message.0, message.1.len(), fds.len()), (i, 1000 * i as usize, 0));
        }
        sender.join().expect("it does not panic");
        assert!(b.recv::<u32>().expect("sound").is_none());
    }

    #[test]
    fn descriptors_stay_with_their_message() {
        let (a, b) = Link::pair().expect("a socket pair");
        let (near, far) = UnixStream::pair().expect("a socket pair");
        a.send(&1u32, &[]).expect("room");
        a.send(&2u32, &[far.as_fd(), far.as_fd()]).expect("room");
        a.send(&3u32, &[]).expect("room");
        drop(far);
        let counts: Vec<(u32, Vec<OwnedFd>)> = (0..3).map(|_| b.recv::<u32>().expect("sound").expect("open")).collect();
        assert_eq!(counts.iter().map(|(m, f)| (*m, f.len())).collect::<Vec<_>>(), [(1, 0), (2, 2), (3, 0)]);
        for fd in &counts[1].1 {
            let flags = fcntl(fd, FcntlArg::F_GETFD).expect("open");
            assert!(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC));
        }
        let mut received = UnixStream::from(counts[1].1[1].try_clone().expect("dup"));
        drop(counts);
        received.write_all(b"through").expect("the near end is open");
        drop(received);
        let mut text = String::new();
        (&near).read_to_string(&mut text).expect("sound");
        assert_eq!(text, "through");
    }

    #[test]
    fn clones_take_turns() {
        let (a, b) = Link::pair().expect("a socket pair");
        let senders: Vec<_> = (0..4u8)
            .map(|who| {
                let a = a.try_clone().expect("a clone");
                std::thread::spawn(move || {
                    for _ in 0..50 {
                        a.send(&vec![who; 20_000], &[]).expect("the peer reads");
                    }
                })
            })
            .collect();
        drop(a);
        let mut seen = 0;
        while let Some((message, _)) = b.recv::<Vec<u8>>().expect("frames do not mix") {
            assert!(message.iter().all(|&x| x == message[0]));
            seen += 1;
        }
        assert_eq!(seen, 200);
        senders.into_iter().for_each(|s| s.join().expect("it does not panic"));
    }

    #[test]
    fn broken_peers_are_errors() {
        let broken = |bytes: &[u8]| {
            let (mut raw, end) = UnixStream::pair().expect("a socket pair");
            raw.write_all(bytes).expect("room");
            drop(raw);
            Link::from_fd(end.into()).recv::<String>().expect_err("it is broken")
        };
        assert!(matches!(broken(&[5, 0]), LinkError::Truncated));
        assert!(matches!(broken(&[5, 0, 0, 0, 1]), LinkError::Truncated));
        assert!(matches!(broken(&u32::MAX.to_le_bytes()), LinkError::Size(_)));
        assert!(matches!(broken(&[2, 0, 0, 0, 9, 9]), LinkError::Decode(_)));
        assert!(matches!(broken(&[2, 0, 0, 0, 0, 0]), LinkError::Decode(_)), "bytes after the message");
    }

    #[test]
    fn limits_and_timeouts_hold() {
        let (a, b) = Link::pair().expect("a socket pair");
        assert!(a.send(&vec![0u8; LINK_MESSAGE_BYTES_MAX + 1], &[]).is_err());
        let many = [b.as_fd(); LINK_FDS_MAX + 1];
        assert!(a.send(&1u8, &many).is_err());
        a.set_timeout(Duration::from_millis(20)).expect("a stream socket has timeouts");
        assert!(matches!(a.recv::<u8>(), Err(LinkError::Stalled)));
        b.close();
        assert!(a.recv::<u8>().expect("sound").is_none());
    }
}
