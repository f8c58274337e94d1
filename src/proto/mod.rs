//! The one vocabulary of gamegend: what clients ask, what the daemon answers, and what its roles tell each other.
//!
//! [`api`] and [`resources`] are the outside, JSON over HTTP and WebSocket, the same on the Unix socket. [`link`] is
//! the inside, postcard over socket pairs between processes of the same build, and [`decode`] the part of it that asks
//! for a decoder. [`wire`] is the binary header of a streamed frame.
//! Encoding and decoding of a thing live in one place and both ends use it. [`limits`] names every limit.

pub mod api;
pub mod decode;
pub mod keys;
pub mod limits;
pub mod link;
pub mod resources;
pub mod wire;
