//! What a client is told when it does not get what it asked for: RFC 9457 problems with a stable `code`.
//!
//! The table of codes is in gamegend-protocol(7); a test compares both.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

pub use crate::exit::chain;
use crate::proto::api::{FieldError, Problem};
use crate::proto::decode::Extraction;

/// Every code with its status and title, in the order of the manual page.
const CODES: [(&str, u16, &str); 32] = [
    ("invalid_json", 400, "The body is not a JSON object"),
    ("invalid_field", 400, "A field is not as it must be"),
    ("unknown_field", 400, "A field is not known"),
    ("missing_field", 400, "A field is missing"),
    ("unauthorized", 401, "A valid token is required"),
    ("cross_origin", 403, "The request comes from another site"),
    ("not_found", 404, "There is nothing at this path"),
    ("unknown_session", 404, "No such session or stored generation"),
    ("unknown_upload", 404, "No such upload"),
    ("method_not_allowed", 405, "The path has other methods"),
    ("request_timeout", 408, "The request took too long to arrive"),
    ("session_ended", 409, "The session has ended"),
    ("stale_control", 409, "A newer control was already accepted"),
    ("no_object", 409, "The generation is not finished"),
    ("origin_mismatch", 409, "It cannot be continued like this"),
    ("idempotency_pending", 409, "The request with this key is at work"),
    ("model_mismatch", 409, "Another model made it"),
    ("trace_incomplete", 409, "It cannot be made again"),
    ("body_too_large", 413, "The body is too large"),
    ("unsupported_media_type", 415, "The body is of another type"),
    ("upload_refused", 422, "The files cannot be used"),
    ("video_prompts_unsupported", 422, "The model does not take this video prompt"),
    ("idempotency_mismatch", 422, "The key belongs to another request"),
    ("rate_limited", 429, "Too many requests"),
    ("too_many_sessions", 429, "The daemon has as many sessions as it may"),
    ("queue_full", 429, "As many generations wait as may"),
    ("too_many_uploads", 429, "The client has as many uploads as it may"),
    ("internal", 500, "The daemon made a mistake"),
    ("too_many_viewers", 503, "The session has as many viewers as it may"),
    ("worker_unavailable", 503, "No worker is ready"),
    ("decoder_unavailable", 503, "Pictures cannot be read now"),
    ("draining", 503, "The daemon is stopping"),
];

/// Codes of what happens to a session later, told in its status and in `error` messages.
const SESSION_CODES: [(&str, u16, &str); 4] = [
    ("instruction_refused", 422, "The model cannot take the instruction"),
    ("session_failed", 500, "The worker could not go on with the session"),
    ("recording_failed", 500, "The video could not be written"),
    ("worker_failed", 503, "The worker is gone and does not come back"),
];

/// A refused request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", problem.detail)]
pub struct Refusal {
    pub problem: Box<Problem>,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u64>,
}

impl Refusal {
    /// The refusal with this code of the table. `detail` is one sentence for a person.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Refusal {
        let row = CODES.iter().chain(&SESSION_CODES).find(|(c, _, _)| *c == code);
        let (status, title) = row.map_or((500, "The daemon made a mistake"), |(_, status, title)| (*status, *title));
        let problem = Problem {
            kind: "about:blank".to_string(),
            title: title.to_string(),
            status,
            detail: detail.into(),
            code: code.to_string(),
            field: None,
            allowed: None,
            request_id: None,
        };
        Refusal { problem: Box::new(problem), retry_after: None }
    }

    /// Names the field and what it may be.
    pub fn about(mut self, field: impl Into<String>, allowed: impl Into<String>) -> Refusal {
        self.problem.field = Some(field.into());
        self.problem.allowed = Some(allowed.into());
        self
    }

    pub fn retry_after(mut self, seconds: u64) -> Refusal {
        self.retry_after = Some(seconds);
        self
    }

    /// Logs what really happened and tells the client nothing about it.
    pub fn internal(error: &dyn std::error::Error) -> Refusal {
        let id = REQUEST.try_with(|r| format!("request {}: ", r.id)).unwrap_or_default();
        log::error!("{id}{}", chain(error));
        Refusal::new("internal", "The daemon could not do this; its log says why.")
    }

    /// Poses cannot be taken from pictures.
    pub fn no_pose() -> Refusal {
        let detail = "The model's folder has no pose judge (judges/pose), the network that finds a figure's joints.";
        let known = Extraction::ALL.map(Extraction::name).into_iter().filter(|n| *n != Extraction::Pose.name());
        let allowed = known.collect::<Vec<_>>().join(", ");
        Refusal::new("video_prompts_unsupported", detail).about("video_prompt", allowed)
    }

    pub fn unknown_upload(id: &str) -> Refusal {
        let shown: String = id.chars().take(64).collect();
        Refusal::new("unknown_upload", format!("There is no upload {shown:?} of yours."))
    }

    pub fn unknown_session(id: &str) -> Refusal {
        let shown: String = id.chars().take(64).collect();
        Refusal::new("unknown_session", format!("There is no session or stored generation {shown:?} of yours."))
    }
}

/// The request that a task answers.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: String,
    /// True for the routes of the OpenAI style, whose errors have another form.
    pub openai: bool,
}

tokio::task_local! {
    /// Set around every handler.
    pub static REQUEST: Request;
}

impl From<FieldError> for Refusal {
    fn from(e: FieldError) -> Refusal {
        Refusal::new("invalid_field", format!("{e}.")).about(e.field, e.allowed)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let request = REQUEST.try_with(Clone::clone).ok();
        let openai = request.as_ref().is_some_and(|r| r.openai);
        let mut problem = self.problem;
        problem.request_id = request.map(|r| r.id);
        let (kind, mut response) = match openai {
            true => ("application/json", (status, axum::Json(openai_error(&problem))).into_response()),
            false => ("application/problem+json", (status, axum::Json(&problem)).into_response()),
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"gamegend\""));
        }
        response
    }
}

/// A problem in the form that clients of the OpenAI style read.
fn openai_error(problem: &Problem) -> serde_json::Value {
    let kind = match problem.status {
        401 | 403 => "authentication_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    serde_json::json!({"error": {
        "message": problem.detail,
        "type": kind,
        "param": problem.field,
        "code": problem.code,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_page_has_every_code() {
        let page = include_str!("../../man/gamegend-protocol.7");
        for (code, status, _) in CODES.iter().chain(&SESSION_CODES) {
            assert!(page.contains(&format!(".It Li {code} Ta {status} Ta ")), "{code} {status} is not in the table");
        }
    }

    #[test]
    fn a_field_error_names_field_value_and_range() {
        let refusal = Refusal::from(FieldError::new("fps", 99, "1 to 60"));
        assert_eq!((refusal.problem.code.as_str(), refusal.problem.status), ("invalid_field", 400));
        assert_eq!(refusal.problem.field.as_deref(), Some("fps"));
        assert_eq!(refusal.problem.allowed.as_deref(), Some("1 to 60"));
        assert!(refusal.problem.detail.contains("99"));
    }
}
