//! `judges/*/config.json`, field for field.

use std::path::Path;

use serde::Deserialize;

use super::Part;
use crate::model::ModelError;
use crate::model::config::{Checker, parse};
use crate::model::limits::{CHANNELS_MAX, JSON_BYTES_MAX, LAYERS_MAX};
use crate::model::weights::read_limited;

/// Size of the pictures that judges look at, in pixels.
pub const WIDTH: usize = 160;
pub const HEIGHT: usize = 96;
/// Most values of all attributes, keys or joints.
const OUTPUTS_MAX: usize = 1024;
/// Most frames that a judge sees at once.
const WINDOW_MAX: usize = 64;

/// One judge; which of the last fields are there depends on the judge.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub width: usize,
    pub height: usize,
    pub norm_eps: f32,
    pub in_channels: usize,
    /// Channels of each stage, and its residual blocks.
    pub channels: Vec<usize>,
    pub blocks: Vec<usize>,
    /// Names of the attributes with those of their values.
    #[serde(default)]
    pub attributes: Vec<(String, Vec<String>)>,
    /// Frames that are seen at once.
    #[serde(default = "one")]
    pub window: usize,
    /// Weights of the colours where a frame becomes one channel.
    #[serde(default)]
    pub luma: Option<[f32; 3]>,
    /// Names of the keys.
    #[serde(default)]
    pub keys: Vec<String>,
    #[serde(default)]
    pub joints: usize,
}

fn one() -> usize {
    1
}

impl JudgeConfig {
    /// Reads and checks the file of one judge below `dir`.
    pub fn load(dir: &Path, part: Part) -> Result<JudgeConfig, ModelError> {
        let bytes = read_limited(&dir.join(part.config_file()), JSON_BYTES_MAX)?;
        JudgeConfig::parse(dir, part, &bytes)
    }

    /// Checks the bytes of the file of one judge below `dir`.
    pub fn parse(dir: &Path, part: Part, bytes: &[u8]) -> Result<JudgeConfig, ModelError> {
        let name = part.config_file();
        let config: JudgeConfig = parse(&dir.join(&name), bytes)?;
        config.check(&Checker::new(dir, &name), part)?;
        Ok(config)
    }

    /// Numbers that the judge says about a picture.
    pub fn outputs(&self) -> usize {
        self.attributes.iter().map(|(_, values)| values.len()).sum::<usize>() + self.keys.len() + self.joints
    }

    /// Height and width of the features of a stage.
    pub fn size_at(&self, stage: usize) -> (usize, usize) {
        (self.height >> (stage + 1), self.width >> (stage + 1))
    }

    fn check(&self, c: &Checker, part: Part) -> Result<(), ModelError> {
        let class = match part {
            Part::Attributes => "AttributeJudge",
            Part::Keys => "KeysJudge",
            Part::Pose => "PoseJudge",
        };
        c.same("_class_name", self.class_name.as_str(), class)?;
        c.same("width", self.width, WIDTH)?;
        c.same("height", self.height, HEIGHT)?;
        c.positive("norm_eps", self.norm_eps, 1e-2)?;
        let stages = self.channels.len();
        c.within("number of channels", stages, 3, 5)?;
        c.same("number of blocks", self.blocks.len(), stages)?;
        let channels = self.channels.iter().all(|n| (1..=CHANNELS_MAX).contains(n));
        c.that(channels, "channels", &self.channels, format!("each 1..={CHANNELS_MAX}"))?;
        let blocks = self.blocks.iter().all(|n| *n <= LAYERS_MAX);
        c.that(blocks, "blocks", &self.blocks, format!("each 0..={LAYERS_MAX}"))?;
        c.within("window", self.window, 1, WINDOW_MAX)?;
        c.same("in_channels", self.in_channels, if self.luma.is_some() { self.window } else { 3 * self.window })?;
        let values = self.attributes.iter().all(|(_, values)| !values.is_empty());
        c.that(values, "attributes", &self.attributes, "one value or more of each")?;
        c.that(
            self.attributes.is_empty() != (part == Part::Attributes),
            "attributes",
            &self.attributes,
            "those judged",
        )?;
        c.that(self.keys.is_empty() != (part == Part::Keys), "keys", &self.keys, "those judged")?;
        c.that((self.joints == 0) != (part == Part::Pose), "joints", self.joints, "those judged")?;
        c.within("number of outputs", self.outputs(), 1, OUTPUTS_MAX)
    }
}
