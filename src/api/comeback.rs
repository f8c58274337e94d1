//! How sessions outlive this process: the hub writes them down as they go, and its successor brings them back.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use super::hub::Hub;
use super::journal::{Checkpoint, Journal};
use super::refusal::chain;
use super::session::Session;

impl Hub {
    /// Writes sessions down from now on. To be called before the hub is shared.
    pub fn keep_journal(&mut self, journal: Journal) {
        self.journal = Some(journal);
    }

    /// Brings back the sessions that an earlier api wrote down; they open with the first worker.
    pub fn restore(self: &Arc<Hub>) {
        let found = self.journal.as_ref().map(Journal::load).unwrap_or_default();
        for checkpoint in found {
            let spec = checkpoint.record.spec.clone();
            self.numbers.fetch_max(spec.number + 1, Ordering::Relaxed);
            match self.bring_back(checkpoint) {
                Ok(()) => log::info!("session {} comes back", spec.id),
                Err(e) => {
                    log::error!("session {} cannot come back: {e}", spec.id);
                    self.journal.iter().for_each(|journal| journal.remove(&spec.id));
                }
            }
        }
        let desk = self.desk();
        self.call_up(&desk, &mut self.sessions());
    }

    fn bring_back(self: &Arc<Hub>, checkpoint: Checkpoint) -> Result<(), String> {
        let (feed, told) = mpsc::channel();
        let session = Session::restore(checkpoint, feed, self.counters.clone()).map_err(|e| chain(&e))?;
        self.insert(&mut self.sessions(), &Arc::new(session), told).map_err(|e| e.to_string())
    }

    /// Writes down every session that has changed; all of them if `always`.
    pub fn checkpoint(&self, always: bool) {
        for session in self.live() {
            self.write_down(&session, always);
        }
    }

    /// Writes down what the session begins with, once.
    pub(super) fn write_inputs(&self, session: &Session) {
        if let Some(journal) = &self.journal {
            journal.write_inputs(&session.spec.id, &session.inputs());
        }
    }

    /// Nothing of the session need come back.
    pub(super) fn unwrite(&self, session: &Session) {
        if let Some(journal) = &self.journal {
            journal.remove(&session.spec.id);
        }
    }

    pub(super) fn write_down(&self, session: &Session, always: bool) {
        let Some(journal) = &self.journal else { return };
        if let Some((record, snapshot)) = session.checkpoint(always) {
            journal.write(&record, snapshot.as_deref());
            if session.state().is_final() {
                self.unwrite(session);
            }
        }
    }
}
