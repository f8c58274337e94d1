//! Uploads: what is taken, what is refused, and what they are used for.

mod support;

use gamegend::proto::api::{Problem, State};
use gamegend::proto::limits;
use gamegend::proto::resources::{Page, Upload};
use serde_json::{Value, json};
use support::client::{Client, Reply};
use support::files::{form, mp4, picture_bomb, png};
use support::{Api, eventually};

fn send(client: &Client, kind: &str, body: &[u8]) -> Reply {
    client.send("POST", "/api/v1/uploads", &[("Content-Type", kind)], body)
}

fn send_form(client: &Client, files: &[(&str, Vec<u8>)]) -> Reply {
    send(client, "multipart/form-data; boundary=XX", &form("XX", files))
}

#[test]
fn a_clip_and_pictures_are_taken_listed_shown_and_deleted() {
    let (api, _peer) = Api::with_peer("uploads");
    let client = api.local();
    let reply = send(&client, "video/mp4", &mp4(96, 64, 12));
    assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&reply.body));
    let clip: Upload = reply.json();
    assert_eq!(reply.header("location"), Some(clip.links.upload.as_str()));
    assert_eq!((clip.width, clip.height, clip.frames, clip.files), (96, 64, 12, 1));
    assert!((clip.fps - 24.0).abs() < 2.0, "{}", clip.fps);
    let reply = send_form(&client, &[("a.png", png(64, 64, 10)), ("b.png", png(64, 64, 200))]);
    assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&reply.body));
    let pictures: Upload = reply.json();
    assert_eq!((pictures.frames, pictures.fps, pictures.files), (2, 0.0, 2));
    let page: Page<Upload> = client.get("/api/v1/uploads?limit=10").json();
    assert_eq!(page.items.len(), 2);
    assert_eq!(client.get(&clip.links.upload).json::<Upload>(), clip);
    for (query, width) in [("", 96), ("?index=11", 96), ("?type=canny&index=3", 96)] {
        let picture = client.get(&format!("{}{query}", clip.links.preview));
        assert_eq!(picture.header("content-type"), Some("image/jpeg"), "{query}");
        assert_eq!(turbojpeg::read_header(&picture.body).expect("a JPEG").width, width);
        let tag = picture.header("etag").expect("a tag").to_string();
        let path = format!("{}{query}", clip.links.preview);
        assert_eq!(client.send("GET", &path, &[("If-None-Match", &tag)], b"").status, 304);
    }
    assert_eq!(clip.previews, ["canny", "motion_vectors"]);
    let pose = client.get(&format!("{}?type=pose", clip.links.preview));
    assert_eq!(pose.status, 422);
    let problem = pose.problem();
    assert_eq!((problem.code.as_str(), problem.field.as_deref()), ("video_prompts_unsupported", Some("type")));
    assert!(problem.detail.contains("has no pose judge"), "{}", problem.detail);
    for (query, field) in [("index=12", "index"), ("index=x", "index"), ("type=sobel", "type"), ("kind=x", "kind")] {
        let problem = client.get(&format!("{}?{query}", clip.links.preview)).problem();
        assert_eq!(problem.field.as_deref(), Some(field), "{query}");
    }
    assert_eq!(client.send("DELETE", &clip.links.upload, &[], b"").status, 204);
    for path in [&clip.links.upload, &clip.links.preview] {
        assert_eq!(client.get(path).problem().code, "unknown_upload");
    }
    assert_eq!(client.send("DELETE", &clip.links.upload, &[], b"").problem().code, "unknown_upload");
}

#[test]
fn what_is_no_clip_and_no_picture_is_refused_and_leaves_nothing() {
    let (api, _peer) = Api::with_peer("refused");
    let client = api.local();
    let refused = |reply: Reply| -> (u16, Problem) { (reply.status, reply.problem()) };
    for (kind, body, status, code) in [
        ("image/gif", b"GIF89a".to_vec(), 415, "unsupported_media_type"),
        ("application/zip", b"PK\x03\x04".to_vec(), 415, "unsupported_media_type"),
        ("image/png", b"GIF89a".to_vec(), 422, "upload_refused"),
        ("image/png", Vec::new(), 422, "upload_refused"),
        ("image/svg+xml", b"<svg onload=alert(1)>".to_vec(), 415, "unsupported_media_type"),
        ("image/png", b"<svg onload=alert(1)>".to_vec(), 422, "upload_refused"),
        ("image/png", picture_bomb(60_000, 60_000), 422, "upload_refused"),
        ("image/jpeg", png(64, 64, 1)[..40].to_vec(), 422, "upload_refused"),
        ("video/mp4", mp4(64, 64, 4)[..300].to_vec(), 422, "upload_refused"),
        ("multipart/form-data", Vec::new(), 415, "unsupported_media_type"),
        ("multipart/form-data; boundary=XX", b"--XX\r\nnonsense".to_vec(), 422, "upload_refused"),
        ("multipart/form-data; boundary=XX", b"--XX--\r\n".to_vec(), 400, "missing_field"),
    ] {
        let (found, problem) = refused(send(&client, kind, &body));
        assert_eq!((found, problem.code.as_str()), (status, code), "{kind}: {}", problem.detail);
    }
    let many: Vec<(&str, Vec<u8>)> = (0..limits::UPLOAD_FILES_MAX + 1).map(|_| ("a.png", png(16, 16, 1))).collect();
    assert!(refused(send_form(&client, &many)).1.detail.contains("at most 64 files"));
    let mixed = [("a.png", png(64, 64, 1)), ("b.mp4", mp4(64, 64, 2))];
    assert!(refused(send_form(&client, &mixed)).1.detail.contains("one clip, or pictures"));
    assert_eq!(client.get("/api/v1/uploads").json::<Page<Upload>>().items.len(), 0);
    let left = std::fs::read_dir(api.state.join("uploads")).expect("a folder").count();
    assert_eq!(left, 0, "no file of a refused upload stays");
}

