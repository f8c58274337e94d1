//! What OpenAPI says about each route beside its method and path.

use serde_json::{Value, json};

use crate::proto::decode::Extraction;
use crate::proto::limits;

pub struct Parameter {
    pub name: &'static str,
    /// `path`, `query` or `header`.
    pub place: &'static str,
    pub required: bool,
    pub schema: fn() -> Value,
    pub about: &'static str,
}

pub struct Body {
    pub required: bool,
    /// Media type and name of the schema.
    pub content: &'static [(&'static str, &'static str)],
}

pub struct Operation {
    pub summary: &'static str,
    pub tag: &'static str,
    pub parameters: &'static [Parameter],
    pub body: Option<Body>,
    /// Status, media types (with a space between) and schema of a success.
    pub answer: (u16, &'static str, &'static str),
    /// Statuses of problems that not every operation has.
    pub problems: &'static [u16],
    pub other_answers: &'static [(u16, &'static str)],
}

const JSON: &str = "application/json";

const fn path(name: &'static str, schema: fn() -> Value, about: &'static str) -> Parameter {
    Parameter { name, place: "path", required: true, schema, about }
}

const fn query(name: &'static str, required: bool, schema: fn() -> Value, about: &'static str) -> Parameter {
    Parameter { name, place: "query", required, schema, about }
}

const fn header(name: &'static str, schema: fn() -> Value, about: &'static str) -> Parameter {
    Parameter { name, place: "header", required: false, schema, about }
}

fn id() -> Value {
    json!({"type": "string", "pattern": "^[0-9a-f]{32}$"})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn cursor() -> Value {
    json!({"type": "string", "pattern": "^[0-9a-f]{1,16}-[0-9a-f]{32}$"})
}

fn index() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn limit() -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": limits::PAGE_MAX, "default": 20})
}

fn extraction() -> Value {
    json!({"type": "string", "enum": Extraction::ALL.map(Extraction::name)})
}

fn kind() -> Value {
    json!({"type": "string", "enum": ["clip", "session", "snapshot", "replay"]})
}

fn order() -> Value {
    json!({"type": "string", "enum": ["asc", "desc"]})
}

fn variant() -> Value {
    json!({"type": "string", "enum": ["video", "thumbnail"]})
}

fn key() -> Value {
    let max = limits::IDEMPOTENCY_KEY_CHARS_MAX;
    json!({"type": "string", "minLength": 1, "maxLength": max, "pattern": "^[!-~]+$"})
}

const ID: Parameter = path("id", id, "Its id.");
const KEY: Parameter = header("Idempotency-Key", key, "The same key gives the answer of the first request.");
const LIMIT: Parameter = query("limit", false, limit, "Items of the page.");
const CURSOR: Parameter = query("cursor", false, cursor, "`next` of the page before.");

const PARTS: &[(u16, &str)] =
    &[(206, "The part that Range asked for."), (304, "The client has it already."), (416, "There is no such part.")];
const KNOWN: &[(u16, &str)] = &[(304, "The client has it already.")];

const fn get(summary: &'static str, tag: &'static str, schema: &'static str) -> Operation {
    Operation {
        summary,
        tag,
        parameters: &[],
        body: None,
        answer: (200, JSON, schema),
        problems: &[],
        other_answers: &[],
    }
}

const fn with(operation: Operation, parameters: &'static [Parameter]) -> Operation {
    Operation { parameters, problems: &[404, 409], ..operation }
}

