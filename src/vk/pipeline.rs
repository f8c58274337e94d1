//! Compute pipelines: one kernel with push constants and no descriptors.

use std::fmt;

use ash::vk;

use super::VkError;
use super::cache::PipelineCache;
use super::device::Device;

/// The size of push constants that every Vulkan device has, in bytes.
pub const PUSH_BYTES_MAX: u32 = 128;

/// What a pipeline is compiled from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Module<'a> {
    pub words: &'a [u32],
    pub push_bytes: u32,
    /// Values of the specialization constants 0, 1, 2 and so on, all 32-bit integers.
    pub spec: &'a [u32],
    /// The kernel needs subgroups of this size, all of them full; `None`: whatever the driver takes.
    pub subgroup: Option<u32>,
}

/// A compiled kernel.
pub struct Pipeline {
    pub(super) raw: vk::Pipeline,
    pub(super) layout: vk::PipelineLayout,
    push_bytes: u32,
    name: String,
    device: Device,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pipeline({})", self.name)
    }
}

impl Pipeline {
    /// Compiles a module with the entry point `main`.
    ///
    /// Errors: [`VkError::OutOfMemory`], [`VkError::DeviceLost`], [`VkError::Failed`] if the driver refuses the module.
    ///
    /// # Panics
    /// If `push_bytes` is above [`PUSH_BYTES_MAX`] or no multiple of 4: kernels are checked by a test. If a size of
    /// subgroups is asked for on a device that has no control over it.
    pub fn new(device: &Device, cache: &PipelineCache, name: &str, module: Module<'_>) -> Result<Pipeline, VkError> {
        let Module { words, push_bytes, spec, subgroup } = module;
        assert!(push_bytes <= PUSH_BYTES_MAX && push_bytes.is_multiple_of(4), "{name} has {push_bytes} push bytes");
        assert!(subgroup.is_none() || device.features().subgroup_size_control, "{name} needs control of subgroups");
        let shared = &device.0;
        let ranges = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(push_bytes)];
        let ranges = if push_bytes == 0 { &[][..] } else { &ranges[..] };
        let info = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(ranges);
        // SAFETY: needs a range inside the device's limit: 128 bytes are guaranteed, asserted above.
        let layout = unsafe { shared.raw.create_pipeline_layout(&info, None) }
            .map_err(|e| shared.failed("vkCreatePipelineLayout", e))?;
        // From here on `drop` undoes what was done; a null pipeline may be destroyed.
        let mut pipeline =
            Pipeline { raw: vk::Pipeline::null(), layout, push_bytes, name: name.to_string(), device: device.clone() };
        let info = vk::ShaderModuleCreateInfo::default().code(words);
        // SAFETY: needs a valid module: the words are assembled at build time and checked by spirv-val in the tests.
        let module = unsafe { shared.raw.create_shader_module(&info, None) }
            .map_err(|e| shared.failed("vkCreateShaderModule", e))?;
        shared.name(module, name);
        let entry = |(i, _): (usize, &u32)| vk::SpecializationMapEntry {
            constant_id: i as u32,
            offset: 4 * i as u32,
            size: size_of::<u32>(),
        };
        let entries: Vec<_> = spec.iter().enumerate().map(entry).collect();
        let data: Vec<u8> = spec.iter().flat_map(|v| v.to_ne_bytes()).collect();
        let constants = vk::SpecializationInfo::default().map_entries(&entries).data(&data);
        let mut size = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default()
            .required_subgroup_size(subgroup.unwrap_or_default());
        let mut stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .specialization_info(&constants)
            .name(c"main");
        if subgroup.is_some() {
            stage = stage.flags(vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS).push_next(&mut size);
        }
        let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout)];
        // SAFETY: needs live handles of this device and an entry point that the module has; `main` by convention, which
        // the tests check for every kernel.
        let created = unsafe { shared.raw.create_compute_pipelines(cache.raw(), &info, None) };
        // SAFETY: needs that nobody uses the module; pipelines are complete without it.
        unsafe { shared.raw.destroy_shader_module(module, None) };
        let created = created.map_err(|(_, e)| shared.failed("vkCreateComputePipelines", e))?;
        pipeline.raw = created[0];
        shared.name(pipeline.raw, name);
        Ok(pipeline)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn push_bytes(&self) -> u32 {
        self.push_bytes
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let shared = &self.device.0;
        if shared.lost() {
            return;
        }
        // SAFETY: needs that the device does not use it: recordings hold it in an `Arc` and are waited for.
        unsafe { shared.raw.destroy_pipeline(self.raw, None) };
        // SAFETY: needs the same of the layout, which only this pipeline and its recordings use.
        unsafe { shared.raw.destroy_pipeline_layout(self.layout, None) };
    }
}
