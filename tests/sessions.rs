//! Sessions and videos as things that are listed, shown, kept, forked, replayed and deleted; the queue; requests that
//! are sent twice; what every answer tells.

mod support;

use std::time::Duration;

use gamegend::proto::api::{DaemonStatus, GenerateReply, Kind, ServerMessage, SessionStatus, State};
use gamegend::proto::limits;
use gamegend::proto::resources::{Page, SessionReply, Video};
use serde_json::{Value, json};
use support::client::{Client, Reply};
use support::{Api, eventually};

fn clip(frames: u32) -> Value {
    json!({"prompt": "a snowy forest", "width": 96, "height": 64, "frames": frames, "fps": 24, "seed": 5})
}

fn done(client: &Client, request: &Value) -> String {
    let id = client.generate(request).id;
    eventually("it is done", || client.status(&id).state == State::Done);
    id
}

fn delete(client: &Client, path: &str) -> Reply {
    client.send("DELETE", path, &[], b"")
}

#[test]
fn a_session_is_shown_with_its_value_and_its_trace() {
    let (api, _peer) = Api::with_peer("value");
    let client = api.local();
    let id = client.play();
    let before: SessionReply = client.get(&format!("/api/v1/sessions/{id}")).json();
    assert_eq!((before.status.kind, before.status.interactive), (Kind::Session, true));
    eventually("a snapshot is taken", || {
        client.get(&format!("/api/v1/sessions/{id}")).json::<SessionReply>().value.is_some()
    });
    let value = client.get(&format!("/api/v1/sessions/{id}")).json::<SessionReply>().value.expect("just seen");
    assert_eq!((value.model_hash.as_str(), value.prompt.as_str()), (support::peer::MODEL_HASH, "a green meadow"));
    let trace: Value = client.get(&format!("/api/v1/sessions/{id}/trace")).json();
    assert!(trace["changes"].is_array() && trace["tick"].as_u64().is_some(), "{trace}");
    assert_eq!(client.get("/api/v1/sessions/nobody").problem().code, "unknown_session");
    assert_eq!(client.get("/api/v1/sessions/nobody/trace").problem().code, "unknown_session");
    let stored = done(&client, &clip(3));
    let shown: SessionReply = client.get(&format!("/api/v1/sessions/{stored}")).json();
    assert_eq!(shown.status.state, State::Done);
}

#[test]
fn lists_have_pages_and_kinds() {
    let (api, _peer) = Api::with_peer("pages");
    let client = api.local();
    let mut ids: Vec<String> = (0..5).map(|_| done(&client, &clip(2))).collect();
    client.play();
    let (mut seen, mut path) = (Vec::new(), "/api/v1/videos?limit=2".to_string());
    loop {
        let page: Page<Video> = client.get(&path).json();
        assert!(page.items.len() <= 2);
        seen.extend(page.items.iter().map(|v| v.id.clone()));
        match page.next {
            Some(next) => path = format!("/api/v1/videos?limit=2&cursor={next}"),
            None => break,
        }
    }
    ids.sort();
    let mut found = seen.clone();
    found.sort();
    assert_eq!(found, ids);
    let count = |query: &str| client.get(&format!("/api/v1/sessions{query}")).json::<Page<SessionStatus>>().items.len();
    assert_eq!((count(""), count("?kind=clip"), count("?kind=session"), count("?kind=replay")), (6, 5, 1, 0));
    for (query, field) in [("limit=0", "limit"), ("limit=x", "limit"), ("cursor=%00", "cursor"), ("kind=x", "kind")] {
        let problem = client.get(&format!("/api/v1/sessions?{query}")).problem();
        assert_eq!((problem.code.as_str(), problem.field.as_deref()), ("invalid_field", Some(field)));
    }
    assert_eq!(client.get("/api/v1/videos?limits=3").problem().code, "unknown_field");
}

