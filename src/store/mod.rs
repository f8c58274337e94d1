//! Stored generations: what a finished clip is, and where its bytes lie.
//!
//! Owns the folders `generations` and `uploads` of the state directory. Never looks into a clip: encoding belongs to
//! the api, and the model's state inside a snapshot belongs to the worker. [`Store`] is the whole interface, so that
//! another place to keep clips is another implementation of it; [`folder::FolderStore`] is the embedded default.

pub mod folder;
pub mod uploads;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::proto::api::{Kind, VideoPrompt};
use crate::sys::dir::Dir;

/// What is told about a stored generation; its file is `ID.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Who created it, in the words of the api's access check.
    pub owner: String,
    pub prompt: String,
    pub perspective: Option<String>,
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    pub frames: u32,
    pub steps: u32,
    pub seed: u64,
    /// Hash of the weights that made it: with prompt, seed, size and steps the value of the session.
    pub model_hash: String,
    /// Seconds since 1970 (UTC) when it was asked for.
    pub created: u64,
    /// 0 if there is no video: a session or a snapshot is a state, and a poster.
    pub video_bytes: u64,
    #[serde(default)]
    pub kind: Kind,
    /// What it continues, replays or is a snapshot of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video_prompt: Option<VideoPrompt>,
}

/// One of the objects that belong to a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// H.264 in MP4.
    Video,
    /// JPEG.
    Poster,
    /// The model's state after the last frame, as the frame ring lays it out.
    Snapshot,
    /// What it began with, if it continues something: a snapshot, or a block of pictures.
    Origin,
}

impl Object {
    /// Every object, in the order in which they are made durable.
    pub const ALL: [Object; 4] = [Object::Video, Object::Poster, Object::Snapshot, Object::Origin];

    /// The ending of the object's file name.
    pub fn extension(self) -> &'static str {
        match self {
            Object::Video => "mp4",
            Object::Poster => "jpg",
            Object::Snapshot => "snapshot",
            Object::Origin => "origin",
        }
    }
}

/// Why the store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{0:?} is not the id of a generation (32 hexadecimal digits)")]
    Id(String),
    #[error("no stored generation {0}")]
    Unknown(String),
    #[error("cannot write the description of {id}")]
    Describe { id: String, source: serde_json::Error },
}

/// A place that keeps finished generations.
pub trait Store: Send + Sync {
    /// Every complete generation, the newest first.
    fn list(&self) -> Vec<Arc<Generation>>;
    /// The generation with this id, if it is complete.
    fn get(&self, id: &str) -> Option<Arc<Generation>>;
    /// Begins to write a generation. Nothing of it is visible before [`Store::commit`], and dropping the draft
    /// removes it.
    ///
    /// Errors: `Id` if the id is malformed.
    fn begin(&self, id: &str) -> Result<Draft, StoreError>;
    /// Makes a draft durable and visible, and removes the oldest generations beyond the limit.
    ///
    /// Blocks: until the bytes are on the disk. Errors: `File`; the draft is gone then.
    fn commit(&self, draft: Draft, generation: Generation) -> Result<(), StoreError>;
    /// Removes a generation. Answers whether there was one.
    fn delete(&self, id: &str) -> bool;
    /// Opens an object to read. Errors: `Unknown`, or `File` if the object does not exist.
    fn open(&self, id: &str, object: Object) -> Result<File, StoreError>;
}

/// A generation that is being written: files named `ID.EXT.partial`, removed when the draft is dropped.
#[derive(Debug)]
pub struct Draft {
    id: String,
    folder: Dir,
    created: Vec<Object>,
}

impl Draft {
    /// Creates the file of an object, empty, readable by the daemon's user only.
    pub fn create(&mut self, object: Object) -> Result<File, StoreError> {
        let file = private_file(&self.folder, &self.partial(object))?;
        self.created.push(object);
        Ok(file)
    }

    fn partial(&self, object: Object) -> String {
        format!("{}.{}.partial", self.id, object.extension())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        for object in &self.created {
            // After a commit the partial names are gone already; a file that cannot be removed now is removed at the
            // next start.
            let _ = self.folder.remove(&self.partial(*object));
        }
    }
}

/// True for an id that the daemon can have made: 32 lower-case hexadecimal digits, so never a path.
pub fn is_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn private_file(folder: &Dir, name: &str) -> Result<File, StoreError> {
    folder.create(name).map_err(|source| StoreError::File { action: "create", path: folder.path().join(name), source })
}
