//! How much a device can do, who is let in, and what is given up when it is too much: policy only.
//!
//! Work is counted in floating-point operations, which a plan knows before it has run. The rate is measured when the
//! worker starts and corrected by what a busy device did, a window at a time. Degradation has a stated order, for all
//! interactive sessions alike: first fewer denoising steps, then half the rate. The size of a running session never
//! changes, as its ring has it: whoever asks for a size that does not fit any more is refused, and told by how much and
//! what would fit.
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
}

impl Level {
    /// As status and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Full => "none",
            Level::Steps => "steps",
            Level::Rate => "steps and rate",
        }
    }

    /// Periods that go by from frame to frame.
    pub fn periods(self) -> u32 {
        if self == Level::Rate { 2 } else { 1 }
    }

    fn worse(self) -> Level {
        if self == Level::Full { Level::Steps } else { Level::Rate }
    }

    fn better(self) -> Level {
        if self == Level::Rate { Level::Steps } else { Level::Full }
    }
}

/// Work of interactive sessions in operations a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// With the steps that were asked for.
    pub full: f64,
    /// With the fewest steps.
    pub fewest_steps: f64,
}

impl Demand {
    pub fn at(self, level: Level) -> f64 {
        match level {
            Level::Full => self.full,
            Level::Steps => self.fewest_steps,
            Level::Rate => self.fewest_steps / 2.0,
        }
    }

    pub fn plus(self, other: Demand) -> Demand {
        Demand { full: self.full + other.full, fewest_steps: self.fewest_steps + other.fewest_steps }
    }
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
}

impl Load {
    /// `rate`: as measured at the start, in operations a second.
    pub fn new(rate: f64) -> Load {
        Load { rate: rate.max(1.0), level: Level::Full, changed: Duration::ZERO, late: 0 }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// Share of the device that a demand needs.
    pub fn share(&self, demand: f64) -> f64 {
        demand / self.rate
    }

    /// Runs of `work` operations took `time`, those that overlapped together. Those of an idle device are not told: a
    /// small batch says little about what a large one would do.
    pub fn measured(&mut self, work: f64, time: Duration) {
        let seconds = time.as_secs_f64();
        if work > 0.0 && seconds > 0.0 {
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

    /// Looks at a window in which `missed` of `due` deadlines were missed. Returns the level from now on if it is
    /// another one.
    pub fn review(&mut self, now: Duration, (missed, due): (u64, u64), demand: Demand) -> Option<Level> {
        let late = due > 0 && missed as f64 > MISSED_MAX * due as f64;
        self.late = if late { self.late + 1 } else { 0 };
        if now.saturating_sub(self.changed) < HOLD && self.changed > Duration::ZERO {
            return None;
        }
        let better = self.level.better();
        let next = match late {
            true if self.late < LATE_WINDOWS => self.level,
            true => self.level.worse(),
            false if self.share(demand.at(better)) <= COMFORT => better,
            false => self.level,
        };
        if next == self.level {
            return None;
        }
        (self.level, self.changed, self.late) = (next, now, 0);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn demand(sessions: f64) -> Demand {
        Demand { full: 10.0 * sessions, fewest_steps: 6.0 * sessions }
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
        for (missed, sessions) in [(30, 20.0), (30, 20.0), (30, 20.0), (0, 11.0), (0, 7.0), (0, 7.0)] {
            now += HOLD;
            if missed > 0 {
                load.review(now - SECOND, (missed, 100), demand(sessions));
            }
            levels.push(load.review(now, (missed, 100), demand(sessions)));
        }
        let expected = [Some(Level::Steps), Some(Level::Rate), None, Some(Level::Steps), Some(Level::Full), None];
        assert_eq!(levels, expected);
        assert_eq!(Level::Rate.periods(), 2);
    }

    #[test]
    fn a_level_is_held_for_a_while() {
        let mut load = Load::new(100.0);
        assert_eq!(load.review(SECOND, (50, 100), demand(20.0)), None, "one window may be an accident");
        assert_eq!(load.review(SECOND, (0, 100), demand(20.0)), None);
        assert_eq!(load.review(SECOND, (50, 100), demand(20.0)), None);
        assert_eq!(load.review(SECOND, (50, 100), demand(20.0)), Some(Level::Steps));
        assert_eq!(load.review(2 * SECOND, (50, 100), demand(20.0)), None);
        assert_eq!(load.review(2 * SECOND, (0, 100), demand(1.0)), None);
        assert_eq!(load.review(SECOND + HOLD, (0, 100), demand(1.0)), Some(Level::Full));
    }

    #[test]
    fn few_missed_deadlines_change_nothing() {
        let mut load = Load::new(100.0);
        assert_eq!(load.review(10 * SECOND, (2, 100), demand(9.0)), None);
        assert_eq!(load.review(10 * SECOND, (0, 0), demand(0.0)), None);
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
