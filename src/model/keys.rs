//! The keys that a player holds, and the environment that a player asks for.

use super::ModelInfo;

/// A set of held keys, one bit a key in the order of [`Keys::NAMES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Keys(pub u8);

/// A name that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key is {0:?}, allowed are W, S, A, D, SPACE, SHIFT")]
pub struct UnknownKey(pub String);

impl Keys {
    pub const NONE: Keys = Keys(0);
    pub const W: Keys = Keys(1);
    pub const S: Keys = Keys(2);
    pub const A: Keys = Keys(4);
    pub const D: Keys = Keys(8);
    pub const SPACE: Keys = Keys(16);
    pub const SHIFT: Keys = Keys(32);
    /// Names in the order of the bits and of the model's action vector.
    pub const NAMES: [&'static str; 6] = ["W", "S", "A", "D", "SPACE", "SHIFT"];

    /// The set of the named keys. Errors: the first name that is no key.
    pub fn from_names<S: AsRef<str>>(names: &[S]) -> Result<Keys, UnknownKey> {
        let mut keys = Keys::NONE;
        for name in names {
            let bit = Keys::NAMES.iter().position(|n| *n == name.as_ref());
            keys.0 |= 1 << bit.ok_or_else(|| UnknownKey(name.as_ref().to_string()))?;
        }
        Ok(keys)
    }

    /// Names of the held keys.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Keys::NAMES.into_iter().enumerate().filter(move |(i, _)| self.0 >> i & 1 == 1).map(|(_, name)| name)
    }

    /// Both sets together.
    pub fn union(self, other: Keys) -> Keys {
        Keys(self.0 | other.0)
    }

    /// One entry for each of the first `count` keys: 1 if it is held, 0 if not.
    pub fn vector(self, count: usize) -> impl Iterator<Item = f32> {
        (0..count).map(move |i| f32::from(self.0.checked_shr(i as u32).unwrap_or(0) & 1))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits_agree() {
        assert_eq!(Keys::from_names(&["W", "SPACE"]), Ok(Keys::W.union(Keys::SPACE)));
        assert_eq!(Keys::from_names(&["w"]), Err(UnknownKey("w".to_string())));
        let all = Keys::from_names(&Keys::NAMES).expect("these are the names");
        assert_eq!(all.names().collect::<Vec<_>>(), Keys::NAMES);
        assert_eq!(Keys::D.vector(6).collect::<Vec<_>>(), [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    }
}
