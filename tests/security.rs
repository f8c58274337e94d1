//! What somebody would try who means harm, over real connections: scripts in texts, other sites, paths that climb,
//! requests inside requests, connections that never finish.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use gamegend::proto::api::State;
use gamegend::proto::limits;
use serde_json::{Value, json};
use support::client::Client;
use support::{Api, eventually};

/// Sends bytes as they are and reads until the daemon closes or falls silent.
fn raw(api: &Api, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(api.address).expect("the daemon listens");
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    stream.write_all(request).expect("the daemon reads");
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn answers(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.1 ").filter_map(|(i, _)| text.get(i + 9..i + 12)?.parse().ok()).collect()
}

#[test]
fn scripts_in_texts_stay_texts() {
    let (api, _peer) = Api::with_peer("xss");
    let client = api.network();
    let script = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'>";
    let request = json!({"prompt": script, "width": 64, "height": 64, "frames": 1});
    let id = client.generate(&request).id;
    eventually("it is done", || client.status(&id).state == State::Done);
    let host = api.address.to_string();
    for path in [
        format!("/api/v1/status?id={id}"),
        format!("/api/v1/sessions/{id}"),
        "/api/v1/videos".to_string(),
        "/v1/videos".to_string(),
        format!("/api/v1/status?id={}", "%3Cscript%3E"),
        "/api/v1/sessions/%3Cscript%3Ealert(1)%3C%2Fscript%3E".to_string(),
        "/%3Cscript%3E".to_string(),
    ] {
        let reply = client.send("GET", &path, &[("Host", &host)], b"");
        let kind = reply.header("content-type").unwrap_or("").to_string();
        assert!(["application/json", "application/problem+json"].contains(&kind.as_str()), "{path}: {kind}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        let policy = reply.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}");
    }
    assert_eq!(client.status(&id).prompt, script, "it is kept as it is, and shown as text");
    let page = String::from_utf8(client.get("/").body).expect("text");
    for event in ["onclick=", "onload=", "onerror=", "javascript:", "<script>", "style=\"", "http://", "https://"] {
        assert!(!page.contains(event), "the page contains {event}");
    }
    for name in ["app.js", "session.js", "history.js", "prompts.js", "texts.js", "dom.js", "screen.js"] {
        let reply = client.get(&format!("/{name}"));
        assert_eq!(reply.status, 200, "{name}");
        let text = String::from_utf8(reply.body).expect("text");
        for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
            assert!(!text.contains(sink), "{name} contains {sink}");
        }
    }
}

#[test]
fn another_sites_page_can_change_nothing() {
    let (api, peer) = Api::with_peer("csrf");
    let client = api.network();
    let id = client.play();
    let own = format!("http://{}", api.address);
    let body = json!({"prompt": "x", "width": 64, "height": 64}).to_string();
    let post = |path: &str, headers: &[(&str, &str)], body: &str| {
        let reply = client.send("POST", path, headers, body.as_bytes());
        // The routes of the OpenAI style have errors of their own form.
        match (reply.status, path.starts_with("/v1/")) {
            (403, true) => reply.json::<Value>()["error"]["code"].as_str().unwrap_or("").to_string(),
            (403, false) => reply.problem().code,
            (status, _) => status.to_string(),
        }
    };
    for evil in ["http://evil.example", "null", "http://localhost.evil.example", "https://127.0.0.1"] {
        let headers = [("Content-Type", "application/json"), ("Origin", evil)];
        assert_eq!(post("/api/v1/generate", &headers, &body), "cross_origin", "{evil}");
        // What a form of another site can send without asking first.
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=X"] {
            for path in ["/api/v1/generate", "/api/v1/uploads", "/v1/videos"] {
                assert_eq!(post(path, &[("Content-Type", kind), ("Origin", evil)], &body), "cross_origin");
            }
        }
        for path in [format!("/api/v1/sessions/{id}/fork"), format!("/api/v1/sessions/{id}/replay")] {
            assert_eq!(post(&path, &[("Origin", evil)], ""), "cross_origin", "{path}");
        }
        let delete = client.send("DELETE", &format!("/api/v1/sessions/{id}"), &[("Origin", evil)], b"");
        assert_eq!(delete.status, 403);
    }
    for site in ["cross-site", "same-site"] {
        let headers = [("Content-Type", "application/json"), ("Sec-Fetch-Site", site)];
        assert_eq!(post("/api/v1/generate", &headers, &body), "cross_origin", "{site}");
    }
    // Without the consent of CORS another site cannot read an answer either.
    let reply = client.send("GET", "/api/v1/status", &[("Origin", "http://evil.example")], b"");
    assert_eq!(reply.header("access-control-allow-origin"), None);
    assert_eq!(reply.header("cross-origin-resource-policy"), Some("same-origin"));
    assert_eq!(peer.asked.lock().expect("no panic").opened.len(), 1, "only our own session was opened");
    let headers = [("Content-Type", "application/json"), ("Origin", own.as_str()), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(post("/api/v1/generate", &headers, &body), "202", "our own page may");
    api.settle();
}

