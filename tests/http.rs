//! The api role from outside: real sockets, real frame rings, a test worker instead of a model.

mod support;

use std::time::{Duration, Instant};

use gamegend::proto::api::{DaemonStatus, ServerMessage, SessionStatus, State};
use gamegend::proto::limits;
use gamegend::proto::wire::{FLAG_RECOVERED, Format};
use serde_json::{Value, json};
use support::client::{Client, Got};
use support::{Api, eventually};
use tokio_tungstenite::tungstenite;

fn clip(frames: u32) -> Value {
    json!({"prompt": "a snowy forest", "width": 96, "height": 64, "frames": frames, "fps": 24, "seed": 5})
}

fn wait_for(client: &Client, id: &str, state: State) -> SessionStatus {
    eventually(&format!("{id} is {state:?}"), || client.status(id).state == state);
    client.status(id)
}

#[test]
fn a_generation_becomes_a_video_with_every_frame() {
    let (api, peer) = Api::with_peer("video");
    for client in [api.network(), api.local()] {
        let reply = client.generate(&clip(60));
        let mut watch = client.watch(&reply.id);
        let Got::Message(ServerMessage::Hello { session, width, height, interactive, vocabulary, .. }) = watch.next()
        else {
            panic!("hello comes first")
        };
        assert_eq!((session, width, height, interactive), (reply.id.clone(), 96, 64, false));
        assert_eq!(*vocabulary, support::peer::vocabulary());
        let bye = watch.message(|m| matches!(m, ServerMessage::Bye { .. }));
        assert!(matches!(bye, ServerMessage::Bye { reason } if reason == "done"));
        assert_eq!(watch.close_code(), 1000);

        let status = wait_for(&client, &reply.id, State::Done);
        assert_eq!((status.progress, status.frame_count, status.frames, status.seed), (1.0, 60, 60, 5));
        let video = client.get(&status.links.video.expect("it is stored"));
        assert_eq!((video.status, video.header("content-type")), (200, Some("video/mp4")));
        let mp4 = re_mp4::Mp4::read_bytes(&video.body).expect("an MP4");
        let track = mp4.tracks().values().next().expect("one track");
        assert_eq!((track.width, track.height, track.samples.len()), (96, 64, 60));
        let poster = client.get(&status.links.poster.expect("it is stored"));
        let header = turbojpeg::read_header(&poster.body).expect("a JPEG");
        assert_eq!((header.width, header.height), (96, 64));
    }
    let asked = peer.asked.lock().expect("no panic");
    assert_eq!(asked.opened.len(), 2);
    assert_eq!((asked.opened[0].frames, asked.opened[0].steps), (Some(60), 2));
}

#[test]
fn a_player_reads_parts_of_a_video() {
    let (api, _peer) = Api::with_peer("range");
    let client = api.local();
    let id = client.generate(&clip(3)).id;
    wait_for(&client, &id, State::Done);
    let path = format!("/api/v1/video?id={id}");
    let whole = client.get(&path).body;
    let part = client.send("GET", &path, &[("Range", "bytes=4-7")], b"");
    assert_eq!((part.status, part.body.as_slice()), (206, &b"ftyp"[..]));
    assert_eq!(part.header("content-range"), Some(format!("bytes 4-7/{}", whole.len()).as_str()));
    assert_eq!(client.send("GET", &path, &[("Range", "bytes=99999999-")], b"").status, 416);
}

