//! Many sessions on a device whose runs take as long as a few milliseconds and some for each frame: deadlines are kept
//! nearly as far as such a device can go, and beyond it something is given up in the stated order.

use std::rc::Rc;

use super::*;
use crate::proto::api::WorkerStats;

const MS: Duration = Duration::from_millis(1);
const FPS: u32 = 24;
/// Size of a session's pictures, with three smaller ones below it.
const SIZE_PX: (u32, u32) = (256, 192);
/// Seats of the largest run.
const SEATS: usize = 16;
/// What a run takes besides its frames.
const FIXED: Duration = Duration::from_micros(2500);
/// A frame of one step is as much work as this share of one of two.
const ONE_STEP: f64 = 0.62;

/// A device in virtual time.
struct Device {
    now: Rc<Cell<Duration>>,
    lanes: usize,
    /// What a seat of a run takes.
    seat: Duration,
    /// When the frames of the last run are done.
    free_at: Duration,
}

struct Player {
    steps: u32,
    size: (u32, u32),
    latent: Vec<f32>,
}

impl Engine for Device {
    type Session = Player;
    /// When it lands.
    type Flight = Duration;

    fn open(&mut self, request: &OpenSession) -> Result<Player, Fault> {
        Ok(Player { steps: request.steps, size: (request.width, request.height), latent: vec![0.0; LATENT] })
    }

    fn close(&mut self, _: Player) {}

    fn instruct(&mut self, _: &mut Player, _: &OpenSession, _: &Environment, _: Option<&str>) -> Result<(), Fault> {
        Ok(())
    }

    fn seed(&mut self, _: &mut Player, _: &[(Vec<f32>, Keys)]) -> Result<(), Fault> {
        Ok(())
    }

    fn encode(&mut self, _: &OpenSession, pictures: &[&[u8]]) -> Result<Vec<Vec<f32>>, Fault> {
        Ok(vec![vec![0.0; LATENT]; pictures.len()])
    }

    fn decode(&mut self, size_px: (u32, u32), latents: &[&[f32]]) -> Result<Vec<Vec<u8>>, Fault> {
        Ok(vec![vec![0; picture_bytes(size_px.0, size_px.1)]; latents.len()])
    }

    fn lead(&mut self, _: &mut Player, _: &str, _: &[u8]) -> Result<(), Fault> {
        Ok(())
    }

    fn batch_max(&self) -> usize {
        SEATS
    }

    fn go_together(&self, a: &Player, b: &Player) -> bool {
        (a.steps, a.size) == (b.steps, b.size)
    }

    fn lanes(&self) -> usize {
        self.lanes
    }

    /// As the model's engine: plans have seats by powers of two.
    fn run_max(&self, count: usize) -> usize {
        let seats = count.min(SEATS).next_power_of_two();
        if count * 4 >= seats * 3 { count.min(SEATS) } else { seats / 2 }
    }

    /// A vacant seat takes as long as one that is taken. What a run takes besides overlaps with other runs.
    fn begin(&mut self, parts: Vec<Part<'_, Player>>) -> Result<Duration, Fault> {
        let share = work(parts[0].session.size, parts[0].session.steps);
        let seats = parts.len().next_power_of_two() as u32;
        let begin = (self.now.get() + FIXED.mul_f64(share)).max(self.free_at);
        self.free_at = begin + (self.seat * seats).mul_f64(share);
        Ok(self.free_at)
    }

    fn landed(&mut self, flights: &[Duration], time: Duration) -> Result<Option<usize>, Fault> {
        let first = flights.iter().enumerate().min_by_key(|(_, end)| **end);
        let Some((index, &end)) = first else { return Ok(None) };
        let now = self.now.get();
        let there = end <= now.saturating_add(time);
        self.now.set(if there { now.max(end) } else { now + time });
        Ok(there.then_some(index))
    }

    fn flops(&mut self, size_px: (u32, u32), steps: u32) -> f64 {
        work(size_px, steps)
    }

    fn latent<'a>(&self, player: &'a Player) -> &'a [f32] {
        &player.latent
    }

    fn state_bytes(&self, _: &OpenSession) -> u64 {
        1
    }
}

/// Work of a frame, in ones of the usual size and two steps.
fn work(size_px: (u32, u32), steps: u32) -> f64 {
    let share = f64::from(size_px.0 * size_px.1) / f64::from(SIZE_PX.0 * SIZE_PX.1);
    if steps == 1 { ONE_STEP * share } else { share }
}

/// Frames a second of full runs, one after the other.
fn frames_a_second(seat: Duration) -> f64 {
    SEATS as f64 / (FIXED + seat * SEATS as u32).as_secs_f64()
}

/// Plays `count` sessions for `span`; the reports of every second.
fn play(lanes: usize, seat: Duration, count: usize, rate: Option<f64>, span: Duration) -> Vec<WorkerStats> {
    let stats = crowd(lanes, seat, (count, count, span), rate, span).into_iter().filter_map(|m| match m {
        FromWorker::Stats(stats) => Some(stats),
        _ => None,
    });
    stats.collect()
}

