//! What the worker measures about itself, a window of a second at a time.

use std::time::Duration;

use crate::proto::api::WorkerStats;

/// Length of a window.
pub const WINDOW: Duration = Duration::from_secs(1);

/// Buckets of an octave: a bucket is 9 % wide.
const SUB_BUCKETS: usize = 8;
/// The first bucket ends at 2^6 microseconds, the last begins at 2^24 (17 s).
const OCTAVE_FIRST: usize = 6;
const OCTAVES: usize = 18;
const BUCKETS: usize = OCTAVES * SUB_BUCKETS + 1;

/// Times in a fixed number of buckets whose widths grow with the time.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: [0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    pub fn add(&mut self, time: Duration) {
        self.counts[bucket(time)] += 1;
        self.total += 1;
    }

    /// The time that `share` (0 to 1) of all times do not exceed, in milliseconds, rounded up to a bucket's end; 0 if
    /// there is none.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let wanted = (f64::from(self.total) * share).ceil().max(1.0) as u32;
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return end_us(i) / 1000.0;
            }
        }
        0.0
    }

    pub fn clear(&mut self) {
        *self = Histogram::default();
    }
}

fn bucket(time: Duration) -> usize {
    let us = (time.as_micros() as u64).max(1) as f64;
    let position = (us.log2() - OCTAVE_FIRST as f64) * SUB_BUCKETS as f64;
    (position.ceil().max(0.0) as usize).min(BUCKETS - 1)
}

fn end_us(bucket: usize) -> f64 {
    (OCTAVE_FIRST as f64 + bucket as f64 / SUB_BUCKETS as f64).exp2()
}

/// All runs of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Runs {
    pub count: u64,
    pub frames: u64,
    /// How long the device was at work for them.
    pub time: Duration,
    /// That part of it that was for interactive sessions.
    pub played: Duration,
    /// Their arithmetic in floating-point operations.
    pub work: f64,
}

/// What there is to say about a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    pub stats: WorkerStats,
    pub runs: Runs,
    /// Share of the time that the device was at work for interactive sessions.
    pub played: f64,
}

/// Adds up ticks and gives a report for each window.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    ticks: Histogram,
    runs: Runs,
    deadlines: u64,
    missed: u64,
    /// Work beside the runs.
    other: Duration,
    window_began: Duration,
    frames_total: u64,
}

impl Meter {
    pub fn new(now: Duration) -> Meter {
        Meter { window_began: now, ..Meter::default() }
    }

    /// A run of `frames` frames, of sessions that are `played` or not, took `took` from its beginning to its end, `own`
    /// of them apart from other runs, for `work` operations.
    pub fn run(&mut self, (frames, played): (usize, bool), (took, own): (Duration, Duration), work: f64) {
        self.ticks.add(took);
        self.runs.count += 1;
        self.runs.frames += frames as u64;
        self.runs.time += own;
        self.runs.played += if played { own } else { Duration::ZERO };
        self.runs.work += work;
        self.frames_total += frames as u64;
    }

    /// An interactive session had a frame, after it had `missed` deadlines.
    pub fn deadline(&mut self, missed: u64) {
        self.deadlines += 1 + missed;
        self.missed += missed;
    }

    /// Other work of the device, such as opening a session.
    pub fn work(&mut self, time: Duration) {
        self.other += time;
    }

    /// Time until the window ends.
    pub fn rest(&self, now: Duration) -> Duration {
        (self.window_began + WINDOW).saturating_sub(now)
    }

    /// The report of the window that ends now, without `sessions` and `state_bytes`; the next one begins. `None` before
    /// its time.
    pub fn report(&mut self, now: Duration) -> Option<Window> {
        if !self.rest(now).is_zero() {
            return None;
        }
        let seconds = now.saturating_sub(self.window_began).as_secs_f64();
        let stats = WorkerStats {
            frames_per_second: self.runs.frames as f64 / seconds,
            tick_ms_p50: self.ticks.quantile_ms(0.50),
            tick_ms_p95: self.ticks.quantile_ms(0.95),
            busy: ((self.runs.time + self.other).as_secs_f64() / seconds).min(1.0),
            frames_total: self.frames_total,
            deadlines: self.deadlines,
            deadlines_missed: self.missed,
            ..WorkerStats::default()
        };
        self.ticks.clear();
        (self.deadlines, self.missed) = (0, 0);
        self.other = Duration::ZERO;
        self.window_began = now;
        let runs = std::mem::take(&mut self.runs);
        Some(Window { stats, runs, played: (runs.played.as_secs_f64() / seconds).min(1.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn quantiles_are_within_a_bucket() {
        let mut h = Histogram::default();
        assert_eq!(h.quantile_ms(0.5), 0.0);
        (1..=100).for_each(|ms| h.add(ms * MS));
        for (share, exact) in [(0.5, 50.0), (0.95, 95.0), (1.0, 100.0)] {
            let found = h.quantile_ms(share);
            assert!((exact..exact * 1.1).contains(&found), "{share}: {found}");
        }
    }

    #[test]
    fn the_extremes_have_a_bucket() {
        let mut h = Histogram::default();
        h.add(Duration::ZERO);
        h.add(Duration::from_secs(3600));
        assert!(h.quantile_ms(0.5) <= 0.064);
        assert!(h.quantile_ms(1.0) > 16_000.0);
    }

    #[test]
    fn a_window_is_reported_once_and_begins_anew() {
        let mut m = Meter::new(Duration::ZERO);
        // Half of the time of each run it shared the device with the one before.
        (0..10).for_each(|i| m.run((1, i < 4), (40 * MS, 20 * MS), 5.0));
        m.deadline(2);
        m.work(300 * MS);
        assert_eq!(m.report(999 * MS), None);
        assert_eq!(m.rest(400 * MS), 600 * MS);
        let Window { stats, runs, played } = m.report(1000 * MS).expect("the window is over");
        assert_eq!(runs, Runs { count: 10, frames: 10, time: 200 * MS, played: 80 * MS, work: 50.0 });
        assert_eq!((stats.frames_per_second, stats.frames_total), (10.0, 10));
        assert_eq!((stats.deadlines, stats.deadlines_missed), (3, 2));
        assert!((stats.busy - 0.5).abs() < 1e-9 && (played - 0.08).abs() < 1e-9);
        assert!((40.0..44.0).contains(&stats.tick_ms_p95));
        let quiet = m.report(3000 * MS).expect("the next one").stats;
        assert_eq!((quiet.frames_per_second, quiet.busy, quiet.frames_total), (0.0, 0.0, 10));
    }
}
