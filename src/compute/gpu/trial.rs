//! Attention by itself in every way that it can be cut up: for benchmarks.

use std::sync::Arc;
use std::time::Duration;

use super::super::op::{Attention, Groups};
use super::super::{ComputeError, DType, PlanBuilder, Precision, StateLayout, Tensor, WeightSet};
use super::GpuExecutor;
use super::kernels::{self, Addresses, Dispatch, RowCut, Target};
use crate::compute::Param;
use crate::vk::{Buffer, Place, Recorder, Stage};

/// Timed launches of each, after one that warms up; the median counts.
const LAUNCHES: usize = 11;

/// Sequences, queries, keys, heads and columns of a head.
pub type AttentionShape = (usize, usize, usize, usize, usize);

/// A way to cut attention up and what it takes. `None`: the kernel that takes scores through shared memory.
#[derive(Clone, Debug)]
pub struct AttentionTime {
    pub cut: Option<RowCut>,
    pub time: Duration,
    /// The largest difference to the first one's result.
    pub deviation: f32,
    /// What the driver tells of the kernel.
    pub statistics: Vec<(String, u64)>,
}

/// Queries, then keys and values side by side, then the result, each in a buffer of its own, and the number of keys.
struct Places([u64; 4]);

impl Addresses for Places {
    fn tensor(&self, t: Tensor) -> u64 {
        self.0[t.index()]
    }
    fn param(&self, _: Param, _: usize) -> u64 {
        self.0[3]
    }
    fn seat_table(&self) -> u64 {
        0
    }
}

impl GpuExecutor {
    /// The layout of matrices in words.
    pub fn layout(&self) -> String {
        self.target.layout.map_or("not known".to_string(), |l| format!("{l:?}"))
    }

    /// What each way to cut attention up takes at some shapes.
    pub fn attention_times(
        &mut self,
        shapes: &[AttentionShape],
        cuts: &[RowCut],
    ) -> Result<Vec<Vec<AttentionTime>>, ComputeError> {
        let mut all = Vec::new();
        for &shape in shapes {
            all.push(self.shape_times(shape, cuts)?);
        }
        Ok(all)
    }

    fn shape_times(&mut self, shape: AttentionShape, cuts: &[RowCut]) -> Result<Vec<AttentionTime>, ComputeError> {
        let (g, lq, lk, heads, hd) = shape;
        let n = heads * hd;
        let mut layout = StateLayout::default();
        for rows in [g * lq, g * lk, g * lq] {
            layout.add("x", &[rows, if rows == g * lk && layout.entries().len() == 1 { 2 * n } else { n }], DType::F16);
        }
        let mut b = PlanBuilder::new("attention", Precision::F16, Arc::new(WeightSet::default()), Arc::new(layout));
        let views: Vec<_> = (0..3).map(|i| { let t = b.state(i); b.view(t) }).collect();
        let op = Attention {
            q: views[0], k: views[1].columns(0, n), v: views[1].columns(n, n), heads, scale: 1.0 / (hd as f32).sqrt(),
            key_count: None, bias: None, groups: Groups::blocks(g), y: views[2],
        };
        b.push("op", op)?;
        let plan = b.finish()?;
        let bytes = [g * lq * n, g * lk * 2 * n, g * lq * n, 64].map(|e| 2 * e as u64);
        let mut buffers = Vec::new();
        for b in bytes {
            buffers.push(Arc::new(Buffer::new(&self.device, "attention", b, Place::Device)?));
        }
        for (i, b) in buffers.iter().take(2).enumerate() {
            let values: Vec<f32> = (0..1u32 << 20).map(|x| ((x.wrapping_mul(2_654_435_761).wrapping_add(i as u32 * 77)) >> 8) as f32 / (1 << 22) as f32 - 2.0).collect();
            let mut at = 0;
            while at < bytes[i] {
                let part = ((bytes[i] - at) / 2).min(1 << 20) as usize;
                self.transfer.upload(b, at, DType::F16, &values[..part])?;
                at += 2 * part as u64;
            }
        }
        // The number of keys as the two halves of a word that become it.
        let word = u32::try_from(lk).expect("few keys");
        let halves = [word & 0xffff, word >> 16].map(|h| half::f16::from_bits(h as u16).to_f32());
        self.transfer.upload(&buffers[3], 0, DType::F16, &halves)?;
        let at = Places([0, 1, 2, 3].map(|i| buffers[i].address()));
        let columns = hd;
        let mut ways: Vec<(Option<RowCut>, Dispatch)> = Vec::new();
        for cut in std::iter::once(None).chain(cuts.iter().copied().map(Some)) {
            let matrix = self.target.matrix.expect("the matrix tier");
            if let (Some(cut), Some(layout)) = (cut, self.target.layout)
                && !cut.fits(&matrix, &layout, columns)
            {
                continue;
            }
            let layout = self.target.layout.filter(|_| cut.is_some());
            let target = Target { cut, layout, ..self.target.clone() };
            ways.push((cut, kernels::lower(&plan.steps[0].op, &plan, &at, &target).swap_remove(0)));
        }
        self.pipelines_of(&ways.iter().map(|(_, d)| d.variant()).collect::<Vec<_>>())?;
        let mut first: Vec<f32> = Vec::new();
        let mut out = Vec::new();
        for (cut, d) in &ways {
            let mut r = Recorder::new(&self.device, "attention", (LAUNCHES + 1) as u32)?;
            for b in &buffers {
                r.keep(b);
            }
            for _ in 0..=LAUNCHES {
                r.dispatch(&self.pipelines[&d.variant()], d.push.bytes(), d.grid);
                r.barrier(Stage::Compute, Stage::Compute);
                r.timestamp();
            }
            let mut commands = r.finish()?;
            commands.run()?;
            let mut times = commands.intervals()?;
            times.sort();
            let all = (bytes[2] / 2) as usize;
            let mut values = vec![0.0; all.min(1 << 20)];
            let from = (all - values.len()) as u64 * 2;
            self.transfer.download(&buffers[2], from, DType::F16, &mut values)?;
            if first.is_empty() {
                first.clone_from(&values);
            }
            let deviation = first.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, |m: f32, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
            let statistics = self.pipelines[&d.variant()].statistics();
            out.push(AttentionTime { cut: *cut, statistics, time: times.get(times.len() / 2).copied().unwrap_or_default(), deviation });
        }
        Ok(out)
    }
}
