//! `/ws/stream`: frames out, controls in.
//!
//! A viewer always gets the newest frame. While one is on its way to a slow viewer the next ones replace each other
//! in a watch channel, so nothing queues up in this process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::broadcast::error::RecvError;

use super::access::Client;
use super::hub::Hub;
use super::limits::{VIEWER_SEND_TIME_MAX, WS_CONTROLS_PER_SECOND};
use super::refusal::Refusal;
use super::session::Viewer;
use super::{body, http};
use crate::proto::api::{ClientMessage, PROTOCOL_VERSION, ServerMessage};
use crate::proto::limits::WS_MESSAGE_BYTES_MAX;

/// The sub-protocol that we speak; browsers with a token must offer one that is not the token.
const PROTOCOL: &str = "gamegend.1";

/// Upgrades to a WebSocket on a session. Errors: `unknown_session`, `too_many_viewers`, before the upgrade.
pub async fn stream(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let id = http::required(&query, "session")?;
    let session = hub.session(&client, id);
    if session.is_none() && hub.stored(&client, id).is_some() {
        return Err(Refusal::new("session_ended", "It is stored; links.video leads to it."));
    }
    let session = session.ok_or_else(|| Refusal::unknown_session(id))?;
    let upgrade = upgrade.map_err(|e| {
        let sent = headers.get("upgrade").map_or("no Upgrade header", |_| "an Upgrade that is not complete");
        Refusal::new("not_found", format!("This is a WebSocket ({sent}: {e}).")).about("Upgrade", "websocket")
    })?;
    let viewer = session.view()?;
    let upgrade =
        upgrade.protocols([PROTOCOL]).max_message_size(WS_MESSAGE_BYTES_MAX).max_frame_size(WS_MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| serve(hub, client, viewer, socket)).into_response())
}

/// Why the stream to a viewer ends.
enum End {
    /// Said with a close frame.
    Close(u16, &'static str),
    /// There is nobody to say it to.
    Gone,
}

async fn serve(hub: Arc<Hub>, client: Client, mut viewer: Viewer, socket: WebSocket) {
    let (mut out, mut incoming) = socket.split();
    let end = match talk(&hub, &client, &mut viewer, &mut out, &mut incoming).await {
        Ok(end) | Err(end) => end,
    };
    if let End::Close(code, reason) = end {
        let frame = CloseFrame { code, reason: reason.into() };
        let _ = tokio::time::timeout(VIEWER_SEND_TIME_MAX, out.send(Message::Close(Some(frame)))).await;
        // The peer answers with its own close frame; without reading it the kernel may reset what was just sent.
        let answered = async { while let Some(Ok(_)) = incoming.next().await {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), answered).await;
    }
}

async fn talk(
    hub: &Hub,
    client: &Client,
    viewer: &mut Viewer,
    out: &mut SplitSink<WebSocket, Message>,
    incoming: &mut SplitStream<WebSocket>,
) -> Result<End, End> {
    let session = viewer.session.clone();
    say(out, &session.hello(hub.vocabulary().unwrap_or_default())).await?;
    let mut pace = Pace::default();
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
            message = incoming.next() => match message {
                Some(Ok(message)) => hear(hub, client, &session.spec.id, message, &mut pace, out).await?,
                Some(Err(e)) => return Ok(broken(&e)),
                None => return Ok(End::Gone),
            },
            changed = viewer.shown.changed() => {
                if changed.is_err() {
                    return Ok(End::Gone);
                }
                let shown = viewer.shown.borrow_and_update().clone();
                if let Some(shown) = shown {
                    send(out, Message::Binary(shown.message.clone())).await?;
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

/// Takes one message from the viewer. What is wrong with it is told and the stream goes on.
async fn hear(
    hub: &Hub,
    client: &Client,
    id: &str,
    message: Message,
    pace: &mut Pace,
    out: &mut SplitSink<WebSocket, Message>,
) -> Result<(), End> {
    let outcome = match message {
        Message::Close(_) => return Err(End::Gone),
        Message::Ping(_) | Message::Pong(_) => return Ok(()),
        _ if !pace.allows(Instant::now()) => {
            let detail = format!("{WS_CONTROLS_PER_SECOND} messages a second are allowed.");
            Err(Refusal::new("rate_limited", detail))
        }
        Message::Binary(_) => Err(Refusal::new("invalid_json", "Controls are text messages, this one is binary.")),
        Message::Text(text) => {
            body::parse(text.as_bytes()).and_then(|ClientMessage::Control(control)| hub.control(client, id, &control))
        }
    };
    match outcome {
        Ok(()) => Ok(()),
        // A control that crosses `bye` on the way is nobody's fault.
        Err(refusal) if refusal.problem.code == "session_ended" => Ok(()),
        Err(refusal) => say(out, &ServerMessage::Error { problem: *refusal.problem }).await,
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