#[test]
fn an_upload_that_is_too_large_is_refused_while_it_arrives() {
    let (api, _peer) = Api::with_peer("large");
    let client = api.local();
    let mut body = png(64, 64, 1);
    body.resize(limits::UPLOAD_BYTES_MAX + 1, 0);
    let reply = send(&client, "image/png", &body);
    assert_eq!((reply.status, reply.problem().code.as_str()), (413, "body_too_large"));
    // Declared far too large, it is refused before a byte of it came.
    let head = "POST /api/v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n\
                Content-Length: 99999999999\r\nConnection: close\r\n\r\n";
    let mut stream = client.connect();
    stream.write_all(head.as_bytes()).expect("the daemon reads");
    let mut answer = [0; 64];
    let count = stream.read(&mut answer).expect("an answer");
    assert!(answer[..count].starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(std::fs::read_dir(api.state.join("uploads")).expect("a folder").count(), 0);
}

#[test]
fn a_client_keeps_so_many_uploads_and_owners_are_kept_apart() {
    let (api, _peer) = Api::with_peer("many");
    let client = api.local();
    let uploads: Vec<Upload> =
        (0..limits::UPLOADS_MAX).map(|_| send(&client, "image/png", &png(32, 32, 9)).json()).collect();
    let reply = send(&client, "image/png", &png(32, 32, 9));
    assert_eq!((reply.status, reply.problem().code.as_str()), (429, "too_many_uploads"));
    client.send("DELETE", &uploads[0].links.upload, &[], b"");
    assert_eq!(send(&client, "image/png", &png(32, 32, 9)).status, 201);
    assert_eq!(api.network().get(&uploads[1].links.upload).problem().code, "unknown_upload", "another owner");
    let request = json!({"prompt": "x", "width": 64, "height": 64, "frames": 2, "from": uploads[1].id});
    assert_eq!(api.network().post("/api/v1/generate", &request).problem().code, "unknown_session");
}

#[test]
fn an_upload_is_continued_and_leads_a_session() {
    let (api, peer) = Api::with_peer("lead");
    let client = api.local();
    let clip: Upload = send(&client, "video/mp4", &mp4(128, 64, 30)).json();
    let base = json!({"prompt": "a forest", "width": 96, "height": 64, "frames": 12, "fps": 24});
    let with = |field: &str, value: Value| {
        let mut request = base.clone();
        request[field] = value;
        request
    };
    let id = client.generate(&with("from", json!(clip.id))).id;
    eventually("it is done", || client.status(&id).state == State::Done);
    assert_eq!(client.status(&id).from.as_deref(), Some(clip.id.as_str()));
    let prompt = json!({"type": "canny", "upload": clip.id});
    let id = client.generate(&with("video_prompt", prompt.clone())).id;
    eventually("it is done", || client.status(&id).state == State::Done);
    assert_eq!(client.status(&id).video_prompt.map(|v| v.kind), Some("canny".to_string()));
    let asked = peer.asked.lock().expect("no panic");
    assert_eq!(asked.origins, [(1, limits::SNAPSHOT_FRAMES_MAX as u32, (96, 64))]);
    assert_eq!(asked.leads, [(2, 12, (96, 64))]);
    assert_eq!(asked.opened[1].video_prompt.as_deref(), Some("canny"));
    drop(asked);
    // A replay of it is led by the same pictures.
    let reply = client.post(&format!("/api/v1/sessions/{id}/replay"), &json!({}));
    assert_eq!(reply.status, 202, "{}", String::from_utf8_lossy(&reply.body));
    eventually("it opens", || peer.asked.lock().expect("no panic").leads.len() == 2);
    let replay: gamegend::proto::api::GenerateReply = reply.json();
    eventually("it is done", || client.status(&replay.id).state == State::Done);
    for (kind, upload, code, allowed) in [
        ("pose", clip.id.as_str(), "video_prompts_unsupported", "canny"),
        ("sobel", clip.id.as_str(), "invalid_field", "canny, motion_vectors, pose"),
        ("canny", "0123", "unknown_upload", "an upload of yours"),
    ] {
        let request = with("video_prompt", json!({"type": kind, "upload": upload}));
        let problem = client.post("/api/v1/generate", &request).problem();
        assert_eq!((problem.code.as_str(), problem.field.as_deref()), (code, Some("video_prompt")));
        assert_eq!(problem.allowed.as_deref(), Some(allowed), "{kind}");
    }
}
