//! Long sessions under random keys: what of the prompt and of the control is left at the end, and did a run collapse.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::ceilings::Ceilings;
use super::maker::{Clip, Maker, judged, key_logits, small, statistics};
use super::protocol::{DriftPlan, SEEN_FRAMES, Says, named_keys, random_keys};
use super::report::{Report, Share, object};
use super::words::agreement;
use crate::model::judges::{Judges, Small};
use crate::model::video_prompt::Picture;
use crate::model::{Keys, ModelError};

/// Frames of a look for a collapse.
const CHECK_FRAMES: usize = 8;
const SEED: u64 = 301;

/// What was found, with its table.
pub struct Found {
    pub value: f64,
    pub count: usize,
    pub collapsed: usize,
    pub table: Value,
}

/// One stretch of frames that is looked at together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Attributes at the start or the end.
    Seen {
        end: bool,
    },
    /// Probe key number `key` at the start or the end.
    Probe {
        end: bool,
        key: usize,
    },
    Check,
}

/// What one session showed.
#[derive(Default)]
struct Session {
    seen: [Says; 2],
    probes: [BTreeMap<usize, bool>; 2],
    collapse: Option<String>,
}

/// The stretches of a session of `frames` frames and the probe keys after them: what, first frame, one past the last.
fn looks(plan: &DriftPlan, frames: usize) -> Vec<(Look, usize, usize)> {
    let mut all = vec![
        (Look::Seen { end: false }, plan.walk - SEEN_FRAMES, plan.walk),
        (Look::Seen { end: true }, frames - SEEN_FRAMES.min(plan.last), frames),
    ];
    for (end, begin) in [(false, plan.walk), (true, frames)] {
        for key in 0..plan.probe.len() {
            let first = begin + key * plan.held;
            all.push((Look::Probe { end, key }, first + plan.settled, first + plan.held));
        }
    }
    let check = |n: usize| frames * n / plan.checks;
    all.extend((1..=plan.checks).map(|n| (Look::Check, check(n).saturating_sub(CHECK_FRAMES), check(n))));
    all
}

/// Keys of a session: walk, probe keys, random keys, probe keys again.
fn keys(plan: &DriftPlan, session: usize, frames: usize) -> Vec<Keys> {
    let probes: Vec<Keys> = plan.probe.iter().flat_map(|key| vec![named_keys(key); plan.held]).collect();
    let mut all = vec![Keys::W; plan.walk];
    all.extend(&probes);
    let middle = frames - all.len();
    all.extend(random_keys(plan, session, middle));
    all.extend(probes);
    all
}

/// Plays all sessions one after another and compares their last second with their first.
pub fn measure(
    maker: &mut Maker,
    plan: &DriftPlan,
    (name, frames): (&str, usize),
    ceilings: &Ceilings,
    report: &Report<'_>,
) -> Result<Found, ModelError> {
    let mut sessions = Vec::new();
    for number in 0..plan.prompts.len() {
        let told = |frame: usize| {
            let (session, count) = (number + 1, plan.prompts.len());
            report.say(&format!("drift_{name}: session {session} of {count}, frame {frame} of {frames}"));
        };
        sessions.push(session(maker, plan, (number, frames), ceilings, &told)?);
    }
    let side = |end: usize| {
        let found: Vec<Says> = sessions.iter().map(|s| s.seen[end].clone()).collect();
        agreement(&plan.prompts, &found)
    };
    let (start, end) = (side(0), side(1));
    let probes = |end: usize, key: usize| {
        let right: Vec<bool> = sessions.iter().filter_map(|s| s.probes[end].get(&key).copied()).collect();
        Share::of(&right)
    };
    let control: [(Share, Value); 2] = [0, 1].map(|end| {
        let rows: Vec<(String, Share)> =
            plan.probe.iter().enumerate().map(|(key, name)| (name.clone(), probes(end, key))).collect();
        let sum = |f: fn(&Share) -> usize| rows.iter().map(|(_, s)| f(s)).sum();
        let all = Share { right: sum(|s| s.right), count: sum(|s| s.count) };
        let keys: Map<String, Value> = rows.into_iter().map(|(k, s)| (k, Value::Object(s.json()))).collect();
        let mut table = all.json();
        table.extend(object([("keys", Value::Object(keys))]));
        (all, Value::Object(table))
    });
    let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    let aligned = ratio(end.value, start.value);
    let controlled = ratio(control[1].0.value(), control[0].0.value());
    let [(_, keys_start), (_, keys_end)] = control;
    let reasons: Map<String, Value> = sessions
        .iter()
        .enumerate()
        .filter_map(|(i, s)| s.collapse.as_ref().map(|why| (i.to_string(), json!(why))))
        .collect();
    let (value, count, collapsed) = (aligned.min(controlled), sessions.len(), reasons.len());
    let table = json!({
        "value": value, "count": count, "frames": frames, "alignment": aligned, "control": controlled,
        "alignment_start": start.json(), "alignment_end": end.json(), "keys_start": keys_start, "keys_end": keys_end,
        "collapsed": {"runs": collapsed, "count": count, "reasons": reasons}
    });
    Ok(Found { value, count, collapsed, table })
}

fn session(
    maker: &mut Maker,
    plan: &DriftPlan,
    (number, frames): (usize, usize),
    ceilings: &Ceilings,
    told: &dyn Fn(usize),
) -> Result<Session, ModelError> {
    let looks = looks(plan, frames);
    let keys = keys(plan, number, frames);
    let clip = Clip { prompt: &plan.prompts[number].text, seed: SEED + number as u64, keys: &keys, then: None };
    let mut session = Session::default();
    let mut open: Vec<Vec<Small>> = vec![Vec::new(); looks.len()];
    let wanted = |n: usize| looks.iter().any(|(_, first, last)| (*first..*last).contains(&n));
    let mut look = |judges: &mut Judges, n: usize, picture: Picture| -> Result<(), ModelError> {
        let frame = small(&[picture])?.remove(0);
        for (i, (what, first, last)) in looks.iter().enumerate() {
            if (*first..*last).contains(&n) {
                open[i].push(frame.clone());
            }
            if n + 1 == *last {
                let frames = std::mem::take(&mut open[i]);
                session.take(judges, (plan, ceilings), (*what, *last), &frames)?;
                if *what == Look::Check {
                    told(*last);
                }
            }
        }
        Ok(())
    };
    maker.play(&clip, &wanted, &mut look)?;
    Ok(session)
}

impl Session {
    /// Judges the frames of a stretch that ended before frame `last`.
    fn take(
        &mut self,
        judges: &mut Judges,
        (plan, ceilings): (&DriftPlan, &Ceilings),
        (what, last): (Look, usize),
        frames: &[Small],
    ) -> Result<(), ModelError> {
        match what {
            Look::Seen { end } => self.seen[usize::from(end)] = judged(judges, frames)?,
            Look::Probe { end, key } => {
                let right = key_logits(judges, frames)?.names(&plan.probe[key]);
                self.probes[usize::from(end)].insert(key, right);
            }
            Look::Check if self.collapse.is_none() => {
                for (name, value) in statistics(judges, frames)? {
                    let [low, high] = ceilings.range(name)?;
                    if !(low..=high).contains(&value) {
                        let why = format!("frame {last}: {name} {value:.3} is outside of {low:.3} to {high:.3}");
                        self.collapse.get_or_insert(why);
                    }
                }
            }
            Look::Check => {}
        }
        Ok(())
    }
}
