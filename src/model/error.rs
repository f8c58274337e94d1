//! What can go wrong between a model folder and a frame.

use std::io;
use std::path::PathBuf;

use crate::compute::ComputeError;

/// Errors of loading and running a model. Each names the file, the tensor or the field, what was found and what is
/// needed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// JSON that does not parse, or a field that is missing, unknown or of the wrong type.
    #[error("{path} is not the configuration that is needed here")]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// A field whose value is outside of what this program can run.
    #[error("{path}: {field} is {found}, needs {needs}")]
    Config { path: PathBuf, field: String, found: String, needs: String },
    #[error("{path}: the tokenizer is unusable: {what}")]
    Tokenizer { path: PathBuf, what: String },
    /// A weight file that is truncated, or whose header lies about its data.
    #[error("{path}: {what}")]
    File { path: PathBuf, what: String },
    /// A tensor that is missing, unexpected, misshapen or of the wrong type.
    #[error("{path}: tensor {tensor} {what}")]
    Tensor { path: PathBuf, tensor: String, what: String },
    /// A wish of a session that the model cannot fulfil.
    #[error("{field} is {found}, allowed is {allowed}")]
    Request { field: &'static str, found: String, allowed: String },
    #[error("the device refused the model's work")]
    Compute(#[from] ComputeError),
}
