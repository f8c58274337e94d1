//! Statuses as text.

use std::fmt::Write;

use crate::proto::api::{DaemonStatus, SessionStatus, WorkerStatus};

/// A duration in its two largest units.
pub fn duration(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s} s"),
        (0, 0, _) => format!("{m} min {s} s"),
        (0, _, _) => format!("{h} h {m} min"),
        _ => format!("{d} d {h} h"),
    }
}

pub fn status(status: &DaemonStatus) -> String {
    let mut out = String::new();
    let up = duration(status.uptime_seconds);
    let _ = writeln!(out, "gamegend {}: {}, up {up}, api sandbox: {}", status.version, status.state, status.sandbox);
    match &status.worker {
        Some(w) => worker(&mut out, w),
        None => {
            let _ = writeln!(out, "no worker");
        }
    }
    let live = status.sessions.iter().filter(|s| !s.state.is_final()).count();
    let _ = writeln!(out, "sessions {live} live, {} ended or stored", status.sessions.len() - live);
    out
}

fn worker(out: &mut String, w: &WorkerStatus) {
    let hash: String = w.model_hash.chars().take(12).collect();
    let _ = writeln!(out, "worker   {} (pid {}), sandbox: {}", w.generation, w.pid, w.sandbox);
    let _ = writeln!(out, "device   {} ({}), {}: {}", w.device, w.device_kind, w.precision, w.device_why);
    let millions = w.parameters as f64 / 1e6;
    let _ = writeln!(out, "model    {} ({millions:.1} million parameters, {hash})", w.model);
    let s = &w.stats;
    let _ = writeln!(
        out,
        "load     {} sessions, {:.1} frames/s, tick {:.1} ms (p95 {:.1} ms), {:.0} % busy",
        s.sessions,
        s.frames_per_second,
        s.tick_ms_p50,
        s.tick_ms_p95,
        100.0 * s.busy
    );
    let [state, device] = [s.state_bytes, s.device_bytes].map(|bytes| bytes as f64 / f64::from(1 << 20));
    let each = state / f64::from(s.sessions.max(1));
    let _ = writeln!(out, "memory   {device:.1} MiB, of which {state:.1} MiB for sessions ({each:.1} MiB each)");
    if s.deadlines > 0 {
        let _ = writeln!(out, "missed   {} of {} frames in the last second", s.deadlines_missed, s.deadlines);
    }
    if !s.degraded.is_empty() {
        let smaller = if s.smaller > 0 { format!(" (by {} sessions)", s.smaller) } else { String::new() };
        let _ = writeln!(out, "capacity {:.0} % asked for, given up: {}{smaller}", 100.0 * s.load, s.degraded);
    }
}

pub fn sessions(sessions: &[SessionStatus]) -> String {
    if sessions.is_empty() {
        return "no sessions\n".to_string();
    }
    let mut out =
        format!("{:<32}  {:<10}  {:>13}  {:>9}  {:>8}  PROMPT\n", "ID", "STATE", "FRAMES", "SIZE", "FRAMES/S");
    for s in sessions {
        let frames = if s.interactive { s.frame_count.to_string() } else { format!("{}/{}", s.frame_count, s.frames) };
        let (width, height) = s.now.as_ref().map_or((s.width, s.height), |now| (now.width, now.height));
        let size = format!("{width}x{height}");
        let asked = format!("(of {}x{}) ", s.width, s.height);
        let asked = if (width, height) == (s.width, s.height) { String::new() } else { asked };
        let rate = if s.state.is_final() { "-".to_string() } else { format!("{:.1}", s.frames_per_second) };
        // A prompt is a client's text: control characters must not reach the terminal.
        let prompt: String = s.prompt.chars().map(|c| if c.is_control() { ' ' } else { c }).take(60).collect();
        let _ =
            writeln!(out, "{:<32}  {:<10}  {frames:>13}  {size:>9}  {rate:>8}  {asked}{prompt}", s.id, s.state.name());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        let cases = [(5, "5 s"), (185, "3 min 5 s"), (3700, "1 h 1 min"), (90_000, "1 d 1 h")];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }
}
