//! Vulkan 1.3 as `compute::gpu` needs it: devices, buffers with addresses, pipelines, recordings that are replayed.
//!
//! **Whose job validation is.** The caller's: `compute` checks shapes, types, sizes and aliasing, and `compute::gpu`
//! computes the addresses that kernels receive. This layer trusts both. It returns errors only for what a caller cannot
//! foresee (no driver, no memory, a lost device) and asserts what would be a bug above it. A kernel that follows a
//! wrong address can write anywhere on the device; no check here could tell, so there is none that pretends to.
//!
//! **Who owns the memory.** Host and device take turns at each buffer: a submission notes in the buffers of its
//! recording where it ends on its lane's timeline, [`Buffer::map`] waits for the last of them, and while it lasts
//! nothing is submitted. A recording holds the buffers and pipelines that it uses and waits for its submission before
//! it goes, so nothing that the device works on can be freed. What kernels reach through a table of addresses is held
//! by nobody here: whoever writes such a table waits ([`Device::idle`]) before the memory goes.
//!
//! **Drop order.** Everything holds the [`Device`], which holds the [`Instance`], which holds the loaded library; each
//! drops what it made before what it was made from. After a wait that timed out the device may still be working:
//! then objects are left to the end of the process instead of being destroyed under it.
//!
//! This folder is the only one that names `ash`. Validation layers are on in debug builds if they are installed;
//! their messages go to a [`Canary`] that a test drains at its end.

mod cache;
mod canary;
mod command;
mod device;
mod import;
mod instance;
mod lanes;
mod matrix;
mod memory;
mod pipeline;

use ash::vk;

pub use cache::PipelineCache;
pub use canary::Canary;
pub use command::{CommandBuffer, Recorder, Stage};
pub use device::{Device, Features, Limits};
pub use import::Imported;
pub use instance::{DeviceEntry, Instance, PhysicalKind, Validation, devices};
pub use lanes::{LANES_MAX, Point};
pub use matrix::MatrixShape;
pub use memory::{Buffer, Place};
pub use pipeline::{Module, PUSH_BYTES_MAX, Pipeline};

/// What Vulkan can refuse. Everything else is a bug of the caller.
#[derive(Debug, thiserror::Error)]
pub enum VkError {
    #[error("no Vulkan driver: {what}")]
    NoDriver { what: String },
    #[error("there is no Vulkan device {index}, only {count}")]
    NoDevice { index: usize, count: usize },
    #[error("Vulkan device {name} lacks {what}")]
    Unsupported { name: String, what: String },
    #[error("{what} of {bytes} bytes does not fit into the device's memory")]
    OutOfMemory { what: String, bytes: u64 },
    #[error("the device was lost in {what}")]
    DeviceLost { what: String },
    #[error("{call} failed with code {code}")]
    Failed { call: &'static str, code: i32 },
}

impl VkError {
    /// What a failed call means.
    fn from_call(call: &'static str, result: vk::Result) -> VkError {
        match result {
            vk::Result::ERROR_DEVICE_LOST => VkError::DeviceLost { what: call.to_string() },
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY | vk::Result::ERROR_OUT_OF_HOST_MEMORY => {
                VkError::OutOfMemory { what: call.to_string(), bytes: 0 }
            }
            vk::Result::ERROR_INCOMPATIBLE_DRIVER => {
                VkError::NoDriver { what: "the loader found no driver that it can use".to_string() }
            }
            other => VkError::Failed { call, code: other.as_raw() },
        }
    }
}
