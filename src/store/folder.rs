//! The embedded store: one folder, up to five files a generation, the description last.
//!
//! ```text
//! generations/
//!   ID.mp4 ID.jpg ID.snapshot ID.origin    made durable and renamed first
//!   ID.json                                its rename is the commit: without it the others are rubbish of a crash
//!   ID.mp4.partial                         a generation that runs, or rubbish of a crash
//! ```

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Draft, Generation, Object, Store, StoreError, is_id, private_file};
use crate::sys::dir::Dir;

/// A description is a page of text at the most; anything longer is something else.
const DESCRIPTION_BYTES_MAX: u64 = 1 << 20;

/// Name of the folder below the state directory.
const FOLDER: &str = "generations";

/// A [`Store`] in a folder of the local file system.
pub struct FolderStore {
    folder: Dir,
    kept_max: usize,
    /// Sorted by creation, the oldest first.
    index: Mutex<Vec<Arc<Generation>>>,
}

impl FolderStore {
    /// Opens the folder `generations` below `state_directory`, makes it if needed and removes what a crash left.
    ///
    /// `kept_max` is the number of generations that [`Store::commit`] keeps. Errors: `File`.
    pub fn open(state_directory: &Path, kept_max: usize) -> Result<FolderStore, StoreError> {
        let state = Dir::open(state_directory).map_err(|e| file_error("open", state_directory, e))?;
        FolderStore::open_in(&state, kept_max)
    }

    /// Likewise, in a state directory that is open already.
    pub fn open_in(state: &Dir, kept_max: usize) -> Result<FolderStore, StoreError> {
        let folder = state.folder(FOLDER).map_err(|e| file_error("create", &state.path().join(FOLDER), e))?;
        let names = folder.names().map_err(|e| file_error("read", folder.path(), e))?;
        let mut found = Vec::new();
        for id in names.iter().filter_map(|n| n.strip_suffix(".json")).filter(|id| is_id(id)) {
            match read_description(&folder, &format!("{id}.json")) {
                Some(generation) if generation.id == id => found.push(Arc::new(generation)),
                _ => log::warn!("{}/{id}.json does not describe a generation; left alone", folder.path().display()),
            }
        }
        found.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        for name in &names {
            let described = name.get(..32).is_some_and(|id| names.iter().any(|n| *n == format!("{id}.json")));
            if name.ends_with(".partial") || (is_object(name) && !described) {
                let _ = folder.remove(name);
            }
        }
        Ok(FolderStore { folder, kept_max: kept_max.max(1), index: Mutex::new(found) })
    }

    fn index(&self) -> MutexGuard<'_, Vec<Arc<Generation>>> {
        // The vector is whole between statements, so a panic elsewhere leaves nothing half done.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The description goes first: a crash in between leaves rubbish that the next start removes, never half a clip.
    fn remove(&self, id: &str) {
        let _ = self.folder.remove(&file_name(id, "json"));
        for object in Object::ALL {
            let _ = self.folder.remove(&file_name(id, object.extension()));
        }
    }

    fn failed(&self, action: &'static str, name: &str, source: std::io::Error) -> StoreError {
        file_error(action, &self.folder.path().join(name), source)
    }
}

impl Store for FolderStore {
    fn list(&self) -> Vec<Arc<Generation>> {
        self.index().iter().rev().cloned().collect()
    }

    fn get(&self, id: &str) -> Option<Arc<Generation>> {
        self.index().iter().find(|g| g.id == id).cloned()
    }

    fn begin(&self, id: &str) -> Result<Draft, StoreError> {
        if !is_id(id) {
            return Err(StoreError::Id(id.to_string()));
        }
        Ok(Draft { id: id.to_string(), folder: self.folder.clone(), created: Vec::new() })
    }

    fn commit(&self, draft: Draft, generation: Generation) -> Result<(), StoreError> {
        self.publish(&draft, &generation).inspect_err(|_| self.remove(&draft.id))?;
        let mut index = self.index();
        let at = index.partition_point(|g| (g.created, &g.id) <= (generation.created, &generation.id));
        index.insert(at, Arc::new(generation));
        while index.len() > self.kept_max {
            let oldest = index.remove(0);
            self.remove(&oldest.id);
        }
        Ok(())
    }

    fn delete(&self, id: &str) -> bool {
        let mut index = self.index();
        let before = index.len();
        index.retain(|g| g.id != id);
        let found = index.len() < before;
        if found {
            self.remove(id);
        }
        found
    }

    fn open(&self, id: &str, object: Object) -> Result<File, StoreError> {
        if self.get(id).is_none() {
            return Err(StoreError::Unknown(id.to_string()));
        }
        let name = file_name(id, object.extension());
        self.folder.file(&name).map_err(|e| self.failed("open", &name, e))
    }
}

