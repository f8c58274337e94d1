//! The handlers of the first routes: generate, control, status, and what all handlers share.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Map, Value};

use super::access::Client;
use super::hub::Hub;
use super::idempotency::Turn;
use super::limits::BODY_TIME_MAX;
use super::query::Query;
use super::refusal::Refusal;
use super::session::{Session, Stored, links};
use super::{body, files};
use crate::proto::api::{Control, GenerateReply, GenerateRequest};
use crate::proto::limits::BODY_BYTES_MAX;
use crate::store::Object;

pub async fn generate(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    request: Body,
) -> Result<Response, Refusal> {
    let bytes = read_json(&headers, request).await?;
    let started = once(&hub, &client, &headers, "generate", &bytes, async || {
        let request: GenerateRequest = body::parse(&bytes)?;
        hub.generate(&client, request).await
    });
    started_reply(&started.await?)
}

/// A session that a request started, or that the same request started before.
pub struct Started {
    pub id: String,
    /// True if nothing was done now.
    pub again: bool,
}

/// Runs `start` unless a request with the same `Idempotency-Key` did before.
pub async fn once(
    hub: &Arc<Hub>,
    client: &Client,
    headers: &HeaderMap,
    path: &str,
    bytes: &[u8],
    start: impl AsyncFnOnce() -> Result<Arc<Session>, Refusal>,
) -> Result<Started, Refusal> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(Started { id: start().await?.spec.id.clone(), again: false });
    };
    let key = key.to_str().unwrap_or("");
    if let Turn::Again(id) = hub.keys.begin(client, key, path, bytes)? {
        return Ok(Started { id, again: true });
    }
    match start().await {
        Ok(session) => {
            hub.keys.done(client, key, &session.spec.id);
            Ok(Started { id: session.spec.id.clone(), again: false })
        }
        Err(refusal) => {
            hub.keys.failed(client, key);
            Err(refusal)
        }
    }
}

/// 202 with the id and where to go on.
pub fn started_reply(started: &Started) -> Result<Response, Refusal> {
    let reply = GenerateReply { id: started.id.clone(), links: links(&started.id, Stored::Nothing) };
    let mut response = (StatusCode::ACCEPTED, Json(&reply)).into_response();
    let location = HeaderValue::from_str(&reply.links.session).map_err(|e| Refusal::internal(&e))?;
    response.headers_mut().insert(header::LOCATION, location);
    if started.again {
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

pub async fn control(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    request: Body,
) -> Result<Response, Refusal> {
    // A flattened structure would let unknown fields pass, so the session is taken out by hand.
    let mut object: Map<String, Value> = body::parse(&read_json(&headers, request).await?)?;
    let id = match object.remove("session") {
        Some(Value::String(id)) => id,
        Some(other) => {
            let detail = format!("session: {other} is not allowed; allowed: a string.");
            return Err(Refusal::new("invalid_field", detail).about("session", "a string"));
        }
        None => {
            return Err(Refusal::new("missing_field", "The field \"session\" is required.").about("session", "an id"));
        }
    };
    let control: Control = body::from_object(object)?;
    hub.control(&client, &id, &control)?;
    Ok(Json(hub.session_status(&client, &id)?).into_response())
}

pub async fn status(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    Query(query): Query,
) -> Result<Response, Refusal> {
    only(&query, &["id"])?;
    Ok(match query.get("id") {
        Some(id) => Json(hub.session_status(&client, id)?).into_response(),
        None => Json(hub.status(&client)).into_response(),
    })
}

pub async fn stop(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    Query(query): Query,
) -> Result<Response, Refusal> {
    only(&query, &["id"])?;
    let id = required(&query, "id")?;
    if let Some(session) = hub.session(&client, id) {
        hub.stop(&session);
    }
    Ok(Json(hub.session_status(&client, id)?).into_response())
}

pub async fn video(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    Query(query): Query,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    object(&hub, &client, &query, &headers, Object::Video).await
}

pub async fn poster(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    Query(query): Query,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    object(&hub, &client, &query, &headers, Object::Poster).await
}

async fn object(
    hub: &Arc<Hub>,
    client: &Client,
    query: &HashMap<String, String>,
    headers: &HeaderMap,
    object: Object,
) -> Result<Response, Refusal> {
    only(query, &["id"])?;
    send_object(hub, client, required(query, "id")?, headers, object).await
}

/// Sends an object of a stored thing. Errors: `unknown_session`, `no_object`.
pub async fn send_object(
    hub: &Arc<Hub>,
    client: &Client,
    id: &str,
    headers: &HeaderMap,
    object: Object,
) -> Result<Response, Refusal> {
    let none = |what: &str| Refusal::new("no_object", format!("{what}."));
    let Some(stored) = hub.stored(client, id) else {
        let session = hub.session(client, id).ok_or_else(|| Refusal::unknown_session(id))?;
        return Err(none(if session.is_interactive() {
            "An interactive session has no video"
        } else {
            "It is not finished"
        }));
    };
    if object == Object::Video && stored.video_bytes == 0 {
        return Err(none("A session's state has no video; replay it to get one"));
    }
    let (store, owned) = (hub.store.clone(), id.to_string());
    let file = blocking(move || store.open(&owned, object)).await?.map_err(|_| none("There is none"))?;
    files::send(file, object, id, headers).await
}

pub async fn ready(State(hub): State<Arc<Hub>>) -> Result<&'static str, Refusal> {
    match hub.state_word() {
        "ready" => Ok("ready\n"),
        "draining" => Err(Refusal::new("draining", "The daemon is stopping.")),
        word => Err(Refusal::new("worker_unavailable", format!("The daemon is {word}.")).retry_after(1)),
    }
}

pub async fn health() -> &'static str {
    "ok\n"
}

