//! Plans on a Vulkan device: each operation is lowered to dispatches of hand-written kernels, and each pair of plan and
//! state is recorded once and replayed with one submission.
//!
//! Memory: one arena for each lane, shared by all plans (runs of a lane do not overlap), a few buffers of weights, one
//! buffer for each state. Inputs and params go through a mapped buffer of the lane that the recording copies from,
//! outputs through one that it copies to; a run therefore touches no memory that another run of the same executor could
//! see, and allocates nothing. That is what lets runs of several lanes be on the device at once: while one waits at its
//! barriers, or has too few workgroups for the device, the other one fills it.
//!
//! `vk` trusts this module: [`super::run::check`] and the operations' own checks come before anything is recorded.

mod flight;
mod hazard;
pub(crate) mod kernels;
mod launches;
mod layout;
mod memory;
mod prepared;
mod record;
mod tune;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rayon::prelude::*;

use self::flight::Begun;
use self::kernels::{DELIVERED_BYTES, Matrix, RowLayout, Target, Variant};
use self::memory::{Layout, Slots, State, Tables, Transfer, Weights};
use self::prepared::{Passage, Prepared};
use self::record::{Addressing, Recording};
use super::plan::Home;
use super::{
    ComputeError, DType, DeviceInfo, DeviceKind, Executor, Flight, Output, Plan, PlanId, Precision, Run, SharedId,
    StateId, StateLayout, Tensor, WeightSet,
};
use crate::sys::shm::SharedMemory;
use crate::vk::{
    self, Buffer, Canary, Device, Imported, Instance, Module, PhysicalKind, Pipeline, PipelineCache, Place, VkError,
};

pub use self::kernels::tile::{Finish, Tile};
pub use self::launches::{Launches, launches};
pub use self::tune::Timed;
pub use crate::vk::{LANES_MAX, Validation};

impl From<VkError> for ComputeError {
    fn from(error: VkError) -> Self {
        match error {
            VkError::NoDriver { .. } | VkError::NoDevice { .. } | VkError::Unsupported { .. } => {
                ComputeError::NoDevice { what: error.to_string() }
            }
            VkError::OutOfMemory { what, bytes } => ComputeError::OutOfMemory { what, bytes },
            VkError::DeviceLost { what } => ComputeError::DeviceLost { what },
            VkError::Failed { .. } => ComputeError::Device { what: error.to_string() },
        }
    }
}

/// Which kernels a device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Products, convolutions and attention on cooperative matrices, in f16; everything else as below.
    Matrix,
    /// Subgroup operations and registers: any device, any precision.
    Subgroup,
}

impl Tier {
    /// The name in the log, in the status and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Matrix => "coopmat",
            Tier::Subgroup => "subgroup",
        }
    }

    /// The tier of that name.
    pub fn parse(name: &str) -> Option<Tier> {
        [Tier::Matrix, Tier::Subgroup].into_iter().find(|t| t.name() == name)
    }
}

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// `None`: f16 on hardware that has it, else f32.
    pub precision: Option<Precision>,
    /// `None`: the best that the device has.
    pub tier: Option<Tier>,
    pub validation: Validation,
    /// File for the driver's compiled kernels; it need not exist, and `None` keeps none. Measured tiles lie beside it.
    pub pipeline_cache: Option<PathBuf>,
    /// Measure which tiles are the best for the products of a plan; `None`: on hardware.
    pub tune: Option<bool>,
    /// Every product gets the tile of this number, if the device has so many: for tests.
    pub tile: Option<usize>,
    /// Runs that may be on their way at once, see [`LANES_MAX`]; `None`: all on hardware, else one.
    pub lanes: Option<usize>,
}

/// What a recording depends on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    lane: usize,
    plan: PlanId,
    /// The session of a plan with one seat. With several of them a recording finds the sessions in a table.
    state: Option<StateId>,
    /// Outputs that are copied to the host, in the plan's order.
    outputs: Vec<Tensor>,
    /// The output that kernels write into shared memory.
    delivered: Option<Tensor>,
    profiled: bool,
}

