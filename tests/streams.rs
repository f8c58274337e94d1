//! Streams: how they begin, are taken up again, cost one encode for all, and never wait for the slowest.

mod support;

use std::time::{Duration, Instant};

use gamegend::proto::api::{ServerMessage, State};
use gamegend::proto::wire::{FLAG_KEY_FRAME, Format};
use openh264::decoder::Decoder;
use openh264::formats::YUVSource;
use serde_json::json;
use support::client::{Client, Got, Watch};
use support::{Api, eventually, peer};

fn hello(watch: &mut Watch) -> (String, String, bool, u32) {
    match watch.next() {
        Got::Message(ServerMessage::Hello { format, resume, resumed, seq, protocol: 1, .. }) => {
            (format, resume, resumed, seq)
        }
        other => panic!("hello of protocol 1 comes first: {other:?}"),
    }
}

fn counter(client: &Client, name: &str) -> u64 {
    let text = String::from_utf8(client.get("/metrics").body).expect("text");
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|v| v.parse::<f64>().ok()).unwrap_or_else(|| panic!("{name} in\n{text}")) as u64
}

const JPEGS: &str = "gamegend_frames_encoded_total{format=\"jpeg\"}";
const UNITS: &str = "gamegend_frames_encoded_total{format=\"h264\"}";

