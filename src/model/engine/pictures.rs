//! Pictures to latents and back, beside the sessions.

use std::sync::Arc;

use super::{Engine, check_latents, frame_size};
use crate::compute::{DType, Output, PlanId, Run, StateId, StateLayout};
use crate::model::ModelError;
use crate::model::plans::{self, DecodePlan, EncodePlan};
use crate::model::state::FrameSize;

/// The encoder's plan for one size of pictures.
pub(super) struct Encoder {
    plan: EncodePlan,
    id: PlanId,
}

/// The decoder's plans for one size of pictures: of a first frame, and of one with a frame before.
pub(super) struct Decoder {
    layout: Arc<StateLayout>,
    plans: [(DecodePlan, PlanId); 2],
}

impl Engine {
    /// Latents of pictures: RGB, three bytes a pixel, `height` rows of `width` pixels. A side that is no multiple of
    /// a latent's pixels is continued by its last row or column.
    pub fn encode(&mut self, frames: &[&[u8]], width: u32, height: u32) -> Result<Vec<Vec<f32>>, ModelError> {
        let size = frame_size(width, height)?;
        let state = self.shared_state()?;
        let model = self.model.clone();
        let c = &model.config().vae;
        let ((h, w), z) = (size.latent(c), c.latent_channels);
        if !self.encoders.contains_key(&size) {
            let precision = self.device().precision;
            let plan = plans::encode_plan(&self.model, size, precision, &state.1, false)?;
            let id = self.executor.prepare(plan.recorded.plan.clone())?;
            self.encoders.insert(size, Encoder { plan, id });
        }
        let Encoder { plan, id } = &self.encoders[&size];
        let mut latents = Vec::with_capacity(frames.len());
        for frame in frames {
            if frame.len() != size.width * size.height * 3 {
                let allowed = format!("{} bytes", size.width * size.height * 3);
                return Err(ModelError::Request { field: "frame", found: format!("{} bytes", frame.len()), allowed });
            }
            let pixels = padded_pixels(frame, size, size.padded(c));
            let mut latent = vec![0.0; h * w * z];
            let inputs = [(plan.pixels, &pixels[..])];
            let outputs = &mut [(plan.latent, Output::F32(&mut latent))];
            self.executor.run(Run {
                plan: *id,
                states: &[state.0],
                inputs: &inputs,
                params: &[],
                outputs,
                profile: None,
            })?;
            latents.push(latent);
        }
        Ok(latents)
    }

    /// Pictures of latents that follow one another, oldest first, as a session shows them: I420 of
    /// `width` * `height` * 3 / 2 bytes each. The decoder remembers nothing before the first one.
    ///
    /// Errors: [`ModelError::Request`] for a size that is not allowed, or a latent of a wrong length; errors of the
    /// device.
    pub fn decode(&mut self, latents: &[&[f32]], width: u32, height: u32) -> Result<Vec<Vec<u8>>, ModelError> {
        let size = frame_size(width, height)?;
        let c = &self.model.config().vae;
        let (h, w) = size.latent(c);
        check_latents(latents.iter().copied(), h * w * c.latent_channels)?;
        self.prepare_decoder(size)?;
        let state = self.executor.create_state(&self.decoders[&size].layout)?;
        let pictures = self.decode_into(latents, size, state);
        self.executor.destroy_state(state);
        pictures
    }

    fn decode_into(&mut self, latents: &[&[f32]], size: FrameSize, state: StateId) -> Result<Vec<Vec<u8>>, ModelError> {
        let Decoder { plans, .. } = &self.decoders[&size];
        let mut pictures = Vec::with_capacity(latents.len());
        for (index, latent) in latents.iter().enumerate() {
            let (plan, id) = &plans[usize::from(index > 0)];
            let mut picture = vec![0; size.width * size.height * 3 / 2];
            self.executor.run(Run {
                plan: *id,
                states: &[state],
                inputs: &[(plan.latent, latent)],
                params: &[],
                outputs: &mut [(plan.picture, Output::Bytes(&mut picture))],
                profile: None,
            })?;
            pictures.push(picture);
        }
        Ok(pictures)
    }

    fn prepare_decoder(&mut self, size: FrameSize) -> Result<(), ModelError> {
        if self.decoders.contains_key(&size) {
            return Ok(());
        }
        let precision = self.device().precision;
        let (layout, [first, next]) = plans::decode_plans(&self.model, size, precision)?;
        let first_id = self.executor.prepare(first.recorded.plan.clone())?;
        let next_id = self.executor.prepare(next.recorded.plan.clone())?;
        self.decoders.insert(size, Decoder { layout, plans: [(first, first_id), (next, next_id)] });
        Ok(())
    }

    /// The state for runs that belong to no session; one number, since devices have no empty buffers.
    fn shared_state(&mut self) -> Result<(StateId, Arc<StateLayout>), ModelError> {
        if let Some(state) = &self.no_session {
            return Ok(state.clone());
        }
        let mut layout = StateLayout::default();
        layout.add("unused", &[1], DType::F32);
        let layout = Arc::new(layout);
        let state = (self.executor.create_state(&layout)?, layout);
        self.no_session = Some(state.clone());
        Ok(state)
    }
}

/// Bytes to -1..1, with the last row and column repeated up to `padded` (height, width).
fn padded_pixels(frame: &[u8], size: FrameSize, padded: (usize, usize)) -> Vec<f32> {
    let mut out = Vec::with_capacity(padded.0 * padded.1 * 3);
    for y in 0..padded.0 {
        let row = &frame[y.min(size.height - 1) * size.width * 3..][..size.width * 3];
        for x in 0..padded.1 {
            let pixel = &row[x.min(size.width - 1) * 3..][..3];
            out.extend(pixel.iter().map(|b| f32::from(*b) / 127.5 - 1.0));
        }
    }
    out
}
