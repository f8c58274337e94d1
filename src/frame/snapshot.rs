//! A session as a value: what another worker needs to go on, and how the session came to be as it is.
//!
//! A snapshot holds the newest latents, never caches, which are computed again. It lies in the ring's memory, so it is
//! there after the worker that wrote it was killed. The same bytes as a file are a snapshot too: either a copy of the
//! ring's first part or [`Snapshot::encode`]'s record.
//!
//! ```text
//!  0  magic, version u32, about bytes u32, trace bytes u32, pairs u32, elements of a latent u32
//! 28  width u16, height u16 of the latents' pictures (0 x 0: those of about), checksum u64
//! 40  about (postcard) | trace | keys u8 x pairs | latents f32 x elements x pairs, oldest first
//! ```

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::RingError;
use super::control::TapCounts;
use super::layout::{self, Geometry, HEADER_USED, LOCK_BYTES, SNAPSHOT_BYTES_MAX};
use crate::proto::keys::Keys;
use crate::proto::limits;
use crate::proto::link::Environment;

const MAGIC: &[u8; 8] = b"GGSNAP01";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 40;
/// Prompt, instruction and words in UTF-8, four bytes a character at the most, and the numbers around them.
pub const ABOUT_BYTES_MAX: usize = 4 * (limits::PROMPT_CHARS_MAX + limits::INSTRUCTION_CHARS_MAX) + 4096;
/// Room for the session's trace.
pub const TRACE_BYTES_MAX: usize = 256 * 1024;

/// Everything of a snapshot that is not a latent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub model_hash: String,
    /// Executor and precision, in words: the tier of the session value.
    pub device: String,
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    pub steps: u32,
    pub seed: u64,
    pub prompt: String,
    pub perspective: Option<String>,
    /// Tick of the newest frame.
    pub tick: u64,
    /// `seq` that the newest frame reflects.
    pub seq: u32,
    /// Keys of the newest frame.
    pub keys: Keys,
    /// Presses that were already acted on.
    pub taps: TapCounts,
    pub environment: Environment,
    pub instruction: Option<String>,
    /// Changes that no longer fit the trace: 0 if the trace reaches back to the session's beginning.
    pub trace_dropped: u64,
}

/// A snapshot, read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub about: About,
    /// What changed at which tick, as the worker writes it.
    pub trace: Vec<u8>,
    /// Width and height of the latents' pictures: smaller than those that were asked for while the device had too much
    /// to do.
    pub size_px: (u32, u32),
    /// Latents with the keys that made them, oldest first.
    pub history: Vec<(Vec<f32>, Keys)>,
}

/// The newest latents of a session, in memory that is allocated once.
#[derive(Clone, Debug)]
pub struct History {
    size_px: (u32, u32),
    elements: usize,
    latents: Vec<f32>,
    keys: [Keys; limits::SNAPSHOT_FRAMES_MAX],
    /// Latents ever pushed.
    count: usize,
}

impl History {
    /// Room for [`limits::SNAPSHOT_FRAMES_MAX`] latents of `elements` values, of pictures of `size_px` (width, height).
    pub fn new(elements: usize, size_px: (u32, u32)) -> History {
        let latents = vec![0.0; elements * limits::SNAPSHOT_FRAMES_MAX];
        History { size_px, elements, latents, keys: [Keys::NONE; limits::SNAPSHOT_FRAMES_MAX], count: 0 }
    }

    /// Adds the newest latent; the oldest goes. Panics if the length is another than that of `new`.
    pub fn push(&mut self, latent: &[f32], keys: Keys) {
        let i = self.count % limits::SNAPSHOT_FRAMES_MAX;
        self.latents[i * self.elements..(i + 1) * self.elements].copy_from_slice(latent);
        self.keys[i] = keys;
        self.count += 1;
    }

    /// Width and height of the latents' pictures.
    pub fn size_px(&self) -> (u32, u32) {
        self.size_px
    }

    pub fn len(&self) -> usize {
        self.count.min(limits::SNAPSHOT_FRAMES_MAX)
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The latents, oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[f32], Keys)> + Clone {
        let first = self.count - self.len();
        (0..self.len()).map(move |k| {
            let i = (first + k) % limits::SNAPSHOT_FRAMES_MAX;
            (&self.latents[i * self.elements..(i + 1) * self.elements], self.keys[i])
        })
    }
}

/// Bytes that a snapshot of full length needs at the most.
pub(super) fn record_bytes_max(latent_elements: usize) -> usize {
    HEAD_BYTES + ABOUT_BYTES_MAX + TRACE_BYTES_MAX + limits::SNAPSHOT_FRAMES_MAX * (1 + 4 * latent_elements)
}

