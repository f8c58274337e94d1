use std::cell::Cell;

use super::super::engine::{Part, Picture, SharedNumber};
use super::*;
use crate::frame::pictures::picture_bytes;
use crate::frame::trace::{self, Change};
use crate::frame::{ControlWriter, FrameMeta, RingReader, Snapshot, i420_bytes};
use crate::proto::api::Vocabulary;
use crate::proto::keys::Keys;
use crate::proto::link::Environment;
use crate::proto::wire::FLAG_RECOVERED;
use crate::sys::shm::SharedMemory;
use crate::worker::session::SNAPSHOT_TICKS;

const LATENT: usize = 8;

/// A stand-in whose frames are a function of everything that a session's frames may depend on.
#[derive(Default)]
struct Arithmetic {
    open: usize,
    /// The tick (counted over all sessions) that fails, and how.
    fail_at: Option<(u64, Fault)>,
    ticks: u64,
    /// Most sessions of a run (0: one), and the sizes of the runs so far.
    batch: usize,
    runs: Vec<usize>,
    /// The only sizes that it can have; `None`: any.
    sizes: Option<Vec<(u32, u32)>>,
    /// Bytes of the newest picture of a video prompt.
    led: usize,
    /// Frames go straight into the rings.
    shares: bool,
    shared: BTreeMap<SharedNumber, std::sync::Arc<SharedMemory>>,
}

struct Sum {
    seed: u64,
    steps: u32,
    size: (u32, u32),
    latent: Vec<f32>,
    text: String,
}

impl Engine for Arithmetic {
    type Session = Sum;
    type Flight = ();

    fn open(&mut self, request: &OpenSession) -> Result<Sum, Fault> {
        if self.sizes.as_ref().is_some_and(|sizes| !sizes.contains(&(request.width, request.height))) {
            return Err(Fault::session("engine", "there is no plan for this size"));
        }
        if request.prompt.contains("too many tokens") {
            return Err(Fault::session("prompt_too_long", "the prompt has 99 tokens, allowed: 40"));
        }
        self.open += 1;
        Ok(Sum {
            seed: request.seed,
            steps: request.steps,
            size: (request.width, request.height),
            latent: vec![request.seed as f32; LATENT],
            text: String::new(),
        })
    }

    fn close(&mut self, _: Sum) {
        self.open -= 1;
    }

    fn instruct(&mut self, s: &mut Sum, _: &OpenSession, e: &Environment, text: Option<&str>) -> Result<(), Fault> {
        if text.is_some_and(|t| t.contains("too many tokens")) {
            return Err(Fault::session("instruction_too_long", "the instruction has 99 tokens, allowed: 40"));
        }
        s.text = format!("{:?} {text:?}", e.weather);
        Ok(())
    }

    fn seed(&mut self, s: &mut Sum, history: &[(Vec<f32>, Keys)]) -> Result<(), Fault> {
        if let Some((latent, _)) = history.last() {
            s.latent.clone_from(latent);
        }
        Ok(())
    }

    fn encode(&mut self, _: &OpenSession, pictures: &[&[u8]]) -> Result<Vec<Vec<f32>>, Fault> {
        Ok(pictures.iter().map(|p| vec![f32::from(p[0]); LATENT]).collect())
    }

    fn decode(&mut self, size_px: (u32, u32), latents: &[&[f32]]) -> Result<Vec<Vec<u8>>, Fault> {
        let rgb = |latent: &&[f32]| vec![latent[0] as u8; picture_bytes(size_px.0, size_px.1)];
        Ok(latents.iter().map(rgb).collect())
    }

    fn lead(&mut self, s: &mut Sum, kind: &str, picture: &[u8]) -> Result<(), Fault> {
        self.led = picture.len();
        s.latent[0] += f32::from(picture[0]) + kind.len() as f32;
        Ok(())
    }

    fn batch_max(&self) -> usize {
        self.batch.max(1)
    }

    fn go_together(&self, a: &Sum, b: &Sum) -> bool {
        (a.steps, a.size) == (b.steps, b.size)
    }

    fn begin(&mut self, parts: Vec<Part<'_, Sum>>) -> Result<(), Fault> {
        self.runs.push(parts.len());
        parts.into_iter().try_for_each(|part| match part.picture {
            Picture::Bytes(picture) => self.frame(part.session, part.keys, picture),
            Picture::Shared(number, offset) => {
                let memory = std::sync::Arc::clone(&self.shared[&number]);
                let (width, height) = part.session.size;
                let mut picture = vec![0; i420_bytes(width, height)];
                self.frame(part.session, part.keys, &mut picture)?;
                memory.write(offset, &picture);
                Ok(())
            }
        })
    }

