//! Whether memory stays where it is: the whole daemon for a while, with a player who stays and others who come and go.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::Outcome;
use super::arguments::Arguments;
use super::daemon::{self, Anything, Daemon};

const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Every so many samples somebody else plays for [`GUEST_STAYS`].
const GUEST_SAMPLES: usize = 3;
const GUEST_STAYS: Duration = Duration::from_secs(5);
/// The beginning does not count: caches fill, rings and encoders are made.
const SETTLE_SHARE: f64 = 0.2;
/// Memory is flat if what a line through the samples gains over the rest of the time is below this share of the mean,
/// or below this many MiB.
const FLAT_SHARE: f64 = 0.02;
const FLAT_MIB: f64 = 4.0;
const MEBIBYTE: f64 = (1 << 20) as f64;

/// One look: MiB by process, and what the worker says its sessions have.
type Sample = (f64, BTreeMap<String, f64>);

pub fn run(a: &Arguments) -> Outcome<Map<String, Value>> {
    daemon::with_folder(a, async |folder| measure(a, folder).await)
}

async fn measure(a: &Arguments, folder: &Path) -> Result<Map<String, Value>, Anything> {
    let config = daemon::configure(a, folder, 4)?;
    let daemon = daemon::start(a, folder, &config).await?;
    let (port, span) = (daemon.port, Duration::from_secs(a.soak_seconds));
    let (_, stream) = daemon::open(a, port, 1).await?;
    let player = tokio::spawn(daemon::one(stream, 1, span));
    let (begin, mut samples, mut guests) = (Instant::now(), Vec::new(), 0);
    while begin.elapsed() < span && !player.is_finished() {
        samples.push(look(&daemon, begin).await?);
        let next = tokio::time::Instant::now() + SAMPLE_EVERY;
        if samples.len().is_multiple_of(GUEST_SAMPLES) {
            guests += u32::from(guest(a, port).await.is_ok());
        }
        tokio::time::sleep_until(next).await;
    }
    let (presses, frames) = player.await??;
    samples.push(look(&daemon, begin).await?);
    let names: Vec<String> = samples.last().map(|(_, s)| s.keys().cloned().collect()).unwrap_or_default();
    let rows: Map<String, Value> = names.iter().map(|name| (name.clone(), verdict(&samples, name))).collect();
    let flat = rows.values().all(|row| row["flat"] == json!(true));
    let seconds = begin.elapsed().as_secs_f64();
    let values = json!({ "soak": {
        "seconds": seconds, "frames": frames, "fps": frames as f64 / seconds, "presses": presses.len(),
        "guests": guests, "flat": flat, "memory": rows,
    } });
    Ok(values.as_object().cloned().unwrap_or_default())
}

/// Somebody plays for a moment.
async fn guest(a: &Arguments, port: u16) -> Result<(), Anything> {
    let (id, stream) = daemon::open(a, port, 2).await?;
    let played = daemon::one(stream, 2, GUEST_STAYS).await;
    daemon::close(port, 2, &id).await;
    played.map(drop)
}

async fn look(daemon: &Daemon, begin: Instant) -> Result<Sample, Anything> {
    let mut found = BTreeMap::new();
    for (pid, name) in family(daemon.child.id())? {
        *found.entry(name).or_insert(0.0) += resident(pid)?;
    }
    let stats = daemon::worker(daemon.port).await?;
    for (key, name) in [("state_bytes", "sessions, device"), ("device_bytes", "all, device")] {
        found.extend(stats[key].as_f64().map(|bytes| (name.to_string(), bytes / MEBIBYTE)));
    }
    Ok((begin.elapsed().as_secs_f64(), found))
}

/// A process and all that it started, with the role of each.
fn family(root: u32) -> Result<Vec<(u32, String)>, Anything> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that has just ended is not of the family any more.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let belongs = |mut pid: u32| {
        while pid != root {
            match parents.get(&pid) {
                Some(&parent) if parent > 0 => pid = parent,
                _ => return false,
            }
        }
        true
    };
    Ok(parents.keys().copied().filter(|&pid| belongs(pid)).map(|pid| (pid, role(pid, root))).collect())
}

/// What a process is there for.
fn role(pid: u32, root: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    let known = ["worker", "api", "decoder"].into_iter().find(|role| line.contains(role));
    known.unwrap_or(if pid == root { "parent" } else { "other" }).to_string()
}

/// Resident MiB of a process; 0 if it is gone.
fn resident(pid: u32) -> Result<f64, Anything> {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) else { return Ok(0.0) };
    let Some(line) = text.lines().find_map(|l| l.strip_prefix("VmRSS:")) else { return Ok(0.0) };
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
}

/// A line through the samples after the beginning, by least squares.
fn verdict(samples: &[Sample], name: &str) -> Value {
    let all: Vec<(f64, f64)> = samples.iter().filter_map(|(t, s)| Some((*t, *s.get(name)?))).collect();
    let from = samples.last().map_or(0.0, |(t, _)| t * SETTLE_SHARE);
    let late: Vec<(f64, f64)> = all.iter().copied().filter(|(t, _)| *t >= from).collect();
    let n = (late.len() as f64).max(1.0);
    let mean = |f: fn(&(f64, f64)) -> f64| late.iter().map(f).sum::<f64>() / n;
    let (t, y) = (mean(|p| p.0), mean(|p| p.1));
    let (up, down) =
        late.iter().fold((0.0, 0.0), |(up, down), p| (up + (p.0 - t) * (p.1 - y), down + (p.0 - t).powi(2)));
    let slope = if down > 0.0 { up / down } else { 0.0 };
    let span = late.last().map_or(0.0, |p| p.0) - late.first().map_or(0.0, |p| p.0);
    let gain = slope * span;
    let curve: Vec<f64> =
        all.iter().step_by(all.len().div_ceil(30).max(1)).map(|p| (p.1 * 10.0).round() / 10.0).collect();
    json!({
        "mean_mib": y, "mib_an_hour": slope * 3600.0, "gain_mib": gain, "samples": late.len(),
        "flat": gain < (FLAT_SHARE * y).max(FLAT_MIB), "curve_mib": curve,
    })
}
