//! The one vocabulary of gamegend: what clients ask, what the daemon answers, and what its roles tell each other.
//!
//! [`api`] is the outside, JSON over HTTP and WebSocket (DESIGN: the same on the Unix socket). [`link`] is the inside,
//! postcard over socket pairs between processes of the same build. [`wire`] is the binary header of a streamed frame.
//! Encoding and decoding of a thing live in one place and both ends use it. [`limits`] names every limit.

pub mod api;
pub mod keys;
pub mod limits;
pub mod link;
pub mod wire;
