//! Host memory that the device writes into: `VK_EXT_external_memory_host`.

use std::sync::Arc;

use ash::vk;

use super::VkError;
use super::device::Device;
use crate::sys::shm::SharedMemory;

/// A whole shared memory object as a buffer of the device. What kernels write there another process reads; when it is
/// whole the reader must learn in another way.
pub struct Imported {
    raw: vk::Buffer,
    memory: vk::DeviceMemory,
    address: u64,
    device: Device,
    /// Last: the pages must outlive the device's use of them.
    owner: Arc<SharedMemory>,
}

impl Imported {
    /// Imports `owner`. `None` if the device cannot, or not memory of this alignment and size.
    ///
    /// Errors: those of the calls.
    pub fn new(device: &Device, name: &str, owner: &Arc<SharedMemory>) -> Result<Option<Imported>, VkError> {
        let shared = &device.0;
        let (Some(api), alignment) = (&shared.external, device.limits().host_alignment) else { return Ok(None) };
        let (start, bytes) = (owner.start(), owner.len() as u64);
        if !(start as u64).is_multiple_of(alignment) || !bytes.is_multiple_of(alignment) {
            return Ok(None);
        }
        let handle = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        // SAFETY: needs a pointer to mapped host memory of an aligned range: checked above, and `owner` keeps it
        // mapped.
        let found = unsafe {
            (api.fp().get_memory_host_pointer_properties_ext)(api.device(), handle, start.cast(), &mut properties)
        };
        match found {
            vk::Result::SUCCESS => {}
            vk::Result::ERROR_INVALID_EXTERNAL_HANDLE => return Ok(None),
            e => return Err(shared.failed("vkGetMemoryHostPointerPropertiesEXT", e)),
        }
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(handle);
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
            | vk::BufferUsageFlags::TRANSFER_DST;
        let info = vk::BufferCreateInfo::default().size(bytes).usage(usage).push_next(&mut external);
        // SAFETY: needs a valid create info: a size above zero and usages that are enabled features.
        let raw = unsafe { shared.raw.create_buffer(&info, None) }.map_err(|e| shared.failed("vkCreateBuffer", e))?;
        shared.name(raw, name);
        // From here on `drop` undoes what was done.
        let mut imported = Imported {
            raw,
            memory: vk::DeviceMemory::null(),
            address: 0,
            device: device.clone(),
            owner: Arc::clone(owner),
        };
        // SAFETY: needs a live buffer of this device, which `raw` is.
        let needs = unsafe { shared.raw.get_buffer_memory_requirements(raw) };
        let types = properties.memory_type_bits & needs.memory_type_bits;
        let Some(index) = device.coherent_type(types) else { return Ok(None) };
        let mut import = vk::ImportMemoryHostPointerInfoEXT::default().handle_type(handle).host_pointer(start.cast());
        let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
        let info = vk::MemoryAllocateInfo::default()
            .allocation_size(bytes)
            .memory_type_index(index)
            .push_next(&mut import)
            .push_next(&mut flags);
        // SAFETY: needs an aligned range of host memory that stays mapped until the memory is freed: `owner` holds it,
        // and is dropped after `memory`.
        imported.memory = match unsafe { shared.raw.allocate_memory(&info, None) } {
            Ok(memory) => memory,
            Err(vk::Result::ERROR_INVALID_EXTERNAL_HANDLE) => return Ok(None),
            Err(e) => return Err(shared.failed("vkAllocateMemory", e)),
        };
        if needs.size > bytes {
            return Ok(None);
        }
        // SAFETY: needs an unbound buffer and memory that meets its requirements: type and size were chosen from them.
        unsafe { shared.raw.bind_buffer_memory(raw, imported.memory, 0) }
            .map_err(|e| shared.failed("vkBindBufferMemory", e))?;
        let query = vk::BufferDeviceAddressInfo::default().buffer(raw);
        // SAFETY: needs a bound buffer with the address usage, see above.
        imported.address = unsafe { shared.raw.get_buffer_device_address(&query) };
        Ok(Some(imported))
    }

    /// Address of the first byte for kernels.
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn owner(&self) -> &Arc<SharedMemory> {
        &self.owner
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        let shared = &self.device.0;
        if shared.lost() {
            // The device may still write there: the pages stay until the process ends.
            std::mem::forget(Arc::clone(&self.owner));
            return;
        }
        // SAFETY: needs that the device does not use the buffer: whoever owns this waits for its runs.
        unsafe { shared.raw.destroy_buffer(self.raw, None) };
        // SAFETY: needs that no live buffer is bound to it; a null handle is allowed.
        unsafe { shared.raw.free_memory(self.memory, None) };
    }
}
