//! Whether a worker that says nothing is dead, and whether one that says it is busy will ever be done: pure.
//!
//! A thread of the worker beats several times a second whatever the device does, so silence means that the whole
//! process stands still. Each beat tells for how long the engine has been at one piece of work, so a device that
//! never answers shows too.

use std::time::Duration;

use super::supervise::Now;

/// A worker that is silent for this long is killed: six beats.
pub const SILENT_LIMIT: Duration = Duration::from_secs(3);
/// If the parent itself did not look for this long, it is the machine that stood still, and nobody is to blame.
const AWAY_LIMIT: Duration = Duration::from_secs(1);

/// What was heard of one worker.
#[derive(Clone, Debug, Default)]
pub struct Watchdog {
    /// `None` until the first beat.
    heard: Option<Now>,
    looked: Now,
    busy: Duration,
}

impl Watchdog {
    /// A beat arrived.
    pub fn beat(&mut self, now: Now, busy_ms: u32) {
        self.heard = Some(now);
        self.busy = Duration::from_millis(busy_ms.into());
    }

    /// Looks at what was heard, after every message that is there was read. Answers why the worker hangs, if it does.
    /// `hang_limit`: how long one piece of work may take; zero: for ever.
    pub fn verdict(&mut self, now: Now, hang_limit: Duration) -> Option<String> {
        let away = now.saturating_sub(std::mem::replace(&mut self.looked, now)) > AWAY_LIMIT;
        let heard = self.heard.as_mut()?;
        if away {
            *heard = now;
        }
        if now.saturating_sub(*heard) >= SILENT_LIMIT {
            return Some(format!("no sign of life for {} s", SILENT_LIMIT.as_secs()));
        }
        if !hang_limit.is_zero() && self.busy >= hang_limit {
            return Some(format!("one piece of work takes longer than worker.hang_seconds, {}", hang_limit.as_secs()));
        }
        None
    }

    /// When to look next, if ever.
    pub fn deadline(&self) -> Option<Now> {
        // Often enough that a parent with nothing else to do is not taken for one that was away.
        self.heard.map(|_| self.looked + AWAY_LIMIT / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANG: Duration = Duration::from_secs(30);

    fn at(ms: u64) -> Now {
        Duration::from_millis(ms)
    }

    #[test]
    fn silence_and_endless_work_are_told_apart() {
        let mut dog = Watchdog::default();
        assert_eq!(dog.verdict(at(100_000), HANG), None, "nothing was promised before the first beat");
        assert_eq!(dog.deadline(), None);
        dog.beat(at(100_000), 0);
        let silent: Vec<u64> =
            (0..12).map(|i| 100_000 + i * 500).filter(|t| dog.verdict(at(*t), HANG).is_some()).collect();
        assert_eq!(silent.first(), Some(&103_000), "{silent:?}");
        dog.beat(at(105_600), 29_999);
        assert_eq!(dog.verdict(at(105_600), HANG), None);
        dog.beat(at(106_000), 30_000);
        assert!(dog.verdict(at(106_000), HANG).is_some_and(|why| why.contains("hang_seconds")));
        assert_eq!(dog.verdict(at(106_000), Duration::ZERO), None, "0 is for ever");
    }

    #[test]
    fn a_parent_that_was_away_blames_nobody() {
        let mut dog = Watchdog::default();
        dog.beat(at(1000), 0);
        assert_eq!(dog.verdict(at(1000), HANG), None);
        assert_eq!(dog.verdict(at(60_000), HANG), None, "the machine slept");
        assert_eq!(dog.verdict(at(60_500), HANG), None);
        let mut t = 60_500;
        while dog.verdict(at(t), HANG).is_none() {
            t += 500;
            assert!(t < 70_000, "it is silent after all");
        }
    }
}
