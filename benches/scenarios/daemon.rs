//! The whole daemon, as a player meets it: start to ready with cold and with warm caches, the first frame, and from a
//! key press (stamped by the client) to the first frame over the WebSocket that reflects it.

use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use gamegend::proto::wire::FrameHeader;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::Outcome;
use super::arguments::Arguments;

const PATIENCE: Duration = Duration::from_secs(60);
/// Presses of one player: not in step with the frames.
const PRESS_MS: u64 = 171;
/// Frames before anything counts.
const SETTLE: Duration = Duration::from_secs(2);

/// Frames of the time before are read first; only what comes then is counted.
const CATCH_UP: Duration = Duration::from_secs(1);

pub type Anything = Box<dyn Error + Send + Sync>;

/// A running daemon; ends with its owner.
pub struct Daemon {
    pub child: Child,
    pub port: u16,
    ready_s: f64,
    began: Instant,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

pub fn run(a: &Arguments) -> Outcome<Map<String, Value>> {
    with_folder(a, async |folder| measure(a, folder).await)
}

/// Gives `measure` a folder for a daemon, and takes it back.
pub fn with_folder(
    a: &Arguments,
    measure: impl AsyncFnOnce(&Path) -> Result<Map<String, Value>, Anything>,
) -> Outcome<Map<String, Value>> {
    if !a.gamegend.exists() {
        return Err(format!("{} is not built", a.gamegend.display()).into());
    }
    let folder = std::env::temp_dir().join(format!("gamegend-scenarios-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(&folder));
    let _ = fs::remove_dir_all(&folder);
    measured.map_err(|e| e.to_string().into())
}

async fn measure(a: &Arguments, folder: &Path) -> Result<Map<String, Value>, Anything> {
    let most = a.viewers.iter().copied().max().unwrap_or(1);
    let config = configure(a, folder, most + 2)?;
    let cold = start(a, folder, &config).await?;
    let cold_ready = cold.ready_s;
    let cold_first = first_frame(a, &cold).await?;
    drop(cold);
    let daemon = start(a, folder, &config).await?;
    let warm_first = first_frame(a, &daemon).await?;
    let mut values = json!({
        "start_ready_s": daemon.ready_s, "first_frame_s": warm_first,
        "start_ready_cold_s": cold_ready, "first_frame_cold_s": cold_first,
    });
    let mut by_count = Map::new();
    for &count in &a.viewers {
        let row = match play(a, &daemon, count).await {
            Ok(row) => row,
            Err(e) => json!({ "skipped": e.to_string() }),
        };
        eprintln!("{count} players: {row}");
        if count == 1 {
            values["key_to_frame_ms"] = row.clone();
        }
        by_count.insert(count.to_string(), row);
    }
    values["key_to_frame_ms_by_sessions"] = Value::Object(by_count);
    Ok(values.as_object().cloned().unwrap_or_default())
}

fn token(i: usize) -> String {
    format!("bench-token-of-player-{i:04}-0123456789abcdef")
}

pub fn configure(a: &Arguments, folder: &Path, clients: usize) -> Result<PathBuf, Anything> {
    let tokens: String = (0..clients).map(|i| token(i) + "\n").collect();
    let file = folder.join("tokens");
    let mut options = fs::OpenOptions::new();
    std::io::Write::write_all(
        &mut options.write(true).create(true).truncate(true).mode(0o600).open(&file)?,
        tokens.as_bytes(),
    )?;
    let model = fs::canonicalize(&a.model)?;
    // Started as root the daemon reads it as the user that it becomes; elsewhere this changes nothing.
    let _ = Command::new("chown").arg("nobody").arg(&file).stderr(Stdio::null()).status();
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"{0}/tokens\"\n[control]\nsocket = \"{0}/gamegend.sock\"\n\
         [state]\ndirectory = \"{0}/state\"\npid_file = \"{0}/gamegend.pid\"\n[gpu]\ndevice = \"{1}\"\nthreads = {2}\n\
         [model]\npath = \"{3}\"\n[worker]\nsessions_max = 128\n",
        folder.display(),
        a.device,
        a.threads,
        model.display()
    );
    let config = folder.join("gamegend.toml");
    fs::write(&config, text)?;
    Ok(config)
}

pub async fn start(a: &Arguments, folder: &Path, config: &Path) -> Result<Daemon, Anything> {
    let log = folder.join("log");
    let began = Instant::now();
    let child = Command::new(&a.gamegend)
        .args(["-d", "-c"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&log)?)
        .stderr(fs::OpenOptions::new().append(true).open(&log)?)
        .spawn()?;
    let mut daemon = Daemon { child, port: 0, ready_s: 0.0, began };
    while began.elapsed() < PATIENCE {
        if daemon.port == 0 {
            let text = fs::read_to_string(&log)?;
            let address = text.split("http://").nth(1).and_then(|rest| rest.split(['/', ' ', '\n']).next());
            daemon.port = address.and_then(|a| a.rsplit(':').next()?.trim().parse().ok()).unwrap_or(0);
        } else if matches!(http(daemon.port, "GET", "/readyz", "").await, Ok((200, _))) {
            daemon.ready_s = began.elapsed().as_secs_f64();
            return Ok(daemon);
        }
        if let Some(status) = daemon.child.try_wait()? {
            return Err(format!("the daemon ended with {status}: {}", fs::read_to_string(&log)?).into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(format!("the daemon is not ready: {}", fs::read_to_string(&log)?).into())
}

/// One request on a connection of its own; status and body.
pub async fn http(port: u16, method: &str, path: &str, body: &str) -> Result<(u16, String), Anything> {
    request(port, method, path, body, 0).await
}

/// A connection of a player. Each comes from an address of its own, as players do: what one address may ask for in a
/// minute is limited. A system without so many addresses on its loopback has one for all of them.
async fn connect(port: u16, player: usize) -> Result<TcpStream, Anything> {
    let own = SocketAddr::from(([127, 0, 1 + (player / 250) as u8, 1 + (player % 250) as u8], 0));
    let socket = TcpSocket::new_v4()?;
    if socket.bind(own).is_err() {
        return Ok(TcpStream::connect(("127.0.0.1", port)).await?);
    }
    Ok(socket.connect(([127, 0, 0, 1], port).into()).await?)
}

async fn request(port: u16, method: &str, path: &str, body: &str, player: usize) -> Result<(u16, String), Anything> {
    let (mut stream, token) = (connect(port, player).await?, token(player));
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok((status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_string())))
}

pub type Stream = tokio_tungstenite::WebSocketStream<TcpStream>;

/// Opens a session and its stream.
pub async fn open(a: &Arguments, port: u16, player: usize) -> Result<(String, Stream), Anything> {
    let mut body = json!({
        "prompt": "a castle in a forest at sunset", "width": a.width, "height": a.height, "seed": player,
        "interactive": true,
    });
    if a.steps > 0 {
        body["steps"] = json!(a.steps);
    }
    let (status, answer) = request(port, "POST", "/api/v1/generate", &body.to_string(), player).await?;
    let reply: Value = serde_json::from_str(&answer).map_err(|_| format!("status {status}: {answer}"))?;
    let id = reply["id"].as_str().ok_or_else(|| format!("status {status}: {answer}"))?.to_string();
    let mut request = format!("ws://127.0.0.1:{port}/ws/stream?session={id}").into_client_request()?;
    request.headers_mut().insert("Authorization", format!("Bearer {}", token(player)).parse()?);
    let tcp = connect(port, player).await?;
    tcp.set_nodelay(true)?;
    let (stream, _) = tokio_tungstenite::client_async(request, tcp).await?;
    Ok((id, stream))
}

pub async fn close(port: u16, player: usize, id: &str) {
    let _ = request(port, "DELETE", &format!("/api/v1/sessions/{id}"), "", player).await;
}

/// What the worker says about itself.
pub async fn worker(port: u16) -> Result<Value, Anything> {
    let (_, text) = http(port, "GET", "/api/v1/status", "").await?;
    let status: Value = serde_json::from_str(&text)?;
    Ok(status["worker"]["stats"].clone())
}

/// Seconds from the start of the program to the first frame of a session that is opened as soon as it is ready.
async fn first_frame(a: &Arguments, daemon: &Daemon) -> Result<f64, Anything> {
    let (id, mut stream) = open(a, daemon.port, 1).await?;
    tokio::time::timeout(PATIENCE, frame(&mut stream, &mut None)).await??;
    let seconds = daemon.began.elapsed().as_secs_f64();
    close(daemon.port, 1, &id).await;
    Ok(seconds)
}

/// The next frame. Errors: why the stream ended, with what the daemon `told` before it did.
async fn frame(stream: &mut Stream, told: &mut Option<String>) -> Result<Bytes, Anything> {
    while let Some(message) = stream.next().await {
        match message? {
            Message::Binary(bytes) => return Ok(bytes),
            Message::Text(text) => {
                let said: Value = serde_json::from_str(&text)?;
                match (said["type"].as_str(), told.is_none()) {
                    (Some("error"), _) => *told = said["problem"]["detail"].as_str().map(str::to_string),
                    (Some("bye"), true) => *told = said["reason"].as_str().map(str::to_string),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    let reason = told.take().map_or(String::new(), |told| format!(": {told}"));
    Err(format!("the stream ended{reason}").into())
}

/// Reads what comes until the player was let in or was not: the daemon takes a session before the worker, which knows
/// what the device can do, has answered. A stream that nobody reads would also be given up after a while.
async fn settle(mut stream: Stream) -> Result<Stream, Anything> {
    let end = tokio::time::Instant::now() + SETTLE;
    let mut told = None;
    tokio::time::timeout(PATIENCE, frame(&mut stream, &mut told)).await??;
    while let Ok(read) = tokio::time::timeout_at(end, frame(&mut stream, &mut told)).await {
        read?;
    }
    Ok(stream)
}

/// `count` players at once; quantiles over all presses of all of them.
async fn play(a: &Arguments, daemon: &Daemon, count: usize) -> Result<Value, Anything> {
    // The device has as many as it can serve: those are played.
    let (mut settling, mut streams, mut refused) = (Vec::new(), Vec::new(), None);
    for player in 1..=count {
        match open(a, daemon.port, player).await {
            Ok((id, stream)) => settling.push((player, id, tokio::spawn(settle(stream)))),
            Err(e) => {
                refused = Some(e.to_string());
                break;
            }
        }
    }
    for (player, id, settled) in settling {
        match settled.await? {
            Ok(stream) => streams.push((player, (id, stream))),
            Err(e) => refused = Some(e.to_string()),
        }
    }
    let count = streams.len();
    if count == 0 {
        return Err(refused.unwrap_or_default().into());
    }
    let span = Duration::from_secs(a.seconds.max(4));
    let port = daemon.port;
    let busy = Arc::new(tokio::sync::Barrier::new(count));
    let tasks: Vec<_> = streams
        .into_iter()
        .map(|(player, (id, stream))| {
            let busy = Arc::clone(&busy);
            tokio::spawn(async move {
                busy.wait().await;
                let result = one(stream, player as u64, span).await;
                close(port, player, &id).await;
                result
            })
        })
        .collect();
    let during = tokio::spawn(async move {
        tokio::time::sleep(span / 2).await;
        worker(port).await
    });
    let (mut latencies, mut frames) = (Vec::new(), 0);
    for task in tasks {
        let (mut own, seen) = task.await??;
        latencies.append(&mut own);
        frames += seen;
    }
    latencies.sort_by(f64::total_cmp);
    let last = latencies.len().checked_sub(1).ok_or("no frame reflected a key")?;
    let at = |share: f64| latencies[(last as f64 * share) as usize];
    let stats = during.await??;
    Ok(json!({
        "players": count, "refused": refused, "degraded": stats["degraded"], "load": stats["load"],
        "busy": stats["busy"], "state_mib": stats["state_bytes"].as_f64().map(|b| b / f64::from(1 << 20)),
        "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "presses": latencies.len(),
        "fps_each": frames as f64 / (span - CATCH_UP).as_secs_f64() / count as f64,
    }))
}

/// One player: presses keys, reads frames. Milliseconds of every press that a frame reflected, and the frames.
pub async fn one(mut stream: Stream, player: u64, span: Duration) -> Result<(Vec<f64>, u64), Anything> {
    let begin = Instant::now();
    let (mut seq, mut latencies, mut frames, mut told) = (0u32, Vec::new(), 0, None);
    let mut pressed: Option<Instant> = None;
    let mut next = begin + Duration::from_millis(player * 29 % PRESS_MS);
    while begin.elapsed() < span {
        tokio::select! {
            bytes = frame(&mut stream, &mut told) => {
                let header = FrameHeader::decode(&bytes?).map_err(|e| e.to_string())?;
                frames += u64::from(begin.elapsed() >= CATCH_UP);
                if header.seq == seq && let Some(at) = pressed.take() {
                    latencies.push(at.elapsed().as_secs_f64() * 1e3);
                }
            }
            () = tokio::time::sleep_until(next.into()), if pressed.is_none() => {
                seq += 1;
                let keys: &[&str] = if seq.is_multiple_of(2) { &[] } else { &["W"] };
                let control = json!({ "type": "control", "seq": seq, "keys": keys });
                pressed = Some(Instant::now());
                stream.send(Message::text(control.to_string())).await?;
                next += Duration::from_millis(PRESS_MS + (u64::from(seq) * 37 + player * 11) % 83);
            }
        }
    }
    Ok((latencies, frames))
}
