//! A logical device: its compute queues, its memory.

use std::ffi::CString;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ash::{ext, khr, vk};
use gpu_allocator::vulkan::{Allocator, AllocatorCreateDesc};
use gpu_allocator::{AllocationSizes, AllocatorDebugSettings};

use super::VkError;
use super::instance::{DeviceEntry, Instance};
use super::lanes::{LANES_MAX, Lane, Turn};
use super::matrix::{self, MatrixShape};

/// Memory is taken from the driver in blocks of this size; larger buffers get their own.
const BLOCK_BYTES: u64 = 64 << 20;

/// Optional abilities of a device that are switched on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// 16-bit floats in arithmetic and in storage.
    pub float16: bool,
    /// 8-bit integers in arithmetic and in storage.
    pub int8: bool,
    pub int16: bool,
    pub int64: bool,
    /// A kernel may ask for full subgroups and for their size.
    pub subgroup_size_control: bool,
    /// `VK_KHR_cooperative_matrix` with the memory model that its kernels are written in.
    pub cooperative_matrix: bool,
    /// `VK_EXT_external_memory_host`: kernels write into memory of the host.
    pub host_memory: bool,
}

/// Limits that a dispatch or a profile must know.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub grid_max: [u32; 3],
    pub shared_bytes: u32,
    /// Size of the largest buffer.
    pub buffer_bytes_max: u64,
    pub subgroup_size: u32,
    /// Nanoseconds of one timestamp step; `None` if the queue has no timestamps.
    pub timestamp_ns: Option<f64>,
    /// The bits of a timestamp that count.
    pub timestamp_mask: u64,
    /// Memory of the device in bytes.
    pub memory_bytes: u64,
    /// Invocations of a workgroup.
    pub local_max: u32,
    /// The largest matrices that the device multiplies, if it does.
    pub matrix: Option<MatrixShape>,
    /// Those with fewer columns and the same left factors.
    pub narrow_matrix: Option<MatrixShape>,
    /// Alignment of host memory that is imported.
    pub host_alignment: u64,
}

pub(super) struct DeviceShared {
    pub(super) raw: ash::Device,
    pub(super) allocator: ManuallyDrop<Mutex<Allocator>>,
    pub(super) turn: Mutex<Turn>,
    pub(super) lanes: usize,
    /// Set when a submission failed to end: see [`DeviceShared::lost`].
    lost: AtomicBool,
    debug: Option<ext::debug_utils::Device>,
    /// If host memory can be imported.
    pub(super) external: Option<ext::external_memory_host::Device>,
    pub(super) family: u32,
    pub(super) properties: vk::PhysicalDeviceProperties,
    memory: vk::PhysicalDeviceMemoryProperties,
    entry: DeviceEntry,
    features: Features,
    limits: Limits,
    /// Last: the instance must outlive the device.
    instance: Instance,
}

/// A logical device. Clones share it.
#[derive(Clone)]
pub struct Device(pub(super) Arc<DeviceShared>);

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("entry", &self.0.entry).finish_non_exhaustive()
    }
}

