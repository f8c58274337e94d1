//! `/ws/stream`: frames out, controls in.
//!
//! A viewer always gets the newest frame. While one is on its way to a slow viewer the next ones replace each other
//! in a watch channel, so nothing queues up in this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::access::Client;
use super::hub::Hub;
use super::limits::{KEYS_HELD_AFTER_LOSS, VIEWER_SEND_TIME_MAX, WS_CONTROLS_PER_SECOND};
use super::metrics::Counters;
use super::query::Query;
use super::refusal::Refusal;
use super::resume::Place;
use super::session::{Session, VideoUnit, Viewer};
use super::{body, http};
use crate::proto::api::{ClientMessage, PROTOCOL_VERSION, ServerMessage};
use crate::proto::limits::WS_MESSAGE_BYTES_MAX;

/// The sub-protocol that we speak; browsers with a token must offer one that is not the token.
const PROTOCOL: &str = "gamegend.1";

/// Upgrades to a WebSocket on a session. Errors: `unknown_session`, `too_many_viewers`, before the upgrade.
pub async fn stream(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    Query(query): Query,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    http::only(&query, &["session", "formats", "resume"])?;
    let id = http::required(&query, "session")?;
    let session = hub.session(&client, id);
    if session.is_none() && hub.stored(&client, id).is_some() {
        return Err(Refusal::new("session_ended", "It is stored; links.video leads to it."));
    }
    let session = session.ok_or_else(|| Refusal::unknown_session(id))?;
    let video = takes_video(query.get("formats").map(String::as_str))?;
    let upgrade = upgrade.map_err(|e| {
        let sent = headers.get("upgrade").map_or("no Upgrade header", |_| "an Upgrade that is not complete");
        Refusal::new("not_found", format!("This is a WebSocket ({sent}: {e}).")).about("Upgrade", "websocket")
    })?;
    let place = hub.places.take(&client, id, query.get("resume").map(String::as_str), hub.new_id(), hub.new_viewer());
    let viewer = session.view(video)?;
    let upgrade =
        upgrade.protocols([PROTOCOL]).max_message_size(WS_MESSAGE_BYTES_MAX).max_frame_size(WS_MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| serve(hub, client, viewer, place, socket)).into_response())
}

/// Which of the formats that a client offers it gets: H.264 if it can, which is smaller. Errors: `invalid_field` if
/// there is none that we have.
fn takes_video(formats: Option<&str>) -> Result<bool, Refusal> {
    let Some(formats) = formats else { return Ok(false) };
    let offers = |format: &str| formats.split(',').any(|f| f.trim() == format);
    match (offers("h264"), offers("jpeg")) {
        (true, _) => Ok(true),
        (false, true) => Ok(false),
        _ => {
            let shown: String = formats.chars().take(64).collect();
            let detail = format!("formats: {shown:?} is not allowed; allowed: jpeg, h264.");
            Err(Refusal::new("invalid_field", detail).about("formats", "jpeg, h264"))
        }
    }
}

/// Why the stream to a viewer ends.
enum End {
    /// Said with a close frame.
    Close(u16, &'static str),
    /// There is nobody to say it to.
    Gone,
}

async fn serve(hub: Arc<Hub>, client: Client, mut viewer: Viewer, place: Place, socket: WebSocket) {
    let session = viewer.session.clone();
    if let Some(before) = place.before {
        session.rename_controller(before, place.viewer);
    }
    let (mut out, mut incoming) = socket.split();
    let mut talk = Talk { hub: &hub, client: &client, place: &place, pace: Pace::default(), await_key: true };
    let end = match talk.run(&mut viewer, &mut out, &mut incoming).await {
        Ok(end) | Err(end) => end,
    };
    drop(viewer);
    let alone = hub.places.lost(&place.token, place.viewer);
    if let End::Close(code, reason) = end {
        let frame = CloseFrame { code, reason: reason.into() };
        let _ = tokio::time::timeout(VIEWER_SEND_TIME_MAX, out.send(Message::Close(Some(frame)))).await;
        // The peer answers with its own close frame; without reading it the kernel may reset what was just sent.
        let answered = async { while let Some(Ok(_)) = incoming.next().await {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), answered).await;
    }
    if session.state().is_final() {
        hub.places.forget(&place.token);
    } else if alone {
        release_later(hub, session, place).await;
    }
}

/// Whoever lost the connection cannot let go of a key.
async fn release_later(hub: Arc<Hub>, session: Arc<Session>, place: Place) {
    tokio::time::sleep(KEYS_HELD_AFTER_LOSS).await;
    if hub.places.is_lost(&place.token, place.viewer) {
        session.release_keys_of(place.viewer);
    }
}

/// The talk with one viewer.
struct Talk<'a> {
    hub: &'a Hub,
    client: &'a Client,
    place: &'a Place,
    pace: Pace,
    /// An H.264 stream has to begin, or to go on after a gap, with a key frame.
    await_key: bool,
}

