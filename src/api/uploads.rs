//! Uploads: a clip or pictures arrive, are looked at by a decoder, and can then be continued or lead a session.
//!
//! This process writes the bytes to the disk and never looks into them beyond the first few, which say what they are.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::io::AsyncWriteExt;

use super::access::Client;
use super::files;
use super::http::{blocking, only};
use super::hub::Hub;
use super::launch::now;
use super::limits::{FORM_BYTES_MAX, UPLOAD_TIME_MAX};
use super::metrics::Counters;
use super::page::{self, Key};
use super::query::{Of, Query};
use super::refusal::Refusal;
use crate::proto::decode::{Extraction, Job, MEDIA, Media, Part};
use crate::proto::limits::{UPLOAD_BYTES_MAX, UPLOAD_FILES_MAX, UPLOADS_MAX};
use crate::proto::resources::{Upload, UploadLinks};
use crate::store::uploads::{Arriving, Record};

type Hubs = State<Arc<Hub>>;

/// Bytes that say what a file is.
const HEAD_BYTES: usize = 16;

/// An upload that arrives, as it goes to the disk.
struct Intake {
    arriving: Arriving,
    file: tokio::fs::File,
    parts: Vec<Part>,
    at: u64,
}

/// A media type without its parameters.
pub fn media_type(headers: &HeaderMap) -> String {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

fn too_large() -> Refusal {
    let detail = format!("The upload has more than {UPLOAD_BYTES_MAX} bytes.");
    Refusal::new("body_too_large", detail).about("body", format!("at most {UPLOAD_BYTES_MAX} bytes"))
}

impl Intake {
    async fn begin(hub: &Arc<Hub>) -> Result<Intake, Refusal> {
        let (keeper, id) = (hub.clone(), hub.new_id());
        let arriving = blocking(move || keeper.uploads.begin(&id)).await?.map_err(|e| Refusal::internal(&e))?;
        let file = arriving.file.try_clone().map_err(|e| Refusal::internal(&e))?;
        Ok(Intake { arriving, file: tokio::fs::File::from_std(file), parts: Vec::new(), at: 0 })
    }

    /// Takes one file. Errors: `upload_refused` if it is of no kind that is read, `body_too_large`.
    async fn file<E>(&mut self, pieces: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin)) -> Result<(), Refusal> {
        if self.parts.len() == UPLOAD_FILES_MAX {
            let detail = format!("An upload has at most {UPLOAD_FILES_MAX} files.");
            return Err(Refusal::new("upload_refused", detail));
        }
        let (mut head, begin) = (Vec::new(), self.at);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|_| Refusal::new("upload_refused", "The body ended too early."))?;
            if self.at + piece.len() as u64 > UPLOAD_BYTES_MAX as u64 {
                return Err(too_large());
            }
            head.extend_from_slice(&piece[..piece.len().min(HEAD_BYTES - head.len().min(HEAD_BYTES))]);
            self.file.write_all(&piece).await.map_err(|e| Refusal::internal(&e))?;
            self.at += piece.len() as u64;
        }
        let media = Media::of(&head).ok_or_else(|| {
            let kinds: Vec<&str> = MEDIA.iter().map(|row| row.1).collect();
            let detail = format!("A file is none of {}.", kinds.join(", "));
            Refusal::new("upload_refused", detail).about("file", kinds.join(", "))
        })?;
        self.parts.push(Part { media, at: begin, bytes: self.at - begin });
        Ok(())
    }

    /// Has a decoder look at it and keeps it.
    async fn finish(mut self, hub: &Arc<Hub>, owner: String) -> Result<Arc<Record>, Refusal> {
        if self.parts.is_empty() {
            return Err(Refusal::new("missing_field", "There is no file in the form.").about("file", "a file"));
        }
        self.file.flush().await.map_err(|e| Refusal::internal(&e))?;
        let mut written = self.arriving.file.try_clone().map_err(|e| Refusal::internal(&e))?;
        std::io::Seek::rewind(&mut written).map_err(|e| Refusal::internal(&e))?;
        let (about, _) = hub.decoders.picture(written, self.parts.clone(), Job::Probe).await?;
        let record = Record { id: self.arriving.id.clone(), owner, parts: self.parts, about, created: now() };
        let (keeper, arriving) = (hub.clone(), self.arriving);
        let record = blocking(move || keeper.uploads.commit(arriving, record)).await?;
        let record = record.map_err(|e| Refusal::internal(&e))?;
        Counters::add(&hub.counters.uploads, 1);
        Ok(record)
    }
}