/// Plays `count` sessions, of whom the newest `left` stay after a while, for `span`; everything that the worker says.
fn crowd(
    lanes: usize,
    seat: Duration,
    (count, left, leave_at): (usize, usize, Duration),
    rate: Option<f64>,
    span: Duration,
) -> Vec<FromWorker> {
    let now = Rc::new(Cell::new(Duration::ZERO));
    let device = Device { now: now.clone(), lanes, seat, free_at: Duration::ZERO };
    let facts = Facts { real_time_max: 1000, rate, ..facts() };
    let mut sessions = Sessions::new(device, facts, Duration::ZERO);
    let mut api = Api::default();
    let clock = || now.get();
    let mut controls = Vec::new();
    while now.get() < span {
        let session = controls.len() as u64 + 1;
        // Nobody comes at the same moment.
        if session <= count as u64 && now.get() >= 3 * MS * session as u32 {
            let control = ControlWriter::create().expect("memory for a page").0;
            let fds = vec![control.read_only_fd().expect("a descriptor")];
            let request = OpenSession::from_text(session, "a meadow", SIZE_PX, FPS, 2);
            sessions.handle(ToWorker::Open(Box::new(request)), fds, &clock, &mut api).expect("the device is well");
            assert_eq!(api.failure(session), None);
            controls.push(control);
        }
        if now.get() >= leave_at && sessions.len() > left {
            let session = (controls.len() - sessions.len()) as u64 + 1;
            sessions.handle(ToWorker::Close { session }, vec![], &clock, &mut api).expect("the device is well");
        }
        match sessions.next(now.get()) {
            Next::Tick(session) => sessions.tick(session, &clock, &mut api).expect("the device is well"),
            Next::Wait(time) if sessions.in_flight() => {
                sessions.land(time.min(MS), &clock, &mut api).expect("the device is well");
            }
            Next::Wait(_) | Next::Idle => now.set(now.get() + MS / 4),
            Next::Done => unreachable!("nobody drains it"),
        }
        sessions.report(now.get(), &mut api);
    }
    api.sent
}

/// Share of the deadlines that were missed, and frames a second, after the first two seconds.
fn kept(stats: &[WorkerStats]) -> (f64, f64) {
    let late = &stats[2..];
    let sum = |f: fn(&WorkerStats) -> u64| late.iter().map(f).sum::<u64>() as f64;
    let fps = late.iter().map(|s| s.frames_per_second).sum::<f64>() / late.len() as f64;
    (sum(|s| s.deadlines_missed) / sum(|s| s.deadlines), fps)
}

#[test]
fn deadlines_are_kept_up_to_nearly_what_the_device_can_do() {
    for seat in [250, 350, 500, 650].map(Duration::from_micros) {
        let capacity = frames_a_second(seat) / f64::from(FPS);
        for lanes in [1, 2] {
            for share in [0.5, 0.8, 0.95] {
                let count = (capacity * share) as usize;
                let (missed, fps) = kept(&play(lanes, seat, count, None, 8000 * MS));
                let what = format!("{count} of {capacity:.1} sessions, {seat:?} a seat, {lanes} lanes");
                assert!(missed < 0.01, "{what}: {missed}");
                let wanted = count as f64 * f64::from(FPS);
                assert!((fps / wanted - 1.0).abs() < 0.01, "{what}: {fps} frames a second");
            }
        }
        let (missed, _) = kept(&play(1, seat, (capacity * 1.2) as usize, None, 8000 * MS));
        assert!(missed > 0.1, "{capacity:.1} sessions are not the capacity: 1.2 times as many miss {missed}");
    }
}

#[test]
fn a_second_run_on_its_way_makes_up_for_what_a_run_takes_besides() {
    let seat = Duration::from_micros(250);
    let count = (1.2 * frames_a_second(seat) / f64::from(FPS)) as usize;
    let (one, _) = kept(&play(1, seat, count, None, 8000 * MS));
    let (two, _) = kept(&play(2, seat, count, None, 8000 * MS));
    assert!(one > 0.1 && two < 0.01, "{count} sessions miss {one} with one lane, {two} with two");
}

#[test]
fn beyond_the_capacity_steps_go_first_and_then_the_rate() {
    let seat = Duration::from_micros(500);
    let (rate, capacity) = (frames_a_second(seat), frames_a_second(seat) / f64::from(FPS));
    // The device is said to do more than it does, so that so many are let in.
    let levels = |share: f64| {
        let stats = play(1, seat, (capacity * share) as usize, Some(3.0 * rate), 20_000 * MS);
        let mut levels: Vec<String> = stats.iter().map(|s| s.degraded.clone()).collect();
        levels.dedup();
        (levels, stats.last().map(|s| s.deadlines_missed as f64 / s.deadlines as f64).unwrap_or(1.0))
    };
    let (none, _) = levels(0.95);
    assert_eq!(none, ["none"]);
    let (steps, missed) = levels(1.3);
    assert_eq!(steps, ["none", "steps"]);
    assert!(missed < 0.01, "with fewer steps {missed} are missed");
    let (rate, missed) = levels(2.0);
    assert_eq!(rate, ["none", "steps", "steps and rate"]);
    assert!(missed < 0.01, "with half the rate {missed} are missed");
}

