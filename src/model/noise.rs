//! Noise that is a pure function of the session's seed and the tick.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// Counter-based generator: the key is the seed, the stream is the tick. Nothing is carried from tick to tick, so a
/// replayed or recovered session draws the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    seed: u64,
}

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise { seed }
    }

    /// Fills `out` with the standard normal numbers of a tick, always the same ones from its beginning.
    pub fn fill(self, tick: u64, out: &mut [f32]) {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(tick);
        out.fill_with(|| StandardNormal.sample(&mut generator));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_depends_on_seed_and_number_alone() {
        let draw = |seed, tick| {
            let mut out = vec![0.0; 4096];
            Noise::new(seed).fill(tick, &mut out);
            out
        };
        assert_eq!(draw(7, 3), draw(7, 3));
        assert_ne!(draw(7, 3), draw(7, 4));
        assert_ne!(draw(7, 3), draw(8, 3));
        let x = draw(1, 1);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 0.06 && (variance - 1.0).abs() < 0.08, "mean {mean}, variance {variance}");
    }
}
