//! Checkpoints: what is needed to go on with the sessions after this process, or the whole daemon, was killed.
//!
//! One file a session in the folder `sessions` of the state directory, replaced as a whole once a second:
//!
//! ```text
//! ID.session    the record as one line of JSON, a line feed, then the session's newest snapshot as `frame::snapshot`
//!               lays it out, if there is one
//! ID.origin     what it began with, written once before it opens: what it continues, the pictures of its video
//! ID.lead       prompt, the trace that it plays back
//! ID.script
//! ```
//!
//! Files go when their session ends. They outlive a killed process, not a power failure: nothing here waits for a disk.
//! A disk that is full costs the way back only: the session goes on, and the log says so once.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::session::{INPUTS, Inputs, Spec};
use crate::frame::{RingError, SNAPSHOT_BYTES_MAX, Snapshot};
use crate::proto::keys::Keys;
use crate::proto::link::Environment;
use crate::store::is_id;
use crate::sys::dir::Dir;

/// Name of the folder below the state directory.
const FOLDER: &str = "sessions";
const ENDING: &str = ".session";
const PARTIAL: &str = ".partial";
/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// A record is a prompt, an instruction and numbers around them.
const RECORD_BYTES_MAX: usize = 64 * 1024;
/// How often the sessions are written down: what a killed daemon sets them back by, at the most.
pub const PERIOD: Duration = Duration::from_secs(1);

/// Everything about a session that is not a latent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub spec: Spec,
    pub environment: Environment,
    pub instruction: Option<String>,
    /// Keys held, for a viewer that comes back and holds them still.
    pub keys: Keys,
    /// Newest control that was accepted.
    pub accepted: u32,
    pub frame_count: u64,
    /// Names of what it began with, which are files beside this one.
    pub began_with: Vec<String>,
    /// When this was written, in milliseconds since 1970 (UTC).
    pub written_ms: u64,
}

/// A session as it was written down.
pub struct Checkpoint {
    pub record: Record,
    /// The session's own, encoded, see [`Snapshot::encode`].
    pub snapshot: Option<Vec<u8>>,
    pub inputs: Inputs,
}

impl Record {
    /// The lowest number that no viewer can have seen: the session may have made frames after it was written down.
    pub fn tick_min(&self, now_ms: u64) -> u64 {
        let unseen = now_ms.saturating_sub(self.written_ms).saturating_mul(u64::from(self.spec.fps)).div_ceil(1000);
        self.frame_count.saturating_add(unseen).saturating_add(1)
    }
}

/// Milliseconds since 1970 (UTC).
pub fn now_ms() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64)
}

/// The folder of checkpoints.
pub struct Journal {
    folder: Dir,
    /// One write at a time. True while the last one failed, so that a full disk is told once.
    failing: Mutex<bool>,
}

impl Journal {
    /// Opens the folder below the state directory and makes it if needed.
    pub fn open(state: &Dir) -> io::Result<Journal> {
        Ok(Journal { folder: state.folder(FOLDER)?, failing: Mutex::new(false) })
    }

    /// Writes a session down. A failure is logged, and nothing is left of it.
    pub fn write(&self, record: &Record, snapshot: Option<&[u8]>) {
        let name = format!("{}{ENDING}", record.spec.id);
        let partial = format!("{name}{PARTIAL}");
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.write_partial(&partial, record, snapshot).and_then(|()| self.folder.rename(&partial, &name));
        match written {
            Ok(()) => *failing = false,
            Err(e) => {
                let _ = self.folder.remove(&partial);
                if !std::mem::replace(&mut *failing, true) {
                    log::error!("sessions cannot be written down and would not survive: {}: {e}", self.path(&name));
                }
            }
        }
    }

    /// Writes down what a session begins with. A failure is logged; the session would not come back.
    pub fn write_inputs(&self, id: &str, inputs: &Inputs) {
        for (name, fd) in inputs.named() {
            let name = format!("{id}.{name}");
            if let Err(e) = self.folder.create(&name).and_then(|file| copy(fd, file)) {
                let _ = self.folder.remove(&name);
                log::error!("session {id} would not survive: {}: {e}", self.path(&name));
            }
        }
    }

