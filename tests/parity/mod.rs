//! Recorded tensors and executors for the tests that compare the engine with PyTorch.
//!
//! `GAMEGEN_TEST_MODEL` and `GAMEGEN_TEST_FIXTURES` name other folders than the shipped ones.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use gamegend::compute::gpu::{self, GpuExecutor, GpuOptions, Validation};
use gamegend::compute::{Executor, Precision, cpu, reference};
use gamegend::model::Model;
use gamegend::vk::Canary;
use safetensors::SafeTensors;

/// Largest error that is allowed, as a part of the largest value.
const F32_ERROR: f32 = 1e-3;
const F16_ERROR: f32 = 2e-2;

pub fn folder(variable: &str, default: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    std::env::var_os(variable).map_or_else(|| root.join(default), PathBuf::from)
}

pub fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let load = || Model::load(&folder("GAMEGEN_TEST_MODEL", "models/gamegen-x-mini")).expect("the shipped model loads");
    MODEL.get_or_init(load).clone()
}

/// One file of recorded tensors.
pub struct Fixture {
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: BTreeMap<String, String>,
}

#[derive(Clone)]
pub struct Tensor {
    pub dims: Vec<usize>,
    pub data: Vec<f32>,
}

impl Fixture {
    /// A file that was recorded with the weights of this model.
    pub fn open(name: &str) -> Fixture {
        let fixture = Fixture::of_any_model(name);
        assert_hash(&fixture.metadata["model_sha256"]);
        fixture
    }

    /// A file in which no weights have a part.
    pub fn of_any_model(name: &str) -> Fixture {
        let path = folder("GAMEGEN_TEST_FIXTURES", "tests/fixtures").join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a fixture has a header");
        let metadata: BTreeMap<_, _> = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let file = SafeTensors::deserialize(&bytes).expect("a fixture is whole");
        let value = |view: &safetensors::tensor::TensorView<'_>| {
            let word = |c: &[u8]| [c[0], c[1], c[2], c[3]];
            let words = view.data().chunks_exact(4).map(word);
            let data = match view.dtype() {
                safetensors::Dtype::U8 => view.data().iter().map(|b| f32::from(*b)).collect(),
                safetensors::Dtype::I32 => words.map(|w| i32::from_le_bytes(w) as f32).collect(),
                _ => words.map(f32::from_le_bytes).collect(),
            };
            Tensor { dims: view.shape().to_vec(), data }
        };
        Fixture { tensors: file.iter().map(|(n, v)| (n.to_string(), value(&v))).collect(), metadata }
    }

    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the fixture has no {name}"))
    }

    pub fn data(&self, name: &str) -> &[f32] {
        &self.get(name).data
    }
}

pub fn assert_hash(recorded: &str) {
    assert_eq!(
        recorded,
        model().info().hash,
        "the fixtures are of another model: run `python3 training/fixtures.py models/gamegen-x-mini tests/fixtures`"
    );
}

/// Compares values with the recorded ones.
pub struct Judge {
    name: String,
    allowed: f32,
    worst: (f32, String),
    /// Where the validation layers complain, on a Vulkan driver.
    canary: Option<Arc<Canary>>,
}

impl Judge {
    pub fn same(&mut self, what: &str, found: &[f32], recorded: &[f32]) {
        assert_eq!(found.len(), recorded.len(), "{}: {what}", self.name);
        let largest = recorded.iter().fold(0.0f32, |m, v| m.max(v.abs())).max(1e-6);
        let off = found.iter().zip(recorded).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        let error = off / largest;
        assert!(error <= self.allowed, "{}: {what} is off by {error:e} of its largest value {largest}", self.name);
        assert!(found.iter().all(|v| v.is_finite()), "{}: {what}", self.name);
        if error > self.worst.0 {
            self.worst = (error, what.to_string());
        }
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        println!("{}: largest error {:e} at {}", self.name, self.worst.0, self.worst.1);
        let messages = self.canary.as_ref().map(|canary| canary.drain()).unwrap_or_default();
        assert!(messages.is_empty() || std::thread::panicking(), "validation: {}", messages.join("\n"));
    }
}

/// Every executor that is here, with a judge of what it gives.
pub fn executors() -> Vec<(Box<dyn Executor>, Judge)> {
    let plain: [Box<dyn Executor>; 3] = [
        Box::new(reference::ReferenceExecutor::new(Precision::F32)),
        Box::new(reference::ReferenceExecutor::new(Precision::F16)),
        Box::new(cpu::CpuExecutor::new(2).expect("two threads")),
    ];
    let judged = |executor: Box<dyn Executor>, canary: Option<Arc<Canary>>| {
        let info = executor.device().clone();
        let allowed = if info.precision == Precision::F32 { F32_ERROR } else { F16_ERROR };
        let name = format!("{:?} {:?} ({})", info.kind, info.precision, info.name);
        (executor, Judge { name, allowed, worst: (0.0, String::new()), canary })
    };
    let mut all: Vec<_> = plain.into_iter().map(|executor| judged(executor, None)).collect();
    for executor in vulkan() {
        let canary = executor.canary();
        all.push(judged(Box::new(executor), Some(canary)));
    }
    all
}

/// Vulkan drivers, in both precisions, with the validation layers where they are installed.
fn vulkan() -> Vec<GpuExecutor> {
    let entries = gpu::devices().unwrap_or_default();
    if entries.is_empty() {
        let required = std::env::var("GAMEGEND_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|r| r == "gpu"), "a Vulkan driver is required");
        println!("skipped: no Vulkan driver");
    }
    let mut all = Vec::new();
    for (entry, precision) in entries.iter().flat_map(|e| [(e, Precision::F32), (e, Precision::F16)]) {
        let options = GpuOptions { precision: Some(precision), validation: Validation::Core, ..GpuOptions::default() };
        match GpuExecutor::open_with(entry.index, &options) {
            Ok(executor) => all.push(executor),
            Err(e) => println!("skipped: {} in {precision:?}: {e}", entry.name),
        }
    }
    all
}
