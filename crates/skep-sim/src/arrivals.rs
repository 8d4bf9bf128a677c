//! When requests arrive.

use std::time::Duration;

use skep_types::Time;

use crate::{RandomStream, RecordedArrivals};

/// A pattern of arrivals.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// At equal distances.
    Constant,
    /// Independently of each other: exponential gaps.
    Poisson,
    /// In bursts: gaps with a gamma distribution.
    Bursty {
        /// The gaps' standard deviation over their mean, above 0; 1 is Poisson.
        variation: f64,
    },
    /// Poisson at a rate that swings like a cosine, from its highest.
    Periodic {
        /// How far the rate swings to either side of its mean, from 0 to 1.
        amplitude: f64,
        /// How long a swing takes, above 0; `None` means a fifth of the trace.
        period: Option<Duration>,
    },
    /// As recorded, scaled in time; repeated where more requests are wanted than were recorded.
    Recorded(RecordedArrivals),
}

impl Arrivals {
    /// The moments at which `count` requests arrive, ascending, at this mean rate a second.
    #[must_use]
    pub fn generate(&self, rate: f64, count: usize, random: &mut RandomStream) -> Vec<Time> {
        self.generate_after(0, rate, count, random)
    }

    /// The same, where the first `warm_up` do not count, which are fewer than `count`: those of a recording are scaled
    /// so that the others come at this rate, however dense the recording is where it is played.
    pub(crate) fn generate_after(
        &self,
        warm_up: usize,
        rate: f64,
        count: usize,
        random: &mut RandomStream,
    ) -> Vec<Time> {
        let mut seconds = 0.0;
        let mut next = |random: &mut RandomStream| {
            seconds += match self {
                Self::Constant => 1.0 / rate,
                Self::Poisson => random.exponential() / rate,
                Self::Bursty { variation } => {
                    let shape = variation.powi(-2);
                    random.gamma(shape) / (shape * rate)
                }
                Self::Periodic { amplitude, period } => {
                    let whole = count as f64 / rate;
                    let period = period.map_or(whole / SWINGS, |period| period.as_secs_f64());
                    thinned(seconds, rate, *amplitude, period, random)
                }
                Self::Recorded(_) => unreachable!("generated as a whole"),
            };
            seconds
        };
        let moments: Vec<f64> = match self {
            Self::Recorded(recording) => recording.moments(rate, count, warm_up, random),
            _ => (0..count).map(|_| next(random)).collect(),
        };
        // What lies beyond the clock's end stays there; a cast saturates.
        #[allow(clippy::cast_sign_loss)]
        let time = |seconds: f64| Time::from_nanos((seconds * 1e9).round() as u64);
        moments.into_iter().map(time).collect()
    }
}

/// Swings of a periodic rate in a trace: enough that it is not chance where they end, and each is long beside the
/// objective.
const SWINGS: f64 = 5.0;

/// The gap after `from` where the rate swings, in seconds: of arrivals at the highest rate, each counts as probably as
/// the rate at its moment is to the highest (Lewis and Shedler's thinning).
fn thinned(from: f64, rate: f64, amplitude: f64, period: f64, random: &mut RandomStream) -> f64 {
    let highest = rate * (1.0 + amplitude);
    let mut at = from;
    loop {
        at += random.exponential() / highest;
        let phase = at / period * std::f64::consts::TAU;
        if random.uniform() * highest <= rate * (1.0 + amplitude * phase.cos()) {
            return at - from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RandomPurpose;

    fn generate(arrivals: &Arrivals, count: usize) -> Vec<f64> {
        let mut random = RandomStream::new(3, RandomPurpose::Arrivals);
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
        let amplitude = 0.5;
        // 100 s in all; the second has five swings of 20 s.
        for (period, seconds) in [(Some(Duration::from_secs(1)), 1.0), (None, 20.0)] {
            let moments = generate(&Arrivals::Periodic { amplitude, period }, 100_000);
            // Above the mean in the first and the last quarter of a swing, where the mean of 1 + cos/2 is 1 + 1/pi.
            let above = |at: &&f64| !(0.25..0.75).contains(&(*at / seconds).fract());
            let share = moments.iter().filter(above).count() as f64 / moments.len() as f64;
            let expected = 0.5 * (1.0 + std::f64::consts::FRAC_1_PI);
            assert!((share - expected).abs() < 0.01, "{share} of {expected}");
        }
    }
}
