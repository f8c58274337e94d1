//! The evaluation from its protocol to its file, on a protocol of a few frames. It needs a model with judges.
//!
//! `GAMEGEN_TEST_MODEL` names another model folder than the shipped one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use gamegend::compute::{ComputeError, Executor, cpu::CpuExecutor};
use gamegend::model::eval::{Options, Part, run};
use serde_json::{Value, json};

/// Parts of a model folder that an evaluation reads.
const PARTS: [&str; 8] =
    ["model_index.json", "tokenizer", "text_encoder", "vae", "transformer", "instructnet", "scheduler", "judges"];

/// A folder of links to the model with a protocol of its own; it goes away with the test.
struct Place(PathBuf);

impl Place {
    /// `None` after saying why.
    fn new(name: &str, protocol: &Value) -> Option<Place> {
        let shipped = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/gamegen-x-mini");
        let model = std::env::var_os("GAMEGEN_TEST_MODEL").map_or(shipped, PathBuf::from);
        if !model.join("judges").exists() {
            println!("the model has no judges");
            return None;
        }
        let path = std::env::temp_dir().join(format!("gamegend-eval-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the temporary folder is writable");
        for part in PARTS {
            let target = fs::canonicalize(model.join(part)).expect("the model is whole");
            std::os::unix::fs::symlink(target, path.join(part)).expect("a link");
        }
        fs::write(path.join("evaluation.json"), protocol.to_string()).expect("a file");
        Some(Place(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn protocol() -> Value {
    let entry = json!({"text": "a red robot in the desert at night", "says": {"biome": "desert", "lighting": "night"}});
    let change = json!({"text": "a meadow", "attribute": "weather", "to": "snow", "then": "weather: snow."});
    let view = json!({"text": "first person view. a forest", "says": {"perspective": "first"}});
    json!({
        "version": 1, "size": [160, 96], "steps": 1,
        "keys": {"prompts": [entry], "scripts": ["W", "S", "A", "D", "SPACE", "SHIFT", "none"], "walk": 2,
            "held": 6, "settled": 1},
        "alignment": {"key": "W", "frames": 3, "judged_from": 1, "seen": [entry, view], "unseen": [entry],
            "paraphrases": [entry]},
        "instructions": {"key": "W", "before": 2, "after": 4, "judged": 2, "structured": [change], "text": [change]},
        "drift": {"prompts": [entry], "frames": {"60s": 50, "10min": 60}, "walk": 16, "probe": ["W", "SPACE"],
            "held": 8, "settled": 2, "seed": 1, "modes": [["W", 1], ["W A", 2]], "change": 0.2, "jump": 0.1,
            "jump_frames": 2, "last": 8, "checks": 2}
    })
}

fn evaluate(model: &Path, parts: &[Part], output: &Path) -> (Result<String, String>, Vec<String>) {
    let open = || -> Result<Box<dyn Executor>, ComputeError> { Ok(Box::new(CpuExecutor::new(2)?)) };
    let lines = Mutex::new(Vec::new());
    let print = |line: &str| lines.lock().expect("no test holds it").push(line.to_string());
    let options = Options { model, parts, count: None, steps: None, output };
    let outcome = run(&options, &open, &print).map_err(|e| e.to_string());
    (outcome, lines.into_inner().expect("no test holds it"))
}

#[test]
fn every_part_writes_its_figures() {
    let Some(place) = Place::new("figures", &protocol()) else { return };
    let output = place.0.join("eval.json");
    let (outcome, lines) = evaluate(&place.0, &Part::ALL, &output);
    let table = outcome.expect("it measures");
    let found: Value = serde_json::from_slice(&fs::read(&output).expect("it was written")).expect("it is JSON");
    let counts = [
        ("keys_success", 10),
        ("weather_success", 1),
        ("text_success", 1),
        ("alignment_seen", 2),
        ("alignment_unseen", 1),
        ("view_success", 1),
        ("drift_10min", 1),
        ("collapsed_runs", 1),
    ];
    for (figure, count) in counts {
        assert_eq!(found[figure]["count"], count, "{figure}");
        let (value, ceiling) = (found[figure]["value"].as_f64(), found[figure]["ceiling"].as_f64());
        assert!(value.is_some_and(|v| v >= 0.0) && ceiling.is_some(), "{figure}: {}", found[figure]);
        assert!(table.contains(figure), "{table}");
    }
    assert!(found.get("lighting_success").is_none(), "nothing was measured of it");
    assert_eq!(found["more"]["alignment_paraphrases"]["count"], 1);
    assert_eq!(found["tables"]["keys"]["starts"]["live"]["keys"]["W"]["count"], 1);
    assert_eq!(found["tables"]["drift_60s"]["frames"], 50);
    assert_eq!((&found["steps"], &found["small"]), (&json!(1), &json!(false)));
    assert!(found["tables"]["steps"].as_object().is_some_and(|rows| !rows.is_empty()), "other numbers of steps");
    for part in ["ceilings", "reconstruction", "frechet", "video"] {
        assert!(lines.iter().any(|l| l.contains(&format!("{part} did not run: it needs the renderer"))), "{part}");
    }
}

#[test]
fn a_wrong_protocol_names_its_field() {
    let cases = [
        ("version", json!(2), "version is 2, needs 1"),
        ("keys", Value::Null, "evaluation.json is not the configuration"),
        ("size", json!([100, 96]), "picture to judge is 100x96 pixels, allowed is multiples of 160x96"),
    ];
    for (field, value, message) in cases {
        let mut wrong = protocol();
        wrong[field] = value;
        let Some(place) = Place::new(&format!("wrong-{field}"), &wrong) else { return };
        let (outcome, _) = evaluate(&place.0, &[Part::Keys], &place.0.join("eval.json"));
        let error = outcome.expect_err("the protocol is wrong");
        assert!(error.contains(message), "{error} does not say {message}");
    }
}
