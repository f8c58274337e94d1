//! Which device runs the plans.

use std::thread;

use super::cpu::{self, CpuExecutor};
use super::gpu::{self, GpuEntry, GpuExecutor, GpuOptions};
use super::{ComputeError, DeviceKind, Executor};

/// What a configuration can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Auto,
    Cpu,
    Vulkan(usize),
}

/// Opens the device that `device` names and says in words why it was chosen, for the log.
///
/// `auto`: the first hardware Vulkan device that opens, discrete ones before others; else the CPU executor.
/// `vulkan:N`: device N of the loader's list, a software driver included. `cpu`: native code on `threads` threads
/// (0: one for each processor).
///
/// Errors: [`ComputeError::NoDevice`] if the name is none of these or the device does not open. `auto` never fails for
/// want of a GPU.
pub fn select(device: &str, threads: usize) -> Result<(Box<dyn Executor>, String), ComputeError> {
    select_with(device, threads, &GpuOptions::default())
}

/// [`select`] with options for a GPU, such as the file of its compiled kernels.
pub fn select_with(
    device: &str,
    threads: usize,
    options: &GpuOptions,
) -> Result<(Box<dyn Executor>, String), ComputeError> {
    match parse(device)? {
        Wanted::Cpu => Ok((Box::new(cpu(threads)?), "the configuration asks for it".to_string())),
        Wanted::Vulkan(index) => {
            let executor = GpuExecutor::open_with(index, options)?;
            Ok((Box::new(executor), "the configuration asks for it".to_string()))
        }
        Wanted::Auto => {
            let why_not = match gpu::devices() {
                Ok(all) => match first_hardware(&all, options) {
                    Ok(chosen) => return Ok(chosen),
                    Err(why_not) => why_not,
                },
                Err(e) => e.to_string(),
            };
            Ok((Box::new(cpu(threads)?), why_not))
        }
    }
}

fn cpu(threads: usize) -> Result<CpuExecutor, ComputeError> {
    let processors = || thread::available_parallelism().map_or(1, usize::from).min(cpu::THREADS_MAX);
    CpuExecutor::new(if threads == 0 { processors() } else { threads })
}

/// Opens the first hardware device that can be opened, or says why there is none.
fn first_hardware(all: &[GpuEntry], options: &GpuOptions) -> Result<(Box<dyn Executor>, String), String> {
    let mut failures = Vec::new();
    for entry in order(all) {
        match GpuExecutor::open_with(entry.index, options) {
            Ok(executor) => {
                let kind = if entry.discrete { "discrete " } else { "" };
                return Ok((Box::new(executor), format!("it is the first {kind}Vulkan device that opens")));
            }
            Err(e) => failures.push(format!("{}: {e}", entry.name)),
        }
    }
    Err(match (failures.is_empty(), all.is_empty()) {
        (false, _) => failures.join("; "),
        (true, true) => "there is no Vulkan device".to_string(),
        (true, false) => "there is no Vulkan device but software drivers, which are slower".to_string(),
    })
}

/// Hardware devices, discrete ones first, otherwise as the loader lists them.
fn order(all: &[GpuEntry]) -> Vec<&GpuEntry> {
    let mut hardware: Vec<&GpuEntry> = all.iter().filter(|e| e.kind == DeviceKind::VulkanGpu).collect();
    hardware.sort_by_key(|e| !e.discrete);
    hardware
}

fn parse(device: &str) -> Result<Wanted, ComputeError> {
    let index = device.strip_prefix("vulkan:").and_then(|n| n.parse().ok());
    match (device, index) {
        ("auto", _) => Ok(Wanted::Auto),
        ("cpu", _) => Ok(Wanted::Cpu),
        (_, Some(index)) => Ok(Wanted::Vulkan(index)),
        _ => Err(ComputeError::NoDevice { what: format!("device is \"{device}\", needs auto, vulkan:N or cpu") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: usize, kind: DeviceKind, discrete: bool) -> GpuEntry {
        GpuEntry { index, name: format!("device {index}"), kind, discrete }
    }

    #[test]
    fn discrete_devices_come_first_and_software_never() {
        let all = [
            entry(0, DeviceKind::VulkanCpu, false),
            entry(1, DeviceKind::VulkanGpu, false),
            entry(2, DeviceKind::VulkanGpu, true),
            entry(3, DeviceKind::VulkanGpu, true),
        ];
        let order: Vec<usize> = order(&all).iter().map(|e| e.index).collect();
        assert_eq!(order, [2, 3, 1]);
    }

    #[test]
    fn names_of_devices() {
        assert_eq!(parse("auto").ok(), Some(Wanted::Auto));
        assert_eq!(parse("cpu").ok(), Some(Wanted::Cpu));
        assert_eq!(parse("vulkan:12").ok(), Some(Wanted::Vulkan(12)));
        for wrong in ["", "gpu", "vulkan", "vulkan:", "vulkan:x", "vulkan:-1", "Auto"] {
            let error = parse(wrong).expect_err(wrong).to_string();
            assert!(error.contains(wrong) && error.contains("vulkan:N"), "{error}");
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        let (executor, why) = select("cpu", 1).expect("it needs no driver");
        assert_eq!(executor.device().kind, DeviceKind::Cpu);
        assert!(!why.is_empty());
    }
}
