//! The routes, one table for the network and the Unix socket alike.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Map, Value};

use super::access::{Client, Peer};
use super::hub::Hub;
use super::limits::BODY_TIME_MAX;
use super::rate::Kind;
use super::refusal::Refusal;
use super::{assets, body, files, stream};
use crate::proto::api::{Control, GenerateReply, GenerateRequest};
use crate::proto::limits::BODY_BYTES_MAX;
use crate::store::Object;

/// What pages of this daemon may do: their own scripts, styles, pictures and connections, nothing inline, no frames.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
     media-src 'self' blob:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// Every route.
pub fn router(hub: Arc<Hub>) -> Router {
    Router::new()
        .route("/api/v1/generate", post(generate).delete(stop))
        .route("/api/v1/control", post(control))
        .route("/api/v1/status", get(status))
        .route("/api/v1/video", get(video))
        .route("/api/v1/poster", get(poster))
        .route("/ws/stream", get(stream::stream))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/", get(assets::index))
        .route("/{asset}", get(assets::asset))
        .fallback(|| async { Refusal::new("not_found", "There is nothing at this path.") })
        .method_not_allowed_fallback(|request: Request| async move {
            let detail = format!("{} is not for this path; the Allow header says what is.", request.method());
            Refusal::new("method_not_allowed", detail)
        })
        .layer(middleware::from_fn_with_state(hub.clone(), guard))
        .with_state(hub)
}

/// Lets a request in if its client may send it, and adds what every answer has.
async fn guard(State(hub): State<Arc<Hub>>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    let client = match peer {
        Some(peer) => hub.access.client(peer, request.method(), request.uri(), request.headers()),
        None => Err(Refusal::new("internal", "The connection has no peer.")),
    };
    let mut response = match client {
        Ok(client) => {
            request.extensions_mut().insert(client);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn generate(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    request: Body,
) -> Result<Response, Refusal> {
    hub.count(&client, Kind::Generate)?;
    let request: GenerateRequest = body::parse(&read_json(&headers, request).await?)?;
    // Reading a snapshot to continue from blocks.
    let session = blocking(move || hub.generate(&client, request)).await??;
    let reply = GenerateReply { id: session.spec.id.clone(), links: super::session::links(&session.spec.id, false) };
    let mut response = (StatusCode::ACCEPTED, Json(&reply)).into_response();
    if let Ok(location) = HeaderValue::from_str(&reply.links.status) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn control(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    request: Body,
) -> Result<Response, Refusal> {
    hub.count(&client, Kind::Control)?;
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

async fn status(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, Refusal> {
    hub.count(&client, Kind::Status)?;
    Ok(match query.get("id") {
        Some(id) => Json(hub.session_status(&client, id)?).into_response(),
        None => Json(hub.status(&client)).into_response(),
    })
}

async fn stop(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, Refusal> {
    let id = required(&query, "id")?;
    if let Some(session) = hub.session(&client, id) {
        hub.stop(&session);
    }
    Ok(Json(hub.session_status(&client, id)?).into_response())
}

async fn video(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    object(&hub, &client, &query, &headers, Object::Video).await
}

async fn poster(
    State(hub): State<Arc<Hub>>,
    Extension(client): Extension<Client>,
    Query(query): Query<HashMap<String, String>>,
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
    let id = required(query, "id")?;
    if hub.stored(client, id).is_none() {
        let session = hub.session(client, id).ok_or_else(|| Refusal::unknown_session(id))?;
        let what = if session.is_interactive() { "An interactive session is not stored" } else { "It is not finished" };
        return Err(Refusal::new("no_object", format!("{what}.")));
    }
    let (store, owned) = (hub.store.clone(), id.to_string());
    let file = blocking(move || store.open(&owned, object)).await?.map_err(|e| Refusal::internal(&e))?;
    files::send(file, object, id, headers).await
}

async fn ready(State(hub): State<Arc<Hub>>) -> Result<&'static str, Refusal> {
    match hub.state_word() {
        "ready" => Ok("ready\n"),
        "draining" => Err(Refusal::new("draining", "The daemon is stopping.")),
        word => Err(Refusal::new("worker_unavailable", format!("The daemon is {word}.")).retry_after(1)),
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
async fn read_json(headers: &HeaderMap, request: Body) -> Result<bytes::Bytes, Refusal> {
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
