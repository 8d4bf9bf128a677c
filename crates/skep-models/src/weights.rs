//! The numbers in a model: seeded, computed when they are written, the same on every machine.
//!
//! Each tensor has its own random stream, keyed by seed and tensor name. So a tensor does not change when another one
//! is added before it, and two variants of a model share the bytes of what they share.

use std::io::{self, Write};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// How many values are computed at once: 64 KiB, well within a core's cache.
const CHUNK_VALUES: usize = 16 * 1024;

/// The distribution of a weight's values: uniform around `centre`.
///
/// Uniform and not normal on purpose: it takes exact arithmetic only, where the logarithm and cosine of a normal
/// variate differ in the last bit from one machine's mathematical library to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightFill {
    /// The mean of the values.
    pub centre: f32,
    /// Values lie in `[centre - spread, centre + spread)`.
    pub spread: f32,
}

impl WeightFill {
    /// Uniform around zero.
    #[must_use]
    pub const fn around_zero(spread: f32) -> Self {
        Self {
            centre: 0.0,
            spread,
        }
    }

    /// Every value the same.
    #[must_use]
    pub const fn constant(value: f32) -> Self {
        Self {
            centre: value,
            spread: 0.0,
        }
    }

    /// He's initialisation, variance `2 / fan_in`: keeps the second moment of activations through a layer whose
    /// output goes through a rectifier.
    #[must_use]
    pub fn before_relu(fan_in: usize) -> Self {
        Self::around_zero((6.0 / fan_in as f32).sqrt())
    }

    /// LeCun's initialisation, variance `1 / fan_in`: keeps the second moment through a linear layer.
    #[must_use]
    pub fn linear(fan_in: usize) -> Self {
        Self::around_zero((3.0 / fan_in as f32).sqrt())
    }

    /// Writes the `count` little-endian values of the tensor `name`.
    pub(crate) fn write(
        self,
        seed: u64,
        name: &str,
        count: usize,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let mut random = stream(seed, name);
        let mut chunk = vec![0u8; CHUNK_VALUES.min(count) * 4];
        let mut left = count;
        while left > 0 {
            let bytes = &mut chunk[..CHUNK_VALUES.min(left) * 4];
            random.fill_bytes(bytes);
            for word in bytes.chunks_exact_mut(4) {
                let bits = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                word.copy_from_slice(&(self.centre + self.spread * unit(bits)).to_le_bytes());
            }
            out.write_all(bytes)?;
            left -= bytes.len() / 4;
        }
        Ok(())
    }
}

/// A number in `[-1, 1)` from the upper 24 bits, exactly representable.
fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 8_388_608.0) - 1.0
}

fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut key = blake3::Hasher::new();
    key.update(&seed.to_le_bytes());
    key.update(name.as_bytes());
    ChaCha8Rng::from_seed(*key.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(fill: WeightFill, seed: u64, name: &str, count: usize) -> Vec<f32> {
        let mut bytes = Vec::new();
        fill.write(seed, name, count, &mut bytes)
            .expect("a vector takes everything");
        bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    #[test]
    fn values_have_the_promised_range_and_variance() {
        let count = 3 * CHUNK_VALUES + 7;
        let drawn = values(WeightFill::before_relu(50), 1, "w", count);
        assert_eq!(drawn.len(), count);
        let bound = (6.0f32 / 50.0).sqrt();
        assert!(drawn.iter().all(|v| (-bound..bound).contains(v)));
        let variance = drawn.iter().map(|v| v * v).sum::<f32>() / count as f32;
        assert!((variance - 0.04).abs() < 0.002, "{variance}");
    }

    #[test]
    fn seed_and_name_decide_the_values() {
        let fill = WeightFill::around_zero(1.0);
        assert_eq!(values(fill, 1, "a", 5), values(fill, 1, "a", 9)[..5]);
        assert_ne!(values(fill, 1, "a", 5), values(fill, 2, "a", 5));
        assert_ne!(values(fill, 1, "a", 5), values(fill, 1, "b", 5));
    }

    #[test]
    fn values_are_the_same_on_every_machine() {
        assert_eq!(values(WeightFill::around_zero(1.0), 0, "w", 3), GOLDEN);
    }

    /// Written down once; a change here changes every generated model.
    const GOLDEN: [f32; 3] = [0.908_365, 0.291_936_4, 0.902_210_7];
}
