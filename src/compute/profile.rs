//! Where the time of a run goes, by step, with the two floors of each step.

use std::time::Duration;

use super::op::Cost;

/// One step's share of a run.
#[derive(Clone, Debug)]
pub struct Entry {
    pub step: String,
    /// Family of the operation and, on a GPU, the kernel.
    pub kernel: String,
    pub time: Duration,
    pub cost: Cost,
}

/// Times of the steps of one or several runs.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    pub entries: Vec<Entry>,
}

/// The entries of one kernel added up.
#[derive(Clone, Debug)]
pub struct KernelTotal {
    pub kernel: String,
    pub count: usize,
    pub time: Duration,
    pub cost: Cost,
}

impl Profile {
    pub fn push(&mut self, step: &str, kernel: &str, time: Duration, cost: Cost) {
        self.entries.push(Entry { step: step.to_string(), kernel: kernel.to_string(), time, cost });
    }

    /// Totals by kernel, the longest first.
    pub fn by_kernel(&self) -> Vec<KernelTotal> {
        let mut totals: Vec<KernelTotal> = Vec::new();
        for e in &self.entries {
            match totals.iter_mut().find(|t| t.kernel == e.kernel) {
                Some(t) => {
                    t.count += 1;
                    t.time += e.time;
                    t.cost.flops += e.cost.flops;
                    t.cost.bytes += e.cost.bytes;
                }
                None => totals.push(KernelTotal { kernel: e.kernel.clone(), count: 1, time: e.time, cost: e.cost }),
            }
        }
        totals.sort_by_key(|t| std::cmp::Reverse(t.time));
        totals
    }

    pub fn total(&self) -> Duration {
        self.entries.iter().map(|e| e.time).sum()
    }
}