#[test]
fn no_path_leads_out_of_the_store() {
    let (api, _peer) = Api::with_peer("paths");
    let client = api.network();
    std::fs::write(api.state.join("secret.json"), b"secret").expect("our own folder");
    let climbs = [
        "../secret",
        "..%2fsecret",
        "..%2Fgenerations%2f..%2fsecret",
        "%2e%2e%2fsecret",
        "....//secret",
        "..%5csecret",
        "%00",
        "secret%00",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "~root",
        "a%0d%0aX-Evil:%201",
    ];
    for climb in climbs {
        for path in [
            format!("/{climb}"),
            format!("/api/v1/video?id={climb}"),
            format!("/api/v1/poster?id={climb}"),
            format!("/api/v1/sessions/{climb}"),
            format!("/api/v1/videos/{climb}/content"),
            format!("/api/v1/videos/{climb}/frames/0"),
            format!("/api/v1/uploads/{climb}/preview"),
            format!("/v1/videos/{climb}/content"),
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", api.address);
            let answer = raw(&api, request.as_bytes());
            let status = answers(&answer);
            assert!(matches!(status[..], [400 | 404 | 429]), "{path}: {answer}");
            let head = answer.split("\r\n\r\n").next().unwrap_or("");
            assert!(!head.contains("X-Evil"), "{path}: {head}");
            assert!(!answer.contains("secret\n") && !answer.contains("root:"), "{path}: {answer}");
        }
        let body = json!({"prompt": "x", "width": 64, "height": 64, "from": climb});
        assert_eq!(api.local().post("/api/v1/generate", &body).problem().code, "unknown_session", "{climb}");
    }
    assert!(client.get("/").status == 200 || client.get("/").status == 429);
}

#[test]
fn a_request_inside_a_request_is_never_answered() {
    let (api, peer) = Api::with_peer("smuggle");
    let host = api.address;
    let inner = format!(
        "POST /api/v1/generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 39\r\n\r\n\
         {{\"prompt\":\"x\",\"width\":64,\"height\":64}}  "
    );
    let length = inner.len() + 5;
    // A request with these headers, whose body as somebody else might read it holds another request.
    let post = |headers: &str, body: &str| {
        format!("POST /api/v1/control HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n\r\n{body}{inner}")
    };
    let get =
        |headers: &str, body: &str| format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n\r\n{body}{inner}");
    let (json, last) = ("Content-Type: application/json\r\n", "0\r\n\r\n");
    let cases = [
        // Both lengths: the chunked one counts or the request is refused, and the connection ends (RFC 9112 6.1).
        post(&format!("{json}Content-Length: {length}\r\nTransfer-Encoding: chunked"), last),
        // Two lengths that differ.
        post(&format!("Content-Length: 0\r\nContent-Length: {length}"), ""),
        // Codings that somebody else might read as chunked.
        post("Transfer-Encoding: xchunked", last),
        post("Transfer-Encoding : chunked", last),
        post("Transfer-Encoding: chunked, identity", last),
        // A length that is no number, one that is signed, one that overflows.
        post("Content-Length: 0x0", ""),
        post("Content-Length: -1", ""),
        post("Content-Length: 18446744073709551616", ""),
        // A folded header, a header without a name.
        get("X: a\r\n Transfer-Encoding: chunked", last),
        get(": x", ""),
        // A chunk whose size lies.
        post(&format!("{json}Transfer-Encoding: chunked"), "fffffffffffffffff\r\n"),
    ];
    for request in cases {
        let answer = raw(&api, request.as_bytes());
        let statuses = answers(&answer);
        assert!(!statuses.contains(&202), "smuggled through:\n{request}\n--\n{answer}");
        assert!(statuses.len() <= 1, "more than one answer:\n{request}\n--\n{answer}");
    }
    assert_eq!(peer.asked.lock().expect("no panic").opened.len(), 0);
    assert_eq!(api.network().get("/healthz").status, 200);
}