    fn write_partial(&self, name: &str, record: &Record, snapshot: Option<&[u8]>) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let mut file = self.folder.create(name)?;
        file.write_all(&line)?;
        file.write_all(snapshot.unwrap_or_default())
    }

    /// Forgets a session that has ended.
    pub fn remove(&self, id: &str) {
        // The record first: without it the rest is rubbish, with it a session that lacks something.
        let names = std::iter::once(format!("{id}{ENDING}")).chain(INPUTS.map(|name| format!("{id}.{name}")));
        for name in names {
            match self.folder.remove(&name) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => log::warn!("{}: {e}", self.path(&name)),
                _ => {}
            }
        }
    }

    /// The sessions that were live when the last api ended, the oldest first. What cannot be used is removed, and the
    /// log says so.
    pub fn load(&self) -> Vec<Checkpoint> {
        let names = self.folder.names().unwrap_or_else(|e| {
            log::error!("{}: {e}", self.folder.path().display());
            Vec::new()
        });
        let mut found: Vec<Checkpoint> = Vec::new();
        let throw_away = |name: &String, why: &str| {
            log::warn!("{} is removed: {why}", self.path(name));
            let _ = self.folder.remove(name);
        };
        for name in &names {
            match name.strip_suffix(ENDING).filter(|id| is_id(id)).map(|id| self.read(name, id)) {
                Some(Ok(checkpoint)) => found.push(checkpoint),
                Some(Err(why)) => throw_away(name, &why),
                None if name.ends_with(PARTIAL) => throw_away(name, "it was not finished"),
                None => {}
            }
        }
        for name in &names {
            let input = name.split_once('.').filter(|(id, rest)| is_id(id) && INPUTS.contains(rest));
            if input.is_some_and(|(id, _)| !found.iter().any(|c| c.record.spec.id == id)) {
                throw_away(name, "its session is gone");
            }
        }
        found.sort_by_key(|c| c.record.spec.number);
        found
    }

    fn read(&self, name: &str, id: &str) -> Result<Checkpoint, String> {
        let bytes_max = (RECORD_BYTES_MAX + SNAPSHOT_BYTES_MAX) as u64;
        let bytes = self.folder.read(name, bytes_max).map_err(|e| e.to_string())?;
        let end = bytes.iter().take(RECORD_BYTES_MAX).position(|&b| b == b'\n').ok_or("it has no record")?;
        let record: Record = serde_json::from_slice(&bytes[..end]).map_err(|e| e.to_string())?;
        if record.spec.id != id {
            return Err(format!("it is of session {}", record.spec.id));
        }
        let mut inputs = Inputs::default();
        for name in &record.began_with {
            let file = self.folder.file(&format!("{id}.{name}")).map_err(|e| format!("its {name}: {e}"))?;
            inputs.take(name, file.into()).map_err(|e| format!("its {name}: {e}"))?;
        }
        let snapshot = (bytes.len() > end + 1).then(|| bytes[end + 1..].to_vec());
        Ok(Checkpoint { record, snapshot, inputs })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// Copies all that a descriptor holds; others read from it at the same time, at places of their own.
fn copy(fd: &OwnedFd, mut to: File) -> io::Result<()> {
    let from = File::from(fd.try_clone()?);
    let (mut piece, mut at) = (vec![0; COPY_BYTES], 0);
    loop {
        let count = from.read_at(&mut piece, at)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&piece[..count])?;
        at += count as u64;
    }
}

/// The newest snapshot behind a descriptor as bytes for a file; `None` if there is none yet.
pub fn snapshot_bytes(fd: impl std::os::fd::AsFd) -> Result<Option<Vec<u8>>, RingError> {
    match Snapshot::read_fd(fd) {
        Ok(snapshot) => Ok(Some(snapshot.encode()?)),
        Err(RingError::NoSnapshot) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::api::Kind;

    fn record(number: u64) -> Record {
        let spec = Spec {
            id: format!("{number:032x}"),
            number,
            owner: "uid 1".to_string(),
            prompt: "a meadow\nwith two lines".to_string(),
            perspective: None,
            width: 64,
            height: 64,
            fps: 24,
            steps: 1,
            seed: 9,
            frames: None,
            kind: Kind::Session,
            from: None,
            video_prompt: None,
            created: 0,
        };
        Record {
            spec,
            environment: Environment::default(),
            instruction: Some("it rains".to_string()),
            keys: Keys::W,
            accepted: 3,
            frame_count: 100,
            began_with: Vec::new(),
            written_ms: 5000,
        }
    }

    fn journal(name: &str) -> (std::path::PathBuf, Journal) {
        let path = std::env::temp_dir().join(format!("gamegend-journal-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a temporary directory");
        let journal = Journal::open(&Dir::open(&path).expect("it exists")).expect("it can be made");
        (path, journal)
    }

    #[test]
    fn sessions_come_back_as_they_were_in_their_order() {
        let (path, journal) = journal("back");
        journal.write(&record(2), Some(&[1, b'\n', 3]));
        journal.write(&record(1), None);
        journal.write(&record(3), None);
        journal.remove(&record(3).spec.id);
        journal.remove("never there");
        let found = journal.load();
        let seen: Vec<_> = found.iter().map(|c| (c.record.clone(), c.snapshot.clone())).collect();
        assert_eq!(seen, [(record(1), None), (record(2), Some(vec![1, b'\n', 3]))]);
        std::fs::remove_dir_all(&path).expect("ours");
    }

    #[test]
    fn what_cannot_be_used_is_removed() {
        let (path, journal) = journal("rubbish");
        journal.write(&record(1), None);
        let folder = path.join(FOLDER);
        for (name, text) in [
            (format!("{:032x}.session", 7), "not json\n"),
            (format!("{:032x}.session", 8), ""),
            (format!("{:032x}.session.partial", 9), "{}"),
        ] {
            std::fs::write(folder.join(name), text).expect("ours");
        }
        std::fs::rename(folder.join(format!("{:032x}.session", 1)), folder.join(format!("{:032x}.session", 5)))
            .expect("ours");
        std::fs::write(folder.join("notes.txt"), "somebody's").expect("ours");
        assert_eq!(journal.load().len(), 0);
        assert_eq!(journal.folder.names().expect("ours"), ["notes.txt"]);
        std::fs::remove_dir_all(&path).expect("ours");
    }

    #[test]
    fn numbers_rise_over_frames_that_nobody_wrote_down() {
        let record = record(1);
        assert_eq!(record.tick_min(5000), 101);
        assert_eq!(record.tick_min(6500), 100 + 36 + 1);
        assert_eq!(record.tick_min(0), 101, "a clock that was set back");
    }
}
