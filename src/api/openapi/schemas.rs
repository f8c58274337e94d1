//! The bodies and answers as JSON schemas.

use serde_json::{Value, json};

use super::reference;
use crate::proto::api::Vocabulary;
use crate::proto::decode::Extraction;
use crate::proto::keys::KEY_NAMES;
use crate::proto::limits;

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

/// An object without any other field.
fn closed(required: &[&str], properties: Value) -> Value {
    let mut schema = object(required, properties);
    schema["additionalProperties"] = json!(false);
    schema
}

fn page_of(schema: &str) -> Value {
    object(&["items"], json!({"items": {"type": "array", "items": reference(schema)}, "next": text()}))
}

fn text() -> Value {
    json!({"type": "string"})
}

fn file() -> Value {
    json!({"type": "string", "contentMediaType": "application/octet-stream"})
}

fn whole(minimum: u64) -> Value {
    json!({"type": "integer", "minimum": minimum})
}

fn range(range: &std::ops::RangeInclusive<u32>) -> Value {
    json!({"type": "integer", "minimum": range.start(), "maximum": range.end()})
}

fn words(words: &[String]) -> Value {
    if words.is_empty() { text() } else { json!({"type": "string", "enum": words}) }
}

fn prompt(max: usize) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": max, "pattern": "\\S"})
}

fn id() -> Value {
    json!({"type": "string", "pattern": "^[0-9a-f]{32}$"})
}