#[test]
fn connections_that_never_finish_hold_nobody_up() {
    let (api, _peer) = Api::with_peer("loris");
    let client = api.network();
    let begin = Instant::now();
    // A head that comes byte by byte, a body that never comes, a handshake that stops half way.
    let halves: Vec<TcpStream> = (0..60)
        .map(|n| {
            let mut stream = TcpStream::connect(api.address).expect("the daemon listens");
            let host = api.address;
            let text = match n % 3 {
                0 => "GET /healthz HTTP/1.1\r\nHos".to_string(),
                1 => format!(
                    "POST /api/v1/control HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
                     Content-Length: 60000\r\n\r\n{{"
                ),
                _ => format!("GET /ws/stream?session=x HTTP/1.1\r\nHost: {host}\r\nUpgrade: websock"),
            };
            stream.write_all(text.as_bytes()).expect("the daemon reads");
            stream
        })
        .collect();
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(client.get("/healthz").status, 200);
        assert!(asked.elapsed() < Duration::from_secs(1), "others wait for them");
    }
    // Each is ended by the daemon within its time limit of ten seconds.
    for mut stream in halves {
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        assert!(end.is_ok() || begin.elapsed() < Duration::from_secs(15), "{end:?} after {:?}", begin.elapsed());
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn heads_and_bodies_have_an_end() {
    let (api, _peer) = Api::with_peer("heads");
    let host = api.address;
    let long = "x".repeat(1 << 20);
    let many: String = (0..500).map(|n| format!("X-{n}: y\r\n")).collect();
    for request in [
        format!("GET /{long} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Long: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\n{many}\r\n"),
    ] {
        let mut stream = TcpStream::connect(api.address).expect("the daemon listens");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        // It may close before everything was written.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = [0; 16];
        let count = stream.read(&mut answer).unwrap_or(0);
        let text = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(count == 0 || text.starts_with("HTTP/1.1 4"), "{text:?} for {:?}...", &request[..20]);
    }
    // Chunks that together are too much, each of them small.
    let mut stream = TcpStream::connect(api.address).expect("the daemon listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let head = format!(
        "POST /api/v1/generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("the daemon reads");
    let chunk = format!("400\r\n{}\r\n", " ".repeat(1024));
    for _ in 0..limits::BODY_BYTES_MAX / 1024 + 2 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let mut answer = [0; 16];
    let count = stream.read(&mut answer).expect("an answer");
    assert!(answer[..count].starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
    // Nested so deeply that a recursive reader would fall.
    let deep = format!("{{\"prompt\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let reply = api.local().send("POST", "/api/v1/generate", &[("Content-Type", "application/json")], deep.as_bytes());
    assert_eq!(reply.problem().code, "invalid_json");
}

#[test]
fn numbers_at_every_edge_are_answered_with_a_problem() {
    let (api, _peer) = Api::with_peer("edges");
    let client: Client = api.local();
    let body = |field: &str, value: &str| {
        format!("{{\"prompt\":\"x\",\"width\":64,\"height\":64,\"frames\":1,\"{field}\":{value}}}")
    };
    let numbers = ["-1", "1e400", "1.5", "18446744073709551616", "null", "true", "\"1\"", "[]", "{}", "NaN"];
    for field in ["frames", "fps", "steps", "seed", "interactive", "from", "video_prompt", "perspective"] {
        for number in numbers {
            let headers = [("Content-Type", "application/json")];
            let reply = client.send("POST", "/api/v1/generate", &headers, body(field, number).as_bytes());
            assert!([202, 400, 404].contains(&reply.status), "{field} = {number}: {}", reply.status);
            if reply.status == 202 {
                let id = reply.json::<Value>()["id"].as_str().expect("an id").to_string();
                client.send("DELETE", &format!("/api/v1/sessions/{id}"), &[], b"");
            }
        }
    }
    api.settle();
}
