//! How sessions begin: from a request, from another session's state, from an upload, or from a trace.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand_chacha::rand_core::RngCore;

use super::access::Client;
use super::http::blocking;
use super::hub::Hub;
use super::pump::{self, Kept};
use super::refusal::{Refusal, chain};
use super::session::{Inputs, Origin, Session, Spec};
use crate::frame::{Snapshot, trace};
use crate::proto::api::{GenerateRequest, Kind, SessionStatus, VideoPrompt, Vocabulary};
use crate::proto::decode::{Extraction, Job, Shape};
use crate::proto::limits;
use crate::proto::resources::ForkRequest;
use crate::store::uploads::Record;
use crate::store::{Object, StoreError};
use crate::sys::shm::SharedMemory;

impl Hub {
    /// Starts a session. Errors: `invalid_field`, `unknown_session` (in `from`), `unknown_upload`,
    /// `video_prompts_unsupported`, `too_many_sessions`, `queue_full`, `worker_unavailable`, `draining`.
    pub async fn generate(self: &Arc<Hub>, client: &Client, request: GenerateRequest) -> Result<Arc<Session>, Refusal> {
        self.refuse_if_draining()?;
        let vocabulary = self.vocabulary()?;
        request.check(&vocabulary)?;
        let shape = Shape { width: request.width, height: request.height, fps: request.fps };
        // The prompt's type is looked at before anything is decoded.
        let lead = request.video_prompt.as_ref().map(|v| check_video_prompt(v, &vocabulary)).transpose()?;
        let origin = match &request.from {
            Some(id) => Some(self.origin(client, id, shape).await?),
            None => None,
        };
        let lead = match (lead, &request.video_prompt) {
            (Some(extraction), Some(prompt)) => {
                let frames = if request.interactive { limits::PICTURES_MAX } else { request.frames };
                Some(self.lead(client, prompt, extraction, shape, frames).await?)
            }
            _ => None,
        };
        let spec = Spec {
            id: self.new_id(),
            number: self.new_number(),
            owner: client.to_string(),
            prompt: request.prompt,
            perspective: request.perspective,
            width: request.width,
            height: request.height,
            fps: request.fps,
            steps: request.steps.unwrap_or(vocabulary.default_steps),
            seed: request.seed.unwrap_or_else(|| u64::from(self.random().next_u32())),
            frames: (!request.interactive).then_some(request.frames),
            kind: if request.interactive { Kind::Session } else { Kind::Clip },
            from: request.from,
            video_prompt: request.video_prompt,
            created: now(),
        };
        let (hub, inputs) = (self.clone(), Inputs { origin, lead, script: None });
        blocking(move || hub.start(spec, inputs)).await?
    }

    /// A new session that goes on from another one's newest snapshot.
    pub async fn fork(
        self: &Arc<Hub>,
        client: &Client,
        id: &str,
        request: ForkRequest,
    ) -> Result<Arc<Session>, Refusal> {
        let base = self.session_status(client, id)?;
        let request = GenerateRequest {
            prompt: request.prompt.unwrap_or(base.prompt),
            width: base.width,
            height: base.height,
            frames: request.frames.unwrap_or(96),
            fps: base.fps,
            steps: Some(base.steps),
            seed: Some(request.seed.unwrap_or(base.seed)),
            perspective: base.perspective,
            interactive: request.interactive,
            from: Some(id.to_string()),
            video_prompt: None,
        };
        self.generate(client, request).await
    }

