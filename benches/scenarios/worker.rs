//! Sessions against their deadlines: the worker's own sessions, schedule and rings, with this process in the place of
//! the api. Frames are in shared memory when they count.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use gamegend::frame::{ControlWriter, RingReader};
use gamegend::model::{Engine, ModelInfo};
use gamegend::proto::api::{Vocabulary, WorkerStats};
use gamegend::proto::keys::Keys;
use gamegend::proto::link::{FromWorker, OpenSession, SessionNumber, ToWorker};
use gamegend::worker::engine::Facts;
use gamegend::worker::schedule::{Next, POLL};
use gamegend::worker::sessions::{Outbox, Sessions};
use serde_json::{Map, Value, json};

use super::Outcome;
use super::arguments::Arguments;

/// A count of sessions passes if fewer of their frames are left out.
const MISSED_MAX: f64 = 0.01;
/// No more sessions are tried after this.
const MISSED_END: f64 = 0.2;
/// Deadlines find their groups, and the device its clock, before anything counts.
const SETTLE: Duration = Duration::from_millis(1500);
/// Waits that are shorter are spent looking at the clock: the system would come back late.
const SPIN: Duration = Duration::from_micros(200);
const FPS: u32 = 24;
/// A key is pressed in one session after the other, so often.
const PRESS_EVERY: Duration = Duration::from_millis(37);

/// The api's part.
#[derive(Default)]
struct Api {
    rings: Vec<(SessionNumber, OwnedFd)>,
    stats: Vec<WorkerStats>,
    failed: Vec<String>,
    frames: Vec<(SessionNumber, u64)>,
}

impl Outbox for Api {
    fn send(&mut self, message: FromWorker, fd: Option<BorrowedFd<'_>>) {
        match message {
            FromWorker::Opened { session } => {
                let fd = fd.and_then(|fd| fd.try_clone_to_owned().ok());
                self.rings.extend(fd.map(|fd| (session, fd)));
            }
            FromWorker::Stats(stats) => self.stats.push(stats),
            FromWorker::Failed { message, .. } => self.failed.push(message),
            FromWorker::Frame { session, tick } => self.frames.push((session, tick)),
            _ => {}
        }
    }
}

struct Player {
    control: ControlWriter,
    ring: RingReader,
    seq: u32,
    pressed: Option<Instant>,
}

struct Bench<'a> {
    a: &'a Arguments,
    steps: u32,
    sessions: Sessions<Engine>,
    api: Api,
    players: Vec<Player>,
    clock: Instant,
    latencies: Vec<f64>,
}

/// What a number of sessions got.
struct Row {
    count: usize,
    fps_each: f64,
    missed: f64,
    tick_p95_ms: f64,
    busy: f64,
    /// Milliseconds from a key to the frame that reflects it, in order.
    keys: Vec<f64>,
}

fn vocabulary(info: &ModelInfo) -> Vocabulary {
    Vocabulary {
        weather: info.weather.clone(),
        lighting: info.lighting.clone(),
        effects: info.effects.clone(),
        perspectives: info.perspectives.clone(),
        steps: info.steps.clone(),
        default_steps: info.default_steps,
        prompt_tokens_max: info.prompt_tokens_max,
        video_prompts: info.video_prompts.clone(),
        extractions: Vec::new(),
    }
}

/// The table with the steps that were asked for, and with the fewest, which is what an overloaded device falls back to.
pub fn run(a: &Arguments, engine: Engine) -> Outcome<(Map<String, Value>, Engine)> {
    let steps = super::frames::steps(a, &engine);
    let fewest = engine.model().info().steps.iter().copied().min().unwrap_or(steps);
    let (mut values, mut engine) = table(a, engine, steps)?;
    if fewest < steps {
        let (other, back) = table(a, engine, fewest)?;
        engine = back;
        values.insert("sessions_fewest_steps".to_string(), Value::Object(other));
    }
    Ok((values, engine))
}

fn table(a: &Arguments, engine: Engine, steps: u32) -> Outcome<(Map<String, Value>, Engine)> {
    let facts = Facts {
        model_hash: engine.model().info().hash.clone(),
        device: engine.device().detail.clone(),
        vocabulary: vocabulary(engine.model().info()),
        real_time_max: usize::MAX,
        trained_px_min: 0,
        // Nobody is refused and nothing is given up: the table says what the device does.
        rate: None,
    };
    let clock = Instant::now();
    let sessions = Sessions::new(engine, facts, clock.elapsed());
    let (players, latencies) = (Vec::new(), Vec::new());
    let mut bench = Bench { a, steps, sessions, api: Api::default(), players, clock, latencies };
    let mut rows: Vec<Row> = Vec::new();
    let mut full = None;
    for &count in &a.sessions {
        if let Err(e) = bench.grow(count) {
            full = Some(e.to_string());
            break;
        }
        bench.serve(SETTLE)?;
        rows.push(bench.measure(count)?);
        if let Some(row) = rows.last().filter(|row| row.missed >= MISSED_END) {
            full = Some(format!("{} sessions miss {:.0} % of their frames", row.count, 100.0 * row.missed));
            break;
        }
    }
    let values = bench.report(&rows, full);
    let Bench { sessions, mut api, .. } = bench;
    Ok((values, sessions.into_engine(&|| clock.elapsed(), &mut api)?))
}