/// FNV-1a over 8-byte words: it need only notice damage, and must not take longer than the copy.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |h: u64, word: u64| (h ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    let mut words = bytes.chunks_exact(8);
    let mut h = step(0xcbf2_9ce4_8422_2325, bytes.len() as u64);
    for w in &mut words {
        h = step(h, u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]));
    }
    words.remainder().iter().fold(h, |h, b| step(h, u64::from(*b)))
}

/// What the size adds to the checksum of the rest; nothing if there is none, as in records of earlier versions.
fn seal([width, height]: [u16; 2]) -> u64 {
    (u64::from(width) << 16 | u64::from(height)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn damaged(what: impl Into<String>) -> RingError {
    RingError::Snapshot { what: what.into() }
}

/// Replaces `out` with the record of a snapshot. `size_px`: of the latents' pictures.
pub(super) fn encode_into<'a>(
    out: &mut Vec<u8>,
    (about, size_px): (&About, (u32, u32)),
    trace: &[u8],
    history: impl ExactSizeIterator<Item = (&'a [f32], Keys)> + Clone,
) -> Result<(), RingError> {
    out.clear();
    out.resize(HEAD_BYTES + ABOUT_BYTES_MAX, 0);
    let about_bytes = postcard::to_slice(about, &mut out[HEAD_BYTES..])
        .map_err(|_| damaged(format!("more than {ABOUT_BYTES_MAX} bytes of text")))?
        .len();
    out.truncate(HEAD_BYTES + about_bytes);
    out.extend_from_slice(trace);
    let pairs = history.len();
    let elements = history.clone().next().map_or(0, |(latent, _)| latent.len());
    out.extend(history.clone().map(|(_, keys)| keys.0));
    for (latent, _) in history {
        out.extend(latent.iter().flat_map(|v| v.to_le_bytes()));
    }
    out[0..8].copy_from_slice(MAGIC);
    let numbers = [VERSION as usize, about_bytes, trace.len(), pairs, elements];
    for (i, v) in numbers.into_iter().enumerate() {
        let v = u32::try_from(v).map_err(|_| damaged(format!("a part of {v} bytes")))?;
        out[8 + 4 * i..12 + 4 * i].copy_from_slice(&v.to_le_bytes());
    }
    let [width, height] = [size_px.0, size_px.1].map(|side| u16::try_from(side).unwrap_or(0));
    out[28..30].copy_from_slice(&width.to_le_bytes());
    out[30..32].copy_from_slice(&height.to_le_bytes());
    let sum = checksum(&out[HEAD_BYTES..]) ^ seal([width, height]);
    out[32..40].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// Sizes of a record, from a head of unknown origin.
struct Head {
    about: usize,
    trace: usize,
    pairs: usize,
    elements: usize,
    size_px: (u32, u32),
    checksum: u64,
}

impl Head {
    fn decode(b: &[u8; HEAD_BYTES]) -> Result<Head, RingError> {
        let magic = [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]];
        if &magic != MAGIC {
            return Err(RingError::Magic { wanted: "snapshot", found: magic });
        }
        let word = |i: usize| u32::from_le_bytes([b[8 + 4 * i], b[9 + 4 * i], b[10 + 4 * i], b[11 + 4 * i]]);
        if word(0) != VERSION {
            return Err(RingError::Version { wanted: "snapshot", found: word(0), known: VERSION });
        }
        let [about, trace, pairs, elements] = [1, 2, 3, 4].map(|i| word(i) as usize);
        for (field, value, max) in [
            ("bytes of text", about, ABOUT_BYTES_MAX),
            ("bytes of trace", trace, TRACE_BYTES_MAX),
            ("latents", pairs, limits::SNAPSHOT_FRAMES_MAX),
            ("elements of a latent", elements, SNAPSHOT_BYTES_MAX / 4 / limits::SNAPSHOT_FRAMES_MAX),
        ] {
            if value > max {
                return Err(RingError::Field { field, value: value as u64, allowed: format!("at most {max}") });
            }
        }
        let sides = [u16::from_le_bytes([b[28], b[29]]), u16::from_le_bytes([b[30], b[31]])];
        let size_px = (u32::from(sides[0]), u32::from(sides[1]));
        let legal = limits::WIDTH_PX.contains(&size_px.0) && limits::HEIGHT_PX.contains(&size_px.1);
        if size_px != (0, 0) && !(legal && size_px.0.is_multiple_of(2) && size_px.1.is_multiple_of(2)) {
            return Err(damaged(format!("latents of {} x {} pixels", size_px.0, size_px.1)));
        }
        let sealed = u64::from_le_bytes([b[32], b[33], b[34], b[35], b[36], b[37], b[38], b[39]]);
        let checksum = sealed ^ seal(sides);
        Ok(Head { about, trace, pairs, elements, size_px, checksum })
    }

    fn body_bytes(&self) -> usize {
        self.about + self.trace + self.pairs * (1 + 4 * self.elements)
    }
}

impl Snapshot {
    /// The snapshot as bytes for a file.
    pub fn encode(&self) -> Result<Vec<u8>, RingError> {
        let mut out = Vec::new();
        let history = self.history.iter().map(|(latent, keys)| (latent.as_slice(), *keys));
        encode_into(&mut out, (&self.about, self.size_px), &self.trace, history)?;
        Ok(out)
    }

    fn decode(head: &Head, body: &[u8]) -> Result<Snapshot, RingError> {
        if checksum(body) != head.checksum {
            return Err(damaged("the checksum does not match"));
        }
        let (about, rest) = body.split_at(head.about);
        let (trace, rest) = rest.split_at(head.trace);
        let (keys, latents) = rest.split_at(head.pairs);
        let about: About = postcard::from_bytes(about).map_err(|_| damaged("its text cannot be read"))?;
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let latents = latents.chunks_exact((4 * head.elements).max(1)).map(floats);
        let history: Vec<(Vec<f32>, Keys)> = latents.zip(keys.iter().map(|k| Keys(*k))).collect();
        if history.iter().any(|(latent, _)| latent.iter().any(|v| !v.is_finite())) {
            return Err(damaged("a latent is not a number"));
        }
        let asked = (about.width, about.height);
        let size_px = if head.size_px == (0, 0) { asked } else { head.size_px };
        Ok(Snapshot { about, trace: trace.to_vec(), size_px, history })
    }

    /// Reads the newest snapshot out of a ring, a copy of a ring's first part, or a file that [`Snapshot::encode`]
    /// filled. Nothing is mapped: a file that shrinks meanwhile is an error, not a fault.
    ///
    /// Errors: `NoSnapshot` if the ring has none that is whole; what is wrong with the bytes otherwise.
    pub fn read_fd(fd: impl AsFd) -> Result<Snapshot, RingError> {
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        let mut magic = [0; 8];
        read(&file, 0, &mut magic)?;
        if &magic != layout::MAGIC {
            return read_record(&file, 0, SNAPSHOT_BYTES_MAX);
        }
        let mut header = [0; HEADER_USED];
        read(&file, 0, &mut header)?;
        let geometry = Geometry::decode(&header)?;
        let lock_of = |buffer: usize| -> Result<u64, RingError> {
            let mut lock = [0; 8];
            read(&file, geometry.snapshot_at(buffer), &mut lock)?;
            Ok(u64::from_le_bytes(lock))
        };
        // The writer may be at work: each buffer is good only if its lock is even and the same afterwards.
        let mut error = RingError::NoSnapshot;
        for _ in 0..READ_TRIES {
            let locks = [lock_of(0)?, lock_of(1)?];
            let mut order = [0, 1];
            order.sort_by_key(|i| std::cmp::Reverse(locks[*i]));
            for buffer in order.into_iter().filter(|i| locks[*i] != 0 && locks[*i] % 2 == 0) {
                let at = geometry.snapshot_at(buffer) + LOCK_BYTES;
                let snapshot = read_record(&file, at, geometry.snapshot_bytes() - LOCK_BYTES);
                match snapshot {
                    Ok(snapshot) if lock_of(buffer)? == locks[buffer] => return Ok(snapshot),
                    Ok(_) => {}
                    Err(e) => error = e,
                }
            }
        }
        Err(error)
    }
}

/// A reader loses a race only against a snapshot a second; a few tries are plenty.
const READ_TRIES: usize = 4;

fn read(file: &File, at: usize, out: &mut [u8]) -> Result<(), RingError> {
    file.read_exact_at(out, at as u64).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            let found = file.metadata().map_or(0, |m| m.len());
            RingError::Truncated { found, needed: (at + out.len()) as u64 }
        }
        _ => RingError::Memory(e),
    })
}

fn read_record(file: &File, at: usize, room: usize) -> Result<Snapshot, RingError> {
    let mut head = [0; HEAD_BYTES];
    read(file, at, &mut head)?;
    let head = Head::decode(&head)?;
    if HEAD_BYTES + head.body_bytes() > room {
        return Err(damaged(format!("{} bytes, there is room for {room}", head.body_bytes())));
    }
    // Checked before anything is allocated: a short file cannot ask for much memory.
    let (found, needed) = (file.metadata()?.len(), (at + HEAD_BYTES + head.body_bytes()) as u64);
    if found < needed {
        return Err(RingError::Truncated { found, needed });
    }
    let mut body = vec![0; head.body_bytes()];
    read(file, at + HEAD_BYTES, &mut body)?;
    Snapshot::decode(&head, &body)
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
