//! Tests of sessions that change their size while they run.

use super::*;
use crate::compute::cpu;
use crate::frame::{PicturesWriter, scale};
use crate::model::{self, Model};
use crate::proto::api::Quality;
use crate::proto::wire::FLAG_DEGRADED;

const WHOLE: (u32, u32) = (128, 128);
const HALF: (u32, u32) = (64, 64);

/// A worker with one session of 128 x 128 pixels that has made some frames.
fn playing() -> (Bench, Viewer) {
    let mut bench = Bench::new();
    bench.sessions.engine.shares = true;
    let viewer = bench.open(large(None), None, None);
    bench.run(Duration::from_millis(500)).expect("the device is well");
    (bench, viewer)
}

fn large(frames: Option<u32>) -> OpenSession {
    OpenSession { width: WHOLE.0, height: WHOLE.1, ..request(1, frames) }
}

/// Tells session 1 to have another size and lets it have it. Answers its newest frame.
fn resize(bench: &mut Bench, size: (u32, u32)) -> u64 {
    bench.sessions.live.get_mut(&1).expect("it is open").resize(size);
    bench.run(Duration::from_millis(200)).expect("the device is well");
    *bench.api.frames(1).last().expect("it runs")
}

fn qualities(bench: &Bench) -> Vec<Quality> {
    let told = bench.api.sent.iter().filter_map(|m| match m {
        FromWorker::Quality { session: 1, quality } => Some(quality.clone()),
        _ => None,
    });
    told.collect()
}

fn size(meta: FrameMeta) -> (u32, u32) {
    (meta.width.into(), meta.height.into())
}

#[test]
fn a_session_goes_on_at_another_size_with_its_keys_and_texts() {
    let (mut bench, viewer) = playing();
    let snow = Environment { weather: Some("snow".to_string()), ..Environment::default() };
    let instruct = ToWorker::Instruct { session: 1, seq: 4, environment: snow, instruction: None };
    bench.handle(instruct, vec![]).expect("the device is well");
    let before = *bench.api.frames(1).last().expect("it runs");
    assert_eq!(size(read(&viewer, before).0), WHOLE);
    let after = resize(&mut bench, HALF);
    let (meta, picture) = read(&viewer, after);
    assert_eq!((size(meta), picture.len()), (HALF, 64 * 64 * 3 / 2));
    assert_eq!(bench.api.frames(1), (0..=after).collect::<Vec<_>>(), "no frame is left out");
    assert!(bench.sessions.live[&1].inner().text.contains("snow"), "what was said still holds");

    viewer.control.set(5, Keys::W);
    bench.run(Duration::from_millis(100)).expect("the device is well");
    let newest = *bench.api.frames(1).last().expect("it runs");
    assert_eq!(read(&viewer, newest).0.seq, 5, "keys reach it");
    let back = resize(&mut bench, WHOLE);
    assert_eq!(size(read(&viewer, back).0), WHOLE);
    let told: Vec<(u32, u32)> = qualities(&bench).iter().map(|q| (q.width, q.height)).collect();
    assert_eq!(told, [WHOLE, HALF, WHOLE]);
    assert_eq!(qualities(&bench)[1].degraded, "steps, rate and size");
    assert_eq!(bench.sessions.engine.open, 1, "what was there before is closed");
}

#[test]
fn a_change_of_size_disturbs_nobody_else() {
    let play = |resizes: bool| {
        let (mut bench, _viewer) = playing();
        let other = bench.open(OpenSession { seed: 99, ..request(2, None) }, None, None);
        bench.run(Duration::from_millis(100)).expect("the device is well");
        if resizes {
            bench.sessions.live.get_mut(&1).expect("it is open").resize(HALF);
        }
        bench.run(Duration::from_millis(300)).expect("the device is well");
        (3..6).map(|tick| read(&other, tick).1).collect::<Vec<_>>()
    };
    assert_eq!(play(true), play(false));
}

#[test]
fn a_size_that_the_engine_cannot_have_is_said_and_the_session_stays() {
    let (mut bench, viewer) = playing();
    bench.sessions.engine.sizes = Some(vec![WHOLE]);
    let newest = resize(&mut bench, HALF);
    assert_eq!(size(read(&viewer, newest).0), WHOLE);
    let last = qualities(&bench).pop().expect("it was told");
    assert_eq!(last.size_fixed.as_deref(), Some("there is no plan for this size"));
    assert_eq!((last.width, last.degraded.as_str()), (WHOLE.0, "none"));
    assert!(bench.sessions.live[&1].size_is_fixed());
    assert_eq!(bench.api.failure(1), None);
}