/// Errors: `too_many_uploads`.
fn has_room(hub: &Hub, client: &Client) -> Result<(), Refusal> {
    let owner = client.to_string();
    let count = hub.uploads.list().iter().filter(|r| r.owner == owner).count();
    if count < UPLOADS_MAX {
        return Ok(());
    }
    let detail = format!("{count} uploads are kept for you already; delete one first.");
    Err(Refusal::new("too_many_uploads", detail).about("uploads", format!("at most {UPLOADS_MAX}")))
}

/// Takes the files of a form, whose other fields are given to `other`.
pub async fn take_form(
    hub: &Arc<Hub>,
    client: &Client,
    request: Request,
    mut other: impl FnMut(String, String) -> Result<(), Refusal>,
) -> Result<Option<Arc<Record>>, Refusal> {
    let unreadable = |_| Refusal::new("upload_refused", "The form cannot be read.");
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| {
        let detail = "The form has no boundary.";
        Refusal::new("unsupported_media_type", detail).about("Content-Type", "multipart/form-data; boundary=...")
    })?;
    let (mut intake, mut text_bytes) = (None, 0);
    while let Some(mut field) = form.next_field().await.map_err(unreadable)? {
        if field.file_name().is_some() || field.name().is_some_and(|n| n == "file") {
            if intake.is_none() {
                has_room(hub, client)?;
                intake = Some(Intake::begin(hub).await?);
            }
            if let Some(intake) = &mut intake {
                intake.file(&mut field).await?;
            }
            continue;
        }
        let name = field.name().unwrap_or("").to_string();
        let mut text = Vec::new();
        while let Some(piece) = field.chunk().await.map_err(unreadable)? {
            text_bytes += piece.len();
            if text_bytes > FORM_BYTES_MAX {
                return Err(too_large());
            }
            text.extend_from_slice(&piece);
        }
        let text = String::from_utf8(text).map_err(|_| {
            Refusal::new("invalid_field", "A field of the form is not UTF-8.").about(name.clone(), "UTF-8")
        })?;
        other(name, text)?;
    }
    match intake {
        Some(intake) => Ok(Some(intake.finish(hub, client.to_string()).await?)),
        None => Ok(None),
    }
}

/// Runs what reads a body, for a bounded time.
pub async fn in_time<T>(work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    match tokio::time::timeout(UPLOAD_TIME_MAX, work).await {
        Ok(done) => done,
        Err(_) => {
            let detail = format!("The upload was not complete after {} s.", UPLOAD_TIME_MAX.as_secs());
            Err(Refusal::new("request_timeout", detail))
        }
    }
}

pub async fn upload(
    State(hub): Hubs,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refusal> {
    let kind = media_type(&headers);
    let raw = MEDIA.iter().any(|row| row.1 == kind);
    if !raw && kind != "multipart/form-data" {
        let kinds: Vec<&str> = MEDIA.iter().map(|row| row.1).chain(["multipart/form-data"]).collect();
        let refusal = Refusal::new("unsupported_media_type", format!("The body is {kind:?}."));
        return Err(refusal.about("Content-Type", kinds.join(", ")));
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|n| n > (UPLOAD_BYTES_MAX + FORM_BYTES_MAX) as u64) {
        return Err(too_large());
    }
    let record = in_time(async {
        if raw {
            has_room(&hub, &client)?;
            let mut intake = Intake::begin(&hub).await?;
            intake.file(&mut Body::into_data_stream(request.into_body())).await?;
            return intake.finish(&hub, client.to_string()).await;
        }
        let other = |name: String, _: String| {
            let detail = format!("There is no field {:?}.", name.chars().take(64).collect::<String>());
            Err(Refusal::new("unknown_field", detail).about("form", "file"))
        };
        let record = take_form(&hub, &client, request, other).await?;
        record.ok_or_else(|| Refusal::new("missing_field", "There is no file in the form.").about("file", "a file"))
    })
    .await?;
    let shown = shown(&hub, &record);
    let location = HeaderValue::from_str(&shown.links.upload).map_err(|e| Refusal::internal(&e))?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(shown)).into_response())
}

