//! The environment that a player asks for, in the model's words.

use super::ModelInfo;

/// Words of the model's vocabulary for the state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Environment {
    pub weather: String,
    pub lighting: String,
    pub effects: String,
}

impl Environment {
    /// The environment that a prompt describes: for each part the first word of the vocabulary with which a word of the
    /// prompt begins ("rainy" for "rain"), else the vocabulary's first word.
    pub fn from_prompt(info: &ModelInfo, prompt: &str) -> Environment {
        let lower = prompt.to_lowercase();
        let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).collect();
        let pick = |vocabulary: &[String]| {
            let said = vocabulary.iter().find(|v| words.iter().any(|w| w.starts_with(v.as_str())));
            said.or(vocabulary.first()).cloned().unwrap_or_default()
        };
        Environment { weather: pick(&info.weather), lighting: pick(&info.lighting), effects: pick(&info.effects) }
    }

    /// The instruction for InstructNet, by the model's template.
    pub fn instruction(&self, template: &str) -> String {
        template
            .replace("{lighting}", &self.lighting)
            .replace("{weather}", &self.weather)
            .replace("{effects}", &self.effects)
    }
}
