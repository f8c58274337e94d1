//! The operating system: everything that differs between FreeBSD and Linux, behind one interface.
//!
//! Every role may use this folder; it knows nothing of models, HTTP or Vulkan. One of the few rooms where `unsafe` is
//! allowed: callers get safe functions, and each block states the callee's requirement.

pub mod dir;
pub mod link;
pub mod log;
pub mod pidfile;
pub mod process;
#[cfg(target_os = "freebsd")]
mod rights;
pub mod sandbox;
pub mod shm;
pub mod signals;
pub mod user;