#[test]
fn a_video_has_a_poster_frames_and_a_tag() {
    let (api, _peer) = Api::with_peer("objects");
    let client = api.local();
    let id = done(&client, &clip(30));
    let video: Video = client.get(&format!("/api/v1/videos/{id}")).json();
    assert_eq!((video.frames, video.seconds, video.seed), (30, 1.25, 5));
    let content = client.get(&video.links.content);
    assert_eq!(content.header("content-type"), Some("video/mp4"));
    let tag = content.header("etag").expect("a tag").to_string();
    let again = client.send("GET", &video.links.content, &[("If-None-Match", &tag)], b"");
    assert_eq!((again.status, again.body.len()), (304, 0));
    let part = |if_range: &str| {
        client.send("GET", &video.links.content, &[("Range", "bytes=0-9"), ("If-Range", if_range)], b"").status
    };
    assert_eq!((part(&tag), part("\"other\"")), (206, 200));
    assert_eq!(&client.get(&video.links.poster).body[..2], b"\xff\xd8");
    let path = |index: &str| video.links.frame.replace("{index}", index);
    let frame = client.get(&path("29"));
    assert_eq!((frame.status, frame.header("content-type")), (200, Some("image/png")));
    let mut reader = png::Decoder::new(std::io::Cursor::new(&frame.body)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("small")];
    let info = reader.next_frame(&mut pixels).expect("a whole PNG");
    assert_eq!((info.width, info.height), (96, 64));
    assert_ne!(client.get(&path("0")).body, frame.body, "it moves");
    for index in ["30", "-1", "x", "4294967296"] {
        assert_eq!(client.get(&path(index)).problem().field.as_deref(), Some("index"), "{index}");
    }
    let live = client.play();
    assert_eq!(client.get(&format!("/api/v1/videos/{live}")).problem().code, "no_object");
    assert_eq!(delete(&client, &format!("/api/v1/videos/{id}")).status, 204);
    assert_eq!(client.get(&video.links.content).problem().code, "unknown_session");
    assert_eq!(delete(&client, &format!("/api/v1/videos/{id}")).problem().code, "unknown_session");
}

#[test]
fn a_state_is_kept_forked_and_survives_a_restart() {
    let (api, peer) = Api::with_peer("keep");
    let client = api.local();
    let id = client.play();
    let keep = |id: &str| client.post(&format!("/api/v1/sessions/{id}/snapshot"), &json!({}));
    eventually("a snapshot is there", || keep(&id).status == 201);
    let kept: SessionStatus = keep(&id).json();
    assert_eq!((kept.kind, kept.from.as_deref()), (Kind::Snapshot, Some(id.as_str())));
    let poster = client.get(&kept.links.poster.expect("what it looked like"));
    assert_eq!(&poster.body[..2], b"\xff\xd8");
    assert_eq!(client.get(&format!("/api/v1/videos/{}", kept.id)).problem().code, "no_object");
    assert_eq!(keep("nobody").problem().code, "unknown_session");
    let fork = |id: &str, body: &Value| client.post(&format!("/api/v1/sessions/{id}/fork"), body);
    for from in [&id, &kept.id] {
        let reply: GenerateReply = fork(from, &json!({"prompt": "a desert"})).json();
        let status = client.status(&reply.id);
        assert_eq!(
            (status.prompt.as_str(), status.kind, status.from.as_deref()),
            ("a desert", Kind::Session, Some(from.as_str()))
        );
        delete(&client, &format!("/api/v1/sessions/{}", reply.id));
    }
    let reply: GenerateReply = fork(&kept.id, &json!({"interactive": false, "frames": 4})).json();
    eventually("it is done", || client.status(&reply.id).state == State::Done);
    assert!(peer.asked.lock().expect("no panic").opened[1..].iter().all(|o| o.from_snapshot && !o.keep_tick));
    assert_eq!(fork(&id, &json!({"colour": 1})).problem().code, "unknown_field");
    assert_eq!(fork("nobody", &json!({})).problem().code, "unknown_session");
    // An interactive session that ends leaves its last state, too.
    delete(&client, &format!("/api/v1/generate?id={id}"));
    eventually("its last state is stored", || client.status(&id).links.poster.is_some());
    let files = api.stored_files();
    for wanted in [format!("{id}.snapshot"), format!("{}.jpg", kept.id), format!("{}.origin", reply.id)] {
        assert!(files.contains(&wanted), "{wanted} in {files:?}");
    }
    assert_eq!(keep(&id).problem().code, "session_ended");
    assert_eq!(delete(&client, &format!("/api/v1/sessions/{id}")).status, 204);
    assert!(!api.stored_files().iter().any(|f| f.starts_with(&id)));
    assert_eq!(client.get(&format!("/api/v1/sessions/{id}")).problem().code, "unknown_session");
}

