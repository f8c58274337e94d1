//! One denoising step of the paper's model with guidance, and what its products and its attention reach.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gamegend::compute::gpu::GpuOptions;
use gamegend::compute::op::Op;
use gamegend::compute::{self, Executor, Output, Plan, Profile, Run, Tensor};
use gamegend::model::paper::{self, PaperConfig};
use serde_json::{Map, Value, json};

use super::arguments::Arguments;
use super::{Outcome, kernel_rows};

const RUNS: usize = 5;

pub fn run(a: &Arguments) -> Outcome<Map<String, Value>> {
    let config = PaperConfig::load(&a.paper)?;
    let cache = std::env::temp_dir().join("gamegend-bench-pipelines");
    let options = GpuOptions { pipeline_cache: Some(cache), tune: a.tune, lanes: Some(1), ..GpuOptions::default() };
    let (mut times, mut kernels) = (Map::new(), Map::new());
    let (mut products, mut attentions) = (BTreeMap::new(), BTreeMap::new());
    let weights = Arc::new(config.weights());
    let (mut executor, _) = compute::select_with(&a.device, a.threads, &options)?;
    executor.load_weights(&weights)?;
    let (layout, precision) = (paper::no_state(), executor.device().precision);
    let state = executor.create_state(&layout)?;
    for &size in &a.paper_sizes {
        let name = format!("{}x{}", size.0, size.1);
        let step = paper::step_plan(&config, &weights, &layout, precision, size)?;
        let plan = executor.prepare(step.plan.clone())?;
        let values: Vec<Vec<f32>> = step.inputs.iter().map(|t| numbers(&step.plan, *t)).collect();
        let inputs: Vec<(Tensor, &[f32])> = step.inputs.iter().copied().zip(values.iter().map(Vec::as_slice)).collect();
        let mut y = vec![0.0; step.plan.tensors.shape(step.output).elements()];
        let mut go = |executor: &mut dyn Executor, profile: Option<&mut Profile>| -> Outcome<Duration> {
            let outputs = &mut [(step.output, Output::F32(&mut y))];
            let begin = Instant::now();
            executor.run(Run { plan, states: &[state], inputs: &inputs, params: &[], outputs, profile })?;
            Ok(begin.elapsed())
        };
        go(&mut *executor, None)?;
        let mut all = (0..RUNS).map(|_| go(&mut *executor, None)).collect::<Outcome<Vec<_>>>()?;
        all.sort();
        times.insert(name.clone(), json!(all[RUNS / 2].as_secs_f64() * 1e3));
        eprintln!("{name}: {:.1} ms", all[RUNS / 2].as_secs_f64() * 1e3);
        let mut profile = Profile::default();
        go(&mut *executor, Some(&mut profile))?;
        reached(&step.plan, &profile, &mut products, &mut attentions);
        kernels.insert(name, kernel_rows(&profile));
    }
    let values = json!({ "paper_step_ms": times, "paper_step_by_kernel": kernels, "gemm_tflops": products,
        "attention_tflops": attentions });
    Ok(values.as_object().cloned().unwrap_or_default())
}

/// Numbers around zero for an input.
fn numbers(plan: &Plan, t: Tensor) -> Vec<f32> {
    (0..plan.tensors.shape(t).elements()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
}

/// The median TFLOP/s of each shape, by its name: `MxNxK` of a product, sequences x queries x keys of attention.
fn reached(
    plan: &Plan,
    profile: &Profile,
    products: &mut BTreeMap<String, f64>,
    attentions: &mut BTreeMap<String, f64>,
) {
    let mut rates: BTreeMap<(bool, String), Vec<f64>> = BTreeMap::new();
    for (step, entry) in plan.steps.iter().zip(&profile.entries) {
        let key = match &step.op {
            Op::Linear(op) if op.x.rows > 1024 => (true, format!("{}x{}x{}", op.x.rows, op.y.cols, op.x.cols)),
            Op::Attention(op) => {
                let (q, k) = op.lengths();
                (false, format!("{}x{q}x{k}", op.groups.count))
            }
            _ => continue,
        };
        rates.entry(key).or_default().push(entry.cost.flops as f64 / entry.time.as_secs_f64().max(1e-9) / 1e12);
    }
    for ((product, name), mut all) in rates {
        all.sort_by(f64::total_cmp);
        let into = if product { &mut *products } else { &mut *attentions };
        into.insert(name, all[all.len() / 2]);
    }
}
