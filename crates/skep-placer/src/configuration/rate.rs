//! The rate to plan for: growth counts at once, decline after a while.
//!
//! The rate is that of ten seconds. That of the last four counts instead if chance alone would hardly make it as large: of a
//! Poisson process, the count lies more than three standard deviations above the mean once in a thousand times. A shorter
//! window alone would not do, since the largest of many chance rates is far above the rate.

use std::{collections::VecDeque, time::Duration};

use skep_types::Time;

use crate::recent::{RecentMax, push_sample};

/// The rate is measured over this time: shorter, and chance would change it.
const WINDOW: Duration = Duration::from_secs(10);

/// Growth is noticed over this time.
const SHORT_WINDOW: Duration = Duration::from_secs(4);

/// Growth is a count of so many standard deviations more than the mean.
const DEVIATIONS: f64 = 3.0;

/// How long a rate has to be lower before it counts.
const PATIENCE: Duration = Duration::from_secs(30);

/// Watches the inferences of a model.
#[derive(Debug, Default)]
pub struct RateWatch {
    /// The last [`WINDOW`]: inferences so far, at a moment.
    counts: VecDeque<(Time, u64)>,
    /// The rates of the last [`PATIENCE`].
    rates: RecentMax<f64>,
}

impl RateWatch {
    /// Notes how many inferences a model has been asked for by `now`, and says for how many a second to plan: the largest
    /// rate of the last half minute. `None` if too little is known yet.
    pub fn observe(&mut self, now: Time, arrived: u64) -> Option<f64> {
        if self.counts.back().is_some_and(|(_, last)| arrived < *last) {
            // The model was loaded again and has begun to count again.
            self.counts.clear();
        }
        push_sample(&mut self.counts, now, arrived, WINDOW);
        let (began, before) = *self.counts.front()?;
        let passed = now.since(began);
        if passed < SHORT_WINDOW {
            return self.rates.largest();
        }
        let rate = (arrived - before) as f64 / passed.as_secs_f64();
        let rate = self.grown(now, arrived, rate).unwrap_or(rate);
        Some(self.rates.note(now, rate, Some(PATIENCE)))
    }

    /// The rate of the last few seconds, if it is larger than this one by more than chance.
    fn grown(&self, now: Time, arrived: u64, rate: f64) -> Option<f64> {
        let mut counts = self.counts.iter().rev();
        let (began, before) = counts.find(|(at, _)| now.since(*at) >= SHORT_WINDOW)?;
        let seconds = now.since(*began).as_secs_f64();
        let (count, mean) = ((arrived - before) as f64, rate * seconds);
        (count > mean + DEVIATIONS * mean.sqrt()).then(|| count / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Arrivals {
        watch: RateWatch,
        millis: u64,
        arrived: u64,
    }

    impl Arrivals {
        /// So many inferences a second for some seconds, looked at twice a second.
        fn come(&mut self, rate: u64, seconds: u64) -> Option<f64> {
            let mut planned = None;
            for _ in 0..2 * seconds {
                self.millis += 500;
                self.arrived += rate / 2;
                let now = Time::ZERO + Duration::from_millis(self.millis);
                planned = self.watch.observe(now, self.arrived);
            }
            planned
        }
    }

    #[test]
    fn growth_counts_at_once_and_decline_after_half_a_minute() {
        let mut arrivals = Arrivals {
            watch: RateWatch::default(),
            millis: 0,
            arrived: 0,
        };
        assert_eq!(arrivals.come(10, 4), None, "too little is known");
        assert_eq!(arrivals.come(10, 5), Some(10.0));
        assert_eq!(arrivals.come(12, 3), Some(10.6), "that may be chance");
        arrivals.come(10, 10);
        assert_eq!(arrivals.come(100, 1), Some(32.5), "a quarter of the window");
        assert_eq!(arrivals.come(100, 3), Some(100.0));
        assert_eq!(arrivals.come(20, 29), Some(100.0));
        assert_eq!(arrivals.come(20, 12), Some(20.0));
        // It was loaded again.
        arrivals.arrived = 0;
        assert_eq!(arrivals.come(0, 1), Some(20.0));
    }
}
