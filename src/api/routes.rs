//! The routes, one table for the network and the Unix socket alike, and what every request goes through.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;

use super::access::{Client, Peer};
use super::hub::Hub;
use super::rate::{Kind, Left};
use super::refusal::{REQUEST, Refusal, Request as Asked};
use super::{assets, http, openai, openapi, resources, stream, uploads};
use crate::proto::limits::REQUEST_ID_CHARS_MAX;

/// What pages of this daemon may do: their own scripts, styles, pictures and connections, nothing inline, no frames.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
     media-src 'self' blob:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

pub const REQUEST_ID: &str = "x-request-id";

type Handlers = MethodRouter<Arc<Hub>>;

/// One route.
pub struct Route {
    pub method: &'static str,
    pub path: &'static str,
    /// Its name in /openapi.json.
    pub id: &'static str,
    /// What its requests count as; `None`: they are not counted.
    pub kind: Option<Kind>,
    handlers: fn() -> Handlers,
}

/// A row of the table: the method is named once and gives the router's function, too.
macro_rules! route {
    ($method:ident $path:literal $id:literal $kind:expr, $handler:expr) => {
        Route {
            method: stringify!($method),
            path: $path,
            id: $id,
            kind: $kind,
            handlers: || axum::routing::$method($handler),
        }
    };
}

const GENERATE: Option<Kind> = Some(Kind::Generate);
const CONTROL: Option<Kind> = Some(Kind::Control);
const STATUS: Option<Kind> = Some(Kind::Status);
const DECODE: Option<Kind> = Some(Kind::Decode);

/// Every route, in the order of gamegend-protocol(7).
pub const ROUTES: &[Route] = &[
    route!(post "/api/v1/generate" "generate" GENERATE, http::generate),
    route!(delete "/api/v1/generate" "cancel" CONTROL, http::stop),
    route!(post "/api/v1/control" "control" CONTROL, http::control),
    route!(get "/api/v1/status" "status" STATUS, http::status),
    route!(get "/api/v1/video" "video" None, http::video),
    route!(get "/api/v1/poster" "poster" None, http::poster),
    route!(get "/api/v1/sessions" "listSessions" STATUS, resources::list_sessions),
    route!(get "/api/v1/sessions/{id}" "showSession" STATUS, resources::show_session),
    route!(delete "/api/v1/sessions/{id}" "deleteSession" CONTROL, resources::delete_session),
    route!(get "/api/v1/sessions/{id}/trace" "showTrace" STATUS, resources::trace),
    route!(post "/api/v1/sessions/{id}/snapshot" "keepSnapshot" GENERATE, resources::snapshot),
    route!(post "/api/v1/sessions/{id}/fork" "forkSession" GENERATE, resources::fork),
    route!(post "/api/v1/sessions/{id}/replay" "replaySession" GENERATE, resources::replay),
    route!(get "/api/v1/videos" "listVideos" STATUS, resources::list_videos),
    route!(get "/api/v1/videos/{id}" "showVideo" STATUS, resources::show_video),
    route!(delete "/api/v1/videos/{id}" "deleteVideo" CONTROL, resources::delete_video),
    route!(get "/api/v1/videos/{id}/content" "videoContent" None, resources::content),
    route!(get "/api/v1/videos/{id}/poster" "videoPoster" None, resources::poster),
    route!(get "/api/v1/videos/{id}/frames/{index}" "videoFrame" DECODE, resources::frame),
    route!(post "/api/v1/uploads" "upload" GENERATE, uploads::upload),
    route!(get "/api/v1/uploads" "listUploads" STATUS, uploads::list),
    route!(get "/api/v1/uploads/{id}" "showUpload" STATUS, uploads::show),
    route!(delete "/api/v1/uploads/{id}" "deleteUpload" CONTROL, uploads::delete),
    route!(get "/api/v1/uploads/{id}/preview" "previewUpload" DECODE, uploads::preview),
    route!(get "/api/v1/models" "listModels" STATUS, resources::models),
    route!(post "/v1/videos" "openaiCreateVideo" GENERATE, openai::create),
    route!(get "/v1/videos" "openaiListVideos" STATUS, openai::list),
    route!(get "/v1/videos/{id}" "openaiShowVideo" STATUS, openai::show),
    route!(delete "/v1/videos/{id}" "openaiDeleteVideo" CONTROL, openai::delete),
    route!(get "/v1/videos/{id}/content" "openaiVideoContent" None, openai::content),
    route!(post "/v1/videos/{id}/remix" "openaiRemixVideo" GENERATE, openai::remix),
    route!(get "/v1/models" "openaiListModels" STATUS, openai::models),
    route!(get "/v1/models/{id}" "openaiShowModel" STATUS, openai::model),
    route!(get "/ws/stream" "stream" None, stream::stream),
    route!(get "/metrics" "metrics" STATUS, http::metrics),
    route!(get "/healthz" "health" None, http::health),
    route!(get "/readyz" "ready" None, http::ready),
    route!(get "/openapi.json" "openapi" None, openapi::show),
    route!(get "/" "page" None, assets::index),
    route!(get "/{asset}" "asset" None, assets::asset),
];