#[test]
fn a_replay_makes_the_same_frames_of_the_same_sizes() {
    let (mut bench, viewer) = playing();
    viewer.control.set(1, Keys::D);
    resize(&mut bench, HALF);
    let middle = frames_in(&viewer);
    resize(&mut bench, WHOLE);
    let end = frames_in(&viewer);
    bench.handle(ToWorker::Close { session: 1 }, vec![]).expect("the device is well");
    let fd = bench.api.rings[&1].try_clone().expect("dup");
    let snapshot = Snapshot::read_fd(&fd).expect("a last snapshot");
    assert_eq!(snapshot.size_px, WHOLE);
    let count = snapshot.about.tick as u32 + 1;
    let mut again = Bench::new();
    let viewer = Viewer { control: ControlWriter::create().expect("memory for a page").0, ring: None };
    let fds = vec![viewer.control.read_only_fd().expect("a descriptor"), fd];
    let request = OpenSession { replay: true, ..large(Some(count)) };
    again.handle(ToWorker::Open(Box::new(request)), fds).expect("the device is well");
    let viewer = Viewer { ring: Some(again.api.ring(1)), ..viewer };
    let pictures = collect(&mut again, 1, &viewer, 0);
    assert_eq!(pictures.len() as u32, count);
    for (tick, picture) in middle.into_iter().chain(end) {
        assert!(pictures[&tick] == picture, "frame {tick} of the replay");
    }
}

/// The newest frames of a ring.
fn frames_in(viewer: &Viewer) -> Vec<(u64, Vec<u8>)> {
    let newest = viewer.ring.as_ref().and_then(RingReader::newest).expect("it runs");
    (newest.saturating_sub(3)..=newest).map(|tick| (tick, read(viewer, tick).1)).collect()
}

#[test]
fn after_a_crash_a_smaller_session_goes_on_at_the_size_that_was_asked_for() {
    let (mut first, viewer) = playing();
    resize(&mut first, HALF);
    first.run(Duration::from_millis(40 * 30)).expect("the device is well");
    let old = first.api.rings.remove(&1).expect("it was open");
    let snapshot = Snapshot::read_fd(&old).expect("a snapshot each second");
    assert_eq!((snapshot.size_px, snapshot.about.width), (HALF, WHOLE.0));
    drop(first);
    let mut second = Bench::new();
    let again = OpenSession { from_snapshot: true, keep_tick: true, ..large(None) };
    let viewer = second.open(again, Some(old), Some(viewer));
    assert_eq!(second.api.failure(1), None);
    second.run(Duration::from_millis(200)).expect("the device is well");
    let newest = *second.api.frames(1).last().expect("it runs");
    assert_eq!(size(read(&viewer, newest).0), WHOLE);
}

#[test]
fn a_video_prompt_follows_to_the_other_size() {
    let mut bench = Bench::new();
    let pictures = PicturesWriter::create(2, WHOLE.0, WHOLE.1).expect("a small object");
    (0..2).for_each(|i| pictures.write(i, &vec![7; picture_bytes(WHOLE.0, WHOLE.1)]));
    let led = OpenSession { video_prompt: Some("canny".to_string()), ..large(None) };
    let viewer = bench.open(led, Some(pictures.read_only_fd().expect("a descriptor")), None);
    bench.run(Duration::from_millis(200)).expect("the device is well");
    let newest = resize(&mut bench, HALF);
    assert_eq!(size(read(&viewer, newest).0), HALF);
    assert_eq!(bench.sessions.engine.led, picture_bytes(HALF.0, HALF.1), "its pictures have the size of the frames");
}

#[test]
fn too_much_load_takes_sizes_last_and_gives_them_back_first() {
    let facts = Facts { real_time_max: 100, rate: Some(1e9), ..facts() };
    let sessions = Sessions::new(Arithmetic { batch: 1, ..Arithmetic::default() }, facts, Duration::ZERO);
    let mut bench = Bench { sessions, api: Api::default(), now: Cell::new(Duration::ZERO) };
    // A run takes 5 ms, whatever its size: 20 sessions miss deadlines even at half the rate.
    let session = |id| OpenSession { session: id, ..large(None) };
    let viewers: Vec<Viewer> = (1..=20).map(|id| bench.open(session(id), None, None)).collect();
    let watch = |bench: &mut Bench, seconds: u32| {
        for _ in 0..10 * seconds {
            bench.run(Duration::from_millis(100)).expect("the device is well");
            bench.sessions.report(bench.now.get(), &mut bench.api);
        }
    };
    watch(&mut bench, 25);
    let newest = viewers[19].ring.as_ref().and_then(RingReader::newest).expect("it runs");
    let (meta, _) = read(&viewers[19], newest);
    assert!(size(meta).0 < WHOLE.0 && meta.flags & FLAG_DEGRADED != 0, "{meta:?}");
    let first = bench.api.sent.iter().find_map(|m| match m {
        FromWorker::Quality { session, quality } if quality.width < WHOLE.0 => Some(*session),
        _ => None,
    });
    assert_eq!(first, Some(20), "who came last goes first");
    (3..=20).for_each(|session| bench.handle(ToWorker::Close { session }, vec![]).expect("the device is well"));
    watch(&mut bench, 60);
    assert_eq!(bench.sessions.sizes.sessions(), 0);
    let newest = viewers[0].ring.as_ref().and_then(RingReader::newest).expect("it runs");
    let (meta, _) = read(&viewers[0], newest);
    assert_eq!((size(meta), meta.flags), (WHOLE, 0));
}

