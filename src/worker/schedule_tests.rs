use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const PERIOD: Duration = Duration::from_millis(40);

/// Answers of shared memory, as a test wants them.
#[derive(Default)]
struct Told {
    news: BTreeSet<SessionNumber>,
    full: BTreeSet<SessionNumber>,
}

impl Watch for Told {
    fn has_news(&self, session: SessionNumber) -> bool {
        self.news.contains(&session)
    }
    fn has_room(&self, session: SessionNumber) -> bool {
        !self.full.contains(&session)
    }
}

impl Schedule {
    /// A tick from its beginning to its end. Returns how many deadlines were skipped before it.
    fn ticked(&mut self, session: SessionNumber, start: Duration, end: Duration) -> u64 {
        let skipped = self.begun(session, start);
        self.landed(session, end - start);
        skipped
    }
}

fn real_time() -> Pace {
    Pace::RealTime { period: PERIOD }
}

/// Runs the schedule for `span` on a virtual clock, each tick of session s taking `cost[s]`. Returns (session, start).
fn simulate(
    schedule: &mut Schedule,
    told: &Told,
    cost: &BTreeMap<SessionNumber, Duration>,
    from: Duration,
    span: Duration,
) -> Vec<(SessionNumber, Duration)> {
    let (mut now, mut ticks) = (from, Vec::new());
    while now < from + span {
        match schedule.next(now, told) {
            Next::Tick(session) => {
                let end = now + cost[&session];
                schedule.ticked(session, now, end);
                ticks.push((session, now));
                now = end;
            }
            Next::Wait(time) => {
                assert!(!time.is_zero(), "a wait of nothing would spin");
                now += time;
            }
            Next::Idle | Next::Done => break,
        }
    }
    ticks
}

fn count(ticks: &[(SessionNumber, Duration)], session: SessionNumber) -> usize {
    ticks.iter().filter(|(s, _)| *s == session).count()
}

#[test]
fn without_sessions_it_is_idle_and_drained_it_is_done() {
    let mut s = Schedule::new();
    assert_eq!(s.next(MS, &Told::default()), Next::Idle);
    s.open(1, Pace::Stored, MS);
    s.drain();
    assert_eq!(s.next(MS, &Told::default()), Next::Done);
}

#[test]
fn a_closed_session_never_ticks_again() {
    let mut s = Schedule::new();
    s.open(1, real_time(), MS);
    s.open(2, Pace::Stored, MS);
    s.close(1);
    s.close(7);
    assert_eq!((s.len(), s.real_time()), (1, 0));
    assert_eq!(s.next(MS, &Told::default()), Next::Tick(2));
    s.close(2);
    assert_eq!(s.ticked(2, MS, 2 * MS), 0, "closed while its tick ran");
    assert_eq!(s.next(MS, &Told::default()), Next::Idle);
}

#[test]
fn real_time_ticks_come_on_the_grid() {
    let mut s = Schedule::new();
    s.open(1, real_time(), 5 * MS);
    let ticks = simulate(&mut s, &Told::default(), &[(1, 3 * MS)].into(), 5 * MS, 10 * PERIOD);
    let starts: Vec<Duration> = ticks.iter().map(|t| t.1).collect();
    assert_eq!(starts, (0..10).map(|k| 5 * MS + k * PERIOD).collect::<Vec<_>>());
}

#[test]
fn a_missed_deadline_is_skipped_and_the_grid_stays() {
    let mut s = Schedule::new();
    s.open(1, real_time(), Duration::ZERO);
    assert_eq!(s.ticked(1, Duration::ZERO, 100 * MS), 0);
    assert_eq!(s.next(100 * MS, &Told::default()), Next::Tick(1), "due since 40 ms");
    assert_eq!(s.ticked(1, 100 * MS, 101 * MS), 1, "the deadline of 80 ms is skipped");
    assert_eq!(s.next(101 * MS, &Told::default()), Next::Wait(POLL), "the window before 120 ms is open");
    assert_eq!(s.next(119 * MS, &Told::default()), Next::Wait(MS));
    assert_eq!(s.next(120 * MS, &Told::default()), Next::Tick(1));
}