impl Device {
    /// Opens physical device `index` of the instance with every optional feature that it has, and with `lanes` queues,
    /// from 1 to [`LANES_MAX`]; where there are fewer, lanes share one.
    ///
    /// Errors: [`VkError::NoDevice`]; [`VkError::Unsupported`] naming what Vulkan 1.3 feature is missing.
    pub fn open(instance: &Instance, index: usize, lanes: usize) -> Result<Device, VkError> {
        assert!((1..=LANES_MAX).contains(&lanes), "{lanes} lanes");
        let all = instance.physical_devices()?;
        let physical = *all.get(index).ok_or(VkError::NoDevice { index, count: all.len() })?;
        let entry = instance.devices()?.swap_remove(index);
        let api = &instance.shared.raw;
        // SAFETY: needs a device of this instance, which `physical` is.
        let properties = unsafe { api.get_physical_device_properties(physical) };
        let unsupported = |what: &str| VkError::Unsupported { name: entry.name.clone(), what: what.to_string() };
        if properties.api_version < vk::API_VERSION_1_3 {
            return Err(unsupported("Vulkan 1.3"));
        }
        let family = compute_family(instance, physical).ok_or_else(|| unsupported("a compute queue"))?;
        let queues = family.queues.min(lanes as u32);
        let (raw, features) = create(instance, physical, (family.index, queues)).map_err(|e| match e {
            CreateError::Missing(what) => unsupported(what),
            CreateError::Call(e) => e,
        })?;
        let mut limits = limits(instance, physical, &properties, family.timestamp_bits);
        if features.cooperative_matrix
            && let Some((matrix, narrow)) = matrix::shapes(instance, physical)
        {
            (limits.matrix, limits.narrow_matrix) = (Some(matrix), narrow);
        }
        if features.host_memory {
            limits.host_alignment = host_alignment(instance, physical);
        }
        let turn = match create_lanes(&raw, (family.index, queues), lanes) {
            Ok(lanes) => Turn { lanes },
            Err(e) => {
                // SAFETY: needs that no child is left; none was created, or it is destroyed again.
                unsafe { raw.destroy_device(None) };
                return Err(e);
            }
        };
        let allocator = match create_allocator(instance, physical, &raw) {
            Ok(allocator) => allocator,
            Err(e) => {
                destroy_lanes(&raw, &turn.lanes);
                // SAFETY: needs that no child is left; the semaphores were the only ones.
                unsafe { raw.destroy_device(None) };
                return Err(e);
            }
        };
        let debug = instance.shared.debug.then(|| ext::debug_utils::Device::new(api, &raw));
        let external = features.host_memory.then(|| ext::external_memory_host::Device::new(api, &raw));
        Ok(Device(Arc::new(DeviceShared {
            raw,
            allocator: ManuallyDrop::new(Mutex::new(allocator)),
            turn: Mutex::new(turn),
            lanes,
            lost: AtomicBool::new(false),
            debug,
            external,
            family: family.index,
            properties,
            // SAFETY: needs a device of this instance, which `physical` is.
            memory: unsafe { api.get_physical_device_memory_properties(physical) },
            entry,
            features,
            limits,
            instance: instance.clone(),
        })))
    }

    pub fn entry(&self) -> &DeviceEntry {
        &self.0.entry
    }

    pub fn features(&self) -> Features {
        self.0.features
    }

    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub fn instance(&self) -> &Instance {
        &self.0.instance
    }

    /// A memory type among those of `bits` that the host sees without being told.
    pub(super) fn coherent_type(&self, bits: u32) -> Option<u32> {
        let coherent = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let all = self.0.memory.memory_types_as_slice().iter().enumerate();
        let mut fitting = all.filter(|(i, t)| bits & (1 << i) != 0 && t.property_flags.contains(coherent));
        fitting.next().map(|(i, _)| i as u32)
    }

    /// Names device and driver: what was measured on one holds for no other.
    pub fn identity(&self) -> String {
        let p = &self.0.properties;
        let uuid: String = p.pipeline_cache_uuid.iter().map(|b| format!("{b:02x}")).collect();
        format!("{:04x}:{:04x}:{:08x}:{uuid}", p.vendor_id, p.device_id, p.driver_version)
    }
}

impl DeviceShared {
    /// True after a submission did not end: the device may still use its objects, so that they must not be destroyed.
    pub(super) fn lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// From now on the device counts as lost.
    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// The error of a call; remembers a lost device.
    pub(super) fn failed(&self, call: &'static str, result: vk::Result) -> VkError {
        if result == vk::Result::ERROR_DEVICE_LOST {
            self.lose();
        }
        VkError::from_call(call, result)
    }

    /// Gives an object a name in validation messages and captures.
    pub(super) fn name(&self, object: impl vk::Handle, name: &str) {
        let Some(debug) = &self.debug else { return };
        let Ok(name) = CString::new(name) else { return };
        let info = vk::DebugUtilsObjectNameInfoEXT::default().object_handle(object).object_name(&name);
        // SAFETY: needs a live object of this device, used by no other thread: callers name what they just created.
        // A failure costs only the name.
        let _ = unsafe { debug.set_debug_utils_object_name(&info) };
    }
}

impl Drop for DeviceShared {
    fn drop(&mut self) {
        if self.lost() {
            // The device may still be working: its objects and its instance stay until the process ends.
            std::mem::forget(self.instance.clone());
            return;
        }
        // SAFETY: needs that no one uses the allocator afterwards; this is `drop`, and buffers hold an `Arc` of `self`.
        unsafe { ManuallyDrop::drop(&mut self.allocator) };
        // Every recording waits for its submission before it is gone, and held the device until then.
        destroy_lanes(&self.raw, &self.turn.get_mut().unwrap_or_else(PoisonError::into_inner).lanes);
        // SAFETY: needs that every child is gone: each holds an `Arc` of `self`, and the rest was destroyed above.
        unsafe { self.raw.destroy_device(None) };
    }
}

/// A family of queues.
struct Family {
    index: u32,
    queues: u32,
    timestamp_bits: u32,
}

