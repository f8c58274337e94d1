//! Request bodies: from JSON bytes to a checked type, with an error that names the field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::refusal::Refusal;

/// Reads a JSON object.
///
/// Errors: `invalid_json`, or `unknown_field`, `missing_field`, `invalid_field` about the field that is to blame.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let object: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|e| Refusal::new("invalid_json", format!("The body is not JSON: {e}.")))?;
    from_object(object)
}

/// The same from an object that was parsed already.
pub fn from_object<T: DeserializeOwned>(mut object: Map<String, Value>) -> Result<T, Refusal> {
    object.values_mut().for_each(whole);
    let error = match T::deserialize(Value::Object(object.clone())) {
        Ok(value) => return Ok(value),
        Err(e) => e.to_string(),
    };
    if let Some((field, known)) = quoted(&error, "unknown field `") {
        let known = known.trim_start_matches(", expected ").trim_start_matches("one of ").replace('`', "");
        return Err(Refusal::new("unknown_field", format!("There is no field {field:?}.")).about(field, known));
    }
    if let Some((field, _)) = quoted(&error, "missing field `") {
        return Err(Refusal::new("missing_field", format!("The field {field:?} is required.")).about(field, "a value"));
    }
    // serde_json does not say which field a value of the wrong type belongs to: it is the one without which the error
    // changes.
    for field in object.keys() {
        let mut rest = object.clone();
        rest.remove(field);
        if T::deserialize(Value::Object(rest)).err().is_none_or(|e| e.to_string() != error) {
            let value: String = object[field].to_string().chars().take(80).collect();
            let allowed = error.rsplit_once("expected ").map_or("another type", |(_, what)| what).to_string();
            let detail = format!("{field}: {value} is not allowed; allowed: {allowed}.");
            return Err(Refusal::new("invalid_field", detail).about(field.clone(), allowed));
        }
    }
    Err(Refusal::new("invalid_json", format!("The body does not fit: {error}.")))
}

/// 24.0 is a whole number in JSON, whatever writes it so.
fn whole(value: &mut Value) {
    match value {
        Value::Number(n) => {
            let whole = n.as_f64().filter(|f| n.is_f64() && f.fract() == 0.0 && (0.0..9e15).contains(f));
            if let Some(whole) = whole {
                *value = Value::from(whole as u64);
            }
        }
        Value::Object(object) => object.values_mut().for_each(whole),
        Value::Array(array) => array.iter_mut().for_each(whole),
        _ => {}
    }
}

/// The text in backticks after `prefix`, and what follows it.
fn quoted<'a>(error: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    error.strip_prefix(prefix)?.split_once('`')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::api::{ClientMessage, Control, GenerateRequest};

    fn refused<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> (String, Option<String>, Option<String>) {
        let problem = parse::<T>(text.as_bytes()).expect_err("it is wrong").problem;
        (problem.code, problem.field, problem.allowed)
    }

    #[test]
    fn the_field_to_blame_is_named() {
        let some = |s: &str| Some(s.to_string());
        let case = refused::<GenerateRequest>;
        assert_eq!(case("[1]").0, "invalid_json");
        assert_eq!(case("{").0, "invalid_json");
        assert_eq!(case(r#"{"width":64}"#), ("missing_field".into(), some("prompt"), some("a value")));
        let (code, field, allowed) = case(r#"{"prompt":"x","colour":1}"#);
        assert_eq!((code.as_str(), field), ("unknown_field", some("colour")));
        assert!(allowed.expect("a list").starts_with("prompt, width, height"));
        let wrong = case(r#"{"prompt":"x","width":"wide","height":64}"#);
        assert_eq!(wrong, ("invalid_field".into(), some("width"), some("u32")));
        assert_eq!(case(r#"{"prompt":"x","fps":-1}"#), ("invalid_field".into(), some("fps"), some("u32")));
        let whole: GenerateRequest = parse(br#"{"prompt":"x","width":64.0,"fps":3e1}"#).expect("whole numbers");
        assert_eq!((whole.width, whole.fps), (64, 30));
        assert_eq!(case(r#"{"prompt":"x","width":64.5}"#).1, some("width"));
        let (code, field, _) = refused::<Control>(r#"{"seq":1,"keyz":["W"]}"#);
        assert_eq!((code.as_str(), field), ("unknown_field", some("keyz")));
    }

    #[test]
    fn a_control_message_has_no_unknown_fields() {
        let good = br#"{"type":"control","seq":7,"keys":["W","D"],"taps":["SPACE"],"weather":"snow"}"#;
        let ClientMessage::Control(control) = parse(good).expect("it is the example of the design");
        assert_eq!((control.seq, control.weather.as_deref()), (7, Some("snow")));
        let (code, field, _) = refused::<ClientMessage>(r#"{"type":"control","seq":1,"keyz":["W"]}"#);
        assert_eq!((code.as_str(), field.as_deref()), ("unknown_field", Some("keyz")));
        let (code, field, _) = refused::<ClientMessage>(r#"{"type":"dance"}"#);
        assert_eq!((code.as_str(), field.as_deref()), ("invalid_field", Some("type")));
    }
}
