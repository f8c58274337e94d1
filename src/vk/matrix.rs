//! Cooperative matrices: the shapes of `VK_KHR_cooperative_matrix`, and `VK_NV_cooperative_matrix2`, which is newer
//! than `ash` and therefore declared here.

use std::ffi::{CStr, c_void};
use std::ptr;

use ash::{khr, vk};

use super::instance::Instance;

/// Sides of the matrices that a subgroup multiplies: 16-bit floats, [m, k] by [k, n], summed in 32-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixShape {
    pub m: u32,
    pub n: u32,
    pub k: u32,
}

/// The largest shape of 16-bit matrices with 32-bit sums that a subgroup multiplies.
pub(super) fn shape(instance: &Instance, physical: vk::PhysicalDevice) -> Option<MatrixShape> {
    let api = khr::cooperative_matrix::Instance::new(&instance.shared.entry, &instance.shared.raw);
    // SAFETY: needs a device of this instance that lists the extension: called only if it does.
    let all = unsafe { api.get_physical_device_cooperative_matrix_properties(physical) };
    let all = all.inspect_err(|e| log::warn!("vulkan: the shapes of matrices are not known: {e}")).ok()?;
    let (half, single) = (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);
    let fits = |p: &&vk::CooperativeMatrixPropertiesKHR<'_>| {
        (p.a_type, p.b_type, p.c_type, p.result_type) == (half, half, single, single)
            && p.scope == vk::ScopeKHR::SUBGROUP
            && p.k_size.is_multiple_of(8)
    };
    let best = all.iter().filter(fits).max_by_key(|p| p.m_size * p.n_size * p.k_size);
    best.map(|p| MatrixShape { m: p.m_size, n: p.n_size, k: p.k_size })
}

/// Name of the extension by which a whole workgroup multiplies and the driver moves the operands.
pub(super) const WORKGROUP_NAME: &CStr = c"VK_NV_cooperative_matrix2";

/// `VkPhysicalDeviceCooperativeMatrix2FeaturesNV`.
#[repr(C)]
pub(super) struct WorkgroupFeatures {
    s_type: vk::StructureType,
    p_next: *mut c_void,
    workgroup_scope: vk::Bool32,
    flexible_dimensions: vk::Bool32,
    reductions: vk::Bool32,
    conversions: vk::Bool32,
    per_element_operations: vk::Bool32,
    tensor_addressing: vk::Bool32,
    block_loads: vk::Bool32,
}

impl Default for WorkgroupFeatures {
    fn default() -> Self {
        WorkgroupFeatures {
            s_type: <Self as vk::TaggedStructure>::STRUCTURE_TYPE,
            p_next: ptr::null_mut(),
            workgroup_scope: vk::FALSE,
            flexible_dimensions: vk::FALSE,
            reductions: vk::FALSE,
            conversions: vk::FALSE,
            per_element_operations: vk::FALSE,
            tensor_addressing: vk::FALSE,
            block_loads: vk::FALSE,
        }
    }
}

// SAFETY: needs the structure's number in the registry; 1000593000 belongs to extension 594.
unsafe impl vk::TaggedStructure for WorkgroupFeatures {
    const STRUCTURE_TYPE: vk::StructureType = vk::StructureType::from_raw(1_000_593_000);
}
// SAFETY: needs that the registry lets the structure extend this one, which it does.
unsafe impl vk::ExtendsPhysicalDeviceFeatures2 for WorkgroupFeatures {}

impl WorkgroupFeatures {
    /// True if everything is there that kernels of this kind use.
    pub(super) fn suffice(&self) -> bool {
        let shapes = [self.workgroup_scope, self.flexible_dimensions];
        let access = [self.per_element_operations, self.tensor_addressing];
        shapes.iter().chain(&access).all(|f| *f != vk::FALSE)
    }

    /// What those kernels use, to be switched on.
    pub(super) fn used() -> WorkgroupFeatures {
        WorkgroupFeatures {
            workgroup_scope: vk::TRUE,
            flexible_dimensions: vk::TRUE,
            per_element_operations: vk::TRUE,
            tensor_addressing: vk::TRUE,
            ..WorkgroupFeatures::default()
        }
    }
}

/// `VkPhysicalDeviceCooperativeMatrix2PropertiesNV`.
#[repr(C)]
struct WorkgroupProperties {
    s_type: vk::StructureType,
    p_next: *mut c_void,
    workgroup_size_max: u32,
    dimension_max: u32,
    reserved_shared_bytes: u32,
}

// SAFETY: as for `WorkgroupFeatures`.
unsafe impl vk::TaggedStructure for WorkgroupProperties {
    const STRUCTURE_TYPE: vk::StructureType = vk::StructureType::from_raw(1_000_593_002);
}
// SAFETY: needs that the registry lets the structure extend this one, which it does.
unsafe impl vk::ExtendsPhysicalDeviceProperties2 for WorkgroupProperties {}

/// Invocations at most of a workgroup that multiplies as a whole.
pub(super) fn workgroup_size_max(instance: &Instance, physical: vk::PhysicalDevice) -> u32 {
    let mut own = WorkgroupProperties {
        s_type: <WorkgroupProperties as vk::TaggedStructure>::STRUCTURE_TYPE,
        p_next: ptr::null_mut(),
        workgroup_size_max: 0,
        dimension_max: 0,
        reserved_shared_bytes: 0,
    };
    let mut all = vk::PhysicalDeviceProperties2::default().push_next(&mut own);
    // SAFETY: needs a chain of structures that the device knows: called only if it lists the extension.
    unsafe { instance.shared.raw.get_physical_device_properties2(physical, &mut all) };
    own.workgroup_size_max
}