    /// A video of a session, made again from its value. Errors: `no_object` before its first snapshot,
    /// `model_mismatch`, `trace_incomplete`.
    pub async fn replay(self: &Arc<Hub>, client: &Client, id: &str) -> Result<Arc<Session>, Refusal> {
        self.refuse_if_draining()?;
        self.vocabulary()?;
        let base = self.session_status(client, id)?;
        let (hub, asker, name) = (self.clone(), client.clone(), id.to_string());
        let (snapshot, script) = blocking(move || {
            let snapshot = hub.snapshot(&asker, &name)?;
            let script = freeze(&snapshot)?;
            Ok::<_, Refusal>((snapshot, script))
        })
        .await??;
        let frames = self.frames_to_replay(&snapshot)?;
        let mut inputs = self.begun_with(client, id, &base).await?;
        if inputs.origin.is_none() && begins_with_another(&snapshot) {
            return Err(Refusal::new("trace_incomplete", "What it continued is gone."));
        }
        inputs.script = Some(script);
        let about = snapshot.about;
        let spec = Spec {
            id: self.new_id(),
            number: self.new_number(),
            owner: client.to_string(),
            prompt: about.prompt,
            perspective: about.perspective,
            width: about.width,
            height: about.height,
            fps: about.fps,
            steps: about.steps,
            seed: about.seed,
            frames: Some(frames),
            kind: Kind::Replay,
            from: Some(id.to_string()),
            video_prompt: inputs.lead.as_ref().and(base.video_prompt),
            created: now(),
        };
        let hub = self.clone();
        blocking(move || hub.start(spec, inputs)).await?
    }

    fn frames_to_replay(&self, snapshot: &Snapshot) -> Result<u32, Refusal> {
        let about = &snapshot.about;
        let ours = self.model_hash();
        if about.model_hash != ours {
            let detail = format!("It was made by model {}, the worker has {ours}.", about.model_hash);
            return Err(Refusal::new("model_mismatch", detail));
        }
        let incomplete = |detail: String| Err(Refusal::new("trace_incomplete", detail));
        if about.trace_dropped > 0 {
            return incomplete(format!("{} changes no longer fit its trace.", about.trace_dropped));
        }
        let Some(changes) = trace::decode(&snapshot.trace) else {
            return incomplete("Its trace cannot be read.".to_string());
        };
        let frames = trace::frames(&changes, about.tick);
        let max = *limits::FRAMES.end();
        match u32::try_from(frames).ok().filter(|n| limits::FRAMES.contains(n)) {
            Some(frames) => Ok(frames),
            None => incomplete(format!("It has {frames} frames; a video has at most {max}.")),
        }
    }

    /// What a session began with, so that a replay begins with the same.
    async fn begun_with(&self, client: &Client, id: &str, base: &SessionStatus) -> Result<Inputs, Refusal> {
        if let Some(session) = self.session(client, id) {
            return Ok(session.inputs());
        }
        let origin = match self.store.open(id, Object::Origin) {
            Ok(file) => Some(Origin::of(file.into()).map_err(|e| Refusal::internal(&e))?),
            Err(StoreError::File { .. }) => None,
            Err(e) => return Err(Refusal::internal(&e)),
        };
        let lead = match &base.video_prompt {
            Some(prompt) => {
                let extraction = check_video_prompt(prompt, &self.vocabulary()?)?;
                let shape = Shape { width: base.width, height: base.height, fps: base.fps };
                Some(self.lead(client, prompt, extraction, shape, limits::PICTURES_MAX).await?)
            }
            None => None,
        };
        Ok(Inputs { origin, lead, script: None })
    }

    /// The newest state of a session or stored thing. Errors: `unknown_session`; `no_object` if there is none.
    ///
    /// Blocks: reads the disk.
    pub fn snapshot(&self, client: &Client, id: &str) -> Result<Snapshot, Refusal> {
        let none = |why: String| Refusal::new("no_object", format!("It has no snapshot{why}."));
        if let Some(session) = self.session(client, id) {
            if let Some(ring) = session.ring_fd() {
                return Snapshot::read_fd(&ring).map_err(|_| none(" yet".to_string()));
            }
            if let Some(bytes) = session.last_snapshot() {
                return Snapshot::read_fd(share(&bytes)?).map_err(|e| none(format!(": {}", chain(&e))));
            }
        }
        if self.stored(client, id).is_none() {
            let known = self.session(client, id).is_some();
            return Err(if known { none(String::new()) } else { Refusal::unknown_session(id) });
        }
        let file = self.store.open(id, Object::Snapshot).map_err(|_| none(String::new()))?;
        Snapshot::read_fd(&file).map_err(|e| none(format!(": {}", chain(&e))))
    }

