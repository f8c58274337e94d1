//! Which session ticks next: policy only, with time as a parameter and no engine.
//!
//! - A real-time session has a deadline every period. A missed deadline is skipped, never queued; the grid stays, so
//!   the rate is never above the asked one and time does not drift.
//! - Among real-time sessions the earliest deadline goes first, so under overload each gets its turn.
//! - A new control may trigger the next tick up to half a period early. It uses up that period's deadline.
//! - Stored generations share what is left, round robin by frames, and only start a tick that is expected to end before
//!   the next deadline. So that an overloaded device finishes them at all, one tick goes to them each
//!   [`STORED_WAIT_MAX`] in any case.
//! - A stored generation whose ring is full waits for its reader: no frame is lost.
//!
//! Times are durations since any fixed moment, the same for all calls.

use std::time::Duration;

use crate::proto::link::SessionNumber;

/// A stored generation that could go is not held back longer than this by real-time sessions.
pub const STORED_WAIT_MAX: Duration = Duration::from_millis(200);
/// How often shared memory is looked at while a control or a free slot is waited for: neither wakes the worker.
pub const POLL: Duration = Duration::from_millis(2);

/// How a session's ticks are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    RealTime { period: Duration },
    Stored,
}

/// What the scheduler asks about sessions; the answers are in shared memory and change at any time.
pub trait Watch {
    /// True if a control waits that the session has not latched.
    fn has_news(&self, session: SessionNumber) -> bool;
    /// True if the ring of a stored generation has a slot whose frame was consumed.
    fn has_room(&self, session: SessionNumber) -> bool;
}

/// What the worker does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Tick(SessionNumber),
    /// Nothing for this long, unless a message arrives.
    Wait(Duration),
    /// Nothing until a message arrives.
    Idle,
    /// The worker was asked to end.
    Done,
}

#[derive(Clone, Debug)]
struct Entry {
    session: SessionNumber,
    pace: Pace,
    /// When the next tick is due; for a stored generation, when it was opened.
    deadline: Duration,
    /// Number of the tick, among all of the worker, that was this session's last.
    turn: u64,
    /// Expected time of a tick.
    cost: Duration,
}

impl Entry {
    /// From when on a new control may trigger the tick; `None` for a stored generation.
    fn early(&self) -> Option<Duration> {
        match self.pace {
            Pace::RealTime { period } => Some(self.deadline.saturating_sub(period / 2)),
            Pace::Stored => None,
        }
    }

    fn is_stored(&self) -> bool {
        self.pace == Pace::Stored
    }
}

/// The sessions of one worker and whose turn it is.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    entries: Vec<Entry>,
    turns: u64,
    /// Since when a stored generation could have gone and did not.
    stored_since: Option<Duration>,
    draining: bool,
}

impl Schedule {
    pub fn new() -> Schedule {
        Schedule::default()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of real-time sessions.
    pub fn real_time(&self) -> usize {
        self.entries.iter().filter(|e| !e.is_stored()).count()
    }

    /// Adds a session whose first tick is due at once. A session that is there already begins anew.
    pub fn open(&mut self, session: SessionNumber, pace: Pace, now: Duration) {
        self.close(session);
        // New sessions line up behind those that had their turn, so opening many cannot hold others back.
        self.entries.push(Entry { session, pace, deadline: now, turn: self.turns, cost: Duration::ZERO });
    }

    /// Removes a session; unknown ones are ignored.
    pub fn close(&mut self, session: SessionNumber) {
        self.entries.retain(|e| e.session != session);
    }

    /// From now on no tick begins.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whose turn it is at `now`.
    pub fn next(&mut self, now: Duration, watch: &impl Watch) -> Next {
        if self.draining {
            return Next::Done;
        }
        if self.entries.is_empty() {
            return Next::Idle;
        }
        let stored = self.stored_candidate(watch);
        match (stored, self.stored_since) {
            (None, _) => self.stored_since = None,
            (Some(_), None) => self.stored_since = Some(now),
            (Some((session, _)), Some(since)) if now >= since + STORED_WAIT_MAX => return Next::Tick(session),
            _ => {}
        }
        let real_time = || self.entries.iter().filter(|e| !e.is_stored());
        let urgency = |e: &&Entry| (e.deadline, e.turn);
        if let Some(due) = real_time().filter(|e| e.deadline <= now).min_by_key(urgency) {
            return Next::Tick(due.session);
        }
        let early = real_time().filter(|e| e.early().is_some_and(|t| t <= now) && watch.has_news(e.session));
        if let Some(early) = early.min_by_key(urgency) {
            return Next::Tick(early.session);
        }
        let next_deadline = real_time().map(|e| e.deadline).min();
        if let Some((session, cost)) = stored
            && next_deadline.is_none_or(|deadline| now + cost <= deadline)
        {
            return Next::Tick(session);
        }
        Next::Wait(self.wait(now, stored.is_some()))
    }

    /// The stored generation whose turn it is, with the expected time of its tick.
    fn stored_candidate(&self, watch: &impl Watch) -> Option<(SessionNumber, Duration)> {
        let ready = self.entries.iter().filter(|e| e.is_stored() && watch.has_room(e.session));
        ready.min_by_key(|e| (e.turn, e.session)).map(|e| (e.session, e.cost))
    }

    /// How long nothing can become possible; more than zero.
    fn wait(&self, now: Duration, stored_ready: bool) -> Duration {
        let mut until = Duration::MAX;
        for e in &self.entries {
            let moment = match e.early() {
                // A full ring or an open window for controls: look again soon.
                None if !stored_ready => now + POLL,
                None => self.stored_since.unwrap_or(now) + STORED_WAIT_MAX,
                Some(early) if early <= now => e.deadline.min(now + POLL),
                Some(early) => early,
            };
            until = until.min(moment);
        }
        until.saturating_sub(now).max(Duration::from_micros(1))
    }

    /// Notes that a session's tick ran from `start` to `end`. Returns how many deadlines were skipped.
    pub fn ticked(&mut self, session: SessionNumber, start: Duration, end: Duration) -> u64 {
        self.turns += 1;
        let turn = self.turns;
        let Some(e) = self.entries.iter_mut().find(|e| e.session == session) else { return 0 };
        e.turn = turn;
        let cost = end.saturating_sub(start);
        // A quarter of the newest: one slow tick does not shut stored generations out.
        e.cost = if e.cost.is_zero() { cost } else { (e.cost * 3 + cost) / 4 };
        match e.pace {
            Pace::Stored => {
                self.stored_since = None;
                0
            }
            Pace::RealTime { period } => {
                let late = start.saturating_sub(e.deadline);
                let skipped = (late.as_nanos() / period.as_nanos().max(1)) as u64;
                e.deadline += period.saturating_mul(u32::try_from(skipped + 1).unwrap_or(u32::MAX));
                skipped
            }
        }
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
