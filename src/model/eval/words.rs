//! Do the words do what they say: prompts, structured instructions, free instructions, judged by the attribute judge.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::maker::{Clip, Maker, judged, small};
use super::protocol::{AlignmentPlan, Change, ChangePlan, Entry, Says, named_keys};
use super::report::{Report, Share, object};
use crate::model::ModelError;

/// The attributes that instructions change, with the figures of their success.
pub const FIGURE_OF: [(&str, &str); 3] =
    [("lighting", "lighting_success"), ("weather", "weather_success"), ("effects", "effect_success")];
/// Clips between two lines of progress.
const TOLD_EVERY: usize = 16;

/// Rows of the attributes that prompts say.
pub struct Agreement {
    /// The plain mean over the attributes that anything was said about.
    pub value: f64,
    pub count: usize,
    /// Attribute -> its share, and that of each of its values.
    pub attributes: BTreeMap<String, (Share, BTreeMap<String, Share>)>,
}

/// The share of clips that show what their prompts say.
pub fn agreement(entries: &[Entry], found: &[Says]) -> Agreement {
    let mut attributes: BTreeMap<String, (Share, BTreeMap<String, Share>)> = BTreeMap::new();
    for (entry, found) in entries.iter().zip(found) {
        for (name, value) in &entry.says {
            let right = found.get(name) == Some(value);
            let (share, values) = attributes.entry(name.clone()).or_default();
            share.push(right);
            values.entry(value.clone()).or_default().push(right);
        }
    }
    let value = attributes.values().map(|(s, _)| s.value()).sum::<f64>() / attributes.len().max(1) as f64;
    Agreement { value, count: found.len(), attributes }
}

impl Agreement {
    pub fn json(&self) -> Value {
        let lowest = self.attributes.iter().min_by(|a, b| a.1.0.value().total_cmp(&b.1.0.value()));
        let rows: Map<String, Value> =
            self.attributes.iter().map(|(n, (s, v))| (n.clone(), row(*s, "values", v))).collect();
        json!({"value": self.value, "count": self.count, "attributes": rows, "lowest": lowest.map(|(name, _)| name)})
    }
}

/// A share with those of its values under `name`.
fn row(share: Share, name: &str, values: &BTreeMap<String, Share>) -> Value {
    let mut all = share.json();
    let own: Map<String, Value> = values.iter().map(|(v, s)| (v.clone(), Value::Object(s.json()))).collect();
    all.extend(object([(name, Value::Object(own))]));
    Value::Object(all)
}

/// What text-only starts of prompts show.
fn shown(
    maker: &mut Maker,
    plan: &AlignmentPlan,
    (name, entries): (&str, &[Entry]),
    seed: u64,
    report: &Report<'_>,
) -> Result<Vec<Says>, ModelError> {
    let keys = vec![named_keys(&plan.key); plan.frames];
    let mut all = Vec::with_capacity(entries.len());
    for (number, Entry { text, .. }) in entries.iter().enumerate() {
        let clip = Clip { prompt: text, seed: seed + number as u64, keys: &keys, then: None };
        let frames = small(&maker.tail(&clip, plan.judged_from)?)?;
        all.push(judged(&mut maker.judges, &frames)?);
        if (number + 1).is_multiple_of(TOLD_EVERY) {
            report.say(&format!("alignment: {name}, {} of {} prompts", number + 1, entries.len()));
        }
    }
    Ok(all)
}

/// Alignment of each list of prompts, and the share of clips with the view that any of them asked for.
pub struct Aligned {
    pub lists: Vec<(&'static str, Agreement)>,
    pub view: Share,
}

/// Alignment of seen and unseen combinations and of paraphrases.
pub fn alignment(maker: &mut Maker, plan: &AlignmentPlan, report: &Report<'_>) -> Result<Aligned, ModelError> {
    let (mut all, mut view) = (Vec::new(), Share::default());
    let lists = [("seen", &plan.seen), ("unseen", &plan.unseen), ("paraphrases", &plan.paraphrases)];
    for (number, (name, entries)) in lists.into_iter().enumerate() {
        let found = shown(maker, plan, (name, entries), 100_000 * number as u64 + 7, report)?;
        for (entry, found) in entries.iter().zip(&found) {
            if let Some(asked) = entry.says.get("perspective") {
                view.push(found.get("perspective") == Some(asked));
            }
        }
        all.push((name, agreement(entries, &found)));
    }
    Ok(Aligned { lists: all, view })
}

/// Changes that were seen in the last frames: in all, by attribute, and by the value that was asked for.
pub struct Changed {
    pub all: Share,
    pub attributes: BTreeMap<String, (Share, BTreeMap<String, Share>)>,
}

impl Changed {
    pub fn json(&self) -> Value {
        let rows: Map<String, Value> =
            self.attributes.iter().map(|(n, (s, v))| (n.clone(), row(*s, "to", v))).collect();
        let mut all = self.all.json();
        all.extend(object([("attributes", Value::Object(rows))]));
        Value::Object(all)
    }
}

/// Gives each change its instruction after `before` frames and looks at the last ones of `after` frames more.
pub fn changed(
    maker: &mut Maker,
    plan: &ChangePlan,
    (name, rows): (&str, &[Change]),
    seed: u64,
    report: &Report<'_>,
) -> Result<Changed, ModelError> {
    let keys = vec![named_keys(&plan.key); plan.before + plan.after];
    let mut found = Changed { all: Share::default(), attributes: BTreeMap::new() };
    for (number, change) in rows.iter().enumerate() {
        let then = Some((plan.before, change.then.as_str()));
        let clip = Clip { prompt: &change.text, seed: seed + number as u64, keys: &keys, then };
        let frames = small(&maker.tail(&clip, keys.len() - plan.judged)?)?;
        let right = judged(&mut maker.judges, &frames)?.get(&change.attribute) == Some(&change.to);
        found.all.push(right);
        let (share, values) = found.attributes.entry(change.attribute.clone()).or_default();
        share.push(right);
        values.entry(change.to.clone()).or_default().push(right);
        if (number + 1).is_multiple_of(TOLD_EVERY) {
            report.say(&format!("words: {name}, {} of {} instructions", number + 1, rows.len()));
        }
    }
    Ok(found)
}
