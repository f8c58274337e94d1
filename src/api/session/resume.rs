//! A session beyond the life of its api: how it is written down, and how it comes back.

use std::sync::{Arc, mpsc};

use super::{Feed, Inner, Session};
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
        let Checkpoint { record, snapshot, inputs } = from;
        let resumed = match snapshot {
            Some(bytes) => {
                let memory = SharedMemory::create("gamegend-snapshot", bytes.len())?;
                memory.write(0, &bytes);
                Some(Arc::new(memory.read_only_fd()?))
            }
            None => None,
        };
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
        let (record, ring, before) = {
            let mut inner = self.inner();
            let still = inner.written == Some(inner.frame_count) || (!self.is_interactive() && inner.written.is_some());
            if inner.state.is_final() || (still && !always) {
                return None;
            }
            inner.written = Some(inner.frame_count);
            (self.record(&inner), inner.ring.clone().filter(|_| self.is_interactive()), inner.resumed.clone())
        };
        let newest = |fd: Option<_>| fd.map(journal::snapshot_bytes).transpose().map(Option::flatten);
        // A ring may have no snapshot yet: what there was before is what there is.
        match newest(ring).and_then(|own| if own.is_some() { Ok(own) } else { newest(before) }) {
            Ok(snapshot) => Some((record, snapshot)),
            Err(e) => {
                log::warn!("session {}: no checkpoint: {}", self.spec.id, chain(&e));
                None
            }
        }
    }

    fn record(&self, inner: &Inner) -> Record {
        Record {
            spec: self.spec.clone(),
            environment: inner.environment.clone(),
            instruction: inner.instruction.clone(),
            keys: inner.keys,
            accepted: inner.accepted,
            frame_count: inner.frame_count,
            began_with: inner.inputs.named().map(|(name, _)| name.to_string()).collect(),
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
