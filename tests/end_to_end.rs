//! The whole system as a user meets it: real processes, the real model, the real sockets.

mod daemon;

use std::process::Command;
use std::time::{Duration, Instant};

use daemon::{Daemon, PATIENCE, TempDir, available, skip};
use futures_util::{SinkExt, StreamExt};
use gamegend::proto::wire::{FLAG_RECOVERED, FRAME_HEADER_BYTES, FrameHeader};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

const PROMPT: &str =
    "third person view. a red knight walks forward in a green meadow during the day, with clear weather.";

fn clip(frames: u32, seed: u64) -> Value {
    json!({ "prompt": PROMPT, "width": 128, "height": 96, "frames": frames, "seed": seed, "steps": 1 })
}

fn live(seed: u64) -> Value {
    json!({ "prompt": PROMPT, "width": 320, "height": 192, "seed": seed, "steps": 1, "interactive": true })
}

/// What ffprobe says about the first video stream: width, height and the number of frames it decodes.
fn probe(path: &std::path::Path) -> (u64, u64, u64) {
    let out = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-select_streams", "v:0", "-of", "json"])
        .args(["-show_entries", "stream=width,height,nb_read_frames"])
        .arg(path)
        .output()
        .expect("ffprobe is there");
    let v: Value = serde_json::from_slice(&out.stdout).expect("ffprobe writes JSON");
    let s = &v["streams"][0];
    let frames = s["nb_read_frames"].as_str().and_then(|n| n.parse().ok()).unwrap_or(0);
    (s["width"].as_u64().unwrap_or(0), s["height"].as_u64().unwrap_or(0), frames)
}

/// Collects frames of a session over the WebSocket while `keys` are held, until `count` frames that reflect them came.
/// Returns the JPEGs of all frames after the control was latched and every text message.
async fn watch(address: &str, id: &str, keys: &[&str], count: usize) -> (Vec<(FrameHeader, Vec<u8>)>, Vec<Value>) {
    let url = format!("ws://{address}/ws/stream?session={id}");
    let (mut ws, _) = tokio_tungstenite::connect_async(url).await.expect("the stream opens");
    let control = json!({ "type": "control", "seq": 1, "keys": keys });
    ws.send(Message::text(control.to_string())).await.expect("the stream takes a control");
    let (mut frames, mut texts) = (Vec::new(), Vec::new());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while frames.len() < count {
        let message = tokio::time::timeout_at(deadline, ws.next()).await;
        match message.expect("frames come in time").expect("the stream stays open").expect("the stream is sound") {
            Message::Binary(bytes) => {
                let header = FrameHeader::decode(&bytes).expect("a frame has a header");
                if header.seq >= 1 {
                    frames.push((header, bytes[FRAME_HEADER_BYTES..].to_vec()));
                }
            }
            Message::Text(text) => texts.push(serde_json::from_str(&text).expect("texts are JSON")),
            _ => {}
        }
    }
    (frames, texts)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime starts")
}

/// Grey picture of a JPEG: width, height, luma.
fn luma(jpeg: &[u8]) -> (usize, usize, Vec<u8>) {
    let image = turbojpeg::decompress(jpeg, turbojpeg::PixelFormat::GRAY).expect("a frame is a JPEG");
    (image.width, image.height, image.pixels)
}

fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(&x, &y)| (f64::from(x) - f64::from(y)).abs()).sum();
    sum / a.len() as f64
}

/// Horizontal shift in pixels, of at most 12, under which two pictures agree best in their upper two thirds: positive
/// if the scene moved to the right. The lower third holds the player's own figure.
fn shift(a: &[u8], b: &[u8], width: usize, height: usize) -> i64 {
    let rows = height * 2 / 3;
    let error = |s: i64| {
        let (mut sum, mut n) = (0.0, 0.0);
        for y in 0..rows {
            for x in 16..width - 16 {
                let from = (x as i64 - s) as usize;
                sum += (f64::from(b[y * width + x]) - f64::from(a[y * width + from])).abs();
                n += 1.0;
            }
        }
        sum / n
    };
    (-12..=12).min_by(|&p, &q| error(p).total_cmp(&error(q))).unwrap_or(0)
}

