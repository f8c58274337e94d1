//! The worker role as a real process, with this test as its parent and its api.
//!
//! `GAMEGEN_TEST_MODEL` names another model folder than the shipped one.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use gamegend::config::Config;
use gamegend::frame::{ControlWriter, FrameMeta, RingReader, Snapshot};
use gamegend::proto::keys::Keys;
use gamegend::proto::link::{
    AboutWorker, Environment, FromWorker, FromWorkerToParent, OpenSession, SessionNumber, ToWorker, ToWorkerFromParent,
    build_id,
};
use gamegend::proto::wire::FLAG_RECOVERED;
use gamegend::sys::link::Link;
use gamegend::sys::process::{keep_descriptors_here, set_inherited};

/// Generous, because the test machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);
const SIDE_PX: u32 = 64;

fn model_dir() -> PathBuf {
    let shipped = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/gamegen-x-mini");
    std::env::var_os("GAMEGEN_TEST_MODEL").map_or_else(shipped, PathBuf::from)
}

/// A descriptor that is inheritable must not reach a process that another test starts.
static SPAWNING: Mutex<()> = Mutex::new(());

/// A directory for a worker's cache that goes with the test.
struct StateDir(PathBuf);

impl StateDir {
    fn new(name: &str) -> StateDir {
        let path = std::env::temp_dir().join(format!("gamegend-worker-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("cache")).expect("the temporary directory is writable");
        StateDir(path)
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process with the worker's role.
struct Process {
    child: Child,
    link: Link,
    state: StateDir,
}

impl Process {
    fn spawn(name: &str) -> Process {
        let (link, theirs) = Link::pair().expect("a socket pair");
        let theirs: OwnedFd = theirs.as_fd().try_clone_to_owned().expect("dup");
        link.set_timeout(PATIENCE).expect("a stream socket has timeouts");
        let turn = SPAWNING.lock().unwrap_or_else(|e| e.into_inner());
        // What this test got from its own caller is none of the worker's business.
        keep_descriptors_here().expect("they are open");
        set_inherited(theirs.as_fd(), true).expect("it is open");
        let child = Command::new(env!("CARGO_BIN_EXE_gamegend"))
            .args(["--role", "worker", "--link", &theirs.as_raw_fd().to_string()])
            .stdin(Stdio::null())
            .spawn()
            .expect("the program was built");
        set_inherited(theirs.as_fd(), false).expect("it is open");
        drop(turn);
        Process { child, link, state: StateDir::new(name) }
    }

    fn config(&self, device: &str) -> Config {
        let mut config = Config::default();
        config.gpu.device = device.to_string();
        config.model.path = model_dir();
        config.state.directory = self.state.0.clone();
        config
    }

    /// Sends `Start`; returns the api's end of the new link.
    fn start(&self, config: Config, build: String) -> Link {
        let (ours, theirs) = Link::pair().expect("a socket pair");
        ours.set_timeout(PATIENCE).expect("a stream socket has timeouts");
        let sandbox = "none".to_string();
        let start = ToWorkerFromParent::Start { build, config: Box::new(config), sandbox };
        self.link.send(&start, &[theirs.as_fd()]).expect("the worker listens");
        ours
    }

    fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the worker did not end");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the api holds of one session.
struct Viewer {
    width: u32,
    control: ControlWriter,
    ring_fd: OwnedFd,
    ring: RingReader,
    /// Every frame that was taken, by its tick.
    frames: BTreeMap<u64, (FrameMeta, Vec<u8>)>,
    finished: Option<u64>,
}

/// A worker that is ready, and this test as its api.
struct Worker {
    process: Process,
    api: Link,
    about: AboutWorker,
    viewers: BTreeMap<SessionNumber, Viewer>,
    failed: Vec<(SessionNumber, String, String)>,
    refused: Vec<(u32, String)>,
    stats: usize,
}

impl Worker {
    fn ready(name: &str) -> Worker {
        let process = Process::spawn(name);
        let api = process.start(process.config("cpu"), build_id());
        let (ready, _) = process.link.recv().expect("sound").expect("the worker starts");
        let FromWorkerToParent::Ready { build, summary } = ready else { panic!("expected Ready: {ready:?}") };
        assert_eq!(build, build_id());
        assert!(summary.contains("cpu") && summary.contains("parameters"), "{summary}");
        let about = greet(&api);
        let (viewers, failed, refused) = (BTreeMap::new(), Vec::new(), Vec::new());
        Worker { process, api, about, viewers, failed, refused, stats: 0 }
    }

    fn send(&self, message: ToWorker, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.api.send(&message, &fds).expect("the worker listens");
    }

    /// Opens a session and waits for its ring; `false` if it failed.
    fn open(&mut self, request: OpenSession, control: Option<ControlWriter>, snapshot: Option<OwnedFd>) -> bool {
        let session = request.session;
        let control = control.unwrap_or_else(|| ControlWriter::create().expect("memory for a page").0);
        let mut fds = vec![control.read_only_fd().expect("a descriptor")];
        fds.extend(snapshot);
        let width = request.width;
        self.send(ToWorker::Open(Box::new(request)), &fds);
        let failures = self.failed.len();
        let mut control = Some(control);
        loop {
            let (message, fds) = self.api.recv::<FromWorker>().expect("sound").expect("the worker runs");
            if let (FromWorker::Opened { session: s }, Some(control)) = (&message, control.take_if(|_| fds.len() == 1))
            {
                assert_eq!(*s, session);
                let ring_fd = fds.into_iter().next().expect("there is one");
                let ring = RingReader::open(ring_fd.try_clone().expect("dup")).expect("a ring");
                let viewer = Viewer { width, control, ring_fd, ring, frames: BTreeMap::new(), finished: None };
                self.viewers.insert(session, viewer);
                return true;
            }
            self.take(message);
            if self.failed.len() > failures {
                return false;
            }
        }
    }

    /// Takes the frame that a message tells of, or notes what it says.
    fn take(&mut self, message: FromWorker) {
        match message {
            FromWorker::Frame { session, tick } => {
                let Some(viewer) = self.viewers.get_mut(&session) else { return };
                let mut picture = Vec::new();
                if let Ok(meta) = viewer.ring.read(tick, &mut picture) {
                    viewer.frames.insert(tick, (meta, picture));
                }
                viewer.control.consumed(tick + 1);
            }
            FromWorker::Finished { session, frames } => {
                let viewer = self.viewers.get_mut(&session).expect("it was opened");
                viewer.finished = Some(frames);
            }
            FromWorker::Failed { session, code, message } => self.failed.push((session, code, message)),
            FromWorker::Refused { seq, code, .. } => self.refused.push((seq, code)),
            // A processor is shared as well as it goes: nothing is given up.
            FromWorker::Quality { session, quality } => {
                let width = self.viewers[&session].width;
                assert_eq!((quality.degraded.as_str(), quality.width), ("none", width), "session {session}");
            }
            FromWorker::Stats(_) => self.stats += 1,
            other => panic!("not now: {other:?}"),
        }
    }

    /// Listens until `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Worker) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < PATIENCE, "{what} did not happen");
            let (message, _) = self.api.recv::<FromWorker>().expect("sound").expect("the worker runs");
            self.take(message);
        }
    }

    fn frames(&self, session: SessionNumber) -> &BTreeMap<u64, (FrameMeta, Vec<u8>)> {
        &self.viewers[&session].frames
    }

    /// Pictures of a stored generation, which must be whole.
    fn pictures(&mut self, session: SessionNumber, frames: u32) -> Vec<Vec<u8>> {
        self.until("the end of a generation", |w| w.viewers[&session].finished.is_some());
        let taken = self.frames(session);
        assert_eq!(taken.keys().copied().collect::<Vec<_>>(), (0..u64::from(frames)).collect::<Vec<_>>());
        taken.values().map(|(_, picture)| picture.clone()).collect()
    }
}

/// The api's side of the greeting.
fn greet(api: &Link) -> AboutWorker {
    api.send(&ToWorker::Hello { build: build_id() }, &[]).expect("the worker listens");
    let (hello, _) = api.recv::<FromWorker>().expect("sound").expect("the worker runs");
    let FromWorker::Hello { build, about } = hello else { panic!("expected Hello: {hello:?}") };
    assert_eq!(build, build_id());
    *about
}

fn request(session: SessionNumber, frames: Option<u32>) -> OpenSession {
    let text = OpenSession::from_text(session, "a forest at night, rain", (SIDE_PX, SIDE_PX), 24, 1);
    OpenSession { seed: 7, frames, ..text }
}

fn difference(a: &[u8], b: &[u8]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn a_live_session_and_a_generation_share_a_worker() {
    let mut worker = Worker::ready("share");
    assert_eq!(worker.about.device_kind, "cpu");
    assert!(worker.about.parameters > 0 && worker.about.model_hash.len() == 64);
    assert!(worker.open(request(1, None), None, None));
    assert!(worker.open(OpenSession { seed: 8, ..request(2, Some(30)) }, None, None));
    let stored = worker.pictures(2, 30);
    assert!(stored.windows(2).any(|w| w[0] != w[1]), "the pictures move");
    worker.until("frames of the live session", |w| w.frames(1).len() >= 10);

    worker.viewers[&1].control.tap(Keys::SPACE);
    worker.viewers[&1].control.set(9, Keys::W);
    worker.until("a frame that reflects the keys", |w| w.frames(1).values().any(|(meta, _)| meta.seq == 9));
    let snow = Environment { weather: Some("snow".to_string()), ..Environment::default() };
    worker.send(ToWorker::Instruct { session: 1, seq: 10, environment: snow, instruction: None }, &[]);
    worker.until("a frame that reflects the weather", |w| w.frames(1).values().any(|(meta, _)| meta.seq == 10));
    let instruction = Some("snow ".repeat(90));
    let environment = Environment::default();
    worker.send(ToWorker::Instruct { session: 1, seq: 11, environment, instruction }, &[]);
    worker.until("a refusal", |w| !w.refused.is_empty());
    assert_eq!(worker.refused, [(11, "instruction_too_long".to_string())]);
    for (tick, (meta, _)) in worker.frames(1) {
        assert_eq!((meta.tick, meta.time_us), (*tick, tick * 1_000_000 / 24));
    }

    worker.send(ToWorker::Close { session: 1 }, &[]);
    worker.until("the end of the live session", |w| w.viewers[&1].finished.is_some());
    let snapshot = Snapshot::read_fd(&worker.viewers[&1].ring_fd).expect("a last snapshot");
    assert_eq!(Some(snapshot.about.tick + 1), worker.viewers[&1].finished);
    assert_eq!(snapshot.about.environment.weather.as_deref(), Some("snow"));
    assert!(!snapshot.trace.is_empty(), "the keys are traced");
    worker.until("statistics", |w| w.stats > 0);
    worker.process.link.send(&ToWorkerFromParent::Drain, &[]).expect("the worker listens");
    assert_eq!(worker.process.wait().code(), Some(0));
}

#[test]
fn the_same_value_gives_the_same_frames_alone_and_beside_another() {
    let mut worker = Worker::ready("identity");
    assert!(worker.open(request(1, Some(20)), None, None));
    let alone = worker.pictures(1, 20);
    assert!(worker.open(OpenSession { seed: 3, steps: 2, ..request(2, None) }, None, None));
    assert!(worker.open(OpenSession { width: 96, ..request(3, Some(20)) }, None, None));
    assert!(worker.open(request(4, Some(20)), None, None));
    let beside = worker.pictures(4, 20);
    assert!(!worker.frames(2).is_empty() && !worker.frames(3).is_empty(), "the others ran meanwhile");
    assert!(alone == beside, "a session's frames depend on its value alone");
    assert!(worker.open(OpenSession { seed: 8, ..request(5, Some(20)) }, None, None));
    assert!(alone != worker.pictures(5, 20), "and they do depend on it");
    let mut second = Worker::ready("identity-2");
    assert!(second.open(request(1, Some(20)), None, None));
    assert!(alone == second.pictures(1, 20), "another process makes the same frames");
}

#[test]
fn a_killed_workers_sessions_go_on_in_the_next() {
    const LONG: u32 = 1200; // frames: not done by the time of the kill, on a fast machine either
    let mut first = Worker::ready("killed");
    // A size that the model was trained at: smaller pictures change as much from frame to frame as between worlds.
    let live = |request| OpenSession { width: 320, height: 192, ..request };
    assert!(first.open(live(request(1, None)), None, None));
    first.viewers[&1].control.set(4, Keys::W);
    assert!(first.open(request(2, Some(LONG)), None, None));
    first.until("two snapshots", |w| w.frames(1).len() >= 30 && w.frames(2).len() >= 30);
    first.process.child.kill().expect("it runs");
    first.process.wait();
    let viewers = std::mem::take(&mut first.viewers);
    let mut second = Worker::ready("next");
    let again = |session, frames| OpenSession { from_snapshot: true, keep_tick: true, ..request(session, frames) };
    let (mut seen, mut before, mut taken) = (0, Vec::new(), 0);
    for (session, viewer) in viewers {
        let newest = viewer.ring.newest().expect("it ran");
        if session == 1 {
            seen = newest;
            viewer.ring.read(newest, &mut before).expect("a killed worker leaves whole frames");
            // The world goes on from the snapshot, which is some frames older.
            let from = Snapshot::read_fd(&viewer.ring_fd).expect("it left a snapshot").about.tick;
            if viewer.ring.read(from, &mut before).is_err() {
                before = viewer.frames.range(..=from).next_back().expect("frames were taken before it").1.1.clone();
            }
        } else {
            taken = viewer.frames.len() as u64;
            viewer.control.consumed(taken);
        }
        let frames = (session == 2).then_some(LONG);
        let next = again(session, frames);
        assert!(second.open(if session == 1 { live(next) } else { next }, Some(viewer.control), Some(viewer.ring_fd)));
    }
    second.until("frames of the live session", |w| w.frames(1).len() > 3);
    let (first_tick, (meta, picture)) = second.frames(1).first_key_value().expect("there are some");
    assert_eq!((*first_tick, meta.flags, meta.seq), (seen + 1, FLAG_RECOVERED, 4));
    let change = difference(&before, picture);
    let elsewhere = OpenSession { prompt: "a desert at noon, clear".to_string(), ..live(request(3, Some(20))) };
    assert!(second.open(elsewhere, None, None));
    let stranger = difference(&before, &second.pictures(3, 20)[19]);
    assert!(
        change < 0.5 * stranger,
        "the world goes on: the pictures differ by {change:.1} of 255, others by {stranger:.1}"
    );
    second.send(ToWorker::Close { session: 1 }, &[]);
    second.until("the end of the generation", |w| w.viewers[&2].finished.is_some());
    assert_eq!(second.frames(2).keys().copied().collect::<Vec<_>>(), (taken..u64::from(LONG)).collect::<Vec<_>>());
    assert_eq!(second.frames(2)[&taken].0.flags, FLAG_RECOVERED);
}

#[test]
fn errors_of_a_session_end_that_session_alone() {
    let mut worker = Worker::ready("errors");
    assert!(worker.open(request(1, None), None, None));
    assert!(!worker.open(OpenSession { prompt: "snow ".repeat(400), ..request(2, None) }, None, None));
    assert_eq!(worker.failed[0].1, "prompt_too_long");
    assert!(!worker.open(OpenSession { width: 65, ..request(3, None) }, None, None));
    assert!(worker.failed[1].2.starts_with("width"), "{:?}", worker.failed);
    let page = ControlWriter::create().expect("memory for a page").1;
    let broken = OpenSession { from_snapshot: true, ..request(4, None) };
    assert!(!worker.open(broken, None, Some(page)));
    assert_eq!(worker.failed[2].1, "bad_snapshot");
    let before = worker.frames(1).len();
    worker.until("the first session goes on", |w| w.frames(1).len() > before + 3);
}

#[test]
fn a_new_api_gets_the_sessions_that_the_last_one_left() {
    let mut worker = Worker::ready("new-api");
    assert!(worker.open(request(1, None), None, None));
    worker.until("frames", |w| w.frames(1).len() > 3);
    let (ours, theirs) = Link::pair().expect("a socket pair");
    ours.set_timeout(PATIENCE).expect("a stream socket has timeouts");
    worker.process.link.send(&ToWorkerFromParent::NewApi, &[theirs.as_fd()]).expect("the worker listens");
    drop(theirs);
    worker.api = ours;
    let about = greet(&worker.api);
    assert_eq!((about.kept, about.model_hash), (1, worker.about.model_hash.clone()));
    let (kept, mut fds) = worker.api.recv::<FromWorker>().expect("sound").expect("the worker runs");
    assert!(matches!(kept, FromWorker::Kept { session: 1 }), "{kept:?}");
    let ring = fds.pop().expect("its ring");
    let newest = RingReader::open(ring.try_clone().expect("dup")).expect("a ring").newest().expect("it made frames");
    let snapshot = Snapshot::read_fd(&ring).expect("a last snapshot");
    assert_eq!(snapshot.about.tick, newest, "nothing of the session is lost");
    worker.viewers.clear();
    // The world goes on at the next frame, or later where viewers may have seen more.
    let again =
        |session, tick_min| OpenSession { from_snapshot: true, keep_tick: true, tick_min, ..request(session, None) };
    assert!(worker.open(again(1, 0), None, Some(ring.try_clone().expect("dup"))), "the number is free again");
    assert!(worker.open(again(2, newest + 100), None, Some(ring)));
    worker.until("frames of both", |w| !w.frames(1).is_empty() && !w.frames(2).is_empty());
    assert_eq!(worker.frames(1).keys().next(), Some(&(newest + 1)));
    assert_eq!(worker.frames(2).keys().next(), Some(&(newest + 100)));
}

#[test]
fn a_worker_that_cannot_work_says_why_by_its_exit_code() {
    let ended = |name: &str, change: &dyn Fn(&mut Config), build: String| {
        let mut process = Process::spawn(name);
        let mut config = process.config("cpu");
        change(&mut config);
        let _api = process.start(config, build);
        process.wait().code()
    };
    assert_eq!(ended("build", &|_| {}, "0.0.0 link 0".to_string()), Some(70));
    assert_eq!(ended("missing", &|c| c.model.path = "/nonexistent/model".into(), build_id()), Some(66));
    assert_eq!(ended("device", &|c| c.gpu.device = "vulkan:99".to_string(), build_id()), Some(78));
    let mut orphan = Process::spawn("orphan");
    orphan.link.close();
    assert_ne!(orphan.wait().code(), None, "it ends by itself when its parent is gone");
}