impl Talk<'_> {
    async fn run(
        &mut self,
        viewer: &mut Viewer,
        out: &mut SplitSink<WebSocket, Message>,
        incoming: &mut SplitStream<WebSocket>,
    ) -> Result<End, End> {
        let session = viewer.session.clone();
        let format = if viewer.video.is_some() { "h264" } else { "jpeg" };
        let vocabulary = self.hub.vocabulary().unwrap_or_default();
        let hello = session.hello(vocabulary, format, &self.place.token, self.place.before.is_some());
        say(out, &hello).await?;
        let mut standing = session.standing();
        loop {
            for message in standing.drain(..) {
                say(out, &message).await?;
                if matches!(message, ServerMessage::Bye { .. }) {
                    return Ok(End::Close(close_code::NORMAL, "the session has ended"));
                }
            }
            tokio::select! {
                // In this order: a frame that is there goes before the news, so the last frame goes before `bye`.
                biased;
                () = self.place.ended.notified() => {
                    return Ok(End::Close(close_code::POLICY, "the stream was resumed elsewhere"));
                }
                message = incoming.next() => match message {
                    Some(Ok(message)) => self.hear(&session, message, out).await?,
                    Some(Err(e)) => return Ok(broken(&e)),
                    None => return Ok(End::Gone),
                },
                unit = next_unit(&mut viewer.video) => self.video(&session, unit, out).await?,
                changed = viewer.shown.changed(), if viewer.video.is_none() => {
                    if changed.is_err() {
                        return Ok(End::Gone);
                    }
                    let shown = viewer.shown.borrow_and_update().clone();
                    if let Some(shown) = shown {
                        self.send_frame(out, shown.message.clone()).await?;
                    }
                }
                event = viewer.events.recv() => match event {
                    Ok(message) => standing.push(message),
                    Err(RecvError::Lagged(_)) => standing = session.standing(),
                    Err(RecvError::Closed) => return Ok(End::Gone),
                },
            }
        }
    }

    async fn send_frame(&self, out: &mut SplitSink<WebSocket, Message>, message: bytes::Bytes) -> Result<(), End> {
        Counters::add(&self.hub.counters.frames_sent, 1);
        send(out, Message::Binary(message)).await
    }

    /// One unit of the H.264 stream, or the news that the viewer was too slow for some.
    async fn video(
        &mut self,
        session: &Session,
        unit: Result<Arc<VideoUnit>, RecvError>,
        out: &mut SplitSink<WebSocket, Message>,
    ) -> Result<(), End> {
        match unit {
            Ok(unit) => {
                self.await_key &= !unit.key;
                if self.await_key {
                    Counters::add(&self.hub.counters.frames_skipped, 1);
                    return Ok(());
                }
                self.send_frame(out, unit.message.clone()).await
            }
            Err(RecvError::Lagged(count)) => {
                Counters::add(&self.hub.counters.frames_skipped, count);
                self.await_key = true;
                session.want_key();
                Ok(())
            }
            Err(RecvError::Closed) => Err(End::Gone),
        }
    }
}

/// The next unit; never for a viewer that takes JPEG.
async fn next_unit(video: &mut Option<Receiver<Arc<VideoUnit>>>) -> Result<Arc<VideoUnit>, RecvError> {
    match video {
        Some(units) => units.recv().await,
        None => std::future::pending().await,
    }
}

impl Talk<'_> {
    /// Takes one message from the viewer. What is wrong with it is told and the stream goes on.
    async fn hear(
        &mut self,
        session: &Session,
        message: Message,
        out: &mut SplitSink<WebSocket, Message>,
    ) -> Result<(), End> {
        let outcome = match message {
            Message::Close(_) => return Err(End::Gone),
            Message::Ping(_) | Message::Pong(_) => return Ok(()),
            _ if !self.pace.allows(Instant::now()) => {
                let detail = format!("{WS_CONTROLS_PER_SECOND} messages a second are allowed.");
                Err(Refusal::new("rate_limited", detail))
            }
            Message::Binary(_) => Err(Refusal::new("invalid_json", "Controls are text messages, this one is binary.")),
            Message::Text(text) => {
                let control = body::parse(text.as_bytes());
                control.and_then(|ClientMessage::Control(control)| {
                    self.hub.control(self.client, &session.spec.id, &control)?;
                    session.set_controller(self.place.viewer);
                    Ok(())
                })
            }
        };
        match outcome {
            Ok(()) => Ok(()),
            // A control that crosses `bye` on the way is nobody's fault.
            Err(refusal) if refusal.problem.code == "session_ended" => Ok(()),
            Err(refusal) => say(out, &ServerMessage::Error { problem: *refusal.problem }).await,
        }
    }
}

fn broken(error: &axum::Error) -> End {
    let mut text = error.to_string();
    text.make_ascii_lowercase();
    match () {
        () if text.contains("too long") || text.contains("too big") => {
            End::Close(close_code::SIZE, "message too large")
        }
        () if text.contains("utf-8") => End::Close(close_code::INVALID, "a text message is not UTF-8"),
        () if text.contains("protocol") => End::Close(close_code::PROTOCOL, "protocol error"),
        () => End::Gone,
    }
}

async fn say(out: &mut SplitSink<WebSocket, Message>, message: &ServerMessage) -> Result<(), End> {
    match serde_json::to_string(message) {
        Ok(text) => send(out, Message::Text(text.into())).await,
        Err(_) => Err(End::Close(close_code::ERROR, "a message could not be written")),
    }
}

async fn send(out: &mut SplitSink<WebSocket, Message>, message: Message) -> Result<(), End> {
    match tokio::time::timeout(VIEWER_SEND_TIME_MAX, out.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(End::Gone),
    }
}

/// Counts messages in whole seconds.
#[derive(Default)]
struct Pace {
    second: Option<Instant>,
    count: u32,
}

impl Pace {
    fn allows(&mut self, now: Instant) -> bool {
        if self.second.is_none_or(|s| now.duration_since(s) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.count <= WS_CONTROLS_PER_SECOND
    }
}

/// The protocol version is part of the sub-protocol's name.
const _: () = assert!(PROTOCOL_VERSION == 1);
