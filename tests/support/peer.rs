//! A worker for tests of the api: it speaks the link, obeys control blocks and publishes moving pictures into real
//! frame rings, without a model. Pictures are hills that `W`/`S` move vertically and `A`/`D` horizontally.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gamegend::frame::{About, ControlReader, FrameMeta, FrameRing, History, Pictures, Snapshot, TapCounts};
use gamegend::proto::api::{Quality, Vocabulary, WorkerStats};
use gamegend::proto::keys::Keys;
use gamegend::proto::limits::RING_SLOTS;
use gamegend::proto::link::{AboutWorker, FromWorker, OpenSession, SessionNumber, ToWorker, build_id};
use gamegend::proto::wire::{FLAG_DEGRADED, FLAG_RECOVERED};
use gamegend::sys::link::Link;

/// Values of a latent in the peer's snapshots.
const LATENT_ELEMENTS: usize = 16;
/// Ticks between two snapshots.
const SNAPSHOT_PERIOD: u64 = 5;
pub const MODEL_HASH: &str = "test-peer";

pub fn vocabulary() -> Vocabulary {
    let words = |words: &[&str]| words.iter().map(|w| w.to_string()).collect();
    Vocabulary {
        weather: words(&["clear", "rain", "snow"]),
        lighting: words(&["day", "sunset", "night"]),
        effects: words(&["none", "fire"]),
        perspectives: words(&["first", "third"]),
        steps: vec![1, 2, 4],
        default_steps: 2,
        prompt_tokens_max: 64,
        video_prompts: words(&["canny"]),
        extractions: words(&["canny", "motion_vectors"]),
    }
}

/// What the api asked of the peer so far.
#[derive(Default)]
pub struct Asked {
    pub opened: Vec<OpenSession>,
    pub closed: Vec<SessionNumber>,
    pub instructions: Vec<(u32, Option<String>)>,
    pub environments: Vec<gamegend::proto::link::Environment>,
    /// Keys of the newest frames, whatever the session; the last few hundred.
    pub keys: Vec<Keys>,
    /// Pictures that came to be continued, and for video prompts: sessions, numbers and sizes.
    pub origins: Vec<(SessionNumber, u32, (u32, u32))>,
    pub leads: Vec<(SessionNumber, u32, (u32, u32))>,
    /// Traces that came to be played back: sessions, and the ticks that they tell of.
    pub scripts: Vec<(SessionNumber, u64)>,
    /// Frames made for each session.
    pub made: HashMap<SessionNumber, u64>,
}

/// A worker that is told to behave in a certain way by words of the prompt or instruction.
pub const FAILS: &str = "this world fails";
pub const FORGETS: &str = "this world forgets its trace";
/// Its pictures have half the sides: while SHIFT is held, in a stored generation from this frame on.
pub const SHRINKS: &str = "this world becomes smaller";
pub const SHRINKS_AT: u64 = 6;
pub const TOO_LONG: &str = "too long for the model";

pub struct Peer {
    link: Link,
    pub asked: Arc<Mutex<Asked>>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Starts to work on this end of a link. `stored_pause` slows stored generations down, per frame.
    pub fn start(link: Link, stored_pause: Duration) -> Peer {
        Peer::start_as(link, stored_pause, MODEL_HASH)
    }

    /// The same with weights of that hash.
    pub fn start_as(link: Link, stored_pause: Duration, model_hash: &'static str) -> Peer {
        let asked = Arc::new(Mutex::new(Asked::default()));
        let (to_work, messages) = channel();
        let reader = link.clone();
        std::thread::spawn(move || {
            while let Ok(Some(message)) = reader.recv::<ToWorker>() {
                if to_work.send(message).is_err() {
                    return;
                }
            }
        });
        let (writer, noted) = (link.clone(), asked.clone());
        let thread = std::thread::spawn(move || work(&writer, &messages, &noted, (stored_pause, model_hash)));
        Peer { link, asked, thread: Some(thread) }
    }