#[test]
fn a_live_session_obeys_keys_and_tells_which() {
    let (api, peer) = Api::with_peer("live");
    let client = api.network();
    let id = client.play();
    let mut watch = client.watch(&id);
    let (first, jpeg) = watch.frame();
    assert_eq!((first.format, first.width, first.height, first.seq), (Format::Jpeg, 96, 64, 0));
    let picture = turbojpeg::decompress(&jpeg, turbojpeg::PixelFormat::RGB).expect("a JPEG");
    assert_eq!((picture.width, picture.height), (96, 64));
    watch.say(r#"{"type":"control","seq":1,"keys":["W"]}"#);
    let reflected = |watch: &mut support::client::Watch, seq: u32| {
        let begin = Instant::now();
        while watch.frame().0.seq < seq {
            assert!(begin.elapsed() < Duration::from_secs(5), "no frame reflects control {seq}");
        }
    };
    reflected(&mut watch, 1);
    // Three in one packet: only the last can be reflected, the others are acknowledged as superseded.
    for seq in 2..5 {
        watch.say(&format!(r#"{{"type":"control","seq":{seq},"keys":["A"]}}"#));
    }
    let superseded = watch.message(|m| matches!(m, ServerMessage::Superseded { .. }));
    assert!(matches!(superseded, ServerMessage::Superseded { seq, by } if by == seq + 1), "{superseded:?}");
    watch.say(r#"{"type":"control","seq":9,"weather":"snow","instruction":"a storm begins"}"#);
    reflected(&mut watch, 9);
    assert_eq!(peer.asked.lock().expect("no panic").instructions, [(9, Some("a storm begins".to_string()))]);
    let reply = client.post("/api/v1/control", &json!({"session": id, "seq": 12, "taps": ["SPACE"]}));
    assert_eq!(reply.json::<SessionStatus>().id, id);
    reflected(&mut watch, 12);
    let status = client.status(&id);
    assert_eq!((status.state, status.viewers, status.interactive), (State::Running, 1, true));
    let stop = client.send("DELETE", &format!("/api/v1/generate?id={id}"), &[], b"");
    assert_eq!(stop.json::<SessionStatus>().state, State::Done);
    assert_eq!(watch.close_code(), 1000);
    eventually("the worker closes it", || peer.asked.lock().expect("no panic").closed == [1]);
}

#[test]
fn a_slow_viewer_gets_the_newest_frame() {
    let (api, _peer) = Api::with_peer("slow");
    let client = api.network();
    let request = json!({"prompt": "x", "width": 640, "height": 384, "fps": 60, "interactive": true});
    let id = client.generate(&request).id;
    let mut watch = client.watch(&id);
    watch.frame();
    std::thread::sleep(Duration::from_secs(2));
    let newest = client.status(&id).frame_count;
    // What the kernel buffered meanwhile is old; after it the stream is at the present, not two seconds behind.
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut tick = 0;
    while Instant::now() < deadline && tick < newest {
        let next = watch.frame().0.tick;
        assert!(next > tick, "frames never go back");
        tick = next;
    }
    assert!(tick >= newest, "at {tick} of {newest}");
}

#[test]
fn cancelling_really_stops_and_leaves_nothing() {
    let mut api = Api::start("cancel");
    let peer = api.worker_up(Duration::from_millis(20));
    let client = api.local();
    let id = client.generate(&clip(10_000)).id;
    eventually("it records", || client.status(&id).frame_count > 3);
    assert_eq!(api.stored_files(), [format!("{id}.mp4.partial")]);
    let early = client.get(&format!("/api/v1/video?id={id}"));
    assert_eq!((early.status, early.problem().code.as_str()), (409, "no_object"));
    let reply = client.send("DELETE", &format!("/api/v1/generate?id={id}"), &[], b"");
    assert_eq!(reply.json::<SessionStatus>().state, State::Cancelled);
    eventually("the worker closes it", || peer.asked.lock().expect("no panic").closed == [1]);
    eventually("the partial file is gone", || api.stored_files().is_empty());
    let made = peer.asked.lock().expect("no panic").made[&1];
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(peer.asked.lock().expect("no panic").made[&1], made, "no frame after the cancellation");
    assert_eq!(client.status(&id).state, State::Cancelled);
}

#[test]
fn sessions_survive_the_loss_of_a_worker() {
    let mut api = Api::start("recover");
    let peer = api.worker_up(Duration::from_millis(10));
    let client = api.local();
    let live = client.play();
    let stored = client.generate(&clip(120)).id;
    let mut watch = client.watch(&live);
    watch.say(r#"{"type":"control","seq":1,"keys":["D"],"weather":"rain"}"#);
    eventually("the recording is half way", || client.status(&stored).frame_count > 40);
    let (before, _) = watch.frame();
    peer.kill();
    api.worker_down("worker 1 was killed by signal 9", true);
    let recovering = watch.message(|m| matches!(m, ServerMessage::Recovering { .. }));
    assert!(matches!(recovering, ServerMessage::Recovering { .. }));
    assert_eq!(client.status(&stored).state, State::Recovering);
    assert_eq!(client.get("/api/v1/status").json::<DaemonStatus>().state, "recovering");
    let peer = api.worker_up(Duration::from_millis(1));
    let after = loop {
        let (header, _) = watch.frame();
        if header.flags & FLAG_RECOVERED != 0 {
            break header;
        }
    };
    assert!(after.tick + 10 > before.tick, "ticks go on: {} after {}", after.tick, before.tick);
    assert_eq!(after.seq, 1, "keys are still held");
    let status = wait_for(&client, &stored, State::Done);
    let video = client.get(&status.links.video.expect("it is stored")).body;
    let mp4 = re_mp4::Mp4::read_bytes(&video).expect("an MP4");
    assert_eq!(mp4.tracks().values().next().expect("one track").samples.len(), 120, "no frame is lost or doubled");
    let asked = peer.asked.lock().expect("no panic");
    assert!(asked.opened.iter().all(|o| o.from_snapshot && o.keep_tick));
    assert_eq!(asked.opened[0].environment.weather.as_deref(), Some("rain"));
}

#[test]
fn a_worker_that_stays_away_fails_its_sessions() {
    let (api, peer) = Api::with_peer("away");
    let client = api.local();
    let id = client.play();
    let mut watch = client.watch(&id);
    peer.kill();
    api.worker_down("the model is damaged", false);
    let error = watch.message(|m| matches!(m, ServerMessage::Error { .. }));
    assert!(matches!(error, ServerMessage::Error { problem } if problem.code == "worker_failed"));
    let status = wait_for(&client, &id, State::Failed);
    assert!(status.error.expect("why").detail.contains("the model is damaged"));
    assert_eq!(client.post("/api/v1/generate", &clip(1)).problem().code, "worker_unavailable");
}

#[test]
fn a_clip_continues_another_and_a_live_session() {
    let (api, peer) = Api::with_peer("from");
    let client = api.local();
    let first = client.generate(&clip(10)).id;
    wait_for(&client, &first, State::Done);
    let live = client.play();
    eventually("it runs", || client.status(&live).frame_count > 6);
    for from in [&first, &live] {
        let mut request = clip(5);
        request["from"] = json!(from);
        let id = client.generate(&request).id;
        wait_for(&client, &id, State::Done);
    }
    let stop = client.send("DELETE", &format!("/api/v1/generate?id={live}"), &[], b"");
    assert_eq!(stop.status, 200);
    eventually("an ended session can be continued", || {
        let mut request = clip(2);
        request["from"] = json!(live);
        client.post("/api/v1/generate", &request).status == 202
    });
    let asked = peer.asked.lock().expect("no panic");
    assert!(asked.opened[2..].iter().all(|o| o.from_snapshot && !o.keep_tick));
    drop(asked);
    let mut request = clip(5);
    request["from"] = json!(first);
    request["width"] = json!(128);
    let problem = client.post("/api/v1/generate", &request).problem();
    assert_eq!((problem.code.as_str(), problem.field.as_deref()), ("origin_mismatch", Some("from")));
    api.settle();
}

#[test]
fn bad_requests_name_the_field_and_the_range() {
    let (api, _peer) = Api::with_peer("bad");
    let client = api.local();
    let with = |field: &str, value: Value| {
        let mut request = clip(5);
        request[field] = value;
        request
    };
    for (request, code, field) in [
        (with("prompt", json!("")), "invalid_field", "prompt"),
        (with("prompt", json!("x".repeat(2001))), "invalid_field", "prompt"),
        (with("width", json!(63)), "invalid_field", "width"),
        (with("width", json!(101)), "invalid_field", "width"),
        (with("height", json!(100_000)), "invalid_field", "height"),
        (with("frames", json!(0)), "invalid_field", "frames"),
        (with("frames", json!(100_000)), "invalid_field", "frames"),
        (with("fps", json!("fast")), "invalid_field", "fps"),
        (with("steps", json!(3)), "invalid_field", "steps"),
        (with("perspective", json!("second")), "invalid_field", "perspective"),
        (with("from", json!("nobody")), "unknown_session", "from"),
        (with("colour", json!("red")), "unknown_field", "colour"),
        (json!({"width": 64}), "missing_field", "prompt"),
    ] {
        let problem = client.post("/api/v1/generate", &request).problem();
        assert_eq!((problem.code.as_str(), problem.field.as_deref()), (code, Some(field)), "{problem:?}");
        assert!(problem.allowed.is_some_and(|a| !a.is_empty()), "{field}: what is allowed is missing");
    }
    let id = client.play();
    for (request, code, field) in [
        (json!({"session": id, "seq": 0}), "invalid_field", Some("seq")),
        (json!({"session": id, "seq": 1, "keys": ["Q"]}), "invalid_field", Some("keys")),
        (json!({"session": id, "seq": 1, "weather": "frogs"}), "invalid_field", Some("weather")),
        (json!({"session": id, "seq": 1, "instruction": ""}), "invalid_field", Some("instruction")),
        (json!({"session": id, "seq": 1, "keyz": []}), "unknown_field", Some("keyz")),
        (json!({"seq": 1}), "missing_field", Some("session")),
        (json!({"session": "nobody", "seq": 1}), "unknown_session", None),
    ] {
        let problem = client.post("/api/v1/control", &request).problem();
        assert_eq!((problem.code.as_str(), problem.field.as_deref()), (code, field), "{problem:?}");
    }
    let json = [("Content-Type", "application/json")];
    assert_eq!(client.send("POST", "/api/v1/generate", &json, b"{").problem().code, "invalid_json");
    assert_eq!(client.send("POST", "/api/v1/generate", &[], b"{}").problem().code, "unsupported_media_type");
    let large = vec![b' '; limits::BODY_BYTES_MAX + 1];
    assert_eq!(client.send("POST", "/api/v1/generate", &json, &large).problem().code, "body_too_large");
    assert_eq!(client.get("/api/v1/status?id=nobody").problem().code, "unknown_session");
    assert_eq!(client.get("/api/v1/video").problem().field.as_deref(), Some("id"));
    assert_eq!(client.get("/nothing/here").problem().code, "not_found");
    let reply = client.send("PUT", "/api/v1/generate", &[], b"");
    assert_eq!((reply.status, reply.problem().code.as_str()), (405, "method_not_allowed"));
    assert!(reply.header("allow").is_some_and(|a| a.contains("POST") && a.contains("DELETE")));
    assert_eq!(client.get("/ws/stream?session=nobody").problem().code, "unknown_session");
}

#[test]
fn a_malformed_message_keeps_the_stream_and_an_oversized_one_ends_it() {
    let (api, _peer) = Api::with_peer("ws");
    let client = api.network();
    let id = client.play();
    let mut watch = client.watch(&id);
    let not_utf8_nor_json = tungstenite::Message::Binary(vec![0xff, 0xfe].into());
    watch.socket.send(not_utf8_nor_json).expect("the daemon reads");
    for text in ["{", "[]", r#"{"type":"dance"}"#, r#"{"type":"control","seq":1,"keys":["Q"]}"#] {
        watch.say(text);
    }
    let mut codes = Vec::new();
    while codes.len() < 5 {
        if let ServerMessage::Error { problem } = watch.message(|m| matches!(m, ServerMessage::Error { .. })) {
            codes.push((problem.code, problem.field));
        }
    }
    let field = |f: &str| Some(f.to_string());
    let expected = [
        ("invalid_json", None),
        ("invalid_json", None),
        ("invalid_json", None),
        ("invalid_field", field("type")),
        ("invalid_field", field("keys")),
    ];
    assert_eq!(codes, expected.map(|(c, f)| (c.to_string(), f)));
    watch.frame();
    watch.say(&" ".repeat(limits::WS_MESSAGE_BYTES_MAX + 1));
    assert_eq!(watch.close_code(), 1009);
    assert_eq!(client.status(&id).state, State::Running, "the session is not to blame");
}

#[test]
fn clients_are_limited_and_told_when_to_come_back() {
    let (api, _peer) = Api::with_peer("rate");
    let network = api.network();
    for _ in 0..limits::GENERATE_PER_MINUTE {
        network.generate(&clip(1));
    }
    let reply = network.post("/api/v1/generate", &clip(1));
    assert_eq!((reply.status, reply.problem().code.as_str()), (429, "rate_limited"));
    let seconds: u64 = reply.header("retry-after").expect("when").parse().expect("seconds");
    assert!((1..=7).contains(&seconds), "{seconds} s");
    api.local().generate(&clip(1));
    api.settle();
}

#[test]
fn another_site_cannot_reach_the_daemon_through_a_browser() {
    let (api, _peer) = Api::with_peer("origin");
    let client = api.network();
    assert_eq!(client.send("GET", "/api/v1/status", &[("Host", "evil.example")], b"").problem().code, "cross_origin");
    let evil = [("Origin", "http://evil.example"), ("Content-Type", "application/json")];
    let body = clip(1).to_string();
    let reply = client.send("POST", "/api/v1/generate", &evil, body.as_bytes());
    assert_eq!((reply.status, reply.problem().code.as_str()), (403, "cross_origin"));
    let id = client.play();
    let refused = client.try_watch(&id, &[("Origin", "http://evil.example")]).err().expect("refused");
    assert!(matches!(refused, tungstenite::Error::Http(r) if r.status() == 403));
    let own = format!("http://{}", api.address);
    client.try_watch(&id, &[("Origin", &own)]).expect("the page itself may");
}

#[test]
fn a_token_file_guards_the_network_and_owners_are_kept_apart() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = support::Scratch::new("tokens");
    let file = scratch.path().join("tokens");
    std::fs::write(&file, "alice-0123456789\nbob-0123456789ab\n").expect("a temporary file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("our own file");
    let mut api = Api::start_with("token", |config| config.http.token_file = Some(file));
    let _peer = api.worker_up(Duration::ZERO);
    let client = api.network();
    let reply = client.get("/api/v1/status");
    assert_eq!((reply.status, reply.problem().code.as_str()), (401, "unauthorized"));
    assert!(reply.header("www-authenticate").is_some());
    let id = api.local().play();
    let seen = |token: &str| {
        let header = format!("Bearer {token}");
        let reply = client.send("GET", "/api/v1/status", &[("Authorization", &header)], b"");
        reply.json::<DaemonStatus>().sessions.len()
    };
    let body = json!({"prompt": "x", "width": 64, "height": 64, "interactive": true}).to_string();
    let alice = [("Authorization", "Bearer alice-0123456789"), ("Content-Type", "application/json")];
    let reply = client.send("POST", "/api/v1/generate", &alice, body.as_bytes());
    let hers: gamegend::proto::api::GenerateReply = reply.json();
    assert_eq!((seen("alice-0123456789"), seen("bob-0123456789ab")), (1, 0));
    let protocol = |token: &str| format!("gamegend.1, gamegend.token.{token}");
    let stream = |id: &str, token: &str| {
        client.try_watch(id, &[("Sec-WebSocket-Protocol", &protocol(token))]).map(|mut w| w.frame().0.width).ok()
    };
    assert_eq!(stream(&hers.id, "alice-0123456789"), Some(64));
    assert_eq!(stream(&hers.id, "bob-0123456789ab"), None);
    assert_eq!(stream(&id, "alice-0123456789"), None, "the administrator's session is not hers");
    let all: DaemonStatus = api.local().get("/api/v1/status").json();
    assert_eq!(all.sessions.len(), 2, "the administrator sees both");
}

#[test]
fn a_drain_finishes_recordings_and_says_goodbye() {
    let mut api = Api::start("drain");
    let _peer = api.worker_up(Duration::from_millis(5));
    let client = api.local();
    let stored = client.generate(&clip(60)).id;
    let live = client.play();
    let mut watch = client.watch(&live);
    watch.frame();
    api.drain();
    let bye = watch.message(|m| matches!(m, ServerMessage::Bye { .. }));
    assert!(matches!(bye, ServerMessage::Bye { reason } if reason == "the daemon is stopping"));
    assert_eq!(client.post("/api/v1/generate", &clip(1)).problem().code, "draining");
    assert_eq!(format!("{:?}", api.wait()), format!("{:?}", std::process::ExitCode::SUCCESS));
    let files = api.stored_files();
    assert!(files.contains(&format!("{stored}.json")) && files.contains(&format!("{stored}.mp4")), "{files:?}");
    assert!(files.iter().all(|f| !f.ends_with(".partial")), "{files:?}");
}

#[test]
fn status_tells_the_daemon_the_worker_and_the_sessions() {
    let mut api = Api::start("status");
    let client = api.local();
    let status: DaemonStatus = client.get("/api/v1/status").json();
    assert_eq!((status.state.as_str(), status.worker.is_none()), ("starting", true));
    assert_eq!(client.get("/readyz").status, 503);
    assert_eq!(client.get("/healthz").status, 200);
    assert_eq!(client.post("/api/v1/generate", &clip(1)).problem().code, "worker_unavailable");
    let _peer = api.worker_up(Duration::ZERO);
    let id = client.play();
    eventually("the worker tells its load", || {
        let status: DaemonStatus = client.get("/api/v1/status").json();
        status.worker.is_some_and(|w| w.stats.sessions == 1 && w.device == "test pictures")
    });
    eventually("the rate is near that of the session", || (client.status(&id).frames_per_second - 24.0).abs() < 4.0);
    let status: DaemonStatus = client.get("/api/v1/status").json();
    assert_eq!((status.state.as_str(), status.sessions.len()), ("ready", 1));
}
#[test]
fn the_page_is_served_with_a_strict_policy() {
    let (api, _peer) = Api::with_peer("page");
    let client = api.network();
    let page = client.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let text = String::from_utf8(page.body.clone()).expect("UTF-8");
    assert!(text.contains("<title>") && !text.contains("<script>") && !text.contains("style=\""));
    for name in ["app.js", "style.css", "icon.svg"] {
        assert!(text.contains(name), "{name} is used");
        assert_eq!(client.get(&format!("/{name}")).status, 200);
    }
    let tag = page.header("etag").expect("a tag").to_string();
    assert_eq!(client.send("GET", "/", &[("If-None-Match", &tag)], b"").status, 304);
}
