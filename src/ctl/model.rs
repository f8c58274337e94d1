//! Versions of models: folders beside each other, and two links that say which is in use and which was before.
//!
//! ```text
//!  models/gamegen-x-mini/  models/gamegen-x-mini-2/   one folder a version, each with model_index.json
//!  models/current -> gamegen-x-mini-2                 what a daemon with an empty model.path takes
//!  models/previous -> gamegen-x-mini                  what `rollback` goes back to
//! ```
//!
//! A link is replaced by a rename, so whoever looks sees the old one or the new one. It works on every file system;
//! where the folder is a ZFS dataset, a snapshot of it keeps the versions themselves.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::print;
use crate::config::{MODEL_CURRENT, MODELS_DIRECTORY};
use crate::exit::Exit;

/// The link to the version that was in use before.
const PREVIOUS: &str = "previous";
/// The file that makes a folder a model.
const INDEX: &str = "model_index.json";

/// What to do about models.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List the versions; an asterisk marks the one in use.
    List(Place),
    /// Use a version from the next reload of the daemon on.
    Activate {
        /// Name of its folder.
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Go back to the version that was in use before.
    Rollback(Place),
}

/// Where the versions lie.
#[derive(Debug, Args)]
pub struct Place {
    /// Folder of the versions.
    #[arg(long = "dir", value_name = "DIRECTORY", default_value = MODELS_DIRECTORY)]
    directory: PathBuf,
}

/// Why a model is not used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{name:?} is not a version in {}; there are: {}", directory.display(), list(there))]
    Unknown { name: String, directory: PathBuf, there: Vec<String> },
    #[error("{}: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("{}: no version was in use before; activate one", .0.display())]
    NoPrevious(PathBuf),
    #[error("{}", path.display())]
    File { path: PathBuf, source: io::Error },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_string() } else { names.join(", ") }
}

impl ModelError {
    pub fn exit(&self) -> Exit {
        match self {
            ModelError::Unknown { .. } | ModelError::NoPrevious(_) => Exit::NoInput,
            ModelError::Damaged { .. } => Exit::Data,
            ModelError::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Exit::NoPermission,
            ModelError::File { .. } => Exit::CantCreate,
        }
    }
}

/// Does it and says so.
pub fn run(action: Action) -> Result<(), ModelError> {
    match action {
        Action::List(place) => {
            print(&table(&place.directory)?);
            Ok(())
        }
        Action::Activate { name, place } => {
            activate(&place.directory, &name)?;
            print(&format!("{name} is in use from the next reload on: gamegendctl reload\n"));
            Ok(())
        }
        Action::Rollback(place) => {
            let name = link(&place.directory, PREVIOUS).ok_or(ModelError::NoPrevious(place.directory.clone()))?;
            activate(&place.directory, &name)?;
            print(&format!("{name} is in use again from the next reload on: gamegendctl reload\n"));
            Ok(())
        }
    }
}

/// Names of the versions, sorted.
fn versions(directory: &Path) -> Result<Vec<String>, ModelError> {
    let failed = |source| ModelError::File { path: directory.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let folder = entry.file_type().map_err(failed)?.is_dir();
        if folder && entry.path().join(INDEX).is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The version that a link names.
fn link(directory: &Path, link: &str) -> Option<String> {
    Some(fs::read_link(directory.join(link)).ok()?.to_string_lossy().into_owned())
}

fn table(directory: &Path) -> Result<String, ModelError> {
    let (current, previous) = (link(directory, MODEL_CURRENT), link(directory, PREVIOUS));
    let mut text = String::new();
    for name in versions(directory)? {
        let mark = if current.as_deref() == Some(&name) { '*' } else { ' ' };
        let note = if previous.as_deref() == Some(&name) { "  (before)" } else { "" };
        let mib = size(&directory.join(&name)) as f64 / f64::from(1 << 20);
        text.push_str(&format!("{mark} {name:32} {mib:8.1} MiB{note}\n"));
    }
    if text.is_empty() {
        text = format!("no version in {}\n", directory.display());
    }
    Ok(text)
}

/// Bytes of all files below a folder; what cannot be read counts nothing.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => size(&e.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Puts a version into use, after a look at whether it can be one.
fn activate(directory: &Path, name: &str) -> Result<(), ModelError> {
    let there = versions(directory)?;
    if !there.iter().any(|v| v == name) {
        return Err(ModelError::Unknown { name: name.to_string(), directory: directory.to_path_buf(), there });
    }
    check(&directory.join(name))?;
    let current = link(directory, MODEL_CURRENT);
    if let Some(old) = current.filter(|old| old != name) {
        point(directory, PREVIOUS, &old)?;
    }
    point(directory, MODEL_CURRENT, name)
}

/// The index must be JSON, and every shard that is there must be as long as its header says.
fn check(model: &Path) -> Result<(), ModelError> {
    let path = model.join(INDEX);
    let text = fs::read(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
    let damaged = |path: &Path, what: String| ModelError::Damaged { path: path.to_path_buf(), what };
    serde_json::from_slice::<serde_json::Value>(&text).map_err(|e| damaged(&path, e.to_string()))?;
    let mut shards = 0;
    for folder in fs::read_dir(model).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|e| e == "safetensors") {
                shards += 1;
                check_shard(&file.path()).map_err(|what| damaged(&file.path(), what))?;
            }
        }
    }
    if shards == 0 { Err(damaged(model, "it has no weights (*.safetensors)".to_string())) } else { Ok(()) }
}

