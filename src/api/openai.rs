//! The routes that clients of the OpenAI style know: `/v1/videos` and `/v1/models`, on top of our own.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::access::Client;
use super::body;
use super::http::{blocking, once, only, read_json, send_object};
use super::hub::Hub;
use super::query::{Of, Path, Query};
use super::refusal::Refusal;
use super::uploads;
use crate::proto::api::{GenerateRequest, Kind, SessionStatus, State as Stage};
use crate::proto::limits::{FRAMES, PAGE_MAX};
use crate::proto::resources::ForkRequest;
use crate::store::Object;

type Hubs = State<Arc<Hub>>;

/// Frames a second of videos in this style, which does not name them.
const FPS: u32 = 24;
const SECONDS_DEFAULT: u32 = 4;
const SIZE_DEFAULT: (u32, u32) = (320, 192);

/// Body of POST /v1/videos.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    prompt: String,
    #[serde(default)]
    model: Option<String>,
    /// A number as text, as these clients send it.
    #[serde(default)]
    seconds: Option<Value>,
    /// `WIDTHxHEIGHT`.
    #[serde(default)]
    size: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remix {
    prompt: String,
}

fn wrong(field: &'static str, value: &str, allowed: &str) -> Refusal {
    let shown: String = value.chars().take(64).collect();
    Refusal::new("invalid_field", format!("{field}: {shown:?} is not allowed; allowed: {allowed}."))
        .about(field, allowed)
}

/// Checks the fields that only this style has.
fn request(hub: &Hub, create: Create, from: Option<String>) -> Result<GenerateRequest, Refusal> {
    if let (Some(model), Some(worker)) = (&create.model, hub.worker_status())
        && *model != worker.model
    {
        return Err(wrong("model", model, &worker.model));
    }
    let seconds_max = FRAMES.end() / FPS;
    let seconds = match &create.seconds {
        None => SECONDS_DEFAULT,
        Some(value) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            let number = text.parse::<u32>().ok().filter(|n| (1..=seconds_max).contains(n));
            number.ok_or_else(|| wrong("seconds", &text, &format!("1 to {seconds_max}")))?
        }
    };
    let (width, height) = match &create.size {
        None => SIZE_DEFAULT,
        Some(text) => {
            let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
            sides.ok_or_else(|| wrong("size", text, "WIDTHxHEIGHT in pixels"))?
        }
    };
    Ok(GenerateRequest {
        prompt: create.prompt,
        width,
        height,
        frames: seconds * FPS,
        fps: FPS,
        steps: None,
        seed: None,
        perspective: None,
        interactive: false,
        from,
        video_prompt: None,
    })
}

pub async fn create(
    State(hub): Hubs,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    request_in: Request,
) -> Result<Response, Refusal> {
    let (bytes, from) = match uploads::media_type(&headers).as_str() {
        "multipart/form-data" => {
            let mut fields = Map::new();
            let other = |name: String, text: String| {
                fields.insert(name, Value::from(text));
                Ok(())
            };
            let record = uploads::in_time(uploads::take_form(&hub, &client, request_in, other)).await?;
            (Value::Object(fields).to_string().into_bytes(), record.map(|r| r.id.clone()))
        }
        _ => (read_json(&headers, request_in.into_body()).await?.to_vec(), None),
    };
    let started = once(&hub, &client, &headers, "/v1/videos", &bytes, async || {
        let create: Create = body::parse(&bytes)?;
        let request = request(&hub, create, from)?;
        hub.generate(&client, request).await
    })
    .await?;
    show_one(&hub, &client, &started.id)
}

fn model_name(hub: &Hub) -> String {
    hub.worker_status().map_or_else(|| "unknown".to_string(), |w| w.model)
}

fn video(status: &SessionStatus, model: &str) -> Value {
    let stage = match status.state {
        Stage::Queued => "queued",
        Stage::Running | Stage::Recovering => "in_progress",
        Stage::Done => "completed",
        Stage::Cancelled | Stage::Failed => "failed",
    };
    let error = match (&status.error, status.state) {
        (Some(problem), _) => json!({"code": problem.code, "message": problem.detail}),
        (None, Stage::Cancelled) => json!({"code": "cancelled", "message": "It was cancelled."}),
        (None, _) => Value::Null,
    };
    let seconds = status.frames.div_ceil(status.fps.max(1));
    json!({
        "id": status.id,
        "object": "video",
        "model": model,
        "status": stage,
        "progress": (status.progress * 100.0) as u32,
        "created_at": status.created,
        "completed_at": (status.state == Stage::Done).then_some(status.created),
        "expires_at": null,
        "size": format!("{}x{}", status.width, status.height),
        "seconds": seconds.to_string(),
        "prompt": status.prompt,
        "remixed_from_video_id": status.from,
        "error": error,
    })
}

fn is_video(status: &SessionStatus) -> bool {
    matches!(status.kind, Kind::Clip | Kind::Replay)
}

/// Errors: `unknown_session`, also for what has no video.
fn find(hub: &Hub, client: &Client, id: &str) -> Result<SessionStatus, Refusal> {
    let status = hub.session_status(client, id)?;
    if is_video(&status) { Ok(status) } else { Err(Refusal::unknown_session(id)) }
}

