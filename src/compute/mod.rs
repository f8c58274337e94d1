//! The safe compute surface: tensors, plans recorded once, and the executors that replay them.
//!
//! This layer checks shapes, types, sizes and aliasing and returns errors; the layers below trust it. A model builds
//! [`plan::Plan`]s out of [`op::Op`]s; an [`Executor`] holds the weights, the sessions' states and one arena, and runs
//! plans. The same plan runs on every executor:
//!
//! - [`cpu`]: native code, no Vulkan needed;
//! - [`gpu`]: Vulkan, one hand-written SPIR-V kernel for each operation and precision;
//! - `reference`: plain loops, the truth that the other two are tested against.
//!
//! Nothing here knows what a model is, and nothing above names a Vulkan type.

pub mod cpu;
pub mod gpu;
pub mod op;
pub mod plan;
pub mod profile;
pub mod reference;
mod run;
mod select;
pub mod tensor;
#[doc(hidden)]
pub mod testing;
pub mod weights;

use std::sync::Arc;
use std::time::Duration;

pub use plan::{Plan, PlanBuilder, StateLayout};
pub use profile::Profile;
pub use select::{select, select_with};
pub use tensor::{DType, Param, Precision, Shape, Tensor, View};
pub use weights::{Storage, WeightSet};

use crate::sys::shm::SharedMemory;

/// What can go wrong between a plan and a device.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    #[error("{op}: {what}")]
    Shape { op: &'static str, what: String },
    #[error("no weight is named {name}")]
    UnknownWeight { name: String },
    #[error("{tensor} is read at {step} before anything is written to it")]
    Unwritten { tensor: String, step: String },
    #[error("run of {plan}: {what}")]
    Run { plan: String, what: String },
    #[error("{what} needs {bytes} bytes, more than the device has left")]
    OutOfMemory { what: String, bytes: u64 },
    #[error("the device was lost: {what}")]
    DeviceLost { what: String },
    #[error("no usable device: {what}")]
    NoDevice { what: String },
    #[error("{what}")]
    Device { what: String },
}

/// Which kind of machine executes plans: the executor tier of a session value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    Cpu,
    /// A Vulkan driver that runs on a GPU.
    VulkanGpu,
    /// A Vulkan driver that runs on the CPU, such as lavapipe.
    VulkanCpu,
    Reference,
}

/// What an executor runs on, for logs, status and profiles.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    pub kind: DeviceKind,
    /// As the driver or the processor names itself.
    pub name: String,
    pub precision: Precision,
    /// Kernel tier and whatever else decides how results come about, in words.
    pub detail: String,
    /// Memory for weights, arenas and states in bytes; 0 if unknown.
    pub memory_bytes: u64,
}

/// A plan that an executor has prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlanId(pub(crate) usize);

/// A session's state on an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateId(pub(crate) usize);

/// Where a run puts an output. The length must be the tensor's number of elements.
pub enum Output<'a> {
    F32(&'a mut [f32]),
    Bytes(&'a mut [u8]),
    /// Bytes that go straight into shared memory, from `offset` on. A multiple of 16 bytes at a multiple of 16 is
    /// written by the device itself, anything else by the processor.
    Shared {
        memory: SharedId,
        offset: usize,
    },
}

/// Memory that is shared with another process and with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SharedId(usize);

impl SharedId {
    pub fn index(self) -> usize {
        self.0
    }

    /// The memory with this number, for whoever kept only that.
    pub fn from_index(index: usize) -> SharedId {
        SharedId(index)
    }
}

/// One replay of a plan.
pub struct Run<'a> {
    pub plan: PlanId,
    /// The sessions in the seats of the plan, from the first one on: at least one, and all of them different. What the
    /// seats without a session compute is lost.
    pub states: &'a [StateId],
    /// Every input of the plan with its values, rounded to the tensor's type: once for each session, in the order of
    /// the seats.
    pub inputs: &'a [(Tensor, &'a [f32])],
    /// The params of each session one after the other.
    pub params: &'a [u32],
    /// Any of the plan's outputs: for each of them once for each session, in the order of the seats.
    pub outputs: &'a mut [(Tensor, Output<'a>)],
    /// Filled with a time for each step, at the price of a slower run.
    pub profile: Option<&'a mut Profile>,
}

/// A run that was begun and whose outputs were not taken yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight(usize);

/// A device that holds weights and states and runs plans. Not shared between threads: one worker owns it.
///
/// A run depends only on the plan, the weights, the session's state, the inputs and the params: never on which other
/// sessions exist or ran before. That is what makes a session a value.
pub trait Executor: Send {
    fn device(&self) -> &DeviceInfo;

    /// Uploads a model's weights; called once, before any plan is prepared.
    fn load_weights(&mut self, weights: &Arc<WeightSet>) -> Result<(), ComputeError>;

    /// Makes a plan ready to run: memory, pipelines, recordings. The plan's weights must be loaded.
    fn prepare(&mut self, plan: Arc<Plan>) -> Result<PlanId, ComputeError>;

    /// A new state of zeros.
    fn create_state(&mut self, layout: &Arc<StateLayout>) -> Result<StateId, ComputeError>;

    /// Gives a state's memory back. Unknown ids are ignored.
    fn destroy_state(&mut self, state: StateId);

    /// Reads entry `index` of a state's layout.
    fn read_state(&mut self, state: StateId, index: usize, out: &mut [f32]) -> Result<(), ComputeError>;

    /// Overwrites entry `index` of a state's layout.
    fn write_state(&mut self, state: StateId, index: usize, values: &[f32]) -> Result<(), ComputeError>;

    /// Lets runs write into a memory object. `None`: this device cannot, and whoever has the object copies outputs
    /// there. Errors: those of the device.
    fn share(&mut self, _: &Arc<SharedMemory>) -> Result<Option<SharedId>, ComputeError> {
        Ok(None)
    }

    /// Takes a memory object back. Unknown ids are ignored.
    fn unshare(&mut self, _: SharedId) {}

    /// Whether an earlier start left what is measured when plans are prepared.
    fn measured_before(&self) -> bool {
        true
    }

    /// From now on plans that are prepared take what was measured before, or else a guess: others are waiting.
    fn measure_no_more(&mut self) {}

    /// Bytes that are taken for weights, states and work in between.
    fn taken_bytes(&self) -> u64 {
        0
    }

    /// Runs a plan to its end and copies the outputs out. At least one lane must be free.
    fn run(&mut self, run: Run<'_>) -> Result<(), ComputeError>;

    /// How many runs may be on their way at once.
    fn lanes(&self) -> usize {
        1
    }

    /// Begins a run without a profile, of sessions that are in no other one. What it reads is taken now; whoever waits
    /// until it has landed gives [`Executor::end`] the same outputs again. An executor of one lane does all of it here.
    fn begin(&mut self, run: Run<'_>) -> Result<Flight, ComputeError> {
        self.run(run)?;
        Ok(Flight(0))
    }

    /// Waits until one of the runs has landed, or for `time`. Returns the place of one that has.
    fn landed(&mut self, flights: &[Flight], _time: Duration) -> Result<Option<usize>, ComputeError> {
        Ok((!flights.is_empty()).then_some(0))
    }

    /// Copies the outputs of a run out and frees its lane, after its end.
    fn end(&mut self, _: Flight, _outputs: &mut [(Tensor, Output<'_>)]) -> Result<(), ComputeError> {
        Ok(())
    }
}