    fn share(&mut self, memory: &std::sync::Arc<SharedMemory>) -> Option<SharedNumber> {
        self.shares.then(|| {
            self.shared.insert(self.open, memory.clone());
            self.open
        })
    }

    fn unshare(&mut self, number: SharedNumber) {
        self.shared.remove(&number);
    }

    fn flops(&mut self, (width, height): (u32, u32), steps: u32) -> f64 {
        1000.0 * f64::from(steps) * f64::from(width * height) / f64::from(64 * 64)
    }

    fn latent<'a>(&self, s: &'a Sum) -> &'a [f32] {
        &s.latent
    }

    fn state_bytes(&self, _: &OpenSession) -> u64 {
        1000
    }
}

impl Arithmetic {
    fn frame(&mut self, s: &mut Sum, keys: Keys, picture: &mut [u8]) -> Result<(), Fault> {
        self.ticks += 1;
        if let Some((_, fault)) = self.fail_at.clone().filter(|(at, _)| *at == self.ticks) {
            return Err(fault);
        }
        let text: u32 = s.text.bytes().map(u32::from).sum::<u32>() + s.steps;
        for (i, v) in s.latent.iter_mut().enumerate() {
            *v = (*v * 1.7 + i as f32 + f32::from(keys.0) + text as f32 + s.seed as f32 * 0.1) % 251.0;
        }
        for (i, p) in picture.iter_mut().enumerate() {
            *p = s.latent[i % LATENT].to_bits().to_le_bytes()[i % 4];
        }
        Ok(())
    }
}

/// What the api would hold of a session.
struct Viewer {
    control: ControlWriter,
    ring: Option<RingReader>,
}

#[derive(Default)]
struct Api {
    sent: Vec<FromWorker>,
    rings: BTreeMap<SessionNumber, OwnedFd>,
}

impl Outbox for Api {
    fn send(&mut self, message: FromWorker, fd: Option<BorrowedFd<'_>>) {
        if let FromWorker::Opened { session } = &message {
            let fd = fd.expect("a ring comes with Opened").try_clone_to_owned().expect("dup");
            self.rings.insert(*session, fd);
        }
        self.sent.push(message);
    }
}

impl Api {
    fn ring(&self, session: SessionNumber) -> RingReader {
        RingReader::open(self.rings[&session].try_clone().expect("dup")).expect("a ring of the worker")
    }

    fn frames(&self, session: SessionNumber) -> Vec<u64> {
        let frames = self.sent.iter().filter_map(|m| match m {
            FromWorker::Frame { session: s, tick } if *s == session => Some(*tick),
            _ => None,
        });
        frames.collect()
    }

    fn failure(&self, session: SessionNumber) -> Option<(String, String)> {
        self.sent.iter().find_map(|m| match m {
            FromWorker::Failed { session: s, code, message } if *s == session => Some((code.clone(), message.clone())),
            _ => None,
        })
    }

    fn finished(&self, session: SessionNumber) -> Option<u64> {
        self.sent.iter().find_map(|m| match m {
            FromWorker::Finished { session: s, frames } if *s == session => Some(*frames),
            _ => None,
        })
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| w.to_string()).collect()
}

fn facts() -> Facts {
    Facts {
        model_hash: "aa".repeat(32),
        device: "arithmetic".to_string(),
        vocabulary: Vocabulary {
            video_prompts: words(&["canny"]),
            extractions: words(&["canny"]),
            weather: words(&["clear", "snow"]),
            lighting: words(&["day", "night"]),
            effects: words(&["none", "fire"]),
            perspectives: words(&["third", "first"]),
            steps: vec![1, 2, 4],
            default_steps: 2,
            prompt_tokens_max: 40,
        },
        real_time_max: 3,
        trained_px_min: 0,
        rate: None,
    }
}

fn request(session: SessionNumber, frames: Option<u32>) -> OpenSession {
    OpenSession { seed: 7, frames, ..OpenSession::from_text(session, "a meadow", (64, 64), 25, 2) }
}

#[path = "batch_tests.rs"]
mod batch;
#[path = "crowd_tests.rs"]
mod crowd;
#[path = "replay_tests.rs"]
mod replay;
#[path = "size_tests.rs"]
mod size;