/// May also be null, as where a field is left out.
fn or_null(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

/// Every schema by its name.
pub fn all(vocabulary: &Vocabulary, model: Option<&str>) -> Value {
    let mut all = json!({});
    for part in [requests(vocabulary, model), answers(), resources(), openai()] {
        for (name, schema) in part.as_object().into_iter().flatten() {
            all[name.as_str()] = schema.clone();
        }
    }
    all
}

fn requests(v: &Vocabulary, model: Option<&str>) -> Value {
    let seed = json!({"type": "integer", "minimum": 0, "maximum": u64::MAX});
    let even = |limits: &std::ops::RangeInclusive<u32>| {
        let mut schema = range(limits);
        schema["multipleOf"] = json!(2);
        schema
    };
    let steps = if v.steps.is_empty() { whole(1) } else { json!({"type": "integer", "enum": v.steps}) };
    let keys = json!({"type": "array", "items": {"type": "string", "enum": KEY_NAMES}});
    json!({
        "GenerateRequest": closed(&["prompt"], json!({
            "prompt": prompt(limits::PROMPT_CHARS_MAX),
            "width": even(&limits::WIDTH_PX),
            "height": even(&limits::HEIGHT_PX),
            "frames": range(&limits::FRAMES),
            "fps": range(&limits::FPS),
            "steps": or_null(steps),
            "seed": or_null(seed.clone()),
            "perspective": or_null(words(&v.perspectives)),
            "interactive": {"type": "boolean"},
            "from": or_null(id()),
            "video_prompt": or_null(reference("VideoPrompt")),
        })),
        "VideoPrompt": closed(&["type", "upload"], json!({
            "type": {"type": "string", "enum": Extraction::ALL.map(Extraction::name)},
            "upload": id(),
        })),
        "ControlRequest": closed(&["session", "seq"], json!({
            "session": id(),
            "seq": {"type": "integer", "minimum": 1, "maximum": u32::MAX},
            "keys": or_null(keys.clone()),
            "taps": keys,
            "weather": or_null(words(&v.weather)),
            "lighting": or_null(words(&v.lighting)),
            "effects": or_null(words(&v.effects)),
            "instruction": or_null(prompt(limits::INSTRUCTION_CHARS_MAX)),
        })),
        "ForkRequest": closed(&[], json!({
            "prompt": or_null(prompt(limits::PROMPT_CHARS_MAX)),
            "seed": or_null(seed),
            "interactive": {"type": "boolean", "default": true},
            "frames": or_null(range(&limits::FRAMES)),
        })),
        "NoFields": closed(&[], json!({})),
        "UploadForm": closed(&["file"], json!({
            "file": {"type": "array", "minItems": 1, "items": file()},
        })),
        "OpenAICreate": closed(&["prompt"], openai_create(model)),
        "OpenAICreateForm": closed(&["prompt"], {
            let mut fields = openai_create(model);
            fields["input_reference"] = file();
            fields
        }),
        "OpenAIRemix": closed(&["prompt"], json!({"prompt": prompt(limits::PROMPT_CHARS_MAX)})),
    })
}

/// Even numbers from 64 to 1920, and from 64 to 1088.
const WIDTHS: &str = "(6[468]|[789][02468]|[1-9][0-9][02468]|1[0-8][0-9][02468]|19[01][02468]|1920)";
const HEIGHTS: &str = "(6[468]|[789][02468]|[1-9][0-9][02468]|10[0-7][02468]|108[02468])";

fn openai_create(model: Option<&str>) -> Value {
    json!({
        "prompt": prompt(limits::PROMPT_CHARS_MAX),
        "model": model.map_or_else(text, |model| json!({"const": model})),
        "seconds": {"type": "string", "pattern": "^([1-9]|[1-9][0-9]|[1-5][0-9][0-9]|600)$"},
        "size": {"type": "string", "pattern": format!("^{WIDTHS}x{HEIGHTS}$")},
    })
}

fn answers() -> Value {
    json!({
        "Problem": object(&["type", "title", "status", "detail", "code"], json!({
            "type": text(), "title": text(), "status": whole(400), "detail": text(), "code": text(),
            "field": text(), "allowed": text(), "request_id": text(),
        })),
        "Links": object(&["session", "status", "stream", "cancel"], json!({
            "session": text(), "status": text(), "stream": text(), "cancel": text(), "video": text(), "poster": text(),
        })),
        "GenerateReply": object(&["id", "links"], json!({"id": id(), "links": reference("Links")})),
        "Status": {"anyOf": [reference("SessionStatus"), reference("DaemonStatus")]},
        "DaemonStatus": object(&["version", "uptime_seconds", "state", "sandbox", "worker", "sessions"], json!({
            "version": text(),
            "uptime_seconds": whole(0),
            "state": {"type": "string", "enum": ["starting", "ready", "recovering", "failed", "draining"]},
            "sandbox": text(),
            "worker": or_null(json!({"type": "object"})),
            "sessions": {"type": "array", "items": reference("SessionStatus")},
        })),
        "SessionStatus": session_status(),
        "Quality": object(&["width", "height", "steps", "fps", "degraded"], json!({
            "width": whole(1), "height": whole(1), "steps": whole(1), "fps": {"type": "number", "minimum": 0},
            "degraded": {"type": "string", "enum": ["none", "steps", "steps and rate", "steps, rate and size"]},
            "size_fixed": or_null(text()),
        })),
    })
}

fn session_status() -> Value {
    object(
        &["id", "kind", "state", "progress", "frame_count", "frames", "prompt", "width", "height", "links"],
        json!({
            "id": id(),
            "kind": {"type": "string", "enum": ["clip", "session", "snapshot", "replay"]},
            "state": {"type": "string", "enum": ["queued", "running", "recovering", "done", "cancelled", "failed"]},
            "queue_position": whole(1),
            "progress": {"type": "number", "minimum": 0, "maximum": 1},
            "frame_count": whole(0),
            "frames": whole(0),
            "interactive": {"type": "boolean"},
            "prompt": text(),
            "width": whole(1),
            "height": whole(1),
            "fps": whole(1),
            "steps": whole(1),
            "seed": whole(0),
            "perspective": text(),
            "from": text(),
            "video_prompt": reference("VideoPrompt"),
            "created": whole(0),
            "frames_per_second": {"type": "number", "minimum": 0},
            "viewers": whole(0),
            "now": reference("Quality"),
            "error": reference("Problem"),
            "links": reference("Links"),
        }),
    )
}

fn resources() -> Value {
    json!({
        "SessionPage": page_of("SessionStatus"),
        "SessionReply": {"allOf": [
            reference("SessionStatus"),
            {"type": "object", "properties": {"value": reference("SessionValue")}},
        ]},
        "SessionValue": object(&["model_hash", "device", "prompt", "seed", "tick", "changes"], json!({
            "model_hash": text(), "device": text(), "prompt": text(), "seed": whole(0), "width": whole(1),
            "height": whole(1), "steps": whole(1), "tick": whole(0), "changes": whole(0),
            "changes_dropped": whole(0),
        })),
        "Trace": object(&["tick", "changes_dropped", "changes"], json!({
            "tick": whole(0), "changes_dropped": whole(0),
            "changes": {"type": "array", "items": {"type": "object", "required": ["type", "tick"]}},
        })),
        "VideoPage": page_of("Video"),
        "Video": object(&["id", "kind", "prompt", "width", "height", "fps", "frames", "seconds", "links"], json!({
            "id": id(), "kind": text(), "prompt": text(), "width": whole(1), "height": whole(1), "fps": whole(1),
            "frames": whole(1), "seconds": {"type": "number"}, "steps": whole(1), "seed": whole(0),
            "model_hash": text(), "created": whole(0), "bytes": whole(0),
            "links": object(&["video", "content", "poster", "frame"], json!({})),
        })),
        "UploadPage": page_of("Upload"),
        "Upload": object(&["id", "width", "height", "frames", "fps", "bytes", "files", "links"], json!({
            "id": id(), "width": whole(1), "height": whole(1), "frames": whole(1), "fps": {"type": "number"},
            "bytes": whole(1), "files": whole(1), "created": whole(0),
            "previews": {"type": "array", "items": text()},
            "links": object(&["upload", "preview"], json!({})),
        })),
        "ModelPage": page_of("Model"),
        "Model": object(&["id", "hash", "parameters", "device", "vocabulary"], json!({
            "id": text(), "hash": text(), "parameters": whole(0), "device": text(), "vocabulary": {"type": "object"},
        })),
    })
}

fn openai() -> Value {
    let list = |schema: &str| {
        object(
            &["object", "data"],
            json!({
                "object": {"const": "list"}, "data": {"type": "array", "items": reference(schema)},
            }),
        )
    };
    json!({
        "OpenAIError": object(&["error"], json!({"error": object(&["message", "type", "code"], json!({
            "message": text(), "type": text(), "code": text(), "param": or_null(text()),
        }))})),
        "OpenAIVideo": object(&["id", "object", "model", "status", "progress", "created_at", "size", "seconds"], json!({
            "id": id(),
            "object": {"const": "video"},
            "model": text(),
            "status": {"type": "string", "enum": ["queued", "in_progress", "completed", "failed"]},
            "progress": {"type": "integer", "minimum": 0, "maximum": 100},
            "created_at": whole(0),
            "completed_at": or_null(whole(0)),
            "size": text(),
            "seconds": text(),
            "error": or_null(object(&["code", "message"], json!({"code": text(), "message": text()}))),
        })),
        "OpenAIVideoList": list("OpenAIVideo"),
        "OpenAIDeleted": object(&["id", "object", "deleted"], json!({
            "id": id(), "object": {"const": "video.deleted"}, "deleted": {"const": true},
        })),
        "OpenAIModelList": list("OpenAIModel"),
        "OpenAIModel": object(&["id", "object"], json!({"id": text(), "object": {"const": "model"}})),
    })
}