/// The shipped model on the processor.
fn real() -> (model::Engine, Facts) {
    let shipped = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/gamegen-x-mini");
    let folder = std::env::var_os("GAMEGEN_TEST_MODEL").map_or(shipped, std::path::PathBuf::from);
    let model = Model::load(&folder).expect("the model loads");
    let steps = model.info().steps.clone();
    let executor = cpu::CpuExecutor::new(2).expect("two threads");
    let engine = model::Engine::new(model, Box::new(executor)).expect("weights fit into memory");
    let known = facts();
    (engine, Facts { vocabulary: Vocabulary { steps, ..known.vocabulary.clone() }, ..known })
}

/// Frames that are made, and the first one of another size.
const LENGTH: u64 = 12;
const CHANGE: u64 = 9;
const LARGE: (u32, u32) = (320, 192);

/// Two sessions of the model take turns; before one of its frames the first one is told to have another size. After
/// that frame `keys` are held. Answers the frames of both.
fn played(size: Option<(u32, u32)>, keys: Keys) -> [Vec<(FrameMeta, Vec<u8>)>; 2] {
    let (engine, facts) = real();
    let mut sessions = Sessions::new(engine, facts, Duration::ZERO);
    let mut api = Api::default();
    let clock = || Duration::ZERO;
    let mut frames = [Vec::new(), Vec::new()];
    let controls = [(1, LARGE), (2, HALF)].map(|(session, size)| {
        let control = ControlWriter::create().expect("memory for a page").0;
        let request = OpenSession { seed: session, ..OpenSession::from_text(session, "a castle", size, 24, 1) };
        let fds = vec![control.read_only_fd().expect("a descriptor")];
        sessions.handle(ToWorker::Open(Box::new(request)), fds, &clock, &mut api).expect("the device is well");
        assert_eq!(api.failure(session), None);
        control
    });
    for tick in 0..LENGTH {
        if let (CHANGE, Some(size)) = (tick, size) {
            sessions.live.get_mut(&1).expect("it is open").resize(size);
        }
        if tick == CHANGE + 1 {
            controls[0].set(3, keys);
        }
        for session in [1, 2] {
            sessions.tick(session, &clock, &mut api).expect("the device is well");
            let viewer = Viewer {
                control: ControlWriter::create().expect("memory for a page").0,
                ring: Some(api.ring(session)),
            };
            frames[session as usize - 1].push(read(&viewer, tick));
        }
    }
    frames
}

fn luma_difference(a: &[u8], b: &[u8], pixels: usize) -> f64 {
    a[..pixels].iter().zip(&b[..pixels]).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / pixels as f64
}

#[test]
fn a_world_of_the_model_goes_on_over_a_change_of_size() {
    let small = (240, 144);
    let [changed, other] = played(Some(small), Keys::W);
    for (tick, (meta, picture)) in (0..).zip(&changed) {
        let wanted = if tick < CHANGE { LARGE } else { small };
        assert_eq!((size(*meta), picture.len()), (wanted, i420_bytes(wanted.0, wanted.1)), "frame {tick}");
    }
    // It is still the same world: the first small frame is like the last large one.
    let change = CHANGE as usize;
    let before = scale::i420(&changed[change - 1].1, LARGE, small);
    let pixels = (small.0 * small.1) as usize;
    let step = luma_difference(&before, &changed[change].1, pixels);
    let contrast = luma_difference(&before, &vec![128; pixels], pixels);
    println!("the first frame after the change differs by {step:.1} of a contrast of {contrast:.1}");
    assert!(step < 12.0 && step < contrast / 2.0, "{step} of {contrast}");
    // Keys still reach it, and the other session makes the frames that it makes anyway.
    assert_eq!(changed[change + 1].0.seq, 3);
    let [turned, _] = played(Some(small), Keys::A);
    assert!(changed[change] == turned[change] && changed[change + 2] != turned[change + 2], "keys do nothing");
    let [_, alone] = played(None, Keys::W);
    assert!(other == alone, "a change of size disturbs others");
}
