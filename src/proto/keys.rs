//! The player's keys as a small set.

use serde::{Deserialize, Serialize};

/// Names in the order of the model's action vector.
pub const KEY_NAMES: [&str; 6] = ["W", "S", "A", "D", "SPACE", "SHIFT"];

/// A set of keys, one bit each in the order of [`KEY_NAMES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Keys(pub u8);

/// A key name that is none of [`KEY_NAMES`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown key {0:?}")]
pub struct UnknownKey(pub String);

impl Keys {
    pub const NONE: Keys = Keys(0);
    pub const W: Keys = Keys(1);
    pub const S: Keys = Keys(1 << 1);
    pub const A: Keys = Keys(1 << 2);
    pub const D: Keys = Keys(1 << 3);
    pub const SPACE: Keys = Keys(1 << 4);
    pub const SHIFT: Keys = Keys(1 << 5);

    /// The set of the named keys; case does not matter.
    pub fn from_names<S: AsRef<str>>(names: &[S]) -> Result<Keys, UnknownKey> {
        let mut keys = Keys::NONE;
        for name in names {
            let name = name.as_ref();
            let bit = KEY_NAMES.iter().position(|k| k.eq_ignore_ascii_case(name));
            keys.0 |= 1 << bit.ok_or_else(|| UnknownKey(name.to_string()))?;
        }
        Ok(keys)
    }

    pub fn contains(self, other: Keys) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn union(self, other: Keys) -> Keys {
        Keys(self.0 | other.0)
    }

    /// The model's action vector: 1.0 for a held key.
    pub fn vector(self) -> [f32; 6] {
        std::array::from_fn(|i| f32::from(self.0 >> i & 1))
    }

    pub fn names(self) -> Vec<&'static str> {
        (0..6).filter(|i| self.0 >> i & 1 == 1).map(|i| KEY_NAMES[i]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits_agree() {
        let keys = Keys::from_names(&["w", "SPACE"]).expect("both are keys");
        assert_eq!(keys, Keys::W.union(Keys::SPACE));
        assert_eq!(keys.names(), ["W", "SPACE"]);
        assert_eq!(keys.vector(), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(Keys::from_names(&["Q"]), Err(UnknownKey("Q".into())));
    }
}