#[test]
fn a_replay_is_asked_for_with_the_trace_and_the_beginning() {
    let (api, peer) = Api::with_peer("replay");
    let client = api.local();
    let id = client.play();
    let replay = |id: &str| client.post(&format!("/api/v1/sessions/{id}/replay"), &json!({}));
    eventually("a snapshot is there", || replay(&id).status == 202);
    let made: GenerateReply = replay(&id).json();
    eventually("it is done", || client.status(&made.id).state == State::Done);
    let status = client.status(&made.id);
    assert_eq!(
        (status.kind, status.from.as_deref(), status.prompt.as_str()),
        (Kind::Replay, Some(id.as_str()), "a green meadow")
    );
    let asked = peer.asked.lock().expect("no panic");
    let opened = asked.opened.last().expect("it was opened");
    assert!(opened.replay && !opened.from_snapshot && opened.frames.is_some_and(|n| n > 0));
    drop(asked);
    assert_eq!(replay("nobody").problem().code, "unknown_session");
    let problem = client.post(&format!("/api/v1/sessions/{id}/replay"), &json!({"frames": 3})).problem();
    assert_eq!(problem.code, "unknown_field");
    // One that continues another begins where that one began.
    let fork: GenerateReply =
        client.post(&format!("/api/v1/sessions/{id}/fork"), &json!({"interactive": false, "frames": 6})).json();
    eventually("it is done", || client.status(&fork.id).state == State::Done);
    assert_eq!(replay(&fork.id).status, 202);
    eventually("it opens", || {
        let asked = peer.asked.lock().expect("no panic");
        asked.opened.last().is_some_and(|o| o.replay && o.from_snapshot && o.frames == Some(6))
    });
    eventually("all are done", || {
        client
            .get("/api/v1/status")
            .json::<DaemonStatus>()
            .sessions
            .iter()
            .all(|s| s.interactive || s.state == State::Done)
    });
}

#[test]
fn generations_wait_in_a_queue_and_move_up() {
    let mut api = Api::start("queue");
    let peer = api.worker_up(Duration::from_millis(20));
    let client = api.local();
    let ids: Vec<String> = (0..4).map(|_| client.generate(&clip(10_000)).id).collect();
    let position = |id: &str| client.status(id).queue_position;
    let wanted = [None, None, Some(1), Some(2)];
    assert_eq!(ids.iter().map(|id| position(id)).collect::<Vec<_>>(), wanted);
    assert_eq!(client.status(&ids[2]).state, State::Queued);
    let mut watch = client.watch(&ids[3]);
    let queued = watch.message(|m| matches!(m, ServerMessage::Queued { .. }));
    assert!(matches!(queued, ServerMessage::Queued { position: 2 }));
    // A cancelled one frees the worker for the next, at once.
    delete(&client, &format!("/api/v1/generate?id={}", ids[0]));
    eventually("the worker closes it", || !peer.asked.lock().expect("no panic").closed.is_empty());
    eventually("the third one runs", || client.status(&ids[2]).state == State::Running);
    let moved = watch.message(|m| matches!(m, ServerMessage::Queued { .. }));
    assert!(matches!(moved, ServerMessage::Queued { position: 1 }));
    // One that waits is cancelled without ever being opened.
    delete(&client, &format!("/api/v1/generate?id={}", ids[3]));
    assert_eq!(client.status(&ids[3]).state, State::Cancelled);
    assert_eq!(watch.close_code(), 1000);
    assert_eq!(peer.asked.lock().expect("no panic").opened.len(), 3);
    let more: Vec<String> = (0..limits::QUEUE_MAX).map(|_| client.generate(&clip(10_000)).id).collect();
    let reply = client.post("/api/v1/generate", &clip(1));
    assert_eq!((reply.status, reply.problem().code.as_str()), (429, "queue_full"));
    assert!(reply.header("retry-after").is_some());
    assert_eq!(position(more.last().expect("many")), Some(limits::QUEUE_MAX as u32));
    for id in ids.iter().chain(&more) {
        delete(&client, &format!("/api/v1/sessions/{id}"));
    }
    eventually("nothing is left of them", || api.stored_files().is_empty());
}