/// The router of the table.
pub fn router(hub: Arc<Hub>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        router = router.route(route.path, (route.handlers)());
    }
    router
        .fallback(|| async { Refusal::new("not_found", "There is nothing at this path.") })
        .method_not_allowed_fallback(|request: Request| async move {
            let detail = format!("{} is not for this path; the Allow header says what is.", request.method());
            Refusal::new("method_not_allowed", detail)
        })
        .layer(middleware::from_fn_with_state(hub.clone(), guard))
        // Each handler has its own limit: most take little, uploads much.
        .layer(DefaultBodyLimit::disable())
        .with_state(hub)
}

/// What requests of a method and path count as.
fn kind_of(method: &Method, path: &str) -> Option<Kind> {
    let same = |r: &&Route| r.path == path && r.method.eq_ignore_ascii_case(method.as_str());
    ROUTES.iter().find(same).and_then(|r| r.kind)
}

/// Lets a request in if its client may send it now, and adds what every answer has.
async fn guard(State(hub): State<Arc<Hub>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers(), &hub);
    let openai = request.uri().path().starts_with("/v1/");
    let asked = Asked { id: id.clone(), openai };
    let counters = hub.counters.clone();
    let mut response = REQUEST
        .scope(asked, async move {
            match admit(&hub, &request) {
                Ok((client, left)) => {
                    request.extensions_mut().insert(client);
                    let mut response = next.run(request).await;
                    if let Some(left) = left {
                        tell_rate(response.headers_mut(), left);
                    }
                    response
                }
                Err((refusal, kind)) => {
                    let wait = refusal.retry_after;
                    let mut response = refusal.into_response();
                    if let (Some(kind), Some(wait)) = (kind, wait) {
                        let reset = std::time::Duration::from_secs(wait);
                        tell_rate(response.headers_mut(), Left { kind, requests: 0, reset });
                    }
                    response
                }
            }
        })
        .await;
    counters.answered(response.status().as_u16());
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    headers.insert("permissions-policy", HeaderValue::from_static("camera=(), microphone=(), geolocation=()"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

type Admitted = (Client, Option<Left>);

/// Who it is, and what that client has left. Errors: `unauthorized`, `cross_origin`, `rate_limited` with its kind.
fn admit(hub: &Hub, request: &Request) -> Result<Admitted, (Refusal, Option<Kind>)> {
    let peer = request.extensions().get::<Peer>().copied();
    let peer = peer.ok_or_else(|| (Refusal::new("internal", "The connection has no peer."), None))?;
    let client = hub.access.client(peer, request.method(), request.uri(), request.headers()).map_err(|r| (r, None))?;
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    // HEAD is GET without the body, and costs as much.
    let method = if *request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let Some(kind) = kind_of(method, path) else { return Ok((client, None)) };
    let address = match peer {
        Peer::Network(address) => Some(Client::Address(address.ip())),
        Peer::Local { .. } => None,
    };
    match hub.count(&client, address, kind) {
        Ok(left) => Ok((client, left)),
        Err(refusal) => Err((refusal, Some(kind))),
    }
}

/// The headers of draft-ietf-httpapi-ratelimit-headers.
fn tell_rate(headers: &mut HeaderMap, left: Left) {
    let name = left.kind.name();
    let policy = format!("\"{name}\";q={};w=60", left.kind.per_minute());
    let reset = left.reset.as_secs_f64().ceil() as u64;
    let now = format!("\"{name}\";r={};t={reset}", left.requests);
    for (header, text) in [("ratelimit-policy", policy), ("ratelimit", now)] {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(header, value);
        }
    }
}

/// The client's own id if it sent a good one.
fn request_id(headers: &HeaderMap, hub: &Hub) -> String {
    let sent = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok());
    let good = |id: &&str| {
        (1..=REQUEST_ID_CHARS_MAX).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    sent.filter(good).map_or_else(|| hub.new_id(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_manual_page_has_every_route() {
        let page = include_str!("../../man/gamegend-protocol.7");
        for (i, route) in ROUTES.iter().enumerate() {
            assert!(!ROUTES[..i].iter().any(|r| r.id == route.id), "{} twice", route.id);
            let shown = format!("{} {}", route.method.to_uppercase(), route.path.replace("{asset}", ""));
            assert!(page.contains(&shown), "gamegend-protocol(7) does not have {shown}");
        }
    }

    #[test]
    fn requests_are_counted_by_their_route() {
        assert_eq!(kind_of(&Method::POST, "/api/v1/generate"), Some(Kind::Generate));
        assert_eq!(kind_of(&Method::DELETE, "/api/v1/generate"), Some(Kind::Control));
        assert_eq!(kind_of(&Method::GET, "/api/v1/videos/{id}/content"), None);
        assert_eq!(kind_of(&Method::PUT, "/api/v1/generate"), None);
    }
}
