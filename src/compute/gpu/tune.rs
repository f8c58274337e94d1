//! The tuner: finds which tile computes a product fastest on this device, once, and remembers it in a file.
//!
//! It runs when a plan is prepared, never in a tick. A tile is taken only if it gives the same bits as the tile that
//! would be guessed, so that what was measured on a device changes no frame. The file lies beside the driver's
//! compiled kernels; one that is damaged, of another version or of another device counts as none.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::{ComputeError, DType};
use super::GpuExecutor;
use super::kernels::{self, Dispatch, Finish, KernelId, Matrix, Operands, Product, Tile};
use crate::vk::{Buffer, Place, Recorder, Stage};

const VERSION: u32 = 2;
/// Rows that are measured at most: more of them change no tile.
const ROWS_MAX: usize = 16384;
/// Timed launches of a tile, after one that warms it up; the shortest counts.
const LAUNCHES: usize = 3;
/// Elements at both ends of a result that are compared.
const COMPARED: usize = 1 << 16;
/// Elements of noise that operands are filled with, over and over.
const NOISE: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    device: String,
    tiles: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kernel: String,
    m: usize,
    n: usize,
    k: usize,
    finish: Finish,
    tile: Tile,
}

/// Where the tiles of a device are kept, beside the file of its compiled kernels.
pub(super) fn path(pipeline_cache: &Path) -> PathBuf {
    pipeline_cache.with_extension("tiles.json")
}

/// The tiles of a file that was written for this device.
pub(super) fn load(path: &Path, device: &str, matrix: &Matrix) -> BTreeMap<Product, Tile> {
    let found = fs::read(path).map_err(|e| e.to_string()).and_then(|text| parse(&text, device, matrix));
    found.unwrap_or_else(|why| {
        log::debug!("measured tiles are not taken from {}: {why}", path.display());
        BTreeMap::new()
    })
}

fn parse(text: &[u8], device: &str, matrix: &Matrix) -> Result<BTreeMap<Product, Tile>, String> {
    let file: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    if (file.version, file.device.as_str()) != (VERSION, device) {
        return Err("it is of another version or device".to_string());
    }
    let mut tiles = BTreeMap::new();
    for Entry { kernel, m, n, k, finish, tile } in file.tiles {
        let known = [KernelId::LinearCm, KernelId::Conv3x3Cm].into_iter().find(|id| id.kernel().name == kernel);
        let kernel = known.ok_or_else(|| format!("{kernel} has no tiles"))?;
        if !matrix.tiles().any(|t| t == tile) {
            return Err(format!("the device has no tile {tile:?}"));
        }
        tiles.insert(Product { kernel, m, n, k, finish }, tile);
    }
    Ok(tiles)
}

fn print(device: &str, tiles: &BTreeMap<Product, Tile>) -> String {
    let entry = |(p, tile): (&Product, &Tile)| {
        let kernel = p.kernel.kernel().name.to_string();
        Entry { kernel, m: p.m, n: p.n, k: p.k, finish: p.finish, tile: *tile }
    };
    let file = File { version: VERSION, device: device.to_string(), tiles: tiles.iter().map(entry).collect() };
    serde_json::to_string_pretty(&file).expect("numbers and names become JSON")
}

/// Writes the file anew, as a whole. A failure is logged: it costs measuring again.
fn save(path: &Path, text: &str) {
    let new = path.with_extension(format!("new.{}", std::process::id()));
    if let Err(e) = fs::write(&new, text).and_then(|()| fs::rename(&new, path)) {
        log::warn!("measured tiles not written to {}: {e}", path.display());
        let _ = fs::remove_file(&new);
    }
}

/// Operands and result of the products that are measured.
struct Scratch {
    x: Arc<Buffer>,
    w: Arc<Buffer>,
    y: Arc<Buffer>,
}

/// How long a tile took.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    pub tile: Tile,
    pub time: Duration,
}

/// The product as it is measured: with fewer rows if there are many.
fn measured(p: &Product) -> Product {
    Product { m: p.m.min(ROWS_MAX), ..*p }
}