impl Bench<'_> {
    /// Opens sessions until there are `count`.
    fn grow(&mut self, count: usize) -> Outcome<()> {
        while self.players.len() < count {
            let session = self.players.len() as SessionNumber + 1;
            let (control, fd) = ControlWriter::create()?;
            let size = (self.a.width, self.a.height);
            let request = OpenSession::from_text(session, "a castle in a forest at sunset", size, FPS, self.steps);
            let request = OpenSession { seed: session, ..request };
            let clock = self.clock;
            self.sessions.handle(ToWorker::Open(Box::new(request)), vec![fd], &|| clock.elapsed(), &mut self.api)?;
            if let Some(message) = self.api.failed.pop() {
                return Err(message.into());
            }
            let (_, ring) = self.api.rings.pop().ok_or("the worker sent no ring")?;
            self.players.push(Player { control, ring: RingReader::open(ring)?, seq: 0, pressed: None });
            // The first frame has many steps: it is made now, so that openings do not pile up.
            self.serve(Duration::from_millis(1))?;
        }
        Ok(())
    }

    /// The worker's loop for a while.
    fn serve(&mut self, span: Duration) -> Outcome<()> {
        let (end, clock) = (self.clock.elapsed() + span, self.clock);
        let mut press = Instant::now();
        while clock.elapsed() < end {
            match self.sessions.next(clock.elapsed()) {
                Next::Tick(session) => self.sessions.tick(session, &|| clock.elapsed(), &mut self.api)?,
                Next::Wait(time) if self.sessions.in_flight() => {
                    self.sessions.land(time.min(POLL), &|| clock.elapsed(), &mut self.api)?;
                }
                Next::Wait(time) if time > SPIN => std::thread::sleep(time - SPIN),
                Next::Wait(_) => std::hint::spin_loop(),
                Next::Idle | Next::Done => break,
            }
            self.watch(&mut press);
            self.sessions.report(clock.elapsed(), &mut self.api);
        }
        Ok(())
    }

    /// Presses a key now and then, and notes when a frame in shared memory reflects it.
    fn watch(&mut self, press: &mut Instant) {
        let now = Instant::now();
        for (session, tick) in std::mem::take(&mut self.api.frames) {
            let player = &mut self.players[session as usize - 1];
            let mut picture = Vec::new();
            if let Some(pressed) = player.pressed
                && player.ring.read(tick, &mut picture).is_ok_and(|meta| meta.seq == player.seq)
            {
                self.latencies.push(now.duration_since(pressed).as_secs_f64() * 1e3);
                player.pressed = None;
            }
        }
        if *press + PRESS_EVERY <= now {
            *press = now;
            let free = self.players.iter_mut().filter(|p| p.pressed.is_none()).min_by_key(|p| p.seq);
            if let Some(player) = free {
                player.seq += 1;
                player.control.set(player.seq, if player.seq.is_multiple_of(2) { Keys::NONE } else { Keys::W });
                player.pressed = Some(now);
            }
        }
    }

    fn measure(&mut self, count: usize) -> Outcome<Row> {
        self.api.stats.clear();
        self.latencies.clear();
        self.serve(Duration::from_secs(self.a.seconds + 1))?;
        // The first window began before the measurement.
        let stats = self.api.stats.get(1..).unwrap_or_default();
        let sum = |f: &dyn Fn(&WorkerStats) -> f64| stats.iter().map(f).sum::<f64>();
        let due = sum(&|s| s.deadlines as f64).max(1.0);
        let windows = (stats.len() as f64).max(1.0);
        let row = Row {
            count,
            fps_each: sum(&|s| s.frames_per_second) / windows / count as f64,
            missed: sum(&|s| s.deadlines_missed as f64) / due,
            tick_p95_ms: stats.iter().map(|s| s.tick_ms_p95).fold(0.0, f64::max),
            busy: sum(&|s| s.busy) / windows,
            keys: std::mem::take(&mut self.latencies),
        };
        eprintln!("{count} sessions: {:.2} frames/s each, {:.2} % missed", row.fps_each, 100.0 * row.missed);
        Ok(row)
    }

    fn report(&self, rows: &[Row], full: Option<String>) -> Map<String, Value> {
        let passed = rows.iter().rfind(|row| row.missed < MISSED_MAX);
        let row = |r: &Row| {
            json!({
                "sessions": r.count, "fps_each": r.fps_each, "missed": r.missed, "run_ms_p95": r.tick_p95_ms,
                "busy": r.busy, "key_to_ring_ms": r.latencies(),
            })
        };
        let values = json!({
            "sessions_24fps_720p": passed.map_or(0, |r| r.count),
            "sessions_steps": self.steps,
            "missed_deadlines": passed.map_or(1.0, |r| r.missed),
            "sessions_table": rows.iter().map(row).collect::<Vec<_>>(),
            "sessions_end": full,
            "key_to_ring_ms": passed.map(Row::latencies),
        });
        values.as_object().cloned().unwrap_or_default()
    }
}

impl Row {
    fn latencies(&self) -> Value {
        let mut all = self.keys.clone();
        all.sort_by(f64::total_cmp);
        let at = |share: f64| Some(all[(all.len().checked_sub(1)? as f64 * share) as usize]);
        json!({"p50": at(0.5), "p95": at(0.95), "p99": at(0.99)})
    }
}
