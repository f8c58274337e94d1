//! Stored objects as answers, whole or in part (RFC 9110 section 14: one range of bytes), so that players can seek.

use std::fs::File;
use std::io::SeekFrom;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::limits::FILE_PIECE_BYTES;
use super::refusal::Refusal;
use crate::proto::decode;
use crate::store::Object;

/// What a `Range` header asks of an object.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// First byte and the one after the last.
    Part(u64, u64),
    Nothing,
}

/// What is sent, for its headers.
pub struct About<'a> {
    pub kind: &'static str,
    /// Name for a file on the client's disk.
    pub name: Option<String>,
    /// Tells this object from all others, for ever: an object never changes.
    pub tag: &'a str,
}

/// Sends `object` of the thing `id`.
pub async fn send(file: File, object: Object, id: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
    let (kind, name) = match object {
        Object::Video => ("video/mp4", Some(format!("gamegend-{id}.mp4"))),
        Object::Poster => ("image/jpeg", None),
        Object::Snapshot | Object::Origin => ("application/octet-stream", Some(format!("gamegend-{id}.snapshot"))),
    };
    let tag = format!("\"{id}.{}\"", object.extension());
    send_file(file, &About { kind, name, tag: &tag }, headers).await
}

async fn send_file(file: File, about: &About<'_>, headers: &HeaderMap) -> Result<Response, Refusal> {
    if is_known(headers, about.tag) {
        return finish(StatusCode::NOT_MODIFIED.into_response(), about);
    }
    let mut file = tokio::fs::File::from_std(file);
    let size = file.metadata().await.map_err(|e| Refusal::internal(&e))?.len();
    let text = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    // A part is of use only to whoever has the other parts of the same object.
    let range = text(header::RANGE).filter(|_| text(header::IF_RANGE).is_none_or(|tag| tag == about.tag));
    let (status, start, end) = match range.map_or(Wanted::All, |range| wanted(range, size)) {
        Wanted::All => (StatusCode::OK, 0, size),
        Wanted::Part(start, end) => (StatusCode::PARTIAL_CONTENT, start, end),
        Wanted::Nothing => {
            let text = HeaderValue::from_str(&format!("bytes */{size}")).map_err(|e| Refusal::internal(&e))?;
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, text)]).into_response());
        }
    };
    file.seek(SeekFrom::Start(start)).await.map_err(|e| Refusal::internal(&e))?;
    let mut response = (status, Body::from_stream(pieces(file, end - start))).into_response();
    let answer = response.headers_mut();
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {start}-{}/{size}", end - 1);
        answer.insert(header::CONTENT_RANGE, HeaderValue::from_str(&range).map_err(|e| Refusal::internal(&e))?);
    }
    finish(response, about)
}

/// Sends a picture that a decoder makes for this request but that would be the same for every other: it makes none for
/// a client that has it.
pub async fn send_decoded(
    about: &About<'_>,
    headers: &HeaderMap,
    make: impl AsyncFnOnce() -> Result<(decode::About, Vec<u8>), Refusal>,
) -> Result<Response, Refusal> {
    match is_known(headers, about.tag) {
        true => finish(StatusCode::NOT_MODIFIED.into_response(), about),
        false => finish(make().await?.1.into_response(), about),
    }
}

/// True if the client has it already.
pub fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    known.is_some_and(|known| known.split(',').any(|t| matches!(t.trim(), "*") || t.trim() == tag))
}

fn finish(mut response: Response, about: &About<'_>) -> Result<Response, Refusal> {
    let header = |text: &str| HeaderValue::from_str(text).map_err(|e| Refusal::internal(&e));
    let disposition = about.name.as_ref().map_or("inline".to_string(), |n| format!("inline; filename=\"{n}\""));
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(about.kind));
    answer.insert(header::ETAG, header(about.tag)?);
    answer.insert(header::CONTENT_DISPOSITION, header(&disposition)?);
    // `private`, since it is its owner's.
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=86400, immutable"));
    Ok(response)
}

/// Reads `left` bytes, a piece at a time.
fn pieces(file: tokio::fs::File, left: u64) -> impl stream::Stream<Item = std::io::Result<Bytes>> {
    stream::try_unfold((file, left), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; FILE_PIECE_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX))];
        let count = file.read(&mut piece).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        piece.truncate(count);
        Ok(Some((Bytes::from(piece), (file, left - count as u64))))
    })
}

/// One range is honoured; several, or another unit, may be answered with the whole (RFC 9110 section 14.2).
fn wanted(range: &str, size: u64) -> Wanted {
    let Some((first, last)) = range.strip_prefix("bytes=").filter(|r| !r.contains(',')).and_then(|r| r.split_once('-'))
    else {
        return Wanted::All;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last && first < size => Wanted::Part(first, last.saturating_add(1).min(size)),
        (Ok(first), Ok(last)) if first <= last => Wanted::Nothing,
        (Ok(first), Err(_)) if last.trim().is_empty() && first < size => Wanted::Part(first, size),
        (Ok(_), Err(_)) if last.trim().is_empty() => Wanted::Nothing,
        (Err(_), Ok(0)) if first.trim().is_empty() => Wanted::Nothing,
        (Err(_), Ok(count)) if first.trim().is_empty() && size > 0 => Wanted::Part(size.saturating_sub(count), size),
        _ => Wanted::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (range, expected) in [
            ("bytes=0-", Wanted::Part(0, 100)),
            ("bytes=10-19", Wanted::Part(10, 20)),
            ("bytes=90-1000", Wanted::Part(90, 100)),
            ("bytes=-10", Wanted::Part(90, 100)),
            ("bytes=-1000", Wanted::Part(0, 100)),
            ("bytes=100-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=20-10", Wanted::All),
            ("bytes=0-1,5-6", Wanted::All),
            ("lines=1-2", Wanted::All),
            ("bytes=a-b", Wanted::All),
        ] {
            assert_eq!(wanted(range, 100), expected, "{range}");
        }
    }
}
