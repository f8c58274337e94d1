//! The thread of a session: takes frames out of its ring, encodes each once, shows it, and records stored generations.
//!
//! Interactive sessions jump to the newest frame whenever the thread looks. A stored generation takes every frame in
//! order and says so in the control block, which the worker waits for; so its frames are never overwritten unread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use bytes::Bytes;

use super::encode::{EncodeError, JpegEncoder, LIVE_QUALITY, POSTER_QUALITY};
use super::record::Recorder;
use super::refusal::{Refusal, chain};
use super::session::{Feed, Session, Shown};
use crate::frame::{FrameMeta, RingError, RingReader};
use crate::proto::api::State;
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
        None => follow(session, told),
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
}

impl Screen {
    fn new() -> Result<Screen, EncodeError> {
        Ok(Screen { encoder: JpegEncoder::new(LIVE_QUALITY)?, picture: Vec::new(), degraded: false })
    }

    /// Copies a frame out of the ring into `self.picture`.
    fn take(&mut self, ring: &RingReader, tick: u64) -> Result<FrameMeta, RingError> {
        ring.read(tick, &mut self.picture)
    }

    /// Shows `self.picture`, if anybody looks.
    fn show(&mut self, session: &Session, meta: &FrameMeta) -> Result<(), EncodeError> {
        let degraded = meta.flags & FLAG_DEGRADED != 0;
        if degraded && !self.degraded {
            session.degraded("the device cannot keep up at full quality");
        }
        self.degraded = degraded;
        if !session.has_viewers() {
            return Ok(());
        }
        let (width, height) = (session.spec.width, session.spec.height);
        let jpeg = self.encoder.encode(&self.picture, width, height)?;
        let header = FrameHeader {
            format: Format::Jpeg,
            tick: meta.tick,
            time_us: meta.time_us,
            seq: meta.seq,
            // Checked against the limits when the session was made.
            width: width as u16,
            height: height as u16,
            payload_bytes: jpeg.len() as u32,
            flags: meta.flags | FLAG_KEY_FRAME,
        };
        let mut message = Vec::with_capacity(FRAME_HEADER_BYTES + jpeg.len());
        message.extend_from_slice(&header.encode());
        message.extend_from_slice(&jpeg);
        session.show(Shown { message: Bytes::from(message) });
        Ok(())
    }
}

/// The thread of an interactive session: the newest frame, whenever somebody looks.
fn follow(session: &Session, told: &Receiver<Feed>) -> Result<(), PumpError> {
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
            if let Some(Ok(bytes)) = ring.map(|r| r.snapshot().and_then(|s| s.encode())) {
                session.keep_snapshot(bytes);
            }
            session.end(State::Done, "the worker closed the session", None);
            return Ok(());
        }
    }
    Ok(())
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
            self.recorder.add(&self.screen.picture)?;
            if tick == self.poster_tick {
                self.poster()?;
            }
            self.expected = tick + 1;
            self.session.consumed(self.expected);
            self.session.frame_arrived(self.expected, meta.seq);
            self.screen.show(self.session, &meta)?;
            self.newest = Some(meta);
        }
        Ok(())
    }

    fn poster(&mut self) -> Result<(), PumpError> {
        let spec = &self.session.spec;
        let jpeg = JpegEncoder::new(POSTER_QUALITY)?.encode(&self.screen.picture, spec.width, spec.height)?;
        self.write(Object::Poster, &jpeg)
    }

    fn write(&mut self, object: Object, bytes: &[u8]) -> Result<(), PumpError> {
        let mut file = self.draft.create(object)?;
        std::io::Write::write_all(&mut file, bytes).map_err(PumpError::Write)
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
            Some(Ok(bytes)) => self.write(Object::Snapshot, &bytes)?,
            Some(Err(e)) => log::warn!("session {}: cannot be continued: {}", self.session.spec.id, chain(&e)),
            None => {}
        }
        let video_bytes = self.recorder.finish()?;
        let spec = &self.session.spec;
        let generation = Generation {
            id: spec.id.clone(),
            owner: spec.owner.clone(),
            prompt: spec.prompt.clone(),
            perspective: spec.perspective.clone(),
            width: spec.width,
            height: spec.height,
            fps: spec.fps,
            frames: self.frames as u32,
            steps: spec.steps,
            seed: spec.seed,
            model_hash: (archive.model_hash)(),
            created: std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs()),
            video_bytes,
        };
        archive.store.commit(self.draft, generation)?;
        self.session.end(State::Done, "done", None);
        Ok(())
    }
}
