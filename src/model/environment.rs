//! The environment that a player asks for, in the model's words.

use super::config::InstructionParts;

/// Words of the model's vocabulary for what is known of the state of the world; the prompt decides the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Environment {
    pub weather: Option<String>,
    pub lighting: Option<String>,
    pub effects: Option<String>,
}

impl Environment {
    /// The instruction for InstructNet: the texts of the known parts; empty if nothing is known.
    pub fn instruction(&self, parts: &InstructionParts) -> String {
        let known = [
            ("{lighting}", &parts.lighting, &self.lighting),
            ("{weather}", &parts.weather, &self.weather),
            ("{effects}", &parts.effects, &self.effects),
        ];
        let said = known.iter().filter_map(|(place, text, word)| word.as_ref().map(|word| text.replace(place, word)));
        said.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_said() {
        let parts = InstructionParts::default();
        assert_eq!(Environment::default().instruction(&parts), "");
        let mut e = Environment { weather: Some("snow".to_string()), ..Environment::default() };
        assert_eq!(e.instruction(&parts), "weather: snow.");
        (e.lighting, e.effects) = (Some("night".to_string()), Some("fire".to_string()));
        assert_eq!(e.instruction(&parts), "environment light: night. weather: snow. effect: fire.");
    }
}