/// The queue family for compute; one without graphics if there is one, since such a queue does not share its time with
/// a display.
fn compute_family(instance: &Instance, physical: vk::PhysicalDevice) -> Option<Family> {
    // SAFETY: needs a device of this instance, which `physical` is.
    let families = unsafe { instance.shared.raw.get_physical_device_queue_family_properties(physical) };
    let compute = families.iter().enumerate().filter(|(_, f)| f.queue_flags.contains(vk::QueueFlags::COMPUTE));
    let best = compute.min_by_key(|(_, f)| f.queue_flags.contains(vk::QueueFlags::GRAPHICS));
    best.map(|(i, f)| Family { index: i as u32, queues: f.queue_count, timestamp_bits: f.timestamp_valid_bits })
}

enum CreateError {
    Missing(&'static str),
    Call(VkError),
}

/// Creates the device with so many queues of a family, and what it has of the features.
fn create(
    instance: &Instance,
    physical: vk::PhysicalDevice,
    (family, queues): (u32, u32),
) -> Result<(ash::Device, Features), CreateError> {
    let api = &instance.shared.raw;
    // SAFETY: needs a device of this instance, which `physical` is.
    let extensions = unsafe { api.enumerate_device_extension_properties(physical) }.unwrap_or_default();
    let matrix_name = khr::cooperative_matrix::NAME;
    let has_name = |name| extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
    let has_matrix = has_name(matrix_name);

    let (mut has11, mut has12, mut has13) = Default::default();
    let mut has_coop = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
    let mut has = vk::PhysicalDeviceFeatures2::default()
        .push_next::<vk::PhysicalDeviceVulkan11Features<'_>>(&mut has11)
        .push_next::<vk::PhysicalDeviceVulkan12Features<'_>>(&mut has12)
        .push_next::<vk::PhysicalDeviceVulkan13Features<'_>>(&mut has13);
    if has_matrix {
        has = has.push_next(&mut has_coop);
    }
    // SAFETY: needs a chain of structures that the device knows: core ones of 1.3 and one whose extension it lists.
    unsafe { api.get_physical_device_features2(physical, &mut has) };
    let core = has.features;
    let required = [
        (has12.buffer_device_address, "bufferDeviceAddress"),
        (has12.timeline_semaphore, "timelineSemaphore"),
        (has13.synchronization2, "synchronization2"),
    ];
    if let Some((_, missing)) = required.iter().find(|(present, _)| *present == vk::FALSE) {
        return Err(CreateError::Missing(missing));
    }
    let cooperative_matrix =
        has_matrix && has_coop.cooperative_matrix != 0 && has12.vulkan_memory_model != 0 && has13.maintenance4 != 0;
    let features = Features {
        float16: has12.shader_float16 != 0 && has11.storage_buffer16_bit_access != 0,
        int8: has12.shader_int8 != 0 && has12.storage_buffer8_bit_access != 0,
        int16: core.shader_int16 != 0,
        int64: core.shader_int64 != 0,
        subgroup_size_control: has13.subgroup_size_control != 0 && has13.compute_full_subgroups != 0,
        cooperative_matrix,
        host_memory: has_name(ext::external_memory_host::NAME),
    };

    let mut use11 = vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(features.float16);
    let mut use12 = vk::PhysicalDeviceVulkan12Features::default()
        .buffer_device_address(true)
        .timeline_semaphore(true)
        .shader_float16(features.float16)
        .shader_int8(features.int8)
        .storage_buffer8_bit_access(features.int8)
        .vulkan_memory_model(has12.vulkan_memory_model != 0)
        .vulkan_memory_model_device_scope(has12.vulkan_memory_model_device_scope != 0);
    let mut use13 = vk::PhysicalDeviceVulkan13Features::default()
        .synchronization2(true)
        .maintenance4(has13.maintenance4 != 0)
        .subgroup_size_control(features.subgroup_size_control)
        .compute_full_subgroups(features.subgroup_size_control);
    let mut use_coop = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
    let mut wanted = vk::PhysicalDeviceFeatures2::default()
        .features(vk::PhysicalDeviceFeatures::default().shader_int16(features.int16).shader_int64(features.int64))
        .push_next(&mut use11)
        .push_next(&mut use12)
        .push_next(&mut use13);
    let mut names = Vec::new();
    if features.cooperative_matrix {
        wanted = wanted.push_next(&mut use_coop);
        names.push(matrix_name.as_ptr());
    }
    if features.host_memory {
        names.push(ext::external_memory_host::NAME.as_ptr());
    }
    let priorities = vec![1.0; queues as usize];
    let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&priorities)];
    let info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&names)
        .push_next(&mut wanted);
    // SAFETY: needs features and extensions that the device has: each one is switched on only if it was reported above.
    let raw = unsafe { api.create_device(physical, &info, None) }
        .map_err(|e| CreateError::Call(VkError::from_call("vkCreateDevice", e)))?;
    Ok((raw, features))
}

