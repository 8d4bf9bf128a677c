//! How many inferences arrive a second.

use std::time::Duration;

use skep_types::Time;

/// A rate on two time scales, of which the larger wins: a burst is seen at once and not forgotten at once.
#[derive(Debug, Clone)]
pub(crate) struct ArrivalRate {
    scales: [FadingCount; 2],
}

/// A count that fades: each inference counts for less as time passes.
#[derive(Debug, Clone)]
struct FadingCount {
    /// How long it takes to fade to a third (1/e), in nanoseconds.
    span_ns: f64,
    count: f64,
    at: Time,
}

impl ArrivalRate {
    pub(crate) fn new(short: Duration, long: Duration) -> Self {
        let scale = |span: Duration| FadingCount {
            span_ns: span.as_nanos().max(1) as f64,
            count: 0.0,
            at: Time::ZERO,
        };
        Self {
            scales: [scale(short), scale(long)],
        }
    }

    pub(crate) fn arrived(&mut self, now: Time, inferences: usize) {
        for scale in &mut self.scales {
            scale.count = scale.faded(now) + inferences as f64;
            scale.at = now;
        }
    }

    /// Inferences a nanosecond.
    pub(crate) fn per_ns(&self, now: Time) -> f64 {
        let rates = self.scales.iter().map(|scale| scale.per_ns(now));
        rates.fold(0.0, f64::max)
    }
}

impl FadingCount {
    fn per_ns(&self, now: Time) -> f64 {
        self.faded(now) / self.span_ns
    }

    fn faded(&self, now: Time) -> f64 {
        let passed = now.since(self.at).as_nanos() as f64;
        self.count * (-passed / self.span_ns).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inferences a millisecond.
    fn per_ms(rate: &ArrivalRate, us: u64) -> f64 {
        rate.per_ns(Time::from_nanos(1000 * us)) * 1e6
    }

    #[test]
    fn a_rate_is_the_larger_of_two_fading_counts() {
        let mut rate = ArrivalRate::new(Duration::from_millis(1), Duration::from_millis(10));
        rate.arrived(Time::ZERO, 3);
        let is_near = |got: f64, expected: f64| (got / expected - 1.0).abs() < 1e-9;
        assert!(is_near(per_ms(&rate, 0), 3.0));
        assert!(is_near(per_ms(&rate, 1000), 3.0 * (-1.0_f64).exp()));
        // By then the long count is the larger one.
        assert!(is_near(per_ms(&rate, 10_000), 0.3 * (-1.0_f64).exp()));
        rate.arrived(Time::from_nanos(1_000_000), 2);
        assert!(is_near(per_ms(&rate, 1000), 3.0 * (-1.0_f64).exp() + 2.0));
        assert!(is_near(
            per_ms(&rate, 2000),
            3.0 * (-2.0_f64).exp() + 2.0 * (-1.0_f64).exp()
        ));
    }

    #[test]
    fn a_steady_rate_is_found_and_forgotten() {
        let mut rate = ArrivalRate::new(Duration::from_millis(10), Duration::from_millis(100));
        let mut now = Time::ZERO;
        for _ in 0..1000 {
            now = now + Duration::from_millis(1);
            rate.arrived(now, 2);
        }
        let per_ms = rate.per_ns(now) * 1e6;
        assert!((1.9..2.3).contains(&per_ms), "{per_ms}");
        let later = rate.per_ns(now + Duration::from_secs(1)) * 1e6;
        assert!(later < 0.001, "{later}");
    }
}
