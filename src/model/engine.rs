//! One model on one device, and the sessions that play it.

mod pictures;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rayon::prelude::*;

use super::limits::{HEIGHT_MAX, HEIGHT_MIN, WIDTH_MAX, WIDTH_MIN};
use super::noise::Noise;
use super::plans;
use super::sampler::{Flight, Part, Picture, SEATS, Stream, StreamPlans};
use super::state::{FrameSize, SessionLayout};
use super::{Environment, Keys, Model, ModelError};
use crate::compute::{DeviceInfo, DeviceKind, Executor, Profile, SharedId, StateId, StateLayout};
use crate::sys::shm::SharedMemory;

/// Most sessions of one run on a GPU: beyond it nothing is gained, but everybody waits for the last.
const BATCH_MAX: usize = 16;

/// What a session is made from. With the keys and instructions of every tick it decides every frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSpec {
    pub prompt: String,
    /// Pixels, even, within [`super::limits`].
    pub width: u32,
    pub height: u32,
    /// Denoising steps of a frame; one of the model's.
    pub steps: u32,
    pub seed: u64,
    /// `third` or `first`; said in front of the prompt if the prompt does not say it.
    pub perspective: Option<String>,
}

/// Control pictures that the frames of a session are to follow.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoPrompt {
    /// One of the model's, such as `canny`.
    pub kind: String,
    /// Latents of the control pictures, one a frame, from [`Engine::encode`] of pictures of the session's size.
    pub latents: Vec<Vec<f32>>,
}

/// A session's turn in a tick of several.
pub struct Turn<'a> {
    pub session: &'a mut Session,
    pub keys: Keys,
    /// Takes I420 of width * height * 3 / 2 bytes.
    pub picture: Picture<'a>,
}

/// A running world. Belongs to the engine that opened it.
pub struct Session {
    stream: Stream,
    noise: Noise,
    /// Frames that were generated, without those given to [`Engine::seed`].
    frames: u64,
}

impl Session {
    /// Generated frames so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    pub fn size(&self) -> FrameSize {
        self.stream.plans().size
    }

    /// Arithmetic of a tick in floating-point operations.
    pub fn tick_flops(&self) -> u64 {
        self.stream.plans().tick_flops()
    }
}

/// An executor with a model's weights, and the plans of every size that was asked for.
pub struct Engine {
    model: Arc<Model>,
    executor: Box<dyn Executor>,
    plans: HashMap<(FrameSize, u32), Arc<StreamPlans>>,
    encoders: HashMap<FrameSize, pictures::Encoder>,
    decoders: HashMap<FrameSize, pictures::Decoder>,
    /// Arithmetic of a frame, where it was asked for.
    flops: HashMap<(FrameSize, u32), u64>,
    /// Most sessions of one run.
    batch_max: usize,
    /// The state of runs that belong to no session.
    no_session: Option<(StateId, Arc<StateLayout>)>,
}

impl Engine {
    /// Uploads the weights. Errors: those of the device.
    pub fn new(model: Arc<Model>, mut executor: Box<dyn Executor>) -> Result<Engine, ModelError> {
        executor.load_weights(model.weights())?;
        // A processor gains nothing from a batch that would make up for the wait.
        let batch_max = if executor.device().kind == DeviceKind::VulkanGpu { BATCH_MAX } else { 1 };
        Ok(Engine {
            model,
            executor,
            plans: HashMap::new(),
            encoders: HashMap::new(),
            decoders: HashMap::new(),
            flops: HashMap::new(),
            batch_max,
            no_session: None,
        })
    }

