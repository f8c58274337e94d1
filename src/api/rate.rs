//! How often a client may ask: one generic cell rate counter a client and kind of request.
//!
//! A client may use its whole minute at once; after that, requests are let through one by one as the minute passes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::access::Client;
use super::limits::RATE_CLIENTS_MAX;
use crate::proto::limits;

const MINUTE: Duration = Duration::from_secs(60);

/// The kinds of requests that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Generate,
    Control,
    Status,
    /// What starts a decoder.
    Decode,
}

/// What a client has left of a kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub kind: Kind,
    pub requests: u32,
    /// Until all of them can be used again.
    pub reset: Duration,
}

impl Kind {
    /// As in the headers RateLimit and RateLimit-Policy.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Generate => "generate",
            Kind::Control => "control",
            Kind::Status => "status",
            Kind::Decode => "decode",
        }
    }

    /// Requests of this kind in a minute.
    pub fn per_minute(self) -> u32 {
        match self {
            Kind::Generate => limits::GENERATE_PER_MINUTE,
            Kind::Control => limits::CONTROL_PER_MINUTE,
            Kind::Status => limits::STATUS_PER_MINUTE,
            Kind::Decode => limits::DECODE_PER_MINUTE,
        }
    }
}

/// The counters of every client.
#[derive(Default)]
pub struct Rates {
    /// When the client has its whole minute again.
    full_at: Mutex<HashMap<(Client, Kind), Instant>>,
}

impl Rates {
    /// Counts one request. Answers what is left. Errors: how long to wait before the next try; the request is not
    /// counted then.
    pub fn count(&self, client: &Client, kind: Kind, now: Instant) -> Result<Left, Duration> {
        let cost = MINUTE / kind.per_minute();
        // A panic while it is held leaves a map that is whole.
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= RATE_CLIENTS_MAX {
            full_at.retain(|_, at| *at > now);
        }
        let entry = full_at.entry((client.clone(), kind)).or_insert(now);
        let next = (*entry).max(now) + cost;
        if next > now + MINUTE {
            return Err(next - (now + MINUTE));
        }
        *entry = next;
        let reset = next.saturating_duration_since(now);
        let requests = ((MINUTE - reset).as_secs_f64() / cost.as_secs_f64() + 1e-6) as u32;
        Ok(Left { kind, requests, reset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_its_minute_and_then_one_by_one() {
        let rates = Rates::default();
        let (one, two) = (Client::User(1), Client::User(2));
        let start = Instant::now();
        for n in 1..=limits::GENERATE_PER_MINUTE {
            let left = rates.count(&one, Kind::Generate, start).expect("within the minute");
            assert_eq!(left.requests, limits::GENERATE_PER_MINUTE - n);
            assert_eq!(left.reset, n * MINUTE / limits::GENERATE_PER_MINUTE);
        }
        let wait = rates.count(&one, Kind::Generate, start).expect_err("one too many");
        assert_eq!(wait, MINUTE / limits::GENERATE_PER_MINUTE);
        rates.count(&two, Kind::Generate, start).expect("another client");
        rates.count(&one, Kind::Status, start).expect("another kind");
        rates.count(&one, Kind::Generate, start + wait).expect("after the wait");
        rates.count(&one, Kind::Generate, start + wait).expect_err("only one");
    }

    #[test]
    fn clients_that_are_not_limited_are_forgotten() {
        let rates = Rates::default();
        let start = Instant::now();
        for user in 0..RATE_CLIENTS_MAX as u32 {
            rates.count(&Client::User(user), Kind::Status, start).expect("the first");
        }
        rates.count(&Client::User(u32::MAX), Kind::Status, start + MINUTE).expect("the first");
        assert_eq!(rates.full_at.lock().expect("no panic").len(), 1);
    }
}