impl GpuExecutor {
    /// Measures the products among these that were not yet, and remembers their tiles.
    pub(super) fn tune(&mut self, products: &[Product]) -> Result<(), ComputeError> {
        let new: Vec<Product> = products.iter().filter(|p| !self.target.tuned.contains_key(p)).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        let scratch = self.scratch(&new.iter().map(measured).collect::<Vec<_>>())?;
        for product in &new {
            let tile = self.best(product, &scratch)?;
            self.target.tuned.insert(*product, tile);
        }
        log::info!("{}: measured {} products in {:?}", self.info.name, new.len(), begin.elapsed());
        self.cache.save();
        if let Some(path) = &self.tiles {
            save(path, &print(&self.device.identity(), &self.target.tuned));
        }
        Ok(())
    }

    /// The fastest tile that agrees with the guessed one.
    fn best(&mut self, product: &Product, scratch: &Scratch) -> Result<Tile, ComputeError> {
        let matrix = self.target.matrix.expect("only the matrix tier has products");
        let guess = matrix.guess(product);
        let mut times = self.times(&measured(product), scratch)?;
        times.sort_by_key(|t| t.time);
        let expected = self.sample(&measured(product), guess, scratch)?;
        for Timed { tile, .. } in times {
            if tile == guess || self.sample(&measured(product), tile, scratch)? == expected {
                return Ok(tile);
            }
            log::debug!("{product:?}: {tile:?} gives other bits and is not taken");
        }
        Ok(guess)
    }

    /// Buffers large enough for each of the products, full of noise.
    fn scratch(&mut self, products: &[Product]) -> Result<Scratch, ComputeError> {
        let bytes = |part: fn(&Product) -> usize| {
            products.iter().map(|p| 2 * part(p) as u64).max().unwrap_or(0).max(2 * NOISE as u64)
        };
        let mut buffer = |name, bytes| -> Result<Arc<Buffer>, ComputeError> {
            let buffer = Arc::new(Buffer::new(&self.device, name, bytes, Place::Device)?);
            self.transfer.upload(&buffer, 0, DType::F16, &noise())?;
            let mut r = Recorder::new(&self.device, name, 0)?;
            r.barrier(Stage::Transfer, Stage::Transfer);
            let block = 2 * NOISE as u64;
            for at in (block..buffer.bytes()).step_by(block as usize) {
                r.copy(&buffer, 0, &buffer, at, block.min(buffer.bytes() - at));
            }
            r.finish()?.run()?;
            Ok(buffer)
        };
        Ok(Scratch {
            x: buffer("tuner: x", bytes(|p| p.m * p.k))?,
            w: buffer("tuner: w", bytes(|p| p.n * p.k))?,
            y: buffer("tuner: y", bytes(|p| p.m * p.n))?,
        })
    }

    fn launch(&self, product: &Product, tile: Tile, s: &Scratch) -> Dispatch {
        let operands = Operands { x: s.x.address(), w: s.w.address(), y: s.y.address() };
        kernels::sample(&self.target, product, tile, operands)
    }

    /// How long every sensible tile takes; empty if the device has no clock.
    fn times(&mut self, product: &Product, scratch: &Scratch) -> Result<Vec<Timed>, ComputeError> {
        let matrix = self.target.matrix.expect("only the matrix tier has products");
        // Tiles much larger than the product compute mostly nothing.
        let sensible = |t: &Tile| {
            let within = |side: u32, of: usize| side as usize <= (2 * of).max(32);
            within(t.bm, product.m) && within(t.bn, product.n)
        };
        let tiles: Vec<Tile> = matrix.tiles().filter(sensible).collect();
        let dispatches: Vec<Dispatch> = tiles.iter().map(|&tile| self.launch(product, tile, scratch)).collect();
        self.pipelines(dispatches.iter().map(Dispatch::variant))?;
        let mut r = Recorder::new(&self.device, "tuner", (dispatches.len() * (LAUNCHES + 1)) as u32)?;
        for buffer in [&scratch.x, &scratch.w, &scratch.y] {
            r.keep(buffer);
        }
        for d in &dispatches {
            for _ in 0..=LAUNCHES {
                r.dispatch(&self.pipelines[&d.variant()], d.push.bytes(), d.grid);
                r.barrier(Stage::Compute, Stage::Compute);
                r.timestamp();
            }
        }
        let mut commands = r.finish()?;
        commands.run()?;
        // Of every tile's timestamps the first ends its warm-up, so that the interval before it is no launch's.
        let intervals = commands.intervals()?;
        let own = |i: usize| intervals.get(i * (LAUNCHES + 1)..i * (LAUNCHES + 1) + LAUNCHES)?.iter().min().copied();
        Ok(tiles.iter().enumerate().filter_map(|(i, &tile)| own(i).map(|time| Timed { tile, time })).collect())
    }