    pub fn device(&self) -> &DeviceInfo {
        self.executor.device()
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Memory of the device that weights, sessions and work in between have, in bytes.
    pub fn taken_bytes(&self) -> u64 {
        self.executor.taken_bytes()
    }

    /// The device itself, for measurements beside the model.
    pub fn executor(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// Starts a session: encodes the prompt, and an empty instruction. The first session of a size and number of steps
    /// records its plans.
    ///
    /// Errors: [`ModelError::Request`] with the field of `spec` that is out of range; errors of the device.
    pub fn open(&mut self, spec: &SessionSpec) -> Result<Session, ModelError> {
        let (size, prompt) = self.check(spec)?;
        let ids = self.model.tokenizer().encode("prompt", &prompt, self.model.config().text.max_length)?;
        let key = (size, spec.steps);
        let plans = match self.plans.get(&key) {
            Some(plans) => plans.clone(),
            None => {
                let plans = Arc::new(StreamPlans::new(&self.model, &mut *self.executor, size, spec.steps)?);
                self.plans.insert(key, plans.clone());
                plans
            }
        };
        // One more than there are: whoever holds the plans, but for the table of them.
        let sessions = Arc::strong_count(&plans) - 1;
        plans.prepare_batches(&mut *self.executor, sessions.next_power_of_two().min(self.batch_max))?;
        let stream = Stream::open(&plans, &mut *self.executor, &ids)?;
        let mut session = Session { stream, noise: Noise::new(spec.seed), frames: 0 };
        match self.set_instruction(&mut session, &Environment::default(), None) {
            Ok(()) => Ok(session),
            Err(e) => {
                self.close(session);
                Err(e)
            }
        }
    }

    /// Size and full prompt of a session.
    fn check(&self, spec: &SessionSpec) -> Result<(FrameSize, String), ModelError> {
        let size = frame_size(spec.width, spec.height)?;
        let info = self.model.info();
        if !info.steps.contains(&spec.steps) {
            let (found, allowed) = (spec.steps.to_string(), format!("one of {:?}", info.steps));
            return Err(ModelError::Request { field: "steps", found, allowed });
        }
        if spec.prompt.trim().is_empty() {
            let (found, allowed) = ("empty".to_string(), format!("1..={} tokens", info.prompt_tokens_max));
            return Err(ModelError::Request { field: "prompt", found, allowed });
        }
        let Some(perspective) = &spec.perspective else {
            return Ok((size, spec.prompt.clone()));
        };
        if !info.perspectives.contains(perspective) {
            let (found, allowed) = (format!("{perspective:?}"), format!("one of {:?}", info.perspectives));
            return Err(ModelError::Request { field: "perspective", found, allowed });
        }
        let lower = spec.prompt.to_lowercase();
        let said = ["first person", "first-person", "third person", "third-person", "pov"];
        if said.iter().any(|s| lower.contains(s)) {
            return Ok((size, spec.prompt.clone()));
        }
        Ok((size, format!("{perspective} person view. {}", spec.prompt)))
    }

    /// Ends a session and gives its memory back.
    pub fn close(&mut self, session: Session) {
        session.stream.close(&mut *self.executor);
    }

    /// Changes the instruction from the next frame on: the free text if there is one, else the words of `environment`
    /// in the model's texts for its parts. Errors: a word that the model does not know, a text that is too long.
    pub fn set_instruction(
        &mut self,
        session: &mut Session,
        environment: &Environment,
        free_text: Option<&str>,
    ) -> Result<(), ModelError> {
        let info = self.model.info();
        let parts = [
            ("weather", &environment.weather, &info.weather),
            ("lighting", &environment.lighting, &info.lighting),
            ("effects", &environment.effects, &info.effects),
        ];
        for (field, word, allowed) in parts {
            if let Some(word) = word
                && !allowed.contains(word)
            {
                let (found, allowed) = (format!("{word:?}"), format!("one of {allowed:?}"));
                return Err(ModelError::Request { field, found, allowed });
            }
        }
        let text = match free_text {
            Some(text) => text.to_string(),
            None => environment.instruction(&self.model.config().index.instruction_parts),
        };
        let longest = self.model.config().text.instruction_length();
        let ids = self.model.tokenizer().encode("instruction", &text, longest)?;
        session.stream.set_instruction(&mut *self.executor, &ids)
    }

    /// The next frame follows one control picture: RGB bytes of the session's size. See [`Engine::set_video_prompt`].
    pub fn lead(&mut self, session: &mut Session, kind: &str, picture: &[u8]) -> Result<(), ModelError> {
        let size = session.size();
        let latents = self.encode(&[picture], size.width as u32, size.height as u32)?;
        self.set_video_prompt(session, Some(VideoPrompt { kind: kind.to_string(), latents }))
    }

    /// From the next frame on shows the session one control picture a frame; after the last one it goes on without, as
    /// it does from now on with `None`. Without a video prompt nothing costs more.
    ///
    /// Errors: [`ModelError::Request`] for a kind that the model does not know, or a latent of a wrong length; errors
    /// of the device.
    pub fn set_video_prompt(&mut self, session: &mut Session, prompt: Option<VideoPrompt>) -> Result<(), ModelError> {
        let Some(VideoPrompt { kind, latents }) = prompt else {
            session.stream.clear_video_prompt();
            return Ok(());
        };
        let offered = &self.model.info().video_prompts;
        let known = &self.model.config().instruct.video_prompts;
        let Some(index) = known.iter().position(|k| *k == kind).filter(|_| offered.contains(&kind)) else {
            let (found, allowed) = (format!("{kind:?}"), format!("one of {offered:?}"));
            return Err(ModelError::Request { field: "video_prompt", found, allowed });
        };
        check_latents(latents.iter().map(Vec::as_slice), session.stream.latent().len())?;
        session.stream.set_video_prompt(&mut *self.executor, index, latents)
    }

    /// Lets frames go straight into a memory object, see [`Picture::Shared`]. `None`: the device cannot.
    pub fn share(&mut self, memory: &Arc<SharedMemory>) -> Result<Option<SharedId>, ModelError> {
        Ok(self.executor.share(memory)?)
    }

    /// Takes a memory object back.
    pub fn unshare(&mut self, shared: SharedId) {
        self.executor.unshare(shared);
    }

    /// Generates the next frame under `keys` into `picture`, I420 of width * height * 3 / 2 bytes.
    /// Errors: those of the device; the session is then of no more use.
    pub fn tick(
        &mut self,
        session: &mut Session,
        keys: Keys,
        picture: &mut [u8],
        profile: Option<&mut Profile>,
    ) -> Result<(), ModelError> {
        self.tick_into(session, keys, Picture::Bytes(picture), profile)
    }

    /// [`Engine::tick`] with the picture anywhere.
    pub fn tick_into(
        &mut self,
        session: &mut Session,
        keys: Keys,
        picture: Picture<'_>,
        profile: Option<&mut Profile>,
    ) -> Result<(), ModelError> {
        check_picture(session.size(), &picture)?;
        let position = session.stream.position();
        session.noise.fill(position, session.stream.noise());
        session.stream.tick(&mut *self.executor, keys, picture, profile)?;
        session.frames += 1;
        Ok(())
    }

    /// Most sessions of one run; 1: no batches. At first as many as suit the device.
    pub fn batch_max(&self) -> usize {
        self.batch_max
    }

    /// Changes how many sessions one run may have. Frames do not depend on it.
    pub fn set_batch_max(&mut self, most: usize) {
        self.batch_max = most.clamp(1, SEATS[SEATS.len() - 1]);
    }

    /// Can the next frames of the two be made in one run?
    pub fn go_together(&self, a: &Session, b: &Session) -> bool {
        a.stream.goes_with(&b.stream)
    }

    /// [`Engine::tick`] for several sessions: those that go together share runs. Every frame is the same, bit for bit,
    /// as if its session were alone.
    ///
    /// Errors: those of the device; then none of the sessions is of any more use.
    pub fn tick_batch(&mut self, turns: Vec<Turn<'_>>, mut profile: Option<&mut Profile>) -> Result<(), ModelError> {
        let mut left = turns;
        while !left.is_empty() {
            let first = left.remove(0);
            let (mut group, rest): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|t| first.session.stream.goes_with(&t.session.stream));
            left = rest;
            group.insert(0, first);
            while !group.is_empty() {
                let rest = group.split_off(self.next_run(group.len()));
                self.run_together(group, profile.as_deref_mut())?;
                group = rest;
            }
        }
        Ok(())
    }

    /// How many runs may be on their way at once.
    pub fn lanes(&self) -> usize {
        self.executor.lanes()
    }

    /// Begins the next frames of sessions that go together, no more than [`Engine::next_run`] says. They are of no use
    /// until [`Engine::end`] was given them again in the same order. A lane must be free.
    ///
    /// Errors: those of the device; then none of the sessions is of any more use.
    pub fn begin(&mut self, turns: Vec<Turn<'_>>) -> Result<Flight, ModelError> {
        Stream::begin(&mut *self.executor, &mut parts(turns)?)
    }

    /// Waits until one of the runs has landed, or for `time`. Returns the place of one that has.
    pub fn landed(&mut self, flights: &[Flight], time: Duration) -> Result<Option<usize>, ModelError> {
        let flights: Vec<_> = flights.iter().map(|f| f.flight).collect();
        Ok(self.executor.landed(&flights, time)?)
    }

    /// Takes the frames of a run after its end, waiting for it if need be.
    pub fn end(&mut self, flight: Flight, turns: Vec<Turn<'_>>) -> Result<(), ModelError> {
        let part = |Turn { session, keys, picture }| Part { stream: &mut session.stream, keys, picture };
        Stream::end(&mut *self.executor, flight, &mut turns.into_iter().map(part).collect::<Vec<_>>())
    }

    /// How many of `count` sessions that go together make the next run: as many as a plan has seats, or a few less.
    /// Each vacant seat costs as much as one that is taken.
    pub fn next_run(&self, count: usize) -> usize {
        let count = count.min(self.batch_max);
        let fitting = SEATS.iter().copied().find(|&seats| count <= seats).unwrap_or(count);
        if count * 4 >= fitting * 3 { count } else { SEATS.iter().copied().rfind(|&s| s <= count).unwrap_or(1) }
    }

    fn run_together(&mut self, mut turns: Vec<Turn<'_>>, profile: Option<&mut Profile>) -> Result<(), ModelError> {
        if let [turn] = &mut turns[..] {
            return self.tick_into(turn.session, turn.keys, turn.picture.again(), profile);
        }
        Stream::tick_together(&mut *self.executor, &mut parts(turns)?, profile)
    }

    /// Continues given frames: their latents [N, Z] (see [`Engine::encode`] and [`Engine::last_latent`]) with the keys
    /// that were held. Only the last frames of the attention's window matter.
    pub fn seed(&mut self, session: &mut Session, history: &[(Vec<f32>, Keys)]) -> Result<(), ModelError> {
        let length = session.stream.latent().len();
        check_latents(history.iter().map(|(latent, _)| latent.as_slice()), length)?;
        let mut noise = vec![0.0; length];
        for (latent, keys) in history {
            session.noise.fill(session.stream.position(), &mut noise);
            session.stream.seed(&mut *self.executor, latent, *keys, &noise)?;
        }
        Ok(())
    }

    /// Latent [N, Z] of the newest frame, for snapshots; zeros before the first one.
    pub fn last_latent<'a>(&self, session: &'a Session) -> &'a [f32] {
        session.stream.latent()
    }

    /// Arithmetic of a frame, the first one of a session aside. Errors: a size that is not allowed.
    pub fn tick_flops(&mut self, width: u32, height: u32, steps: u32) -> Result<u64, ModelError> {
        let size = frame_size(width, height)?;
        let key = (size, steps);
        if let Some(flops) = self.flops.get(&key) {
            return Ok(*flops);
        }
        let flops = plans::tick_flops(&self.model, size, steps, self.device().precision)?;
        self.flops.insert(key, flops);
        Ok(flops)
    }

    /// Device memory that a session needs for its state in bytes; 0 for a size that is not allowed.
    pub fn state_bytes(&self, spec: &SessionSpec) -> usize {
        let precision = self.device().precision;
        frame_size(spec.width, spec.height).map_or(0, |size| {
            SessionLayout::new(self.model.config(), size, spec.steps as usize, precision).layout.bytes()
        })
    }
}

