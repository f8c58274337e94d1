//! Poses as pictures: coloured limbs on black.

use super::Picture;

/// Width of a limb in pixels.
const LIMB_WIDTH: f32 = 6.0;

/// Joints between which limbs are drawn, and their colours; later ones lie on top. The joints are head, neck, left and
/// right shoulder, hand, hip, knee and foot, and the head of the horse.
const LIMBS: [(usize, usize, [u8; 3]); 12] = [
    (1, 12, [128, 128, 128]),
    (1, 6, [0, 160, 80]),
    (1, 7, [0, 80, 160]),
    (6, 8, [0, 255, 0]),
    (8, 10, [128, 255, 0]),
    (7, 9, [0, 0, 255]),
    (9, 11, [128, 0, 255]),
    (1, 2, [255, 160, 0]),
    (1, 3, [255, 0, 160]),
    (2, 4, [255, 255, 0]),
    (3, 5, [255, 0, 255]),
    (0, 1, [255, 0, 0]),
];

/// A joint of the player's figure, in pixels from the upper left corner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Joint {
    pub x: f32,
    pub y: f32,
    pub seen: bool,
}

/// The limbs of a figure; those with a joint that is not seen, or not there, are left out.
pub fn pose_picture(joints: &[Joint], width: usize, height: usize) -> Picture {
    let mut picture = Picture::black(width, height);
    for (first, second, color) in LIMBS {
        if let (Some(a), Some(b)) = (joints.get(first), joints.get(second))
            && a.seen
            && b.seen
        {
            limb(&mut picture, *a, *b, color);
        }
    }
    picture
}

/// Colours the pixels whose middle is near enough to the line between two joints.
fn limb(picture: &mut Picture, a: Joint, b: Joint, color: [u8; 3]) {
    let (ux, uy) = (b.x - a.x, b.y - a.y);
    let length2 = (ux * ux + uy * uy).max(1e-6);
    for row in 0..picture.height {
        for column in 0..picture.width {
            let (x, y) = (column as f32 + 0.5, row as f32 + 0.5);
            let along = (((x - a.x) * ux + (y - a.y) * uy) / length2).clamp(0.0, 1.0);
            let (dx, dy) = (x - a.x - along * ux, y - a.y - along * uy);
            if dx * dx + dy * dy <= (LIMB_WIDTH / 2.0).powi(2) {
                picture.set(column, row, color);
            }
        }
    }
}
