//! What lives on the device: weights, states, and the way there and back.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::super::plan::{SLOT_ALIGN, TensorInfo};
use super::super::weights::WeightId;
use super::super::{ComputeError, DType, Plan, Precision, Shape, StateLayout, WeightSet};
use crate::vk::{Buffer, Device, Place, Recorder, Stage};

/// Size of the mapped buffers for weights and states in bytes.
const TRANSFER_BYTES: usize = 16 << 20;

/// Weights are packed into buffers of at most this size, unless one alone is larger.
const WEIGHT_BUFFER_BYTES: u64 = 1 << 30;

/// Offsets of parts that follow one another, each aligned for every kernel.
#[derive(Debug)]
pub(super) struct Layout {
    offsets: Vec<u64>,
    bytes: u64,
}

impl Layout {
    pub fn new(sizes: impl Iterator<Item = u64>) -> Layout {
        let mut layout = Layout { offsets: Vec::new(), bytes: 0 };
        for size in sizes {
            layout.offsets.push(layout.bytes);
            layout.bytes += size.next_multiple_of(SLOT_ALIGN as u64);
        }
        layout
    }

    pub fn offset(&self, index: usize) -> u64 {
        self.offsets[index]
    }

    /// All parts together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Where the slots of a plan's arena are: the arena is one buffer, or several where a buffer cannot be so large.
#[derive(Debug)]
pub(super) struct Slots {
    /// Buffer and offset of each slot.
    places: Vec<(usize, u64)>,
    /// Bytes of each buffer.
    bytes: Vec<u64>,
}

impl Slots {
    /// Fills buffers of up to `most` bytes, in order; a slot that is larger is alone in one.
    pub fn new(sizes: impl Iterator<Item = u64>, most: u64) -> Slots {
        let mut slots = Slots { places: Vec::new(), bytes: Vec::new() };
        for size in sizes {
            let size = size.next_multiple_of(SLOT_ALIGN as u64);
            match slots.bytes.last() {
                Some(last) if last + size <= most => {}
                _ => slots.bytes.push(0),
            }
            let buffer = slots.bytes.len() - 1;
            slots.places.push((buffer, slots.bytes[buffer]));
            slots.bytes[buffer] += size;
        }
        slots
    }

    pub fn place(&self, slot: usize) -> (usize, u64) {
        self.places[slot]
    }

    /// Bytes of each buffer.
    pub fn bytes(&self) -> &[u64] {
        &self.bytes
    }
}

/// Writes values in their type at the beginning of `to`.
pub(super) fn encode(values: &[f32], dtype: DType, to: &mut [u8]) {
    let to = &mut to[..values.len() * dtype.bytes()];
    match dtype {
        DType::F32 => {
            for (to, v) in to.chunks_exact_mut(4).zip(values) {
                to.copy_from_slice(&v.to_le_bytes());
            }
        }
        DType::F16 => {
            // Converted in blocks, which the processor does eight at a time.
            let mut block = [f16::ZERO; 512];
            for (to, values) in to.chunks_mut(2 * block.len()).zip(values.chunks(block.len())) {
                block[..values.len()].convert_from_f32_slice(values);
                for (to, v) in to.chunks_exact_mut(2).zip(&block) {
                    to.copy_from_slice(&v.to_le_bytes());
                }
            }
        }
        DType::U8 => {
            for (to, v) in to.iter_mut().zip(values) {
                *to = v.round().clamp(0.0, 255.0) as u8;
            }
        }
    }
}

/// Reads values of a type from the beginning of `from`.
pub(super) fn decode(from: &[u8], dtype: DType, values: &mut [f32]) {
    let from = &from[..values.len() * dtype.bytes()];
    match dtype {
        DType::F32 => {
            for (v, from) in values.iter_mut().zip(from.chunks_exact(4)) {
                *v = f32::from_le_bytes([from[0], from[1], from[2], from[3]]);
            }
        }
        DType::F16 => {
            let mut block = [f16::ZERO; 512];
            for (values, from) in values.chunks_mut(block.len()).zip(from.chunks(2 * block.len())) {
                for (v, from) in block.iter_mut().zip(from.chunks_exact(2)) {
                    *v = f16::from_le_bytes([from[0], from[1]]);
                }
                block[..values.len()].convert_to_f32_slice(values);
            }
        }
        DType::U8 => {
            for (v, from) in values.iter_mut().zip(from) {
                *v = f32::from(*from);
            }
        }
    }
}

/// Moves values between the host and device memory, outside of any plan.
pub(super) struct Transfer {
    device: Device,
    up: Arc<Buffer>,
    down: Arc<Buffer>,
}

impl Transfer {
    pub fn new(device: &Device) -> Result<Transfer, ComputeError> {
        let buffer = |name, place| Buffer::new(device, name, TRANSFER_BYTES as u64, place).map(Arc::new);
        Ok(Transfer {
            device: device.clone(),
            up: buffer("transfer up", Place::Upload)?,
            down: buffer("transfer down", Place::Download)?,
        })
    }

