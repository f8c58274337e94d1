//! Sessions as values and uploads, with real processes and the real model: what a replay shows is what was seen, and
//! what a client sends is read by a process of its own.

mod daemon;
#[path = "support/files.rs"]
#[allow(dead_code, reason = "every test program uses another part")]
mod files;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use daemon::{Daemon, PATIENCE};
use futures_util::{SinkExt, StreamExt};
use gamegend::proto::wire::{FRAME_HEADER_BYTES, FrameHeader};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

const PROMPT: &str =
    "third person view. a red knight walks forward in a green meadow during the day, with clear weather.";

/// Frames by tick, as they are seen.
type Seen = BTreeMap<u64, Vec<u8>>;

/// Watches a session; before frame `n` of those that come, sends the n-th of `controls` there are. Ends after `count`
/// frames, or with the session.
async fn watch(address: &str, id: &str, controls: &[(usize, Value)], count: usize) -> Seen {
    let url = format!("ws://{address}/ws/stream?session={id}");
    let (mut stream, _) = tokio_tungstenite::connect_async(url).await.expect("the stream opens");
    let (mut seen, mut seq) = (Seen::new(), 0);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while seen.len() < count {
        for (_, control) in controls.iter().filter(|(at, _)| *at == seen.len()) {
            seq += 1;
            let mut control = control.clone();
            (control["type"], control["seq"]) = (json!("control"), json!(seq));
            stream.send(Message::text(control.to_string())).await.expect("the stream takes a control");
        }
        let next = tokio::time::timeout_at(deadline, stream.next()).await.expect("frames come in time");
        match next {
            Some(Ok(Message::Binary(bytes))) => {
                let header = FrameHeader::decode(&bytes).expect("a frame has a header");
                seen.insert(header.tick, bytes[FRAME_HEADER_BYTES..].to_vec());
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            Some(Ok(_)) => {}
        }
    }
    seen
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime starts")
}

/// Compares frames of two views of one session; answers how many both had.
fn assert_same(one: &Seen, other: &Seen) -> usize {
    let both: Vec<u64> = one.keys().filter(|t| other.contains_key(t)).copied().collect();
    for tick in &both {
        assert!(one[tick] == other[tick], "tick {tick} differs");
    }
    both.len()
}

#[test]
fn a_replay_shows_byte_for_byte_what_was_played() {
    let host = Daemon::start("replay", "cpu");
    let runtime = runtime();
    let live = json!({ "prompt": PROMPT, "width": 128, "height": 96, "seed": 3, "steps": 1, "interactive": true });
    let id = host.generate(&live);
    let controls = [
        (4, json!({"keys": ["W"]})),
        (12, json!({"keys": ["W", "D"], "taps": ["SPACE"]})),
        (20, json!({"weather": "snow"})),
        (30, json!({"keys": ["A"]})),
        (36, json!({"instruction": "night"})),
    ];
    let seen = runtime.block_on(watch(&host.address, &id, &controls, 50));
    assert_eq!(host.delete(&format!("/api/v1/generate?id={id}")).status, 200);
    host.wait_until("its last state is stored", |d| d.status(&id)["links"]["poster"].is_string());
    let trace = host.get(&format!("/api/v1/sessions/{id}/trace")).expect("an answer").json();
    let kinds: Vec<&str> =
        trace["changes"].as_array().expect("a list").iter().filter_map(|c| c["type"].as_str()).collect();
    assert!(kinds.contains(&"keys") && kinds.contains(&"instruction"), "{trace}");
    let replay = |of: &str| -> (String, Seen) {
        let reply = host.post(&format!("/api/v1/sessions/{of}/replay"), &json!({}));
        assert_eq!(reply.status, 202, "{}", reply.text());
        let id = reply.json()["id"].as_str().expect("an id").to_string();
        let seen = runtime.block_on(watch(&host.address, &id, &[], usize::MAX));
        host.wait_done(&id);
        (id, seen)
    };
    let (again, replayed) = replay(&id);
    let same = assert_same(&seen, &replayed);
    println!("{same} of {} frames that were seen live were seen again in the replay, identical", seen.len());
    assert!(same >= 20, "only {same} frames were seen in both");
    // The stored video of the replay is a value, too: a replay of the replay gives the same file.
    let video = |id: &str| host.get(&format!("/api/v1/videos/{id}/content")).expect("an answer").body;
    let (twice, _) = replay(&again);
    assert!(video(&again).len() > 1000 && video(&again) == video(&twice), "a replay of the replay differs");
    // A fork that goes on from here is replayed from where it began, also after a restart of the worker.
    let fork = host.post(&format!("/api/v1/sessions/{id}/fork"), &json!({"interactive": false, "frames": 12})).json();
    let fork = fork["id"].as_str().expect("an id").to_string();
    host.wait_done(&fork);
    let worker = host.get("/api/v1/status").expect("an answer").json()["worker"]["pid"].as_u64().expect("a worker");
    daemon::signal(worker as u32, "KILL");
    host.wait_until("another worker is there", |d| {
        let status = d.get("/api/v1/status").expect("an answer");
        status.status == 200 && status.json()["worker"]["pid"].as_u64().is_some_and(|p| p != worker)
    });
    let (replayed_fork, _) = replay(&fork);
    assert!(video(&fork) == video(&replayed_fork), "a replay of a continuation differs");
}

/// Sends a body of another type than JSON.
fn send(host: &Daemon, path: &str, kind: &str, body: &[u8]) -> (u16, Value) {
    let mut stream = TcpStream::connect(&host.address).expect("the daemon listens");
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        host.address,
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("the daemon reads");
    stream.write_all(body).expect("the daemon reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    let body = text.split_once("\r\n\r\n").expect("a body").1;
    (status, serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}")))
}

#[test]
fn uploads_are_read_by_a_process_of_their_own_and_continued_by_the_model() {
    let host = Daemon::start("uploads", "cpu");
    let known = host.get("/api/v1/models").expect("an answer").json();
    let known = known["items"][0]["vocabulary"]["video_prompts"].as_array().expect("a list").clone();
    let (status, clip) = send(&host, "/api/v1/uploads", "video/mp4", &files::mp4(160, 96, 24));
    assert_eq!(status, 201, "{clip}\n{}", host.log());
    assert_eq!((&clip["frames"], &clip["width"]), (&json!(24), &json!(160)));
    let preview = clip["links"]["preview"].as_str().expect("a link");
    let edges = host.get(&format!("{preview}?type=canny&index=5")).expect("an answer");
    assert_eq!((edges.status, &edges.body[..2]), (200, &b"\xff\xd8"[..]));
    // A file that claims billions of pixels costs a decoder, and nobody else anything.
    let (status, refused) = send(&host, "/api/v1/uploads", "image/png", &files::picture_bomb(60_000, 60_000));
    assert_eq!((status, &refused["code"]), (422, &json!("upload_refused")), "{refused}");
    let base = json!({ "prompt": PROMPT, "width": 128, "height": 96, "frames": 8, "seed": 5, "steps": 1 });
    let with = |field: &str, value: Value| {
        let mut request = base.clone();
        request[field] = value;
        request
    };
    let plain = host.generate(&base);
    host.wait_done(&plain);
    let from = host.generate(&with("from", clip["id"].clone()));
    host.wait_done(&from);
    let poster = |id: &str| host.get(&format!("/api/v1/videos/{id}/poster")).expect("an answer").body;
    assert!(poster(&plain) != poster(&from), "the upload has no influence");
    let frame = host.get(&format!("/api/v1/videos/{from}/frames/7")).expect("an answer");
    assert_eq!((frame.status, &frame.body[1..4]), (200, &b"PNG"[..]));
    // The types that the model was trained for lead a clip, the others are refused with what there is.
    for kind in ["canny", "motion_vectors", "pose"] {
        let prompt = json!({"type": kind, "upload": clip["id"]});
        if known.contains(&json!(kind)) {
            let led = host.generate(&with("video_prompt", prompt));
            host.wait_done(&led);
            assert!(poster(&led) != poster(&plain), "{kind} has no influence");
            continue;
        }
        let reply = host.post("/api/v1/generate", &with("video_prompt", prompt));
        assert_eq!((reply.status, &reply.json()["code"]), (422, &json!("video_prompts_unsupported")), "{kind}");
    }
    confined_decoders(&host);
}

/// A copy of the model, with its judges or without.
fn model_folder(name: &str, judges: bool) -> daemon::TempDir {
    let dir = daemon::TempDir::new(name);
    copy(&daemon::model_dir(), &dir.0);
    if !judges {
        fs::remove_dir_all(dir.0.join("judges")).expect("a copy of our own");
    }
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the temporary directory is writable");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), &to).expect("a file that can be read")),
        }
    }
}

