//! The `decoder` role: pictures of a file that somebody sent, in a process that lives for one job.
//!
//! ```text
//!   api --"a decoder, please"--> parent --starts--> decoder
//!   api <------------- job, file; answer, memory object ---> decoder
//! ```
//!
//! What comes from a client is decoded here and nowhere else. The process has no network, opens no file, may use a
//! bounded amount of memory and processor time, and ends with its answer; if a file breaks a decoder, it breaks this
//! process, and its client is told that the file cannot be read.

mod clip;
mod extract;
mod scale;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::sys::resource::{Resource, rlim_t, setrlimit};

use crate::config::Config;
use crate::exit::{Exit, chain};
use crate::frame::PicturesWriter;
use crate::model::ModelError;
use crate::proto::decode::{About, FromDecoder, Job, JudgeFiles, Shape, ToDecoder};
use crate::proto::limits;
use crate::proto::link::build_id;
use crate::sys::link::Link;
use crate::sys::sandbox::{self, Role};
use crate::sys::shm::SharedMemory;
use clip::{Clip, Picture};
use extract::Extractor;

/// Variable by which the parent, if it is root, tells which user the process becomes.
pub use crate::sys::sandbox::DECODER_USER_VARIABLE;

/// Address space: the upload, the largest block of pictures twice, and what decoders keep.
const MEMORY_BYTES_MAX: rlim_t = 2 << 30;
/// Its limit by the name that each system has for it (getrlimit(2)).
#[cfg(target_os = "linux")]
const MEMORY: Resource = Resource::RLIMIT_AS;
#[cfg(target_os = "freebsd")]
const MEMORY: Resource = Resource::RLIMIT_VMEM;
/// Processor time; a job that takes longer is no clip of ten seconds.
const CPU_SECONDS_MAX: rlim_t = 20;
/// Bytes of a video of which one frame is wanted.
const VIDEO_BYTES_MAX: usize = 512 << 20;
/// Quality of previews and posters, 1 to 100.
const PREVIEW_QUALITY: i32 = 85;

