//! Weight files: checked reading, dequantisation, and the layout that the operations want.
//!
//! A file is untrusted input. Its size and header are checked before anything is allocated for them, the offsets and
//! types by the `safetensors` crate and again here, and every tensor against the list that a module expects: one that
//! is missing, extra, misshapen, of a wrong type or not finite is an error that names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use super::ModelError;
use super::limits::{HEADER_BYTES_MAX, JSON_BYTES_MAX, SHARDS_MAX, WEIGHTS_BYTES_MAX};
use crate::compute::{Storage, WeightSet};

/// How a tensor of a file becomes weights of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bias or norm weight: f32 everywhere.
    Vector,
    /// A matrix `[out, in]`, stored as it is.
    Matrix,
    /// A 1x1 convolution `[out, in, 1, 1]`, stored as the matrix `[out, in]`.
    Pointwise,
    /// A 3x3 convolution `[out, in, 3, 3]`, stored as `[out, 3, 3, in]`.
    Conv3x3,
    /// A 1x1 convolution over two frames `[out, 2 * in, 1, 1]`, stored as two matrices `[out, in]` with `.now` and
    /// `.before` after the name.
    TwoFrames,
    /// Not uploaded: the module derives something from it.
    Host,
}

/// A tensor that a module expects in its file.
#[derive(Clone, Debug)]
pub struct Expected {
    pub name: String,
    pub dims: Vec<usize>,
    pub kind: Kind,
}

impl Expected {
    pub fn new(name: impl Into<String>, dims: &[usize], kind: Kind) -> Expected {
        Expected { name: name.into(), dims: dims.to_vec(), kind }
    }
}

/// Values of the tensors that stay on the host, by name.
pub type HostTensors = BTreeMap<String, Vec<f32>>;

/// The file of every tensor.
type ShardOf = BTreeMap<String, String>;

