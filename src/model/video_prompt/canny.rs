//! Edges: blur, Sobel filters, thinning along the gradient, and strong edges that spread along weak ones.

use super::{Picture, Plane};

/// Thresholds on |dx| + |dy| of the Sobel filters of weights 1 2 1.
const EDGE_LOW: i32 = 50;
const EDGE_HIGH: i32 = 120;
/// How many pixels a strong edge spreads along weak ones.
const SPREAD: usize = 4;

/// Edges of a picture, white on black, drawn three pixels wide: of the autoencoder's latents of thinner lines a
/// third is left, of these two thirds.
pub fn canny(picture: &Picture) -> Picture {
    let image = blur(&picture.grey());
    let across = image.map(|x, y| image.at(x + 1, y) - image.at(x - 1, y));
    let along = image.map(|x, y| image.at(x, y + 1) - image.at(x, y - 1));
    let gx = image.map(|x, y| 2 * across.at(x, y) + across.at(x, y + 1) + across.at(x, y - 1));
    let gy = image.map(|x, y| 2 * along.at(x, y) + along.at(x + 1, y) + along.at(x - 1, y));
    let size = image.map(|x, y| gx.at(x, y).abs() + gy.at(x, y).abs());
    let thin = image.map(|x, y| i32::from(is_crest(&size, (gx.at(x, y), gy.at(x, y)), x, y)));
    let weak = image.map(|x, y| i32::from(thin.at(x, y) == 1 && size.at(x, y) >= EDGE_LOW));
    let mut edge = image.map(|x, y| i32::from(thin.at(x, y) == 1 && size.at(x, y) >= EDGE_HIGH));
    for _ in 0..SPREAD {
        let near = |x: isize, y: isize| (-1..=1).any(|j| (-1..=1).any(|i| edge.at(x + i, y + j) == 1));
        edge = edge.map(|x, y| i32::from(weak.at(x, y) == 1 && near(x, y)));
    }
    // What repeats outside of the picture is at its border, and so among the neighbours anyway.
    let wide = edge.map(|x, y| i32::from((-1..=1).any(|j| (-1..=1).any(|i| edge.at(x + i, y + j) == 1))));
    let bytes = wide.values.iter().flat_map(|v| [if *v == 1 { 255 } else { 0 }; 3]).collect();
    Picture { width: picture.width, height: picture.height, rgb: bytes }
}

/// 5x5 Gaussian of weights 1 4 6 4 1 both ways: (sum + 128) / 256, rounded down.
fn blur(image: &Plane) -> Plane {
    let weigh = |from: &Plane, x: isize, y: isize, (dx, dy): (isize, isize)| {
        let at = |n: isize| from.at(x + n * dx, y + n * dy);
        6 * at(0) + 4 * (at(1) + at(-1)) + at(2) + at(-2)
    };
    let lines = image.map(|x, y| weigh(image, x, y, (1, 0)));
    image.map(|x, y| (weigh(&lines, x, y, (0, 1)) + 128) / 256)
}

/// Is a gradient larger than the one before and not smaller than the one behind, along its direction? That is one of
/// four; 2/5 stands for tan(22.5 degrees).
fn is_crest(size: &Plane, (gx, gy): (i32, i32), x: isize, y: isize) -> bool {
    let (ax, ay) = (gx.abs(), gy.abs());
    let (dx, dy) = if 5 * ay <= 2 * ax {
        (1, 0)
    } else if 5 * ax <= 2 * ay {
        (0, 1)
    } else if (gx >= 0) == (gy >= 0) {
        (1, 1)
    } else {
        (-1, 1)
    };
    size.at(x, y) > size.at(x - dx, y - dy) && size.at(x, y) >= size.at(x + dx, y + dy)
}