/// The header of a file of safetensors: its length, then JSON with the end of each tensor.
fn check_shard(path: &Path) -> Result<(), String> {
    use std::io::Read;
    let mut file = fs::File::open(path).map_err(|e| e.to_string())?;
    let bytes = file.metadata().map_err(|e| e.to_string())?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| "it is too short for a header".to_string())?;
    let length = u64::from_le_bytes(length);
    if length > bytes.saturating_sub(8) {
        return Err(format!("its header has {length} bytes, the file {bytes}"));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|e| e.to_string())?;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|e| format!("its header is not JSON: {e}"))?;
    let ends = header.values().filter_map(|t| t["data_offsets"][1].as_u64());
    let needed = 8 + length + ends.max().unwrap_or(0);
    if needed == bytes { Ok(()) } else { Err(format!("it has {bytes} bytes, its header needs {needed}")) }
}

/// Makes a link, or lets it point elsewhere, in one step.
fn point(directory: &Path, link: &str, target: &str) -> Result<(), ModelError> {
    let path = directory.join(link);
    let new = directory.join(format!(".{link}-{}", std::process::id()));
    let made = std::os::unix::fs::symlink(target, &new).and_then(|()| fs::rename(&new, &path));
    made.map_err(|source| {
        let _ = fs::remove_file(&new);
        ModelError::File { path, source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(bytes: usize) -> Vec<u8> {
        let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        [&(header.len() as u64).to_le_bytes()[..], header, &vec![0; bytes]].concat()
    }

    fn models(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("gamegend-models-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        for version in ["one", "two", "broken"] {
            let bytes = if version == "broken" { 3 } else { 4 };
            fs::create_dir_all(directory.join(version).join("vae")).expect("a temporary directory");
            fs::write(directory.join(version).join(INDEX), "{}").expect("ours");
            fs::write(directory.join(version).join("vae/weights.safetensors"), shard(bytes)).expect("ours");
        }
        fs::create_dir(directory.join("no-model")).expect("ours");
        directory
    }

    #[test]
    fn a_version_is_activated_and_taken_back() {
        let directory = models("activate");
        let rollback = || run(Action::Rollback(Place { directory: directory.clone() }));
        assert!(matches!(rollback(), Err(ModelError::NoPrevious(_))));
        activate(&directory, "one").expect("it is sound");
        assert!(matches!(rollback(), Err(ModelError::NoPrevious(_))), "there was none before the first");
        activate(&directory, "two").expect("it is sound");
        activate(&directory, "two").expect("once more changes nothing");
        let links = || (link(&directory, MODEL_CURRENT), link(&directory, PREVIOUS));
        assert_eq!(links(), (Some("two".to_string()), Some("one".to_string())));
        let text = table(&directory).expect("ours");
        assert!(text.contains("* two") && text.contains("(before)") && !text.contains("no-model"), "{text}");
        rollback().expect("there was one");
        assert_eq!(links(), (Some("one".to_string()), Some("two".to_string())));
        rollback().expect("and forth again");
        assert_eq!(links().0.as_deref(), Some("two"));
        assert!(directory.join(MODEL_CURRENT).join(INDEX).is_file());
        fs::remove_dir_all(&directory).expect("ours");
    }

    #[test]
    fn what_is_no_model_is_never_put_into_use() {
        let directory = models("refuse");
        activate(&directory, "one").expect("it is sound");
        let error = activate(&directory, "three").expect_err("there is none");
        assert!(error.to_string().contains("broken, one, two"), "{error}");
        assert_eq!(error.exit(), Exit::NoInput);
        let error = activate(&directory, "broken").expect_err("its file is short");
        assert_eq!(error.exit(), Exit::Data);
        assert!(error.to_string().contains("weights.safetensors") && error.to_string().contains("needs"), "{error}");
        assert!(activate(&directory, "../one").is_err() && activate(&directory, "current").is_err());
        assert_eq!(link(&directory, MODEL_CURRENT).as_deref(), Some("one"));
        fs::remove_dir_all(&directory).expect("ours");
    }
}