/// The arena's buffers are of this size at the most, unless one slot alone is larger: drivers have a limit that the
/// plans of large models reach.
const ARENA_BUFFER_BYTES: u64 = 2 << 30;

/// See the module text. Fields are dropped in order: recordings before what they use, the device last.
pub struct GpuExecutor {
    info: DeviceInfo,
    recordings: HashMap<Key, Recording>,
    plans: Vec<Prepared>,
    states: HashMap<usize, State>,
    next_state: usize,
    shared: HashMap<usize, Imported>,
    next_shared: usize,
    weights: Weights,
    /// By lane.
    arenas: Vec<Vec<Arc<Buffer>>>,
    /// What each lane is at.
    flights: Vec<Option<Begun>>,
    target: Target,
    pipelines: HashMap<Variant, Arc<Pipeline>>,
    cache: PipelineCache,
    /// Whether products are measured, whether some were by an earlier start, and the file with what was found.
    tunes: bool,
    measured_before: bool,
    tiles: Option<PathBuf>,
    transfer: Transfer,
    canary: Arc<Canary>,
    device: Device,
}

impl GpuExecutor {
    /// Opens Vulkan device `index` (the loader's order, see [`vk::devices`]) with the default options.
    pub fn open(index: usize, precision: Option<Precision>) -> Result<GpuExecutor, ComputeError> {
        GpuExecutor::open_with(index, &GpuOptions { precision, ..GpuOptions::default() })
    }

    /// Opens Vulkan device `index`.
    ///
    /// Errors: [`ComputeError::NoDevice`] if there is no driver, no such device, or it lacks what is needed, 16-bit
    /// floats included if f16 is asked for.
    pub fn open_with(index: usize, options: &GpuOptions) -> Result<GpuExecutor, ComputeError> {
        let instance = Instance::new(options.validation)?;
        let all = vk::devices()?;
        let software = all.get(index).is_some_and(|e| e.kind == PhysicalKind::Cpu);
        let lanes = options.lanes.unwrap_or(if software { 1 } else { LANES_MAX }).clamp(1, LANES_MAX);
        let device = Device::open(&instance, index, lanes)?;
        let (entry, features, limits) = (device.entry(), device.features(), device.limits());
        let kernels_need = [
            (features.int64, "64-bit integers"),
            (features.int8, "8-bit integers in buffers"),
            (limits.subgroup_size >= kernels::SUBGROUP_MIN, "subgroups of eight lanes"),
        ];
        if let Some((_, lacking)) = kernels_need.iter().find(|(present, _)| !present) {
            return Err(ComputeError::NoDevice { what: format!("{} has no {lacking}", entry.name) });
        }
        let precision = match options.precision {
            Some(Precision::F16) if !features.float16 => {
                return Err(ComputeError::NoDevice { what: format!("{} has no 16-bit floats", entry.name) });
            }
            Some(precision) => precision,
            None if features.float16 && !software => Precision::F16,
            None => Precision::F32,
        };
        let matrix = match options.tier {
            Some(Tier::Subgroup) => None,
            _ if precision != Precision::F16 => None,
            _ => matrix(&device),
        };
        if options.tier == Some(Tier::Matrix) && matrix.is_none() {
            let what = format!("{} has no cooperative matrices of 16-bit floats in {precision:?}", entry.name);
            return Err(ComputeError::NoDevice { what });
        }
        let tiles = options.pipeline_cache.as_deref().map(tune::path);
        let tuned = match (&tiles, &matrix) {
            (Some(path), Some(matrix)) => tune::load(path, &device.identity(), matrix),
            _ => BTreeMap::new(),
        };
        let checks = match instance.validation() {
            Validation::Off => "",
            _ => ", with validation layers",
        };
        let cache = PipelineCache::open(&device, options.pipeline_cache.as_deref())?;
        let layout = match &matrix {
            Some(matrix) => layout::find(&device, &cache, matrix)?,
            None => None,
        };
        let tier = tier(matrix.as_ref(), layout.as_ref());
        let info = DeviceInfo {
            kind: if software { DeviceKind::VulkanCpu } else { DeviceKind::VulkanGpu },
            name: entry.name.clone(),
            precision,
            detail: format!("vulkan:{index}, {tier}, subgroups of {}{checks}", limits.subgroup_size),
            memory_bytes: limits.memory_bytes,
        };
        let tunes = options.tune.unwrap_or(!software) && options.tile.is_none();
        Ok(GpuExecutor {
            info,
            recordings: HashMap::new(),
            plans: Vec::new(),
            states: HashMap::new(),
            next_state: 0,
            shared: HashMap::new(),
            next_shared: 0,
            weights: Weights::default(),
            arenas: vec![Vec::new(); lanes],
            flights: (0..lanes).map(|_| None).collect(),
            tunes,
            measured_before: !tunes || matrix.is_none() || !tuned.is_empty(),
            target: Target { precision, matrix, tuned, layout, forced: options.tile },
            tiles,
            pipelines: HashMap::new(),
            cache,
            transfer: Transfer::new(&device)?,
            canary: Arc::clone(instance.canary()),
            device,
        })
    }