fn shown(hub: &Hub, record: &Record) -> Upload {
    let base = format!("/api/v1/uploads/{}", record.id);
    Upload {
        id: record.id.clone(),
        width: record.about.width,
        height: record.about.height,
        frames: record.about.frames,
        fps: record.about.fps,
        bytes: record.bytes(),
        files: record.parts.len(),
        created: record.created,
        previews: previews(hub),
        links: UploadLinks { preview: format!("{base}/preview"), upload: base },
    }
}

/// What can be taken from an upload; before the first worker what needs nothing of the model.
fn previews(hub: &Hub) -> Vec<String> {
    let needs_nothing = || Extraction::ALL.into_iter().filter(|e| *e != Extraction::Pose);
    hub.vocabulary().map_or_else(|_| needs_nothing().map(|e| e.name().to_string()).collect(), |v| v.extractions)
}

fn find(hub: &Hub, client: &Client, id: &str) -> Result<Arc<Record>, Refusal> {
    hub.upload(client, id).ok_or_else(|| Refusal::unknown_upload(id))
}

pub async fn list(
    State(hub): Hubs,
    Extension(client): Extension<Client>,
    Query(query): Query,
) -> Result<Response, Refusal> {
    only(&query, &["limit", "cursor"])?;
    let mine = hub.uploads.list();
    let uploads: Vec<Upload> = mine.iter().filter(|r| client.may_use(&r.owner)).map(|r| shown(&hub, r)).collect();
    let key = |u: &Upload| Key { created: u.created, id: u.id.clone() };
    Ok(Json(page::page(uploads, key, &query)?).into_response())
}

pub async fn show(Of { hub, client, id }: Of) -> Result<Json<Upload>, Refusal> {
    Ok(Json(shown(&hub, &*find(&hub, &client, &id)?)))
}

pub async fn delete(Of { hub, client, id }: Of) -> Result<StatusCode, Refusal> {
    find(&hub, &client, &id)?;
    blocking(move || hub.uploads.delete(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn preview(Of { hub, client, id }: Of, Query(query): Query, headers: HeaderMap) -> Result<Response, Refusal> {
    only(&query, &["type", "index"])?;
    let record = find(&hub, &client, &id)?;
    let last = record.about.frames.saturating_sub(1);
    let wrong = |field: &'static str, value: &str, allowed: String| {
        let shown: String = value.chars().take(64).collect();
        let detail = format!("{field}: {shown:?} is not allowed; allowed: {allowed}.");
        Refusal::new("invalid_field", detail).about(field, allowed)
    };
    let extraction = match query.get("type") {
        None => None,
        Some(name) => {
            let names = || Extraction::ALL.map(Extraction::name).join(", ");
            Some(Extraction::from_name(name).ok_or_else(|| wrong("type", name, names()))?)
        }
    };
    if extraction == Some(Extraction::Pose) && !previews(&hub).iter().any(|name| name == Extraction::Pose.name()) {
        return Err(Refusal::no_pose().about("type", previews(&hub).join(", ")));
    }
    let index = match query.get("index") {
        None => 0,
        Some(text) => {
            let index = text.parse::<u32>().ok().filter(|i| *i <= last);
            index.ok_or_else(|| {
                let shown: String = text.chars().take(64).collect();
                Refusal::new("not_found", format!("There is no picture {shown:?}."))
                    .about("index", format!("0 to {last}"))
            })?
        }
    };
    let tag = format!("\"{id}.{}.{index}.jpg\"", extraction.map_or("picture", Extraction::name));
    let about = files::About { kind: "image/jpeg", name: None, tag: &tag };
    files::send_decoded(&about, &headers, async || {
        let file = hub.uploads.files(&id).map_err(|e| Refusal::internal(&e))?;
        hub.decoders.picture(file, record.parts.clone(), Job::Preview { extraction, index }).await
    })
    .await
}
