//! From a file to a checked [`Config`].

use std::io;
use std::path::{Path, PathBuf};

use super::check::{CheckError, allowed, check};
use super::{Config, diff};
use crate::exit::Exit;

/// A configuration file longer than this is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The file that makes a folder a model.
const MODEL_INDEX: &str = "model_index.json";
/// The shipped model's folder.
const SHIPPED_MODEL: &str = "gamegen-x-mini";
/// Where versions of models are installed.
pub const MODELS_DIRECTORY: &str = "/usr/local/share/gamegend/models";
/// The link there to the version that is in use; `gamegendctl model` sets it.
pub const MODEL_CURRENT: &str = "current";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration file {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}:{line}: {message}", .path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{}: {}", .path.display(), .errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Values { path: PathBuf, errors: Vec<CheckError> },
    #[error("model.path: no model was found in {}", list(.0))]
    NoModel(Vec<PathBuf>),
}

/// Paths as one text.
fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl ConfigError {
    /// The exit code that tells it.
    pub fn exit(&self) -> Exit {
        match self {
            ConfigError::Read { .. } | ConfigError::NoModel(_) => Exit::NoInput,
            ConfigError::Syntax { .. } | ConfigError::Values { .. } => Exit::Config,
        }
    }
}

/// The file that is read when none is named, if it exists.
pub fn default_path() -> Option<PathBuf> {
    let path = if cfg!(target_os = "linux") {
        Path::new("/etc/gamegend/gamegend.toml")
    } else {
        Path::new("/usr/local/etc/gamegend/gamegend.toml")
    };
    path.exists().then(|| path.to_path_buf())
}

/// Reads and checks a configuration; without a file, the defaults. An ordinary user's defaults lie under the user's own
/// directories.
///
/// Errors: `Read`, `Syntax` with the line (an unknown key is one), `Values` with every value that is not allowed.
pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    let Some(path) = path else {
        let mut config = Config::default();
        own_paths(&mut config, &toml::Table::new());
        return Ok(config);
    };
    let text = read(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
    let syntax = |e: toml::de::Error| {
        let at = e.span().map_or(0, |s| s.start);
        let line = text[..at.min(text.len())].matches('\n').count() + 1;
        ConfigError::Syntax { path: path.to_path_buf(), line, message: explain(&text, line, e.message()) }
    };
    let table: toml::Table = toml::from_str(&text).map_err(syntax)?;
    let mut config: Config = toml::from_str(&text).map_err(syntax)?;
    own_paths(&mut config, &table);
    let errors = check(&config);
    if errors.is_empty() { Ok(config) } else { Err(ConfigError::Values { path: path.to_path_buf(), errors }) }
}

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// The parser's message with the key that the line is about and what is allowed there.
fn explain(text: &str, line: usize, message: &str) -> String {
    let message = message.trim().replace('\n', "; ");
    let section = text.lines().take(line).filter_map(|l| l.trim().strip_prefix("[")).last();
    let section = section.and_then(|s| s.split(']').next()).map(str::trim);
    let key = text.lines().nth(line - 1).and_then(|l| l.split_once('=')).map(|(key, _)| key.trim());
    let name = match (section, key) {
        (Some(section), Some(key)) => format!("{section}.{key}"),
        (None, Some(key)) => key.to_string(),
        (_, None) => return message,
    };
    match allowed(&name) {
        Some(allowed) => format!("{name}: {message}; allowed: {allowed}"),
        None => format!("{name}: {message}"),
    }
}

/// Moves the paths that the file does not name to where an ordinary user may write.
fn own_paths(config: &mut Config, file: &toml::Table) {
    if crate::sys::user::is_root() {
        return;
    }
    let named = |section: &str, key: &str| file.get(section).and_then(|s| s.get(key)).is_some();
    let directory = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    let uid = nix::unistd::getuid();
    let run = directory("XDG_RUNTIME_DIR").unwrap_or_else(|| PathBuf::from(format!("/tmp/gamegend-{uid}")));
    let data = directory("XDG_DATA_HOME").or_else(|| directory("HOME").map(|home| home.join(".local/share")));
    if !named("control", "socket") {
        config.control.socket = run.join("gamegend.sock");
    }
    if !named("state", "pid_file") {
        config.state.pid_file = run.join("gamegend.pid");
    }
    if !named("state", "directory") {
        config.state.directory = data.unwrap_or_else(|| run.clone()).join("gamegend");
    }
}

