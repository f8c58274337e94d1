//! The handlers for sessions, videos and models: list, show, delete, and what can be made of them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::access::Client;
use super::http::{blocking, once, only, read_json, send_object, started_reply};
use super::hub::Hub;
use super::page::{self, Key};
use super::query::{Of, Path, Query};
use super::refusal::Refusal;
use super::{body, files};
use crate::frame::trace::{self, Change};
use crate::proto::api::{Kind, SessionStatus};
use crate::proto::decode::{Job, Media, Part};
use crate::proto::resources::{
    ForkRequest, ModelReply, NoFields, SessionReply, SessionValue, TraceChange, Video, VideoLinks,
};
use crate::store::{Generation, Object};

type Hubs = State<Arc<Hub>>;

pub async fn list_sessions(
    State(hub): Hubs,
    Extension(client): Extension<Client>,
    Query(query): Query,
) -> Result<Response, Refusal> {
    only(&query, &["limit", "cursor", "kind"])?;
    let kind = query.get("kind").map(|text| kind_named(text)).transpose()?;
    let mut known = hub.known(&client);
    known.retain(|s| kind.is_none_or(|k| s.kind == k));
    let key = |s: &SessionStatus| Key { created: s.created, id: s.id.clone() };
    Ok(Json(page::page(known, key, &query)?).into_response())
}

fn kind_named(text: &str) -> Result<Kind, Refusal> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|_| {
        let allowed = "clip, session, snapshot, replay";
        let shown: String = text.chars().take(64).collect();
        let detail = format!("kind: {shown:?} is not allowed; allowed: {allowed}.");
        Refusal::new("invalid_field", detail).about("kind", allowed)
    })
}

pub async fn show_session(Of { hub, client, id }: Of) -> Result<Json<SessionReply>, Refusal> {
    let status = hub.session_status(&client, &id)?;
    let value = blocking(move || hub.snapshot(&client, &id)).await?.ok().map(|snapshot| {
        let about = snapshot.about;
        SessionValue {
            model_hash: about.model_hash,
            device: about.device,
            prompt: about.prompt,
            seed: about.seed,
            width: about.width,
            height: about.height,
            steps: about.steps,
            tick: about.tick,
            changes: trace::decode(&snapshot.trace).map_or(0, |c| c.len()),
            changes_dropped: about.trace_dropped,
        }
    });
    Ok(Json(SessionReply { status, value }))
}

pub async fn delete_session(Of { hub, client, id }: Of) -> Result<StatusCode, Refusal> {
    blocking(move || hub.delete(&client, &id)).await??;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn trace(Of { hub, client, id }: Of) -> Result<Response, Refusal> {
    let snapshot = blocking(move || hub.snapshot(&client, &id)).await??;
    let changes =
        trace::decode(&snapshot.trace).ok_or_else(|| Refusal::new("trace_incomplete", "Its trace cannot be read."))?;
    let changes: Vec<TraceChange> = changes.into_iter().map(shown).collect();
    let (tick, dropped) = (snapshot.about.tick, snapshot.about.trace_dropped);
    Ok(Json(serde_json::json!({"tick": tick, "changes_dropped": dropped, "changes": changes})).into_response())
}

fn shown(change: Change) -> TraceChange {
    match change {
        Change::Keys { tick, seq, keys } => {
            TraceChange::Keys { tick, seq, keys: keys.names().iter().map(|k| k.to_string()).collect() }
        }
        Change::Instruction { tick, seq, environment, text } => TraceChange::Instruction {
            tick,
            seq,
            weather: environment.weather,
            lighting: environment.lighting,
            effects: environment.effects,
            instruction: text,
        },
        Change::Continued { tick, from } => TraceChange::Continued { tick, from },
        Change::Began { tick } => TraceChange::Began { tick },
        Change::Steps { tick, steps } => TraceChange::Steps { tick, steps },
        Change::Size { tick, width, height } => TraceChange::Size { tick, width, height },
    }
}

/// The body of a request that may have none.
async fn optional_json(headers: &HeaderMap, request: Body) -> Result<bytes::Bytes, Refusal> {
    let empty = headers.get(header::CONTENT_LENGTH).is_none_or(|v| v == "0");
    if empty && !headers.contains_key(header::CONTENT_TYPE) && !headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(bytes::Bytes::from_static(b"{}"));
    }
    read_json(headers, request).await
}

pub async fn snapshot(Of { hub, client, id }: Of, headers: HeaderMap, request: Body) -> Result<Response, Refusal> {
    let NoFields {} = body::parse(&optional_json(&headers, request).await?)?;
    let (keeper, asker) = (hub.clone(), client.clone());
    let kept = blocking(move || keeper.keep(&asker, &id)).await??;
    let status = hub.session_status(&client, &kept)?;
    let location = HeaderValue::from_str(&status.links.session).map_err(|e| Refusal::internal(&e))?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(status)).into_response())
}