    pub fn upload(&mut self, to: &Arc<Buffer>, offset: u64, dtype: DType, values: &[f32]) -> Result<(), ComputeError> {
        let mut at = offset;
        for part in values.chunks(TRANSFER_BYTES / dtype.bytes()) {
            let bytes = (part.len() * dtype.bytes()) as u64;
            self.up.map(|mapped| encode(part, dtype, mapped))?;
            let mut r = Recorder::new(&self.device, "upload", 0)?;
            r.copy(&self.up, 0, to, at, bytes);
            r.finish()?.run()?;
            at += bytes;
        }
        Ok(())
    }

    pub fn download(
        &mut self,
        from: &Arc<Buffer>,
        offset: u64,
        dtype: DType,
        values: &mut [f32],
    ) -> Result<(), ComputeError> {
        let mut at = offset;
        for part in values.chunks_mut(TRANSFER_BYTES / dtype.bytes()) {
            let bytes = (part.len() * dtype.bytes()) as u64;
            let mut r = Recorder::new(&self.device, "download", 0)?;
            r.copy(from, at, &self.down, 0, bytes);
            r.barrier(Stage::Transfer, Stage::Host);
            r.finish()?.run()?;
            self.down.map(|mapped| decode(mapped, dtype, part))?;
            at += bytes;
        }
        Ok(())
    }
}

struct WeightPlace {
    buffer: usize,
    offset: u64,
    shape: Shape,
    dtype: DType,
}

/// The weights of a model on the device.
#[derive(Default)]
pub(super) struct Weights {
    pub buffers: Vec<Arc<Buffer>>,
    places: Vec<WeightPlace>,
}

impl Weights {
    pub fn upload(
        device: &Device,
        transfer: &mut Transfer,
        set: &WeightSet,
        precision: Precision,
    ) -> Result<Weights, ComputeError> {
        let mut weights = Weights::default();
        let mut sizes: Vec<u64> = Vec::new();
        for (_, w) in set.iter() {
            let dtype = w.dtype(precision);
            let bytes = ((w.data.len() * dtype.bytes()) as u64).next_multiple_of(SLOT_ALIGN as u64);
            match sizes.last() {
                Some(size) if size + bytes <= WEIGHT_BUFFER_BYTES => {}
                _ => sizes.push(0),
            }
            let buffer = sizes.len() - 1;
            weights.places.push(WeightPlace { buffer, offset: sizes[buffer], shape: w.shape, dtype });
            sizes[buffer] += bytes;
        }
        for (i, bytes) in sizes.into_iter().enumerate() {
            weights.buffers.push(Arc::new(Buffer::new(device, &format!("weights {i}"), bytes, Place::Device)?));
        }
        for ((_, w), place) in set.iter().zip(&weights.places) {
            transfer.upload(&weights.buffers[place.buffer], place.offset, place.dtype, &w.data)?;
        }
        Ok(weights)
    }