    /// Keeps the newest state of a session that runs. Answers the id of what is kept. Errors: `unknown_session`,
    /// `session_ended`, `no_object` before the first snapshot.
    ///
    /// Blocks: writes to the disk.
    pub fn keep(self: &Arc<Hub>, client: &Client, id: &str) -> Result<String, Refusal> {
        let Some(session) = self.session(client, id) else {
            return Err(match self.stored(client, id) {
                Some(_) => Refusal::new("session_ended", "It has ended, and its last state is kept already."),
                None => Refusal::unknown_session(id),
            });
        };
        let Some(ring) = session.ring_fd() else {
            let ended = session.state().is_final();
            let what = if ended { "session_ended" } else { "no_object" };
            return Err(Refusal::new(what, "It has no state of its own now."));
        };
        let snapshot = self.snapshot(client, id)?;
        let poster = pump::newest_poster(&ring);
        let kept = Kept { id: self.new_id(), kind: Kind::Snapshot, from: Some(id.to_string()), created: now() };
        let name = kept.id.clone();
        let archive = self.archive();
        pump::store_state(&session, &snapshot, poster.as_deref(), &archive, kept).map_err(|e| Refusal::internal(&e))?;
        Ok(name)
    }

    /// What `from` names, as a worker gets it.
    async fn origin(self: &Arc<Hub>, client: &Client, id: &str, shape: Shape) -> Result<Origin, Refusal> {
        if let Some(record) = self.upload(client, id) {
            let count = limits::SNAPSHOT_FRAMES_MAX as u32;
            let job = Job::Pictures { extraction: None, shape, count, last: true };
            return Ok(Origin::Pictures(self.pictures(&record, job).await?));
        }
        let (hub, client, id) = (self.clone(), client.clone(), id.to_string());
        blocking(move || hub.snapshot_origin(&client, &id, shape)).await?
    }

    fn snapshot_origin(&self, client: &Client, id: &str, shape: Shape) -> Result<Origin, Refusal> {
        let unusable =
            |what: &str| Refusal::new("origin_mismatch", format!("from: {what}.")).about("from", "another one");
        let snapshot = self.snapshot(client, id).map_err(|refusal| match refusal.problem.code.as_str() {
            "unknown_session" => refusal.about("from", "a session, stored generation or upload of yours"),
            _ => unusable("it has no snapshot"),
        })?;
        let (width, height) = (snapshot.about.width, snapshot.about.height);
        if (width, height) != (shape.width, shape.height) {
            return Err(unusable(&format!("it has {width}x{height} pixels; width and height must be the same")));
        }
        if snapshot.about.model_hash != self.model_hash() {
            return Err(unusable("it was made by another model"));
        }
        Ok(Origin::Snapshot(freeze(&snapshot)?))
    }

    /// The pictures of a video prompt.
    async fn lead(
        &self,
        client: &Client,
        prompt: &VideoPrompt,
        extraction: Extraction,
        shape: Shape,
        frames: u32,
    ) -> Result<Arc<OwnedFd>, Refusal> {
        let record = self
            .upload(client, &prompt.upload)
            .ok_or_else(|| Refusal::unknown_upload(&prompt.upload).about("video_prompt", "an upload of yours"))?;
        let count = frames.min(limits::PICTURES_MAX);
        self.pictures(&record, Job::Pictures { extraction: Some(extraction), shape, count, last: false }).await
    }

    async fn pictures(&self, record: &Record, job: Job) -> Result<Arc<OwnedFd>, Refusal> {
        let file = self.uploads.files(&record.id).map_err(|e| Refusal::internal(&e))?;
        self.decoders.pictures(file, record.parts.clone(), job).await
    }

    fn refuse_if_draining(&self) -> Result<(), Refusal> {
        match self.is_draining() {
            true => Err(Refusal::new("draining", "The daemon is stopping and starts nothing new.")),
            false => Ok(()),
        }
    }