/// Sessions in the order in which they changed their size, with the new width.
fn changes(said: &[FromWorker]) -> Vec<(SessionNumber, u32)> {
    let mut widths = BTreeMap::new();
    let mut changes = Vec::new();
    for message in said {
        let FromWorker::Quality { session, quality } = message else { continue };
        if widths.insert(*session, quality.width).is_some_and(|before| before != quality.width) {
            changes.push((*session, quality.width));
        }
    }
    changes
}

#[test]
fn what_steps_and_rate_cannot_cure_sizes_do_one_session_after_the_other() {
    let seat = Duration::from_micros(1500);
    let (rate, capacity) = (frames_a_second(seat), frames_a_second(seat) / f64::from(FPS));
    let count = (4.0 * capacity) as usize;
    let span = 60_000 * MS;
    let said = crowd(1, seat, (count, count, span), Some(20.0 * rate), span);
    let stats: Vec<&WorkerStats> =
        said.iter().filter_map(|m| if let FromWorker::Stats(stats) = m { Some(stats) } else { None }).collect();
    let mut levels: Vec<&str> = stats.iter().map(|s| s.degraded.as_str()).collect();
    levels.dedup();
    assert_eq!(levels, ["none", "steps", "steps and rate", "steps, rate and size"]);
    let late = &stats[stats.len() - 20..];
    let sum = |f: fn(&WorkerStats) -> u64| late.iter().map(|s| f(s)).sum::<u64>() as f64;
    let missed = sum(|s| s.deadlines_missed) / sum(|s| s.deadlines);
    assert!(missed < 0.01, "with smaller sizes {missed} are missed");

    let changes = changes(&said);
    let mut widths = BTreeMap::new();
    let falls = |(session, width)| widths.insert(session, width).is_none_or(|before| before > width);
    assert!(!changes.is_empty() && changes.iter().copied().all(falls), "nothing comes back: {changes:?}");
    let lost: Vec<SessionNumber> = changes.iter().map(|(session, _)| *session).collect();
    let newest: Vec<SessionNumber> = (1..=count as u64).rev().take(lost.len()).collect();
    let mut first: Vec<SessionNumber> = Vec::new();
    lost.iter().for_each(|session| {
        if !first.contains(session) {
            first.push(*session)
        }
    });
    first.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(first, newest[..first.len()], "all need the same, so who came last goes first");
    let last = stats.last().expect("a report");
    assert_eq!(last.smaller as usize, first.len());
}

#[test]
fn sizes_come_back_in_reverse_order_when_there_is_room_and_do_not_flap() {
    let seat = Duration::from_micros(1500);
    let (rate, capacity) = (frames_a_second(seat), frames_a_second(seat) / f64::from(FPS));
    let count = (4.0 * capacity) as usize;
    let (leave_at, span) = (60_000 * MS, 180_000 * MS);
    let left = (0.6 * capacity) as usize;
    let said = crowd(1, seat, (count, left, leave_at), Some(20.0 * rate), span);
    let last = said.iter().rev().find_map(|m| if let FromWorker::Stats(stats) = m { Some(stats) } else { None });
    let last = last.expect("a report");
    assert_eq!((last.degraded.as_str(), last.smaller), ("none", 0), "{last:?}");
    assert!(last.deadlines_missed * 100 <= last.deadlines, "{last:?}");
    let stayed: Vec<(SessionNumber, u32)> =
        changes(&said).into_iter().filter(|(session, _)| *session > (count - left) as u64).collect();
    // Who lost a size last was the oldest session: it is the first one that gets it back.
    let mut widths = BTreeMap::new();
    let mut back: BTreeMap<u32, Vec<SessionNumber>> = BTreeMap::new();
    for &(session, width) in &stayed {
        if widths.insert(session, width).is_some_and(|before| before < width) {
            back.entry(width).or_default().push(session);
        }
    }
    assert!(!back.is_empty() && back.values().all(|order| order.is_sorted()), "{back:?}");
    // Of those who stayed: everything is lost before anything comes back, and it comes back the other way round.
    for session in (count - left) as u64 + 1..=count as u64 {
        let widths: Vec<u32> = stayed.iter().filter(|(s, _)| *s == session).map(|(_, width)| *width).collect();
        let turn = widths.windows(2).position(|pair| pair[0] < pair[1]).map_or(widths.len(), |at| at + 1);
        let falls = widths[..turn].windows(2).all(|pair| pair[0] > pair[1]);
        let rises = widths[turn..].windows(2).all(|pair| pair[0] < pair[1]);
        assert!(falls && rises, "session {session} went {widths:?}");
        assert!(widths.last().is_none_or(|width| *width == SIZE_PX.0), "session {session} went {widths:?}");
    }
}
