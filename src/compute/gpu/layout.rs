//! Finds out which places of a matrix each lane has, once, when a device is opened.

use std::sync::Arc;

use super::super::ComputeError;
use super::kernels::{self, Matrix, RowLayout, Tail};
use crate::vk::{Buffer, CommandBuffer, Device, MatrixShape, Module, Pipeline, PipelineCache, Place, Recorder, Stage};

/// The layout of the device's matrices, if kernels can use it. Runs a small kernel or two.
pub(super) fn find(device: &Device, cache: &PipelineCache, matrix: &Matrix) -> Result<Option<RowLayout>, ComputeError> {
    let Some(all) = places(device, cache, matrix.lanes, matrix.shape)? else { return Ok(None) };
    let Some(mut layout) = RowLayout::find(matrix.shape, matrix.lanes, &all) else {
        log::info!("the layout of matrices is none that attention_rows can use: {:?}", &all[..all.len().min(64)]);
        return Ok(None);
    };
    if let Some(narrow) = device.limits().narrow_matrix
        && let Some(few) = places(device, cache, matrix.lanes, narrow)?
    {
        layout.tail = Tail::find(&layout, (matrix.shape, &all), (narrow, &few), matrix.lanes);
    }
    Ok(Some(layout))
}

/// What every element of every lane is, of matrices of sums and then of left factors; `None` if that cannot be asked.
fn places(
    device: &Device,
    cache: &PipelineCache,
    lanes: u32,
    shape: MatrixShape,
) -> Result<Option<Vec<u32>>, ComputeError> {
    let words = (shape.m * (shape.n + shape.k)) as usize;
    let bytes = 4 * words as u64;
    let buffer = |name, place| Buffer::new(device, name, bytes, place).map(Arc::new);
    let (out, down) = (buffer("layout", Place::Device)?, buffer("layout down", Place::Download)?);
    let Some(dispatch) = kernels::layout_probe(shape, lanes, out.address()) else { return Ok(None) };
    let kernel = dispatch.kernel.kernel();
    let module = Module {
        words: kernel.words(super::Precision::F16),
        push_bytes: kernel.push_bytes,
        spec: dispatch.spec.values(),
        subgroup: Some(lanes),
    };
    let pipeline = Arc::new(Pipeline::new(device, cache, kernel.name, module)?);
    let mut r = Recorder::new(device, "layout", 0)?;
    r.keep(&out);
    r.dispatch(&pipeline, dispatch.push.bytes(), dispatch.grid);
    r.barrier(Stage::All, Stage::Transfer);
    r.copy(&out, 0, &down, 0, bytes);
    r.barrier(Stage::Transfer, Stage::Host);
    let mut commands: CommandBuffer = r.finish()?;
    commands.run()?;
    let read = |bytes: &mut [u8]| -> Vec<u32> {
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        bytes.chunks_exact(4).take(words).map(word).collect()
    };
    Ok(Some(down.map(read)?))
}
