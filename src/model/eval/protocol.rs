//! `evaluation.json`: the fixed prompts with what they say, key scripts, changes, and seeds.
//! `training/eval.py protocol` writes it, so that every engine measures the same thing.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::model::config::{Checker, read};
use crate::model::{Keys, ModelError};

const VERSION: u32 = 1;
pub const FILE: &str = "evaluation.json";

/// Attributes with the values that a prompt says.
pub type Says = BTreeMap<String, String>;

#[derive(Clone, Debug, Deserialize)]
pub struct Protocol {
    version: u32,
    /// Width and height in pixels.
    pub size: [u32; 2],
    /// Denoising steps of a frame.
    pub steps: u32,
    pub keys: KeyPlan,
    pub alignment: AlignmentPlan,
    pub instructions: ChangePlan,
    pub drift: DriftPlan,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    pub text: String,
    pub says: Says,
}

/// Scripts of held keys: frames of walking before a live start, frames that a key is held, frames until it shows.
#[derive(Clone, Debug, Deserialize)]
pub struct KeyPlan {
    pub prompts: Vec<Entry>,
    pub scripts: Vec<String>,
    pub walk: usize,
    pub held: usize,
    pub settled: usize,
}

#[derive(Clone, Debug, Deserialize)]
pub struct AlignmentPlan {
    pub key: String,
    pub frames: usize,
    pub judged_from: usize,
    pub seen: Vec<Entry>,
    pub unseen: Vec<Entry>,
    pub paraphrases: Vec<Entry>,
}

/// A prompt, then an instruction that changes one attribute to a value.
#[derive(Clone, Debug, Deserialize)]
pub struct Change {
    pub text: String,
    pub attribute: String,
    pub to: String,
    pub then: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ChangePlan {
    pub key: String,
    pub before: usize,
    pub after: usize,
    pub judged: usize,
    pub structured: Vec<Change>,
    pub text: Vec<Change>,
}

/// Long sessions: they walk, hold the probe keys, play random keys, and hold the probe keys again.
#[derive(Clone, Debug, Deserialize)]
pub struct DriftPlan {
    pub prompts: Vec<Entry>,
    /// Name of the length, such as `60s`, with its frames.
    pub frames: BTreeMap<String, usize>,
    pub walk: usize,
    pub probe: Vec<String>,
    pub held: usize,
    pub settled: usize,
    pub seed: u64,
    /// Keys that are held together, with their weight.
    pub modes: Vec<(String, f64)>,
    /// Chance of new keys in a frame.
    pub change: f64,
    /// Chance of a jump in a frame, and its length.
    pub jump: f64,
    pub jump_frames: usize,
    /// Frames of random keys that there must be.
    pub last: usize,
    /// Looks at each session for a collapse.
    pub checks: usize,
}

impl Protocol {
    /// Reads the protocol of a model folder. Errors: another version, a script that cannot be played.
    pub fn load(dir: &Path) -> Result<Protocol, ModelError> {
        let plan: Protocol = read(dir, FILE)?;
        let c = Checker::new(dir, FILE);
        c.same("version", plan.version, VERSION)?;
        let k = &plan.keys;
        c.that(k.settled < k.held, "keys.settled", k.settled, format!("less than held, {}", k.held))?;
        let a = &plan.alignment;
        c.that(a.judged_from < a.frames, "alignment.judged_from", a.judged_from, format!("less than {}", a.frames))?;
        let i = &plan.instructions;
        c.that((1..=i.after).contains(&i.judged), "instructions.judged", i.judged, format!("1..={}", i.after))?;
        let d = &plan.drift;
        c.that(d.settled < d.held, "drift.settled", d.settled, format!("less than held, {}", d.held))?;
        c.that(d.walk >= SEEN_FRAMES, "drift.walk", d.walk, format!("{SEEN_FRAMES} or more"))?;
        let total: f64 = d.modes.iter().map(|(_, weight)| weight).sum();
        c.that(total > 0.0, "drift.modes", &d.modes, "weights above 0")?;
        let fixed = d.walk + d.probe.len() * d.held + d.last.max(SEEN_FRAMES);
        for (name, frames) in &d.frames {
            c.that(*frames >= fixed, &format!("drift.frames.{name}"), frames, format!("{fixed} or more"))?;
        }
        let scripts = k.scripts.iter().chain([&a.key, &i.key]).chain(&d.probe);
        for names in scripts.chain(d.modes.iter().map(|(names, _)| names)) {
            c.that(script_keys(names).is_some(), "keys of a script", names, "names of keys, or none")?;
        }
        Ok(plan)
    }

