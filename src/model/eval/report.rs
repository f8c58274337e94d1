//! `eval.json`: the figures with their counts and their judges' ceilings, and the tables that they come from.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::model::ModelError;

/// Figures that the model is measured by, as they are printed.
const FIGURES: [&str; 9] = [
    "keys_success",
    "weather_success",
    "lighting_success",
    "effect_success",
    "text_success",
    "alignment_seen",
    "alignment_unseen",
    "view_success",
    "drift_10min",
];
const COLLAPSED: &str = "collapsed_runs";
/// More figures of the same form, in an object of their own.
const MORE: [&str; 2] = ["alignment_paraphrases", "drift_60s"];

/// A share of something, with its count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    pub right: usize,
    pub count: usize,
}

impl Share {
    pub fn of(right: &[bool]) -> Share {
        Share { right: right.iter().filter(|r| **r).count(), count: right.len() }
    }

    pub fn push(&mut self, right: bool) {
        self.right += usize::from(right);
        self.count += 1;
    }

    pub fn value(self) -> f64 {
        self.right as f64 / self.count.max(1) as f64
    }

    pub fn json(self) -> Map<String, Value> {
        object([("value", json!(self.value())), ("count", json!(self.count))])
    }
}

/// A JSON object.
pub fn object<const N: usize>(entries: [(&str, Value); N]) -> Map<String, Value> {
    entries.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// Collects figures and tables and writes the file after every change. A part that did not run leaves nothing.
pub struct Report<'a> {
    path: PathBuf,
    begin: Instant,
    about: Map<String, Value>,
    figures: Map<String, Value>,
    tables: Map<String, Value>,
    print: &'a dyn Fn(&str),
}

impl<'a> Report<'a> {
    pub fn new(path: PathBuf, about: Map<String, Value>, print: &'a dyn Fn(&str)) -> Report<'a> {
        Report { path, begin: Instant::now(), about, figures: Map::new(), tables: Map::new(), print }
    }

    /// `ceiling`: what rendered truth gets from the same judge.
    pub fn figure(&mut self, name: &str, value: f64, count: usize, ceiling: f64) -> Result<(), ModelError> {
        let entry = object([("value", json!(value)), ("count", json!(count)), ("ceiling", json!(ceiling))]);
        self.figures.insert(name.to_string(), Value::Object(entry));
        self.say(&format!("{name} {value:.4} of {count}, ceiling {ceiling:.4}"));
        self.write()
    }

    pub fn table(&mut self, name: &str, value: Value) -> Result<(), ModelError> {
        self.tables.insert(name.to_string(), value);
        self.write()
    }

    /// A line of progress.
    pub fn say(&self, text: &str) {
        (self.print)(&format!("[{:7.1}s] {text}", self.begin.elapsed().as_secs_f64()));
    }

    fn write(&self) -> Result<(), ModelError> {
        let pick = |names: &[&str]| -> Map<String, Value> {
            names.iter().filter_map(|n| self.figures.get(*n).map(|v| (n.to_string(), v.clone()))).collect()
        };
        let mut all = pick(&FIGURES);
        all.extend(pick(&[COLLAPSED]));
        all.extend(self.about.clone());
        all.insert("more".to_string(), Value::Object(pick(&MORE)));
        all.insert("tables".to_string(), Value::Object(self.tables.clone()));
        let text = serde_json::to_string_pretty(&rounded(Value::Object(all)))
            .map_err(|source| ModelError::Json { path: self.path.clone(), source })?;
        let fail = |source| ModelError::Write { path: self.path.clone(), source };
        std::fs::write(&self.path, text + "\n").map_err(fail)
    }

    /// The figures as lines of a table.
    pub fn summary(&self) -> String {
        let mut text = format!("{:<24} {:>8} {:>7} {:>8}\n", "figure", "value", "count", "ceiling");
        for name in FIGURES.iter().chain(&[COLLAPSED]).chain(&MORE) {
            let Some(row) = self.figures.get(*name) else { continue };
            let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
            let (value, count, ceiling) = (number("value"), number("count"), number("ceiling"));
            text += &format!("{name:<24} {value:>8.4} {count:>7.0} {ceiling:>8.4}\n");
        }
        text
    }
}

/// Numbers with four digits after the point.
fn rounded(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().map(|(k, v)| (k, rounded(v))).collect(),
        Value::Array(all) => all.into_iter().map(rounded).collect(),
        Value::Number(n) if n.is_f64() => json!((n.as_f64().unwrap_or_default() * 1e4).round() / 1e4),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_count_and_numbers_are_rounded() {
        let share = Share::of(&[true, false, true]);
        assert_eq!((share.value(), share.count), (2.0 / 3.0, 3));
        assert_eq!(Share::default().value(), 0.0);
        assert_eq!(rounded(json!({"a": [0.123456, 3]})), json!({"a": [0.1235, 3]}));
    }
}
