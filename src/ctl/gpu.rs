//! The devices that a daemon on this host can use, asked of the drivers directly.

use std::fmt::Write;

use crate::compute::DeviceKind;
use crate::compute::gpu::devices;

/// One line a device, in the words of the configuration key `gpu.device`.
pub fn list() -> String {
    let mut out = String::new();
    let found = devices();
    for entry in found.as_deref().unwrap_or_default() {
        let kind = match (entry.kind, entry.discrete) {
            (DeviceKind::VulkanGpu, true) => "Vulkan, discrete",
            (DeviceKind::VulkanGpu, false) => "Vulkan, integrated",
            _ => "Vulkan on the processor; never chosen by auto",
        };
        let _ = writeln!(out, "vulkan:{}  {} ({kind})", entry.index, entry.name);
    }
    match &found {
        Ok(entries) if entries.is_empty() => out.push_str("no Vulkan device\n"),
        Ok(_) => {}
        Err(e) => {
            let _ = writeln!(out, "no Vulkan device: {}", crate::exit::chain(e));
        }
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let _ = writeln!(out, "cpu       native code on {processors} processors (gpu.threads)");
    out
}