impl FolderStore {
    /// Moves the objects to their names, then the description: the order that makes a crash harmless.
    fn publish(&self, draft: &Draft, generation: &Generation) -> Result<(), StoreError> {
        for object in &draft.created {
            let partial = draft.partial(*object);
            let sync = self.folder.file(&partial).and_then(|f| f.sync_all());
            sync.map_err(|e| self.failed("write", &partial, e))?;
            let name = file_name(&draft.id, object.extension());
            self.folder.rename(&partial, &name).map_err(|e| self.failed("rename", &name, e))?;
        }
        let text = serde_json::to_vec_pretty(generation)
            .map_err(|source| StoreError::Describe { id: generation.id.clone(), source })?;
        let partial = file_name(&draft.id, "json.partial");
        let name = file_name(&draft.id, "json");
        let mut file = private_file(&self.folder, &partial)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(|e| self.failed("write", &partial, e))?;
        self.folder.rename(&partial, &name).map_err(|e| self.failed("rename", &name, e))?;
        // Without this the renames may not outlive a power failure.
        self.folder.sync().map_err(|e| file_error("sync", self.folder.path(), e))
    }
}

fn file_name(id: &str, extension: &str) -> String {
    format!("{id}.{extension}")
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    StoreError::File { action, path: path.to_path_buf(), source }
}

fn is_object(name: &str) -> bool {
    let object = |o: &Object| name.strip_suffix(o.extension()).and_then(|n| n.strip_suffix('.')).is_some_and(is_id);
    Object::ALL.iter().any(object)
}

fn read_description(folder: &Dir, name: &str) -> Option<Generation> {
    serde_json::from_slice(&folder.read(name, DESCRIPTION_BYTES_MAX).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::api::Kind;
    use std::fs;
    use std::path::PathBuf;

    /// A folder under the system's temporary one, removed when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("gamegend-store-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("a temporary directory");
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn generation(number: u32) -> Generation {
        Generation {
            id: format!("{number:032x}"),
            owner: "uid 1".into(),
            prompt: "a meadow".into(),
            perspective: None,
            width: 64,
            height: 64,
            fps: 24,
            frames: 3,
            steps: 2,
            seed: 9,
            model_hash: "abc".into(),
            created: 1000 + u64::from(number),
            video_bytes: 5,
            kind: Kind::Clip,
            from: None,
            video_prompt: None,
        }
    }

    fn store_one(store: &FolderStore, number: u32) {
        let mut draft = store.begin(&generation(number).id).expect("the id is well formed");
        draft.create(Object::Video).expect("folder").write_all(b"video").expect("disk");
        draft.create(Object::Poster).expect("folder");
        store.commit(draft, generation(number)).expect("folder");
    }

    #[test]
    fn a_generation_survives_a_restart_and_the_oldest_goes_first() {
        let scratch = Scratch::new("restart");
        let store = FolderStore::open(&scratch.0, 2).expect("the folder can be made");
        for number in [1, 2, 3] {
            store_one(&store, number);
        }
        let store = FolderStore::open(&scratch.0, 2).expect("the folder exists");
        let ids: Vec<String> = store.list().iter().map(|g| g.id.clone()).collect();
        assert_eq!(ids, [generation(3).id, generation(2).id]);
        assert_eq!(*store.get(&ids[0]).expect("listed"), generation(3));
        let mut file = store.open(&ids[0], Object::Video).expect("committed");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).expect("readable");
        assert_eq!(bytes, b"video");
        assert!(matches!(store.open(&ids[0], Object::Snapshot), Err(StoreError::File { action: "open", .. })));
        assert!(matches!(store.open(&generation(1).id, Object::Video), Err(StoreError::Unknown(_))));
        assert!(store.delete(&ids[0]) && !store.delete(&ids[0]));
        assert_eq!((store.list().len(), store.folder.names().expect("folder").len()), (1, 3));
    }

    #[test]
    fn a_dropped_draft_and_the_rubbish_of_a_crash_leave_nothing() {
        let scratch = Scratch::new("rubbish");
        let store = FolderStore::open(&scratch.0, 2).expect("the folder can be made");
        let mut draft = store.begin(&generation(7).id).expect("the id is well formed");
        draft.create(Object::Video).expect("folder");
        assert_eq!(store.folder.names().expect("folder").len(), 1);
        drop(draft);
        assert_eq!(store.folder.names().expect("folder"), Vec::<String>::new());
        for name in [format!("{}.mp4", generation(8).id), format!("{}.jpg.partial", generation(9).id)] {
            fs::write(store.folder.path().join(name), b"x").expect("disk");
        }
        fs::write(store.folder.path().join("notes.txt"), b"somebody's").expect("disk");
        drop(FolderStore::open(&scratch.0, 2).expect("the folder exists"));
        assert_eq!(Dir::open(&scratch.0.join("generations")).and_then(|d| d.names()).expect("folder"), ["notes.txt"]);
    }

    #[test]
    fn an_id_is_never_a_path() {
        let scratch = Scratch::new("id");
        let store = FolderStore::open(&scratch.0, 2).expect("the folder can be made");
        for id in ["", "../../etc/passwd", "ABCDEF00000000000000000000000000", &"a".repeat(33)] {
            assert!(matches!(store.begin(id), Err(StoreError::Id(_))), "{id:?} was accepted");
        }
    }
}
