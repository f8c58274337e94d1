//! Which session ticks next: policy only, with time as a parameter and no engine.
//!
//! - A real-time session has a deadline every period. A missed deadline is skipped, never queued; the grid stays, so
//!   the rate is never above the asked one and time does not drift.
//! - Among real-time sessions the earliest deadline goes first, so under overload each gets its turn.
//! - Deadlines of sessions of one rate lie in [`PHASES`] groups, evenly over the period and evenly filled: those of a
//!   group share a run, and nobody waits for all the others. Whoever else is due shares it as well.
//! - A new control may trigger the next tick up to three quarters of a period early, if the device has nothing else to
//!   do. It uses up that period's deadline.
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
/// Groups of deadlines in a period: a sub-batch has an eighth of the period, 5 ms at 24 frames a second.
pub const PHASES: u32 = 8;
/// Who is due this soon joins a run that starts now.
pub const LOOKAHEAD: Duration = Duration::from_millis(1);
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
    /// The group of its deadlines, and when it was on the grid first; the first frame comes as soon as it can.
    phase: u32,
    settled: bool,
    /// Its tick is on its way.
    away: bool,
}

impl Entry {
    /// From when on a new control may trigger the tick; `None` for a stored generation.
    fn early(&self) -> Option<Duration> {
        match self.pace {
            Pace::RealTime { period } => Some(self.deadline.saturating_sub(period * 3 / 4)),
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
    /// A deadline of the first group, for each period that is there.
    origins: Vec<(Duration, Duration)>,
    /// Periods from frame to frame: 1, or more while the device has too much to do.
    periods: u32,
    /// Since when a stored generation could have gone and did not.
    stored_since: Option<Duration>,
    draining: bool,
}

impl Schedule {
    pub fn new() -> Schedule {
        Schedule { periods: 1, ..Schedule::default() }
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
        let phase = match pace {
            Pace::RealTime { period } => self.place(period, now),
            Pace::Stored => 0,
        };
        // New sessions line up behind those that had their turn, so opening many cannot hold others back.
        let (turn, cost) = (self.turns, Duration::ZERO);
        self.entries.push(Entry { session, pace, deadline: now, turn, cost, phase, settled: false, away: false });
    }

    /// The group of a new session: the first one of those with the fewest.
    fn place(&mut self, period: Duration, now: Duration) -> u32 {
        let same = |e: &&Entry| e.pace == Pace::RealTime { period };
        if !self.entries.iter().any(|e| same(&e)) {
            self.origins.retain(|(p, _)| *p != period);
            self.origins.push((period, now));
        }
        let members = |phase: u32| self.entries.iter().filter(same).filter(|e| e.phase == phase).count();
        (0..PHASES).min_by_key(|&phase| members(phase)).unwrap_or(0)
    }

    /// From now on so many periods go by from frame to frame, for all real-time sessions.
    pub fn slow_down(&mut self, periods: u32) {
        self.periods = periods.max(1);
    }

    /// Who shares the run of `lead`, which [`next`](Self::next) gave: the most urgent of those that are due, about to
    /// be, or have a reason to be early, as long as they go `together` with it; at most `most` sessions with it, the
    /// lead first. Stored generations share a run if nobody plays.
    pub fn run(
        &self,
        lead: SessionNumber,
        (now, most): (Duration, usize),
        watch: &impl Watch,
        together: impl Fn(SessionNumber) -> bool,
        run: &mut Vec<SessionNumber>,
    ) {
        run.clear();
        let Some(first) = self.entries.iter().find(|e| e.session == lead) else { return };
        let plays = self.real_time() > 0;
        let ready = |e: &Entry| match (e.is_stored(), first.is_stored()) {
            (true, true) => !plays && watch.has_room(e.session),
            (false, false) => {
                e.deadline <= now + LOOKAHEAD || e.early().is_some_and(|t| t <= now) && watch.has_news(e.session)
            }
            _ => false,
        };
        run.extend(self.entries.iter().filter(|e| e.session != lead && !e.away && ready(e)).map(|e| e.session));
        let urgency =
            |session: &SessionNumber| self.entries.iter().find(|e| e.session == *session).map(|e| (e.deadline, e.turn));
        run.retain(|session| together(*session));
        run.sort_by_key(urgency);
        run.insert(0, lead);
        run.truncate(most.max(1));
    }

    /// Removes a session; unknown ones are ignored.
    pub fn close(&mut self, session: SessionNumber) {
        self.entries.retain(|e| e.session != session);
    }

    /// From now on no tick begins.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whose turn it is at `now`, among those that are not on their way.
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
        let real_time = || self.entries.iter().filter(|e| !e.is_stored() && !e.away);
        let urgency = |e: &&Entry| (e.deadline, e.turn);
        if let Some(due) = real_time().filter(|e| e.deadline <= now).min_by_key(urgency) {
            return Next::Tick(due.session);
        }
        // A frame before its time is for a device that has nothing else to do.
        let idle = !self.entries.iter().any(|e| e.away);
        let early = real_time().filter(|e| idle && e.early().is_some_and(|t| t <= now) && watch.has_news(e.session));
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
        let ready = self.entries.iter().filter(|e| e.is_stored() && !e.away && watch.has_room(e.session));
        ready.min_by_key(|e| (e.turn, e.session)).map(|e| (e.session, e.cost))
    }

    /// How long nothing can become possible; more than zero.
    fn wait(&self, now: Duration, stored_ready: bool) -> Duration {
        let mut until = Duration::MAX;
        for e in self.entries.iter().filter(|e| !e.away) {
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

    /// Notes that a session's tick began. Returns how many deadlines were skipped before it.
    pub fn begun(&mut self, session: SessionNumber, start: Duration) -> u64 {
        self.turns += 1;
        let turn = self.turns;
        let (periods, origins) = (self.periods, &self.origins);
        let Some(e) = self.entries.iter_mut().find(|e| e.session == session) else { return 0 };
        (e.turn, e.away) = (turn, true);
        let Pace::RealTime { period } = e.pace else {
            self.stored_since = None;
            return 0;
        };
        let step = period * periods;
        let late = start.saturating_sub(e.deadline);
        let skipped = (late.as_nanos() / step.as_nanos().max(1)) as u64;
        // Nothing is missed before the first frame, which comes as soon as it can.
        let missed = if e.settled { skipped } else { 0 };
        let next = e.deadline + step.saturating_mul(u32::try_from(skipped + 1).unwrap_or(u32::MAX));
        // The second frame comes half a period after the first at the earliest.
        let origin = origins.iter().find(|(p, _)| *p == period && !e.settled).map(|(_, origin)| *origin);
        e.deadline = origin.map_or(next, |origin| on_grid(origin, period, e.phase, next - step / 2));
        e.settled = true;
        missed
    }

    /// Notes that a session's tick is over, `took` after it began.
    pub fn landed(&mut self, session: SessionNumber, took: Duration) {
        let Some(e) = self.entries.iter_mut().find(|e| e.session == session) else { return };
        e.away = false;
        // A quarter of the newest: one slow tick does not shut stored generations out.
        e.cost = if e.cost.is_zero() { took } else { (e.cost * 3 + took) / 4 };
    }
}

/// The first deadline of a group that is not before `from`.
fn on_grid(origin: Duration, period: Duration, phase: u32, from: Duration) -> Duration {
    let first = origin + period * phase / PHASES;
    let gone = from.saturating_sub(first).as_nanos().div_ceil(period.as_nanos().max(1));
    first + period.saturating_mul(u32::try_from(gone).unwrap_or(u32::MAX))
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