#[test]
fn sessions_that_began_with_more_than_words_go_on_after_a_restart() {
    let state = support::Scratch::new("kept-state");
    let start = |name| Api::start_with(name, |config| config.state.directory = state.path().to_path_buf());
    let kept = || std::fs::read_dir(state.path().join("sessions")).expect("a folder").count();
    let mut api = start("before");
    let peer = api.worker_up(Duration::from_millis(50));
    let client = api.local();
    let upload: Value = client
        .send("POST", "/api/v1/uploads", &[("Content-Type", "video/mp4")], &support::files::mp4(96, 64, 6))
        .json();
    let prompt = json!({"type": "canny", "upload": upload["id"]});
    let mut request = clip(200);
    (request["video_prompt"], request["from"]) = (prompt, upload["id"].clone());
    let led = client.generate(&request).id;
    request["interactive"] = json!(true);
    let played = client.generate(&request).id;
    let control = json!({"session": played, "seq": 1, "keys": ["W"], "instruction": "a storm begins"});
    assert_eq!(client.post("/api/v1/control", &control).status, 200);
    let replay = |client: &Client| client.post(&format!("/api/v1/sessions/{played}/replay"), &json!({}));
    eventually("enough of it is there to be made again", || {
        client.status(&played).frame_count > 12 && replay_frames(&client, &played) > 10
    });
    let again: GenerateReply = replay(&client).json();
    eventually("all of them are at work", || peer.asked.lock().expect("no panic").leads.len() == 3);
    // What they need is theirs: the upload may go.
    assert_eq!(delete(&client, &format!("/api/v1/uploads/{}", upload["id"].as_str().expect("an id"))).status, 204);
    let before = peer.asked.lock().expect("no panic").scripts.clone();
    api.hand_over();
    peer.kill();
    assert_eq!(kept(), 3 + 2 + 2 + 3, "records, and what each began with");

    let mut api = start("after");
    let peer = api.worker_up(Duration::ZERO);
    let client = api.local();
    eventually("they open again", || peer.asked.lock().expect("no panic").opened.len() == 3);
    let asked = peer.asked.lock().expect("no panic");
    let opened: Vec<_> = asked.opened.iter().map(|o| (o.session, o.from_pictures, o.keep_tick, o.replay)).collect();
    assert_eq!(opened, [(1, true, false, false), (2, false, true, false), (3, true, false, true)]);
    assert_eq!(asked.opened[1].instruction.as_deref(), Some("a storm begins"));
    assert!(asked.opened.iter().all(|o| o.video_prompt.as_deref() == Some("canny")));
    assert_eq!(asked.leads, [1, 2, 3].map(|n| (n, 6, (96, 64))));
    assert_eq!(asked.origins, [1, 3].map(|n| (n, 6, (96, 64))));
    assert_eq!(asked.scripts, before, "the same trace");
    drop(asked);
    for id in [&led, &again.id] {
        eventually("it is done", || client.status(id).state == State::Done);
        assert_eq!(client.get(&format!("/api/v1/videos/{id}/content")).status, 200);
    }
    assert_eq!(client.status(&again.id).frames, client.status(&again.id).frame_count as u32);
    let seen = client.status(&played).frame_count;
    eventually("the one that is played goes on", || client.status(&played).frame_count > seen);
    // It still knows what it began with.
    assert_eq!(replay(&client).status, 202);
    delete(&client, &format!("/api/v1/sessions/{played}"));
    api.settle();
    eventually("nothing is kept of what has ended", || kept() == 0);
}

/// Frames that a replay of a session would have now.
fn replay_frames(client: &Client, id: &str) -> u64 {
    let shown: SessionReply = client.get(&format!("/api/v1/sessions/{id}")).json();
    shown.value.map_or(0, |value| value.tick)
}

#[test]
fn a_request_sent_twice_begins_one_session() {
    let (api, peer) = Api::with_peer("twice");
    let client = api.local();
    let send = |path: &str, key: &str, body: &Value| {
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key)];
        client.send("POST", path, &headers, body.to_string().as_bytes())
    };
    let first = send("/api/v1/generate", "one", &clip(2));
    let again = send("/api/v1/generate", "one", &clip(2));
    assert_eq!((first.status, again.status), (202, 202));
    assert_eq!(first.json::<GenerateReply>().id, again.json::<GenerateReply>().id);
    assert_eq!((first.header("idempotency-replayed"), again.header("idempotency-replayed")), (None, Some("true")));
    let other = send("/api/v1/generate", "one", &clip(3));
    assert_eq!((other.status, other.problem().code.as_str()), (422, "idempotency_mismatch"));
    assert_eq!(send("/api/v1/generate", "two words", &clip(2)).problem().field.as_deref(), Some("Idempotency-Key"));
    // A refused request is not remembered.
    assert_eq!(send("/api/v1/generate", "bad", &clip(0)).problem().code, "invalid_field");
    assert_eq!(send("/api/v1/generate", "bad", &clip(1)).status, 202);
    // Many at the same time begin one session.
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            std::thread::spawn(move || {
                let headers = [("Content-Type", "application/json"), ("Idempotency-Key", "crowd")];
                client.send("POST", "/api/v1/generate", &headers, clip(5).to_string().as_bytes()).status
            })
        })
        .collect();
    let statuses: Vec<u16> = threads.into_iter().map(|t| t.join().expect("no panic")).collect();
    assert!(statuses.iter().all(|s| [202, 409].contains(s)), "{statuses:?}");
    eventually("three sessions in all", || peer.asked.lock().expect("no panic").opened.len() == 3);
}

