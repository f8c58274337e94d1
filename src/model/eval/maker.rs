//! Clips of the model for the measurements, and what judges see in them.

use std::collections::BTreeMap;

use crate::model::judges::{Judges, Small};
use crate::model::video_prompt::Picture;
use crate::model::{Engine, Environment, Keys, ModelError, SessionSpec};

/// Every second of the judged frames goes to the attribute judge.
const FRAME_STEP: usize = 2;
/// Keys that take part in the decision of a clip; SHIFT alone does nothing.
const DECIDED: usize = 5;

/// Generates with one model at one size and number of steps.
pub struct Maker {
    pub engine: Engine,
    pub judges: Judges,
    pub size: [u32; 2],
    pub steps: u32,
}

/// One clip that is to be made.
pub struct Clip<'a> {
    pub prompt: &'a str,
    pub seed: u64,
    /// Keys of every frame.
    pub keys: &'a [Keys],
    /// Frame from which on an instruction holds.
    pub then: Option<(usize, &'a str)>,
}

impl Maker {
    /// Plays a clip and gives the frames that are `wanted` to `look`, in order.
    pub fn play(
        &mut self,
        clip: &Clip<'_>,
        wanted: &dyn Fn(usize) -> bool,
        look: &mut dyn FnMut(&mut Judges, usize, Picture) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let [width, height] = self.size;
        // A session begins with its prompt alone.
        let spec = SessionSpec {
            prompt: clip.prompt.to_string(),
            width,
            height,
            steps: self.steps,
            seed: clip.seed,
            perspective: None,
        };
        let mut session = self.engine.open(&spec)?;
        let (width, height) = (width as usize, height as usize);
        let mut frame = vec![0; width * height * 3 / 2];
        for (number, keys) in clip.keys.iter().enumerate() {
            if let Some((_, text)) = clip.then.filter(|(at, _)| *at == number) {
                self.engine.set_instruction(&mut session, &Environment::default(), Some(text))?;
            }
            self.engine.tick(&mut session, *keys, &mut frame, None)?;
            if wanted(number) {
                look(&mut self.judges, number, Picture::from_i420(width, height, &frame)?)?;
            }
        }
        self.engine.close(session);
        Ok(())
    }

    /// The frames of a clip from `first` to its end.
    pub fn tail(&mut self, clip: &Clip<'_>, first: usize) -> Result<Vec<Picture>, ModelError> {
        let mut pictures = Vec::new();
        self.play(clip, &|number| number >= first, &mut |_, _, picture| {
            pictures.push(picture);
            Ok(())
        })?;
        Ok(pictures)
    }
}

/// Pictures as judges see them.
pub fn small(pictures: &[Picture]) -> Result<Vec<Small>, ModelError> {
    pictures.iter().map(Small::new).collect()
}

/// Logits of all values of all attributes, the mean over frames.
fn mean_logits(judges: &mut Judges, frames: &[&Small]) -> Result<Vec<f32>, ModelError> {
    let mut sums: Vec<f32> = Vec::new();
    for frame in frames {
        let features = judges.features(frame)?;
        let logits = judges.logits(&features)?;
        sums.resize(logits.len(), 0.0);
        sums.iter_mut().zip(logits).for_each(|(s, l)| *s += l);
    }
    Ok(sums.iter().map(|s| s / frames.len().max(1) as f32).collect())
}

