//! How much a device can do, who is let in, and what is given up when it is too much: policy only.
//!
//! Work is counted in floating-point operations, which a plan knows before it has run. The rate is measured when the
//! worker starts and corrected by what a busy device did, a window at a time. Degradation has a stated order: first
//! fewer denoising steps and then half the rate, for all interactive sessions alike, then size, session by session in
//! the order of [`super::sizes`]. Everything comes back in reverse. Whoever asks for a size that does not fit any more
//! is refused, and told by how much and what would fit.
//!
//! Sizes go by what was measured, not by what was computed: of the work of a moment that missed its deadlines as much
//! goes as was not done in time, and some comes back if the device would stay at [`COMFORT`] as busy as it was. What
//! comes back and is lost again soon waits twice as long the next time.
//!
//! Times are durations since any fixed moment, the same for all calls.

use std::time::Duration;

/// Share of the device that interactive sessions may plan with: the rest is for openings, texts and stored generations.
pub const CAPACITY: f64 = 0.9;
/// A level that would need no more than this share is gone back to.
const COMFORT: f64 = 0.75;
/// Share of missed deadlines in a window beyond which something is given up.
const MISSED_MAX: f64 = 0.02;
/// So many windows like that in a row: one alone may be the opening of a session.
const LATE_WINDOWS: u32 = 2;
/// A level is kept for this long at least: what a session was opened with anew should pay.
const HOLD: Duration = Duration::from_secs(5);
/// So much more work at the most comes back with the sizes of one moment, but one session's in any case.
const GROWTH_MAX: f64 = 1.25;
/// Sizes that are lost this soon after some came back came back too early.
const RELAPSE: Duration = Duration::from_secs(30);
/// Longest time from a loss of size until some of it comes back.
const PATIENCE_MAX: Duration = Duration::from_secs(80);
/// Weight of the newest window in the measured rate.
const NEWEST: f64 = 0.25;

/// What all interactive sessions have given up, in the order in which it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Full,
    /// The fewest denoising steps that the model was trained for.
    Steps,
    /// Half the frames a second, besides.
    Rate,
    /// Some of them have a smaller size, besides.
    Size,
}

impl Level {
    /// As status and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Full => "none",
            Level::Steps => "steps",
            Level::Rate => "steps and rate",
            Level::Size => "steps, rate and size",
        }
    }

    /// Periods that go by from frame to frame.
    pub fn periods(self) -> u32 {
        if self >= Level::Rate { 2 } else { 1 }
    }
}

/// Work of interactive sessions in operations a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// With the steps that were asked for.
    pub full: f64,
    /// With the fewest steps.
    pub fewest_steps: f64,
    /// With the fewest steps and the sizes that they have now.
    pub smaller: f64,
}

impl Demand {
    pub fn at(self, level: Level) -> f64 {
        match level {
            Level::Full => self.full,
            Level::Steps => self.fewest_steps,
            Level::Rate => self.fewest_steps / 2.0,
            Level::Size => self.smaller / 2.0,
        }
    }

    pub fn plus(self, other: Demand) -> Demand {
        Demand {
            full: self.full + other.full,
            fewest_steps: self.fewest_steps + other.fewest_steps,
            smaller: self.smaller + other.smaller,
        }
    }
}

/// What was seen in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    pub missed: u64,
    pub due: u64,
    /// Share of the time that the device was at work for interactive sessions.
    pub busy: f64,
}

/// What is to be done about a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// All interactive sessions go to this level.
    Level(Level),
    /// Sessions lose size until this share of the work is left, one of them at least.
    Shrink(f64),
    /// Sizes come back as long as the work is no more than `most` times what it is; beyond the first one, no more than
    /// `more` times.
    Grow { most: f64, more: f64 },
}

/// The load of one device.
#[derive(Clone, Debug)]
pub struct Load {
    /// Operations a second that the device does.
    rate: f64,
    level: Level,
    changed: Duration,
    /// Windows in a row with too many missed deadlines.
    late: u32,
    /// When sizes came back last, and how long they stay lost at least.
    grown: Option<Duration>,
    patience: Duration,
}