    /// Where validation messages go; outlives the executor, to receive what it leaked.
    pub fn canary(&self) -> Arc<Canary> {
        Arc::clone(&self.canary)
    }

    /// Fails unless the plan can run here: its precision, and every weight loaded with its shape and type.
    fn admit(&self, plan: &Plan) -> Result<(), ComputeError> {
        if plan.tensors.precision() != self.info.precision {
            let (has, needs) = (plan.tensors.precision(), self.info.precision);
            return Err(ComputeError::Device {
                what: format!("plan {} is {has:?}, the device runs {needs:?}", plan.name),
            });
        }
        for (_, info) in plan.tensors.iter() {
            if let Home::Weight(id) = info.home
                && !self.weights.holds(id, info)
            {
                return Err(ComputeError::UnknownWeight { name: info.name.clone() });
            }
        }
        Ok(())
    }

    /// Makes the buffers of every lane's arena at least this large. New ones have new addresses, so every recording
    /// becomes void.
    fn grow_arenas(&mut self, bytes: &[u64]) -> Result<(), ComputeError> {
        for (lane, arena) in self.arenas.iter_mut().enumerate() {
            for (i, &bytes) in bytes.iter().enumerate() {
                if arena.get(i).is_some_and(|a| a.bytes() >= bytes) {
                    continue;
                }
                self.recordings.clear();
                let name = format!("arena {lane}.{i}");
                let larger = |device| Buffer::new(device, &name, bytes, Place::Device).map(Arc::new);
                if i < arena.len() {
                    // The old one goes first: both may not fit.
                    arena[i] = Arc::new(Buffer::new(&self.device, "arena", 4, Place::Device)?);
                    arena[i] = larger(&self.device)?;
                } else {
                    arena.push(larger(&self.device)?);
                }
            }
        }
        Ok(())
    }

    /// Compiles those of the kernels that are not yet, side by side: a driver takes up to seconds for one.
    fn pipelines(&mut self, variants: impl IntoIterator<Item = Variant>) -> Result<(), ComputeError> {
        let mut new: Vec<Variant> = variants.into_iter().filter(|v| !self.pipelines.contains_key(v)).collect();
        new.sort();
        new.dedup();
        let (device, cache, precision) = (&self.device, &self.cache, self.info.precision);
        let lanes = self.target.matrix.map(|m| m.lanes);
        let compile = |&variant: &Variant| {
            let (kernel, spec) = (variant.0.kernel(), variant.1);
            let module = Module {
                words: kernel.words(precision),
                push_bytes: kernel.push_bytes,
                spec: spec.values(),
                subgroup: lanes.filter(|_| !kernel.specs.is_empty()),
            };
            Pipeline::new(device, cache, kernel.name, module).map(|p| (variant, Arc::new(p)))
        };
        let compiled: Vec<_> = new.par_iter().map(compile).collect::<Result<_, VkError>>()?;
        self.pipelines.extend(compiled);
        Ok(())
    }

