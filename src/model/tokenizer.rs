//! Text to token ids, by the folder's `tokenizer/tokenizer.json`.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::ModelError;
use super::limits::{JSON_BYTES_MAX, TEXT_BYTES_MAX};
use super::weights::read_limited;

/// A checked tokenizer: its ids are rows of the encoder's table.
pub struct TextTokenizer {
    inner: Tokenizer,
}

impl TextTokenizer {
    /// Reads the tokenizer of a model folder. Errors: a file that is no tokenizer, or whose vocabulary is larger than
    /// the encoder's `vocab_size`.
    pub fn load(dir: &Path, vocab_size: usize) -> Result<TextTokenizer, ModelError> {
        let path: PathBuf = dir.join("tokenizer/tokenizer.json");
        let bytes = read_limited(&path, JSON_BYTES_MAX)?;
        let bad = |what: String| ModelError::Tokenizer { path: path.clone(), what };
        let mut inner = Tokenizer::from_bytes(&bytes).map_err(|e| bad(e.to_string()))?;
        let largest = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if largest > vocab_size {
            return Err(bad(format!("it has ids up to {}, the text encoder knows {vocab_size} words", largest - 1)));
        }
        // Length is checked and padding added here, so that a text that is too long is never cut in silence.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        let tokenizer = TextTokenizer { inner };
        tokenizer.raw("a").map_err(bad)?;
        Ok(tokenizer)
    }

    fn raw(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.inner.encode(text, true).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokens of a text without padding, the end token included.
    pub fn count(&self, text: &str) -> usize {
        if text.len() > TEXT_BYTES_MAX { text.len() } else { self.raw(text).map_or(usize::MAX, |ids| ids.len()) }
    }

    /// Ids of a text, the end token included. Errors: more than `longest` of them; `field` names the text.
    pub fn encode(&self, field: &'static str, text: &str, longest: usize) -> Result<Vec<u32>, ModelError> {
        let allowed = format!("1..={longest} tokens");
        if text.len() > TEXT_BYTES_MAX {
            return Err(ModelError::Request { field, found: format!("{} bytes long", text.len()), allowed });
        }
        let ids = self.raw(text).map_err(|found| ModelError::Request { field, found, allowed: allowed.clone() })?;
        if ids.is_empty() || ids.len() > longest {
            return Err(ModelError::Request { field, found: format!("{} tokens long", ids.len()), allowed });
        }
        Ok(ids)
    }
}
