//! The evaluation of a model by its judges, on the engine: the same protocol and figures as `training/eval.py`, but for
//! those that need the world renderer.
//!
//! A part that does not run leaves no figure; nothing is filled in.

mod ceilings;
mod controls;
mod drift;
mod maker;
mod protocol;
mod report;
mod words;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::judges::{FOLDER as JUDGES, Judges, Part as Judge};
use super::{Engine, Model, ModelError};
use crate::compute::{ComputeError, Executor};
use ceilings::Ceilings;
use maker::Maker;
use protocol::Protocol;
use report::{Report, object};

/// The part of the prompts on which other numbers of steps are compared.
const STEPS_SHARE: usize = 2;

/// A part of the evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Keys,
    Words,
    Alignment,
    Drift60s,
    Drift10min,
    Steps,
    /// One that needs rendered frames: this program cannot measure it.
    Rendered(&'static str),
}

impl Part {
    pub const ALL: [Part; 10] = [
        Part::Keys,
        Part::Words,
        Part::Alignment,
        Part::Drift60s,
        Part::Drift10min,
        Part::Steps,
        Part::Rendered("ceilings"),
        Part::Rendered("reconstruction"),
        Part::Rendered("frechet"),
        Part::Rendered("video"),
    ];
    /// What is measured if nothing is asked for.
    pub const USUAL: [Part; 4] = [Part::Keys, Part::Words, Part::Alignment, Part::Drift60s];

    pub fn name(self) -> &'static str {
        match self {
            Part::Keys => "keys",
            Part::Words => "words",
            Part::Alignment => "alignment",
            Part::Drift60s => "drift_60s",
            Part::Drift10min => "drift_10min",
            Part::Steps => "steps",
            Part::Rendered(name) => name,
        }
    }

    /// The part of a name.
    pub fn named(name: &str) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.name() == name)
    }
}

/// What is measured.
pub struct Options<'a> {
    /// Model folder, with the protocol and the judges in it.
    pub model: &'a Path,
    pub parts: &'a [Part],
    /// Entries of each list of the protocol; all by default.
    pub count: Option<usize>,
    /// Steps of a frame; the protocol's by default.
    pub steps: Option<u32>,
    pub output: &'a Path,
}

/// Runs the parts on devices that `open` opens: one for the model, one for the judges. `print` takes lines of progress.
/// Returns the figures as a table.
///
/// Errors: those of the model folder, the protocol, the judges, the device, and of writing the output.
pub fn run(
    options: &Options<'_>,
    open: &dyn Fn() -> Result<Box<dyn Executor>, ComputeError>,
    print: &dyn Fn(&str),
) -> Result<String, ModelError> {
    let mut plan = Protocol::load(options.model)?;
    if let Some(count) = options.count {
        plan = plan.shortened(count.max(1));
    }
    let folder = options.model.join(JUDGES);
    let ceilings = Ceilings::load(&folder)?;
    let judges = Judges::load(&folder, &[Judge::Attributes, Judge::Keys], open()?)?;
    let engine = Engine::new(Model::load(options.model)?, open()?)?;
    let steps = options.steps.unwrap_or(plan.steps);
    let device = format!("{} ({:?})", engine.device().name, engine.device().precision);
    let about = object([
        ("model_sha256", json!(engine.model().info().hash)),
        ("engine", json!(concat!("gamegend ", env!("CARGO_PKG_VERSION")))),
        ("steps", json!(steps)),
        ("size", json!(plan.size)),
        ("device", json!(device)),
        ("small", json!(options.count.is_some())),
    ]);
    let report = Report::new(PathBuf::from(options.output), about, print);
    let maker = Maker { engine, judges, size: plan.size, steps };
    let mut evaluation = Evaluation { plan, ceilings, maker, report };
    evaluation.run(options.parts)?;
    Ok(evaluation.report.summary())
}

struct Evaluation<'a> {
    plan: Protocol,
    ceilings: Ceilings,
    maker: Maker,
    report: Report<'a>,
}

