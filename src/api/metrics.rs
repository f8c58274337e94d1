//! What the api counts, in the text format of Prometheus.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::proto::api::{DaemonStatus, State};

/// Counters that only rise.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames compressed to JPEG and to H.264 for viewers, however many watch.
    pub jpeg_frames: AtomicU64,
    pub video_frames: AtomicU64,
    /// Messages with a frame that were sent, and frames that viewers were too slow for.
    pub frames_sent: AtomicU64,
    pub frames_skipped: AtomicU64,
    /// Answers by the first digit of their status.
    answers: [AtomicU64; 6],
    pub uploads: AtomicU64,
    pub decoders: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts an answer with this status.
    pub fn answered(&self, status: u16) {
        if let Some(counter) = self.answers.get(usize::from(status / 100)) {
            Self::add(counter, 1);
        }
    }

    /// Everything there is, one metric after the other.
    pub fn text(&self, status: &DaemonStatus, queued: usize) -> String {
        let mut out = String::new();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let count = |state: State| status.sessions.iter().filter(|s| s.state == state).count() as f64;
        let viewers: usize = status.sessions.iter().map(|s| s.viewers).sum();
        metric(
            &mut out,
            "uptime_seconds",
            "counter",
            "Seconds since the start.",
            &[("", status.uptime_seconds as f64)],
        );
        let ready = if status.state == "ready" { 1.0 } else { 0.0 };
        metric(&mut out, "ready", "gauge", "1 while a worker is ready.", &[("", ready)]);
        let states = [State::Queued, State::Running, State::Recovering, State::Done, State::Cancelled, State::Failed];
        let names = ["queued", "running", "recovering", "done", "cancelled", "failed"];
        let labels: Vec<String> = names.iter().map(|n| format!("{{state=\"{n}\"}}")).collect();
        let rows: Vec<(&str, f64)> = labels.iter().map(String::as_str).zip(states.map(count)).collect();
        metric(&mut out, "sessions", "gauge", "Sessions and stored things by state.", &rows);
        metric(&mut out, "queue_length", "gauge", "Generations that wait.", &[("", queued as f64)]);
        metric(&mut out, "viewers", "gauge", "Streams that are watched.", &[("", viewers as f64)]);
        let encoded = [("{format=\"jpeg\"}", load(&self.jpeg_frames)), ("{format=\"h264\"}", load(&self.video_frames))];
        metric(&mut out, "frames_encoded_total", "counter", "Frames encoded for viewers.", &encoded);
        metric(&mut out, "frames_sent_total", "counter", "Frames sent to viewers.", &[("", load(&self.frames_sent))]);
        let skipped = [("", load(&self.frames_skipped))];
        metric(&mut out, "frames_skipped_total", "counter", "Frames that viewers were too slow for.", &skipped);
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"].map(|c| format!("{{status=\"{c}\"}}"));
        let rows: Vec<(&str, f64)> =
            classes.iter().map(String::as_str).zip(self.answers[1..].iter().map(load)).collect();
        metric(&mut out, "http_answers_total", "counter", "Answers by their status.", &rows);
        metric(&mut out, "uploads_total", "counter", "Uploads that arrived.", &[("", load(&self.uploads))]);
        metric(&mut out, "decoders_total", "counter", "Decoders that were asked for.", &[("", load(&self.decoders))]);
        if let Some(worker) = &status.worker {
            let stats = &worker.stats;
            let degraded = match stats.degraded.as_str() {
                "steps" => 1.0,
                "steps and rate" => 2.0,
                "steps, rate and size" => 3.0,
                _ => 0.0,
            };
            for (name, kind, help, value) in [
                ("worker_frames_total", "counter", "Frames made by this worker.", stats.frames_total as f64),
                ("worker_frames_per_second", "gauge", "Frames made in the last second.", stats.frames_per_second),
                ("worker_busy", "gauge", "Part of the last second that was work.", stats.busy),
                ("worker_state_bytes", "gauge", "Device memory of the sessions.", stats.state_bytes as f64),
                ("worker_device_bytes", "gauge", "Device memory of everything.", stats.device_bytes as f64),
                ("worker_tick_ms_p95", "gauge", "Milliseconds of a run.", stats.tick_ms_p95),
                ("worker_deadlines", "gauge", "Frames due in the last second.", stats.deadlines as f64),
                ("worker_deadlines_missed", "gauge", "Those of them left out.", stats.deadlines_missed as f64),
                ("worker_load", "gauge", "Share of the device that sessions need.", stats.load),
                (
                    "worker_degraded",
                    "gauge",
                    "Given up by sessions: 1 steps, 2 rate as well, 3 size as well.",
                    degraded,
                ),
                ("worker_sessions_smaller", "gauge", "Sessions smaller than they asked.", stats.smaller.into()),
            ] {
                metric(&mut out, name, kind, help, &[("", value)]);
            }
        }
        out
    }
}

fn metric(out: &mut String, name: &str, kind: &str, help: &str, rows: &[(&str, f64)]) {
    // Writing into a text cannot fail.
    let _ = writeln!(out, "# HELP gamegend_{name} {help}\n# TYPE gamegend_{name} {kind}");
    for (labels, value) in rows {
        let _ = writeln!(out, "gamegend_{name}{labels} {value}");
    }
}
