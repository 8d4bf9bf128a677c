//! When requests arrive.

use std::time::Duration;

use skep_types::Time;

use crate::{Random, Recording};

/// A pattern of arrivals.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// At equal distances.
    Constant,
    /// Independently of each other: exponential gaps.
    Poisson,
    /// In bursts: gaps with a gamma distribution.
    Bursty {
        /// Their standard deviation over their mean, above 0; 1 is Poisson.
        variation: f64,
    },
    /// Poisson at a rate that swings like a sine.
    Periodic {
        /// How far the rate swings to either side of its mean, from 0 to 1.
        amplitude: f64,
        /// How long a swing takes, above 0.
        period: Duration,
    },
    /// As recorded, in faster or slower motion; over again where more requests are wanted than were recorded.
    Recorded(Recording),
}

impl Arrivals {
    /// The moments at which `count` requests arrive, ascending, at this mean rate a second.
    #[must_use]
    pub fn generate(&self, rate: f64, count: usize, random: &mut Random) -> Vec<Time> {
        let mut seconds = 0.0;
        let mut next = |random: &mut Random| {
            seconds += match self {
                Self::Constant => 1.0 / rate,
                Self::Poisson => random.exponential() / rate,
                Self::Bursty { variation } => {
                    let shape = variation.powi(-2);
                    random.gamma(shape) / (shape * rate)
                }
                Self::Periodic { amplitude, period } => {
                    thinned(seconds, rate, *amplitude, *period, random)
                }
                Self::Recorded(_) => unreachable!("generated as a whole"),
            };
            seconds
        };
        let moments: Vec<f64> = match self {
            Self::Recorded(recording) => recording.moments(rate, count, random),
            _ => (0..count).map(|_| next(random)).collect(),
        };
        // What lies beyond the clock's end stays there; a cast saturates.
        #[allow(clippy::cast_sign_loss)]
        let time = |seconds: f64| Time::from_nanos((seconds * 1e9).round() as u64);
        moments.into_iter().map(time).collect()
    }
}

/// The gap after `from` where the rate swings, in seconds: of arrivals at the highest rate, each counts as probably as
/// the rate at its moment is to the highest (Lewis and Shedler's thinning).
fn thinned(from: f64, rate: f64, amplitude: f64, period: Duration, random: &mut Random) -> f64 {
    let highest = rate * (1.0 + amplitude);
    let mut at = from;
    loop {
        at += random.exponential() / highest;
        let phase = at / period.as_secs_f64() * std::f64::consts::TAU;
        if random.uniform() * highest <= rate * (1.0 + amplitude * phase.sin()) {
            return at - from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stream;

    fn generate(arrivals: &Arrivals, count: usize) -> Vec<f64> {
        let mut random = Random::new(3, Stream::Arrivals);
        let moments = arrivals.generate(1000.0, count, &mut random);
        assert!(moments.is_sorted());
        moments
            .iter()
            .map(|at| at.as_nanos() as f64 / 1e9)
            .collect()
    }

    fn variation(moments: &[f64]) -> f64 {
        let gaps: Vec<f64> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        variance.sqrt() / mean
    }

    #[test]
    fn each_pattern_has_its_rate_and_variation() {
        let bursty = |variation| Arrivals::Bursty { variation };
        for (arrivals, expected) in [
            (Arrivals::Constant, 0.0),
            (Arrivals::Poisson, 1.0),
            (bursty(0.5), 0.5),
            (bursty(4.0), 4.0),
        ] {
            let moments = generate(&arrivals, 200_000);
            let rate = moments.len() as f64 / moments[moments.len() - 1];
            assert!((rate / 1000.0 - 1.0).abs() < 0.05, "{arrivals:?}: {rate}/s");
            let found = variation(&moments);
            assert!((found - expected).abs() < 0.1, "{arrivals:?}: {found}");
        }
    }

    #[test]
    fn a_periodic_rate_swings() {
        let period = Duration::from_secs(1);
        let amplitude = 0.5;
        let moments = generate(&Arrivals::Periodic { amplitude, period }, 100_000);
        let rising = moments.iter().filter(|at| at.fract() < 0.5).count();
        // The mean of 1 + sin/2 over its upper half is 1 + 1/pi.
        let expected = 0.5 * (1.0 + std::f64::consts::FRAC_1_PI);
        let share = rising as f64 / moments.len() as f64;
        assert!((share - expected).abs() < 0.01, "{share} of {expected}");
    }
}
