//! A plan with the memory through which its inputs and outputs pass.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::{ComputeError, Output, Plan, Tensor};
use super::memory::{self, Layout, Slots, Tables};
use crate::vk::{Buffer, Device, Imported, Place};

/// The way of a plan's values to one lane and back.
pub(super) struct Passage {
    /// The table of states, params of every seat and constants, then every input.
    pub upload: Arc<Buffer>,
    /// Every output.
    pub download: Arc<Buffer>,
    /// Where kernels read the table of states and params.
    pub params: Arc<Buffer>,
}

impl Passage {
    pub fn new(
        device: &Device,
        name: impl Fn(&str) -> String,
        (inputs, params, outputs): (u64, u64, u64),
    ) -> Result<Passage, ComputeError> {
        let buffer = |what, bytes, place| Buffer::new(device, &name(what), bytes, place).map(Arc::new);
        Ok(Passage {
            upload: buffer("inputs", inputs, Place::Upload)?,
            download: buffer("outputs", outputs, Place::Download)?,
            params: buffer("params", params, Place::Device)?,
        })
    }
}

/// See the module text.
pub(super) struct Prepared {
    pub plan: Arc<Plan>,
    /// Place of every arena slot.
    pub slots: Slots,
    /// Constants among the params, in the order in which they follow the slots of a run.
    pub constants: Vec<u32>,
    /// What [`Passage::upload`] and [`Passage::download`] hold.
    pub inputs: Layout,
    pub outputs: Layout,
    /// By lane.
    pub passages: Vec<Passage>,
    /// Where the entries of a session's state lie in it.
    pub places: Layout,
    pub tables: Option<Tables>,
}

impl Prepared {
    /// Bytes of the tables of states and of targets.
    pub fn table_bytes(seats: usize) -> u64 {
        16 * seats as u64
    }

    /// Where the table of targets begins in the buffer of params, after that of states.
    pub fn targets_at(&self) -> u64 {
        8 * self.plan.seats() as u64
    }

    /// Where the params begin in their buffer.
    pub fn words_at(&self) -> u64 {
        Prepared::table_bytes(self.plan.seats())
    }

    pub fn write_inputs(
        &self,
        lane: usize,
        (states, targets): (impl Iterator<Item = u64>, impl Iterator<Item = u64>),
        inputs: &[(Tensor, &[f32])],
        params: &[u32],
    ) -> Result<(), ComputeError> {
        let all = self.plan.seats() * self.plan.param_count;
        // Seats without a session have params of 1: a kernel that does not look whether there is one finds a legal
        // count.
        let params = params.iter().copied().chain(std::iter::repeat(1)).take(all);
        let words = params.chain(self.constants.iter().copied());
        self.passages[lane].upload.map(|bytes| {
            let (table, rest) = bytes.split_at_mut(self.words_at() as usize);
            let (state_table, target_table) = table.split_at_mut(self.targets_at() as usize);
            for (to, address) in state_table.chunks_exact_mut(8).zip(states.chain(std::iter::repeat(0))) {
                to.copy_from_slice(&address.to_le_bytes());
            }
            for (to, address) in target_table.chunks_exact_mut(8).zip(targets.chain(std::iter::repeat(0))) {
                to.copy_from_slice(&address.to_le_bytes());
            }
            for (to, word) in rest.chunks_exact_mut(4).zip(words) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            for (i, &t) in self.plan.inputs.iter().enumerate() {
                let dtype = self.plan.tensors.dtype(t);
                let mut at = self.inputs.offset(i + 1) as usize;
                for (_, values) in inputs.iter().filter(|(given, _)| *given == t) {
                    memory::encode(values, dtype, &mut bytes[at..]);
                    at += values.len() * dtype.bytes();
                }
            }
        })?;
        Ok(())
    }

    pub fn read_outputs(
        &self,
        lane: usize,
        outputs: &mut [(Tensor, Output<'_>)],
        delivered: Option<Tensor>,
        shared: &HashMap<usize, Imported>,
    ) -> Result<(), ComputeError> {
        self.passages[lane].download.map(|bytes| {
            for (i, &t) in self.plan.outputs.iter().enumerate().filter(|(_, t)| delivered != Some(**t)) {
                let (mut at, dtype) = (self.outputs.offset(i) as usize, self.plan.tensors.dtype(t));
                for (_, output) in outputs.iter_mut().filter(|(wanted, _)| *wanted == t) {
                    match output {
                        Output::Bytes(to) => to.copy_from_slice(&bytes[at..at + to.len()]),
                        Output::F32(to) => memory::decode(&bytes[at..], dtype, to),
                        Output::Shared { memory, offset } => {
                            shared[&memory.0].owner().write(*offset, &bytes[at..at + self.plan.seat_elements(t)]);
                        }
                    }
                    at += self.plan.seat_elements(t) * dtype.bytes();
                }
            }
        })?;
        Ok(())
    }
}
