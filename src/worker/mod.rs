//! The worker: one device, one model, all sessions that play on it.
//!
//! ```text
//!           Start, Drain                 Open, Instruct, Close
//!   parent ------------> reader threads <---------------------- api
//!                              | one bounded channel
//!                              v
//!          the one thread that owns the engine: schedule -> tick -> ring -> Frame
//! ```
//!
//! Its powers: the device's nodes, the model's folder for reading, the links it was given. It has no network and writes
//! no file. Whatever comes over a link is checked again; an error of one session ends that session, an error of the
//! device ends the process with `EX_TEMPFAIL`, and the parent starts another one.

mod beat;
pub mod engine;
#[cfg(debug_assertions)]
mod fault;
pub mod load;
mod model_engine;
pub mod schedule;
mod serve;
pub mod session;
pub mod sessions;
pub mod sizes;
mod start;
pub mod stats;

use std::io;
use std::process::ExitCode;

use crate::compute::ComputeError;
use crate::exit::Exit;
use crate::model::ModelError;
use crate::sys::link::{Link, LinkError};
use crate::sys::sandbox::SandboxError;
use engine::{Fault, chain};

/// Why a worker ends before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("the link to the {peer} is broken")]
    Link {
        peer: &'static str,
        #[source]
        source: LinkError,
    },
    #[error("cannot tell the {peer}")]
    Send {
        peer: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the {peer} is of build {found:?}, this worker of {ours:?}")]
    Build { peer: &'static str, found: String, ours: String },
    #[error("the {peer} sent {found}, expected: {expected}")]
    Protocol { peer: &'static str, found: String, expected: &'static str },
    #[error("cannot protect the worker")]
    Sandbox(#[source] SandboxError),
    #[error("no device for {device:?}")]
    Device {
        device: String,
        #[source]
        source: ComputeError,
    },
    #[error("cannot use the model")]
    Model(#[from] ModelError),
    #[error("the device failed")]
    Fault(#[from] Fault),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

impl WorkerError {
    /// The exit code that tells the parent whether another try makes sense.
    pub fn exit(&self) -> Exit {
        match self {
            WorkerError::Link { .. } | WorkerError::Send { .. } => Exit::TempFail,
            WorkerError::Build { .. } | WorkerError::Protocol { .. } => Exit::Software,
            WorkerError::Sandbox(_) | WorkerError::Thread(_) => Exit::Os,
            WorkerError::Device { source: ComputeError::NoDevice { .. }, .. } => Exit::Config,
            WorkerError::Device { .. } | WorkerError::Fault(_) => Exit::TempFail,
            WorkerError::Model(ModelError::Read { .. }) => Exit::NoInput,
            WorkerError::Model(ModelError::Compute(_)) => Exit::TempFail,
            WorkerError::Model(_) => Exit::Data,
        }
    }
}

/// The worker role: waits for `Start` on the link to the parent, loads the model, and serves until it is drained or the
/// parent is gone.
pub fn run(link: Link) -> ExitCode {
    match start::start(link).and_then(serve::Server::serve) {
        Ok(()) => Exit::Ok.into(),
        Err(e) => {
            log::error!("{}", chain(&e));
            e.exit().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_say_whether_to_try_again() {
        let missing = ModelError::Read { path: "model_index.json".into(), source: io::ErrorKind::NotFound.into() };
        assert_eq!(WorkerError::from(missing).exit(), Exit::NoInput);
        let damaged = ModelError::File { path: "model.safetensors".into(), what: "truncated".to_string() };
        assert_eq!(WorkerError::from(damaged).exit(), Exit::Data);
        let none = ComputeError::NoDevice { what: "vulkan:9".to_string() };
        assert_eq!(WorkerError::Device { device: "vulkan:9".to_string(), source: none }.exit(), Exit::Config);
        assert_eq!(WorkerError::from(Fault::device("device_lost", "gone")).exit(), Exit::TempFail);
    }
}