/// The folder of the model as an absolute path without links: the configured one, else the first that exists of the
/// version in use and the shipped model in the share directory, and `models/` beside the program (its folder, and the
/// two above it, where a build directory keeps its programs).
///
/// Errors: `NoModel` with the folders that were looked at.
pub fn resolve_model(config: &Config, program: &Path) -> Result<PathBuf, ConfigError> {
    let candidates: Vec<PathBuf> = if config.model.path.as_os_str().is_empty() {
        let beside = program.ancestors().skip(1).take(3).map(|p| p.join("models").join(SHIPPED_MODEL));
        let share = [MODEL_CURRENT, SHIPPED_MODEL].map(|name| Path::new(MODELS_DIRECTORY).join(name));
        share.into_iter().chain(beside).collect()
    } else {
        vec![config.model.path.clone()]
    };
    match candidates.iter().find(|p| p.join(MODEL_INDEX).is_file()) {
        Some(found) => Ok(std::fs::canonicalize(found).unwrap_or_else(|_| found.clone())),
        None => Err(ConfigError::NoModel(candidates.iter().map(|p| p.join(MODEL_INDEX)).collect())),
    }
}

/// The configuration in force after a reload, and what has to happen for it.
pub fn reload(old: &Config, path: Option<&Path>) -> Result<(Config, super::Changes), ConfigError> {
    let new = load(path)?;
    Ok((diff::merged(old, &new), super::diff(old, &new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(name: &str, text: &str) -> Result<Config, ConfigError> {
        let path = std::env::temp_dir().join(format!("gamegend-config-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("a temporary file");
        let result = load(Some(&path));
        std::fs::remove_file(&path).expect("ours");
        result
    }

    fn message(name: &str, text: &str) -> String {
        load_text(name, text).expect_err("it is wrong").to_string()
    }

    #[test]
    fn a_file_overrides_what_it_names() {
        let config = load_text("good", "[http]\nlisten = \"[::1]:9000\"\n[gpu]\nthreads = 2\n").expect("it is right");
        assert_eq!(config.http.listen.port(), 9000);
        assert_eq!(config.gpu.threads, 2);
        assert_eq!(config.gpu.device, "auto");
    }

    #[test]
    fn messages_name_file_line_key_and_what_is_allowed() {
        let text = message("unknown", "[gpu]\ndevice = \"cpu\"\nthread = 3\n");
        assert!(text.contains(":3: ") && text.contains("thread") && text.contains("threads"), "{text}");
        let text = message("address", "\n[http]\nlisten = \"localhost\"\n");
        assert!(text.contains(":3: http.listen: ") && text.contains("127.0.0.1:8420"), "{text}");
        let text = message("syntax", "[http\nlisten = 3\n");
        assert!(text.contains(":1: "), "{text}");
        let text = message("section", "[htp]\n");
        assert!(text.contains("htp") && text.contains("http"), "{text}");
        let text = message("values", "[log]\nlevel = \"loud\"\nfacility = \"mail\"\n");
        assert!(text.contains("log.level: \"loud\"") && text.contains("log.facility"), "{text}");
    }

    #[test]
    fn a_missing_file_is_no_input() {
        let error = load(Some(Path::new("/nonexistent/gamegend.toml"))).expect_err("it does not exist");
        assert_eq!(error.exit(), Exit::NoInput);
        assert!(matches!(error, ConfigError::Read { .. }));
    }

    #[test]
    fn a_model_is_a_folder_with_an_index() {
        let mut config = Config::default();
        config.model.path = "/nonexistent/model".into();
        let error = resolve_model(&config, Path::new("/usr/local/sbin/gamegend")).expect_err("it does not exist");
        assert!(error.to_string().contains("/nonexistent/model/model_index.json"));
        assert_eq!(error.exit(), Exit::NoInput);
    }
}