#[test]
fn poses_are_taken_from_pictures_where_the_model_has_what_finds_them() {
    const WALK: [&[u8]; 2] = [include_bytes!("data/walk_0.png"), include_bytes!("data/walk_1.png")];
    let files = WALK.map(|file| ("walk.png", file.to_vec()));
    let upload = |host: &Daemon| {
        let (status, upload) =
            send(host, "/api/v1/uploads", "multipart/form-data; boundary=XX", &files::form("XX", &files));
        assert_eq!(status, 201, "{upload}\n{}", host.log());
        upload
    };
    let preview = |host: &Daemon, upload: &Value, kind: &str| {
        let link = upload["links"]["preview"].as_str().expect("a link");
        host.get(&format!("{link}?index=1&type={kind}")).expect("an answer")
    };
    let folder = model_folder("with-judges", true);
    let host = Daemon::start_on("poses", "cpu", &folder.0);
    let walk = upload(&host);
    assert_eq!(walk["previews"], json!(["canny", "motion_vectors", "pose"]));
    for kind in ["canny", "motion_vectors", "pose"] {
        let reply = preview(&host, &walk, kind);
        assert_eq!(
            (reply.status, &reply.body[..2]),
            (200, &b"\xff\xd8"[..]),
            "{kind}: {}\n{}",
            reply.text(),
            host.log()
        );
    }
    let reply = preview(&host, &walk, "pose");
    let image = turbojpeg::decompress(&reply.body, turbojpeg::PixelFormat::RGB).expect("a JPEG");
    let lit = image.pixels.chunks(3).filter(|p| p.iter().any(|v| *v > 100)).count();
    assert!((100..10_000).contains(&lit), "limbs on black: {lit} pixels");
    confined_decoders(&host);
    // What is there and broken is as good as none; the log says why.
    fs::write(folder.0.join("judges/pose/config.json"), "{}").expect("our own copy");
    let reply = preview(&host, &walk, "pose");
    assert_eq!((reply.status, &reply.json()["code"]), (422, &json!("video_prompts_unsupported")), "{}", reply.text());
    host.wait_until("the log says why", |d| d.log().contains("use the pose judge: judges/pose/config.json"));
    drop(host);

    let folder = model_folder("without-judges", false);
    let host = Daemon::start_on("no-poses", "cpu", &folder.0);
    let walk = upload(&host);
    assert_eq!(walk["previews"], json!(["canny", "motion_vectors"]));
    let problem = preview(&host, &walk, "pose").json();
    assert_eq!((&problem["code"], &problem["field"]), (&json!("video_prompts_unsupported"), &json!("type")));
    assert_eq!(problem["allowed"], json!("canny, motion_vectors"));
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("has no pose judge (judges/pose)")), "{problem}");
}

