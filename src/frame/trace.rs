//! What made a session what it is: which control was latched at which tick, and every parameter that changed.
//!
//! With the session's opening values and this trace the same frames can be made again. The trace is bounded: when it is
//! full its older half goes, and how much went is kept, so that nobody takes a part for the whole.

use serde::{Deserialize, Serialize};

use super::snapshot::TRACE_BYTES_MAX;
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
    /// The session's first frame has this number, since viewers had seen lower ones that no snapshot tells of.
    Began {
        tick: u64,
    },
    /// So many denoising steps, with caches that were made anew from the newest latents.
    Steps {
        tick: u64,
        steps: u32,
    },
    /// Pictures of this size, the newest ones brought to it, with caches that were made anew from them.
    Size {
        tick: u64,
        width: u32,
        height: u32,
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

/// Number of the first frame.
fn first_tick(changes: &[Change]) -> u64 {
    match changes.first() {
        Some(Change::Began { tick }) => *tick,
        _ => 0,
    }
}

/// Frames that a replay of a trace makes, if the newest frame of the session is `newest_tick`: where the session went
/// on after a crash, the ticks between the snapshot and the first new frame are not part of it.
pub fn frames(changes: &[Change], newest_tick: u64) -> u64 {
    let begin = first_tick(changes);
    let gap = |change: &Change| match change {
        Change::Continued { tick, from } if *tick > begin => tick.saturating_sub(from.saturating_add(1)),
        _ => 0,
    };
    let newest_tick = newest_tick.saturating_sub(begin);
    newest_tick.saturating_add(1).saturating_sub(changes.iter().map(gap).sum())
}

/// A trace that is played back, one tick after the other.
#[derive(Clone, Debug)]
pub struct Script {
    changes: std::collections::VecDeque<Change>,
    /// Tick of the original session that is next, and its first one.
    tick: u64,
    begin: u64,
    keys: Keys,
}

/// What the next frame of a replay needs before it is made.
#[derive(Clone, Debug, PartialEq)]
pub enum Cue {
    /// New text for InstructNet.
    Instruct { environment: Environment, text: Option<String> },
    /// The session went on from its snapshot here: all that is not in a snapshot is made anew.
    Reopen,
    /// As [`Cue::Reopen`], with so many denoising steps from now on.
    Steps(u32),
    /// As [`Cue::Reopen`], with pictures of this width and height from now on.
    Size(u32, u32),
}

impl Script {
    /// The script of a whole trace.
    pub fn new(changes: Vec<Change>) -> Script {
        Script { tick: first_tick(&changes), begin: first_tick(&changes), changes: changes.into(), keys: Keys::NONE }
    }

    /// The next thing to do before the frame of this tick, if there is one; asked until there is none.
    pub fn cue(&mut self) -> Option<Cue> {
        loop {
            let due = match self.changes.front()? {
                Change::Keys { tick, .. }
                | Change::Instruction { tick, .. }
                | Change::Began { tick }
                | Change::Steps { tick, .. }
                | Change::Size { tick, .. } => *tick <= self.tick,
                Change::Continued { tick, from } => *tick <= self.tick || from.saturating_add(1) == self.tick,
            };
            if !due {
                return None;
            }
            match self.changes.pop_front()? {
                Change::Keys { keys, .. } => self.keys = keys,
                Change::Instruction { environment, text, .. } => return Some(Cue::Instruct { environment, text }),
                Change::Began { .. } => {}
                Change::Steps { steps, .. } => return Some(Cue::Steps(steps)),
                Change::Size { width, height, .. } => return Some(Cue::Size(width, height)),
                // At the very beginning the origin was read already.
                Change::Continued { tick, .. } if tick <= self.begin => {}
                Change::Continued { tick, .. } => {
                    self.tick = tick;
                    return Some(Cue::Reopen);
                }
            }
        }
    }

    /// The keys of this tick's frame; the next tick begins.
    pub fn keys(&mut self) -> Keys {
        self.tick += 1;
        self.keys
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
    fn a_script_gives_every_tick_what_the_session_had() {
        let text = |tick| Change::Instruction {
            tick,
            seq: 1,
            environment: Environment::default(),
            text: Some("rain".to_string()),
        };
        let release = Change::Keys { tick: 13, seq: 2, keys: Keys::NONE };
        let changes = vec![
            Change::Continued { tick: 0, from: 40 },
            keys(2),
            Change::Continued { tick: 12, from: 3 },
            text(12),
            release,
        ];
        assert_eq!(frames(&changes, 13), 6, "ticks 0 to 3, 12 and 13");
        let mut script = Script::new(changes);
        let mut played = Vec::new();
        for _ in 0..6 {
            let mut cues = Vec::new();
            while let Some(cue) = script.cue() {
                cues.push(matches!(cue, Cue::Reopen));
            }
            played.push((script.keys(), cues));
        }
        let none = Vec::new;
        let expected = vec![
            (Keys::NONE, none()),
            (Keys::NONE, none()),
            (Keys::W, none()),
            (Keys::W, none()),
            (Keys::W, vec![true, false]),
            (Keys::NONE, none()),
        ];
        assert_eq!(played, expected);
    }

    #[test]
    fn a_session_that_began_late_is_replayed_from_its_first_frame() {
        let changes = vec![Change::Began { tick: 40 }, Change::Continued { tick: 40, from: 7 }, keys(42)];
        assert_eq!(frames(&changes, 44), 5);
        let mut script = Script::new(changes);
        let mut played = Vec::new();
        for _ in 0..5 {
            assert_eq!(script.cue(), None);
            played.push(script.keys());
        }
        assert_eq!(played, [Keys::NONE, Keys::NONE, Keys::W, Keys::W, Keys::W]);
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