#[test]
fn a_new_control_ticks_up_to_three_quarters_of_a_period_early() {
    let mut s = Schedule::new();
    s.open(1, real_time(), Duration::ZERO);
    s.ticked(1, Duration::ZERO, MS);
    let news = Told { news: [1].into(), ..Told::default() };
    assert_eq!(s.next(9 * MS, &news), Next::Wait(MS), "the window opens at 10 ms");
    assert_eq!(s.next(10 * MS, &Told::default()), Next::Wait(POLL), "without news it looks again soon");
    assert_eq!(s.next(39 * MS, &Told::default()), Next::Wait(MS), "but not beyond the deadline");
    assert_eq!(s.next(10 * MS, &news), Next::Tick(1));
    s.ticked(1, 10 * MS, 11 * MS);
    assert_eq!(s.next(40 * MS, &news), Next::Wait(10 * MS), "the early tick used up the deadline of 40 ms");
    assert_eq!(s.next(50 * MS, &news), Next::Tick(1));
}

#[test]
fn whoever_is_on_its_way_has_no_turn_and_nobody_is_early_meanwhile() {
    let mut s = Schedule::new();
    for session in [1, 2] {
        s.open(session, real_time(), Duration::ZERO);
        s.ticked(session, Duration::ZERO, MS);
    }
    let news = Told { news: [2].into(), ..Told::default() };
    assert_eq!(s.begun(1, 30 * MS), 0);
    let Next::Wait(wait) = s.next(30 * MS, &news) else { panic!("session 2 is not due, and the device is at work") };
    assert!(wait <= POLL, "the device may be done soon");
    s.landed(1, 5 * MS);
    assert_eq!(s.next(35 * MS, &news), Next::Tick(2));
    assert_eq!(s.begun(2, 35 * MS), 0);
    s.begun(1, 80 * MS);
    let mut run = vec![9];
    s.run(1, (80 * MS, 8), &news, |_| true, &mut run);
    assert_eq!(run, [1], "session 2 is in another run");
    s.landed(2, MS);
    assert_eq!(s.next(90 * MS, &Told::default()), Next::Tick(2));
}

#[test]
fn constant_controls_do_not_raise_the_rate() {
    let mut s = Schedule::new();
    s.open(1, real_time(), Duration::ZERO);
    let news = Told { news: [1].into(), ..Told::default() };
    let ticks = simulate(&mut s, &news, &[(1, MS)].into(), Duration::ZERO, 100 * PERIOD);
    assert!((100..=101).contains(&ticks.len()), "{} ticks in 100 periods", ticks.len());
}

#[test]
fn the_earliest_deadline_goes_first_and_a_control_does_not_overtake_it() {
    let mut s = Schedule::new();
    s.open(1, real_time(), 2 * MS);
    s.open(2, real_time(), MS);
    let news = Told { news: [1].into(), ..Told::default() };
    assert_eq!(s.next(3 * MS, &news), Next::Tick(2));
    s.ticked(2, 3 * MS, 4 * MS);
    assert_eq!(s.next(4 * MS, &news), Next::Tick(1));
}

#[test]
fn an_overloaded_device_serves_real_time_sessions_in_turn() {
    let mut s = Schedule::new();
    let cost: BTreeMap<_, _> = (1..=4).map(|id| (id, 30 * MS)).collect();
    for id in 1..=4 {
        let period = if id == 1 { 16 * MS } else { PERIOD };
        s.open(id, Pace::RealTime { period }, Duration::ZERO);
    }
    let ticks = simulate(&mut s, &Told::default(), &cost, Duration::ZERO, 2400 * MS);
    for id in 1..=4 {
        assert!((18..=22).contains(&count(&ticks, id)), "session {id} got {} of 80", count(&ticks, id));
    }
}

