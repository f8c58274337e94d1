//! Do the keys do what they say: the keys judge for each key, and the sign of motion under opposite keys.
//!
//! Starts: `text` holds the key from the first frame of a text-only start, `live` after a second of walking in the same
//! session.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::maker::{Clip, Maker, key_right, small};
use super::protocol::{Entry, KeyPlan, script_keys};
use super::report::{Report, Share, object};
use crate::model::video_prompt::{Picture, motion_field};
use crate::model::{Keys, ModelError};

/// Keys whose rows make the figure.
pub const COUNTED: [&str; 5] = ["W", "S", "A", "D", "SPACE"];
/// The first key of a pair must move the picture more in the direction of its axis: away from the centre, or right.
const OPPOSITE: [(&str, &str, &str, Axis); 2] = [("W_S", "W", "S", Axis::Away), ("A_D", "A", "D", Axis::Right)];
const SEED: u64 = 101;

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
    motion: Vec<[f64; 2]>,
}

fn script(maker: &mut Maker, plan: &KeyPlan, walk: usize, key: &str) -> Result<Script, ModelError> {
    let mut keys = vec![Keys::W; walk];
    keys.resize(walk + plan.held, script_keys(key).unwrap_or(Keys::NONE));
    let mut found = Script { right: Share::default(), motion: Vec::new() };
    for (number, Entry { text, .. }) in plan.prompts.iter().enumerate() {
        // One seed for all keys: what differs between opposite keys is the key alone.
        let clip = Clip { prompt: text, seed: SEED + number as u64, keys: &keys, then: None };
        let frames = maker.tail(&clip, walk + plan.settled)?;
        found.right.push(key_right(&mut maker.judges, &small(&frames)?, key)?);
        found.motion.push(directions(&frames)?);
    }
    Ok(found)
}

/// Both tests over all starts; `value` is the smaller one.
pub fn measure(maker: &mut Maker, plan: &KeyPlan, report: &Report<'_>) -> Result<Found, ModelError> {
    let (mut dynamics, mut signs, mut starts) = (Share::default(), Share::default(), Map::new());
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
        let opposite = opposite(&scripts);
        opposite.iter().for_each(|(_, share)| add(&mut signs, *share));
        starts.insert(start.to_string(), table(&scripts, &opposite));
    }
    let value = dynamics.value().min(signs.value());
    let mut all =
        object([("value", json!(value)), ("count", json!(dynamics.count)), ("starts", Value::Object(starts))]);
    all.extend(object([("inverse_dynamics", json!(dynamics.value())), ("sign", json!(signs.value()))]));
    Ok(Found { value, count: dynamics.count, table: Value::Object(all) })
}

fn add(sum: &mut Share, other: Share) {
    *sum = Share { right: sum.right + other.right, count: sum.count + other.count };
}

/// For each pair of opposite keys the share of prompts where the motion has the right sign.
fn opposite(scripts: &BTreeMap<&str, Script>) -> Vec<(&'static str, Share)> {
    let mut all = Vec::new();
    for (name, first, second, axis) in OPPOSITE {
        let (Some(a), Some(b)) = (scripts.get(first), scripts.get(second)) else { continue };
        let i = match axis {
            Axis::Right => 0,
            Axis::Away => 1,
        };
        let right: Vec<bool> = a.motion.iter().zip(&b.motion).map(|(a, b)| a[i] > b[i]).collect();
        all.push((name, Share::of(&right)));
    }
    all
}

fn table(scripts: &BTreeMap<&str, Script>, opposite: &[(&'static str, Share)]) -> Value {
    let mean = |motion: &[[f64; 2]], i: usize| motion.iter().map(|m| m[i]).sum::<f64>() / motion.len().max(1) as f64;
    let keys: Map<_, _> = scripts.iter().map(|(k, s)| (k.to_string(), Value::Object(s.right.json()))).collect();
    let signs: Map<_, _> = opposite.iter().map(|(n, s)| (n.to_string(), Value::Object(s.json()))).collect();
    let motion: Map<_, _> = scripts
        .iter()
        .map(|(k, s)| (k.to_string(), json!({"right": mean(&s.motion, 0), "away": mean(&s.motion, 1)})))
        .collect();
    json!({"keys": keys, "sign": signs, "motion": motion})
}
