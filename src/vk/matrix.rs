//! Cooperative matrices: the shapes of `VK_KHR_cooperative_matrix`.

use ash::{khr, vk};

use super::instance::Instance;

/// Sides of the matrices that a subgroup multiplies: 16-bit floats, [m, k] by [k, n], summed in 32-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixShape {
    pub m: u32,
    pub n: u32,
    pub k: u32,
}

/// The largest shape of 16-bit matrices with 32-bit sums that a subgroup multiplies, and the next one with fewer
/// columns and the same left factors.
pub(super) fn shapes(instance: &Instance, physical: vk::PhysicalDevice) -> Option<(MatrixShape, Option<MatrixShape>)> {
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
    let shapes = || all.iter().filter(fits).map(|p| MatrixShape { m: p.m_size, n: p.n_size, k: p.k_size });
    let best = shapes().max_by_key(|s| s.m * s.n * s.k)?;
    let narrow = shapes().filter(|s| (s.m, s.k) == (best.m, best.k) && s.n < best.n).max_by_key(|s| s.n);
    Some((best, narrow))
}
