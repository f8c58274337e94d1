//! Tests of [`Session`](super::Session): controls, ends, viewers, the loss of a worker.

use super::*;
use crate::frame::{ControlReader, Latched, TapCounts};
use crate::proto::api::Kind;
use crate::proto::limits::VIEWERS_MAX;

fn session(frames: Option<u32>) -> (Arc<Session>, mpsc::Receiver<Feed>) {
    let (feed, told) = mpsc::channel();
    let spec = Spec {
        id: "0".repeat(32),
        number: 1,
        owner: "uid 1".into(),
        prompt: "a meadow".into(),
        perspective: None,
        width: 64,
        height: 64,
        fps: 24,
        steps: 2,
        seed: 9,
        frames,
        kind: if frames.is_some() { Kind::Clip } else { Kind::Session },
        from: None,
        video_prompt: None,
        created: 0,
    };
    (Arc::new(Session::new(spec, Inputs::default(), feed, Arc::default()).expect("memory for a control block")), told)
}

fn words() -> Vocabulary {
    Vocabulary { weather: vec!["snow".into()], steps: vec![2], default_steps: 2, ..Vocabulary::default() }
}

fn keys(seq: u32, names: &[&str]) -> Control {
    Control { seq, keys: Some(names.iter().map(|s| s.to_string()).collect()), ..Control::default() }
}

#[test]
fn keys_reach_the_control_block_and_text_reaches_the_worker() {
    let (session, _told) = session(None);
    let reader = ControlReader::open(session.control.read_only_fd().expect("a descriptor")).expect("our own block");
    let mut seen = TapCounts::default();
    assert!(session.accept(&keys(1, &["w"]), &words()).expect("valid").is_none());
    assert_eq!(reader.latch(&mut seen), Latched { seq: 1, keys: Keys::W });
    let text = Control { weather: Some("snow".into()), ..keys(2, &["a"]) };
    let told = session.accept(&text, &words()).expect("valid");
    let Some(ToWorker::Instruct { seq: 2, environment, .. }) = told else { panic!("the worker must know: {told:?}") };
    assert_eq!(environment.weather.as_deref(), Some("snow"));
    assert_eq!(reader.latch(&mut seen), Latched { seq: 1, keys: Keys::A }, "seq 2 comes with the text");
    let tap = Control { seq: 3, taps: vec!["SPACE".into()], ..Control::default() };
    session.accept(&tap, &words()).expect("valid");
    assert_eq!(reader.latch(&mut seen), Latched { seq: 3, keys: Keys::A.union(Keys::SPACE) });
}

#[test]
fn the_newest_of_text_and_environment_is_what_the_worker_is_told() {
    let (session, _told) = session(None);
    let say = |seq, weather: Option<&str>, text: Option<&str>| {
        let control = Control {
            seq,
            weather: weather.map(str::to_string),
            instruction: text.map(str::to_string),
            ..Control::default()
        };
        let told = session.accept(&control, &words()).expect("valid");
        let Some(ToWorker::Instruct { environment, instruction, .. }) = told else { panic!("not told: {told:?}") };
        (environment.weather, instruction)
    };
    let (snow, storm) = (Some("snow".to_string()), Some("a storm begins".to_string()));
    assert_eq!(say(1, None, Some("a storm begins")), (None, storm.clone()));
    assert_eq!(say(2, Some("snow"), None), (snow.clone(), None), "the word came after the text");
    assert_eq!(say(3, None, Some("a storm begins")), (snow.clone(), storm.clone()), "the text came after the word");
    session.accept(&keys(4, &["W"]), &words()).expect("valid");
    let (ToWorker::Open(open), _) = session.opening().expect("descriptors") else { panic!("no opening") };
    assert_eq!(open.instruction, storm, "keys take no text back");
    assert_eq!(say(5, Some("snow"), None), (snow, None));
}

#[test]
fn a_control_must_be_newer_than_the_last() {
    let (session, _told) = session(None);
    session.accept(&keys(5, &[]), &words()).expect("valid");
    let refusal = session.accept(&keys(5, &[]), &words()).expect_err("not newer");
    assert_eq!((refusal.problem.code.as_str(), refusal.problem.status), ("stale_control", 409));
    assert_eq!(refusal.problem.allowed.as_deref(), Some("6 to 4294967295"));
    let refusal = session.accept(&keys(6, &["Q"]), &words()).expect_err("no such key");
    assert_eq!(refusal.problem.field.as_deref(), Some("keys"));
    session.accept(&keys(6, &[]), &words()).expect("the refused one does not count");
}

#[test]
fn controls_between_two_frames_are_superseded() {
    let (session, _told) = session(None);
    let mut viewer = session.view(false).expect("the first viewer");
    for seq in [1, 2, 4, 7] {
        session.accept(&keys(seq, &[]), &words()).expect("valid");
    }
    session.frame_arrived(1, 4);
    session.frame_arrived(2, 4);
    session.frame_arrived(3, 7);
    let mut told = Vec::new();
    while let Ok(message) = viewer.events.try_recv() {
        let ServerMessage::Superseded { seq, by } = message else { panic!("unexpected {message:?}") };
        told.push((seq, by));
    }
    assert_eq!(told, [(1, 2), (2, 4)]);
    assert!(!session.awaits_a_control());
}

#[test]
fn an_end_is_final_and_told_to_late_viewers() {
    let (session, told) = session(Some(10));
    session.frame_arrived(5, 0);
    assert_eq!((session.state(), session.status().progress), (State::Running, 0.5));
    session.interrupted("killed");
    assert_eq!(session.state(), State::Recovering);
    assert!(session.end(State::Cancelled, "cancelled", None));
    assert!(!session.end(State::Done, "done", None));
    assert!(matches!(told.try_recv(), Ok(Feed::Stop)));
    session.frame_arrived(6, 0);
    assert_eq!((session.state(), session.status().frame_count), (State::Cancelled, 5));
    assert!(matches!(session.standing().last(), Some(ServerMessage::Bye { reason }) if reason == "cancelled"));
    assert_eq!(session.accept(&keys(1, &[]), &words()).expect_err("ended").problem.code, "session_ended");
    assert_eq!(session.status().links.video, None);
}

#[test]
fn viewers_are_counted_and_limited() {
    let (session, _told) = session(None);
    let viewers: Vec<Viewer> = (0..VIEWERS_MAX).map(|_| session.view(false).expect("room")).collect();
    assert_eq!(session.view(false).err().expect("full").problem.code, "too_many_viewers");
    let later = Instant::now() + Duration::from_secs(1000);
    assert_eq!(session.idle(later), Duration::ZERO, "somebody watches");
    drop(viewers);
    assert!(!session.has_viewers());
    assert!(session.idle(later) > Duration::from_secs(900));
}

#[test]
fn a_late_frame_of_the_lost_worker_does_not_end_the_recovery() {
    let (session, _told) = session(None);
    let viewer = session.view(false).expect("room");
    session.frame_arrived(1, 0);
    session.interrupted("killed");
    session.frame_arrived(2, 0);
    session.show(Shown { message: vec![2].into() });
    assert_eq!(session.state(), State::Recovering);
    assert!(viewer.shown.borrow().is_none(), "a picture from before the loss follows the news of it");
    session.resumed();
    session.frame_arrived(3, 0);
    session.show(Shown { message: vec![3].into() });
    assert_eq!(session.state(), State::Running);
    assert!(viewer.shown.borrow().is_some());
}