/// Why a job ends without what was wanted.
#[derive(Debug, thiserror::Error)]
enum DecodeError {
    /// What is wrong with the file.
    #[error("{0}")]
    File(String),
    #[error("there is no picture {asked}, the last one is {last}")]
    NoPicture { asked: u32, last: u32 },
    #[error("no pose judge came from the parent")]
    NoJudge,
    #[error("use the pose judge")]
    Judge(#[source] ModelError),
    #[error("make room for pictures")]
    Memory(#[from] crate::frame::RingError),
    #[error("share pictures")]
    System(#[from] std::io::Error),
}

/// Runs the role: enters its sandbox, does the one job that comes over `link` and ends.
pub fn run(link: Link) -> ExitCode {
    let judge = match inherited_judge() {
        Ok(judge) => judge,
        Err(e) => {
            log::error!("read the pose judge: {e}");
            return Exit::Software.into();
        }
    };
    // Without what the parent says the process stays who it is; root never is an answer.
    let mut config = Config::default();
    if let Ok(user) = std::env::var(DECODER_USER_VARIABLE) {
        config.worker.user = user;
    }
    let limited = [(MEMORY, MEMORY_BYTES_MAX), (Resource::RLIMIT_CPU, CPU_SECONDS_MAX)]
        .into_iter()
        .try_for_each(|(resource, max)| setrlimit(resource, max, max));
    if let Err(e) = limited {
        log::error!("limit memory and processor time: {e}");
        return Exit::Os.into();
    }
    let fenced =
        sandbox::enter(Role::Decoder, &mut config).and_then(|mut protections| protections.narrow(&[], &[link.as_fd()]));
    if let Err(e) = fenced {
        log::error!("{e}");
        return Exit::Os.into();
    }
    serve(&link, judge.as_ref())
}

/// What the parent left on standard input: nothing, or the files of the pose judge.
fn inherited_judge() -> std::io::Result<Option<JudgeFiles>> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(limits::JUDGE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    // As every other role has it from here on: what the sandbox says of standard streams holds for this one, too.
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    postcard::from_bytes(&bytes).map(Some).map_err(std::io::Error::other)
}

/// Does one job. For tests also in a thread of another process, without a sandbox.
pub fn serve(link: &Link, judge: Option<&JudgeFiles>) -> ExitCode {
    let Ok(Some((ToDecoder { build, parts, job }, fds))) = link.recv::<ToDecoder>() else {
        log::debug!("no job came");
        return Exit::Ok.into();
    };
    let Some(file) = fds.into_iter().next().filter(|_| build == build_id()) else {
        log::error!("the job is of build {build:?} or has no file");
        return Exit::Software.into();
    };
    let (answer, fd) = match answer(file, &parts, &job, judge) {
        Ok((answer, fd)) => (answer, Some(fd)),
        Err(DecodeError::NoPicture { last, .. }) => (FromDecoder::NoPicture { last }, None),
        Err(DecodeError::NoJudge) => (FromDecoder::NoJudge, None),
        Err(e @ DecodeError::Judge(_)) => {
            log::error!("{}", chain(&e));
            (FromDecoder::NoJudge, None)
        }
        Err(DecodeError::File(what)) => (FromDecoder::Refused { what }, None),
        Err(e) => {
            log::error!("{e}");
            return Exit::Os.into();
        }
    };
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    match link.send(&answer, &fds) {
        Ok(()) => Exit::Ok.into(),
        Err(e) => {
            log::debug!("nobody waits for the answer: {e}");
            Exit::Ok.into()
        }
    }
}

fn answer(
    file: OwnedFd,
    parts: &[crate::proto::decode::Part],
    job: &Job,
    judge: Option<&JudgeFiles>,
) -> Result<(FromDecoder, OwnedFd), DecodeError> {
    let mut bytes = Vec::new();
    // A frame is taken from a video of our own, which may be longer than an upload.
    let bytes_max = if matches!(job, Job::Frame { .. }) { VIDEO_BYTES_MAX } else { limits::UPLOAD_BYTES_MAX };
    File::from(file).take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(DecodeError::File(format!("it has more than {bytes_max} bytes")));
    }
    let clip = Clip::open(&bytes, parts)?;
    match job {
        Job::Probe => probe(&clip),
        Job::Frame { index } => frame(&clip, *index),
        Job::Preview { extraction, index } => {
            let extractor = Extractor::of(*extraction, judge)?;
            preview(&clip, extractor, *index)
        }
        Job::Pictures { extraction, shape, count, last } => {
            let extractor = Extractor::of(*extraction, judge)?;
            pictures(&clip, extractor, *shape, *count, *last)
        }
    }
}

/// Reads all pictures, so that what is broken half way is known now and not when it is needed.
fn probe(clip: &Clip) -> Result<(FromDecoder, OwnedFd), DecodeError> {
    let (mut first, mut frames) = (None, 0);
    clip.pictures(0, &mut |picture| {
        frames += 1;
        first.get_or_insert(picture);
        Ok(true)
    })?;
    let Some(first) = first else { return Err(DecodeError::File("there is no picture in it".to_string())) };
    let about = About { width: first.width, height: first.height, frames, fps: clip.fps() };
    share(about, &jpeg(&first)?)
}

/// One picture of the clip, for GET /api/v1/videos/ID/frames/N.
fn frame(clip: &Clip, index: u32) -> Result<(FromDecoder, OwnedFd), DecodeError> {
    let picture = one(clip, index, 0)?.pop().ok_or(DecodeError::NoPicture { asked: index, last: 0 })?;
    let about = About { width: picture.width, height: picture.height, frames: 1, fps: clip.fps() };
    share(about, &png(&picture)?)
}

fn preview(clip: &Clip, mut extractor: Extractor, index: u32) -> Result<(FromDecoder, OwnedFd), DecodeError> {
    let shown = extractor.all(one(clip, index, extractor.pictures_before())?)?;
    let picture = shown.last().ok_or(DecodeError::NoPicture { asked: index, last: 0 })?;
    let about = About { width: picture.width, height: picture.height, frames: 1, fps: clip.fps() };
    share(about, &jpeg(picture)?)
}

/// Picture `index` after at most `before` pictures in front of it.
fn one(clip: &Clip, index: u32, before: u32) -> Result<Vec<Picture>, DecodeError> {
    let no_picture = || DecodeError::NoPicture { asked: index, last: clip.count().saturating_sub(1) };
    if index >= clip.count() {
        return Err(no_picture());
    }
    let first = index.saturating_sub(before);
    let mut kept = Vec::new();
    clip.pictures(first, &mut |picture| {
        kept.push(picture);
        Ok(kept.len() as u32 <= index - first)
    })?;
    if kept.len() as u32 <= index - first {
        return Err(no_picture());
    }
    Ok(kept)
}

/// Pictures at the session's size and rate.
fn pictures(
    clip: &Clip,
    mut extractor: Extractor,
    shape: Shape,
    count: u32,
    last: bool,
) -> Result<(FromDecoder, OwnedFd), DecodeError> {
    let count_max = count.min(crate::frame::pictures::count_max(shape.width, shape.height)).max(1) as usize;
    let mut pace = scale::Pace::new(clip.fps(), shape.fps);
    let mut kept = std::collections::VecDeque::new();
    clip.pictures(0, &mut |picture| {
        let scaled = scale::cover(&picture, shape.width, shape.height);
        for _ in 0..pace.repeats() {
            if kept.len() == count_max {
                if !last {
                    return Ok(false);
                }
                kept.pop_front();
            }
            kept.push_back(scaled.clone());
        }
        Ok(true)
    })?;
    let all = extractor.all(kept.into())?;
    let writer = PicturesWriter::create(all.len() as u32, shape.width, shape.height)?;
    for (i, picture) in all.iter().enumerate() {
        writer.write(i as u32, &picture.rgb);
    }
    Ok((FromDecoder::Pictures { count: all.len() as u32 }, writer.read_only_fd()?))
}

fn share(about: About, bytes: &[u8]) -> Result<(FromDecoder, OwnedFd), DecodeError> {
    let memory = SharedMemory::create("gamegend-picture", bytes.len())?;
    memory.write(0, bytes);
    Ok((FromDecoder::Picture { about, bytes: bytes.len() as u32 }, memory.read_only_fd()?))
}

fn jpeg(picture: &Picture) -> Result<Vec<u8>, DecodeError> {
    let image = turbojpeg::Image {
        pixels: picture.rgb.as_slice(),
        width: picture.width as usize,
        pitch: picture.width as usize * 3,
        height: picture.height as usize,
        format: turbojpeg::PixelFormat::RGB,
    };
    let written = turbojpeg::compress(image, PREVIEW_QUALITY, turbojpeg::Subsamp::Sub2x2);
    written.map(|b| b.to_vec()).map_err(|e| DecodeError::File(format!("its picture cannot be written: {e}")))
}

fn png(picture: &Picture) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Fast);
    let written = encoder.write_header().and_then(|mut w| w.write_image_data(&picture.rgb));
    written.map_err(|e| DecodeError::File(format!("its picture cannot be written: {e}")))?;
    Ok(out)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
