//! The api's side of decoders: it asks the parent for one, gives it the job, and waits for the answer.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::http::blocking;
use super::limits::{DECODE_TIME_MAX, DECODER_WAIT_MAX, DECODERS_MAX};
use super::metrics::Counters;
use super::refusal::{Refusal, chain};
use crate::proto::decode::{About, FromDecoder, Job, Part, ToDecoder};
use crate::proto::link::{FromApi, build_id};
use crate::sys::link::Link;
use crate::sys::shm::{Access, SharedMemory};

/// The way to decoders.
pub struct Decoders {
    parent: Link,
    room: Semaphore,
    counters: Arc<Counters>,
}

/// What a job gave.
enum Decoded {
    /// A picture file, and what it was taken from.
    Picture(About, Vec<u8>),
    /// A block of pictures.
    Pictures(Arc<OwnedFd>),
}

impl Decoders {
    /// `parent` leads to the process that starts them.
    pub fn new(parent: Link, counters: Arc<Counters>) -> Decoders {
        Decoders { parent, room: Semaphore::new(DECODERS_MAX), counters }
    }

    /// Runs one job on `file`. Errors: `upload_refused` if the files are not what they should be, `not_found` about
    /// `index`, `video_prompts_unsupported`, `decoder_unavailable`.
    async fn run(&self, file: File, parts: Vec<Part>, job: Job) -> Result<Decoded, Refusal> {
        let busy = || Refusal::new("decoder_unavailable", "Other pictures are being read.").retry_after(2);
        let waited = tokio::time::timeout(DECODER_WAIT_MAX, self.room.acquire()).await;
        let _permit = waited.map_err(|_| busy())?.map_err(|_| busy())?;
        Counters::add(&self.counters.decoders, 1);
        let parent = self.parent.clone();
        blocking(move || work(&parent, &file, parts, job)).await?
    }

    /// The same for a job whose answer is a picture.
    pub async fn picture(&self, file: File, parts: Vec<Part>, job: Job) -> Result<(About, Vec<u8>), Refusal> {
        match self.run(file, parts, job).await? {
            Decoded::Picture(about, bytes) => Ok((about, bytes)),
            Decoded::Pictures(_) => Err(nonsense()),
        }
    }

    /// The same for a job whose answer is a block of pictures.
    pub async fn pictures(&self, file: File, parts: Vec<Part>, job: Job) -> Result<Arc<OwnedFd>, Refusal> {
        match self.run(file, parts, job).await? {
            Decoded::Pictures(fd) => Ok(fd),
            Decoded::Picture(..) => Err(nonsense()),
        }
    }
}

fn nonsense() -> Refusal {
    Refusal::new("upload_refused", "The decoder's answer makes no sense.")
}

fn work(parent: &Link, file: &File, parts: Vec<Part>, job: Job) -> Result<Decoded, Refusal> {
    let (link, theirs) = Link::pair().map_err(|e| Refusal::internal(&e))?;
    link.set_timeout(DECODE_TIME_MAX).map_err(|e| Refusal::internal(&e))?;
    parent.send(&FromApi::Decoder, &[theirs.as_fd()]).map_err(|e| Refusal::internal(&e))?;
    drop(theirs);
    let message = ToDecoder { build: build_id(), parts, job };
    let received = link.send(&message, &[file.as_fd()]).map(|()| link.recv::<FromDecoder>());
    match received {
        Ok(Ok(Some((answer, fds)))) => take(answer, fds.into_iter().next()),
        Ok(Ok(None)) | Err(_) => {
            let detail = "The files broke their decoder, or it could not be started; the daemon's log says which.";
            Err(Refusal::new("upload_refused", detail))
        }
        Ok(Err(e)) => {
            log::warn!("decoder: {}", chain(&e));
            Err(Refusal::new("upload_refused", "The files took too long to read."))
        }
    }
}

/// Copies what a decoder gave out of its memory, sizes checked: it met the files and may be anybody's by now.
fn take(answer: FromDecoder, fd: Option<OwnedFd>) -> Result<Decoded, Refusal> {
    match (answer, fd) {
        (FromDecoder::Picture { about, bytes }, Some(fd)) => {
            let memory = SharedMemory::from_fd(fd, Access::ReadOnly).map_err(|e| Refusal::internal(&e))?;
            if bytes as usize > memory.len() {
                return Err(nonsense());
            }
            let mut picture = vec![0; bytes as usize];
            memory.read(0, &mut picture);
            Ok(Decoded::Picture(about, picture))
        }
        (FromDecoder::Pictures { .. }, Some(fd)) => {
            crate::frame::Pictures::open(&fd).map_err(|_| nonsense())?;
            Ok(Decoded::Pictures(Arc::new(fd)))
        }
        (FromDecoder::Refused { what }, _) => {
            // Its text came from a process that had met the files: it is shown, but bounded.
            let what: String = what.chars().filter(|c| !c.is_control()).take(300).collect();
            Err(Refusal::new("upload_refused", format!("The files cannot be used: {what}.")))
        }
        (FromDecoder::NoPicture { last }, _) => {
            let detail = format!("There are pictures 0 to {last}.");
            Err(Refusal::new("not_found", detail).about("index", format!("0 to {last}")))
        }
        (FromDecoder::NoJudge, _) => Err(Refusal::no_pose()),
        _ => Err(nonsense()),
    }
}