/// A worker's sessions with an api and a clock that a test moves.
struct Bench {
    sessions: Sessions<Arithmetic>,
    api: Api,
    now: Cell<Duration>,
}

impl Bench {
    fn new() -> Bench {
        let sessions = Sessions::new(Arithmetic::default(), facts(), Duration::ZERO);
        Bench { sessions, api: Api::default(), now: Cell::new(Duration::ZERO) }
    }

    fn handle(&mut self, message: ToWorker, fds: Vec<OwnedFd>) -> Result<(), Fault> {
        let now = self.now.get();
        self.sessions.handle(message, fds, &|| now, &mut self.api)
    }

    /// Opens a session on a fresh control block, or on the one of `viewer`.
    fn open(&mut self, request: OpenSession, snapshot: Option<OwnedFd>, viewer: Option<Viewer>) -> Viewer {
        let session = request.session;
        let mut viewer = viewer
            .unwrap_or_else(|| Viewer { control: ControlWriter::create().expect("memory for a page").0, ring: None });
        let mut fds = vec![viewer.control.read_only_fd().expect("a descriptor")];
        fds.extend(snapshot);
        self.handle(ToWorker::Open(Box::new(request)), fds).expect("the device is well");
        viewer.ring = self.api.rings.contains_key(&session).then(|| self.api.ring(session));
        viewer
    }

    /// Runs until nothing can go on for `span`; each tick takes 5 ms.
    fn run(&mut self, span: Duration) -> Result<(), Fault> {
        let end = self.now.get() + span;
        while self.now.get() < end {
            match self.sessions.next(self.now.get()) {
                Next::Tick(session) => {
                    let now = &self.now;
                    let clock = || {
                        now.set(now.get() + Duration::from_micros(2500));
                        now.get()
                    };
                    self.sessions.tick(session, &clock, &mut self.api)?;
                }
                Next::Wait(time) => self.now.set(self.now.get() + time),
                Next::Idle | Next::Done => break,
            }
        }
        Ok(())
    }
}

fn read(viewer: &Viewer, tick: u64) -> (FrameMeta, Vec<u8>) {
    let mut picture = Vec::new();
    let ring = viewer.ring.as_ref().expect("the session is open");
    let meta = ring.read(tick, &mut picture).unwrap_or_else(|e| panic!("frame {tick}: {e}"));
    (meta, picture)
}

/// Runs a stored generation to its end, taking each frame; returns the pictures by tick.
fn collect(bench: &mut Bench, session: SessionNumber, viewer: &Viewer, from: u64) -> BTreeMap<u64, Vec<u8>> {
    let (mut pictures, mut next) = (BTreeMap::new(), from);
    for _ in 0..10_000 {
        bench.run(Duration::from_millis(20)).expect("the device is well");
        while viewer.ring.as_ref().and_then(RingReader::newest).is_some_and(|newest| newest >= next) {
            pictures.insert(next, read(viewer, next).1);
            next += 1;
            viewer.control.consumed(next);
        }
        if bench.api.finished(session).is_some() {
            break;
        }
    }
    pictures
}