#[test]
fn a_clip_is_generated_stored_and_can_be_continued() {
    if !available("ffprobe", "-version") {
        return;
    }
    let host = Daemon::start("clip", "cpu");
    let out = TempDir::new("clip-out");
    let file = out.0.join("clip.mp4");
    // A viewer plays at the same time: two sessions share the worker.
    let session = host.generate(&live(3));
    let args = ["generate", "--prompt", PROMPT, "--size", "160x96", "--frames", "30", "--seed", "7", "-o"];
    let run = host.ctl(&[&args[..], &[file.to_str().expect("the path is text")]].concat());
    assert!(run.status.success(), "{}\n{}", String::from_utf8_lossy(&run.stderr), host.log());
    assert_eq!(probe(&file), (160, 96, 30));
    let before = host.status(&session)["frame_count"].as_u64().unwrap_or(0);
    host.wait_until("the live session goes on", |d| d.status(&session)["frame_count"].as_u64().unwrap_or(0) > before);
    assert_eq!(host.delete(&format!("/api/v1/generate?id={session}")).status / 100, 2);

    let first = host.generate(&clip(20, 5));
    host.wait_done(&first);
    let mut more = clip(10, 6);
    more["from"] = json!(first);
    let second = host.generate(&more);
    let status = host.wait_done(&second);
    assert_eq!(status["frame_count"], 10, "{status}");
    let video = host.get(status["links"]["video"].as_str().expect("a done clip has a video")).expect("an answer");
    std::fs::write(&file, &video.body).expect("the directory is there");
    assert_eq!(probe(&file), (128, 96, 10));
    let poster = host.get(status["links"]["poster"].as_str().expect("and a poster")).expect("an answer");
    assert_eq!(&poster.body[..2], b"\xff\xd8", "a poster is a JPEG");

    let (code, log) = host.stop();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn the_same_value_gives_the_same_file_alone_and_in_company() {
    let host = Daemon::start("same", "cpu");
    let video = |id: &str| host.get(&format!("/api/v1/video?id={id}")).expect("an answer").body;
    let alone = host.generate(&clip(24, 11));
    host.wait_done(&alone);
    let company = host.generate(&clip(60, 99));
    let again = host.generate(&clip(24, 11));
    host.wait_done(&again);
    host.wait_done(&company);
    assert!(video(&alone).len() > 1000);
    assert_eq!(video(&alone), video(&again), "the same session value gave two different files");
    assert_ne!(video(&alone), video(&company));
}

#[test]
fn a_running_generation_is_cancelled() {
    let host = Daemon::start("cancel", "cpu");
    let id = host.generate(&clip(5000, 1));
    host.wait_until("it runs", |d| d.status(&id)["frame_count"].as_u64().unwrap_or(0) > 2);
    assert_eq!(host.delete(&format!("/api/v1/generate?id={id}")).status / 100, 2);
    host.wait_until("it is cancelled", |d| d.status(&id)["state"] == "cancelled");
    let then = host.status(&id)["frame_count"].clone();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(host.status(&id)["frame_count"], then, "a cancelled generation goes on");
    let status = host.get("/api/v1/status").expect("an answer").json();
    host.wait_until("the worker is idle", |d| {
        d.get("/api/v1/status").expect("an answer").json()["worker"]["stats"]["sessions"] == 0
    });
    assert!(status["worker"]["device"].is_string(), "{status}");
}

/// Zoom per pair of pictures, in percent from -6 to 6, under which two pictures agree best in their upper two thirds:
/// positive if the scene came nearer.
fn zoom(a: &[u8], b: &[u8], width: usize, height: usize) -> f64 {
    let (cx, cy) = (width as f64 / 2.0, height as f64 / 2.0);
    let error = |percent: f64| {
        let scale = 1.0 + percent / 100.0;
        let (mut sum, mut n) = (0.0, 0.0);
        for y in 16..height * 2 / 3 {
            for x in 16..width - 16 {
                let (u, v) = ((x as f64 - cx) / scale + cx, (y as f64 - cy) / scale + cy);
                let from = v.round() as usize * width + u.round() as usize;
                sum += (f64::from(b[y * width + x]) - f64::from(a[from])).abs();
                n += 1.0;
            }
        }
        sum / n
    };
    let steps = (-12..=12).map(|i| f64::from(i) * 0.5);
    steps.min_by(|&p, &q| error(p).total_cmp(&error(q))).unwrap_or(0.0)
}

#[test]
fn keys_move_the_view() {
    let host = Daemon::start("keys", "cpu");
    let runtime = runtime();
    // The same seed: without keys the four sessions of a world would show the same pictures.
    let run = |seed: u64, key: &str| -> Vec<(usize, usize, Vec<u8>)> {
        let id = host.generate(&live(seed));
        let (frames, _) = runtime.block_on(watch(&host.address, &id, &[key], 36));
        host.delete(&format!("/api/v1/generate?id={id}"));
        frames.iter().map(|(_, jpeg)| luma(jpeg)).collect()
    };
    let (mut turned, mut walked) = ([0, 0], [0.0, 0.0]);
    for seed in [21, 22] {
        let views = ["W", "S", "A", "D"].map(|key| run(seed, key));
        let differ = |i: usize, j: usize| {
            let (a, b) = (views[i].last().expect("frames came"), views[j].last().expect("frames came"));
            mean_difference(&a.2, &b.2)
        };
        println!("seed {seed}: mean difference of W and S {:.1}, of A and D {:.1}", differ(0, 1), differ(2, 3));
        assert!(differ(0, 1) > 1.0 && differ(2, 3) > 1.0, "opposite keys show the same picture");
        for (pair, view) in views[..2].iter().enumerate() {
            walked[pair] += view.windows(2).map(|p| zoom(&p[0].2, &p[1].2, p[0].0, p[0].1)).sum::<f64>();
        }
        for (pair, view) in views[2..].iter().enumerate() {
            turned[pair] += view.windows(2).map(|p| shift(&p[0].2, &p[1].2, p[0].0, p[0].1)).sum::<i64>();
        }
    }
    println!("zoom: W {:.1} %, S {:.1} %; shift: A {} px, D {} px", walked[0], walked[1], turned[0], turned[1]);
    // Turning left moves the scene to the right, walking forward brings it nearer.
    assert!(turned[0] > 10 && turned[1] < -10, "A and D do not turn opposite ways");
    assert!(walked[0] > walked[1], "W and S do not walk opposite ways");
}

#[test]
fn a_killed_worker_is_replaced_and_the_stream_goes_on() {
    let host = Daemon::start("kill", "cpu");
    let id = host.generate(&live(4));
    let address = host.address.clone();
    let worker_pid = |d: &Daemon| d.get("/api/v1/status").and_then(|r| r.json()["worker"]["pid"].as_u64());
    let first = worker_pid(&host).expect("a worker runs");
    let (saw_recovering, gap, flagged, same_socket) = runtime().block_on(async {
        let url = format!("ws://{address}/ws/stream?session={id}");
        let (mut ws, _) = tokio_tungstenite::connect_async(url).await.expect("the stream opens");
        let (mut ticks, mut recovering, mut killed, mut flagged) = (0, false, None, false);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let message = tokio::time::timeout_at(deadline, ws.next()).await.expect("frames come in time");
            let Some(Ok(message)) = message else { break (recovering, Duration::MAX, flagged, false) };
            match message {
                Message::Binary(bytes) => {
                    ticks += 1;
                    let header = FrameHeader::decode(&bytes).expect("a frame has a header");
                    flagged |= header.flags & FLAG_RECOVERED != 0;
                    // Snapshots are taken once a second: kill after the first one.
                    if ticks == 40 {
                        daemon::signal(first as u32, "KILL");
                        killed = Some(Instant::now());
                    } else if let (Some(at), true) = (killed, recovering) {
                        break (recovering, at.elapsed(), flagged, true);
                    }
                }
                Message::Text(text) => recovering |= text.contains("\"recovering\""),
                _ => {}
            }
        }
    });
    assert!(saw_recovering, "no recovering message came:\n{}", host.log());
    assert!(same_socket && flagged, "the stream did not go on:\n{}", host.log());
    println!("frames again {} ms after kill -9", gap.as_millis());
    assert_ne!(worker_pid(&host), Some(first));
    let log = host.log();
    let lines: Vec<&str> = log.lines().filter(|l| l.contains("worker") && l.contains("signal 9")).collect();
    assert_eq!(lines.len(), 1, "one line says why:\n{log}");
}

