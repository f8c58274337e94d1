//! `judges/ceilings.json`: what the judges say about rendered truth. No figure can mean more than these.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::controls::COUNTED;
use crate::model::ModelError;
use crate::model::config::read;

/// A judge below this judges nothing.
pub const CEILING: f64 = 0.98;
const FILE: &str = "ceilings.json";

/// The table that `training/train_judges.py` measured on test worlds.
pub struct Ceilings {
    path: PathBuf,
    table: Value,
}

impl Ceilings {
    /// Reads the table beside the judges.
    pub fn load(dir: &Path) -> Result<Ceilings, ModelError> {
        Ok(Ceilings { path: dir.join(FILE), table: read(dir, FILE)? })
    }

    pub fn table(&self) -> &Value {
        &self.table
    }

    /// The number at a place in the table. Errors: there is none.
    fn number(&self, place: &[&str]) -> Result<f64, ModelError> {
        let found = place.iter().try_fold(&self.table, |value, name| match name.parse::<usize>() {
            Ok(index) if value.is_array() => value.get(index),
            _ => value.get(name),
        });
        found.and_then(Value::as_f64).ok_or_else(|| ModelError::Config {
            path: self.path.clone(),
            field: place.join("."),
            found: "no number".to_string(),
            needs: "a number".to_string(),
        })
    }

    /// The mean ceiling of attributes.
    pub fn attributes<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<f64, ModelError> {
        let all = names.into_iter().map(|name| self.number(&["attributes", name, "value"]));
        let all = all.collect::<Result<Vec<f64>, _>>()?;
        Ok(all.iter().sum::<f64>() / all.len().max(1) as f64)
    }

    /// The mean ceiling of the keys that count.
    pub fn keys(&self) -> Result<f64, ModelError> {
        let all = COUNTED.iter().map(|key| self.number(&["keys", key, "value"])).collect::<Result<Vec<f64>, _>>()?;
        Ok(all.iter().sum::<f64>() / all.len() as f64)
    }

    /// Range of a statistic of rendered clips.
    pub fn range(&self, statistic: &str) -> Result<[f64; 2], ModelError> {
        let end = |i: &str| self.number(&["ranges", "limits", statistic, i]);
        Ok([end("0")?, end("1")?])
    }

    /// Share of rendered clips outside of a range.
    pub fn outside(&self) -> Result<f64, ModelError> {
        Ok(1.0 - self.number(&["ranges", "inside", "value"])?)
    }

    /// Rows of attributes and keys whose ceiling is too low, as lines.
    pub fn weak(&self) -> Vec<String> {
        let mut all = Vec::new();
        for part in ["attributes", "keys"] {
            for (name, row) in self.table.get(part).and_then(Value::as_object).into_iter().flatten() {
                if let Some(value) = row["value"].as_f64().filter(|v| *v < CEILING) {
                    all.push(format!("ceiling of {part}: {value} for {name}, below {CEILING}"));
                }
            }
        }
        all
    }
}