const fn post(
    summary: &'static str,
    tag: &'static str,
    parameters: &'static [Parameter],
    body: (&'static str, bool),
    answer: (u16, &'static str),
) -> Operation {
    let content: &'static [(&'static str, &'static str)] = match body.0.as_bytes() {
        b"GenerateRequest" => &[(JSON, "GenerateRequest")],
        b"ControlRequest" => &[(JSON, "ControlRequest")],
        b"ForkRequest" => &[(JSON, "ForkRequest")],
        b"OpenAIRemix" => &[(JSON, "OpenAIRemix")],
        _ => &[(JSON, "NoFields")],
    };
    Operation {
        summary,
        tag,
        parameters,
        body: Some(Body { required: body.1, content }),
        answer: (answer.0, JSON, answer.1),
        problems: &[404],
        other_answers: &[],
    }
}

const fn file(
    summary: &'static str,
    tag: &'static str,
    kind: &'static str,
    parameters: &'static [Parameter],
) -> Operation {
    Operation {
        summary,
        tag,
        parameters,
        body: None,
        answer: (200, kind, ""),
        problems: &[404, 409],
        other_answers: PARTS,
    }
}

/// The description of a route, by its id; none for the page and the WebSocket, which OpenAPI cannot describe.
pub fn find(id: &str) -> Option<Operation> {
    core(id).or_else(|| resources(id)).or_else(|| openai(id))
}

fn core(id: &str) -> Option<Operation> {
    const ONE: &[Parameter] = &[query("id", true, self::id, "Id of a session or stored thing.")];
    const MAYBE: &[Parameter] = &[query("id", false, self::id, "Id of a session or stored thing.")];
    Some(match id {
        "generate" => post(
            "Start a generation or an interactive session",
            "generate",
            &[KEY],
            ("GenerateRequest", true),
            (202, "GenerateReply"),
        ),
        "cancel" => with(get("Cancel a generation or stop a session", "generate", "SessionStatus"), ONE),
        "control" => post("Control a session", "generate", &[], ("ControlRequest", true), (200, "SessionStatus")),
        "status" => with(get("The daemon, or one session", "generate", "Status"), MAYBE),
        "video" => file("A video", "generate", "video/mp4", ONE),
        "poster" => file("A picture of it", "generate", "image/jpeg", ONE),
        "metrics" => Operation { answer: (200, "text/plain", ""), ..get("Counters for Prometheus", "health", "") },
        "health" => Operation { answer: (200, "text/plain", ""), ..get("The daemon runs", "health", "") },
        "ready" => Operation { answer: (200, "text/plain", ""), ..get("A worker is ready", "health", "") },
        "openapi" => get("This document", "health", ""),
        _ => return None,
    })
}

fn resources(id: &str) -> Option<Operation> {
    const SESSIONS: &[Parameter] = &[LIMIT, CURSOR, query("kind", false, kind, "Of this kind only.")];
    const FRAME: &[Parameter] = &[ID, path("index", index, "Number of the frame, from 0.")];
    const PREVIEW: &[Parameter] = &[
        ID,
        query("type", false, extraction, "What is taken from the picture; absent: the picture itself."),
        query("index", false, index, "Number of the picture, from 0."),
    ];
    let gone = |summary, tag| Operation { answer: (204, "", ""), ..with(get(summary, tag, ""), &[ID]) };
    Some(match id {
        "listSessions" => {
            Operation { parameters: SESSIONS, ..get("Sessions and stored things", "sessions", "SessionPage") }
        }
        "showSession" => with(get("A session and its value", "sessions", "SessionReply"), &[ID]),
        "deleteSession" => gone("End a session and remove everything of it", "sessions"),
        "showTrace" => with(get("What was controlled at which tick", "sessions", "Trace"), &[ID]),
        "keepSnapshot" => post("Keep the newest state", "sessions", &[ID], ("NoFields", false), (201, "SessionStatus")),
        "forkSession" => post(
            "A new session that goes on from here",
            "sessions",
            &[ID, KEY],
            ("ForkRequest", false),
            (202, "GenerateReply"),
        ),
        "replaySession" => {
            post("Make its video again", "sessions", &[ID, KEY], ("NoFields", false), (202, "GenerateReply"))
        }
        "listVideos" => Operation { parameters: &[LIMIT, CURSOR], ..get("Stored videos", "videos", "VideoPage") },
        "showVideo" => with(get("A stored video", "videos", "Video"), &[ID]),
        "deleteVideo" => gone("Remove a video", "videos"),
        "videoContent" => file("The video", "videos", "video/mp4", &[ID]),
        "videoPoster" => file("A picture of it", "videos", "image/jpeg", &[ID]),
        "videoFrame" => Operation { other_answers: KNOWN, ..file("One frame", "videos", "image/png", FRAME) },
        "upload" => Operation {
            body: Some(Body {
                required: true,
                content: &[
                    ("multipart/form-data", "UploadForm"),
                    ("video/mp4", ""),
                    ("image/png", ""),
                    ("image/jpeg", ""),
                ],
            }),
            answer: (201, JSON, "Upload"),
            ..get("Send a clip or pictures", "uploads", "")
        },
        "listUploads" => Operation { parameters: &[LIMIT, CURSOR], ..get("Uploads", "uploads", "UploadPage") },
        "showUpload" => with(get("An upload", "uploads", "Upload"), &[ID]),
        "deleteUpload" => gone("Remove an upload", "uploads"),
        "previewUpload" => {
            Operation { other_answers: KNOWN, ..file("One of its pictures", "uploads", "image/jpeg", PREVIEW) }
        }
        "listModels" => get("Models that can be used now", "models", "ModelPage"),
        _ => return None,
    })
}

fn openai(id: &str) -> Option<Operation> {
    const LIST: &[Parameter] = &[
        LIMIT,
        query("after", false, self::id, "Id of the last video of the page before."),
        query("order", false, order, "By age."),
    ];
    const CONTENT: &[Parameter] = &[ID, query("variant", false, variant, "The video, or a picture of it.")];
    Some(match id {
        "openaiCreateVideo" => Operation {
            parameters: &[KEY],
            body: Some(Body {
                required: true,
                content: &[(JSON, "OpenAICreate"), ("multipart/form-data", "OpenAICreateForm")],
            }),
            ..get("Start a video", "openai", "OpenAIVideo")
        },
        "openaiListVideos" => {
            Operation { parameters: LIST, problems: &[404], ..get("Videos", "openai", "OpenAIVideoList") }
        }
        "openaiShowVideo" => with(get("A video", "openai", "OpenAIVideo"), &[ID]),
        "openaiDeleteVideo" => with(get("Remove a video", "openai", "OpenAIDeleted"), &[ID]),
        "openaiVideoContent" => file("The video", "openai", "video/mp4 image/jpeg", CONTENT),
        "openaiRemixVideo" => post(
            "A video that goes on from another one",
            "openai",
            &[ID, KEY],
            ("OpenAIRemix", true),
            (200, "OpenAIVideo"),
        ),
        "openaiListModels" => get("Models", "openai", "OpenAIModelList"),
        "openaiShowModel" => {
            const NAME: &[Parameter] = &[path("id", text, "Its name.")];
            with(get("A model", "openai", "OpenAIModel"), NAME)
        }
        _ => return None,
    })
}