/// Reads a whole file of at most `max` bytes. Errors: [`ModelError::Read`], [`ModelError::File`] if it is larger.
pub fn read_limited(path: &Path, max: u64) -> Result<Vec<u8>, ModelError> {
    let fail = |source| ModelError::Read { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    if size > max {
        return Err(bad_file(path, format!("the file has {size} bytes, allowed are {max}")));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(max).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

fn bad_file(path: &Path, what: impl Into<String>) -> ModelError {
    ModelError::File { path: path.to_path_buf(), what: what.into() }
}

fn bad_tensor(path: &Path, tensor: &str, what: impl Into<String>) -> ModelError {
    ModelError::Tensor { path: path.to_path_buf(), tensor: tensor.to_string(), what: what.into() }
}

/// The weights of a model folder as they are read, component by component.
#[derive(Default)]
pub struct Loader {
    set: WeightSet,
    files: Vec<(String, Vec<u8>)>,
    parameters: u64,
}

impl Loader {
    pub fn new() -> Loader {
        Loader::default()
    }

    /// Reads the file or shards `stem` of `dir`/`component`, checks them against `expected`, and adds every tensor to
    /// the set under `component.name`. Returns the tensors that stay on the host.
    pub fn component(
        &mut self,
        dir: &Path,
        component: &str,
        stem: &str,
        expected: &[Expected],
    ) -> Result<HostTensors, ModelError> {
        let folder = dir.join(component);
        let (names, index) = shards(&folder, stem)?;
        let mut wanted: BTreeMap<&str, &Expected> = expected.iter().map(|e| (e.name.as_str(), e)).collect();
        let mut found: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        for name in &names {
            let path = folder.join(name);
            let bytes = read_limited(&path, WEIGHTS_BYTES_MAX)?;
            let file = open(&path, &bytes)?;
            for (tensor, _) in file.iter() {
                if index.as_ref().is_some_and(|i| i.get(tensor) != Some(name)) {
                    return Err(bad_tensor(&path, tensor, "is not where the index says"));
                }
            }
            take(&path, &file, &mut wanted, &mut found)?;
            self.files.push((format!("{component}/{name}"), bytes));
        }
        self.place_all(component, &folder.join(&names[0]), expected, found)
    }

    /// The same for a component whose one file, at `path`, was read by somebody else.
    pub fn file(
        &mut self,
        component: &str,
        path: &Path,
        bytes: Vec<u8>,
        expected: &[Expected],
    ) -> Result<HostTensors, ModelError> {
        let mut wanted: BTreeMap<&str, &Expected> = expected.iter().map(|e| (e.name.as_str(), e)).collect();
        let mut found: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        take(path, &open(path, &bytes)?, &mut wanted, &mut found)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.files.push((format!("{component}/{name}"), bytes));
        self.place_all(component, path, expected, found)
    }

    /// Puts what was found where it belongs. Errors: a tensor that is missing.
    fn place_all(
        &mut self,
        component: &str,
        path: &Path,
        expected: &[Expected],
        mut found: BTreeMap<&str, Vec<f32>>,
    ) -> Result<HostTensors, ModelError> {
        if let Some(missing) = expected.iter().find(|e| !found.contains_key(e.name.as_str())) {
            let dims = &missing.dims;
            return Err(bad_tensor(path, &missing.name, format!("of shape {dims:?} is missing")));
        }
        let mut host = HostTensors::new();
        for e in expected {
            let Some(values) = found.remove(e.name.as_str()) else { continue };
            self.parameters += values.len() as u64;
            place(&mut self.set, &mut host, component, e, values);
        }
        Ok(host)
    }

    /// The set, to which modules add what they derive.
    pub fn set(&mut self) -> &mut WeightSet {
        &mut self.set
    }

    /// The weights, their number, and the SHA-256 of all files in order of their paths, in hexadecimal.
    pub fn finish(mut self) -> (WeightSet, u64, String) {
        self.files.sort_by(|a, b| a.0.cmp(&b.0));
        let mut hash = Sha256::new();
        for (_, bytes) in &self.files {
            hash.update(bytes);
        }
        let hex = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        (self.set, self.parameters, hex)
    }
}

/// Names of the files of a component, and the shard of every tensor if there is an index.
fn shards(folder: &Path, stem: &str) -> Result<(Vec<String>, Option<ShardOf>), ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = folder.join(format!("{stem}.safetensors.index.json"));
    let (names, index) = if path.exists() {
        let bytes = read_limited(&path, JSON_BYTES_MAX)?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|source| ModelError::Json { path: path.clone(), source })?;
        let names: BTreeSet<String> = index.weight_map.values().cloned().collect();
        let plain = |n: &String| n.ends_with(".safetensors") && !n.contains(['/', '\\', '\0']) && !n.starts_with('.');
        if let Some(name) = names.iter().find(|n| !plain(n)) {
            return Err(bad_file(&path, format!("{name:?} is not the name of a weight file of this folder")));
        }
        if names.is_empty() || names.len() > SHARDS_MAX {
            return Err(bad_file(&path, format!("it names {} files, allowed are 1..={SHARDS_MAX}", names.len())));
        }
        (names.into_iter().collect::<Vec<_>>(), Some(index.weight_map))
    } else {
        (vec![format!("{stem}.safetensors")], None)
    };
    let fail = |source| ModelError::Read { path: folder.to_path_buf(), source };
    for entry in fs::read_dir(folder).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") && !names.contains(&name) {
            return Err(bad_file(&folder.join(name), "the file belongs to no tensor of this model"));
        }
    }
    Ok((names, index))
}

/// Checks the header of a file. The crate checks that tensors neither overlap nor leave gaps, and that their sizes
/// agree with shape and type.
fn open<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, ModelError> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(bad_file(path, format!("the file is cut short: {} bytes, a header has 8 or more", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        return Err(bad_file(path, format!("the header claims {length} bytes, allowed are {HEADER_BYTES_MAX}")));
    }
    if length > rest.len() as u64 {
        let have = rest.len();
        return Err(bad_file(
            path,
            format!("the file is cut short: the header claims {length} bytes, {have} are left"),
        ));
    }
    use safetensors::SafeTensorError as E;
    SafeTensors::deserialize(bytes).map_err(|e| match e {
        E::MetadataIncompleteBuffer => {
            bad_file(path, "the file is cut short or too long: its data does not end where the header says")
        }
        E::InvalidOffset(name) => bad_tensor(path, &name, "has offsets that overlap or leave a gap"),
        other => bad_file(path, other.to_string()),
    })
}

/// Moves the tensors of one file from `wanted` to `found`. Scales of 8-bit tensors are used up by their tensor.
fn take<'a>(
    path: &Path,
    file: &SafeTensors<'_>,
    wanted: &mut BTreeMap<&'a str, &'a Expected>,
    found: &mut BTreeMap<&'a str, Vec<f32>>,
) -> Result<(), ModelError> {
    for (name, view) in file.iter() {
        if let Some(matrix) = name.strip_suffix("_scale")
            && file.tensor(matrix).is_ok_and(|m| m.dtype() == Dtype::I8)
        {
            continue;
        }
        let Some((key, expected)) = wanted.remove_entry(name) else {
            let what = if found.contains_key(name) { "is in two files" } else { "is not part of this model" };
            return Err(bad_tensor(path, name, what));
        };
        if view.shape() != expected.dims {
            let (found, needs) = (view.shape(), &expected.dims);
            return Err(bad_tensor(path, name, format!("has shape {found:?}, needs {needs:?}")));
        }
        let values = match view.dtype() {
            Dtype::I8 => dequantised(path, file, name, &view)?,
            _ => floats(&view).ok_or_else(|| {
                bad_tensor(path, name, format!("is {:?}, needs F32, F16, BF16 or I8 with scales", view.dtype()))
            })?,
        };
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(bad_tensor(path, name, format!("has the value {} at {i}", values[i])));
        }
        found.insert(key, values);
    }
    Ok(())
}

