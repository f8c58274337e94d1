//! The thread of a session: takes frames out of its ring, encodes each once, shows it, and records stored generations.
//!
//! Interactive sessions jump to the newest frame whenever the thread looks. A stored generation takes every frame in
//! order and says so in the control block, which the worker waits for; so its frames are never overwritten unread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use bytes::Bytes;

use super::encode::{EncodeError, JpegEncoder, LIVE_QUALITY, POSTER_QUALITY};
use super::limits::KEY_FRAME_PAUSE;
use super::live::LiveEncoder;
use super::metrics::Counters;
use super::record::Recorder;
use super::refusal::{Refusal, chain};
use super::session::{Feed, Session, Shown, VideoUnit};
use crate::frame::{FrameMeta, RingError, RingReader, Snapshot, scale};
use crate::proto::api::{Kind, State};
use crate::proto::wire::{FLAG_DEGRADED, FLAG_KEY_FRAME, FRAME_HEADER_BYTES, Format, FrameHeader};
use crate::store::{Draft, Generation, Object, Store, StoreError};

/// Why a session's thread gives up.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    #[error("read frame {tick} of the ring")]
    Ring { tick: u64, source: RingError },
    #[error("frame {0} was lost")]
    Lost(u64),
    #[error("the worker ended the generation after {found} of {wanted} frames")]
    Short { found: u64, wanted: u64 },
    #[error("encode a frame")]
    Encode(#[from] EncodeError),
    #[error("store the generation")]
    Store(#[from] StoreError),
    #[error("write the state of the session")]
    State(#[from] RingError),
    #[error("write an object of the generation")]
    Write(#[source] std::io::Error),
}

/// Where finished generations go and what is told about the model that made them.
pub struct Archive {
    pub store: Arc<dyn Store>,
    pub model_hash: Box<dyn Fn() -> String + Send>,
}

/// Runs until the session has ended. Blocks: this is the whole thread.
pub fn run(session: &Session, told: &Receiver<Feed>, archive: &Archive) {
    let outcome = match session.spec.frames {
        Some(frames) => record(session, told, archive, u64::from(frames)),
        None => follow(session, told, archive),
    };
    if let Err(error) = outcome {
        let text = chain(&error);
        let refusal = Refusal::new("recording_failed", format!("{text}."));
        if session.end(State::Failed, "failed", Some(refusal)) {
            log::error!("session {}: {text}", session.spec.id);
        }
    }
}

/// Encodes frames for viewers.
struct Screen {
    encoder: JpegEncoder,
    picture: Vec<u8>,
    degraded: bool,
    /// Of the newest frame that was shown.
    size_px: (u32, u32),
    /// Made for the first viewer that takes H.264; dropped with the last.
    video: Option<Video>,
}

struct Video {
    encoder: LiveEncoder,
    /// Of its pictures: one of another size needs another encoder, which begins with a key frame.
    size_px: (u32, u32),
    key_at: Option<Instant>,
    /// Tick of the newest unit.
    tick: Option<u64>,
}

impl Screen {
    fn new() -> Result<Screen, EncodeError> {
        let encoder = JpegEncoder::new(LIVE_QUALITY)?;
        Ok(Screen { encoder, picture: Vec::new(), degraded: false, size_px: (u32::MAX, u32::MAX), video: None })
    }

    /// Copies a frame out of the ring into `self.picture`.
    fn take(&mut self, ring: &RingReader, tick: u64) -> Result<FrameMeta, RingError> {
        ring.read(tick, &mut self.picture)
    }

    /// Shows `self.picture`, if anybody looks.
    fn show(&mut self, session: &Session, meta: &FrameMeta) -> Result<(), EncodeError> {
        let (degraded, size_px) = (meta.flags & FLAG_DEGRADED != 0, size_of(meta));
        if degraded && (!self.degraded || size_px.0 < self.size_px.0) {
            session.degraded(&reason(session, size_px));
        }
        (self.degraded, self.size_px) = (degraded, size_px);
        if session.has_jpeg_viewers() {
            let jpeg = self.encoder.encode(&self.picture, size_px.0, size_px.1)?;
            Counters::add(&session.counters.jpeg_frames, 1);
            session.show(Shown { message: message(meta, Format::Jpeg, true, &jpeg) });
        }
        match session.has_video_viewers() {
            true => self.show_video(session, meta),
            false => {
                self.video = None;
                Ok(())
            }
        }
    }

    fn show_video(&mut self, session: &Session, meta: &FrameMeta) -> Result<(), EncodeError> {
        let size_px = size_of(meta);
        self.video.take_if(|video| video.size_px != size_px);
        let video = match &mut self.video {
            Some(video) => video,
            none => none.insert(Video {
                encoder: LiveEncoder::new(size_px.0, size_px.1, session.spec.fps)?,
                size_px,
                key_at: None,
                tick: None,
            }),
        };
        let rested = video.key_at.is_none_or(|at| at.elapsed() >= KEY_FRAME_PAUSE);
        let wanted = rested && session.take_key_wanted();
        // The same picture again helps only a viewer that has none yet.
        if video.tick == Some(meta.tick) && !wanted {
            return Ok(());
        }
        let mut unit = Vec::new();
        let Some(key) = video.encoder.encode(&self.picture, wanted, &mut unit)? else { return Ok(()) };
        Counters::add(&session.counters.video_frames, 1);
        video.tick = Some(meta.tick);
        if key {
            video.key_at = Some(Instant::now());
        }
        session.show_video(VideoUnit { message: message(meta, Format::H264, key, &unit), key });
        Ok(())
    }
}

/// Width and height of a frame's picture.
fn size_of(meta: &FrameMeta) -> (u32, u32) {
    (meta.width.into(), meta.height.into())
}

/// Why frames are of lower quality, for viewers.
fn reason(session: &Session, (width, height): (u32, u32)) -> String {
    let asked = (session.spec.width, session.spec.height);
    if (width, height) == asked {
        return "the device cannot keep up at full quality".to_string();
    }
    format!("the device cannot keep up: {width} x {height} pixels instead of {} x {}", asked.0, asked.1)
}

/// Header and payload of one frame.
fn message(meta: &FrameMeta, format: Format, key: bool, payload: &[u8]) -> Bytes {
    let header = FrameHeader {
        format,
        tick: meta.tick,
        time_us: meta.time_us,
        seq: meta.seq,
        width: meta.width,
        height: meta.height,
        payload_bytes: payload.len() as u32,
        flags: if key { meta.flags | FLAG_KEY_FRAME } else { meta.flags & !FLAG_KEY_FRAME },
    };
    let mut message = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    message.extend_from_slice(&header.encode());
    message.extend_from_slice(payload);
    Bytes::from(message)
}

/// The thread of an interactive session: the newest frame, whenever somebody looks.
fn follow(session: &Session, told: &Receiver<Feed>, archive: &Archive) -> Result<(), PumpError> {
    let mut screen = Screen::new()?;
    let mut ring: Option<RingReader> = None;
    // Newest frame that was counted, and newest that was shown, of this ring.
    let (mut counted, mut shown) = (None, None);
    while let Ok(first) = told.recv() {
        let mut next = Ok(first);
        let mut stop = false;
        while let Ok(feed) = next {
            match feed {
                Feed::Ring(opened) => {
                    session.resumed();
                    ring = Some(*opened);
                    (counted, shown) = (None, None);
                }
                Feed::Finished | Feed::Stop => stop = true,
                Feed::Frame | Feed::Wake => {}
            }
            next = told.try_recv();
        }
        if let Some(ring) = &ring {
            look(session, &mut screen, ring, &mut counted, &mut shown)?;
        }
        if stop || matches!(next, Err(TryRecvError::Disconnected)) {
            if let Some(ring) = &ring {
                keep(session, &mut screen, ring, archive);
            }
            session.end(State::Done, "the worker closed the session", None);
            return Ok(());
        }
    }
    Ok(())
}

/// Keeps the last state of an interactive session: in memory for those who go on from it now, in the store for later.
fn keep(session: &Session, screen: &mut Screen, ring: &RingReader, archive: &Archive) {
    let Some(snapshot) = ring.snapshot().ok().filter(|_| !session.is_forgotten()) else { return };
    let newest = ring.newest().and_then(|tick| screen.take(ring, tick).ok());
    let poster = newest.and_then(|meta| poster_of(&meta, &screen.picture).ok());
    let stored = snapshot.encode().map_err(PumpError::from).and_then(|bytes| {
        session.keep_snapshot(bytes);
        store_state(session, &snapshot, poster.as_deref(), archive, Kept::itself(session))
    });
    match stored {
        Ok(()) => session.was_stored(),
        Err(e) => log::warn!("session {}: its last state is not stored: {}", session.spec.id, chain(&e)),
    }
}

fn poster_of(meta: &FrameMeta, i420: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let (width, height) = size_of(meta);
    Ok(JpegEncoder::new(POSTER_QUALITY)?.encode(i420, width, height)?.to_vec())
}

/// A poster of the newest frame in the ring of a session that runs.
pub fn newest_poster(ring: &Arc<std::os::fd::OwnedFd>) -> Option<Vec<u8>> {
    let ring = RingReader::open(ring.try_clone().ok()?).ok()?;
    let mut picture = Vec::new();
    let meta = ring.read(ring.newest()?, &mut picture).ok()?;
    poster_of(&meta, &picture).ok()
}

/// As what a state is kept.
pub struct Kept {
    pub id: String,
    pub kind: Kind,
    pub from: Option<String>,
    pub created: u64,
}

impl Kept {
    fn itself(session: &Session) -> Kept {
        let spec = &session.spec;
        Kept { id: spec.id.clone(), kind: Kind::Session, from: spec.from.clone(), created: spec.created }
    }
}

/// Writes the state of a session into the store. Blocks: until it is on the disk.
pub fn store_state(
    session: &Session,
    snapshot: &Snapshot,
    poster: Option<&[u8]>,
    archive: &Archive,
    kept: Kept,
) -> Result<(), PumpError> {
    let mut draft = archive.store.begin(&kept.id)?;
    write_object(&mut draft, Object::Snapshot, &snapshot.encode()?)?;
    if let Some(poster) = poster {
        write_object(&mut draft, Object::Poster, poster)?;
    }
    write_origin(&mut draft, session)?;
    let frames = u32::try_from(snapshot.about.tick.saturating_add(1)).unwrap_or(u32::MAX);
    let generation = Generation {
        id: kept.id,
        kind: kept.kind,
        from: kept.from,
        created: kept.created,
        ..describe(session, frames, snapshot.about.model_hash.clone())
    };
    Ok(archive.store.commit(draft, generation)?)
}

/// What is told about a session in the store; without a video.
fn describe(session: &Session, frames: u32, model_hash: String) -> Generation {
    let spec = &session.spec;
    Generation {
        id: spec.id.clone(),
        owner: spec.owner.clone(),
        prompt: spec.prompt.clone(),
        perspective: spec.perspective.clone(),
        width: spec.width,
        height: spec.height,
        fps: spec.fps,
        frames,
        steps: spec.steps,
        seed: spec.seed,
        model_hash,
        created: spec.created,
        video_bytes: 0,
        kind: spec.kind,
        from: spec.from.clone(),
        video_prompt: spec.video_prompt.clone(),
    }
}

fn write_object(draft: &mut Draft, object: Object, bytes: &[u8]) -> Result<(), PumpError> {
    let mut file = draft.create(object)?;
    std::io::Write::write_all(&mut file, bytes).map_err(PumpError::Write)
}

/// Without what it began with, a session that continues another one could not be made again.
fn write_origin(draft: &mut Draft, session: &Session) -> Result<(), PumpError> {
    let Some(origin) = session.inputs().origin else { return Ok(()) };
    let from = std::fs::File::from(origin.fd().try_clone().map_err(PumpError::Write)?);
    let mut bytes = vec![0; from.metadata().map_err(PumpError::Write)?.len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(&from, &mut bytes, 0).map_err(PumpError::Write)?;
    write_object(draft, Object::Origin, &bytes)
}

/// Counts the frames since the last look and shows the newest.
fn look(
    session: &Session,
    screen: &mut Screen,
    ring: &RingReader,
    counted: &mut Option<u64>,
    shown: &mut Option<u64>,
) -> Result<(), PumpError> {
    let Some(newest) = ring.newest() else { return Ok(()) };
    let first = counted.map_or(newest, |tick| tick + 1);
    // Frames in between are read only if a player waits to hear which control they reflect.
    let between = if session.awaits_a_control() { first } else { newest.max(first) };
    for tick in between..newest {
        if let Ok(meta) = screen.take(ring, tick) {
            session.frame_arrived(tick + 1, meta.seq);
        }
    }
    let due = session.has_viewers() && *shown != Some(newest);
    if first > newest && !due {
        return Ok(());
    }
    match screen.take(ring, newest) {
        Ok(meta) => {
            if first <= newest {
                session.frame_arrived(newest + 1, meta.seq);
                *counted = Some(newest);
            }
            if due {
                screen.show(session, &meta)?;
                *shown = Some(newest);
            }
        }
        // A newer one is on its way and will be told.
        Err(RingError::Overwritten | RingError::NotYet) => {}
        Err(source) => return Err(PumpError::Ring { tick: newest, source }),
    }
    Ok(())
}

/// A recording that runs.
struct Recording<'a> {
    session: &'a Session,
    screen: Screen,
    recorder: Recorder,
    draft: Draft,
    ring: Option<Box<RingReader>>,
    /// Next tick to record; frames that a restarted worker makes again are below it.
    expected: u64,
    frames: u64,
    poster_tick: u64,
    /// Where the newest frame is in `screen`, for viewers who join later.
    newest: Option<FrameMeta>,
}

/// The thread of a stored generation: every frame, in order, then the store.
fn record(session: &Session, told: &Receiver<Feed>, archive: &Archive, frames: u64) -> Result<(), PumpError> {
    let mut draft = archive.store.begin(&session.spec.id)?;
    let file = draft.create(Object::Video)?;
    let spec = &session.spec;
    let mut recording = Recording {
        session,
        screen: Screen::new()?,
        recorder: Recorder::new(file, spec.width, spec.height, spec.fps)?,
        draft,
        ring: None,
        expected: 0,
        frames,
        poster_tick: frames / 2,
        newest: None,
    };
    while let Ok(feed) = told.recv() {
        match feed {
            Feed::Ring(opened) => {
                // What the last worker left in its ring is as good as what this one would make again.
                recording.drain()?;
                session.resumed();
                recording.ring = Some(opened);
            }
            Feed::Frame => recording.drain()?,
            Feed::Wake => {
                if let Some(meta) = recording.newest {
                    recording.screen.show(session, &meta)?;
                }
            }
            Feed::Finished => {
                recording.drain()?;
                return recording.finish(archive);
            }
            // The draft goes with the recording, and the partial file with the draft.
            Feed::Stop => return Ok(()),
        }
    }
    Ok(())
}

impl Recording<'_> {
    /// Records every frame that is in the ring and was not recorded yet.
    fn drain(&mut self) -> Result<(), PumpError> {
        let Some(ring) = self.ring.take() else { return Ok(()) };
        let drained = self.drain_from(&ring);
        self.ring = Some(ring);
        drained
    }

    fn drain_from(&mut self, ring: &RingReader) -> Result<(), PumpError> {
        while self.expected < self.frames && ring.newest().is_some_and(|newest| self.expected <= newest) {
            if self.session.state().is_final() {
                return Ok(());
            }
            let tick = self.expected;
            let meta = match self.screen.take(ring, tick) {
                Ok(meta) => meta,
                Err(RingError::NotYet) => return Ok(()),
                Err(RingError::Overwritten) => return Err(PumpError::Lost(tick)),
                Err(source) => return Err(PumpError::Ring { tick, source }),
            };
            self.add(&meta)?;
            if tick == self.poster_tick {
                self.poster(&meta)?;
            }
            self.expected = tick + 1;
            self.session.consumed(self.expected);
            self.session.frame_arrived(self.expected, meta.seq);
            self.screen.show(self.session, &meta)?;
            self.newest = Some(meta);
        }
        Ok(())
    }

    /// Records the picture in `screen`. A video has one size: where the replay of a session has smaller pictures, they
    /// are scaled to it.
    fn add(&mut self, meta: &FrameMeta) -> Result<(), PumpError> {
        let (size, whole) = (size_of(meta), (self.session.spec.width, self.session.spec.height));
        if size == whole {
            return Ok(self.recorder.add(&self.screen.picture)?);
        }
        Ok(self.recorder.add(&scale::i420(&self.screen.picture, size, whole))?)
    }

    fn poster(&mut self, meta: &FrameMeta) -> Result<(), PumpError> {
        let jpeg = poster_of(meta, &self.screen.picture)?;
        write_object(&mut self.draft, Object::Poster, &jpeg)
    }

    fn finish(mut self, archive: &Archive) -> Result<(), PumpError> {
        if self.expected < self.frames {
            if self.session.state().is_final() {
                return Ok(());
            }
            return Err(PumpError::Short { found: self.expected, wanted: self.frames });
        }
        let snapshot = self.ring.as_ref().map(|ring| ring.snapshot().and_then(|s| s.encode()));
        match snapshot {
            Some(Ok(bytes)) => write_object(&mut self.draft, Object::Snapshot, &bytes)?,
            Some(Err(e)) => log::warn!("session {}: cannot be continued: {}", self.session.spec.id, chain(&e)),
            None => {}
        }
        write_origin(&mut self.draft, self.session)?;
        let video_bytes = self.recorder.finish()?;
        let described = describe(self.session, self.frames as u32, (archive.model_hash)());
        let generation = Generation { video_bytes, ..described };
        archive.store.commit(self.draft, generation)?;
        self.session.end(State::Done, "done", None);
        Ok(())
    }
}