    /// Goes away without a word, as a killed process does.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.link.close();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the peer does not panic");
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

struct Playing {
    model_hash: &'static str,
    open: OpenSession,
    ring: FrameRing,
    control: ControlReader,
    seen: TapCounts,
    history: History,
    position: (i64, i64),
    tick: u64,
    instruct_seq: u32,
    held: Keys,
    due: Instant,
    recovered: bool,
    smaller: bool,
}

fn work(
    link: &Link,
    messages: &Receiver<(ToWorker, Vec<OwnedFd>)>,
    asked: &Mutex<Asked>,
    (pause, model_hash): (Duration, &'static str),
) {
    let about = AboutWorker {
        kept: 0,
        device: "test pictures".into(),
        device_kind: "test".into(),
        device_why: "a test".into(),
        precision: "none".into(),
        sandbox: "none".into(),
        model: "test-pictures".into(),
        model_hash: model_hash.into(),
        parameters: 0,
        vocabulary: vocabulary(),
    };
    let hello = FromWorker::Hello { build: build_id(), about: Box::new(about) };
    if link.send(&hello, &[]).is_err() {
        return;
    }
    let mut playing: HashMap<SessionNumber, Playing> = HashMap::new();
    let mut stats_due = Instant::now();
    loop {
        match messages.recv_timeout(Duration::from_millis(1)) {
            Ok((message, fds)) => obey(link, message, (fds, model_hash), &mut playing, asked),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let mut over = Vec::new();
        for (number, session) in &mut playing {
            if !session.step(link, pause) {
                return;
            }
            let mut noted = asked.lock().expect("no panic");
            noted.made.insert(*number, session.tick);
            if noted.keys.len() == 500 {
                noted.keys.drain(..250);
            }
            noted.keys.push(session.held);
            drop(noted);
            if session.open.frames.is_some_and(|n| session.tick >= u64::from(n)) {
                over.push(*number);
            }
        }
        for number in over {
            let frames = playing.remove(&number).map_or(0, |s| s.tick);
            let _ = link.send(&FromWorker::Finished { session: number, frames }, &[]);
        }
        if Instant::now() >= stats_due {
            stats_due = Instant::now() + Duration::from_millis(200);
            let stats = WorkerStats { sessions: playing.len() as u32, ..WorkerStats::default() };
            let _ = link.send(&FromWorker::Stats(stats), &[]);
        }
    }
}

fn obey(
    link: &Link,
    message: ToWorker,
    (fds, model_hash): (Vec<OwnedFd>, &'static str),
    playing: &mut HashMap<SessionNumber, Playing>,
    asked: &Mutex<Asked>,
) {
    match message {
        ToWorker::Hello { build } => assert_eq!(build, build_id()),
        ToWorker::Open(open) => {
            asked.lock().expect("no panic").opened.push((*open).clone());
            let number = open.session;
            if open.prompt == FAILS {
                let message = "the device was lost".to_string();
                let failed = FromWorker::Failed { session: number, code: "device_lost".to_string(), message };
                let _ = link.send(&failed, &[]);
                return;
            }
            let (session, fd) = Playing::open(*open, (fds, model_hash), asked);
            let _ = link.send(&FromWorker::Opened { session: number }, &[fd.as_fd()]);
            playing.insert(number, session);
        }
        ToWorker::Instruct { session, seq, instruction, environment } => {
            if instruction.as_deref() == Some(TOO_LONG) {
                let message = "it has 300 tokens, 64 are allowed".to_string();
                let refused = FromWorker::Refused { session, seq, code: "instruction_too_long".to_string(), message };
                let _ = link.send(&refused, &[]);
                return;
            }
            let mut noted = asked.lock().expect("no panic");
            noted.instructions.push((seq, instruction));
            noted.environments.push(environment);
            drop(noted);
            if let Some(playing) = playing.get_mut(&session) {
                playing.instruct_seq = seq;
            }
        }
        ToWorker::Close { session } => {
            asked.lock().expect("no panic").closed.push(session);
            if let Some(playing) = playing.remove(&session) {
                let _ = link.send(&FromWorker::Finished { session, frames: playing.tick }, &[]);
            }
        }
    }
}

impl Playing {
    fn open(
        open: OpenSession,
        (fds, model_hash): (Vec<OwnedFd>, &'static str),
        asked: &Mutex<Asked>,
    ) -> (Playing, OwnedFd) {
        assert_eq!(fds.len(), open.descriptors());
        let mut fds = fds.into_iter();
        let control = ControlReader::open(fds.next().expect("a control block")).expect("a sound one");
        let mut next = |there: bool| if there { fds.next() } else { None };
        let read = |fd| Snapshot::read_fd(&fd).expect("a sound snapshot");
        let before = next(open.from_snapshot).map(read);
        let pictures = |fd| {
            let pictures = Pictures::open(&fd).expect("a sound block of pictures");
            (open.session, pictures.count(), pictures.size())
        };
        let mut noted = asked.lock().expect("no panic");
        noted.origins.extend(next(open.from_pictures).map(pictures));
        noted.leads.extend(next(open.video_prompt.is_some()).map(pictures));
        drop(noted);
        let script = next(open.replay).map(read);
        asked.lock().expect("no panic").scripts.extend(script.map(|s| (open.session, s.about.tick)));
        let (ring, fd) =
            FrameRing::create(open.width, open.height, RING_SLOTS, LATENT_ELEMENTS).expect("memory for a ring");
        let mut position = (0, 0);
        let mut tick = 0;
        if let Some(snapshot) = before {
            let latent = &snapshot.history.last().expect("a latent").0;
            position = (latent[0] as i64, latent[1] as i64);
            tick = if open.keep_tick { snapshot.about.tick + 1 } else { 0 };
        }
        let recovered = open.keep_tick;
        let size = (open.width, open.height);
        let session = Playing {
            model_hash,
            open,
            ring,
            control,
            seen: TapCounts::default(),
            history: History::new(LATENT_ELEMENTS, size),
            position,
            tick,
            instruct_seq: 0,
            held: Keys::NONE,
            due: Instant::now(),
            recovered,
            smaller: false,
        };
        (session, fd)
    }

    /// Makes a frame if one is due. False if the api is gone.
    fn step(&mut self, link: &Link, pause: Duration) -> bool {
        let now = Instant::now();
        let stored = self.open.frames.is_some();
        let full = stored && self.tick.saturating_sub(self.control.consumed()) >= u64::from(RING_SLOTS) - 1;
        if now < self.due || full {
            return true;
        }
        self.due = now + if stored { pause } else { Duration::from_secs(1) / self.open.fps };
        let latched = self.control.latch(&mut self.seen);
        self.held = latched.keys;
        let held = |key: Keys| i64::from(latched.keys.contains(key));
        self.position.0 += 1 + 6 * (held(Keys::D) - held(Keys::A));
        self.position.1 += 6 * (held(Keys::S) - held(Keys::W)) + 20 * held(Keys::SPACE);
        let flags = if std::mem::take(&mut self.recovered) { FLAG_RECOVERED } else { 0 };
        let small = if stored { self.tick >= SHRINKS_AT } else { latched.keys.contains(Keys::SHIFT) };
        let smaller = small && self.open.prompt == SHRINKS;
        let part = if smaller { 2 } else { 1 };
        let (width, height) = (self.open.width / part, self.open.height / part);
        let meta = FrameMeta {
            tick: self.tick,
            time_us: self.tick * 1_000_000 / u64::from(self.open.fps),
            seq: latched.seq.max(self.instruct_seq),
            flags: flags | if smaller { FLAG_DEGRADED } else { 0 },
            width: width as u16,
            height: height as u16,
        };
        let picture = picture(width, height, self.position, self.open.seed);
        if std::mem::replace(&mut self.smaller, smaller) != smaller && !self.tell(link, (width, height)) {
            return false;
        }
        self.ring.publish(&meta, &picture);
        let mut latent = [0.0; LATENT_ELEMENTS];
        (latent[0], latent[1]) = (self.position.0 as f32, self.position.1 as f32);
        self.history.push(&latent, latched.keys);
        let last = self.open.frames.is_some_and(|n| self.tick + 1 == u64::from(n));
        if self.tick.is_multiple_of(SNAPSHOT_PERIOD) || last {
            self.snapshot(meta.seq, latched.keys);
        }
        self.tick += 1;
        link.send(&FromWorker::Frame { session: self.open.session, tick: meta.tick }, &[]).is_ok()
    }

    /// Tells what frames are like from now on. False if the api is gone.
    fn tell(&self, link: &Link, (width, height): (u32, u32)) -> bool {
        let degraded = if self.smaller { "steps, rate and size" } else { "steps and rate" };
        let (steps, fps, degraded) = (1, 12.0, degraded.to_string());
        let quality = Quality { width, height, steps, fps, degraded, size_fixed: None };
        link.send(&FromWorker::Quality { session: self.open.session, quality }, &[]).is_ok()
    }

    fn snapshot(&mut self, seq: u32, keys: Keys) {
        let about = About {
            model_hash: self.model_hash.into(),
            trace_dropped: u64::from(self.open.prompt == FORGETS),
            width: self.open.width,
            height: self.open.height,
            fps: self.open.fps,
            steps: self.open.steps,
            seed: self.open.seed,
            prompt: self.open.prompt.clone(),
            tick: self.tick,
            seq,
            keys,
            ..About::default()
        };
        self.ring.snapshot(&about, &[], &self.history, &mut Vec::new()).expect("a small snapshot fits");
    }
}

/// Full-range I420: hills under a sky whose colours come from the seed, moved by `position`.
fn picture(width: u32, height: u32, position: (i64, i64), seed: u64) -> Vec<u8> {
    let (w, h) = (width as usize, height as usize);
    let mut out = vec![128; w * h * 3 / 2];
    let horizon = |x: usize| {
        let x = (x as i64 + position.0 * 2) as f64 / w as f64;
        (h as f64 * (0.55 + 0.12 * (x * 5.1).sin() + 0.05 * (x * 17.3).sin())) as i64 - position.1
    };
    let tops: Vec<i64> = (0..w).map(horizon).collect();
    for y in 0..h {
        for x in 0..w {
            let below = y as i64 - tops[x];
            let shade = if below < 0 { 205 - (y * 70 / h) as i64 } else { 60 + (below * 90 / h as i64) };
            let grain = ((x as i64 + position.0 * 2) / 6 + (y as i64 + position.1) / 6) % 2 * 12;
            out[y * w + x] = (shade + if below < 0 { 0 } else { grain }).clamp(0, 255) as u8;
        }
    }
    let (u, v) = (w * h, w * h * 5 / 4);
    for y in 0..h / 2 {
        for x in 0..w / 2 {
            let sky = (y * 2) as i64 <= tops[x * 2];
            let tint = (seed % 24) as u8;
            out[u + y * w / 2 + x] = if sky { 150 } else { 95 + tint };
            out[v + y * w / 2 + x] = if sky { 112 - tint / 2 } else { 108 };
        }
    }
    out
}