impl Evaluation<'_> {
    fn run(&mut self, parts: &[Part]) -> Result<(), ModelError> {
        self.report.table("ceilings", self.ceilings.table().clone())?;
        self.ceilings.weak().iter().for_each(|line| self.report.say(line));
        for part in parts {
            match part {
                Part::Keys => self.keys()?,
                Part::Words => self.words()?,
                Part::Alignment => self.alignment()?,
                Part::Drift60s => self.drift("60s")?,
                Part::Drift10min => self.drift("10min")?,
                Part::Steps => self.steps()?,
                Part::Rendered(name) => {
                    self.report.say(&format!("{name} did not run: it needs the renderer, see training/eval.py"));
                }
            }
        }
        Ok(())
    }

    fn keys(&mut self) -> Result<(), ModelError> {
        let found = controls::measure(&mut self.maker, &self.plan.keys, &self.report)?;
        self.report.table("keys", found.table)?;
        self.report.figure("keys_success", found.value, found.count, self.ceilings.keys()?)
    }

    fn words(&mut self) -> Result<(), ModelError> {
        let plan = &self.plan.instructions;
        let found = words::changed(&mut self.maker, plan, ("structured", &plan.structured), 20_100, &self.report)?;
        self.report.table("instructions", found.json())?;
        for (name, figure) in words::FIGURE_OF {
            if let Some((share, _)) = found.attributes.get(name) {
                self.report.figure(figure, share.value(), share.count, self.ceilings.attributes([name])?)?;
            }
        }
        let found = words::changed(&mut self.maker, plan, ("text", &plan.text), 20_200, &self.report)?;
        self.report.table("text_instructions", found.json())?;
        let ceiling = self.ceilings.attributes(found.attributes.keys().map(String::as_str))?;
        self.report.figure("text_success", found.all.value(), found.all.count, ceiling)
    }

    fn alignment(&mut self) -> Result<(), ModelError> {
        let words::Aligned { lists: found, view } =
            words::alignment(&mut self.maker, &self.plan.alignment, &self.report)?;
        let mut table: Map<String, Value> = found.iter().map(|(name, a)| (name.to_string(), a.json())).collect();
        table.insert("view".to_string(), Value::Object(view.json()));
        self.report.table("alignment", Value::Object(table))?;
        for (name, a) in found {
            let ceiling = self.ceilings.attributes(a.attributes.keys().map(String::as_str))?;
            self.report.figure(&format!("alignment_{name}"), a.value, a.count, ceiling)?;
        }
        if view.count == 0 {
            return Ok(());
        }
        let ceiling = self.ceilings.attributes(["perspective"])?;
        self.report.figure("view_success", view.value(), view.count, ceiling)
    }

    fn drift(&mut self, name: &str) -> Result<(), ModelError> {
        let plan = &self.plan.drift;
        let Some(frames) = plan.frames.get(name).copied() else {
            self.report.say(&format!("drift_{name} did not run: the protocol has no such length"));
            return Ok(());
        };
        let found = drift::measure(&mut self.maker, plan, (name, frames), &self.ceilings, &self.report)?;
        self.report.table(&format!("drift_{name}"), found.table)?;
        self.report.figure(&format!("drift_{name}"), found.value, found.count, 1.0)?;
        if name == "10min" {
            let ceiling = self.ceilings.outside()?;
            self.report.figure("collapsed_runs", found.collapsed as f64, found.count, ceiling)?;
        }
        Ok(())
    }

    /// Keys, changes and alignment with the other numbers of steps, on a part of the prompts.
    fn steps(&mut self) -> Result<(), ModelError> {
        let (shipped, mut rows) = (self.maker.steps, Map::new());
        let longest = self.plan.alignment.seen.len().max(STEPS_SHARE);
        let plan = self.plan.clone().shortened(longest / STEPS_SHARE);
        for steps in self.maker.engine.model().info().steps.clone() {
            if steps == shipped {
                continue;
            }
            self.maker.steps = steps;
            let keys = controls::measure(&mut self.maker, &plan.keys, &self.report)?;
            let rows_of = ("structured", &plan.instructions.structured[..]);
            let changes = words::changed(&mut self.maker, &plan.instructions, rows_of, 20_100, &self.report)?;
            let found = words::alignment(&mut self.maker, &plan.alignment, &self.report)?.lists;
            let alignment: Map<String, Value> = found.iter().map(|(name, a)| (name.to_string(), a.json())).collect();
            let row = json!({"keys": keys.table, "instructions": changes.json(), "alignment": alignment});
            rows.insert(steps.to_string(), row);
            self.report.table("steps", Value::Object(rows.clone()))?;
        }
        self.maker.steps = shipped;
        Ok(())
    }
}