fn show_one(hub: &Hub, client: &Client, id: &str) -> Result<Response, Refusal> {
    Ok(Json(video(&find(hub, client, id)?, &model_name(hub))).into_response())
}

pub async fn show(Of { hub, client, id }: Of) -> Result<Response, Refusal> {
    show_one(&hub, &client, &id)
}

pub async fn list(
    State(hub): Hubs,
    Extension(client): Extension<Client>,
    Query(query): Query,
) -> Result<Response, Refusal> {
    only(&query, &["after", "limit", "order"])?;
    let limit = match query.get("limit") {
        None => 20,
        Some(text) => {
            let number = text.parse().ok().filter(|n| (1..=PAGE_MAX).contains(n));
            number.ok_or_else(|| wrong("limit", text, &format!("1 to {PAGE_MAX}")))?
        }
    };
    let mut videos: Vec<SessionStatus> = hub.known(&client).into_iter().filter(is_video).collect();
    videos.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
    match query.get("order").map(String::as_str) {
        None | Some("desc") => {}
        Some("asc") => videos.reverse(),
        Some(other) => return Err(wrong("order", other, "asc, desc")),
    }
    if let Some(after) = query.get("after") {
        let at = videos.iter().position(|v| v.id == *after);
        let at = at.ok_or_else(|| Refusal::unknown_session(after).about("after", "id of a video"))?;
        videos.drain(..=at);
    }
    let has_more = videos.len() > limit;
    videos.truncate(limit);
    let model = model_name(&hub);
    let data: Vec<Value> = videos.iter().map(|v| video(v, &model)).collect();
    let (first, last) = (videos.first().map(|v| &v.id), videos.last().map(|v| &v.id));
    let list = json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more});
    Ok(Json(list).into_response())
}

pub async fn delete(Of { hub, client, id }: Of) -> Result<Response, Refusal> {
    find(&hub, &client, &id)?;
    let name = id.clone();
    blocking(move || hub.delete(&client, &name)).await??;
    Ok(Json(json!({"id": id, "object": "video.deleted", "deleted": true})).into_response())
}

pub async fn content(Of { hub, client, id }: Of, Query(query): Query, headers: HeaderMap) -> Result<Response, Refusal> {
    only(&query, &["variant"])?;
    let object = match query.get("variant").map(String::as_str) {
        None | Some("video") => Object::Video,
        Some("thumbnail") => Object::Poster,
        Some(other) => return Err(wrong("variant", other, "video, thumbnail")),
    };
    find(&hub, &client, &id)?;
    send_object(&hub, &client, &id, &headers, object).await
}

pub async fn remix(Of { hub, client, id }: Of, headers: HeaderMap, request: Request) -> Result<Response, Refusal> {
    let base = find(&hub, &client, &id)?;
    let bytes = read_json(&headers, request.into_body()).await?;
    let path = format!("remix {id}");
    let started = once(&hub, &client, &headers, &path, &bytes, async || {
        let Remix { prompt } = body::parse(&bytes)?;
        let fork =
            ForkRequest { prompt: Some(prompt), seed: None, interactive: false, frames: Some(base.frames.max(1)) };
        hub.fork(&client, &id, fork).await
    });
    let started = started.await?;
    show_one(&hub, &client, &started.id)
}

fn model_value(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "gamegend"})
}

pub async fn models(State(hub): Hubs) -> Json<Value> {
    let data: Vec<Value> = hub.worker_status().iter().map(|w| model_value(&w.model)).collect();
    Json(json!({"object": "list", "data": data}))
}

pub async fn model(State(hub): Hubs, Path(id): Path<String>) -> Result<Response, Refusal> {
    let known = hub.worker_status().filter(|w| w.model == id);
    let known = known.ok_or_else(|| wrong("model", &id, &model_name(&hub)))?;
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(model_value(&known.model))).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_what_these_clients_know() {
        let problem = Refusal::new("session_failed", "The device was lost.").problem;
        let mut status = SessionStatus {
            id: "x".to_string(),
            kind: Kind::Clip,
            state: Stage::Running,
            queue_position: None,
            progress: 0.505,
            frame_count: 25,
            frames: 49,
            interactive: false,
            prompt: "a meadow".to_string(),
            width: 320,
            height: 192,
            fps: 24,
            steps: 2,
            seed: 1,
            perspective: None,
            from: None,
            video_prompt: None,
            created: 7,
            frames_per_second: 0.0,
            viewers: 0,
            now: None,
            error: None,
            links: super::super::session::links("x", super::super::session::Stored::Nothing),
        };
        let shown = video(&status, "m");
        assert_eq!(
            (&shown["status"], &shown["progress"], &shown["seconds"]),
            (&json!("in_progress"), &json!(50), &json!("3"))
        );
        (status.state, status.error) = (Stage::Failed, Some(*problem));
        let shown = video(&status, "m");
        assert_eq!((&shown["status"], &shown["error"]["code"]), (&json!("failed"), &json!("session_failed")));
    }
}