    /// Both ends of the result that a tile gives.
    fn sample(&mut self, product: &Product, tile: Tile, scratch: &Scratch) -> Result<Vec<f32>, ComputeError> {
        let dispatch = self.launch(product, tile, scratch);
        self.pipelines([dispatch.variant()])?;
        let mut r = Recorder::new(&self.device, "tuner: sample", 0)?;
        for buffer in [&scratch.x, &scratch.w, &scratch.y] {
            r.keep(buffer);
        }
        r.zero(&scratch.y);
        r.barrier(Stage::Transfer, Stage::Compute);
        r.dispatch(&self.pipelines[&dispatch.variant()], dispatch.push.bytes(), dispatch.grid);
        r.finish()?.run()?;
        let all = product.m * product.n;
        let mut ends = vec![0.0; 2 * COMPARED.min(all)];
        let (first, last) = ends.split_at_mut(COMPARED.min(all));
        self.transfer.download(&scratch.y, 0, DType::F16, first)?;
        self.transfer.download(&scratch.y, 2 * (all - last.len()) as u64, DType::F16, last)?;
        Ok(ends)
    }

    /// How long every sensible tile takes for a product of the matrix tier: for benchmarks.
    ///
    /// Errors: [`ComputeError::Device`] if the device has no matrix tier; otherwise those of the device.
    pub fn measure(
        &mut self,
        kernel: &str,
        (m, n, k): (usize, usize, usize),
        finish: Finish,
    ) -> Result<Vec<Timed>, ComputeError> {
        let known = [KernelId::LinearCm, KernelId::Conv3x3Cm].into_iter().find(|id| id.kernel().name == kernel);
        let kernel = known
            .filter(|_| self.target.matrix.is_some())
            .ok_or_else(|| ComputeError::Device { what: format!("{} has no tiles for {kernel}", self.info.name) })?;
        let product = Product { kernel, m, n, k, finish };
        let scratch = self.scratch(&[product])?;
        self.times(&product, &scratch)
    }

    /// The tiles of this device for products, by the number that [`GpuOptions::tile`](super::GpuOptions) takes.
    pub fn tiles(&self) -> Vec<Tile> {
        self.target.matrix.iter().flat_map(|m| m.tiles()).collect()
    }
}

/// Values in -0.25 .. 0.25 that are the same each time.
fn noise() -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        // xorshift (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 25) as f32 - 0.25
    };
    (0..NOISE).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vk::MatrixShape;

    fn matrix() -> Matrix {
        let shape = MatrixShape { m: 16, n: 16, k: 16 };
        Matrix { shape, lanes: 32, shared_bytes: 48 << 10, local_max: 1024 }
    }

    fn tiles() -> BTreeMap<Product, Tile> {
        let m = matrix();
        let product = |kernel, m| Product { kernel, m, n: 384, k: 64, finish: Finish { act: 1, flags: 3 } };
        let last = m.tiles().last().expect("there are some");
        let first = m.tiles().next().expect("there are some");
        BTreeMap::from([(product(KernelId::LinearCm, 240), last), (product(KernelId::Conv3x3Cm, 99), first)])
    }

    #[test]
    fn what_is_written_is_read() {
        let text = print("a device", &tiles());
        assert_eq!(parse(text.as_bytes(), "a device", &matrix()), Ok(tiles()));
    }

    #[test]
    fn files_of_others_and_damaged_ones_count_as_none() {
        let text = print("a device", &tiles());
        assert!(parse(text.as_bytes(), "another", &matrix()).is_err());
        let poor = Matrix { local_max: 64, ..matrix() };
        assert!(parse(text.as_bytes(), "a device", &poor).is_err());
        for (from, to) in [("\"version\": 2", "\"version\": 1"), ("linear_cm", "add"), ("\"bm\": 192", "\"bm\": 193")] {
            assert!(text.contains(from), "{text}");
            assert!(parse(text.replace(from, to).as_bytes(), "a device", &matrix()).is_err(), "{from}");
        }
        for end in 0..text.len() {
            assert!(parse(&text.as_bytes()[..end], "a device", &matrix()).is_err(), "cut at {end}");
        }
        assert_eq!(load(Path::new("/nonexistent/tiles"), "a device", &matrix()), BTreeMap::new());
    }
}
