//! Functions of short arrays that compilers turn into vector code, and sums in lanes.
//!
//! Everything is `inline(always)`: it becomes part of a function that [`pulp`] compiled for the processor's vectors.

use super::super::op::Act;

/// Elements that are worked on together: two AVX2 vectors, and the width of a panel of a packed matrix.
pub const LANES: usize = 16;

/// A run of elements that fits vectors.
pub type Lanes = [f32; LANES];

/// Up to [`LANES`] elements of a slice from `from` on, zeros after its end.
#[inline(always)]
pub fn load(slice: &[f32], from: usize) -> Lanes {
    match slice.get(from..from + LANES).and_then(|s| s.try_into().ok()) {
        Some(full) => full,
        None => {
            let mut lanes = [0.0; LANES];
            for (l, s) in lanes.iter_mut().zip(&slice[from..]) {
                *l = *s;
            }
            lanes
        }
    }
}

/// Writes the first `to.len()` lanes.
#[inline(always)]
pub fn store(lanes: &Lanes, to: &mut [f32]) {
    match <&mut Lanes>::try_from(&mut *to) {
        // A length that is known becomes two instructions instead of a call.
        Ok(full) => *full = *lanes,
        Err(_) => to.copy_from_slice(&lanes[..to.len()]),
    }
}

/// Applies `f` to the lanes of a slice and the lanes of `with` beside them; zeros stand in beyond the end.
#[inline(always)]
pub fn each<const N: usize>(y: &mut [f32], with: [&[f32]; N], f: impl Fn(&mut Lanes, [&Lanes; N])) {
    let with = with.map(|w| &w[..y.len()]);
    let (chunks, rest) = y.as_chunks_mut::<LANES>();
    let parts = with.map(|w| w.as_chunks::<LANES>());
    for (i, chunk) in chunks.iter_mut().enumerate() {
        f(chunk, parts.map(|(p, _)| &p[i]));
    }
    if !rest.is_empty() {
        let tails = parts.map(|(_, t)| load(t, 0));
        let mut lanes = load(rest, 0);
        let refs: [&Lanes; N] = std::array::from_fn(|i| &tails[i]);
        f(&mut lanes, refs);
        rest.copy_from_slice(&lanes[..rest.len()]);
    }
}

/// Adds the lanes up, in a fixed order.
#[inline(always)]
pub fn sum(lanes: &Lanes) -> f32 {
    let mut width = LANES / 2;
    let mut lanes = *lanes;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum of the products of two rows.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    let mut acc = [0.0; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            acc[i] += a[i] * b[i];
        }
    }
    let mut total = sum(&acc);
    for (a, b) in a_rest.iter().zip(b_rest) {
        total += a * b;
    }
    total
}

/// `e^x` with a relative error below 3e-7, for x in [-87, 88]; beyond that the value at the nearer end.
///
/// Cody and Waite's reduction: x = n ln 2 + r with |r| <= ln 2 / 2, then 2^n through the exponent bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let t = x * std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // Minimax polynomial of (e^r - 1 - r) / r^2 (Cephes, Moshier 1989).
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.500_000_1;
    let e = p * r * r + r + 1.0;
    let two_n = f32::from_bits((t.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    e * two_n
}

#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The tanh approximation of gelu: `(1 + tanh u) / 2` is `sigmoid(2 u)`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
    x * sigmoid(TWICE_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))
}

/// Applies an activation to lanes.
#[inline(always)]
pub fn act(kind: Act, lanes: &mut Lanes) {
    match kind {
        Act::None => {}
        Act::Gelu => lanes.iter_mut().for_each(|x| *x = gelu(*x)),
        Act::Silu => lanes.iter_mut().for_each(|x| *x *= sigmoid(*x)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_bound() {
        let mut worst = 0.0f64;
        for i in -86_999..=87_999 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 3e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn activations_match_their_formulas() {
        for i in -2000..2000 {
            let x = f64::from(i) * 5e-3;
            let gelu64 = 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
            let silu64 = x / (1.0 + (-x).exp());
            for (kind, want) in [(Act::Gelu, gelu64), (Act::Silu, silu64), (Act::None, x)] {
                let mut lanes = [x as f32; LANES];
                act(kind, &mut lanes);
                let error = (f64::from(lanes[3]) - want).abs();
                assert!(error < 1e-6 * (1.0 + want.abs()), "{kind:?}({x}) = {}, expected {want}", lanes[3]);
            }
        }
    }

    #[test]
    fn tails_are_worked_on_too() {
        let mut y: Vec<f32> = (0..37).map(|i| i as f32).collect();
        let x = y.clone();
        each(&mut y, [&x], |y, [x]| (0..LANES).for_each(|i| y[i] += 2.0 * x[i]));
        assert!(y.iter().enumerate().all(|(i, y)| *y == 3.0 * i as f32));
        assert_eq!(dot(&x, &x), (0..37).map(|i| (i * i) as f32).sum::<f32>());
    }
}