pub async fn fork(Of { hub, client, id }: Of, headers: HeaderMap, request: Body) -> Result<Response, Refusal> {
    let bytes = optional_json(&headers, request).await?;
    let path = format!("fork {id}");
    let started = once(&hub, &client, &headers, &path, &bytes, async || {
        let request: ForkRequest = body::parse(&bytes)?;
        hub.fork(&client, &id, request).await
    });
    started_reply(&started.await?)
}

pub async fn replay(Of { hub, client, id }: Of, headers: HeaderMap, request: Body) -> Result<Response, Refusal> {
    let bytes = optional_json(&headers, request).await?;
    let path = format!("replay {id}");
    let started = once(&hub, &client, &headers, &path, &bytes, async || {
        let NoFields {} = body::parse(&bytes)?;
        hub.replay(&client, &id).await
    });
    started_reply(&started.await?)
}

/// A stored video. Errors: `unknown_session`, `no_object` for what has none.
fn video_of(hub: &Hub, client: &Client, id: &str) -> Result<Arc<Generation>, Refusal> {
    match hub.stored(client, id) {
        Some(g) if g.video_bytes > 0 => Ok(g),
        Some(_) => Err(Refusal::new("no_object", "A session's state has no video; replay it to get one.")),
        None if hub.session(client, id).is_some() => Err(Refusal::new("no_object", "It is not finished.")),
        None => Err(Refusal::unknown_session(id)),
    }
}

fn describe(g: &Generation) -> Video {
    let base = format!("/api/v1/videos/{}", g.id);
    Video {
        id: g.id.clone(),
        kind: g.kind,
        prompt: g.prompt.clone(),
        width: g.width,
        height: g.height,
        fps: g.fps,
        frames: g.frames,
        seconds: f64::from(g.frames) / f64::from(g.fps.max(1)),
        steps: g.steps,
        seed: g.seed,
        perspective: g.perspective.clone(),
        from: g.from.clone(),
        video_prompt: g.video_prompt.clone(),
        model_hash: g.model_hash.clone(),
        created: g.created,
        bytes: g.video_bytes,
        links: VideoLinks {
            content: format!("{base}/content"),
            poster: format!("{base}/poster"),
            frame: format!("{base}/frames/{{index}}"),
            video: base,
        },
    }
}

pub async fn list_videos(
    State(hub): Hubs,
    Extension(client): Extension<Client>,
    Query(query): Query,
) -> Result<Response, Refusal> {
    only(&query, &["limit", "cursor"])?;
    let mut all = hub.store.list();
    all.retain(|g| g.video_bytes > 0 && client.may_use(&g.owner));
    let videos: Vec<Video> = all.iter().map(|g| describe(g)).collect();
    let key = |v: &Video| Key { created: v.created, id: v.id.clone() };
    Ok(Json(page::page(videos, key, &query)?).into_response())
}

pub async fn show_video(Of { hub, client, id }: Of) -> Result<Json<Video>, Refusal> {
    Ok(Json(describe(&*video_of(&hub, &client, &id)?)))
}

pub async fn delete_video(Of { hub, client, id }: Of) -> Result<StatusCode, Refusal> {
    video_of(&hub, &client, &id)?;
    blocking(move || hub.delete(&client, &id)).await??;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn content(Of { hub, client, id }: Of, headers: HeaderMap) -> Result<Response, Refusal> {
    send_object(&hub, &client, &id, &headers, Object::Video).await
}

pub async fn poster(Of { hub, client, id }: Of, headers: HeaderMap) -> Result<Response, Refusal> {
    send_object(&hub, &client, &id, &headers, Object::Poster).await
}

pub async fn frame(
    State(hub): Hubs,
    Extension(client): Extension<Client>,
    Path((id, index)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let video = video_of(&hub, &client, &id)?;
    let last = video.frames.saturating_sub(1);
    let index = index.strip_suffix(".png").unwrap_or(&index);
    let index = index.parse::<u32>().ok().filter(|i| *i <= last).ok_or_else(|| {
        let shown: String = index.chars().take(64).collect();
        Refusal::new("not_found", format!("There is no frame {shown:?}.")).about("index", format!("0 to {last}"))
    })?;
    let tag = format!("\"{id}.{index}.png\"");
    let about = files::About { kind: "image/png", name: None, tag: &tag };
    files::send_decoded(&about, &headers, async || {
        let (store, name) = (hub.store.clone(), id.clone());
        let file = blocking(move || store.open(&name, Object::Video)).await?.map_err(|e| Refusal::internal(&e))?;
        let parts = vec![Part { media: Media::Mp4, at: 0, bytes: video.video_bytes }];
        hub.decoders.picture(file, parts, Job::Frame { index }).await
    })
    .await
}

pub async fn models(State(hub): Hubs) -> Json<serde_json::Value> {
    let model = hub.worker_status().map(|w| ModelReply {
        id: w.model,
        hash: w.model_hash,
        parameters: w.parameters,
        device: w.device,
        vocabulary: w.vocabulary,
    });
    Json(serde_json::json!({"items": model.into_iter().collect::<Vec<_>>()}))
}
