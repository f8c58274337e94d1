//! Tests of what a session begins with: a trace to play back, pictures to continue, a video prompt.

use super::*;
use crate::frame::PicturesWriter;

fn instruct(bench: &mut Bench, seq: u32, text: &str) {
    let (environment, instruction) = (Environment::default(), Some(text.to_string()));
    let message = ToWorker::Instruct { session: 1, seq, environment, instruction };
    bench.handle(message, vec![]).expect("the device is well");
}

/// Plays and remembers every frame, keyed by its tick.
fn play(bench: &mut Bench, viewer: &Viewer, pictures: &mut BTreeMap<u64, Vec<u8>>, ticks: u64) {
    for _ in 0..ticks {
        bench.run(Duration::from_millis(40)).expect("the device is well");
        let ring = viewer.ring.as_ref().expect("it is open");
        let newest = ring.newest().expect("it runs");
        for tick in newest.saturating_sub(3)..=newest {
            let mut picture = Vec::new();
            // Right after a crash the ticks before it are not in the ring.
            if ring.read(tick, &mut picture).is_ok() {
                pictures.insert(tick, picture);
            }
        }
    }
}

fn replay_of(snapshot: OwnedFd, origin: Option<OwnedFd>, frames: u32) -> (BTreeMap<u64, Vec<u8>>, Snapshot) {
    let mut bench = Bench::new();
    let request = OpenSession { replay: true, from_snapshot: origin.is_some(), ..request(1, Some(frames)) };
    let mut viewer = Viewer { control: ControlWriter::create().expect("memory for a page").0, ring: None };
    // A player's keys do not count in a replay.
    viewer.control.set(99, Keys::SHIFT);
    let mut fds = vec![viewer.control.read_only_fd().expect("a descriptor")];
    fds.extend(origin);
    fds.push(snapshot);
    bench.handle(ToWorker::Open(Box::new(request)), fds).expect("the device is well");
    assert_eq!(bench.api.failure(1), None);
    viewer.ring = Some(bench.api.ring(1));
    let pictures = collect(&mut bench, 1, &viewer, 0);
    (pictures, Snapshot::read_fd(&bench.api.rings[&1]).expect("a last snapshot"))
}

#[test]
fn a_replay_makes_every_frame_again_also_over_a_crash() {
    let mut bench = Bench::new();
    let viewer = bench.open(request(1, None), None, None);
    let mut seen = BTreeMap::new();
    play(&mut bench, &viewer, &mut seen, 8);
    viewer.control.tap(Keys::SPACE);
    viewer.control.set(1, Keys::W);
    play(&mut bench, &viewer, &mut seen, 6);
    instruct(&mut bench, 2, "a storm begins");
    play(&mut bench, &viewer, &mut seen, 20);
    // The worker is killed a while after its snapshot; what it made since is in nobody's value.
    let old = bench.api.rings.remove(&1).expect("it was open");
    drop(bench);
    let mut bench = Bench::new();
    let text = Some("a storm begins".to_string());
    let again = OpenSession { from_snapshot: true, keep_tick: true, instruction: text, ..request(1, None) };
    let viewer = bench.open(again, Some(old), Some(viewer));
    let first = *bench.api.frames(1).first().unwrap_or(&0);
    play(&mut bench, &viewer, &mut BTreeMap::new(), 2);
    viewer.control.set(3, Keys::D);
    play(&mut bench, &viewer, &mut seen, 10);
    bench.handle(ToWorker::Close { session: 1 }, vec![]).expect("the device is well");
    let last = bench.api.rings.remove(&1).expect("it was open");
    let snapshot = Snapshot::read_fd(&last).expect("a last snapshot");
    let changes = trace::decode(&snapshot.trace).expect("a trace of ours");
    let frames = trace::frames(&changes, snapshot.about.tick);
    let gap = changes.iter().find_map(|c| match c {
        Change::Continued { tick, from } => Some((*tick, *from)),
        _ => None,
    });
    let (resumed, from) = gap.expect("it went on after a crash");
    assert!(resumed > from + 1 && first <= resumed, "frames were lost with the worker");
    assert_eq!(frames, snapshot.about.tick + 1 - (resumed - from - 1));
    let (pictures, again) = replay_of(last, None, frames as u32);
    assert_eq!(pictures.len() as u64, frames);
    for (tick, picture) in &pictures {
        // Before the crash ticks are the same; after it the original's are later.
        let original = if *tick <= from { *tick } else { tick + (resumed - from - 1) };
        if let Some(expected) = seen.get(&original) {
            assert_eq!(picture, expected, "tick {tick}, {original} of the original");
        }
    }
    assert!(pictures.len() > 30 && seen.len() > 40);
    // The replay is a session of its own, with a value of its own that gives the same again.
    let path = std::env::temp_dir().join(format!("gamegend-replay-{}", std::process::id()));
    std::fs::write(&path, again.encode().expect("it fits")).expect("a temporary file");
    let file = std::fs::File::open(&path).expect("just written");
    std::fs::remove_file(&path).expect("it was ours");
    assert_eq!(replay_of(file.into(), None, frames as u32).0, pictures);
}