#[test]
fn stored_generations_take_turns_by_frames() {
    let mut s = Schedule::new();
    for id in 1..=3 {
        s.open(id, Pace::Stored, Duration::ZERO);
    }
    // One of them is five times as slow: it gets as many frames, not as much time.
    let cost = [(1, MS), (2, 5 * MS), (3, MS)].into();
    let ticks = simulate(&mut s, &Told::default(), &cost, Duration::ZERO, 700 * MS);
    for id in 1..=3 {
        assert!((99..=101).contains(&count(&ticks, id)));
    }
}

#[test]
fn a_generation_that_joins_late_does_not_catch_up() {
    let mut s = Schedule::new();
    s.open(1, Pace::Stored, Duration::ZERO);
    let cost: BTreeMap<_, _> = [(1, MS), (2, MS)].into();
    simulate(&mut s, &Told::default(), &cost, Duration::ZERO, 50 * MS);
    s.open(2, Pace::Stored, 50 * MS);
    let ticks = simulate(&mut s, &Told::default(), &cost, 50 * MS, 20 * MS);
    assert_eq!((count(&ticks, 1), count(&ticks, 2)), (10, 10));
}

#[test]
fn a_stored_tick_does_not_make_a_deadline_late() {
    let mut s = Schedule::new();
    s.open(1, real_time(), Duration::ZERO);
    s.open(2, Pace::Stored, Duration::ZERO);
    let cost = [(1, 10 * MS), (2, 12 * MS)].into();
    simulate(&mut s, &Told::default(), &cost, Duration::ZERO, 10 * PERIOD);
    let ticks = simulate(&mut s, &Told::default(), &cost, 10 * PERIOD, 10 * PERIOD);
    let late = |(_, start): &(u64, Duration)| start.as_nanos() % PERIOD.as_nanos() != 0;
    assert!(!ticks.iter().filter(|t| t.0 == 1).any(late), "{ticks:?}");
    assert_eq!(count(&ticks, 2), 20, "two fit into each period");
}

#[test]
fn an_overloaded_device_still_finishes_stored_generations() {
    let mut s = Schedule::new();
    s.open(1, real_time(), Duration::ZERO);
    s.open(2, Pace::Stored, Duration::ZERO);
    let cost = [(1, 50 * MS), (2, 50 * MS)].into();
    let ticks = simulate(&mut s, &Told::default(), &cost, Duration::ZERO, 10_000 * MS);
    assert!(count(&ticks, 2) >= 35, "{} stored frames in 10 s", count(&ticks, 2));
    assert!(count(&ticks, 1) > 3 * count(&ticks, 2), "real time still has the most");
}

#[test]
fn a_full_ring_waits_for_its_reader_and_goes_on() {
    let mut s = Schedule::new();
    s.open(1, Pace::Stored, Duration::ZERO);
    let full = Told { full: [1].into(), ..Told::default() };
    assert_eq!(s.next(MS, &full), Next::Wait(POLL));
    assert_eq!(s.next(500 * MS, &full), Next::Wait(POLL), "not even after the longest wait");
    assert_eq!(s.next(501 * MS, &Told::default()), Next::Tick(1));
    s.open(2, Pace::Stored, Duration::ZERO);
    assert_eq!(s.next(502 * MS, &full), Next::Tick(2), "others do not wait for it");
}

