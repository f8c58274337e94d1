//! The driver's compiled kernels, kept in a file between starts.
//!
//! Drivers check the header of such data but some crash on damaged contents, so the file has a frame of its own:
//!
//! | offset | type | field |
//! | --- | --- | --- |
//! | 0 | 8 bytes | magic `GGVKPC1\n` |
//! | 8 | u64 | length of the data |
//! | 16 | u64 | FNV-1a hash of the data |
//! | 24 | - | the data, which begins with Vulkan's own header (VkPipelineCacheHeaderVersionOne) |

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ash::vk;

use super::VkError;
use super::device::Device;

const MAGIC: &[u8; 8] = b"GGVKPC1\n";
const FRAME_BYTES: usize = 24;
/// Size of Vulkan's header, version one.
const HEADER_BYTES: usize = 32;
/// Larger files are not read: a whole set of kernels takes a few megabytes.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A pipeline cache with the file that it is kept in, if any.
pub struct PipelineCache {
    raw: vk::PipelineCache,
    path: Option<PathBuf>,
    device: Device,
}

impl PipelineCache {
    /// A cache, filled from the file if there is one that this driver wrote. A file that is absent, damaged or another
    /// driver's costs time only.
    pub fn open(device: &Device, path: Option<&Path>) -> Result<PipelineCache, VkError> {
        let data = path.map(load).and_then(|file| match file {
            Ok(file) => unframe(&file).filter(|data| is_of(data, &device.0.properties)).map(<[u8]>::to_vec),
            Err(e) => {
                log::debug!("pipeline cache not read: {e}");
                None
            }
        });
        let data = data.unwrap_or_default();
        let info = vk::PipelineCacheCreateInfo::default().initial_data(&data);
        // SAFETY: needs data that this driver gave out or none: the header names the driver and the hash proves that
        // the rest is what was written.
        let raw = unsafe { device.0.raw.create_pipeline_cache(&info, None) }
            .map_err(|e| device.0.failed("vkCreatePipelineCache", e))?;
        Ok(PipelineCache { raw, path: path.map(Path::to_path_buf), device: device.clone() })
    }

    pub(super) fn raw(&self) -> vk::PipelineCache {
        self.raw
    }

    /// Writes the file anew, as a whole. A failure is logged: the cache only saves time.
    pub fn save(&self) {
        let Some(path) = &self.path else { return };
        // SAFETY: needs a live cache of this device, which `raw` is.
        let data = match unsafe { self.device.0.raw.get_pipeline_cache_data(self.raw) } {
            Ok(data) => data,
            Err(e) => return log::warn!("pipeline cache not read back: {e}"),
        };
        let framed = frame(&data);
        if load(path).is_ok_and(|old| old == framed) {
            return;
        }
        // The process id keeps two daemons from writing one temporary file.
        let new = path.with_extension(format!("new.{}", std::process::id()));
        let written = fs::write(&new, framed).and_then(|()| fs::rename(&new, path));
        if let Err(e) = written {
            log::warn!("pipeline cache {} not written: {e}", path.display());
            let _ = fs::remove_file(&new);
        }
    }
}

impl Drop for PipelineCache {
    fn drop(&mut self) {
        if !self.device.0.lost() {
            // SAFETY: needs that nobody uses the cache; pipelines are complete without it.
            unsafe { self.device.0.raw.destroy_pipeline_cache(self.raw, None) };
        }
    }
}

fn load(path: &Path) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut data)?;
    Ok(data)
}

fn fnv1a(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn frame(data: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(FRAME_BYTES + data.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&(data.len() as u64).to_le_bytes());
    file.extend_from_slice(&fnv1a(data).to_le_bytes());
    file.extend_from_slice(data);
    file
}

/// The data of a file whose frame is right.
fn unframe(file: &[u8]) -> Option<&[u8]> {
    let data = file.strip_prefix(MAGIC).and_then(|_| file.get(FRAME_BYTES..))?;
    let word = |at: usize| file[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    (word(8)? == data.len() as u64 && word(16)? == fnv1a(data)).then_some(data)
}

/// True if Vulkan's header names this driver and device.
fn is_of(data: &[u8], properties: &vk::PhysicalDeviceProperties) -> bool {
    let word = |at: usize| data[at..at + 4].try_into().map_or(0, u32::from_ne_bytes);
    data.len() >= HEADER_BYTES
        && word(0) as usize == HEADER_BYTES
        && word(4) == vk::PipelineCacheHeaderVersion::ONE.as_raw() as u32
        && word(8) == properties.vendor_id
        && word(12) == properties.device_id
        && data[16..HEADER_BYTES] == properties.pipeline_cache_uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_refused() {
        let file = frame(b"some data");
        assert_eq!(unframe(&file), Some(&b"some data"[..]));
        assert_eq!(unframe(&frame(b"")), Some(&b""[..]));
        for i in 0..file.len() {
            let mut damaged = file.clone();
            damaged[i] ^= 1;
            assert_eq!(unframe(&damaged), None, "byte {i}");
            assert_eq!(unframe(&file[..i]), None, "cut at {i}");
        }
    }

    #[test]
    fn another_drivers_data_is_refused() {
        let properties = vk::PhysicalDeviceProperties {
            vendor_id: 7,
            device_id: 9,
            pipeline_cache_uuid: [5; 16],
            ..Default::default()
        };
        let mut data: Vec<u8> = [32u32, 1, 7, 9].iter().flat_map(|w| w.to_ne_bytes()).collect();
        data.extend([5; 16]);
        assert!(is_of(&data, &properties));
        assert!(!is_of(&data[..31], &properties));
        for i in 0..data.len() {
            let mut other = data.clone();
            other[i] ^= 1;
            assert!(!is_of(&other, &properties), "byte {i}");
        }
    }
}