    /// Compiles the kernels of a plan and returns the constants among its params.
    fn compile(&mut self, plan: &Plan, slots: &Slots) -> Result<Vec<u32>, ComputeError> {
        let addressing = Addressing::dry(plan, slots);
        let mut used = Vec::new();
        for dispatch in kernels::lower_plan(plan, &addressing, &self.target).iter().flat_map(|s| &s.dispatches) {
            if !used.contains(&dispatch.variant()) {
                used.push(dispatch.variant());
            }
        }
        let before = self.pipelines.len();
        self.pipelines(used)?;
        if self.pipelines.len() > before {
            self.cache.save();
        }
        Ok(addressing.constants())
    }

    /// What a recording works on.
    fn memory(&self, key: &Key) -> record::Memory<'_> {
        let (prepared, arena) = (&self.plans[key.plan.0], &self.arenas[key.lane][..]);
        let passage = &prepared.passages[key.lane];
        let state = key.state.map(|id| &self.states[&id.0]);
        record::Memory { prepared, passage, state, weights: &self.weights, arena }
    }

    /// Records a run, unless it has been.
    fn record(&mut self, key: &Key) -> Result<(), ComputeError> {
        if self.recordings.contains_key(key) {
            return Ok(());
        }
        let memory = self.memory(key);
        let steps = record::lower(&memory, &self.target)?;
        let delivery = record::deliveries(&memory, key);
        let needed: Vec<Variant> =
            steps.iter().flat_map(|s| &s.dispatches).chain(&delivery).map(|d| d.variant()).collect();
        self.pipelines(needed)?;
        let memory = self.memory(key);
        let recording = record::record(&self.device, &memory, &steps, &self.pipelines, key)?;
        self.recordings.insert(key.clone(), recording);
        Ok(())
    }

    /// Records a plan of several seats with all of its outputs for every lane, so that no tick has to.
    fn record_batch(&mut self, plan: PlanId) -> Result<(), ComputeError> {
        let found = &self.plans[plan.0].plan;
        if found.seats() == 1 {
            return Ok(());
        }
        let all = found.outputs.clone();
        let picture = all.iter().copied().find(|&t| found.tensors.dtype(t) == DType::U8);
        let shared = picture.filter(|&t| found.seat_elements(t).is_multiple_of(DELIVERED_BYTES));
        let shared = shared.filter(|_| self.device.features().host_memory);
        for lane in 0..self.arenas.len() {
            if let Some(t) = shared {
                let outputs = all.iter().copied().filter(|&o| o != t).collect();
                self.record(&Key { lane, plan, state: None, outputs, delivered: shared, profiled: false })?;
            }
            let outputs = all.clone();
            self.record(&Key { lane, plan, state: None, outputs, delivered: None, profiled: false })?;
        }
        Ok(())
    }

    /// The output of a run that kernels write into shared memory: all of its seats must want it there, where kernels
    /// can write.
    fn delivered(&self, plan: &Plan, outputs: &[(Tensor, Output<'_>)]) -> Result<Option<Tensor>, ComputeError> {
        let mut found = None;
        let mut direct = true;
        for (t, output) in outputs {
            let bytes = plan.seat_elements(*t);
            match output {
                Output::Shared { memory, offset } => {
                    let length = self.shared.get(&memory.0).map_or(0, |s| s.owner().len());
                    if offset + bytes > length {
                        let what = format!("{bytes} bytes at {offset} of shared memory of {length}");
                        return Err(ComputeError::Run { plan: plan.name.clone(), what });
                    }
                    direct &= bytes.is_multiple_of(DELIVERED_BYTES) && offset.is_multiple_of(DELIVERED_BYTES);
                    direct &= found.is_none_or(|f| f == *t);
                    found = Some(*t);
                }
                Output::Bytes(_) => direct = false,
                Output::F32(_) => {}
            }
        }
        Ok(found.filter(|_| direct))
    }

    fn state(&self, id: StateId) -> Result<&State, ComputeError> {
        let unknown = || ComputeError::Device { what: format!("there is no state {}", id.0) };
        self.states.get(&id.0).ok_or_else(unknown)
    }

    /// Buffer, offset and type of an entry of a state, for `len` values from the host.
    fn entry(&self, id: StateId, index: usize, len: usize) -> Result<(Arc<Buffer>, u64, DType), ComputeError> {
        let state = self.state(id)?;
        let found = state.layout.entries().get(index);
        let (name, shape, dtype) = found.ok_or_else(|| ComputeError::Device {
            what: format!("state {} has no entry {index}, only {}", id.0, state.layout.entries().len()),
        })?;
        if shape.elements() != len {
            let what = format!("{name} has {} values, {len} were given", shape.elements());
            return Err(ComputeError::Device { what });
        }
        Ok((Arc::clone(&state.buffer), state.places.offset(index), *dtype))
    }
}

impl Executor for GpuExecutor {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn load_weights(&mut self, weights: &Arc<WeightSet>) -> Result<(), ComputeError> {
        self.device.idle()?;
        self.recordings.clear();
        // The old ones go first: both sets may not fit.
        self.weights = Weights::default();
        self.weights = Weights::upload(&self.device, &mut self.transfer, weights, self.info.precision)?;
        Ok(())
    }

    fn prepare(&mut self, plan: Arc<Plan>) -> Result<PlanId, ComputeError> {
        self.admit(&plan)?;
        self.device.idle()?;
        let most = self.device.limits().buffer_bytes_max.min(ARENA_BUFFER_BYTES);
        let slots = Slots::new(plan.slots.iter().map(|&b| b as u64), most);
        self.grow_arenas(slots.bytes())?;
        if self.tunes && self.target.matrix.is_some() {
            let addressing = Addressing::dry(&plan, &slots);
            let product = |s: &super::plan::Step| kernels::product(&s.op, &plan, &addressing, &self.target);
            let products: BTreeSet<_> = plan.steps.iter().filter_map(product).collect();
            self.tune(&products.into_iter().collect::<Vec<_>>())?;
        }
        let constants = self.compile(&plan, &slots)?;
        let size = |&t: &Tensor| plan.tensors.bytes(t) as u64;
        let table_bytes = Prepared::table_bytes(plan.seats());
        let words = plan.seats() * plan.param_count + constants.len();
        let params_bytes = table_bytes + 4 * words.max(1) as u64;
        let inputs = Layout::new(std::iter::once(params_bytes).chain(plan.inputs.iter().map(size)));
        let outputs = Layout::new(plan.outputs.iter().map(size));
        let lanes = 0..self.arenas.len();
        let passages = lanes.map(|lane| {
            let name = |what: &str| format!("{}: {what} {lane}", plan.name);
            Passage::new(&self.device, name, (inputs.bytes(), params_bytes, outputs.bytes()))
        });
        let passages = passages.collect::<Result<Vec<_>, _>>()?;
        let places = memory::state_places(&plan.state);
        let tables = Tables::upload(&self.device, &mut self.transfer, &plan)?;
        self.plans.push(Prepared { slots, constants, inputs, outputs, passages, places, tables, plan });
        let id = PlanId(self.plans.len() - 1);
        // A larger arena made all recordings void.
        for i in 0..self.plans.len() {
            self.record_batch(PlanId(i))?;
        }
        Ok(id)
    }

    fn create_state(&mut self, layout: &Arc<StateLayout>) -> Result<StateId, ComputeError> {
        let id = self.next_state;
        let state = State::new(&self.device, id, layout)?;
        self.states.insert(id, state);
        self.next_state += 1;
        Ok(StateId(id))
    }

    fn destroy_state(&mut self, state: StateId) {
        self.settle();
        self.recordings.retain(|key, _| key.state != Some(state));
        self.states.remove(&state.0);
    }

    fn read_state(&mut self, state: StateId, index: usize, out: &mut [f32]) -> Result<(), ComputeError> {
        let (buffer, offset, dtype) = self.entry(state, index, out.len())?;
        self.transfer.download(&buffer, offset, dtype, out)
    }

    fn write_state(&mut self, state: StateId, index: usize, values: &[f32]) -> Result<(), ComputeError> {
        let (buffer, offset, dtype) = self.entry(state, index, values.len())?;
        self.transfer.upload(&buffer, offset, dtype, values)
    }

    fn share(&mut self, memory: &Arc<SharedMemory>) -> Result<Option<SharedId>, ComputeError> {
        let id = self.next_shared;
        let Some(imported) = Imported::new(&self.device, &format!("shared {id}"), memory)? else { return Ok(None) };
        self.shared.insert(id, imported);
        self.next_shared += 1;
        Ok(Some(SharedId(id)))
    }

    fn unshare(&mut self, shared: SharedId) {
        self.settle();
        self.shared.remove(&shared.0);
    }

    fn run(&mut self, run: Run<'_>) -> Result<(), ComputeError> {
        let flight = self.submit(&run)?;
        let Run { outputs, profile, .. } = run;
        let begun = self.finish(flight, outputs)?;
        match profile {
            Some(profile) => self.recordings[&begun.key].report(&self.plans[begun.key.plan.0].plan, profile),
            None => Ok(()),
        }
    }

    fn measured_before(&self) -> bool {
        self.measured_before
    }

    fn measure_no_more(&mut self) {
        self.tunes = false;
    }

    fn taken_bytes(&self) -> u64 {
        self.device.taken_bytes()
    }

    fn lanes(&self) -> usize {
        self.flights.len()
    }

    fn begin(&mut self, run: Run<'_>) -> Result<Flight, ComputeError> {
        self.submit(&run)
    }

    fn landed(&mut self, flights: &[Flight], time: Duration) -> Result<Option<usize>, ComputeError> {
        let points = flights.iter().map(|f| Ok(self.begun(*f)?.end)).collect::<Result<Vec<_>, ComputeError>>()?;
        Ok(self.device.reached(&points, time)?)
    }

    fn end(&mut self, flight: Flight, outputs: &mut [(Tensor, Output<'_>)]) -> Result<(), ComputeError> {
        self.finish(flight, outputs).map(drop)
    }
}

/// The matrix tier of a device, if it has one.
fn matrix(device: &Device) -> Option<Matrix> {
    let (limits, features) = (device.limits(), device.features());
    let shape = limits.matrix.filter(|_| features.float16 && features.subgroup_size_control)?;
    let (shared_bytes, local_max) = (limits.shared_bytes, limits.local_max);
    Some(Matrix { shape, lanes: limits.subgroup_size, shared_bytes, local_max }).filter(Matrix::usable)
}

/// The tier in words.
fn tier(matrix: Option<&Matrix>, layout: Option<&RowLayout>) -> String {
    let Some(Matrix { shape: s, .. }) = matrix else { return format!("{} kernels", Tier::Subgroup.name()) };
    let narrow = layout.and_then(|l| l.tail).map(|t| format!(" and {}x{}x{}", s.m, t.columns, s.k));
    format!("{} kernels of {}x{}x{}{}", Tier::Matrix.name(), s.m, s.n, s.k, narrow.unwrap_or_default())
}

/// A device that [`GpuExecutor::open`] can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuEntry {
    /// The N of `vulkan:N`.
    pub index: usize,
    pub name: String,
    pub kind: DeviceKind,
    /// True if the device has memory of its own, which makes it the first choice.
    pub discrete: bool,
}

/// Lists the Vulkan devices. Errors: [`ComputeError::NoDevice`] if there is no driver.
pub fn devices() -> Result<Vec<GpuEntry>, ComputeError> {
    let entry = |e: vk::DeviceEntry| GpuEntry {
        index: e.index,
        name: e.name,
        kind: if e.kind == PhysicalKind::Cpu { DeviceKind::VulkanCpu } else { DeviceKind::VulkanGpu },
        discrete: e.kind == PhysicalKind::Discrete,
    };
    Ok(vk::devices()?.into_iter().map(entry).collect())
}