proptest! {
    /// Whatever the load: nobody ticks faster than asked, nobody starves, no full ring ticks, no wait is empty.
    #[test]
    fn every_session_gets_its_share(
        sessions in prop::collection::vec((1..60u32, 1..30u64, any::<bool>()), 1..8),
        full in prop::collection::btree_set(0..8u64, 0..3),
        news in prop::collection::btree_set(0..8u64, 0..8),
    ) {
        let mut s = Schedule::new();
        let mut cost = BTreeMap::new();
        for (id, (fps, ms, stored)) in sessions.iter().enumerate() {
            let pace =
                if *stored { Pace::Stored } else { Pace::RealTime { period: Duration::from_secs(1) / *fps } };
            s.open(id as u64, pace, Duration::ZERO);
            cost.insert(id as u64, Duration::from_millis(*ms));
        }
        let told = Told { news, full };
        let ticks = simulate(&mut s, &told, &cost, Duration::ZERO, Duration::from_secs(4));
        let round: Duration = cost.values().sum();
        for (id, (fps, _, stored)) in sessions.iter().enumerate() {
            let n = count(&ticks, id as u64);
            if *stored && told.full.contains(&(id as u64)) {
                prop_assert_eq!(n, 0);
            } else if *stored {
                prop_assert!(n >= 1, "stored generation {} starved", id);
            } else {
                prop_assert!(n <= 4 * *fps as usize + 1, "session {} had {} ticks at {} a second", id, n, fps);
                let slowest = round + STORED_WAIT_MAX + Duration::from_secs(1) / *fps;
                let floor = (4.0 / slowest.as_secs_f64() / 2.0) as usize;
                prop_assert!(n >= floor, "session {} had {} ticks, at least {} are its share", id, n, floor);
            }
        }
    }
}

/// Runs the schedule with batches for `span`: a run of n sessions takes `fixed + n * each`. `join` and `leave` say what
/// happens before a moment. Returns (session, start of its run) of every frame, and the sizes of the runs.
fn simulate_runs(
    schedule: &mut Schedule,
    told: &Told,
    (fixed, each, most): (Duration, Duration, usize),
    (from, span): (Duration, Duration),
    mut before: impl FnMut(&mut Schedule, Duration),
) -> (Vec<(SessionNumber, Duration)>, Vec<usize>, u64) {
    let (mut now, mut frames, mut runs, mut missed) = (from, Vec::new(), Vec::new(), 0);
    let mut run = Vec::new();
    while now < from + span {
        before(schedule, now);
        match schedule.next(now, told) {
            Next::Tick(lead) => {
                schedule.run(lead, (now, most), told, |_| true, &mut run);
                assert_eq!(run[0], lead);
                let end = now + fixed + each * run.len() as u32;
                for &session in &run {
                    missed += schedule.ticked(session, now, end);
                    frames.push((session, now));
                }
                runs.push(run.len());
                now = end;
            }
            Next::Wait(time) => now += time,
            Next::Idle => now += MS,
            Next::Done => break,
        }
    }
    (frames, runs, missed)
}

const US: Duration = Duration::from_micros(1);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_hundred_sessions_keep_their_deadlines_in_runs_of_a_few_milliseconds() {
    let mut s = Schedule::new();
    let period = SECOND / 24;
    (0..100).for_each(|id| s.open(id, Pace::RealTime { period }, Duration::ZERO));
    let cost = (400 * US, 280 * US, 16);
    simulate_runs(&mut s, &Told::default(), cost, (Duration::ZERO, SECOND), |_, _| ());
    let (frames, runs, missed) = simulate_runs(&mut s, &Told::default(), cost, (SECOND, 10 * SECOND), |_, _| ());
    assert_eq!(missed, 0);
    for id in 0..100 {
        assert!((239..=241).contains(&count(&frames, id)), "session {id} had {}", count(&frames, id));
    }
    assert!(runs.iter().all(|n| (12..=13).contains(n)), "eight groups, evenly filled: {runs:?}");
}

#[test]
fn sessions_join_and_leave_and_the_groups_stay_even() {
    let mut s = Schedule::new();
    let pace = Pace::RealTime { period: SECOND / 24 };
    let cost = (400 * US, 280 * US, 16);
    let (mut next, mut left) = (0, 0);
    // One joins every 20 ms up to 96; then one leaves and one joins every 30 ms.
    let churn = |s: &mut Schedule, now: Duration| {
        while next < 96 && now >= 20 * MS * next as u32 {
            s.open(next, pace, now);
            next += 1;
        }
        while next >= 96 && now >= 2 * SECOND + 30 * MS * (next - 95) as u32 {
            s.close(left);
            left += 1;
            s.open(next, pace, now);
            next += 1;
        }
    };
    let (frames, runs, missed) = simulate_runs(&mut s, &Told::default(), cost, (Duration::ZERO, 6 * SECOND), churn);
    assert!(missed * 100 < frames.len() as u64, "{missed} of {} missed", frames.len());
    assert_eq!(s.len(), 96);
    let late = &runs[runs.len() / 2..];
    let mean = late.iter().sum::<usize>() as f64 / late.len() as f64;
    assert!(mean > 6.0, "runs of {mean} sessions");
}