#[test]
fn a_stored_generation_loses_no_frame_and_finishes() {
    let mut bench = Bench::new();
    let viewer = bench.open(request(1, Some(40)), None, None);
    bench.run(Duration::from_secs(5)).expect("the device is well");
    assert_eq!(bench.api.frames(1), (0..7).collect::<Vec<_>>(), "it waits before it overwrites");
    let pictures = collect(&mut bench, 1, &viewer, 0);
    assert_eq!(pictures.keys().copied().collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
    assert_eq!(bench.api.finished(1), Some(40));
    assert_eq!(bench.sessions.len(), 0);
    assert_eq!(bench.sessions.engine.open, 0, "the engine's part is closed");
    let last = Snapshot::read_fd(&bench.api.rings[&1]).expect("a snapshot to go on from");
    assert_eq!((last.about.tick, last.history.len()), (39, 16));
}

#[test]
fn keys_act_on_the_next_frame_and_are_traced() {
    let mut bench = Bench::new();
    let viewer = bench.open(request(1, None), None, None);
    bench.run(Duration::from_millis(100)).expect("the device is well");
    viewer.control.tap(Keys::SPACE);
    viewer.control.set(5, Keys::W);
    let before = bench.api.frames(1).len() as u64;
    bench.run(Duration::from_millis(90)).expect("the device is well");
    let (meta, _) = read(&viewer, before);
    assert_eq!(meta, FrameMeta { tick: before, time_us: before * 40_000, seq: 5, flags: 0, width: 64, height: 64 });
    bench.handle(ToWorker::Close { session: 1 }, vec![]).expect("the device is well");
    let frames = bench.api.finished(1).expect("closed is finished");
    let snapshot = Snapshot::read_fd(&bench.api.rings[&1]).expect("a last snapshot");
    assert_eq!(snapshot.about.tick + 1, frames);
    let changes = trace::decode(&snapshot.trace).expect("a trace of ours");
    let both = Keys::W.union(Keys::SPACE);
    assert_eq!(
        changes,
        [Change::Keys { tick: before, seq: 5, keys: both }, Change::Keys { tick: before + 1, seq: 5, keys: Keys::W },]
    );
}

#[test]
fn an_instruction_counts_as_a_control_and_a_bad_one_is_refused() {
    let mut bench = Bench::new();
    let viewer = bench.open(request(1, None), None, None);
    bench.run(Duration::from_millis(50)).expect("the device is well");
    let snow = Environment { weather: Some("snow".to_string()), ..Environment::default() };
    let instruct = |seq, environment: &Environment, text: Option<&str>| ToWorker::Instruct {
        session: 1,
        seq,
        environment: environment.clone(),
        instruction: text.map(str::to_string),
    };
    bench.handle(instruct(3, &snow, None), vec![]).expect("the device is well");
    bench.run(Duration::from_millis(40)).expect("the device is well");
    assert_eq!(read(&viewer, bench.api.frames(1).len() as u64 - 1).0.seq, 3);
    bench.handle(instruct(4, &snow, Some("too many tokens")), vec![]).expect("the device is well");
    let hail = Environment { weather: Some("hail".to_string()), ..Environment::default() };
    bench.handle(instruct(5, &hail, None), vec![]).expect("the device is well");
    bench.run(Duration::from_millis(80)).expect("the device is well");
    assert_eq!(read(&viewer, bench.api.frames(1).len() as u64 - 1).0.seq, 3, "neither was applied");
    let refused: Vec<(u32, &str)> = bench
        .api
        .sent
        .iter()
        .filter_map(|m| match m {
            FromWorker::Refused { session: 1, seq, code, .. } => Some((*seq, code.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(refused, [(5, "bad_control"), (4, "instruction_too_long")]);
}

#[test]
fn the_same_value_gives_the_same_frames_alone_and_beside_another() {
    let mut alone = Bench::new();
    let viewer = alone.open(request(1, Some(30)), None, None);
    let expected = collect(&mut alone, 1, &viewer, 0);
    let mut shared = Bench::new();
    let other = shared.open(OpenSession { seed: 99, ..request(2, None) }, None, None);
    let viewer = shared.open(request(1, Some(30)), None, None);
    other.control.set(1, Keys::D);
    assert_eq!(collect(&mut shared, 1, &viewer, 0), expected);
    assert!(shared.api.frames(2).len() > 3, "the other one ran meanwhile");
}

#[test]
fn a_live_session_goes_on_in_another_worker() {
    let mut first = Bench::new();
    let viewer = first.open(request(1, None), None, None);
    viewer.control.set(2, Keys::A);
    first.run(Duration::from_millis(40 * 30)).expect("the device is well");
    let seen = *first.api.frames(1).last().expect("it ran");
    assert!(seen > u64::from(SNAPSHOT_TICKS), "{seen} frames: later than the snapshot");
    let old = first.api.rings.remove(&1).expect("it was open");
    drop(first);
    let mut second = Bench::new();
    let again = OpenSession { from_snapshot: true, keep_tick: true, ..request(1, None) };
    let viewer = second.open(again, Some(old), Some(viewer));
    second.run(Duration::from_millis(200)).expect("the device is well");
    assert_eq!(second.api.frames(1)[0], seen + 1, "ticks go on rising");
    let (meta, _) = read(&viewer, seen + 1);
    assert_eq!((meta.flags, meta.seq), (FLAG_RECOVERED, 2));
    assert_eq!(read(&viewer, seen + 2).0.flags, 0, "only the first frame says so");
    second.handle(ToWorker::Close { session: 1 }, vec![]).expect("the device is well");
    let snapshot = Snapshot::read_fd(&second.api.rings[&1]).expect("a last snapshot");
    let changes = trace::decode(&snapshot.trace).expect("a trace of ours");
    assert!(matches!(changes[0], Change::Keys { tick: 0, seq: 2, .. }), "the trace reaches back: {changes:?}");
    assert_eq!(changes[1], Change::Continued { tick: seen + 1, from: u64::from(SNAPSHOT_TICKS) - 1 });
}

#[test]
fn a_stored_generation_goes_on_without_a_gap_or_a_frame_twice() {
    let mut whole = Bench::new();
    let viewer = whole.open(request(1, Some(50)), None, None);
    let expected = collect(&mut whole, 1, &viewer, 0);
    let mut first = Bench::new();
    let viewer = first.open(request(1, Some(50)), None, None);
    let mut got = BTreeMap::new();
    for tick in 0..30 {
        first.run(Duration::from_millis(100)).expect("the device is well");
        got.insert(tick, read(&viewer, tick).1);
        viewer.control.consumed(tick + 1);
    }
    let old = first.api.rings.remove(&1).expect("it was open");
    drop(first);
    let mut second = Bench::new();
    let again = OpenSession { from_snapshot: true, keep_tick: true, ..request(1, Some(50)) };
    let viewer = second.open(again, Some(old), Some(viewer));
    let rest = collect(&mut second, 1, &viewer, 30);
    assert_eq!(second.api.frames(1), (30..50).collect::<Vec<_>>(), "frames 24 to 29 are made again, not sent again");
    got.extend(rest);
    assert_eq!(got, expected, "this engine's state is its last latent, so even the pictures agree");
}

#[test]
fn a_session_that_died_before_its_first_snapshot_begins_anew() {
    let mut first = Bench::new();
    let viewer = first.open(request(1, None), None, None);
    first.run(Duration::from_millis(100)).expect("the device is well");
    let seen = *first.api.frames(1).last().expect("it ran");
    let old = first.api.rings.remove(&1).expect("it was open");
    let mut second = Bench::new();
    let again = OpenSession { from_snapshot: true, keep_tick: true, ..request(1, None) };
    second.open(again, Some(old), Some(viewer));
    second.run(Duration::from_millis(20)).expect("the device is well");
    assert_eq!(second.api.frames(1), [seen + 1]);
}

/// A snapshot as a stored file: a continuation that a client asked for.
#[test]
fn a_continuation_must_fit_the_model_and_the_size() {
    let mut bench = Bench::new();
    let viewer =
        bench.open(OpenSession { instruction: Some("a storm".to_string()), ..request(1, Some(4)) }, None, None);
    collect(&mut bench, 1, &viewer, 0);
    let good = Snapshot::read_fd(&bench.api.rings[&1]).expect("a last snapshot");
    assert_eq!(good.about.instruction.as_deref(), Some("a storm"));
    let file = |snapshot: &Snapshot| -> OwnedFd {
        let path = std::env::temp_dir().join(format!("gamegend-continue-{}", std::process::id()));
        std::fs::write(&path, snapshot.encode().expect("it fits")).expect("a temporary file");
        let file = std::fs::File::open(&path).expect("it was just written");
        std::fs::remove_file(&path).expect("it was ours");
        file.into()
    };
    let go_on = |session| OpenSession { from_snapshot: true, ..request(session, Some(2)) };
    let viewer = bench.open(go_on(2), Some(file(&good)), None);
    collect(&mut bench, 2, &viewer, 0);
    assert_eq!(bench.api.frames(2), [0, 1], "a continuation of its own begins at 0");
    let next = Snapshot::read_fd(&bench.api.rings[&2]).expect("a last snapshot");
    assert_eq!(next.about.instruction.as_deref(), Some("a storm"), "the world keeps its weather");
    assert_eq!(next.history[..4], good.history[..]);

    let mut other = good.clone();
    other.about.model_hash = "bb".repeat(32);
    bench.open(go_on(3), Some(file(&other)), None);
    assert_eq!(bench.api.failure(3).expect("another model").0, "model_mismatch");
    bench.open(OpenSession { width: 128, ..go_on(4) }, Some(file(&good)), None);
    let (code, message) = bench.api.failure(4).expect("another size");
    assert_eq!(code, "size_mismatch");
    assert!(message.contains("64 x 64") && message.contains("128 x 64"), "{message}");
    let mut short = good.clone();
    short.history.iter_mut().for_each(|(latent, _)| latent.truncate(3));
    bench.open(go_on(5), Some(file(&short)), None);
    assert_eq!(bench.api.failure(5).expect("other latents").0, "bad_snapshot");
    assert_eq!(bench.sessions.engine.open, 0, "what failed half-way is closed");
}

#[test]
fn what_the_api_sends_is_checked_again() {
    let mut bench = Bench::new();
    let cases = [
        (OpenSession { width: 63, ..request(1, None) }, "width"),
        (OpenSession { height: 2000, ..request(2, None) }, "height"),
        (OpenSession { fps: 0, ..request(3, None) }, "fps"),
        (OpenSession { steps: 3, ..request(4, None) }, "steps"),
        (OpenSession { frames: Some(0), ..request(5, None) }, "frames"),
        (OpenSession { prompt: " ".to_string(), ..request(6, None) }, "prompt"),
        (OpenSession { perspective: Some("second".to_string()), ..request(7, None) }, "perspective"),
        (OpenSession { instruction: Some("x".repeat(501)), ..request(8, None) }, "instruction"),
    ];
    for (request, field) in cases {
        let session = request.session;
        bench.open(request, None, None);
        let (_, message) = bench.api.failure(session).expect("it is refused");
        assert!(message.starts_with(field), "{message}");
    }
    bench.handle(ToWorker::Open(Box::new(request(9, None))), vec![]).expect("the device is well");
    assert!(bench.api.failure(9).is_some(), "no control block");
    bench.open(OpenSession { prompt: "too many tokens".to_string(), ..request(10, None) }, None, None);
    assert_eq!(bench.api.failure(10).expect("refused by the model").0, "prompt_too_long");
    bench.handle(ToWorker::Close { session: 77 }, vec![]).expect("unknown sessions are ignored");
    assert!(bench.sessions.is_empty());
}

#[test]
fn more_interactive_sessions_than_allowed_are_refused() {
    let mut bench = Bench::new();
    let _viewers: Vec<Viewer> = (0..3).map(|s| bench.open(request(s, None), None, None)).collect();
    bench.open(request(3, None), None, None);
    let (code, message) = bench.api.failure(3).expect("the fourth");
    assert_eq!((code.as_str(), message.as_str()), ("worker_full", "3 interactive sessions are open, allowed: 3"));
    bench.open(request(4, Some(1)), None, None);
    assert!(bench.api.failure(4).is_none(), "a stored one has room");
}

#[test]
fn a_fault_of_a_session_ends_it_alone_and_one_of_the_device_ends_all() {
    let mut bench = Bench::new();
    let _viewers: Vec<Viewer> = (1..3).map(|s| bench.open(request(s, None), None, None)).collect();
    bench.sessions.engine.fail_at = Some((3, Fault::session("engine", "a number overflowed")));
    bench.run(Duration::from_millis(400)).expect("the device is well");
    assert_eq!(bench.sessions.len(), 1);
    assert_eq!(bench.api.failure(1).or(bench.api.failure(2)).expect("one failed").1, "a number overflowed");
    bench.sessions.engine.fail_at = Some((bench.sessions.engine.ticks + 2, Fault::device("device_lost", "gone")));
    assert!(bench.run(Duration::from_millis(400)).expect_err("the device is gone").device);
}

#[test]
fn statistics_and_drain() {
    let mut bench = Bench::new();
    let _viewer = bench.open(request(1, None), None, None);
    bench.run(Duration::from_secs(2)).expect("the device is well");
    bench.sessions.report(bench.now.get(), &mut bench.api);
    let Some(FromWorker::Stats(stats)) = bench.api.sent.last() else { panic!("a window is over") };
    assert_eq!((stats.sessions, stats.state_bytes), (1, 1000));
    assert!((24.0..26.0).contains(&stats.frames_per_second), "{stats:?}");
    bench.sessions.drain(&|| Duration::ZERO, &mut bench.api).expect("the device is well");
    assert_eq!(bench.sessions.next(bench.now.get()), Next::Done);
    let newest = bench.api.ring(1).newest();
    assert_eq!(Snapshot::read_fd(&bench.api.rings[&1]).expect("a snapshot").about.tick, newest.expect("it ran"));
    assert_eq!(bench.sessions.keep_all(&|| Duration::ZERO, &mut bench.api).expect("the device is well").len(), 1);
    assert_eq!(bench.sessions.engine.open, 0);
}
