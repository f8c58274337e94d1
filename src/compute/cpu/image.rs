//! Space, channels and pictures.

use super::super::op::{GroupMean, Shuffle, ToI420, Unshuffle};
use super::memory::{Mat, Memory, Operands, Scratch};
use super::pointwise::rows_of;
use super::tasks::Context;

/// Elementary operations for an element that is looked up with a stride.
const GATHER_COST: usize = 4;

pub fn unshuffle(op: &Unshuffle, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.y.tensor);
    {
        let x = Operands::new(memory, op.y.tensor, &mut scratch.stage).get(&op.x, &buffer);
        let (r, width, wide) = (op.r, op.width, op.width / op.r);
        let rows = &mut buffer[op.y.offset..op.y.end()];
        cx.each_row(rows, rows_of(&op.y, GATHER_COST), None, |row, y| {
            let (i, j) = (row / wide, row % wide);
            for k in 0..r * r {
                let x = x.row((i * r + k / r) * width + j * r + k % r);
                for (y, x) in y[k..].iter_mut().step_by(r * r).zip(x) {
                    *y = *x;
                }
            }
        });
    }
    memory.put(op.y.tensor, buffer);
}

pub fn group_mean(op: &GroupMean, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.y.tensor);
    {
        let x = Operands::new(memory, op.y.tensor, &mut scratch.stage).get(&op.x, &buffer);
        let size = op.x.cols / op.y.cols;
        let rows = &mut buffer[op.y.offset..op.y.end()];
        cx.each_row(rows, rows_of(&op.y, GATHER_COST * size), None, |row, y| {
            for (y, x) in y.iter_mut().zip(x.row(row).chunks_exact(size)) {
                *y = x.iter().sum::<f32>() / size as f32;
            }
        });
    }
    memory.put(op.y.tensor, buffer);
}

pub fn shuffle(op: &Shuffle, memory: &mut Memory<'_>, scratch: &mut Scratch, cx: &Context<'_>) {
    let mut buffer = memory.take(op.y.tensor);
    {
        let mut operands = Operands::new(memory, op.y.tensor, &mut scratch.stage);
        let x = operands.get(&op.x, &buffer);
        let shortcut = op.shortcut.as_ref().map(|s| operands.get(s, &buffer));
        let (rr, width, wide, repeat) = (op.r * op.r, op.width, op.width * op.r, op.repeat());
        let r = op.r;
        let rows = &mut buffer[op.y.offset..op.y.end()];
        cx.each_row(rows, rows_of(&op.y, GATHER_COST), None, |row, y| {
            let (i, j) = (row / wide, row % wide);
            let (from, first) = (i / r * width + j / r, i % r * r + j % r);
            for (y, x) in y.iter_mut().zip(x.row(from)[first..].iter().step_by(rr)) {
                *y = *x;
            }
            if let Some(shortcut) = &shortcut {
                let shortcut = shortcut.row(from);
                // Quotient and remainder of the channel by `repeat`, kept up by addition.
                let (mut at, mut rest) = (first / repeat, first % repeat);
                for y in y {
                    *y += shortcut[at];
                    (at, rest) = (at + rr / repeat, rest + rr % repeat);
                    if rest >= repeat {
                        (at, rest) = (at + 1, rest - repeat);
                    }
                }
            }
        });
    }
    memory.put(op.y.tensor, buffer);
}

/// Red, green and blue of pixel (i, j) in steps of one byte, from blocks of r x r pixels.
#[inline(always)]
fn rgb(x: &Mat<'_>, (blocks, r): (usize, usize), i: usize, j: usize) -> [f32; 3] {
    let block = x.row(i / r * blocks + j / r);
    let at = i % r * r + j % r;
    [block[at], block[r * r + at], block[2 * r * r + at]].map(|x| (x.clamp(-1.0, 1.0) + 1.0) * 127.5)
}

#[inline(always)]
fn luma([r, g, b]: [f32; 3]) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

/// The nearest byte: the cast cuts off and saturates.
#[inline(always)]
fn byte(x: f32) -> u8 {
    (x + 0.5) as u8
}

pub fn to_i420(op: &ToI420, memory: &mut Memory<'_>) {
    match op.r {
        // Sides that are known when the program is built need no division.
        4 => planes(op, 4, memory),
        8 => planes(op, 8, memory),
        r => planes(op, r, memory),
    }
}

#[inline(always)]
fn planes(op: &ToI420, r: usize, memory: &mut Memory<'_>) {
    let mut pictures = std::mem::take(&mut memory.bytes[op.y.index()]);
    for (n, picture) in pictures.chunks_exact_mut(op.picture_bytes()).enumerate() {
        let blocks = op.height * op.width;
        let x = memory.mat(&op.x.rows(n * blocks, blocks));
        let (h, w, blocks) = (op.out_height, op.out_width, (op.width, r));
        let (y_plane, chroma) = picture.split_at_mut(h * w);
        let (cb_plane, cr_plane) = chroma.split_at_mut(h * w / 4);
        let planes = y_plane.chunks_exact_mut(2 * w).zip(cb_plane.chunks_exact_mut(w / 2));
        for (i, ((y, cb), cr)) in planes.zip(cr_plane.chunks_exact_mut(w / 2)).enumerate() {
            let (top, bottom) = y.split_at_mut(w);
            for j in 0..w / 2 {
                let (mut blue, mut red) = (0.0, 0.0);
                for (di, line) in [&mut *top, &mut *bottom].into_iter().enumerate() {
                    for dj in 0..2 {
                        let pixel = rgb(&x, blocks, 2 * i + di, 2 * j + dj);
                        let luma = luma(pixel);
                        line[2 * j + dj] = byte(luma);
                        blue += pixel[2] - luma;
                        red += pixel[0] - luma;
                    }
                }
                cb[j] = byte(128.0 + 0.564 * 0.25 * blue);
                cr[j] = byte(128.0 + 0.713 * 0.25 * red);
            }
        }
    }
    memory.bytes[op.y.index()] = pictures;
}
