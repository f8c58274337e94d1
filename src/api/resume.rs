//! Streams that can be taken up again after a lost connection.
//!
//! Every stream has a token. Whoever shows it within a minute, and is the same client, takes the stream's place: a
//! connection that the daemon still holds open is closed, and keys that were held stay held.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::access::Client;
use super::limits::{RESUME_MAX, RESUME_TIME_MAX};

/// One stream, by its token.
struct Known {
    client: Client,
    session: String,
    /// Number of the viewer that has it now.
    viewer: u64,
    /// Ends the connection that has it now.
    ended: Arc<Notify>,
    /// Set while nobody has it.
    lost_at: Option<Instant>,
}

/// A stream's place, once it was taken.
pub struct Place {
    pub token: String,
    pub viewer: u64,
    /// Fires when somebody else takes the place.
    pub ended: Arc<Notify>,
    /// The viewer that had it before.
    pub before: Option<u64>,
}

/// All streams that can be resumed.
#[derive(Default)]
pub struct Places {
    known: Mutex<HashMap<String, Known>>,
}

impl Places {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place of the stream with this token if there is one, else a new place whose token is `fresh`.
    pub fn take(&self, client: &Client, session: &str, token: Option<&str>, fresh: String, viewer: u64) -> Place {
        let ended = Arc::new(Notify::new());
        let mut known = self.known();
        if let Some(token) = token
            && let Some(place) = known.get_mut(token)
            && place.client == *client
            && place.session == session
            && place.lost_at.is_none_or(|at| at.elapsed() < RESUME_TIME_MAX)
        {
            place.ended.notify_one();
            let before = Some(std::mem::replace(&mut place.viewer, viewer));
            (place.ended, place.lost_at) = (ended.clone(), None);
            return Place { token: token.to_string(), viewer, ended, before };
        }
        if known.len() >= RESUME_MAX {
            known.retain(|_, place| place.lost_at.is_none_or(|at| at.elapsed() < RESUME_TIME_MAX));
        }
        if known.len() < RESUME_MAX {
            let (client, session) = (client.clone(), session.to_string());
            let place = Known { client, session, viewer, ended: ended.clone(), lost_at: None };
            known.insert(fresh.clone(), place);
        }
        Place { token: fresh, viewer, ended, before: None }
    }

    /// The connection of a viewer is gone. Answers false if somebody else has its place already.
    pub fn lost(&self, token: &str, viewer: u64) -> bool {
        match self.known().get_mut(token) {
            Some(place) if place.viewer == viewer => {
                place.lost_at = Some(Instant::now());
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    /// True if nobody came back for the place of a viewer.
    pub fn is_lost(&self, token: &str, viewer: u64) -> bool {
        self.known().get(token).is_none_or(|place| place.viewer == viewer && place.lost_at.is_some())
    }

    /// The session has ended: there is nothing to come back to.
    pub fn forget(&self, token: &str) {
        self.known().remove(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_by_its_client_only() {
        let places = Places::default();
        let (one, two) = (Client::User(1), Client::User(2));
        let first = places.take(&one, "s", None, "t1".to_string(), 1);
        assert_eq!((first.token.as_str(), first.before), ("t1", None));
        assert!(places.take(&two, "s", Some("t1"), "t2".to_string(), 2).before.is_none(), "another client");
        assert!(places.take(&one, "other", Some("t1"), "t3".to_string(), 3).before.is_none(), "another session");
        assert!(places.take(&one, "s", Some("nonsense"), "t4".to_string(), 4).before.is_none());
        let again = places.take(&one, "s", Some("t1"), "t5".to_string(), 5);
        assert_eq!((again.token.as_str(), again.before), ("t1", Some(1)));
        assert!(!places.lost("t1", 1), "the old connection's end changes nothing");
        assert!(places.lost("t1", 5) && places.is_lost("t1", 5));
        places.take(&one, "s", Some("t1"), "t6".to_string(), 6);
        assert!(!places.is_lost("t1", 5), "it came back");
        places.forget("t1");
        assert!(places.take(&one, "s", Some("t1"), "t7".to_string(), 7).before.is_none());
    }

    #[test]
    fn there_is_an_end_to_places() {
        let places = Places::default();
        for n in 0..RESUME_MAX as u64 + 10 {
            places.take(&Client::User(1), "s", None, format!("t{n}"), n);
        }
        assert_eq!(places.known().len(), RESUME_MAX);
    }
}
