//! Buffers with device addresses, out of blocks that `gpu-allocator` manages.

use std::fmt;
use std::sync::PoisonError;

use ash::vk;
use gpu_allocator::vulkan::{Allocation, AllocationCreateDesc, AllocationScheme};
use gpu_allocator::{AllocationError, MemoryLocation};

use super::VkError;
use super::device::Device;
use super::lanes::Uses;

/// Where a buffer lives and which way data goes through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Device memory; the host never sees it.
    Device,
    /// Mapped memory that the host writes and the device reads.
    Upload,
    /// Mapped memory that the device writes and the host reads.
    Download,
}

/// A buffer. Its contents are undefined until written.
pub struct Buffer {
    raw: vk::Buffer,
    allocation: Allocation,
    address: u64,
    bytes: u64,
    /// Submissions that use it.
    pub(super) uses: Uses,
    name: String,
    device: Device,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({}, {} bytes at {:#x})", self.name, self.bytes, self.address)
    }
}

impl Device {
    /// Bytes that were taken from the driver for buffers.
    pub fn taken_bytes(&self) -> u64 {
        self.0.allocator.lock().unwrap_or_else(PoisonError::into_inner).capacity()
    }
}

impl Buffer {
    /// A buffer of `bytes` bytes, at least 4 and rounded up to a multiple of 4.
    ///
    /// Errors: [`VkError::OutOfMemory`] with the name and the size.
    pub fn new(device: &Device, name: &str, bytes: u64, place: Place) -> Result<Buffer, VkError> {
        let bytes = bytes.max(4).next_multiple_of(4);
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST;
        let info = vk::BufferCreateInfo::default().size(bytes).usage(usage).sharing_mode(vk::SharingMode::EXCLUSIVE);
        let shared = &device.0;
        let out_of_memory = || VkError::OutOfMemory { what: name.to_string(), bytes };
        if bytes > device.limits().buffer_bytes_max {
            return Err(out_of_memory());
        }
        // SAFETY: needs a valid create info; the size is in 1..=the limit and the usages are enabled features.
        let raw = unsafe { shared.raw.create_buffer(&info, None) }.map_err(|e| match e {
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY | vk::Result::ERROR_OUT_OF_HOST_MEMORY => out_of_memory(),
            e => shared.failed("vkCreateBuffer", e),
        })?;
        shared.name(raw, name);
        // From here on `drop` of the buffer undoes what was done.
        let mut buffer = Buffer {
            raw,
            allocation: Allocation::default(),
            address: 0,
            bytes,
            uses: Uses::default(),
            name: name.to_string(),
            device: device.clone(),
        };
        // SAFETY: needs a live buffer of this device, which `raw` is.
        let requirements = unsafe { shared.raw.get_buffer_memory_requirements(raw) };
        let desc = AllocationCreateDesc {
            name,
            requirements,
            location: match place {
                Place::Device => MemoryLocation::GpuOnly,
                Place::Upload => MemoryLocation::CpuToGpu,
                Place::Download => MemoryLocation::GpuToCpu,
            },
            linear: true,
            allocation_scheme: AllocationScheme::GpuAllocatorManaged,
        };
        let allocated = shared.allocator.lock().unwrap_or_else(PoisonError::into_inner).allocate(&desc);
        buffer.allocation = allocated.map_err(|e| match e {
            AllocationError::OutOfMemory | AllocationError::NoCompatibleMemoryTypeFound => out_of_memory(),
            e => {
                // The crate puts the driver's other answers, host memory exhausted among them, into one text.
                log::warn!("vulkan: allocate {name}: {e}");
                out_of_memory()
            }
        })?;
        // SAFETY: needs only that the allocation outlives the handle's use; both are fields of `buffer`.
        let memory = unsafe { buffer.allocation.memory() };
        // SAFETY: needs an unbound buffer and memory that meets its requirements, which the allocator was given.
        unsafe { shared.raw.bind_buffer_memory(raw, memory, buffer.allocation.offset()) }
            .map_err(|e| shared.failed("vkBindBufferMemory", e))?;
        let query = vk::BufferDeviceAddressInfo::default().buffer(raw);
        // SAFETY: needs a bound buffer with the address usage on a device with that feature: see `usage`, `bind` above.
        buffer.address = unsafe { shared.raw.get_buffer_device_address(&query) };
        Ok(buffer)
    }

    /// Address of the first byte for kernels.
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn raw(&self) -> vk::Buffer {
        self.raw
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Gives `access` the bytes of a mapped buffer, when no submission that uses it is on its way.
    ///
    /// Errors: [`VkError::DeviceLost`].
    ///
    /// # Panics
    /// If the buffer's place is the device.
    pub fn map<R>(&self, access: impl FnOnce(&mut [u8]) -> R) -> Result<R, VkError> {
        let turn = self.device.0.turn_after(&self.uses, &self.name)?;
        let start = self.allocation.mapped_ptr().expect("only buffers for upload and download are mapped").cast::<u8>();
        // SAFETY: needs `bytes` bytes of live memory that nobody else touches. The allocation has at least the buffer's
        // size and lives as long as `self`; every submission that uses the buffer is over, none can come while `turn`
        // is held (`DeviceShared::submit` needs it), and another `map` of this buffer would need it too.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.bytes as usize) };
        let result = access(bytes);
        drop(turn);
        Ok(result)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let shared = &self.device.0;
        if shared.lost() {
            return;
        }
        // SAFETY: needs that the device does not use the buffer: recordings hold it in an `Arc` and are waited for.
        unsafe { shared.raw.destroy_buffer(self.raw, None) };
        let allocation = std::mem::take(&mut self.allocation);
        let freed = shared.allocator.lock().unwrap_or_else(PoisonError::into_inner).free(allocation);
        if let Err(e) = freed {
            log::warn!("vulkan: free {}: {e}", self.name);
        }
    }
}