fn limits(
    instance: &Instance,
    physical: vk::PhysicalDevice,
    properties: &vk::PhysicalDeviceProperties,
    timestamp_bits: u32,
) -> Limits {
    let api = &instance.shared.raw;
    let mut subgroup = vk::PhysicalDeviceSubgroupProperties::default();
    let mut memory3 = vk::PhysicalDeviceMaintenance3Properties::default();
    let mut memory4 = vk::PhysicalDeviceMaintenance4Properties::default();
    let mut all = vk::PhysicalDeviceProperties2::default()
        .push_next(&mut subgroup)
        .push_next(&mut memory3)
        .push_next(&mut memory4);
    // SAFETY: needs a chain of structures that the device knows; these are core in 1.3.
    unsafe { api.get_physical_device_properties2(physical, &mut all) };
    // SAFETY: needs a device of this instance, which `physical` is.
    let memory = unsafe { api.get_physical_device_memory_properties(physical) };
    let heaps = memory.memory_heaps_as_slice().iter();
    let local = heaps.filter(|h| h.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL)).map(|h| h.size);
    Limits {
        grid_max: properties.limits.max_compute_work_group_count,
        shared_bytes: properties.limits.max_compute_shared_memory_size,
        buffer_bytes_max: memory3.max_memory_allocation_size.min(memory4.max_buffer_size),
        subgroup_size: subgroup.subgroup_size,
        timestamp_ns: (timestamp_bits > 0).then_some(f64::from(properties.limits.timestamp_period)),
        timestamp_mask: u64::MAX.checked_shr(64 - timestamp_bits.min(64)).unwrap_or(0),
        memory_bytes: local.max().unwrap_or(0),
        local_max: properties.limits.max_compute_work_group_invocations,
        matrix: None,
        narrow_matrix: None,
        host_alignment: 0,
    }
}

/// Alignment of imported host memory; the device lists the extension.
fn host_alignment(instance: &Instance, physical: vk::PhysicalDevice) -> u64 {
    let mut host = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
    let mut all = vk::PhysicalDeviceProperties2::default().push_next(&mut host);
    // SAFETY: needs a chain of structures that the device knows: its extension was listed.
    unsafe { instance.shared.raw.get_physical_device_properties2(physical, &mut all) };
    host.min_imported_host_pointer_alignment.max(1)
}

/// A queue and a timeline for each lane.
fn create_lanes(raw: &ash::Device, (family, queues): (u32, u32), count: usize) -> Result<Vec<Lane>, VkError> {
    let mut lanes = Vec::with_capacity(count);
    for lane in 0..count as u32 {
        let mut kind =
            vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE).initial_value(0);
        let info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        // SAFETY: needs the timeline feature, which the device was created with.
        let timeline = match unsafe { raw.create_semaphore(&info, None) } {
            Ok(timeline) => timeline,
            Err(e) => {
                destroy_lanes(raw, &lanes);
                return Err(VkError::from_call("vkCreateSemaphore", e));
            }
        };
        // SAFETY: needs a family and an index that the device was created with.
        let queue = unsafe { raw.get_device_queue(family, lane % queues) };
        lanes.push(Lane { queue, timeline, submitted: 0, seen: 0 });
    }
    Ok(lanes)
}

/// The timelines must be idle.
fn destroy_lanes(raw: &ash::Device, lanes: &[Lane]) {
    for lane in lanes {
        // SAFETY: needs an idle semaphore of this device: the caller's promise.
        unsafe { raw.destroy_semaphore(lane.timeline, None) };
    }
}

fn create_allocator(
    instance: &Instance,
    physical: vk::PhysicalDevice,
    raw: &ash::Device,
) -> Result<Allocator, VkError> {
    let desc = AllocatorCreateDesc {
        instance: instance.shared.raw.clone(),
        device: raw.clone(),
        physical_device: physical,
        debug_settings: AllocatorDebugSettings::default(),
        buffer_device_address: true,
        allocation_sizes: AllocationSizes::new(BLOCK_BYTES, BLOCK_BYTES),
    };
    Allocator::new(&desc).map_err(|e| VkError::OutOfMemory { what: format!("the allocator ({e})"), bytes: 0 })
}
