//! Faults on demand, for tests: what a device does only when it is broken. Not part of a release build.
//!
//! Who can write the worker's cache writes a word into the file `fault` there; the next tick takes it away and acts.

use std::path::PathBuf;
use std::time::Duration;

use super::engine::Fault;

/// Where the word is looked for.
#[derive(Debug)]
pub(super) struct Faults(PathBuf);

impl Faults {
    pub(super) fn new(cache: PathBuf) -> Faults {
        Faults(cache.join("fault"))
    }

    /// Acts on the word that is there, if there is one. Errors: a lost device, a full one.
    pub(super) fn strike(&self) -> Result<(), Fault> {
        let Ok(word) = std::fs::read_to_string(&self.0) else { return Ok(()) };
        // Gone before it acts, so that the next worker does not meet it again.
        let _ = std::fs::remove_file(&self.0);
        match word.trim() {
            "device_lost" => Err(Fault::device("device_lost", "the device was lost: asked for by a test")),
            "out_of_memory" => Err(Fault::device("out_of_memory", "the device is full: asked for by a test")),
            "hang" => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            other => {
                log::warn!("no fault is called {other:?}");
                Ok(())
            }
        }
    }
}
