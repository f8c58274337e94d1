//! The model as the worker's engine: requests in the model's terms, its errors as faults.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{Engine, Fault, Part, Picture, SharedNumber, chain};
use crate::compute::{ComputeError, SharedId};
use crate::model::{self, ModelError, Session, SessionSpec};
use crate::proto::keys::Keys;
use crate::proto::link::{Environment, OpenSession};
use crate::sys::shm::SharedMemory;

impl From<ModelError> for Fault {
    fn from(error: ModelError) -> Fault {
        let message = chain(&error);
        match error {
            ModelError::Request { field: "prompt", .. } => Fault::session("prompt_too_long", message),
            ModelError::Request { field: "instruction", .. } => Fault::session("instruction_too_long", message),
            ModelError::Request { .. } => Fault::session("bad_request", message),
            ModelError::Compute(e) => {
                let (device, code) = verdict(&e);
                Fault { device, code, message }
            }
            _ => Fault::session("model", message),
        }
    }
}

/// Whether an error is the end of the device, and its code for clients.
fn verdict(error: &ComputeError) -> (bool, &'static str) {
    match error {
        ComputeError::OutOfMemory { .. } => (true, "out_of_memory"),
        ComputeError::DeviceLost { .. } => (true, "device_lost"),
        ComputeError::Device { .. } | ComputeError::NoDevice { .. } => (true, "device"),
        // A plan that this session needed cannot be made or run; others have theirs.
        _ => (false, "engine"),
    }
}

fn spec(request: &OpenSession) -> SessionSpec {
    SessionSpec {
        prompt: request.prompt.clone(),
        width: request.width,
        height: request.height,
        steps: request.steps,
        seed: request.seed,
        perspective: request.perspective.clone(),
    }
}

fn turns(parts: Vec<Part<'_, Session>>) -> Vec<model::Turn<'_>> {
    let turn = |Part { session, keys, picture }| {
        let picture = match picture {
            Picture::Bytes(bytes) => model::Picture::Bytes(bytes),
            Picture::Shared(number, offset) => model::Picture::Shared(SharedId::from_index(number), offset),
        };
        model::Turn { session, keys, picture }
    };
    parts.into_iter().map(turn).collect()
}

impl Engine for model::Engine {
    type Session = Session;
    type Flight = model::Flight;

    fn open(&mut self, request: &OpenSession) -> Result<Session, Fault> {
        Ok(self.open(&spec(request))?)
    }

    fn close(&mut self, session: Session) {
        self.close(session);
    }

    /// Parts of the environment that were never said stay as the prompt describes them.
    fn instruct(
        &mut self,
        session: &mut Session,
        _: &OpenSession,
        environment: &Environment,
        text: Option<&str>,
    ) -> Result<(), Fault> {
        let Environment { weather, lighting, effects } = environment.clone();
        let words = model::Environment { weather, lighting, effects };
        Ok(self.set_instruction(session, &words, text)?)
    }

    fn seed(&mut self, session: &mut Session, history: &[(Vec<f32>, Keys)]) -> Result<(), Fault> {
        Ok(self.seed(session, history)?)
    }

    fn encode(&mut self, request: &OpenSession, pictures: &[&[u8]]) -> Result<Vec<Vec<f32>>, Fault> {
        Ok(self.encode(pictures, request.width, request.height)?)
    }

    fn decode(&mut self, (width, height): (u32, u32), latents: &[&[f32]]) -> Result<Vec<Vec<u8>>, Fault> {
        let rgb = |frame: &Vec<u8>| {
            let picture = model::video_prompt::Picture::from_i420(width as usize, height as usize, frame)?;
            Ok(picture.rgb().to_vec())
        };
        self.decode(latents, width, height)?.iter().map(rgb).collect()
    }

    fn lead(&mut self, session: &mut Session, kind: &str, picture: &[u8]) -> Result<(), Fault> {
        Ok(self.lead(session, kind, picture)?)
    }

    fn batch_max(&self) -> usize {
        self.batch_max()
    }

    fn share(&mut self, memory: &Arc<SharedMemory>) -> Option<SharedNumber> {
        match self.share(memory) {
            Ok(shared) => shared.map(SharedId::index),
            Err(e) => {
                log::warn!("frames are copied: {}", chain(&e));
                None
            }
        }
    }

    fn unshare(&mut self, number: SharedNumber) {
        self.unshare(SharedId::from_index(number));
    }

    fn go_together(&self, a: &Session, b: &Session) -> bool {
        self.go_together(a, b)
    }

    fn lanes(&self) -> usize {
        self.lanes()
    }

    fn run_max(&self, count: usize) -> usize {
        self.next_run(count)
    }

    fn begin(&mut self, parts: Vec<Part<'_, Session>>) -> Result<model::Flight, Fault> {
        Ok(self.begin(turns(parts))?)
    }

    fn landed(&mut self, flights: &[model::Flight], time: Duration) -> Result<Option<usize>, Fault> {
        Ok(self.landed(flights, time)?)
    }

    fn end(&mut self, flight: model::Flight, parts: Vec<Part<'_, Session>>) -> Result<(), Fault> {
        Ok(self.end(flight, turns(parts))?)
    }

    fn flops(&mut self, (width, height): (u32, u32), steps: u32) -> f64 {
        self.tick_flops(width, height, steps).unwrap_or(0) as f64
    }

    fn latent<'a>(&self, session: &'a Session) -> &'a [f32] {
        self.last_latent(session)
    }

    fn taken_bytes(&self) -> u64 {
        self.taken_bytes()
    }

    fn state_bytes(&self, request: &OpenSession) -> u64 {
        self.state_bytes(&spec(request)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_ends_the_process_and_a_bad_prompt_its_session() {
        let lost = ModelError::Compute(ComputeError::DeviceLost { what: "vkQueueSubmit".to_string() });
        let fault = Fault::from(lost);
        assert!(fault.device);
        assert!(fault.message.ends_with("the device was lost: vkQueueSubmit"), "{fault}");
        let full = ModelError::Compute(ComputeError::OutOfMemory { what: "a state".to_string(), bytes: 9 });
        assert!(Fault::from(full).device);
        let (found, allowed) = ("99 tokens".to_string(), "1 to 40 tokens".to_string());
        let fault = Fault::from(ModelError::Request { field: "prompt", found, allowed });
        assert_eq!((fault.device, fault.code), (false, "prompt_too_long"));
        assert!(fault.message.contains("99 tokens") && fault.message.contains("1 to 40 tokens"));
    }
}
