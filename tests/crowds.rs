//! Every operation of the API, asked by many at once: each gets an answer that the description has for it.

mod support;

use serde_json::{Value, json};
use support::client::{Client, Reply};
use support::{Api, eventually, files};

const CROWD: usize = 8;

/// The identifier that a path's placeholder stands for.
fn filled(path: &str, ids: &Value) -> String {
    let kind = ["videos", "sessions", "uploads"].into_iter().find(|kind| path.contains(&format!("/{kind}/")));
    let id = kind.map_or("", |kind| ids[kind].as_str().expect("one of each kind"));
    let mut parts = path.split('/').map(|part| match part {
        "{index}" | "{frame}" | "{n}" | "{number}" => "0",
        part if part.starts_with('{') => id,
        part => part,
    });
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |path, part| path + "/" + part)
}

/// The replies of CROWD clients that ask the same at the same time.
fn crowd(client: &Client, method: &str, path: &str, body: &Value) -> Vec<Reply> {
    std::thread::scope(|scope| {
        let ask = || match method {
            "POST" => client.post(path, body),
            _ => client.send(method, path, &[], b""),
        };
        let threads: Vec<_> = (0..CROWD).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    })
}

/// Operations as (method, path, documented statuses): readers first, then those that make something, then the removers.
fn operations(client: &Client) -> Vec<(String, String, Vec<String>)> {
    let description: Value = client.get("/openapi.json").json();
    let mut found = Vec::new();
    for (path, methods) in description["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods").iter().filter(|(m, _)| *m != "parameters") {
            let statuses = operation["responses"].as_object().expect("responses").keys().cloned().collect();
            found.push((method.to_uppercase(), path.clone(), statuses));
        }
    }
    found
        .sort_by_key(|(method, path, _)| (["GET", "POST"].iter().position(|m| m == method).unwrap_or(2), path.clone()));
    found
}

#[test]
fn every_operation_is_asked_by_many_at_once() {
    let (api, _peer) = Api::with_peer("crowds");
    let client = api.local();
    let request = json!({"prompt": "a valley", "width": 96, "height": 64, "frames": 4});
    let clip = client.generate(&request).id;
    eventually("the clip is stored", || client.get(&format!("/api/v1/videos/{clip}")).status == 200);
    let form = files::form("XX", &[("a.png", files::png(96, 64, 90))]);
    let kind = [("content-type", "multipart/form-data; boundary=XX")];
    let upload: Value = client.send("POST", "/api/v1/uploads", &kind, &form).json();
    let ids = json!({"videos": clip, "sessions": client.play(), "uploads": upload["id"]});
    let operations = operations(&client);
    assert!(operations.len() > 20, "{operations:?}");
    for (method, path, documented) in operations {
        let body = if path.ends_with("/generate") { request.clone() } else { json!({}) };
        let replies = crowd(&client, &method, &filled(&path, &ids), &body);
        let mut names: Vec<_> = replies.iter().filter_map(|reply| reply.header("x-request-id")).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CROWD, "{method} {path}: every request has a name of its own");
        for reply in &replies {
            let known = documented.iter().any(|d| *d == reply.status.to_string() || d == "default");
            assert!(known && reply.status < 500, "{method} {path}: {} is not of {documented:?}", reply.status);
        }
        // A refusal names its request, so that only what was given is compared byte for byte.
        let given = |reply: &Reply| if reply.status < 300 { reply.body.clone() } else { Vec::new() };
        let alike = |reply: &Reply| (reply.status, given(reply)) == (replies[0].status, given(&replies[0]));
        let changes = ["/metrics", "/status", "/sessions", "/live"].iter().any(|word| path.contains(word));
        assert!(method != "GET" || changes || replies.iter().all(alike), "GET {path}: readers see the same");
    }
    assert_eq!(client.get("/openapi.json").status, 200, "it goes on");
}