#[test]
fn a_replay_needs_the_whole_trace() {
    let mut bench = Bench::new();
    let viewer = bench.open(request(1, Some(3)), None, None);
    collect(&mut bench, 1, &viewer, 0);
    let mut snapshot = Snapshot::read_fd(&bench.api.rings[&1]).expect("a last snapshot");
    snapshot.about.trace_dropped = 7;
    let bytes = snapshot.encode().expect("it fits");
    let memory = SharedMemory::create("test", bytes.len()).expect("memory");
    memory.write(0, &bytes);
    let replay = OpenSession { replay: true, ..request(2, Some(3)) };
    bench.open(replay, Some(memory.read_only_fd().expect("a descriptor")), None);
    let (code, message) = bench.api.failure(2).expect("it is refused");
    assert!(code == "trace_incomplete" && message.contains('7'), "{code}: {message}");
}

/// `count` pictures whose bytes are 1, 2, 3 and so on.
fn pictures(count: u32, width: u32) -> OwnedFd {
    let writer = PicturesWriter::create(count, width, 64).expect("small");
    for i in 0..count {
        writer.write(i, &vec![i as u8 + 1; picture_bytes(width, 64)]);
    }
    writer.read_only_fd().expect("a descriptor")
}

#[test]
fn uploaded_pictures_are_continued() {
    let mut bench = Bench::new();
    let from = |session| OpenSession { from_pictures: true, ..request(session, Some(4)) };
    let viewer = bench.open(from(1), Some(pictures(20, 64)), None);
    let one = collect(&mut bench, 1, &viewer, 0);
    let viewer = bench.open(request(2, Some(4)), None, None);
    let other = collect(&mut bench, 2, &viewer, 0);
    assert_eq!(one.len(), 4);
    assert_ne!(one, other, "it begins elsewhere");
    let snapshot = Snapshot::read_fd(&bench.api.rings[&1]).expect("a last snapshot");
    assert_eq!(snapshot.history.len(), 16, "the last pictures and its own frames");
    bench.open(from(3), Some(pictures(2, 128)), None);
    let (code, message) = bench.api.failure(3).expect("another size");
    assert!(code == "size_mismatch" && message.contains("128 x 64"), "{code}: {message}");
}

#[test]
fn a_video_prompt_leads_every_frame_if_the_model_takes_it() {
    let mut bench = Bench::new();
    let led = |session, kind: &str| OpenSession { video_prompt: Some(kind.to_string()), ..request(session, Some(6)) };
    let viewer = bench.open(led(1, "canny"), Some(pictures(3, 64)), None);
    let one = collect(&mut bench, 1, &viewer, 0);
    let viewer = bench.open(led(2, "canny"), Some(pictures(1, 64)), None);
    let other = collect(&mut bench, 2, &viewer, 0);
    assert_eq!(one[&0], other[&0], "the first picture is the same");
    assert_ne!(one[&1], other[&1], "the second one differs");
    bench.open(led(3, "pose"), Some(pictures(3, 64)), None);
    let (code, message) = bench.api.failure(3).expect("the model does not know it");
    assert!(code == "video_prompts_unsupported" && message.contains("[canny]"), "{code}: {message}");
}
