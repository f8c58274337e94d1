//! Do the keys do what they say: the keys judge for each key, and the sign of what opposite keys do from the same
//! start, by the keys judge's logits and, beside it, by the motion of blocks, which knows nothing of keys.
//!
//! Starts: `text` holds the key from the first frame of a text-only start, `live` after a second of walking in the same
//! session.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::maker::{Clip, KeyLogits, Maker, key_logits, small};
use super::protocol::{Entry, KeyPlan, script_keys};
use super::report::{Report, Share, object};
use crate::model::video_prompt::{Picture, motion_field};
use crate::model::{Keys, ModelError};

/// Keys whose rows make the figure.
pub const COUNTED: [&str; 5] = ["W", "S", "A", "D", "SPACE"];
/// The first of two opposite keys must move the picture more along the axis than the second.
struct Opposite {
    name: &'static str,
    first: &'static str,
    second: &'static str,
    axis: Axis,
}

const OPPOSITE: [Opposite; 2] = [
    Opposite { name: "W_S", first: "W", second: "S", axis: Axis::Away },
    Opposite { name: "A_D", first: "A", second: "D", axis: Axis::Right },
];
const SEED: u64 = 101;

/// To the right in the upper half, or away from the centre.
#[derive(Clone, Copy)]
enum Axis {
    Right,
    Away,
}

/// What was measured of the protocol's scripts.
pub struct Found {
    pub value: f64,
    pub count: usize,
    pub table: Value,
}

/// Mean motion of a clip's blocks in half-size pixels a frame: to the right in the upper half, and away from the centre
/// below the upper third.
fn directions(frames: &[Picture]) -> Result<[f64; 2], ModelError> {
    let (mut right, mut away, mut rights, mut aways) = (0.0, 0.0, 0usize, 0usize);
    for pair in frames.windows(2) {
        let field = motion_field(&pair[0], &pair[1])?;
        for (i, (dx, dy)) in field.steps.iter().enumerate() {
            let (row, column) = (i / field.width, i % field.width);
            let (dx, dy) = (f64::from(*dx), f64::from(*dy));
            if row < field.height.div_ceil(2) {
                right += dx;
                rights += 1;
            }
            if row >= field.height / 3 {
                let x = column as f64 - (field.width as f64 - 1.0) / 2.0;
                let y = row as f64 - (field.height as f64 - 1.0) / 2.0;
                away += (dx * x + dy * y) / x.hypot(y).max(1.0);
                aways += 1;
            }
        }
    }
    Ok([right / rights.max(1) as f64, away / aways.max(1) as f64])
}

/// What the clips of one script showed.
struct Script {
    right: Share,
    logits: Vec<KeyLogits>,
    motion: Vec<[f64; 2]>,
}

fn script(maker: &mut Maker, plan: &KeyPlan, walk: usize, key: &str) -> Result<Script, ModelError> {
    let mut keys = vec![Keys::W; walk];
    keys.resize(walk + plan.held, script_keys(key).unwrap_or(Keys::NONE));
    let mut found = Script { right: Share::default(), logits: Vec::new(), motion: Vec::new() };
    for (number, Entry { text, .. }) in plan.prompts.iter().enumerate() {
        // One seed for all keys: what differs between opposite keys is the key alone.
        let clip = Clip { prompt: text, seed: SEED + number as u64, keys: &keys, then: None };
        let frames = maker.tail(&clip, walk + plan.settled)?;
        let logits = key_logits(&mut maker.judges, &small(&frames)?)?;
        found.right.push(logits.names(key));
        found.logits.push(logits);
        found.motion.push(directions(&frames)?);
    }
    Ok(found)
}

/// Both tests of the keys judge over all starts; `value` is the smaller one.
pub fn measure(maker: &mut Maker, plan: &KeyPlan, report: &Report<'_>) -> Result<Found, ModelError> {
    let (mut dynamics, mut starts) = (Share::default(), Map::new());
    let (mut signs, mut blocks) = (Share::default(), Share::default());
    for (start, walk) in [("text", 0), ("live", plan.walk)] {
        let mut scripts = BTreeMap::new();
        for key in &plan.scripts {
            let found = script(maker, plan, walk, key)?;
            report.say(&format!("keys: {start} start, {key}: {} of {}", found.right.right, found.right.count));
            scripts.insert(key.as_str(), found);
        }
        for key in COUNTED {
            if let Some(found) = scripts.get(key) {
                add(&mut dynamics, found.right);
            }
        }
        let (sign, block_sign) = (opposite(&scripts, sign_of_logits), opposite(&scripts, sign_of_motion));
        sign.values().for_each(|share| add(&mut signs, *share));
        block_sign.values().for_each(|share| add(&mut blocks, *share));
        starts.insert(start.to_string(), table(&scripts, &sign, &block_sign));
    }
    let value = dynamics.value().min(signs.value());
    let mut all =
        object([("value", json!(value)), ("count", json!(dynamics.count)), ("starts", Value::Object(starts))]);
    all.extend(object([
        ("inverse_dynamics", json!(dynamics.value())),
        ("sign", json!(signs.value())),
        ("block_sign", json!(blocks.value())),
    ]));
    Ok(Found { value, count: dynamics.count, table: Value::Object(all) })
}

fn add(sum: &mut Share, other: Share) {
    *sum = Share { right: sum.right + other.right, count: sum.count + other.count };
}

/// For each pair of opposite keys the share of prompts where their difference has the right sign.
fn opposite(
    scripts: &BTreeMap<&str, Script>,
    right: fn(&Opposite, &Script, &Script) -> Vec<bool>,
) -> BTreeMap<&'static str, Share> {
    let pair = |o: &Opposite| {
        let (a, b) = (scripts.get(o.first)?, scripts.get(o.second)?);
        Some((o.name, Share::of(&right(o, a, b))))
    };
    OPPOSITE.iter().filter_map(pair).collect()
}

/// Is the first key's logit, less the second one's, larger in the clip of the first key?
fn sign_of_logits(o: &Opposite, a: &Script, b: &Script) -> Vec<bool> {
    let margin = |l: &KeyLogits| l.of(o.first).zip(l.of(o.second)).map_or(f32::NAN, |(first, second)| first - second);
    a.logits.iter().zip(&b.logits).map(|(a, b)| margin(a) > margin(b)).collect()
}

/// Does the picture move more along the axis in the clip of the first key?
fn sign_of_motion(o: &Opposite, a: &Script, b: &Script) -> Vec<bool> {
    let i = match o.axis {
        Axis::Right => 0,
        Axis::Away => 1,
    };
    a.motion.iter().zip(&b.motion).map(|(a, b)| a[i] > b[i]).collect()
}

fn table(
    scripts: &BTreeMap<&str, Script>,
    sign: &BTreeMap<&'static str, Share>,
    block_sign: &BTreeMap<&'static str, Share>,
) -> Value {
    let keys: Map<_, _> = scripts.iter().map(|(k, s)| (k.to_string(), Value::Object(s.right.json()))).collect();
    let rows = |shares: &BTreeMap<&'static str, Share>| -> Map<String, Value> {
        shares.iter().map(|(name, share)| (name.to_string(), Value::Object(share.json()))).collect()
    };
    json!({"keys": keys, "sign": rows(sign), "block_sign": rows(block_sign)})
}