impl Load {
    /// `rate`: as measured at the start, in operations a second.
    pub fn new(rate: f64) -> Load {
        let (changed, late) = (Duration::ZERO, 0);
        Load { rate: rate.max(1.0), level: Level::Full, changed, late, grown: None, patience: HOLD }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// Share of the device that a demand needs.
    pub fn share(&self, demand: f64) -> f64 {
        demand / self.rate
    }

    /// Runs of `work` operations took `time`, those that overlapped together. Those of an idle device are not told: a
    /// small batch says little about what a large one would do, nor do small pictures about large ones.
    pub fn measured(&mut self, work: f64, time: Duration) {
        let seconds = time.as_secs_f64();
        if work > 0.0 && seconds > 0.0 && self.level < Level::Size {
            self.rate += NEWEST * (work / seconds - self.rate);
        }
    }

    /// Whether a session with demand `new` is let in beside those with demand `open`: everybody must get what was asked
    /// for. The first one always is: alone it has all that there is.
    ///
    /// Errors: a sentence with what it needs and what is left.
    pub fn admit(&self, open: Demand, new: Demand) -> Result<(), String> {
        let (used, wanted) = (self.share(open.full), self.share(new.full));
        if open.full == 0.0 || used + wanted <= CAPACITY {
            return Ok(());
        }
        let percent = |share: f64| (share * 100.0).ceil();
        Err(format!(
            "the session needs {} % of the device, {} % of {} % are in use; fewer steps, a lower rate or a smaller \
             size need less",
            percent(wanted),
            percent(used),
            percent(CAPACITY)
        ))
    }

    /// Looks at a window. Returns what is to be done, if anything is.
    pub fn review(&mut self, now: Duration, seen: Seen, demand: Demand) -> Option<Verdict> {
        let late = seen.due > 0 && seen.missed as f64 > MISSED_MAX * seen.due as f64;
        self.late = if late { self.late + 1 } else { 0 };
        let since = now.saturating_sub(self.changed);
        if since < HOLD && self.changed > Duration::ZERO || late && self.late < LATE_WINDOWS {
            return None;
        }
        let verdict = match (late, self.level) {
            (true, Level::Full) => Verdict::Level(Level::Steps),
            (true, Level::Steps) => Verdict::Level(Level::Rate),
            (true, _) => return Some(Verdict::Shrink(CAPACITY * (1.0 - seen.missed as f64 / seen.due as f64))),
            (false, Level::Size) => return (since >= self.patience).then(|| growth(seen.busy)),
            (false, Level::Rate) if self.share(demand.at(Level::Steps)) <= COMFORT => Verdict::Level(Level::Steps),
            (false, Level::Steps) if self.share(demand.at(Level::Full)) <= COMFORT => Verdict::Level(Level::Full),
            (false, _) => return None,
        };
        if let Verdict::Level(level) = verdict {
            (self.level, self.changed, self.late) = (level, now, 0);
        }
        Some(verdict)
    }

    /// Sessions are on their way to other sizes: what windows show of that moment says nothing.
    pub fn unsettled(&mut self, now: Duration) {
        (self.changed, self.late) = (now, 0);
    }

    /// Some sessions are told to lose size.
    pub fn shrunk(&mut self, now: Duration) {
        let relapsed = self.grown.take().is_some_and(|at| now.saturating_sub(at) < RELAPSE);
        self.patience = if relapsed { (2 * self.patience).min(PATIENCE_MAX) } else { HOLD };
        self.unsettled(now);
    }

    /// Some sessions are told to take size back.
    pub fn grown(&mut self, now: Duration) {
        self.grown = Some(now);
        self.unsettled(now);
    }

    /// Whether any session has a smaller size than it asked for.
    pub fn smaller(&mut self, any: bool) {
        match (any, self.level) {
            (true, _) => self.level = Level::Size,
            (false, Level::Size) => self.level = Level::Rate,
            _ => {}
        }
    }
}

/// How much may come back to a device that was so busy.
fn growth(busy: f64) -> Verdict {
    let most = COMFORT / busy.max(f64::EPSILON);
    Verdict::Grow { most, more: most.min(GROWTH_MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn missed(missed: u64) -> Seen {
        Seen { missed, due: 100, busy: 1.0 }
    }

    fn to(level: Level) -> Option<Verdict> {
        Some(Verdict::Level(level))
    }

    fn demand(sessions: f64) -> Demand {
        Demand { full: 10.0 * sessions, fewest_steps: 6.0 * sessions, smaller: 6.0 * sessions }
    }

    #[test]
    fn sessions_are_let_in_up_to_the_capacity_and_then_told_why_not() {
        let load = Load::new(1000.0);
        let mut open = Demand::default();
        let mut count = 0;
        while load.admit(open, demand(1.0)).is_ok() {
            open = open.plus(demand(1.0));
            count += 1;
        }
        assert_eq!(count, 90, "90 % of 100");
        let message = load.admit(open, demand(1.0)).expect_err("it is full");
        assert!(message.contains("1 % of the device") && message.contains("90 % of 90 %"), "{message}");
        assert!(load.admit(Demand::default(), demand(500.0)).is_ok(), "the first one always is");
    }

    #[test]
    fn steps_go_first_then_the_rate_and_they_come_back_in_the_other_order() {
        let mut load = Load::new(100.0);
        let mut now = SECOND;
        let mut levels = Vec::new();
        for (late, sessions) in [(30, 20.0), (30, 20.0), (0, 11.0), (0, 7.0), (0, 7.0)] {
            now += HOLD;
            if late > 0 {
                load.review(now - SECOND, missed(late), demand(sessions));
            }
            levels.push(load.review(now, missed(late), demand(sessions)));
        }
        let expected = [to(Level::Steps), to(Level::Rate), to(Level::Steps), to(Level::Full), None];
        assert_eq!(levels, expected);
        assert_eq!(Level::Rate.periods(), 2);
    }

    #[test]
    fn a_level_is_held_for_a_while() {
        let mut load = Load::new(100.0);
        assert_eq!(load.review(SECOND, missed(50), demand(20.0)), None, "one window may be an accident");
        assert_eq!(load.review(SECOND, missed(0), demand(20.0)), None);
        assert_eq!(load.review(SECOND, missed(50), demand(20.0)), None);
        assert_eq!(load.review(SECOND, missed(50), demand(20.0)), to(Level::Steps));
        assert_eq!(load.review(2 * SECOND, missed(50), demand(20.0)), None);
        assert_eq!(load.review(2 * SECOND, missed(0), demand(1.0)), None);
        assert_eq!(load.review(SECOND + HOLD, missed(0), demand(1.0)), to(Level::Full));
    }

    /// A load that has given up steps and rate, and the moment.
    fn at_half_the_rate() -> (Load, Duration) {
        let (mut load, mut now) = (Load::new(100.0), SECOND);
        for _ in 0..2 {
            now += HOLD;
            load.review(now - SECOND, missed(50), demand(99.0));
            load.review(now, missed(50), demand(99.0));
        }
        assert_eq!(load.level(), Level::Rate);
        (load, now)
    }

    #[test]
    fn after_the_rate_as_much_work_goes_as_was_not_done_in_time() {
        let (mut load, mut now) = at_half_the_rate();
        assert_eq!(load.review(now + SECOND, missed(40), demand(99.0)), None, "held");
        now += HOLD;
        let Some(Verdict::Shrink(keep)) = load.review(now, missed(40), demand(99.0)) else { panic!("late windows") };
        assert!((keep - 0.54).abs() < 1e-9, "60 % was done in time, 90 % of that may stay: {keep}");
        assert_eq!(load.level(), Level::Rate, "no session has lost size yet");
        load.shrunk(now);
        load.smaller(true);
        assert_eq!((load.level(), load.level().periods()), (Level::Size, 2));
        // It rests while the sessions change, and for a while after that.
        load.unsettled(now + 3 * SECOND);
        assert_eq!(load.review(now + HOLD, missed(40), demand(99.0)), None);
        load.smaller(false);
        assert_eq!(load.level(), Level::Rate, "all of them are as large as they asked to be");
    }

    #[test]
    fn sizes_come_back_as_far_as_the_device_was_idle_and_wait_longer_after_a_relapse() {
        let (mut load, mut now) = at_half_the_rate();
        load.shrunk(now);
        load.smaller(true);
        let calm = |busy: f64| Seen { busy, ..missed(0) };
        now += HOLD;
        let Some(Verdict::Grow { most, more }) = load.review(now, calm(0.5), demand(9.0)) else { panic!("it is idle") };
        assert!((most - 1.5).abs() < 1e-9 && more == GROWTH_MAX, "{most} {more}");
        let Some(Verdict::Grow { most, .. }) = load.review(now, calm(0.9), demand(9.0)) else { panic!("as much") };
        assert!(most < 1.0, "a busy device gives nothing back: {most}");
        let mut waits = Vec::new();
        for _ in 0..6 {
            load.grown(now);
            now += RELAPSE / 2;
            load.shrunk(now);
            let wait = (1..).find(|s| load.review(now + *s * SECOND, calm(0.5), demand(9.0)).is_some());
            waits.push(wait.expect("it comes back"));
            now += PATIENCE_MAX;
        }
        assert_eq!(waits, [10, 20, 40, 80, 80, 80]);
        load.shrunk(now + RELAPSE);
        assert!(load.review(now + RELAPSE + HOLD, calm(0.5), demand(9.0)).is_some(), "long after that it is forgotten");
    }

    #[test]
    fn few_missed_deadlines_change_nothing() {
        let mut load = Load::new(100.0);
        assert_eq!(load.review(10 * SECOND, missed(2), demand(9.0)), None);
        assert_eq!(load.review(10 * SECOND, Seen::default(), demand(0.0)), None);
    }

    #[test]
    fn the_rate_follows_what_runs_take() {
        let mut load = Load::new(100.0);
        (0..200).for_each(|_| load.measured(50.0, SECOND));
        assert!((load.share(50.0) - 1.0).abs() < 0.01, "{load:?}");
        load.measured(0.0, SECOND);
        load.measured(9.0, Duration::ZERO);
        assert!((load.share(50.0) - 1.0).abs() < 0.01, "runs without work or time say nothing");
    }
}
