//! Edges after Canny (IEEE PAMI 8, 1986): smooth, differentiate, thin, and follow strong edges through weak ones.

use super::clip::Picture;
use super::extract::Extractor;

/// Steps of brightness per pixel, after Sobel's operator, below which nothing is an edge and above which all is.
const WEAK: i32 = 100;
const STRONG: i32 = 200;
/// Binomial weights of the smoothing, of 16.
const SMOOTH: [i32; 5] = [1, 4, 6, 4, 1];

/// White edges on black.
pub struct Canny;

impl Extractor for Canny {
    fn extract(&self, pictures: &[Picture]) -> Vec<Picture> {
        pictures.iter().map(edges).collect()
    }
}

struct Plane {
    width: usize,
    height: usize,
    values: Vec<i32>,
}

impl Plane {
    /// The value there, that of the nearest pixel outside.
    fn at(&self, x: isize, y: isize) -> i32 {
        let x = x.clamp(0, self.width as isize - 1) as usize;
        let y = y.clamp(0, self.height as isize - 1) as usize;
        self.values[y * self.width + x]
    }

    fn map(&self, value: impl Fn(isize, isize) -> i32) -> Plane {
        let (w, h) = (self.width as isize, self.height as isize);
        let values = (0..h).flat_map(|y| (0..w).map(move |x| (x, y))).map(|(x, y)| value(x, y)).collect();
        Plane { width: self.width, height: self.height, values }
    }
}

fn edges(picture: &Picture) -> Picture {
    let (width, height) = (picture.width as usize, picture.height as usize);
    // BT.601 luma in whole numbers.
    let luma = |p: &[u8]| (77 * i32::from(p[0]) + 150 * i32::from(p[1]) + 29 * i32::from(p[2])) >> 8;
    let grey = Plane { width, height, values: picture.rgb.chunks_exact(3).map(luma).collect() };
    let taps = |f: &dyn Fn(isize) -> i32| (0..5).map(|k| SMOOTH[k] * f(k as isize - 2)).sum::<i32>();
    let wide = grey.map(|x, y| taps(&|d| grey.at(x + d, y)));
    let smooth = wide.map(|x, y| (taps(&|d| wide.at(x, y + d)) + 128) >> 8);
    let slope = |x: isize, y: isize, dx: isize, dy: isize| {
        // Sobel: the difference across, weighted 1 2 1 along.
        let side = |s: isize| {
            let (cx, cy) = (x + s * dx, y + s * dy);
            smooth.at(cx - dy, cy - dx) + 2 * smooth.at(cx, cy) + smooth.at(cx + dy, cy + dx)
        };
        side(1) - side(-1)
    };
    let gx = smooth.map(|x, y| slope(x, y, 1, 0));
    let gy = smooth.map(|x, y| slope(x, y, 0, 1));
    let size = smooth.map(|x, y| gx.at(x, y).abs() + gy.at(x, y).abs());
    let thin = size.map(|x, y| {
        let (here, (dx, dy)) = (size.at(x, y), across(gx.at(x, y), gy.at(x, y)));
        let crest = here > size.at(x - dx, y - dy) && here >= size.at(x + dx, y + dy);
        if crest { here } else { 0 }
    });
    let marked = follow(&thin);
    let rgb = marked.iter().flat_map(|edge| [if *edge { 255 } else { 0 }; 3]).collect();
    Picture { width: picture.width, height: picture.height, rgb }
}

/// The neighbour in the direction of the slope, of eight.
fn across(gx: i32, gy: i32) -> (isize, isize) {
    let (ax, ay) = (gx.abs(), gy.abs());
    // tan 22.5 degrees is about 5/12.
    if 12 * ay <= 5 * ax {
        (1, 0)
    } else if 12 * ax <= 5 * ay {
        (0, 1)
    } else if (gx > 0) == (gy > 0) {
        (1, 1)
    } else {
        (1, -1)
    }
}

/// Strong pixels, and weak ones that touch an edge.
fn follow(thin: &Plane) -> Vec<bool> {
    let (w, h) = (thin.width as isize, thin.height as isize);
    let mut marked = vec![false; thin.values.len()];
    let strong = |i: &usize| thin.values[*i] >= STRONG;
    let mut open: Vec<usize> = (0..thin.values.len()).filter(strong).collect();
    while let Some(i) = open.pop() {
        if std::mem::replace(&mut marked[i], true) {
            continue;
        }
        let (x, y) = ((i % thin.width) as isize, (i / thin.width) as isize);
        for (nx, ny) in (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (x + dx, y + dy))) {
            if (0..w).contains(&nx) && (0..h).contains(&ny) {
                let n = (ny * w + nx) as usize;
                if !marked[n] && thin.values[n] >= WEAK {
                    open.push(n);
                }
            }
        }
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edge_of_a_square_is_found_and_nothing_else() {
        let (w, h) = (64u32, 48u32);
        let inside = |x: u32, y: u32| (16..40).contains(&x) && (12..36).contains(&y);
        let rgb = (0..h).flat_map(|y| (0..w).flat_map(move |x| [if inside(x, y) { 220 } else { 20 }; 3])).collect();
        let found = Canny.extract(&[Picture { width: w, height: h, rgb }]).remove(0);
        let edge = |x: u32, y: u32| found.rgb[((y * w + x) * 3) as usize] == 255;
        for y in 14..34 {
            let row: Vec<u32> = (0..w).filter(|x| edge(*x, y)).collect();
            assert_eq!(row.len(), 2, "row {y}: {row:?}");
            assert!((15..=16).contains(&row[0]) && (39..=40).contains(&row[1]), "row {y}: {row:?}");
        }
        assert!((0..w).all(|x| !edge(x, 4) && !edge(x, 44)), "no edge outside");
        assert!((20..36).all(|x| (16..32).all(|y| !edge(x, y))), "no edge inside");
    }

    #[test]
    fn a_soft_slope_is_no_edge() {
        let rgb = (0..64u8).flat_map(|_| (0..64u8).flat_map(|x| [2 * x; 3])).collect();
        let found = Canny.extract(&[Picture { width: 64, height: 64, rgb }]).remove(0);
        assert!(found.rgb.iter().all(|v| *v == 0));
    }
}