#[test]
fn every_answer_tells_its_request_and_what_is_left() {
    let (api, _peer) = Api::with_peer("headers");
    let client = api.network();
    let reply = client.send("GET", "/api/v1/status", &[("X-Request-Id", "mine-1.a_b")], b"");
    assert_eq!(reply.header("x-request-id"), Some("mine-1.a_b"));
    assert_eq!(reply.header("ratelimit-policy"), Some("\"status\";q=120;w=60"));
    let left = reply.header("ratelimit").expect("what is left");
    assert!(left.starts_with("\"status\";r=11") && left.contains(";t="), "{left}");
    for bad in ["with space", "x".repeat(65).as_str(), "<script>", ""] {
        let reply = client.send("GET", "/api/v1/status?id=no", &[("X-Request-Id", bad)], b"");
        let id = reply.header("x-request-id").expect("an id of our own").to_string();
        assert!(id != bad && id.len() == 32, "{id}");
        assert_eq!(reply.problem().request_id.as_deref(), Some(id.as_str()));
    }
    for _ in 0..limits::GENERATE_PER_MINUTE {
        client.generate(&clip(1));
    }
    let reply = client.post("/api/v1/generate", &clip(1));
    assert_eq!(reply.status, 429);
    assert!(reply.header("ratelimit").is_some_and(|l| l.starts_with("\"generate\";r=0;")));
    assert_eq!(api.local().get("/api/v1/status").header("ratelimit"), None, "administrators are not counted");
    api.settle();
}

#[test]
fn a_token_and_its_address_are_counted() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = support::Scratch::new("token-rate");
    let file = scratch.path().join("tokens");
    std::fs::write(&file, "alice-0123456789\nbob-0123456789ab\n").expect("a temporary file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("our own file");
    let mut api = Api::start_with("tokenrate", |config| config.http.token_file = Some(file));
    let _peer = api.worker_up(Duration::ZERO);
    let client = api.network();
    let send = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        client.send("POST", "/api/v1/generate", &headers, clip(1).to_string().as_bytes()).status
    };
    for _ in 0..limits::GENERATE_PER_MINUTE / 2 {
        assert_eq!((send("alice-0123456789"), send("bob-0123456789ab")), (202, 202));
    }
    assert_eq!(send("bob-0123456789ab"), 429, "both share an address");
    for path in ["/metrics", "/v1/models", "/api/v1/models", "/v1/videos"] {
        assert_eq!(client.get(path).status, 401, "{path}");
    }
    for path in ["/", "/healthz", "/openapi.json"] {
        assert_eq!(client.get(path).status, 200, "{path}");
    }
    let document: Value = client.get("/openapi.json").json();
    assert_eq!(document["security"], json!([{"token": []}]));
    api.settle();
}

#[test]
fn the_models_words_and_the_counters_are_told() {
    let mut api = Api::start("models");
    let client = api.local();
    assert_eq!(client.get("/api/v1/models").json::<Value>()["items"], json!([]));
    let _peer = api.worker_up(Duration::ZERO);
    let models: Value = client.get("/api/v1/models").json();
    assert_eq!(models["items"][0]["id"], "test-pictures");
    assert_eq!(models["items"][0]["vocabulary"]["video_prompts"], json!(["canny"]));
    let id = client.play();
    client.watch(&id).frame();
    let text = String::from_utf8(client.get("/metrics").body).expect("text");
    let value = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|v| v.parse::<f64>().ok()).unwrap_or_else(|| panic!("{name} in\n{text}"))
    };
    assert!(value("gamegend_ready") == 1.0 && value("gamegend_frames_encoded_total{format=\"jpeg\"}") >= 1.0);
    assert!(value("gamegend_http_answers_total{status=\"2xx\"}") >= 3.0);
    let status: DaemonStatus = client.get("/api/v1/status").json();
    assert_eq!(status.sessions.len(), 1);
}
