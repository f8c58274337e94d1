//! Requests that may be sent twice: the second one with the same key gets the answer of the first.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::access::Client;
use super::limits::{IDEMPOTENCY_KEPT_MAX, IDEMPOTENCY_TIME_MAX};
use super::refusal::Refusal;
use crate::proto::limits::IDEMPOTENCY_KEY_CHARS_MAX;

/// What is known of a key.
struct Known {
    /// Of the path and the body.
    hash: [u8; 32],
    at: Instant,
    /// Id of the session that was started, once it was.
    id: Option<String>,
}

/// The keys of all clients.
#[derive(Default)]
pub struct Keys {
    known: Mutex<HashMap<(Client, String), Known>>,
}

/// What a request with a key is.
#[derive(Debug, PartialEq)]
pub enum Turn {
    /// The first: it must be [`Keys::done`] or [`Keys::failed`].
    First,
    /// Sent before: the session that it started.
    Again(String),
}

impl Keys {
    fn known(&self) -> MutexGuard<'_, HashMap<(Client, String), Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a request. Errors: `invalid_field` for a key that is none, `idempotency_mismatch` if it belongs to
    /// another request, `idempotency_pending` while the first one is at work.
    pub fn begin(&self, client: &Client, key: &str, path: &str, body: &[u8]) -> Result<Turn, Refusal> {
        if key.is_empty() || key.len() > IDEMPOTENCY_KEY_CHARS_MAX || !key.bytes().all(|b| b.is_ascii_graphic()) {
            let allowed = format!("1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable characters");
            let detail = format!("Idempotency-Key: not {allowed}.");
            return Err(Refusal::new("invalid_field", detail).about("Idempotency-Key", allowed));
        }
        let hash: [u8; 32] = Sha256::new().chain_update(path).chain_update([0]).chain_update(body).finalize().into();
        let mut known = self.known();
        if known.len() >= IDEMPOTENCY_KEPT_MAX {
            make_room(&mut known);
        }
        let name = (client.clone(), key.to_string());
        match known.get(&name).filter(|k| k.at.elapsed() < IDEMPOTENCY_TIME_MAX) {
            Some(k) if k.hash != hash => {
                let detail = "This Idempotency-Key came with another request.";
                Err(Refusal::new("idempotency_mismatch", detail).about("Idempotency-Key", "a new key"))
            }
            Some(Known { id: Some(id), .. }) => Ok(Turn::Again(id.clone())),
            Some(_) => Err(Refusal::new("idempotency_pending", "The first request is at work.").retry_after(1)),
            None => {
                known.insert(name, Known { hash, at: Instant::now(), id: None });
                Ok(Turn::First)
            }
        }
    }

    /// The first request started session `id`.
    pub fn done(&self, client: &Client, key: &str, id: &str) {
        if let Some(known) = self.known().get_mut(&(client.clone(), key.to_string())) {
            known.id = Some(id.to_string());
        }
    }

    /// The first request was refused: the next one is the first.
    pub fn failed(&self, client: &Client, key: &str) {
        self.known().remove(&(client.clone(), key.to_string()));
    }
}

/// Forgets what is too old, else the oldest.
fn make_room(known: &mut HashMap<(Client, String), Known>) {
    known.retain(|_, k| k.at.elapsed() < IDEMPOTENCY_TIME_MAX);
    if known.len() >= IDEMPOTENCY_KEPT_MAX
        && let Some(oldest) = known.iter().min_by_key(|(_, k)| k.at).map(|(name, _)| name.clone())
    {
        known.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_for_one_request_of_one_client() {
        let keys = Keys::default();
        let (one, two) = (Client::User(1), Client::User(2));
        let begin = |client: &Client, body: &str| {
            keys.begin(client, "k", "/api/v1/generate", body.as_bytes()).map_err(|r| r.problem.code)
        };
        assert_eq!(begin(&one, "a"), Ok(Turn::First));
        assert_eq!(begin(&one, "a"), Err("idempotency_pending".to_string()));
        keys.done(&one, "k", "id");
        assert_eq!(begin(&one, "a"), Ok(Turn::Again("id".to_string())));
        assert_eq!(begin(&one, "b"), Err("idempotency_mismatch".to_string()));
        assert_eq!(begin(&two, "b"), Ok(Turn::First));
        keys.failed(&two, "k");
        assert_eq!(begin(&two, "c"), Ok(Turn::First));
        for bad in ["", "two words", "ä", &"x".repeat(IDEMPOTENCY_KEY_CHARS_MAX + 1)] {
            let refusal = keys.begin(&one, bad, "/", b"").expect_err("no key");
            assert_eq!(refusal.problem.field.as_deref(), Some("Idempotency-Key"), "{bad:?}");
        }
    }

    #[test]
    fn the_oldest_key_is_forgotten() {
        let keys = Keys::default();
        for n in 0..IDEMPOTENCY_KEPT_MAX + 5 {
            keys.begin(&Client::User(1), &format!("k{n}"), "/", b"").expect("a new key");
        }
        assert_eq!(keys.known().len(), IDEMPOTENCY_KEPT_MAX);
        assert_eq!(keys.begin(&Client::User(1), "k0", "/", b"other"), Ok(Turn::First));
    }
}