    /// True if the weight is here as a plan expects it.
    pub fn holds(&self, id: WeightId, info: &TensorInfo) -> bool {
        self.places.get(id.index()).is_some_and(|p| p.shape == info.shape && p.dtype == info.dtype)
    }

    pub fn address(&self, id: WeightId) -> u64 {
        let place = &self.places[id.index()];
        self.buffers[place.buffer].address() + place.offset
    }
}

/// The tables of a plan on the device.
pub(super) struct Tables {
    pub buffer: Arc<Buffer>,
    places: Layout,
}

impl Tables {
    /// `None` if the plan has none.
    pub fn upload(device: &Device, transfer: &mut Transfer, plan: &Plan) -> Result<Option<Tables>, ComputeError> {
        if plan.tables.is_empty() {
            return Ok(None);
        }
        let places = Layout::new(plan.tables.iter().map(|t| 4 * t.len() as u64));
        let name = format!("{}: tables", plan.name);
        let buffer = Arc::new(Buffer::new(device, &name, places.bytes(), Place::Device)?);
        for (i, values) in plan.tables.iter().enumerate() {
            transfer.upload(&buffer, places.offset(i), DType::F32, values)?;
        }
        Ok(Some(Tables { buffer, places }))
    }

    pub fn address(&self, index: usize) -> u64 {
        self.buffer.address() + self.places.offset(index)
    }
}

/// Where the entries of a session's state lie in it.
pub(super) fn state_places(layout: &StateLayout) -> Layout {
    Layout::new(layout.entries().iter().map(|(_, shape, dtype)| (shape.elements() * dtype.bytes()) as u64))
}

/// A session's state on the device.
pub(super) struct State {
    pub layout: Arc<StateLayout>,
    pub buffer: Arc<Buffer>,
    /// Where the entries of the layout lie in the buffer.
    pub places: Layout,
}

impl State {
    pub fn new(device: &Device, id: usize, layout: &Arc<StateLayout>) -> Result<State, ComputeError> {
        let places = state_places(layout);
        let buffer = Arc::new(Buffer::new(device, &format!("state {id}"), places.bytes(), Place::Device)?);
        let mut r = Recorder::new(device, "zero a state", 0)?;
        r.zero(&buffer);
        r.finish()?.run()?;
        Ok(State { layout: Arc::clone(layout), buffer, places })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fill_one_buffer_after_the_other() {
        let slots = Slots::new([100, 300, 2000, 512, 256].into_iter(), 1024);
        let places: Vec<_> = (0..5).map(|i| slots.place(i)).collect();
        assert_eq!(places, [(0, 0), (0, 256), (1, 0), (2, 0), (2, 512)]);
        assert_eq!(slots.bytes(), [768, 2048, 768]);
        assert!(Slots::new(std::iter::empty(), 1024).bytes().is_empty());
    }

    #[test]
    fn parts_are_aligned_and_apart() {
        let layout = Layout::new([1, 256, 0, 257].into_iter());
        assert_eq!(layout.offsets, [0, 256, 512, 512]);
        assert_eq!(layout.bytes(), 1024);
        assert_eq!(Layout::new(std::iter::empty()).bytes(), 0);
    }

    #[test]
    fn values_survive_the_way_there_and_back() {
        let values: Vec<f32> = (0..1500).map(|i| (i % 256) as f32).collect();
        for dtype in [DType::F32, DType::F16, DType::U8] {
            let mut bytes = vec![0; values.len() * dtype.bytes() + 3];
            encode(&values, dtype, &mut bytes);
            let mut back = vec![0.0; values.len()];
            decode(&bytes, dtype, &mut back);
            assert_eq!(back, values, "{dtype:?}");
            assert_eq!(bytes[values.len() * dtype.bytes()..], [0; 3], "{dtype:?} wrote too much");
        }
    }
}
