//! The page, embedded in the program.

use std::collections::HashMap;
use std::io::Write;
use std::sync::OnceLock;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use bytes::Bytes;

use super::files;
use super::refusal::Refusal;

struct Asset {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $kind:literal) => {
        Asset { name: $name, kind: $kind, bytes: include_bytes!(concat!("../../web/", $name)) }
    };
}

const ASSETS: &[Asset] = &[
    asset!("index.html", "text/html; charset=utf-8"),
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("views.css", "text/css; charset=utf-8"),
    asset!("app.js", "text/javascript; charset=utf-8"),
    asset!("api.js", "text/javascript; charset=utf-8"),
    asset!("controls.js", "text/javascript; charset=utf-8"),
    asset!("dom.js", "text/javascript; charset=utf-8"),
    asset!("history.js", "text/javascript; charset=utf-8"),
    asset!("prompts.js", "text/javascript; charset=utf-8"),
    asset!("screen.js", "text/javascript; charset=utf-8"),
    asset!("session.js", "text/javascript; charset=utf-8"),
    asset!("settings.js", "text/javascript; charset=utf-8"),
    asset!("texts.js", "text/javascript; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
];

/// Every asset compressed, once for the life of the process.
static PACKED: OnceLock<HashMap<&'static str, Bytes>> = OnceLock::new();

fn packed(name: &str) -> Option<&'static Bytes> {
    let all = || ASSETS.iter().filter_map(|a| Some((a.name, pack(a.bytes)?))).collect();
    PACKED.get_or_init(all).get(name)
}

/// Nothing if it does not become smaller.
fn pack(bytes: &[u8]) -> Option<Bytes> {
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    zip.write_all(bytes).ok()?;
    let packed = zip.finish().ok()?;
    (packed.len() < bytes.len()).then(|| Bytes::from(packed))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or("");
    accepted.split(',').any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim().eq_ignore_ascii_case("gzip") && !matches!(parameters.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000")
    })
}

pub async fn index(headers: HeaderMap) -> Result<Response, Refusal> {
    find("index.html", &headers)
}

pub async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Refusal> {
    find(&name, &headers)
}

fn find(name: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
    let asset = ASSETS.iter().find(|a| a.name == name);
    let asset = asset.ok_or_else(|| Refusal::new("not_found", "There is nothing at this path."))?;
    let tag = tag(asset.bytes);
    let small = packed(name).filter(|_| accepts_gzip(headers));
    let mut response = match files::is_known(headers, &tag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => {
            let body = small.map_or_else(|| Bytes::from_static(asset.bytes), Bytes::clone);
            let mut response = ([(header::CONTENT_TYPE, asset.kind)], body).into_response();
            if small.is_some() {
                response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            response
        }
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    // Asked for anew each time, answered with 304: an update of the daemon shows at once.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// FNV-1a of the content: it tells versions of our own files apart, no more.
fn tag(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    format!("\"{hash:016x}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_load_is_small() {
        let bytes: usize = ASSETS.iter().map(|a| packed(a.name).map_or(a.bytes.len(), Bytes::len)).sum();
        println!("the page is {bytes} bytes, compressed");
        assert!(bytes < 100 * 1024, "{bytes} bytes");
    }

    #[test]
    fn every_text_is_in_the_catalogue() {
        let text = |name: &str| {
            let asset = ASSETS.iter().find(|a| a.name == name).expect("an asset of ours");
            std::str::from_utf8(asset.bytes).expect("text")
        };
        let catalogue = text("texts.js");
        let has = |key: &str| {
            let plain = key.chars().all(|c| c.is_ascii_alphanumeric());
            catalogue.contains(&format!("\"{key}\": \"")) || plain && catalogue.contains(&format!("  {key}: \""))
        };
        let page = text("index.html");
        let mut keys = 0;
        for attribute in ["data-t=\"", "data-t-label=\"", "data-t-placeholder=\"", "data-t-alt=\""] {
            for (at, found) in page.match_indices(attribute) {
                let key = page[at + found.len()..].split('"').next().expect("a string ends");
                assert!(has(key), "{key} is not in the catalogue");
                keys += 1;
            }
        }
        for name in
            ["app.js", "api.js", "controls.js", "dom.js", "history.js", "prompts.js", "session.js", "settings.js"]
        {
            for (at, found) in text(name).match_indices(" t(\"") {
                let key = text(name)[at + found.len()..].split('"').next().expect("a string ends");
                assert!(has(key), "{name}: {key} is not in the catalogue");
                keys += 1;
            }
        }
        assert!(keys > 100, "only {keys} keys were found: the search is broken");
    }

    #[test]
    fn compressed_is_what_was_asked_for() {
        let get = |accepted: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_str(accepted).expect("a header"));
            let response = find("app.js", &headers).expect("there");
            response.headers().contains_key(header::CONTENT_ENCODING)
        };
        assert!(get("gzip, deflate, br") && get("br;q=1.0, gzip;q=0.8"));
        assert!(!get("") && !get("br") && !get("gzip;q=0"));
    }
}