/// Index of the largest value.
fn largest(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// The likeliest value of every attribute of a clip.
pub fn judged(judges: &mut Judges, frames: &[Small]) -> Result<BTreeMap<String, String>, ModelError> {
    let some: Vec<&Small> = frames.iter().step_by(FRAME_STEP).collect();
    let logits = mean_logits(judges, &some)?;
    let mut rest = &logits[..];
    let mut found = BTreeMap::new();
    for (name, values) in judges.attributes()? {
        let (own, others) = rest.split_at(values.len());
        found.insert(name.clone(), values[largest(own)].clone());
        rest = others;
    }
    Ok(found)
}

/// What the keys judge says of a clip: the logit of each key by its name, the mean over all windows.
pub struct KeyLogits(Vec<(String, f32)>);

pub fn key_logits(judges: &mut Judges, frames: &[Small]) -> Result<KeyLogits, ModelError> {
    let windows = judges.keys(frames)?;
    let count = windows.len().max(1) as f32;
    let mean = |k: usize| windows.iter().map(|w| w[k]).sum::<f32>() / count;
    Ok(KeyLogits(judges.key_names()?.iter().enumerate().map(|(k, name)| (name.clone(), mean(k))).collect()))
}

impl KeyLogits {
    /// The logit of a key.
    pub fn of(&self, key: &str) -> Option<f32> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, logit)| *logit)
    }

    /// Does the judge name the key of a script? SHIFT is a question of its own; `none` is right if no key is likelier
    /// than not.
    pub fn names(&self, key: &str) -> bool {
        if key == "SHIFT" {
            return self.of(key).is_some_and(|logit| logit > 0.0);
        }
        let decided = self.0.iter().take(DECIDED);
        match decided.max_by(|a, b| a.1.total_cmp(&b.1)) {
            Some((name, logit)) if *logit > 0.0 => name == key,
            _ => key == "none",
        }
    }
}

/// Statistics of a clip by which a collapsed run is known, with their names: means over frames of 160x96 in 0..1.
/// Contrast is the deviation of the brightness in a frame, detail the mean difference of neighbours, confidence the
/// mean over attributes of the probability of the likeliest value.
pub fn statistics(judges: &mut Judges, frames: &[Small]) -> Result<[(&'static str, f64); 5], ModelError> {
    let mut sums = [0.0; 4];
    for frame in frames {
        sums.iter_mut().zip(frame_statistics(frame)).for_each(|(s, v)| *s += v);
    }
    let [brightness, contrast, saturation, detail] = sums.map(|s| s / frames.len().max(1) as f64);
    let logits = mean_logits(judges, &frames.iter().collect::<Vec<_>>())?;
    let (mut rest, mut sure) = (&logits[..], 0.0);
    let attributes = judges.attributes()?;
    for (_, values) in attributes {
        let (own, others) = rest.split_at(values.len());
        let top = own[largest(own)];
        sure += 1.0 / own.iter().map(|l| f64::from(l - top).exp()).sum::<f64>();
        rest = others;
    }
    let confidence = sure / attributes.len().max(1) as f64;
    let names = ["brightness", "contrast", "saturation", "detail", "confidence"];
    let values = [brightness, contrast, saturation, detail, confidence];
    Ok(std::array::from_fn(|i| (names[i], values[i])))
}

fn frame_statistics(frame: &Small) -> [f64; 4] {
    let pixel = |p: &[f32]| [p[0], p[1], p[2]].map(|v| f64::from(v) * 0.5 + 0.5);
    let pixels: Vec<[f64; 3]> = frame.pixels.chunks_exact(3).map(pixel).collect();
    let grey: Vec<f64> = pixels.iter().map(|p| (p[0] + p[1] + p[2]) / 3.0).collect();
    let count = grey.len() as f64;
    let brightness = grey.iter().sum::<f64>() / count;
    let variance = grey.iter().map(|g| (g - brightness).powi(2)).sum::<f64>() / (count - 1.0);
    let spread = |p: &[f64; 3]| p[0].max(p[1]).max(p[2]) - p[0].min(p[1]).min(p[2]);
    let saturation = pixels.iter().map(spread).sum::<f64>() / count;
    let rows = grey.chunks_exact(crate::model::judges::WIDTH);
    let steps: Vec<f64> = rows.flat_map(|row| row.windows(2).map(|w| (w[1] - w[0]).abs())).collect();
    [brightness, variance.sqrt(), saturation, steps.iter().sum::<f64>() / steps.len() as f64]
}
