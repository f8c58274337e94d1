//! What made a session what it is: which control was latched at which tick, and every parameter that changed.
//!
//! With the session's opening values and this trace the same frames can be made again. The trace is bounded: when it is
//! full its older half goes, and how much went is kept, so that nobody takes a part for the whole.

use serde::{Deserialize, Serialize};

use crate::frame::snapshot::TRACE_BYTES_MAX;
use crate::proto::keys::Keys;
use crate::proto::link::Environment;

/// Changes kept at the most; a player who changes keys ten times a second fills it in under two hours.
pub const TRACE_CHANGES_MAX: usize = 65_536;
/// Length in front of each change, a u16.
const LENGTH_BYTES: usize = 2;
/// One change in postcard: numbers and an instruction of the longest kind.
const CHANGE_BYTES_MAX: usize = 4096;

/// One thing that changed; it acts from `tick` on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    Keys {
        tick: u64,
        seq: u32,
        keys: Keys,
    },
    Instruction {
        tick: u64,
        seq: u32,
        environment: Environment,
        text: Option<String>,
    },
    /// The session went on from a snapshot whose newest frame was `from`: another session's or, after a crash, its own.
    Continued {
        tick: u64,
        from: u64,
    },
}

/// A bounded log of changes, kept encoded so that a snapshot is a copy.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    bytes: Vec<u8>,
    changes: usize,
    dropped: u64,
}

impl Trace {
    /// An empty trace with memory for its full length.
    pub fn new() -> Trace {
        Trace { bytes: Vec::with_capacity(TRACE_BYTES_MAX), changes: 0, dropped: 0 }
    }

    /// Goes on with the trace of a snapshot. A trace that cannot be read counts as dropped.
    pub fn resume(bytes: &[u8], dropped: u64) -> Trace {
        let mut trace = Trace { dropped, ..Trace::new() };
        match decode(bytes) {
            Some(changes) if bytes.len() <= TRACE_BYTES_MAX => {
                trace.bytes.extend_from_slice(bytes);
                trace.changes = changes.len();
            }
            _ => trace.dropped += 1,
        }
        trace
    }

    /// Adds a change. The oldest half goes if there is no room.
    pub fn push(&mut self, change: &Change) {
        let mut record = [0; CHANGE_BYTES_MAX];
        let Ok(encoded) = postcard::to_slice(change, &mut record[LENGTH_BYTES..]) else {
            // Texts are checked against limits far below the record's size; a longer one is counted as lost.
            self.dropped += 1;
            return;
        };
        let length = encoded.len();
        record[..LENGTH_BYTES].copy_from_slice(&(length as u16).to_le_bytes());
        let record = &record[..LENGTH_BYTES + length];
        if self.bytes.len() + record.len() > TRACE_BYTES_MAX || self.changes == TRACE_CHANGES_MAX {
            self.drop_half();
        }
        self.bytes.extend_from_slice(record);
        self.changes += 1;
    }

    fn drop_half(&mut self) {
        let (mut at, mut gone) = (0, 0);
        while at < self.bytes.len() / 2 {
            at += LENGTH_BYTES + usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]));
            gone += 1;
        }
        self.bytes.drain(..at);
        self.changes -= gone;
        self.dropped += gone as u64;
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Changes that no longer are in the trace.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// The changes of an encoded trace, oldest first; `None` if the bytes are none.
pub fn decode(mut bytes: &[u8]) -> Option<Vec<Change>> {
    let mut changes = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
        let (record, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        changes.push(postcard::from_bytes(record).ok()?);
        bytes = rest;
    }
    Some(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(tick: u64) -> Change {
        Change::Keys { tick, seq: tick as u32, keys: Keys::W }
    }

    #[test]
    fn changes_come_back_in_order() {
        let mut trace = Trace::new();
        let text = Change::Instruction {
            tick: 2,
            seq: 9,
            environment: Environment { weather: Some("snow".to_string()), ..Environment::default() },
            text: Some("a storm begins".to_string()),
        };
        let changes = vec![keys(1), text, Change::Continued { tick: 3, from: 48 }];
        changes.iter().for_each(|c| trace.push(c));
        assert_eq!(decode(trace.bytes()), Some(changes.clone()));
        let mut resumed = Trace::resume(trace.bytes(), 4);
        resumed.push(&keys(10));
        assert_eq!(decode(resumed.bytes()).map(|c| c.len()), Some(4));
        assert_eq!(resumed.dropped(), 4);
    }

    #[test]
    fn a_full_trace_drops_its_oldest_half_and_says_so() {
        let mut trace = Trace::new();
        let capacity = trace.bytes.capacity();
        let count = 200_000u64;
        (0..count).for_each(|tick| trace.push(&keys(tick)));
        assert!(trace.bytes().len() <= TRACE_BYTES_MAX);
        assert_eq!(trace.bytes.capacity(), capacity, "it never grows");
        let left = decode(trace.bytes()).expect("whole records stay");
        assert_eq!(left.last(), Some(&keys(count - 1)));
        assert_eq!(left.len() as u64 + trace.dropped(), count);
        assert!(left.windows(2).all(|w| matches!(
            (&w[0], &w[1]),
            (Change::Keys { tick: a, .. }, Change::Keys { tick: b, .. }) if a + 1 == *b
        )));
    }

    #[test]
    fn bytes_that_are_no_trace_are_dropped_not_trusted() {
        for bytes in [&[9u8][..], &[255, 255, 1], &[1, 0, 77]] {
            assert_eq!(decode(bytes), None);
            let trace = Trace::resume(bytes, 0);
            assert!(trace.bytes().is_empty());
            assert_eq!(trace.dropped(), 1);
        }
    }
}
