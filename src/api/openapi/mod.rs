//! /openapi.json: the routes in OpenAPI 3.1, made from the table of routes, the limits and the model's vocabulary, so
//! that it says what is checked.

mod operations;
mod schemas;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use self::operations::Operation;
use super::hub::Hub;
use super::rate::Kind;
use super::routes::{ROUTES, Route};
use crate::proto::api::Vocabulary;

pub async fn show(State(hub): State<Arc<Hub>>) -> Json<Value> {
    let model = hub.worker_status().map(|w| w.model);
    Json(document(&hub.vocabulary().unwrap_or_default(), model.as_deref(), hub.access.needs_token()))
}

/// The whole document.
fn document(vocabulary: &Vocabulary, model: Option<&str>, token: bool) -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let Some(operation) = operations::find(route.id) else { continue };
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = describe(route, &operation);
    }
    let security = if token { json!([{"token": []}]) } else { json!([]) };
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "gamegend",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Playable game video from text",
            "description": "Described for people in gamegend-protocol(7).",
            "license": {"name": "BSD 2-Clause", "identifier": "BSD-2-Clause"},
        },
        "servers": [{"url": "/"}],
        "security": security,
        "paths": paths,
        "components": {
            "schemas": schemas::all(vocabulary, model),
            "responses": responses(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

/// One operation in the words of OpenAPI.
fn describe(route: &Route, operation: &Operation) -> Value {
    let mut answers = Map::new();
    answers.insert(operation.answer.0.to_string(), answer(operation));
    for status in statuses(route, operation) {
        let name = if route.path.starts_with("/v1/") { "OpenAIError" } else { "Problem" };
        let reference = json!({"$ref": format!("#/components/responses/{name}")});
        answers.entry(status.to_string()).or_insert(reference);
    }
    for (status, text) in operation.other_answers {
        answers.insert(status.to_string(), json!({"description": text}));
    }
    let mut described = json!({
        "operationId": route.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": answers,
    });
    if !operation.parameters.is_empty() {
        described["parameters"] = operation.parameters.iter().map(parameter).collect();
    }
    if let Some(body) = &operation.body {
        described["requestBody"] = request_body(body);
    }
    if matches!(operation.tag, "page" | "health") {
        described["security"] = json!([]);
    }
    described
}

/// What a success is.
fn answer(operation: &Operation) -> Value {
    let (_, kind, schema) = operation.answer;
    let mut answer = json!({"description": "It is done."});
    for kind in kind.split_whitespace() {
        let schema = if schema.is_empty() { json!({}) } else { reference(schema) };
        answer["content"][kind] = json!({ "schema": schema });
    }
    answer
}

/// Statuses of the problems that an operation can have.
fn statuses(route: &Route, operation: &Operation) -> Vec<u16> {
    // A request whose host or token is not right, whose body is cut off, or that finds the daemon stopping.
    let mut all = vec![400, 401, 403, 408, 500, 503];
    if route.kind.is_some() {
        all.push(429);
    }
    if operation.body.is_some() {
        all.extend([409, 413, 415, 422]);
    }
    if route.kind == Some(Kind::Decode) {
        all.push(422);
    }
    all.extend(operation.problems);
    all.sort_unstable();
    all.dedup();
    all
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn parameter(p: &operations::Parameter) -> Value {
    let mut schema = (p.schema)();
    if schema.is_null() {
        schema = json!({"type": "string"});
    }
    json!({"name": p.name, "in": p.place, "required": p.required, "schema": schema, "description": p.about})
}

fn request_body(body: &operations::Body) -> Value {
    let content: Map<String, Value> = body
        .content
        .iter()
        .map(|(kind, schema)| {
            (kind.to_string(), if schema.is_empty() { json!({}) } else { json!({"schema": reference(schema)}) })
        })
        .collect();
    json!({"required": body.required, "content": content})
}

fn responses() -> Value {
    let rate = json!({"schema": {"type": "string"}, "description": "What is left, as in the RateLimit header fields."});
    json!({
        "Problem": {
            "description": "It was refused; `code` says why.",
            "headers": {"RateLimit": rate},
            "content": {"application/problem+json": {"schema": reference("Problem")}},
        },
        "OpenAIError": {
            "description": "It was refused; `error.code` says why.",
            "content": {"application/json": {"schema": reference("OpenAIError")}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_and_every_reference_leads_somewhere() {
        let document = document(&Vocabulary::default(), None, false);
        for route in ROUTES {
            if operations::find(route.id).is_none() {
                assert!(["stream", "page", "asset"].contains(&route.id), "{} is not described", route.id);
            }
        }
        let text = document.to_string();
        for (at, _) in text.match_indices("\"#/components/") {
            let path = text[at + 2..].split('"').next().expect("a string ends");
            assert!(document.pointer(path).is_some(), "{path} leads nowhere");
        }
        assert_eq!(document["paths"]["/api/v1/generate"]["post"]["operationId"], "generate");
    }

    #[test]
    fn with_tokens_the_routes_say_so() {
        let with = document(&Vocabulary::default(), None, true);
        assert_eq!(with["security"], json!([{"token": []}]));
        assert_eq!(with["paths"]["/healthz"]["get"]["security"], json!([]));
    }
}
