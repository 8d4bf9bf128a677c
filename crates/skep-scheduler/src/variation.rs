//! How much executions vary: what they took over what was expected of them.
//!
//! The last executions' ratios are kept, of all batch sizes together: what makes one execution slower than another
//! (the machine's other work, its caches and clock) hardly depends on the size, and a size of its own is seen too
//! seldom to tell a high quantile. The ratios of [`SCENARIOS`] equally likely *scenarios* stand for all of them, so that
//! a probability is a count: of 16 possible durations, how many end before a deadline.

use skep_types::Percentile;

/// Ratios that are remembered. The second largest of so many is their 99th percentile.
const REMEMBERED: usize = 128;

/// How many ratios stand for all.
pub(crate) const SCENARIOS: usize = 16;

/// A ratio so near to 1 is 1: the rounding of nanoseconds is no variation.
const EXACT: f64 = 1e-3;

/// What executions took over what was expected.
#[derive(Debug, Clone)]
pub(crate) struct Variation {
    /// The one that [`Variation::planned`] is of.
    percentile: Percentile,
    /// The last ratios, as a ring.
    seen: Vec<f64>,
    next: usize,
    /// The same, ascending.
    sorted: Vec<f64>,
    mean: f64,
    scenarios: [f64; SCENARIOS],
    planned: f64,
}

impl Variation {
    /// Of executions that take what is expected. `percentile` is the one to plan by.
    pub(crate) fn new(percentile: Percentile) -> Self {
        Self {
            percentile,
            seen: Vec::with_capacity(REMEMBERED),
            next: 0,
            sorted: Vec::with_capacity(REMEMBERED),
            mean: 1.0,
            scenarios: [1.0; SCENARIOS],
            planned: 1.0,
        }
    }

    /// An execution took this many times what was expected.
    pub(crate) fn learn(&mut self, ratio: f64) {
        let ratio = if (ratio - 1.0).abs() < EXACT {
            1.0
        } else {
            ratio
        };
        if self.seen.len() < REMEMBERED {
            self.seen.push(ratio);
        } else {
            let oldest = std::mem::replace(&mut self.seen[self.next], ratio);
            self.next = (self.next + 1) % REMEMBERED;
            if oldest.to_bits() == ratio.to_bits() {
                return;
            }
            let at = self.sorted.partition_point(|other| *other < oldest);
            self.sorted.remove(at);
        }
        let at = self.sorted.partition_point(|other| *other < ratio);
        self.sorted.insert(at, ratio);
        self.mean = self.sorted.iter().sum::<f64>() / self.sorted.len() as f64;
        for (index, scenario) in self.scenarios.iter_mut().enumerate() {
            // The middle of each scenario's share.
            *scenario = self.sorted[(2 * index + 1) * self.sorted.len() / (2 * SCENARIOS)];
        }
        self.planned = self.sorted[self.percentile.rank(self.sorted.len()) - 1];
    }

    /// Whether executions differ from what is expected, as far as scenarios show.
    pub(crate) fn varies(&self) -> bool {
        self.scenarios[0] < self.scenarios[SCENARIOS - 1]
    }

    /// The ratio that the stated share of executions does not exceed.
    pub(crate) fn planned(&self) -> f64 {
        self.planned
    }

    /// The mean ratio.
    pub(crate) fn mean(&self) -> f64 {
        self.mean
    }

    /// Equally likely ratios, ascending.
    pub(crate) fn scenarios(&self) -> &[f64; SCENARIOS] {
        &self.scenarios
    }

    /// The standard deviation of the ratios' logarithms, if they were normal: half of what the middle two thirds span.
    pub(crate) fn deviation(&self) -> f64 {
        let (low, high) = (self.scenarios[2], self.scenarios[SCENARIOS - 3]);
        if low > 0.0 {
            (high / low).ln() / 2.0
        } else {
            0.0
        }
    }
}
