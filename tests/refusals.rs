//! What goes wrong, code by code: refusals that need a worker, a decoder or a disk in a certain state, and what happens
//! to a session later. Those of single fields and files are in `http`, `uploads` and `security`.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use gamegend::proto::api::{Problem, ServerMessage, State};
use gamegend::proto::resources::Upload;
use serde_json::{Value, json};
use support::client::{Client, Reply};
use support::peer::{FAILS, FORGETS, TOO_LONG};
use support::{Api, eventually, files};

fn clip(prompt: &str) -> Value {
    json!({"prompt": prompt, "width": 96, "height": 64, "frames": 4})
}

fn code(reply: &Reply) -> (u16, String) {
    (reply.status, reply.problem().code)
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_string())
}

/// The problem with which a session ended.
fn failure(client: &Client, id: &str) -> Problem {
    eventually("it has failed", || client.status(id).state == State::Failed);
    client.status(id).error.expect("a reason")
}

#[test]
fn a_daemon_has_as_many_worlds_as_it_may() {
    let mut api = Api::start_with("worlds", |config| config.worker.sessions_max = 2);
    let _peer = api.worker_up(Duration::ZERO);
    let client = api.local();
    let worlds = [client.play(), client.play()];
    let request = json!({"prompt": "x", "width": 64, "height": 64, "interactive": true});
    let reply = client.post("/api/v1/generate", &request);
    assert_eq!(code(&reply), refused(429, "too_many_sessions"));
    assert_eq!(reply.header("retry-after"), Some("10"));
    eventually("a world can be forked", || {
        client.post(&format!("/api/v1/sessions/{}/snapshot", worlds[0]), &json!({})).status == 201
    });
    let fork = client.post(&format!("/api/v1/sessions/{}/fork", worlds[0]), &json!({}));
    assert_eq!(code(&fork), refused(429, "too_many_sessions"));
    // Many at once get no more than there is room for.
    client.send("DELETE", &format!("/api/v1/sessions/{}", worlds[1]), &[], b"");
    let ask = || {
        let (client, request) = (client.clone(), request.clone());
        std::thread::spawn(move || client.post("/api/v1/generate", &request).status)
    };
    let threads: Vec<_> = (0..8).map(|_| ask()).collect();
    let taken = threads.into_iter().map(|t| t.join().expect("no panic")).filter(|s| *s == 202).count();
    assert_eq!(taken, 1);
}

#[test]
fn what_another_model_made_is_neither_made_again_nor_continued() {
    let mut api = Api::start("other-model");
    let peer = api.worker_up(Duration::ZERO);
    let client = api.local();
    let id = client.generate(&clip("a canyon")).id;
    eventually("it is done", || client.status(&id).state == State::Done);
    peer.kill();
    api.worker_down("replaced", true);
    let _peer = api.worker_up_as(Duration::ZERO, "other-weights");
    eventually("the new model is known", || {
        client.get("/api/v1/models").json::<Value>()["items"][0]["hash"] == json!("other-weights")
    });
    let replay = client.post(&format!("/api/v1/sessions/{id}/replay"), &json!({}));
    assert_eq!(code(&replay), refused(409, "model_mismatch"));
    let detail = replay.problem().detail;
    assert!(detail.contains("test-peer") && detail.contains("other-weights"), "{detail}");
    let mut request = clip("it goes on");
    request["from"] = json!(id);
    assert_eq!(code(&client.post("/api/v1/generate", &request)), refused(409, "origin_mismatch"));
}

#[test]
fn a_world_whose_trace_is_incomplete_is_not_made_again() {
    let (api, _peer) = Api::with_peer("forgets");
    let client = api.local();
    let id = client.generate(&clip(FORGETS)).id;
    eventually("it is done", || client.status(&id).state == State::Done);
    let replay = client.post(&format!("/api/v1/sessions/{id}/replay"), &json!({}));
    assert_eq!(code(&replay), refused(409, "trace_incomplete"));
}

#[test]
fn a_session_that_the_worker_gives_up_fails_with_the_reason() {
    let (api, _peer) = Api::with_peer("gives-up");
    let client = api.local();
    let id = client.generate(&clip(FAILS)).id;
    let problem = failure(&client, &id);
    assert_eq!((problem.code.as_str(), problem.detail.as_str()), ("session_failed", "the device was lost."));
    let late = client.try_watch(&id, &[]);
    if let Ok(mut late) = late {
        let told = late.message(|m| matches!(m, ServerMessage::Bye { .. }));
        assert!(matches!(told, ServerMessage::Bye { reason } if reason == "failed"));
    }
    let video = client.get(&format!("/api/v1/videos/{id}"));
    assert_eq!(code(&video), refused(409, "no_object"));
    let openai: Value = client.get(&format!("/v1/videos/{id}")).json();
    assert_eq!((&openai["status"], &openai["error"]["code"]), (&json!("failed"), &json!("session_failed")));
}

