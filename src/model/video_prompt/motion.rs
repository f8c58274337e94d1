//! Motion of blocks since the picture before, by exhaustive search at half size.

use super::{Picture, Plane};
use crate::model::ModelError;

/// Side of a block in pixels of the half-size picture.
pub const BLOCK: usize = 16;
/// Longest step along a side, in pixels of the half-size picture.
const REACH: i32 = 8;
/// Added to a block's sum of differences for each half-size pixel of |dx| + |dy|.
const STEP_COST: i32 = 32;
/// Colour of a block: zero + shade of its step, which grows fast where most steps are (38 log2(1 + step)).
const MOTION_ZERO: i32 = 128;
const MOTION_SHADES: [i32; REACH as usize + 1] = [0, 38, 60, 76, 88, 98, 107, 114, 120];

/// How far each block moved: (dx, dy) in half-size pixels, right and down positive, in rows of `width` blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub width: usize,
    pub height: usize,
    pub steps: Vec<(i32, i32)>,
}

/// Motion from the picture `before` to the picture `now`. Errors: pictures of two sizes.
pub fn motion_field(before: &Picture, now: &Picture) -> Result<Field, ModelError> {
    if (before.width, before.height) != (now.width, now.height) {
        let found = format!("{}x{} pixels", now.width, now.height);
        let allowed = format!("{}x{} pixels, as the picture before", before.width, before.height);
        return Err(ModelError::Request { field: "picture", found, allowed });
    }
    Ok(matched(&half(before), &half(now)))
}

fn matched(before: &Plane, now: &Plane) -> Field {
    let (width, height) = (now.width / BLOCK, now.height / BLOCK);
    let order = steps();
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x * BLOCK, y * BLOCK)));
    Field { width, height, steps: places.map(|place| best_step(before, now, place, &order)).collect() }
}

/// Every step, the shortest first, so that of equal ones the shortest wins.
fn steps() -> Vec<(i32, i32)> {
    let mut all: Vec<(i32, i32)> = (-REACH..=REACH).flat_map(|dy| (-REACH..=REACH).map(move |dx| (dx, dy))).collect();
    all.sort_by_key(|(dx, dy)| (dx.abs() + dy.abs(), *dy, *dx));
    all
}

fn best_step(before: &Plane, now: &Plane, (left, top): (usize, usize), order: &[(i32, i32)]) -> (i32, i32) {
    let (mut best, mut found) = (i32::MAX, (0, 0));
    for &(dx, dy) in order {
        let mut cost = STEP_COST * (dx.abs() + dy.abs());
        for y in (top..top + BLOCK).map(|y| y as isize) {
            for x in (left..left + BLOCK).map(|x| x as isize) {
                cost += (now.at(x, y) - before.at(x - dx as isize, y - dy as isize)).abs();
            }
            if cost >= best {
                break;
            }
        }
        if cost < best {
            (best, found) = (cost, (dx, dy));
        }
    }
    found
}

/// Grey of half the size: (sum of 2x2 + 2) / 4, rounded down, grown to whole blocks by its border.
fn half(picture: &Picture) -> Plane {
    let grey = picture.grey();
    let (width, height) = (grey.width.div_ceil(2), grey.height.div_ceil(2));
    let small = Plane::make(width, height, |x, y| {
        let sum = grey.at(2 * x, 2 * y) + grey.at(2 * x + 1, 2 * y) + grey.at(2 * x, 2 * y + 1);
        (sum + grey.at(2 * x + 1, 2 * y + 1) + 2) / 4
    });
    Plane::make(width.next_multiple_of(BLOCK), height.next_multiple_of(BLOCK), |x, y| small.at(x, y))
}

/// Colour of a step, which lies within the reach of the search; one from elsewhere is cut to it.
fn shade(step: i32) -> u8 {
    let place = step.unsigned_abs().min(REACH.unsigned_abs()) as usize;
    (MOTION_ZERO + step.signum() * MOTION_SHADES[place]) as u8
}

/// A field in flat colours: red for dx, green for dy.
pub fn motion_picture(field: &Field, width: usize, height: usize) -> Picture {
    let mut picture = Picture::black(width, height);
    for y in 0..height {
        for x in 0..width {
            let (dx, dy) = field.steps[y / (2 * BLOCK) * field.width + x / (2 * BLOCK)];
            picture.set(x, y, [shade(dx), shade(dy), MOTION_ZERO as u8]);
        }
    }
    picture
}

/// Pictures of the motion of frames that follow one another; nothing moves in the first one.
/// Errors: pictures of different sizes.
pub fn motion_vectors(frames: &[Picture]) -> Result<Vec<Picture>, ModelError> {
    let mut all = Vec::with_capacity(frames.len());
    for (i, now) in frames.iter().enumerate() {
        let before = &frames[i.saturating_sub(1)];
        let mut field = motion_field(before, now)?;
        if i == 0 {
            field.steps.fill((0, 0));
        }
        all.push(motion_picture(&field, now.width, now.height));
    }
    Ok(all)
}
