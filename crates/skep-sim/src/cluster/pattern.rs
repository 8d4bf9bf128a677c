//! Rates that change from minute to minute, as those of serverless functions do.

use std::{fmt, str::FromStr, time::Duration};

use skep_types::Time;

use crate::{RandomPurpose, RandomStream};

/// How a rate changes. Within a minute requests come independently of each other.
///
/// Source of the figures: the three traces, derived from those of Azure Functions, that INFless (ASPLOS'22) was measured
/// with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RatePattern {
    /// Not at all.
    Stable,
    /// Over a day that the span stands for: minutes vary by 0.92 of their mean.
    Periodic,
    /// On and off: 38 of 100 minutes are empty, and minutes vary by 0.95 of their mean.
    Bursty,
    /// Mostly off: 67 of 100 minutes are empty, and minutes vary by 2.4 times their mean.
    Sporadic,
}

/// A name that is no pattern's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownRatePattern(String);

impl fmt::Display for UnknownRatePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = RatePattern::ALL.map(RatePattern::name).join(", ");
        write!(f, "unknown pattern `{}`, expected one of {names}", self.0)
    }
}

impl std::error::Error for UnknownRatePattern {}

impl FromStr for RatePattern {
    type Err = UnknownRatePattern;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|pattern| pattern.name() == name);
        found.ok_or_else(|| UnknownRatePattern(name.to_owned()))
    }
}

/// Seconds of a step, in which a rate holds.
const STEP: f64 = 60.0;

/// How a rate that is on and off behaves.
struct OnOff {
    /// The part of the minutes that are empty.
    empty: f64,
    /// How many minutes it stays on, on average.
    on_minutes: f64,
    /// The logarithm's standard deviation of minutes that are not empty.
    deviation: f64,
    /// How much of a minute's logarithm the next one keeps.
    memory: f64,
}

impl RatePattern {
    /// Every pattern.
    pub const ALL: [Self; 4] = [Self::Stable, Self::Periodic, Self::Bursty, Self::Sporadic];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Periodic => "periodic",
            Self::Bursty => "bursty",
            Self::Sporadic => "sporadic",
        }
    }

    /// The moments of requests over this span, ascending, at this mean rate a second.
    #[must_use]
    pub fn arrivals(self, rate: f64, span: Duration, seed: u64) -> Vec<Time> {
        let mut random = RandomStream::new(seed, RandomPurpose::Arrivals);
        let seconds = span.as_secs_f64();
        #[expect(clippy::cast_sign_loss, reason = "a number of minutes")]
        let minutes = (seconds / STEP).ceil().max(1.0) as usize;
        let weights = self.minutes(minutes, &mut random);
        let mean = weights.iter().sum::<f64>() / minutes as f64;
        let mut moments = Vec::new();
        for (minute, weight) in weights.into_iter().enumerate() {
            let begin = minute as f64 * STEP;
            let end = (begin + STEP).min(seconds);
            let rate = if mean > 0.0 {
                rate * weight / mean
            } else {
                rate
            };
            if rate <= 0.0 {
                continue;
            }
            // What is left of a gap at the end of a minute has no memory.
            let mut at = begin + random.exponential() / rate;
            while at < end {
                moments.push(Time::ZERO + Duration::from_secs_f64(at));
                at += random.exponential() / rate;
            }
        }
        moments
    }

    /// What the rate of each minute is in proportion to.
    fn minutes(self, count: usize, random: &mut RandomStream) -> Vec<f64> {
        match self {
            Self::Stable => vec![1.0; count],
            Self::Periodic => {
                // A day from midnight to midnight; the power gives the wanted variation.
                let phase = |minute: usize| minute as f64 / count as f64 * std::f64::consts::TAU;
                let minutes = 0..count;
                minutes
                    .map(|minute| (1.0 - phase(minute).cos()).powf(1.8))
                    .collect()
            }
            Self::Bursty => OnOff {
                empty: 0.38,
                on_minutes: 8.0,
                deviation: 0.407,
                memory: 0.9,
            }
            .minutes(count, random),
            Self::Sporadic => OnOff {
                empty: 0.67,
                on_minutes: 3.0,
                deviation: 0.896,
                memory: 0.5,
            }
            .minutes(count, random),
        }
    }
}

impl OnOff {
    fn minutes(&self, count: usize, random: &mut RandomStream) -> Vec<f64> {
        let off_minutes = self.on_minutes * self.empty / (1.0 - self.empty);
        let mut is_on = random.uniform() > self.empty;
        let mut level = random.normal();
        let fresh = (1.0 - self.memory * self.memory).sqrt();
        let mut minutes = Vec::with_capacity(count);
        for _ in 0..count {
            minutes.push(match is_on {
                true => (self.deviation * level).exp(),
                false => 0.0,
            });
            level = self.memory * level + fresh * random.normal();
            let stays = if is_on { self.on_minutes } else { off_minutes };
            if random.uniform() * stays < 1.0 {
                is_on = !is_on;
            }
        }
        minutes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variation of minutes and the part of them that is empty.
    fn figures(pattern: RatePattern) -> (f64, f64) {
        let mut random = RandomStream::new(5, RandomPurpose::Arrivals);
        let minutes = pattern.minutes(50_000, &mut random);
        let count = minutes.len() as f64;
        let mean = minutes.iter().sum::<f64>() / count;
        let variance = minutes.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / count;
        let empty = minutes.iter().filter(|minute| **minute == 0.0).count();
        (variance.sqrt() / mean, empty as f64 / count)
    }

    #[test]
    fn minutes_vary_as_those_of_the_traces() {
        for (pattern, variation, empty) in [
            (RatePattern::Stable, 0.0, 0.0),
            (RatePattern::Periodic, 0.92, 0.0),
            (RatePattern::Bursty, 0.95, 0.38),
            (RatePattern::Sporadic, 2.4, 0.67),
        ] {
            let (found, found_empty) = figures(pattern);
            let name = pattern.name();
            assert!((found - variation).abs() < 0.1, "{name}: {found}");
            assert!((found_empty - empty).abs() < 0.02, "{name}: {found_empty}");
        }
    }

    #[test]
    fn the_mean_rate_is_as_asked() {
        let span = Duration::from_secs(3600);
        for pattern in RatePattern::ALL {
            let moments = pattern.arrivals(20.0, span, 1);
            assert!(moments.is_sorted());
            let rate = moments.len() as f64 / 3600.0;
            assert!((rate - 20.0).abs() < 0.6, "{}: {rate}", pattern.name());
            assert_eq!(moments, pattern.arrivals(20.0, span, 1));
            assert_eq!(pattern.name().parse(), Ok(pattern));
        }
    }
}