#[test]
fn an_instruction_that_the_model_cannot_take_is_told_and_the_session_goes_on() {
    let (api, peer) = Api::with_peer("too-long");
    let client = api.local();
    let id = client.play();
    let mut watch = client.watch(&id);
    watch.say(&json!({"type": "control", "seq": 1, "instruction": TOO_LONG}).to_string());
    let told = watch.message(|m| matches!(m, ServerMessage::Error { .. }));
    let ServerMessage::Error { problem } = told else { panic!("{told:?}") };
    assert_eq!(problem.code, "instruction_refused");
    assert!(problem.detail.contains("Control 1: it has 300 tokens"), "{}", problem.detail);
    watch.say(&json!({"type": "control", "seq": 2, "weather": "snow"}).to_string());
    while watch.frame().0.seq < 2 {}
    let asked = peer.asked.lock().expect("no panic");
    assert_eq!(asked.instructions, [(2, None)], "the word that came later is what is told");
    assert_eq!(asked.environments[0].weather.as_deref(), Some("snow"));
}

#[test]
fn a_video_that_cannot_be_written_fails_and_the_daemon_does_not() {
    let mut api = Api::start("no-disk");
    let _peer = api.worker_up(Duration::from_millis(1));
    let client = api.local();
    std::fs::remove_dir_all(api.state.join("generations")).expect("our own folder");
    let id = client.generate(&clip("a canyon")).id;
    assert_eq!(failure(&client, &id).code, "recording_failed");
    std::fs::remove_dir_all(api.state.join("uploads")).expect("our own folder");
    let reply = client.send("POST", "/api/v1/uploads", &[("Content-Type", "image/png")], &files::png(32, 32, 1));
    assert_eq!(code(&reply), refused(500, "internal"));
    let detail = reply.problem().detail;
    assert!(!detail.contains(&api.state.display().to_string()) && !detail.contains("os error"), "{detail}");
    let live = client.play();
    client.watch(&live).frame();
}

#[test]
fn a_body_that_does_not_come_is_given_up() {
    let (api, _peer) = Api::with_peer("late-body");
    let mut stream = TcpStream::connect(api.address).expect("the daemon listens");
    let head = format!(
        "POST /api/v1/generate HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: 100\r\nConnection: close\r\n\r\n{{\"prompt\":",
        api.address
    );
    stream.write_all(head.as_bytes()).expect("the daemon reads");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let (begin, mut answer) = (Instant::now(), String::new());
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("\"request_timeout\""), "{answer}");
    assert!((8..15).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
}

#[test]
fn decoders_that_are_busy_are_waited_for_so_long_and_a_key_at_work_is_told() {
    let (api, _peer) = Api::with_peer("busy");
    let client = api.local();
    let send = |body: Vec<u8>| {
        let client = client.clone();
        std::thread::spawn(move || client.send("POST", "/api/v1/uploads", &[("Content-Type", "image/png")], &body))
    };
    let upload: Upload = send(files::png(64, 64, 9)).join().expect("no panic").json();
    let held = api.stop_decoders();
    let first = send(files::png(64, 64, 1));
    // The same request twice: the second one is told that the first one is at work.
    let mut request = clip("it goes on");
    request["from"] = json!(upload.id);
    let generate = || {
        let (client, body) = (client.clone(), request.to_string());
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", "once")];
        std::thread::spawn(move || client.send("POST", "/api/v1/generate", &headers, body.as_bytes()))
    };
    let second = generate();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(code(&generate().join().expect("no panic")), refused(409, "idempotency_pending"));
    let begin = Instant::now();
    let third = send(files::png(64, 64, 2)).join().expect("no panic");
    assert_eq!(code(&third), refused(503, "decoder_unavailable"));
    assert_eq!(third.header("retry-after"), Some("2"));
    assert!(begin.elapsed() < Duration::from_secs(14), "{:?}", begin.elapsed());
    assert_eq!(client.get("/healthz").status, 200, "nobody else waits");
    drop(held);
    assert_eq!(first.join().expect("no panic").status, 201);
    assert_eq!(second.join().expect("no panic").status, 202);
    assert_eq!(send(files::png(64, 64, 2)).join().expect("no panic").status, 201, "and there is room again");
    api.settle();
}