#[test]
fn the_terminal_player_reports_live_statistics() {
    let host = Daemon::start("play", "cpu");
    let run = host.ctl(&["play", "--prompt", PROMPT, "--size", "128x96", "--keys", "W", "--frames", "24"]);
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "{text}{}\n{}", String::from_utf8_lossy(&run.stderr), host.log());
    assert!(text.contains("frames/s") && text.contains("ms"), "{text}");
    let status = host.ctl(&["status", "--json"]);
    let json: Value = serde_json::from_slice(&status.stdout).expect("status --json writes JSON");
    assert_eq!(json["state"], "ready", "{json}");
}

#[test]
fn lavapipe_shows_the_same_pictures() {
    let Some(index) = gamegend::compute::gpu::devices()
        .ok()
        .and_then(|all| all.iter().position(|d| d.kind == gamegend::compute::DeviceKind::VulkanCpu))
    else {
        return skip("no Vulkan driver that runs on the CPU");
    };
    let poster = |device: &str, kind: &str| {
        let host = Daemon::start(&format!("poster-{}", device.replace(':', "")), device);
        let id =
            host.generate(&json!({ "prompt": PROMPT, "width": 128, "height": 96, "frames": 3, "seed": 2, "steps": 1 }));
        host.wait_done(&id);
        let status: Value = serde_json::from_slice(&host.ctl(&["status", "--json"]).stdout).expect("JSON");
        assert_eq!(status["worker"]["device_kind"], kind, "{status}");
        luma(&host.get(&format!("/api/v1/poster?id={id}")).expect("an answer").body)
    };
    let (cpu, lavapipe) = (poster("cpu", "cpu"), poster(&format!("vulkan:{index}"), "vulkan cpu"));
    let difference = mean_difference(&cpu.2, &lavapipe.2);
    println!("mean difference of a picture between the executors: {difference:.3} of 255");
    assert!(difference < 1.5, "the executors disagree by {difference} of 255");
}