/// Values of a tensor of floats; `None` for any other type.
fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    let wide = |c: &[u8]| f32::from_le_bytes([c[0], c[1], c[2], c[3]]);
    match view.dtype() {
        Dtype::F32 => Some(data.chunks_exact(4).map(wide).collect()),
        Dtype::F16 => Some(data.chunks_exact(2).map(|c| f16::from_le_bytes([c[0], c[1]]).to_f32()).collect()),
        Dtype::BF16 => Some(data.chunks_exact(2).map(|c| bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect()),
        _ => None,
    }
}

/// Values of an 8-bit tensor: `q * scale[row]`, with one scale for each entry of the first dimension.
fn dequantised(path: &Path, file: &SafeTensors<'_>, name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, ModelError> {
    let scale_name = format!("{name}_scale");
    let rows = view.shape().first().copied().unwrap_or(1);
    let scale = file.tensor(&scale_name).map_err(|_| bad_tensor(path, &scale_name, "is missing"))?;
    if scale.shape() != [rows] {
        return Err(bad_tensor(path, &scale_name, format!("has shape {:?}, needs [{rows}]", scale.shape())));
    }
    let scales = floats(&scale)
        .ok_or_else(|| bad_tensor(path, &scale_name, format!("is {:?}, needs F32, F16 or BF16", scale.dtype())))?;
    let cols = view.data().len() / rows.max(1);
    let row = |(q, s): (&[u8], &f32)| q.iter().map(|&q| f32::from(q as i8) * s).collect::<Vec<f32>>();
    Ok(view.data().chunks(cols.max(1)).zip(&scales).flat_map(row).collect())
}

/// Adds a tensor to the set in the layout of its kind.
fn place(set: &mut WeightSet, host: &mut HostTensors, component: &str, e: &Expected, values: Vec<f32>) {
    let name = format!("{component}.{}", e.name);
    let (out, inner) = (e.dims[0], e.dims.get(1).copied().unwrap_or(1));
    match e.kind {
        Kind::Vector => drop(set.insert(name, &e.dims, Storage::Vector, values)),
        Kind::Matrix => drop(set.insert(name, &e.dims, Storage::Matrix, values)),
        Kind::Pointwise => drop(set.insert(name, &[out, inner], Storage::Matrix, values)),
        Kind::Conv3x3 => drop(set.insert(name, &[out, 3, 3, inner], Storage::Matrix, channels_last(&values, inner))),
        Kind::TwoFrames => {
            let half = |from: usize| -> Vec<f32> {
                values.chunks(inner).flat_map(|row| &row[from..from + inner / 2]).copied().collect()
            };
            set.insert(format!("{name}.now"), &[out, inner / 2], Storage::Matrix, half(0));
            set.insert(format!("{name}.before"), &[out, inner / 2], Storage::Matrix, half(inner / 2));
        }
        Kind::Host => drop(host.insert(e.name.clone(), values)),
    }
}

/// `[out, in, 3, 3]` to `[out, 3, 3, in]`.
fn channels_last(values: &[f32], inner: usize) -> Vec<f32> {
    let kernel = |o: &[f32]| (0..9).flat_map(|k| (0..inner).map(move |i| i * 9 + k)).map(|i| o[i]).collect::<Vec<_>>();
    values.chunks(inner * 9).flat_map(kernel).collect()
}