#[test]
fn h264_comes_where_it_is_offered_and_every_unit_decodes() {
    let (api, _peer) = Api::with_peer("h264");
    let client = api.network();
    let id = client.play();
    let mut watch = client.watch(&format!("{id}&formats=h264,jpeg"));
    assert_eq!(hello(&mut watch).0, "h264");
    let mut decoder = Decoder::new().expect("a decoder");
    for n in 0..24 {
        let (header, unit) = watch.frame();
        assert_eq!((header.format, header.width, header.height), (Format::H264, 96, 64));
        assert_eq!(header.flags & FLAG_KEY_FRAME != 0, n == 0, "the first one, and no other, is a key frame");
        assert_eq!(&unit[..4], [0, 0, 0, 1], "a start code");
        let picture = decoder.decode(&unit).expect("a sound unit").expect("shown at once");
        assert_eq!(picture.dimensions(), (96, 64));
    }
    // A second viewer of either format has its own beginning and costs the first one nothing.
    let mut other = client.watch(&format!("{id}&formats=h264"));
    hello(&mut other);
    assert!(other.frame().0.flags & FLAG_KEY_FRAME != 0);
    let mut jpeg = client.watch(&format!("{id}&formats=jpeg"));
    assert_eq!(hello(&mut jpeg).0, "jpeg");
    assert_eq!(jpeg.frame().0.format, Format::Jpeg);
    watch.say(r#"{"type":"control","seq":1,"keys":["W"]}"#);
    while watch.frame().0.seq < 1 {}
    let problem = client.get(&format!("/ws/stream?session={id}&formats=av1")).problem();
    assert_eq!((problem.code.as_str(), problem.field.as_deref()), ("invalid_field", Some("formats")));
    assert_eq!(client.get(&format!("/ws/stream?session={id}&format=jpeg")).problem().code, "unknown_field");
}

#[test]
fn fifty_watchers_cost_one_encode() {
    let (api, _peer) = Api::with_peer("fifty");
    let client = api.local();
    let id = client.play();
    let mut watchers: Vec<Watch> = (0..50).map(|_| client.watch(&id)).collect();
    for watch in &mut watchers {
        hello(watch);
        watch.frame();
    }
    assert_eq!(client.status(&id).viewers, 50);
    let (frames, jpegs) = (client.status(&id).frame_count, counter(&client, JPEGS));
    let sent = counter(&client, "gamegend_frames_sent_total");
    let threads: Vec<_> = watchers
        .into_iter()
        .map(|mut watch| {
            std::thread::spawn(move || {
                let mut ticks = Vec::new();
                while ticks.len() < 24 {
                    ticks.push(watch.frame().0.tick);
                }
                assert!(ticks.windows(2).all(|w| w[0] < w[1]), "in order: {ticks:?}");
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("it does not panic"));
    let made = client.status(&id).frame_count - frames;
    let encoded = counter(&client, JPEGS) - jpegs;
    let sent = counter(&client, "gamegend_frames_sent_total") - sent;
    println!("{made} frames made, {encoded} encoded, {sent} sent to 50 watchers");
    assert!(encoded <= made + 2, "{encoded} encodes for {made} frames");
    assert!(sent >= 50 * 23, "{sent} were sent");
    assert_eq!(counter(&client, UNITS), 0, "nobody takes H.264");
}

#[test]
fn a_slow_watcher_never_delays_a_fast_one() {
    let (api, _peer) = Api::with_peer("pace");
    let client = api.network();
    let request = json!({"prompt": "x", "width": 640, "height": 384, "fps": 60, "interactive": true});
    let id = client.generate(&request).id;
    // They never read: their sockets fill, and with H.264 their queues, too.
    let slow: Vec<Watch> = ["jpeg", "h264"].iter().map(|f| client.watch(&format!("{id}&formats={f}"))).collect();
    let mut fast = client.watch(&id);
    hello(&mut fast);
    fast.frame();
    let begin = Instant::now();
    let (first, mut last, mut count, mut worst) = (fast.frame().0.tick, 0, 0, Duration::ZERO);
    while begin.elapsed() < Duration::from_secs(4) {
        let before = Instant::now();
        last = fast.frame().0.tick;
        worst = worst.max(before.elapsed());
        count += 1;
    }
    let made = last - first;
    println!("{count} of {made} frames, the longest wait {} ms", worst.as_millis());
    assert!(count as f64 > 0.8 * made as f64, "{count} of {made} frames");
    assert!(worst < Duration::from_secs(1), "{worst:?} without a frame");
    assert_eq!(client.status(&id).viewers, 3);
    drop(slow);
    eventually("the slow ones are gone", || client.status(&id).viewers == 1);
}

#[test]
fn a_lost_stream_is_taken_up_with_its_token() {
    let (api, _peer) = Api::with_peer("resume");
    let client = api.network();
    let id = client.play();
    let mut first = client.watch(&id);
    let (_, token, resumed, seq) = hello(&mut first);
    assert_eq!((token.len(), resumed, seq), (32, false, 0));
    first.say(r#"{"type":"control","seq":5,"keys":["W"]}"#);
    while first.frame().0.seq < 5 {}
    // The connection is still open for the daemon when the player comes back.
    let mut second = client.watch(&format!("{id}&resume={token}"));
    assert_eq!(hello(&mut second), ("jpeg".to_string(), token.clone(), true, 5));
    assert_eq!(first.close_code(), 1008, "the old connection is closed");
    assert_eq!(second.frame().0.seq, 5);
    eventually("one viewer is left", || client.status(&id).viewers == 1);
    drop(second);
    let mut third = client.watch(&format!("{id}&resume={token}"));
    assert!(hello(&mut third).2, "within a minute");
    let mut stranger = client.watch(&format!("{id}&resume={}", "0".repeat(32)));
    assert!(!hello(&mut stranger).2, "a token that was never given");
}

#[test]
fn keys_of_a_lost_stream_are_released_unless_it_comes_back() {
    let (api, peer) = Api::with_peer("release");
    let client = api.network();
    let held = || peer.asked.lock().expect("no panic").keys.last().copied();
    let id = client.play();
    let mut watch = client.watch(&id);
    let (_, token, ..) = hello(&mut watch);
    watch.say(r#"{"type":"control","seq":1,"keys":["D"]}"#);
    eventually("D is held", || held().is_some_and(|k| k.names() == ["D"]));
    drop(watch);
    let mut back = client.watch(&format!("{id}&resume={token}"));
    hello(&mut back);
    let until = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < until {
        assert!(held().is_some_and(|k| k.names() == ["D"]), "the player came back");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(back);
    eventually("nobody holds D any more", || held().is_some_and(|k| k.names().is_empty()));
}

#[test]
fn a_generation_can_be_watched_as_h264_while_it_is_made() {
    let mut api = Api::start("watchclip");
    let _peer = api.worker_up(Duration::from_millis(10));
    let client = api.local();
    let request = json!({"prompt": "x", "width": 96, "height": 64, "frames": 90});
    let id = client.generate(&request).id;
    let mut watch = client.watch(&format!("{id}&formats=h264"));
    hello(&mut watch);
    let mut decoder = Decoder::new().expect("a decoder");
    for _ in 0..20 {
        decoder.decode(&watch.frame().1).expect("a sound unit");
    }
    let bye = watch.message(|m| matches!(m, ServerMessage::Bye { .. }));
    assert!(matches!(bye, ServerMessage::Bye { reason } if reason == "done"));
    eventually("it is done", || client.status(&id).state == State::Done);
}

/// Width and height of a JPEG picture.
fn jpeg_size(jpeg: &[u8]) -> (usize, usize) {
    let header = turbojpeg::read_header(jpeg).expect("a sound JPEG");
    (header.width, header.height)
}

#[test]
fn a_session_that_loses_size_is_watched_on_at_the_new_one() {
    let (api, _peer) = Api::with_peer("shrinks");
    let client = api.network();
    let request = json!({"prompt": peer::SHRINKS, "width": 192, "height": 128, "interactive": true});
    let id = client.generate(&request).id;
    let mut jpeg = client.watch(&id);
    let mut video = client.watch(&format!("{id}&formats=h264"));
    hello(&mut jpeg);
    hello(&mut video);
    let mut decoder = Decoder::new().expect("a decoder");
    let mut see = |watch: &mut Watch, wanted: (u16, u16)| {
        for _ in 0..500 {
            let (header, payload) = watch.frame();
            let size = (usize::from(header.width), usize::from(header.height));
            let new = (header.width, header.height) == wanted;
            if header.format == Format::Jpeg {
                assert_eq!(jpeg_size(&payload), size, "the header says what the picture is");
            } else {
                let picture = decoder.decode(&payload).expect("a sound unit").expect("shown at once");
                assert_eq!(picture.dimensions(), size, "the header says what the picture is");
            }
            if new {
                return header;
            }
        }
        panic!("no frame of {wanted:?}");
    };
    see(&mut jpeg, (192, 128));
    see(&mut video, (192, 128));
    jpeg.say(r#"{"type":"control","seq":1,"keys":["SHIFT"]}"#);
    let told = jpeg.message(|m| matches!(m, ServerMessage::Degraded { .. }));
    let ServerMessage::Degraded { reason } = told else { panic!("{told:?}") };
    assert!(reason.contains("96 x 64 pixels instead of 192 x 128"), "{reason}");
    assert_eq!(see(&mut jpeg, (96, 64)).seq, 1);
    assert!(see(&mut video, (96, 64)).flags & FLAG_KEY_FRAME != 0, "a stream changes its size at a key frame only");
    let status = client.status(&id);
    let now = status.now.expect("it is told");
    assert_eq!((status.width, status.height, now.width, now.height), (192, 128, 96, 64));
    assert_eq!(now.degraded, "steps, rate and size");
    jpeg.say(r#"{"type":"control","seq":2,"keys":[]}"#);
    assert_eq!(see(&mut jpeg, (192, 128)).seq, 2);
    assert!(see(&mut video, (192, 128)).flags & FLAG_KEY_FRAME != 0);
}

#[test]
fn a_video_keeps_one_size_whatever_its_frames_had() {
    let (api, _peer) = Api::with_peer("shrinksclip");
    let client = api.local();
    let request = json!({"prompt": peer::SHRINKS, "width": 192, "height": 128, "frames": 12});
    let id = client.generate(&request).id;
    eventually("it is done", || client.status(&id).state == State::Done);
    for index in [0, 11] {
        let frame = client.get(&format!("/api/v1/videos/{id}/frames/{index}"));
        assert_eq!(frame.status, 200, "frame {index}");
        // Width and height of a PNG, behind its signature and the head of its first chunk.
        let side = |at: usize| u32::from_be_bytes([at, at + 1, at + 2, at + 3].map(|i| frame.body[i]));
        assert_eq!((side(16), side(20)), (192, 128), "frame {index}");
    }
}

/// Resident memory of this process in bytes.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(text.split(' ').nth(1)?.parse::<u64>().ok()? * 4096)
}

#[test]
fn memory_stays_flat_while_many_watch() {
    if resident().is_none() {
        println!("skipped: this system does not tell the memory of a process in /proc");
        return;
    }
    let seconds = std::env::var("GAMEGEND_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(12u64);
    let (api, _peer) = Api::with_peer("soak");
    let client = api.local();
    let request = json!({"prompt": "x", "width": 320, "height": 192, "interactive": true});
    let id = client.generate(&request).id;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watch = |query: String| {
        let (client, stop) = (client.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut watch = client.watch(&query);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                watch.frame();
            }
        })
    };
    let threads: Vec<_> =
        ["", "", "", "&formats=h264", "&formats=h264"].iter().map(|f| watch(format!("{id}{f}"))).collect();
    // A third of the time to fill every buffer that there is, then the rest to show that nothing grows.
    let step = Duration::from_millis(seconds * 1000 / 12);
    let mut samples = Vec::new();
    let mut seq = 0;
    for _ in 0..12 {
        let until = Instant::now() + step;
        while Instant::now() < until {
            seq += 1;
            let body = json!({"session": id, "seq": seq, "keys": if seq % 2 == 0 { ["W"] } else { ["A"] }});
            client.post("/api/v1/control", &body);
            client.get("/api/v1/sessions");
            std::thread::sleep(Duration::from_millis(20));
        }
        samples.push(resident().expect("it told before"));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    threads.into_iter().for_each(|t| t.join().expect("it does not panic"));
    let megabytes: Vec<u64> = samples.iter().map(|b| b >> 20).collect();
    println!("resident MiB over {seconds} s: {megabytes:?}");
    let (settled, end) = (samples[4..8].iter().max().expect("four"), samples[8..].iter().max().expect("four"));
    assert!(*end < settled + (8 << 20), "memory grows: {megabytes:?} MiB");
}