/// The decoders so far said what protects them, and none fell over.
fn confined_decoders(host: &Daemon) {
    let log = host.log();
    assert!(!log.contains("panicked"), "{log}");
    if let Some(line) = log.lines().find(|l| l.contains("protections of decoder")) {
        println!("{line}");
        if cfg!(target_os = "linux") {
            assert!(line.contains("seccomp"), "{line}");
        }
    } else {
        panic!("no decoder said what protects it:\n{log}");
    }
}

#[test]
fn a_session_is_saved_loaded_forked_and_replayed_from_the_terminal() {
    let daemon = Daemon::start("ctl-values", "cpu");
    let id = daemon.generate(&json!({ "prompt": PROMPT, "width": 128, "height": 96, "seed": 5, "steps": 1,
        "interactive": true }));
    // A session makes frames while somebody watches; a snapshot once a second.
    assert!(runtime().block_on(watch(&daemon.address, &id, &[], 60)).len() >= 60);
    let ran = |words: &[&str]| {
        let output = daemon.ctl(words);
        assert!(output.status.success(), "{words:?}: {output:?}\n{}", daemon.log());
        String::from_utf8(output.stdout).expect("text").trim().to_string()
    };
    let saved = ran(&["save", &id[..12]]);
    assert_eq!(daemon.status(&saved)["state"], "done");
    let file = |name: &str| daemon.dir.0.join(name).display().to_string();
    let (loaded, forked, replayed) = (file("loaded.mp4"), file("forked.mp4"), file("replayed.mp4"));
    let said =
        ran(&["generate", "--from", &saved, "--prompt", PROMPT, "--size", "128x96", "--frames", "8", "-o", &loaded]);
    assert!(said.contains("8 frames of 128x96"), "{said}");
    for (from, to) in [(&saved, &loaded), (&id, &forked)] {
        let shape = ["--prompt", PROMPT, "--size", "128x96", "--frames", "8"];
        let said = ran(&[&["generate", "--from", from, "-o", to][..], &shape].concat());
        assert!(said.contains("8 frames of 128x96"), "{said}");
    }
    let said = ran(&["replay", &saved, "-o", &replayed]);
    assert!(said.contains("frames of 128x96, seed 5"), "{said}");
    for path in [loaded, forked, replayed] {
        assert_eq!(&std::fs::read(path).expect("it was written")[4..8], b"ftyp");
    }
    assert_eq!(daemon.ctl(&["save", "ffffffffffffffffffffffffffffffff"]).status.code(), Some(66));
    assert_eq!(daemon.ctl(&["replay", &saved, "-o", "/nonexistent/x.mp4"]).status.code(), Some(73));
}
