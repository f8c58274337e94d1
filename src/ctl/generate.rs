//! `gamegendctl generate`: start a clip, show how it goes on, fetch it.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::client::{Client, stream_error};
use super::terminal::{Line, bar};
use super::{CtlError, print, show, write_file};
use crate::proto::api::{GenerateReply, GenerateRequest, ServerMessage, SessionStatus, State};

/// Without a terminal, a line of progress this often.
const LINE_PERIOD: Duration = Duration::from_secs(2);
const POLL_PERIOD: Duration = Duration::from_millis(500);

/// Generates a clip into `output`. An interrupt cancels the generation.
pub async fn run(client: &Client, request: &GenerateRequest, output: &Path) -> Result<(), CtlError> {
    // Before the work: hours later is too late to learn that the folder does not exist.
    check_writable(output)?;
    let reply = client.generate(request).await?;
    fetch(client, &reply, output).await
}

/// Waits for a video that was begun and saves it. An interrupt cancels it.
pub async fn fetch(client: &Client, reply: &GenerateReply, output: &Path) -> Result<(), CtlError> {
    let begun = Instant::now();
    let ended = tokio::select! {
        ended = follow(client, reply) => ended?,
        _ = tokio::signal::ctrl_c() => {
            let _: SessionStatus = client.delete_json(&reply.links.cancel).await?;
            return Err(CtlError::Interrupted);
        }
    };
    let video = match (ended.state, &ended.links.video, ended.error) {
        (State::Done, Some(video), _) => video.clone(),
        (_, _, Some(problem)) => return Err(CtlError::Refused(Box::new(problem))),
        (state, _, None) => return Err(CtlError::Answer(format!("the generation is {}", state.name()))),
    };
    let bytes = client.get(&video).await?;
    write_file(output, &bytes)?;
    let seconds = begun.elapsed().as_secs_f64();
    print(&format!(
        "{}: {} frames of {}x{}, seed {}, {:.1} KiB, {:.1} s ({:.1} frames/s)\n",
        output.display(),
        ended.frame_count,
        ended.width,
        ended.height,
        ended.seed,
        bytes.len() as f64 / 1024.0,
        seconds,
        ended.frame_count as f64 / seconds.max(1e-3),
    ));
    Ok(())
}

/// A file in a folder that exists.
pub fn check_writable(output: &Path) -> Result<(), CtlError> {
    let folder = output.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let kind = match (folder.is_dir(), output.is_dir()) {
        (false, _) => std::io::ErrorKind::NotFound,
        (_, true) => std::io::ErrorKind::IsADirectory,
        _ => return Ok(()),
    };
    Err(CtlError::Write { path: output.to_path_buf(), source: kind.into() })
}

/// Shows the progress until the generation has ended.
async fn follow(client: &Client, reply: &GenerateReply) -> Result<SessionStatus, CtlError> {
    let mut line = Line::new();
    match client.stream(&reply.links.stream).await {
        Ok(stream) => watch(stream, &mut line).await?,
        // It may have ended before we came.
        Err(CtlError::Refused(_)) => {}
        Err(e) => return Err(e),
    }
    loop {
        let status: SessionStatus = client.get_json(&reply.links.status).await?;
        if status.state.is_final() {
            return Ok(status);
        }
        tokio::time::sleep(POLL_PERIOD).await;
    }
}

async fn watch(mut stream: WebSocketStream<UnixStream>, line: &mut Line) -> Result<(), CtlError> {
    let begun = Instant::now();
    let mut told = None::<Instant>;
    while let Some(message) = stream.next().await {
        let text = match message.map_err(stream_error)? {
            Message::Text(text) => text,
            Message::Close(_) => break,
            _ => continue,
        };
        match serde_json::from_str(&text).map_err(|e| CtlError::Answer(e.to_string()))? {
            ServerMessage::Progress { frame, frames } => {
                let due = line.rewrites() || frame == frames || told.is_none_or(|t| t.elapsed() >= LINE_PERIOD);
                if due {
                    told = Some(Instant::now());
                    line.show(&progress(frame, frames, begun.elapsed(), line.rewrites()));
                }
            }
            ServerMessage::Recovering { reason } => line.show(&format!("recovering: {reason}")),
            ServerMessage::Degraded { reason } => line.show(&format!("degraded: {reason}")),
            ServerMessage::Bye { .. } => break,
            _ => {}
        }
    }
    Ok(())
}

fn progress(frame: u32, frames: u32, elapsed: Duration, with_bar: bool) -> String {
    let rate = f64::from(frame) / elapsed.as_secs_f64().max(1e-3);
    let left = f64::from(frames.saturating_sub(frame)) / rate.max(1e-3);
    let left = if frame == 0 { String::new() } else { format!(", {} left", show::duration(left as u64)) };
    let bar = if with_bar { bar(f64::from(frame) / f64::from(frames.max(1)), 30) + " " } else { String::new() };
    format!("{bar}{frame}/{frames} frames, {rate:.1} frames/s{left}")
}