pub async fn metrics(State(hub): State<Arc<Hub>>, Extension(client): Extension<Client>) -> impl IntoResponse {
    let text = hub.counters.text(&hub.status(&client), hub.queue_length());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// Errors: `unknown_field` for a parameter that there is not.
pub fn only(query: &HashMap<String, String>, names: &[&str]) -> Result<(), Refusal> {
    match query.keys().find(|k| !names.contains(&k.as_str())) {
        Some(other) => {
            let shown: String = other.chars().take(64).collect();
            let detail = format!("There is no parameter {shown:?}.");
            Err(Refusal::new("unknown_field", detail).about(shown, names.join(", ")))
        }
        None => Ok(()),
    }
}

/// A parameter of the query. Errors: `missing_field`.
pub fn required<'a>(query: &'a HashMap<String, String>, name: &'static str) -> Result<&'a str, Refusal> {
    let missing = || Refusal::new("missing_field", format!("The parameter {name:?} is required.")).about(name, "an id");
    query.get(name).map(String::as_str).ok_or_else(missing)
}

/// Runs what may wait for a disk away from the threads that serve.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Refusal::internal(&e))
}

/// The body of a request that says it is JSON: only such requests need the consent of a site before they are sent.
pub async fn read_json(headers: &HeaderMap, request: Body) -> Result<bytes::Bytes, Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    if !kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json") {
        let detail = format!("The body is {kind:?}.");
        return Err(Refusal::new("unsupported_media_type", detail).about("Content-Type", "application/json"));
    }
    let too_large = || {
        let detail = format!("The body has more than {BODY_BYTES_MAX} bytes.");
        Refusal::new("body_too_large", detail).about("body", format!("at most {BODY_BYTES_MAX} bytes"))
    };
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|n| n > BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIME_MAX, to_bytes(request, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            let detail = format!("The body was not complete after {} s.", BODY_TIME_MAX.as_secs());
            Err(Refusal::new("request_timeout", detail))
        }
    }
}