    /// The same with at most `count` entries in each list, evenly taken.
    pub fn shortened(mut self, count: usize) -> Protocol {
        for entries in [
            &mut self.keys.prompts,
            &mut self.alignment.seen,
            &mut self.alignment.unseen,
            &mut self.alignment.paraphrases,
            &mut self.drift.prompts,
        ] {
            thin(entries, count);
        }
        thin(&mut self.instructions.structured, count);
        thin(&mut self.instructions.text, count);
        self
    }
}

fn thin<T: Clone>(entries: &mut Vec<T>, count: usize) {
    if entries.len() > count {
        *entries = (0..count).map(|i| entries[i * entries.len() / count].clone()).collect();
    }
}

/// Frames at the start and at the end of a long session from which its attributes are read.
pub const SEEN_FRAMES: usize = 16;

/// The keys of a script: names with spaces between them; SHIFT alone goes with W; `none` or nothing is no key.
pub fn script_keys(names: &str) -> Option<Keys> {
    match names {
        "none" | "" => Some(Keys::NONE),
        "SHIFT" => Keys::from_names(&["W", "SHIFT"]).ok(),
        names => Keys::from_names(&names.split_whitespace().collect::<Vec<_>>()).ok(),
    }
}

/// Keys as they are named; [`Protocol::load`] has checked the names.
pub fn named_keys(names: &str) -> Keys {
    Keys::from_names(&names.split_whitespace().collect::<Vec<_>>()).unwrap_or(Keys::NONE)
}

/// The generator of the long sessions' keys: x <- (1664525 x + 1013904223) mod 2^32, a draw is x div 2^8 of 2^24.
struct Draws(u32);

impl Draws {
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(self.0 >> 8) / f64::from(1 << 24)
    }
}

/// Random keys of a session. Each frame draws: new keys, and if so which; a jump.
pub fn random_keys(plan: &DriftPlan, session: usize, frames: usize) -> Vec<Keys> {
    let mut draws = Draws((plan.seed + session as u64) as u32);
    let total: f64 = plan.modes.iter().map(|(_, weight)| weight).sum();
    let (mut held, mut jump) = (Keys::NONE, 0usize);
    let mut all = Vec::with_capacity(frames);
    for frame in 0..frames {
        if draws.share() < plan.change || frame == 0 {
            let mut place = draws.share() * total;
            let chosen = plan.modes.iter().find(|(_, weight)| {
                place -= weight;
                place < 0.0
            });
            held = named_keys(&chosen.unwrap_or(&plan.modes[plan.modes.len() - 1]).0);
        }
        jump = if draws.share() < plan.jump { plan.jump_frames } else { jump.saturating_sub(1) };
        all.push(if jump > 0 { held.union(Keys::SPACE) } else { held });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_name_their_keys() {
        assert_eq!(script_keys("none"), Some(Keys::NONE));
        assert_eq!(script_keys("SHIFT"), Keys::from_names(&["W", "SHIFT"]).ok());
        assert_eq!(script_keys("W SPACE"), Keys::from_names(&["W", "SPACE"]).ok());
        assert_eq!(script_keys("Q"), None);
    }

    /// The numbers are those of `random_keys` in `training/gamegen/evaluation/protocol.py`.
    #[test]
    fn random_keys_are_those_of_the_other_engine() {
        let modes = serde_json::json!([
            ["", 8],
            ["W", 20],
            ["W A", 10],
            ["W D", 10],
            ["A", 13],
            ["D", 13],
            ["S", 8],
            ["W SHIFT", 8],
            ["W A SHIFT", 3],
            ["W D SHIFT", 3],
            ["S A", 2],
            ["S D", 2]
        ]);
        let plan = serde_json::json!({
            "prompts": [], "frames": {}, "walk": 24, "probe": [], "held": 24, "settled": 8, "seed": 2026,
            "modes": modes, "change": 0.07, "jump": 0.035, "jump_frames": 3, "last": 24, "checks": 10
        });
        let plan: DriftPlan = serde_json::from_value(plan).expect("every field is there");
        let keys = random_keys(&plan, 3, 400);
        assert_eq!(keys[11..17].iter().map(|k| k.0).collect::<Vec<_>>(), [5, 21, 24, 24, 8, 8]);
        let hash = keys.iter().fold(0u32, |h, k| h.wrapping_mul(31).wrapping_add(u32::from(k.0)));
        assert_eq!(hash, 2_773_833_470);
    }

    #[test]
    fn lists_are_taken_evenly() {
        let mut list: Vec<usize> = (0..10).collect();
        thin(&mut list, 4);
        assert_eq!(list, [0, 2, 5, 7]);
    }
}
