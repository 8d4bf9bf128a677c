//! Caps on the batch size that are learned from executions: Clipper's two.
//!
//! Source: Crankshaw et al., "Clipper: A Low-Latency Online Prediction Serving System", NSDI 2017, section 4.3.

use std::time::Duration;

use skep_types::Percentile;

/// A cap that grows by one and shrinks by a tenth.
#[derive(Debug)]
pub(crate) struct Aimd {
    cap: usize,
}

impl Aimd {
    pub(crate) fn new() -> Self {
        Self { cap: 1 }
    }

    pub(crate) fn cap(&self) -> usize {
        self.cap
    }

    /// Learns from an execution. Batches that were not full teach nothing.
    pub(crate) fn learn(
        &mut self,
        size: usize,
        took: Duration,
        objective: Duration,
        max_batch_size: usize,
    ) {
        if size < self.cap {
            return;
        }
        self.cap = if took <= objective {
            (self.cap + 1).min(max_batch_size)
        } else {
            (self.cap * 9 / 10).max(1)
        };
    }
}

/// The number of executions in the regression.
const WINDOW: usize = 256;

/// Executions from one regression to the next, after the first ones: one costs tens of microseconds.
const EVERY: usize = 16;

/// A cap from a linear quantile regression of latency over batch size.
#[derive(Debug)]
pub(crate) struct Quantile {
    /// The one that must keep the objective.
    percentile: Percentile,
    /// Size and nanoseconds of the last executions, as a ring.
    window: Vec<(f64, f64)>,
    next: usize,
    since: usize,
    residuals: Vec<f64>,
    cap: usize,
}

impl Quantile {
    pub(crate) fn new(percentile: Percentile) -> Self {
        Self {
            percentile,
            window: Vec::with_capacity(WINDOW),
            next: 0,
            since: 0,
            residuals: Vec::with_capacity(WINDOW),
            cap: 1,
        }
    }

    pub(crate) fn cap(&self) -> usize {
        self.cap
    }

    pub(crate) fn learn(
        &mut self,
        size: usize,
        took: Duration,
        objective: Duration,
        max_batch_size: usize,
    ) {
        let seen = (size as f64, took.as_nanos() as f64);
        if self.window.len() < WINDOW {
            self.window.push(seen);
        } else {
            self.window[self.next] = seen;
            self.next = (self.next + 1) % WINDOW;
        }
        self.since += 1;
        if self.since >= EVERY || self.window.len() < EVERY {
            self.since = 0;
            self.cap = self.regress(objective).clamp(1, max_batch_size);
        }
    }

    /// The largest size that keeps the objective, at most one more than was seen, so that a size is tried before larger
    /// ones.
    fn regress(&mut self, objective: Duration) -> usize {
        let objective = objective.as_nanos() as f64;
        let largest = self.window.iter().map(|seen| seen.0).fold(0.0, f64::max);
        let steepest = self
            .window
            .iter()
            .map(|seen| seen.1 / seen.0)
            .fold(0.0, f64::max);
        let smallest = self
            .window
            .iter()
            .map(|seen| seen.0)
            .fold(f64::INFINITY, f64::min);
        // A single size does not tell the slope: half of its time is assumed not to depend on the size.
        let (mut low, mut high) = if smallest < largest {
            (0.0, steepest)
        } else {
            (steepest / 2.0, steepest / 2.0)
        };
        // The loss is convex in the slope: a ternary search.
        for _ in 0..24 {
            let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
            if self.loss(a).0 <= self.loss(b).0 {
                high = b;
            } else {
                low = a;
            }
        }
        let slope = f64::midpoint(low, high);
        let (_, fixed) = self.loss(slope);
        let fits = if slope > 0.0 {
            ((objective - fixed) / slope).max(0.0)
        } else if fixed <= objective {
            f64::INFINITY
        } else {
            0.0
        };
        #[expect(clippy::cast_sign_loss, reason = "none of the two numbers is negative")]
        let fits = fits.min(largest + 1.0) as usize;
        fits
    }

