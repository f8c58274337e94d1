//! A session beyond the life of its api: how it is written down, and how it comes back.

use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use super::{Feed, Inner, Inputs, Origin, Session};
use crate::api::journal::{self, Checkpoint, Record};
use crate::api::metrics::Counters;
use crate::api::refusal::chain;
use crate::frame::{RingError, RingReader};
use crate::proto::api::State;
use crate::sys::shm::SharedMemory;

impl Session {
    /// A session that an earlier api wrote down. One that is played goes on; a stored generation begins anew, since the
    /// part of its video that was recorded is gone.
    pub fn restore(from: Checkpoint, feed: mpsc::Sender<Feed>, counters: Arc<Counters>) -> Result<Session, RingError> {
        let Checkpoint { record, snapshot } = from;
        let snapshot = match snapshot {
            Some(bytes) => {
                let memory = SharedMemory::create("gamegend-snapshot", bytes.len())?;
                memory.write(0, &bytes);
                Some(Arc::new(memory.read_only_fd()?))
            }
            None => None,
        };
        let (resumed, origin) = if record.own { (snapshot, None) } else { (None, snapshot) };
        let inputs = Inputs { origin: origin.map(Origin::Snapshot), ..Inputs::default() };
        let session = Session::new(record.spec.clone(), inputs, feed, counters)?;
        {
            let mut inner = session.inner();
            inner.resumed = resumed;
            inner.environment = record.environment.clone();
            inner.instruction.clone_from(&record.instruction);
            (inner.accepted, inner.latched, inner.reflected) = (record.accepted, record.accepted, record.accepted);
            if session.is_interactive() {
                inner.state = State::Recovering;
                inner.frame_count = record.frame_count;
                // One that had made no frame begins once more as it did.
                if record.frame_count > 0 {
                    let tick_min = record.tick_min(journal::now_ms());
                    // Written down like this it holds for the next time as well.
                    (inner.tick_min, inner.frame_count) = (tick_min, tick_min);
                }
            }
        }
        Ok(session)
    }

    /// What to write down of the session: a record and, where there is one, a snapshot. `None` if it has ended, or if
    /// nothing has changed since the last time and `always` does not ask for it.
    pub fn checkpoint(&self, always: bool) -> Option<(Record, Option<Vec<u8>>)> {
        let (mut record, fd, own) = {
            let mut inner = self.inner();
            let still = inner.written == Some(inner.frame_count) || (!self.is_interactive() && inner.written.is_some());
            if inner.state.is_final() || (still && !always) {
                return None;
            }
            inner.written = Some(inner.frame_count);
            let ring = inner.ring.clone().filter(|_| self.is_interactive());
            let own = ring.is_some() || inner.resumed.is_some();
            (self.record(&inner), ring.or_else(|| inner.resumed.clone()).or_else(|| inner.origin()), own)
        };
        let snapshot = match fd.map(journal::snapshot_bytes).transpose() {
            Ok(snapshot) => snapshot.flatten(),
            Err(e) => {
                log::warn!("session {}: no checkpoint: {}", self.spec.id, chain(&e));
                return None;
            }
        };
        if own && snapshot.is_none() {
            // The ring has no snapshot yet: what there was before is what there is.
            let (fd, own) = {
                let inner = self.inner();
                (inner.resumed.clone().or_else(|| inner.origin()), inner.resumed.is_some())
            };
            let bytes = fd.and_then(|fd| journal::snapshot_bytes(fd).ok().flatten());
            record.own = own && bytes.is_some();
            return Some((record, bytes));
        }
        record.own = own;
        Some((record, snapshot))
    }

    fn record(&self, inner: &Inner) -> Record {
        Record {
            spec: self.spec.clone(),
            environment: inner.environment.clone(),
            instruction: inner.instruction.clone(),
            keys: inner.keys,
            accepted: inner.accepted,
            frame_count: inner.frame_count,
            own: false,
            written_ms: journal::now_ms(),
        }
    }

    /// The lowest number that a frame of the next worker may have: viewers of a session that is played have seen all up
    /// to the newest in the ring, whether a snapshot tells of it or not. A stored generation makes its frames again.
    pub(super) fn tick_min(&self, inner: &Inner) -> u64 {
        if !self.is_interactive() {
            return 0;
        }
        let ring = inner.ring.as_ref().and_then(|fd| RingReader::open(fd.try_clone().ok()?).ok());
        let shown = ring.and_then(|ring| ring.newest()).map_or(0, |newest| newest + 1);
        inner.tick_min.max(shown).max(inner.frame_count)
    }
}

impl Inner {
    /// The snapshot that the session continues, if it does.
    fn origin(&self) -> Option<Arc<OwnedFd>> {
        match &self.inputs.origin {
            Some(Origin::Snapshot(fd)) => Some(fd.clone()),
            Some(Origin::Pictures(_)) | None => None,
        }
    }
}
