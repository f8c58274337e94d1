//! Tests of sessions that share runs, of who is let in, and of what is given up under too much load.

use super::*;
use crate::proto::api::WorkerStats;
use crate::proto::wire::FLAG_DEGRADED;

fn bench(batch: usize, rate: Option<f64>) -> Bench {
    let facts = Facts { real_time_max: 100, rate, ..facts() };
    let engine = Arithmetic { batch, ..Arithmetic::default() };
    let sessions = Sessions::new(engine, facts, Duration::ZERO);
    Bench { sessions, api: Api::default(), now: Cell::new(Duration::ZERO) }
}

fn seeded(session: SessionNumber) -> OpenSession {
    OpenSession { seed: session, ..request(session, None) }
}

/// Every frame that is still in a ring.
fn frames(viewer: &Viewer) -> BTreeMap<u64, Vec<u8>> {
    let newest = viewer.ring.as_ref().and_then(RingReader::newest).expect("it runs");
    (newest.saturating_sub(3)..=newest).map(|tick| (tick, read(viewer, tick).1)).collect()
}

fn stats(api: &Api) -> WorkerStats {
    let newest = api.sent.iter().rev().find_map(|m| match m {
        FromWorker::Stats(stats) => Some(stats.clone()),
        _ => None,
    });
    newest.expect("a report")
}

/// [`Bench::run`] with reports in between.
fn watch(bench: &mut Bench, seconds: u32) {
    for _ in 0..10 * seconds {
        bench.run(Duration::from_millis(100)).expect("the device is well");
        bench.sessions.report(bench.now.get(), &mut bench.api);
    }
}

#[test]
fn sessions_that_share_runs_make_the_frames_that_they_make_alone() {
    let play = |batch: usize, shares: bool| {
        let mut bench = bench(batch, None);
        bench.sessions.engine.shares = shares;
        let viewers: Vec<Viewer> = (1..=20).map(|id| bench.open(seeded(id), None, None)).collect();
        for viewer in &viewers {
            viewer.control.set(1, Keys::W);
        }
        let mut all = Vec::new();
        while viewers.iter().any(|v| v.ring.as_ref().and_then(RingReader::newest).is_none_or(|newest| newest < 3)) {
            bench.run(Duration::from_millis(5)).expect("the device is well");
        }
        for viewer in &viewers {
            all.push(read(viewer, 3).1);
        }
        (all, bench.sessions.engine.runs.clone())
    };
    let (alone, single) = play(1, false);
    let (shared, runs) = play(8, true);
    assert_eq!(alone, shared);
    assert!(single.iter().all(|n| *n == 1));
    assert!(runs.contains(&8), "{runs:?}");
}

#[test]
fn an_error_of_the_device_in_a_shared_run_ends_the_worker_and_one_of_a_session_ends_it_alone() {
    let mut bench = bench(4, None);
    (1..=3).for_each(|id| drop(bench.open(seeded(id), None, None)));
    bench.sessions.engine.fail_at = Some((2, Fault::device("device_lost", "gone")));
    assert_eq!(bench.run(Duration::from_millis(50)), Err(Fault::device("device_lost", "gone")));
}

#[test]
fn who_does_not_fit_is_refused_and_told_why() {
    // A frame is 2000 operations, so a session needs 50 000 a second: a fifth.
    let mut bench = bench(4, Some(250_000.0));
    let refused = |bench: &mut Bench, request: OpenSession| {
        let control = ControlWriter::create().expect("memory for a page").0;
        let (session, fds) = (request.session, vec![control.read_only_fd().expect("a descriptor")]);
        bench.handle(ToWorker::Open(Box::new(request)), fds).expect("the device is well");
        let (code, message) = bench.api.failure(session).expect("it is full");
        assert_eq!(code, "worker_full");
        message
    };
    (1..=3).for_each(|id| drop(bench.open(seeded(id), None, None)));
    let message = refused(&mut bench, OpenSession { width: 128, height: 128, ..seeded(7) });
    assert!(message.ends_with("64 x 64 pixels would fit"), "{message}");
    drop(bench.open(seeded(4), None, None));
    assert_eq!(bench.sessions.len(), 4);
    let message = refused(&mut bench, seeded(5));
    assert!(message.contains("20 % of the device, 80 % of 90 % are in use"), "{message}");
    // Stored generations take what is left.
    let viewer = bench.open(request(6, Some(2)), None, None);
    assert!(viewer.ring.is_some());
}

#[test]
fn too_much_load_takes_steps_then_the_rate_and_gives_them_back() {
    // The device is said to do more than it does: a run takes 5 ms, 20 of them more than the 40 ms of a period.
    let mut bench = bench(1, Some(1e9));
    let viewers: Vec<Viewer> = (1..=20).map(|id| bench.open(seeded(id), None, None)).collect();
    watch(&mut bench, 3);
    assert_eq!(stats(&bench.api).degraded, "steps");
    watch(&mut bench, 5);
    assert_eq!(stats(&bench.api).degraded, "steps and rate");
    assert!(stats(&bench.api).load > 0.0);
    let ring = viewers[7].ring.as_ref().expect("it is open");
    let newest = ring.newest().expect("it runs");
    assert_eq!(read(&viewers[7], newest).0.flags & FLAG_DEGRADED, FLAG_DEGRADED);
    (3..=20).for_each(|session| bench.handle(ToWorker::Close { session }, vec![]).expect("the device is well"));
    watch(&mut bench, 14);
    assert_eq!(stats(&bench.api).degraded, "none");
    let newest = viewers[0].ring.as_ref().and_then(RingReader::newest).expect("it runs");
    assert_eq!(read(&viewers[0], newest).0.flags, 0);

    // What was given up is in the trace, so a replay makes the same frames.
    let live = frames(&viewers[0]);
    bench.handle(ToWorker::Close { session: 1 }, vec![]).expect("the device is well");
    let fd = bench.api.rings[&1].try_clone().expect("dup");
    let snapshot = Snapshot::read_fd(&fd).expect("a last snapshot");
    let changes = trace::decode(&snapshot.trace).expect("a trace of ours");
    let steps: Vec<u32> = changes
        .iter()
        .filter_map(|c| match c {
            Change::Steps { steps, .. } => Some(*steps),
            _ => None,
        })
        .collect();
    assert_eq!(steps, [1, 2], "{changes:?}");
    let mut again = Bench::new();
    let count = snapshot.about.tick as u32 + 1;
    let request = OpenSession { replay: true, ..OpenSession { frames: Some(count), ..seeded(1) } };
    let viewer = Viewer { control: ControlWriter::create().expect("memory for a page").0, ring: None };
    let fds = vec![viewer.control.read_only_fd().expect("a descriptor"), fd];
    again.handle(ToWorker::Open(Box::new(request)), fds).expect("the device is well");
    let viewer = Viewer { ring: Some(again.api.ring(1)), ..viewer };
    let pictures = collect(&mut again, 1, &viewer, 0);
    for (tick, picture) in live {
        assert!(pictures[&tick] == picture, "frame {tick} of the replay");
    }
}
