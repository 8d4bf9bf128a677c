//! Seeded random numbers, the same on every machine and in every release.
//!
//! The generator is ChaCha with 8 rounds, whose output is fixed; the distributions are made of it here, since those of
//! libraries may change their values from one version to the next, and recorded results would with them.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// The purpose of random numbers. Each purpose has a stream of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RandomPurpose {
    /// When requests arrive.
    Arrivals,
    /// How much longer or shorter executions take.
    Executions,
    /// The sizes and rates of many models.
    Fleet,
}

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct RandomStream(ChaCha8Rng);

impl RandomStream {
    /// The stream of a seed for a purpose.
    #[must_use]
    pub fn new(seed: u64, stream: RandomPurpose) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(match stream {
            RandomPurpose::Arrivals => 0,
            RandomPurpose::Executions => 1,
            RandomPurpose::Fleet => 2,
        });
        Self(generator)
    }

    /// Uniform above 0 and up to 1, in steps of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1u64 << 53) as f64;
        ((self.0.next_u64() >> 11) + 1) as f64 * STEP
    }

    /// A whole number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        #[expect(clippy::cast_sign_loss, reason = "a share of a length")]
        let number = (self.uniform() * end as f64) as usize;
        // The draw may be 1.
        number % end
    }

    /// Exponential of mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.uniform().ln()
    }

    /// Gamma of this shape and scale 1: mean and variance are `shape`.
    ///
    /// Source: Marsaglia and Tsang, "A simple method for generating gamma variables", 2000.
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.uniform().powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Standard normal (Box and Muller; the second value is not kept).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and coefficient of variation of 200,000 values.
    fn moments(mut value: impl FnMut(&mut RandomStream) -> f64) -> (f64, f64) {
        let mut random = RandomStream::new(7, RandomPurpose::Arrivals);
        let values: Vec<f64> = (0..200_000).map(|_| value(&mut random)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn distributions_have_their_moments() {
        let near = |(mean, cv): (f64, f64), expected: (f64, f64)| {
            assert!((mean / expected.0 - 1.0).abs() < 0.03, "mean {mean}");
            assert!((cv / expected.1 - 1.0).abs() < 0.03, "variation {cv}");
        };
        near(moments(RandomStream::uniform), (0.5, 1.0 / 3f64.sqrt()));
        near(moments(RandomStream::exponential), (1.0, 1.0));
        for shape in [0.0625, 0.5, 1.0, 4.0] {
            near(moments(|r| r.gamma(shape)), (shape, 1.0 / shape.sqrt()));
        }
    }

    #[test]
    fn streams_and_seeds_differ_and_repeat() {
        let first = |seed, stream| RandomStream::new(seed, stream).uniform();
        let value = first(1, RandomPurpose::Arrivals);
        assert_eq!(value.to_bits(), first(1, RandomPurpose::Arrivals).to_bits());
        assert_ne!(
            value.to_bits(),
            first(1, RandomPurpose::Executions).to_bits()
        );
        assert_ne!(value.to_bits(), first(2, RandomPurpose::Arrivals).to_bits());
    }
}