#[test]
fn an_overloaded_device_fills_its_runs_and_nobody_starves() {
    let mut s = Schedule::new();
    (0..60).for_each(|id| s.open(id, Pace::RealTime { period: SECOND / 24 }, Duration::ZERO));
    s.open(1000, Pace::Stored, Duration::ZERO);
    let cost = (MS, 2 * MS, 16);
    let (frames, runs, missed) =
        simulate_runs(&mut s, &Told::default(), cost, (Duration::ZERO, 20 * SECOND), |_, _| ());
    assert!(missed > 0, "it cannot do 60 x 24 frames");
    let counts: Vec<usize> = (0..60).map(|id| count(&frames, id)).collect();
    let (least, most) = (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0));
    assert!(least * 10 >= most * 8, "between {least} and {most} frames");
    assert!(count(&frames, 1000) >= 60, "{} stored frames in 20 s", count(&frames, 1000));
    let full = runs.iter().filter(|n| **n == 16).count();
    assert!(full * 2 > runs.len(), "{full} of {} runs were full", runs.len());
}

#[test]
fn only_who_goes_together_shares_a_run() {
    let mut s = Schedule::new();
    (0..6).for_each(|id| s.open(id, real_time(), Duration::ZERO));
    s.open(9, Pace::Stored, Duration::ZERO);
    let mut run = Vec::new();
    let Next::Tick(lead) = s.next(MS, &Told::default()) else { panic!("all are due") };
    s.run(lead, (MS, 16), &Told::default(), |id| id % 2 == lead % 2, &mut run);
    assert_eq!(run, [0, 2, 4]);
    s.run(lead, (MS, 2), &Told::default(), |_| true, &mut run);
    assert_eq!(run, [0, 1], "no more than are wanted");
    s.run(77, (MS, 2), &Told::default(), |_| true, &mut run);
    assert!(run.is_empty(), "a session that is gone");
}

#[test]
fn a_key_in_time_joins_the_run_that_starts() {
    let mut s = Schedule::new();
    (0..2).for_each(|id| s.open(id, real_time(), Duration::ZERO));
    for id in 0..2 {
        assert_eq!(s.ticked(id, Duration::ZERO, MS), 0);
    }
    // Their groups are an eighth of a period apart: 40 and 45 ms from the start.
    assert_eq!(s.next(39 * MS, &Told::default()), Next::Wait(MS));
    let Next::Tick(lead) = s.next(40 * MS, &Told::default()) else { panic!("one is due") };
    let mut run = Vec::new();
    s.run(lead, (40 * MS, 16), &Told::default(), |_| true, &mut run);
    assert_eq!(run, [lead], "the other has no reason to be early");
    let news = Told { news: [1 - lead].into(), ..Told::default() };
    s.run(lead, (40 * MS, 16), &news, |_| true, &mut run);
    assert_eq!(run, [lead, 1 - lead]);
}

#[test]
fn half_the_rate_halves_the_frames() {
    let mut s = Schedule::new();
    s.open(1, real_time(), Duration::ZERO);
    s.slow_down(2);
    let ticks = simulate(&mut s, &Told::default(), &[(1, 3 * MS)].into(), Duration::ZERO, 100 * PERIOD);
    assert!((50..=51).contains(&ticks.len()), "{}", ticks.len());
    s.slow_down(1);
    let ticks = simulate(&mut s, &Told::default(), &[(1, 3 * MS)].into(), 100 * PERIOD, 100 * PERIOD);
    assert!((98..=101).contains(&ticks.len()), "{}", ticks.len());
}