    /// 32 hexadecimal digits that nobody can guess.
    pub fn new_id(&self) -> String {
        let mut id = [0; 16];
        self.random().fill_bytes(&mut id);
        id.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn new_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// True if the trace says that the session began with somebody else's frames.
fn begins_with_another(snapshot: &Snapshot) -> bool {
    use trace::Change::{Began, Continued};
    let changes = trace::decode(&snapshot.trace).unwrap_or_default();
    matches!(changes[..], [Began { .. }, Continued { .. }, ..] | [Continued { tick: 0, .. }, ..])
}

/// Seconds since 1970 (UTC).
pub fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs())
}

/// Checks the type of a video prompt. Errors: `invalid_field`, `video_prompts_unsupported`.
fn check_video_prompt(prompt: &VideoPrompt, vocabulary: &Vocabulary) -> Result<Extraction, Refusal> {
    let names = Extraction::ALL.map(Extraction::name).join(", ");
    let Some(extraction) = Extraction::from_name(&prompt.kind) else {
        let kind: String = prompt.kind.chars().take(64).collect();
        let detail = format!("video_prompt.type: {kind:?} is not allowed; allowed: {names}.");
        return Err(Refusal::new("invalid_field", detail).about("video_prompt", names));
    };
    let known = |list: &[String]| list.iter().any(|k| k == extraction.name());
    if known(&vocabulary.video_prompts) {
        return if known(&vocabulary.extractions) { Ok(extraction) } else { Err(Refusal::no_pose()) };
    }
    let detail = format!("The model was not trained for video prompts of type {}.", extraction.name());
    let allowed = match vocabulary.video_prompts.is_empty() {
        true => "none: this model takes no video prompts".to_string(),
        false => vocabulary.video_prompts.join(", "),
    };
    Err(Refusal::new("video_prompts_unsupported", detail).about("video_prompt", allowed))
}

/// A copy of a snapshot that no running session changes any more.
fn freeze(snapshot: &Snapshot) -> Result<Arc<OwnedFd>, Refusal> {
    let bytes = snapshot.encode().map_err(|e| Refusal::internal(&e))?;
    Ok(Arc::new(share(&bytes)?))
}

fn share(bytes: &[u8]) -> Result<OwnedFd, Refusal> {
    let memory = SharedMemory::create("gamegend-snapshot", bytes.len()).map_err(|e| Refusal::internal(&e))?;
    memory.write(0, bytes);
    memory.read_only_fd().map_err(|e| Refusal::internal(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_video_prompt_needs_a_model_that_takes_it_and_what_finds_it() {
        let words = |list: &[&str]| list.iter().map(|w| w.to_string()).collect();
        let all = ["canny", "motion_vectors", "pose"];
        let vocabulary = |takes: &[&str], finds: &[&str]| Vocabulary {
            video_prompts: words(takes),
            extractions: words(finds),
            ..Vocabulary::default()
        };
        let check = |kind: &str, vocabulary: &Vocabulary| {
            let prompt = VideoPrompt { kind: kind.to_string(), upload: "x".to_string() };
            check_video_prompt(&prompt, vocabulary).map_err(|r| (r.problem.code.clone(), r.problem.detail.clone()))
        };
        assert_eq!(check("pose", &vocabulary(&all, &all)), Ok(Extraction::Pose));
        let (code, detail) = check("pose", &vocabulary(&all, &all[..2])).expect_err("there is no judge");
        assert!(code == "video_prompts_unsupported" && detail.contains("no pose judge"), "{code}: {detail}");
        let (code, detail) = check("pose", &vocabulary(&all[..1], &all)).expect_err("not trained for it");
        assert!(code == "video_prompts_unsupported" && detail.contains("not trained"), "{code}: {detail}");
        assert_eq!(check("sobel", &vocabulary(&all, &all)).expect_err("no such kind").0, "invalid_field");
    }
}