    /// The pinball loss of the best line with this slope, and the line's value at size 0.
    fn loss(&mut self, slope: f64) -> (f64, f64) {
        self.residuals.clear();
        self.residuals
            .extend(self.window.iter().map(|(size, ns)| ns - slope * size));
        let rank = self.percentile.rank(self.residuals.len()) - 1;
        let share = self.percentile.share();
        let fixed = *self
            .residuals
            .select_nth_unstable_by(rank, f64::total_cmp)
            .1;
        let loss = self.residuals.iter().map(|residual| {
            let above = residual - fixed;
            if above > 0.0 {
                share * above
            } else {
                (share - 1.0) * above
            }
        });
        (loss.sum(), fixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affine(size: usize) -> Duration {
        Duration::from_micros(1870 + 87 * size as u64)
    }

    /// Runs full batches only; the caps after each.
    fn caps(mut learn: impl FnMut() -> usize, runs: usize) -> Vec<usize> {
        (0..runs).map(|_| learn()).collect()
    }

    #[test]
    fn aimd_climbs_by_one_and_falls_by_a_tenth() {
        let mut aimd = Aimd::new();
        // l(21) = 3.697 ms, l(22) = 3.784 ms.
        let objective = Duration::from_micros(3700);
        let caps = caps(
            || {
                aimd.learn(aimd.cap(), affine(aimd.cap()), objective, 100);
                aimd.cap()
            },
            25,
        );
        let climb: Vec<usize> = (2..=22).chain([19, 20, 21, 22]).collect();
        assert_eq!(caps, climb);
        aimd.learn(5, Duration::from_secs(9), objective, 100);
        assert_eq!(aimd.cap(), 22, "a batch that was not full teaches nothing");
    }

    #[test]
    fn aimd_stays_between_one_and_the_maximum() {
        let objective = Duration::from_millis(1);
        let mut aimd = Aimd::new();
        aimd.learn(1, objective + Duration::from_nanos(1), objective, 2);
        assert_eq!(aimd.cap(), 1);
        let caps = [1, 2, 2].map(|size| {
            aimd.learn(size, objective, objective, 2);
            aimd.cap()
        });
        assert_eq!(caps, [2, 2, 2]);
    }

    /// A window of one execution for each of these sizes and nanoseconds.
    fn window(seen: &[(usize, u64)]) -> Quantile {
        let mut quantile = Quantile::new(Percentile::default());
        quantile.window = seen
            .iter()
            .map(|(size, ns)| (*size as f64, *ns as f64))
            .collect();
        quantile
    }

    #[test]
    fn the_line_through_exact_times_says_what_fits() {
        let exact = |sizes: &[usize]| {
            let seen = sizes
                .iter()
                .map(|size| (*size, affine(*size).as_nanos() as u64));
            window(&seen.collect::<Vec<_>>())
        };
        // l(12) = 2.914 ms, l(13) = 3.001 ms.
        let objective = Duration::from_millis(3);
        assert_eq!(exact(&[1, 2, 4, 8, 16]).regress(objective), 12);
        assert_eq!(exact(&[2, 3, 16, 9]).regress(objective), 12);
        assert_eq!(
            exact(&[1, 4]).regress(objective),
            5,
            "one more than was seen"
        );
        // Half of 1.957 ms does not depend on the size.
        assert_eq!(exact(&[1]).regress(Duration::from_micros(1900)), 0);
        // Times too short to be measured.
        assert_eq!(window(&[(1, 0), (2, 0)]).regress(objective), 3);
    }

    #[test]
    fn the_loss_weighs_residuals_by_the_quantile() {
        // Of three residuals the 99th percentile is the largest.
        let mut quantile = window(&[(1, 110), (2, 125), (4, 140)]);
        let (loss, fixed) = quantile.loss(10.0);
        assert!((fixed - 105.0).abs() < 1e-9);
        assert!((loss - 0.01 * (5.0 + 5.0)).abs() < 1e-9);
        // Of 200 it is the third largest.
        let mut seen = vec![(1, 100); 197];
        seen.extend([(1, 150), (1, 150), (1, 250)]);
        let (loss, fixed) = window(&seen).loss(0.0);
        assert!((fixed - 150.0).abs() < 1e-9);
        assert!((loss - (0.99 * 100.0 + 0.01 * 197.0 * 50.0)).abs() < 1e-9);
    }

    #[test]
    fn the_regression_finds_a_line_and_what_fits_below_the_objective() {
        let affine = [(1, 110), (4, 140), (8, 180)];
        for (objective, expected) in [(109, 0), (135, 3), (155, 5), (171, 7), (1000, 9)] {
            let fits = window(&affine).regress(Duration::from_nanos(objective));
            assert_eq!(fits, expected, "{objective}");
        }
        // Half of a single size's time is fixed: 20 an inference over 80.
        for (objective, expected) in [(99, 0), (125, 2), (1000, 5)] {
            let fits = window(&[(4, 160)]).regress(Duration::from_nanos(objective));
            assert_eq!(fits, expected, "{objective}");
        }
    }

    #[test]
    fn a_flat_line_fits_everything_or_nothing() {
        let flat = [(1, 100), (8, 100)];
        assert_eq!(window(&flat).regress(Duration::from_nanos(101)), 9);
        assert_eq!(window(&flat).regress(Duration::from_nanos(50)), 0);
    }

    #[test]
    fn a_regression_follows_each_of_the_first_executions_and_then_every_sixteenth() {
        let mut quantile = Quantile::new(Percentile::default());
        let objective = Duration::from_micros(10);
        let mut changes = Vec::new();
        for number in 1..=80 {
            let before = quantile.cap();
            // Always one more than was seen fits.
            quantile.learn(number, Duration::from_nanos(100), objective, 1000);
            if quantile.cap() != before {
                changes.push(number);
            }
        }
        let expected: Vec<usize> = (1..16).chain([31, 47, 63, 79]).collect();
        assert_eq!(changes, expected);
    }

    #[test]
    fn the_window_forgets_the_oldest_execution_first() {
        let mut quantile = Quantile::new(Percentile::default());
        let objective = Duration::from_micros(10);
        for number in 0..WINDOW + 3 {
            quantile.learn(1, Duration::from_nanos(number as u64), objective, 8);
        }
        assert_eq!(quantile.window.len(), WINDOW);
        let firsts = [256.0, 257.0, 258.0, 3.0];
        assert!(
            quantile
                .window
                .iter()
                .zip(firsts)
                .all(|(seen, first)| seen.1 == first)
        );
    }

    #[test]
    fn quantile_finds_the_largest_that_keeps_the_objective() {
        let mut quantile = Quantile::new(Percentile::default());
        let objective = Duration::from_micros(3700);
        let caps = caps(
            || {
                quantile.learn(quantile.cap(), affine(quantile.cap()), objective, 100);
                quantile.cap()
            },
            1000,
        );
        assert_eq!(caps.iter().max(), Some(&21));
        assert_eq!(caps.last(), Some(&21));
    }
}
