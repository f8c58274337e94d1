//! The worker: one device, one model, all sessions that play on it.

pub mod engine;
pub mod schedule;
pub mod session;
pub mod sessions;
pub mod stats;
pub mod trace;
