//! Uploads: files that clients sent, as they sent them, and what a decoder found in them.
//!
//! ```text
//! uploads/
//!   ID.files            all files of the upload, one after the other
//!   ID.json             its rename is the commit
//!   ID.files.partial    an upload that arrives, or rubbish of a crash
//! ```

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{StoreError, is_id, private_file};
use crate::proto::decode::{About, Part};
use crate::sys::dir::Dir;

/// Uploads of all clients together; the oldest go first. With the limit of one upload this bounds the disk.
const KEPT_MAX: usize = 128;

/// What is told about an upload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub owner: String,
    pub parts: Vec<Part>,
    pub about: About,
    /// Seconds since 1970 (UTC).
    pub created: u64,
}

impl Record {
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.bytes).sum()
    }
}

/// A description is a page of text at the most.
const DESCRIPTION_BYTES_MAX: u64 = 64 * 1024;
/// Name of the folder below the state directory.
const FOLDER: &str = "uploads";

/// The uploads in a folder of the local file system.
#[derive(Debug)]
pub struct Uploads {
    folder: Dir,
    /// The oldest first.
    index: Mutex<Vec<Arc<Record>>>,
}

/// An upload that arrives; removed when dropped.
#[derive(Debug)]
pub struct Arriving {
    pub id: String,
    folder: Dir,
    pub file: File,
}

impl Arriving {
    fn partial(&self) -> String {
        format!("{}.files.partial", self.id)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // After a commit the name is gone already; one that cannot be removed now is removed at the next start.
        let _ = self.folder.remove(&self.partial());
    }
}

impl Uploads {
    /// Opens the folder below the state directory, makes it if needed and removes what a crash left.
    pub fn open_in(state: &Dir) -> Result<Uploads, StoreError> {
        let folder = state.folder(FOLDER).map_err(|e| file_error("create", &state.path().join(FOLDER), e))?;
        let names = folder.names().map_err(|e| file_error("read", folder.path(), e))?;
        let read = |name: &String| -> Option<Record> {
            let id = name.strip_suffix(".json").filter(|id| is_id(id))?;
            let record: Record = serde_json::from_slice(&folder.read(name, DESCRIPTION_BYTES_MAX).ok()?).ok()?;
            (record.id == id).then_some(record)
        };
        let mut found: Vec<Arc<Record>> = names.iter().filter_map(read).map(Arc::new).collect();
        found.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        for name in &names {
            let orphan = name.strip_suffix(".files").is_some_and(|id| !found.iter().any(|r| r.id == id));
            if orphan || name.ends_with(".partial") {
                let _ = folder.remove(name);
            }
        }
        Ok(Uploads { folder, index: Mutex::new(found) })
    }

    fn index(&self) -> MutexGuard<'_, Vec<Arc<Record>>> {
        // The vector is whole between statements, so a panic elsewhere leaves nothing half done.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, action: &'static str, name: &str, source: std::io::Error) -> StoreError {
        file_error(action, &self.folder.path().join(name), source)
    }

    /// A file for an upload that begins to arrive. Errors: `Id`, `File`.
    pub fn begin(&self, id: &str) -> Result<Arriving, StoreError> {
        if !is_id(id) {
            return Err(StoreError::Id(id.to_string()));
        }
        let file = private_file(&self.folder, &format!("{id}.files.partial"))?;
        Ok(Arriving { id: id.to_string(), folder: self.folder.clone(), file })
    }

    /// Makes an upload visible, and removes the oldest beyond the limit. Blocks: until it is on the disk.
    pub fn commit(&self, arriving: Arriving, record: Record) -> Result<Arc<Record>, StoreError> {
        let (partial, files) = (arriving.partial(), format!("{}.files", record.id));
        arriving.file.sync_all().map_err(|e| self.failed("write", &partial, e))?;
        self.folder.rename(&partial, &files).map_err(|e| self.failed("rename", &files, e))?;
        if let Err(e) = self.describe(&record) {
            self.remove(&record.id);
            return Err(e);
        }
        let record = Arc::new(record);
        let mut index = self.index();
        index.push(record.clone());
        while index.len() > KEPT_MAX {
            let oldest = index.remove(0);
            self.remove(&oldest.id);
        }
        Ok(record)
    }

    fn describe(&self, record: &Record) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(record)
            .map_err(|source| StoreError::Describe { id: record.id.clone(), source })?;
        let (partial, name) = (format!("{}.json.partial", record.id), format!("{}.json", record.id));
        let mut file = private_file(&self.folder, &partial)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(|e| self.failed("write", &partial, e))?;
        self.folder.rename(&partial, &name).map_err(|e| self.failed("rename", &name, e))
    }

    fn remove(&self, id: &str) {
        for extension in ["json", "files", "json.partial"] {
            let _ = self.folder.remove(&format!("{id}.{extension}"));
        }
    }

    /// Every upload, the newest first.
    pub fn list(&self) -> Vec<Arc<Record>> {
        self.index().iter().rev().cloned().collect()
    }

    pub fn get(&self, id: &str) -> Option<Arc<Record>> {
        self.index().iter().find(|r| r.id == id).cloned()
    }

    /// Its files, to read. Errors: `Unknown`, `File`.
    pub fn files(&self, id: &str) -> Result<File, StoreError> {
        if self.get(id).is_none() {
            return Err(StoreError::Unknown(id.to_string()));
        }
        let name = format!("{id}.files");
        self.folder.file(&name).map_err(|e| self.failed("open", &name, e))
    }

    /// Removes an upload. Answers whether there was one.
    pub fn delete(&self, id: &str) -> bool {
        let mut index = self.index();
        let before = index.len();
        index.retain(|r| r.id != id);
        let found = index.len() < before;
        if found {
            self.remove(id);
        }
        found
    }
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    StoreError::File { action, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::proto::decode::Media;

    #[test]
    fn uploads_survive_a_restart_and_rubbish_does_not() {
        let state = std::env::temp_dir().join(format!("gamegend-uploads-{}", std::process::id()));
        let _ = fs::remove_dir_all(&state);
        fs::create_dir_all(&state).expect("a temporary folder");
        let open = || Uploads::open_in(&Dir::open(&state).expect("it exists")).expect("the folder can be made");
        let uploads = open();
        let id = "a".repeat(32);
        let mut arriving = uploads.begin(&id).expect("a good id");
        arriving.file.write_all(b"clip").expect("disk");
        let record = Record {
            id: id.clone(),
            owner: "uid 1".to_string(),
            parts: vec![Part { media: Media::Mp4, at: 0, bytes: 4 }],
            about: About { width: 64, height: 64, frames: 1, fps: 24.0 },
            created: 7,
        };
        uploads.commit(arriving, record.clone()).expect("disk");
        drop(uploads.begin(&"b".repeat(32)).expect("a good id"));
        fs::write(state.join("uploads").join(format!("{}.files", "c".repeat(32))), b"x").expect("disk");
        let uploads = open();
        assert_eq!(uploads.list(), [Arc::new(record)]);
        let names = || fs::read_dir(state.join("uploads")).expect("a folder").count();
        assert_eq!(names(), 2);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut uploads.files(&id).expect("there"), &mut text).expect("readable");
        assert_eq!(text, "clip");
        assert!(uploads.delete(&id) && !uploads.delete(&id) && names() == 0);
        assert!(matches!(uploads.begin("../../x"), Err(StoreError::Id(_))));
        let _ = fs::remove_dir_all(&state);
    }
}