/// Puts the noise of the next frames where their run finds it.
fn parts(mut turns: Vec<Turn<'_>>) -> Result<Vec<Part<'_>>, ModelError> {
    for turn in &turns {
        check_picture(turn.session.size(), &turn.picture)?;
    }
    turns.par_iter_mut().for_each(|turn| {
        let (noise, position) = (turn.session.noise, turn.session.stream.position());
        noise.fill(position, turn.session.stream.noise());
    });
    let mut parts = Vec::with_capacity(turns.len());
    for Turn { session, keys, picture } in turns {
        session.frames += 1;
        parts.push(Part { stream: &mut session.stream, keys, picture });
    }
    Ok(parts)
}

/// Errors: room for a picture that is not one of I420 of this size.
fn check_picture(size: FrameSize, picture: &Picture<'_>) -> Result<(), ModelError> {
    let bytes = size.width * size.height * 3 / 2;
    let picture = match picture {
        Picture::Bytes(picture) if picture.len() != bytes => picture,
        _ => return Ok(()),
    };
    let (found, allowed) = (format!("{} bytes", picture.len()), format!("{bytes} bytes"));
    Err(ModelError::Request { field: "picture", found, allowed })
}

/// Errors: a latent that is not `length` numbers long.
fn check_latents<'a>(mut latents: impl Iterator<Item = &'a [f32]>, length: usize) -> Result<(), ModelError> {
    let Some(wrong) = latents.find(|latent| latent.len() != length) else { return Ok(()) };
    let (found, allowed) = (format!("{} numbers", wrong.len()), format!("{length} numbers"));
    Err(ModelError::Request { field: "latent", found, allowed })
}

/// Checks a size in pixels. Errors: the side that is odd or out of range.
pub fn frame_size(width: u32, height: u32) -> Result<FrameSize, ModelError> {
    for (field, value, min, max) in [("width", width, WIDTH_MIN, WIDTH_MAX), ("height", height, HEIGHT_MIN, HEIGHT_MAX)]
    {
        if !value.is_multiple_of(2) || !(min..=max).contains(&value) {
            let allowed = format!("an even number of pixels, {min}..={max}");
            return Err(ModelError::Request { field, found: value.to_string(), allowed });
        }
    }
    Ok(FrameSize { width: width as usize, height: height as usize })
}
