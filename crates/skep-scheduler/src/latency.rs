//! How long an execution of each batch size takes: learned from executions, monotone, inter- and extrapolated.
//!
//! For each batch size that was seen, the last executions are kept and their median is the size's estimate. The
//! estimates are made monotone (a larger batch takes no less) by pooling neighbours that contradict that. Where
//! executions vary, estimates that rest on few executions move towards a line through all of them. A size in between
//! gets what lies on the line between its neighbours, and one beyond the largest what a robust line through all
//! estimates says (the median of the slopes between them, Theil and Sen).
//!
//! How executions vary around these medians is learned apart, from all sizes together (`variation.rs`).
//!
//! Sizes above [`EXACT`] share eight cells an octave, so that a model with batches of thousands stays cheap. Executions
//! of a cell's other sizes are scaled to the first one.

use std::time::Duration;

use skep_types::Percentile;

use crate::variation::Variation;

/// Sizes up to this one have a cell each.
const EXACT: usize = 32;

/// Cells an octave above that.
const PER_OCTAVE: usize = 8;

/// Executions that are remembered for a size: few, so that a device that became slower is noticed.
const REMEMBERED: usize = 32;

/// If only one size is known: the share of its time that is assumed not to depend on the size.
const FIXED_SHARE: f64 = 0.5;

/// What counts as hardly longer: a little more than estimates differ from run to run.
const HARDLY: f64 = 1.03;

/// How much of the executions' deviation estimates may be wrong by, by which a larger batch has to be better.
const UNSURE: f64 = 0.1;

/// The variance of a median over that of a mean, if what is seen is normal (pi / 2).
const MEDIAN: f64 = 1.57;

/// After this many further executions a size is worth another try, whatever its estimate: what slowed it may be over.
/// This is so rare that one late batch does not show.
const STALE: u64 = 1024;

/// What is known of one size's executions.
#[derive(Debug, Clone)]
struct SizeCell {
    /// The size that was seen first; sizes of a cell differ little.
    size: usize,
    /// What the last executions took, or would have taken with that size, in nanoseconds; as a ring.
    seen: Vec<u64>,
    next: usize,
    /// Their median.
    estimate: u64,
    /// Whether they were measured outside of serving: the first served execution replaces them.
    measured: bool,
    /// The number of served executions when this size was last seen.
    at: u64,
}

/// A latency model of one model on its device.
#[derive(Debug, Clone)]
pub(crate) struct LatencyModel {
    cells: Vec<Option<SizeCell>>,
    /// By batch size from 0, in nanoseconds; never decreasing.
    table: Vec<u64>,
    useful: usize,
    best: usize,
    /// Executions of serving so far.
    executions: u64,
    variation: Variation,
    /// Buffers of [`LatencyModel::rebuild`], kept for their memory.
    scratch: FitScratch,
}

#[derive(Debug, Clone, Default)]
struct FitScratch {
    sorted: Vec<u64>,
    /// Size, estimate, weight, number of sizes pooled.
    pools: Vec<(f64, f64, usize)>,
    points: Vec<(usize, f64)>,
    slopes: Vec<f64>,
}

impl LatencyModel {
    /// A model of batches up to this size, from sizes with measured latencies, that plans by this percentile.
    pub(crate) fn new(
        max_batch_size: usize,
        profile: &[(usize, Duration)],
        percentile: Percentile,
    ) -> Self {
        let max = max_batch_size.max(1);
        let mut model = Self {
            cells: vec![None; cell_of(max) + 1],
            table: vec![0; max + 1],
            useful: max,
            best: max,
            executions: 0,
            variation: Variation::new(percentile),
            scratch: FitScratch::default(),
        };
        for (size, latency) in profile {
            model.note(*size, nanos(*latency), true);
        }
        model.rebuild();
        model
    }

    /// What an execution of this size takes at the percentile to plan by, in nanoseconds; zero while nothing is known.
    pub(crate) fn planned(&self, size: usize) -> u64 {
        scaled(self.expected(size), self.variation.planned())
    }

    /// This many times what an execution of this size is expected to take, in nanoseconds.
    pub(crate) fn with(&self, size: usize, caution: f64) -> u64 {
        scaled(self.expected(size), caution)
    }

    /// How executions vary around what is expected.
    pub(crate) fn variation(&self) -> &Variation {
        &self.variation
    }

    /// What hardly any execution of this size stays below, in nanoseconds.
    pub(crate) fn luckiest(&self, size: usize) -> u64 {
        scaled(self.expected(size), self.variation.scenarios()[0])
    }

    /// The mean time of a batch of this size, in nanoseconds.
    pub(crate) fn mean(&self, size: usize) -> u64 {
        scaled(self.expected(size), self.variation.mean())
    }

    /// What half of the executions of this size exceed, in nanoseconds; zero while nothing is known.
    pub(crate) fn expected(&self, size: usize) -> u64 {
        let last = self.table.len() - 1;
        if size <= last {
            return self.table[size];
        }
        // A larger request runs alone, and takes its share of the largest batch.
        let scaled = u128::from(self.table[last]) * size as u128 / last as u128;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    /// The largest size that is expected to take no longer than this.
    pub(crate) fn largest_within(&self, available_ns: u64) -> usize {
        self.table.partition_point(|ns| *ns <= available_ns) - 1
    }

    /// The smallest size whose time an inference is hardly longer than the best: larger batches only make their first
    /// requests wait for their last. 1 if batching does not pay, as for convolutions on a CPU.
    pub(crate) fn useful(&self) -> usize {
        self.useful
    }

    /// The size that takes the least time an inference.
    pub(crate) fn best(&self) -> usize {
        self.best
    }

    /// Whether the estimate of this size is old: it was never served, or long ago. A size that was measured, or served
    /// once, while the machine was busy seems slower than it is.
    pub(crate) fn is_stale(&self, size: usize) -> bool {
        let cell = self.cells.get(cell_of(size.max(1)));
        cell.and_then(Option::as_ref)
            .is_none_or(|cell| cell.measured || self.executions - cell.at >= STALE)
    }

    /// Learns from a served execution.
    pub(crate) fn learn(&mut self, size: usize, took: Duration) {
        self.executions += 1;
        let expected = self.expected(size);
        if expected > 0 {
            self.variation.learn(nanos(took) as f64 / expected as f64);
        }
        if self.note(size, nanos(took), false) {
            self.rebuild();
        }
    }

    /// Learns from an execution outside of serving.
    pub(crate) fn measured(&mut self, size: usize, took: Duration) {
        if self.note(size, nanos(took), true) {
            self.rebuild();
        }
    }

    /// Remembers an execution; returns whether the size's estimate changed.
    fn note(&mut self, size: usize, ns: u64, measured: bool) -> bool {
        if size == 0 || size >= self.table.len() {
            return false;
        }
        let cell = self.cells[cell_of(size)].get_or_insert_with(|| SizeCell {
            size,
            seen: Vec::with_capacity(REMEMBERED),
            next: 0,
            estimate: 0,
            measured,
            at: 0,
        });
        if cell.measured && !measured {
            cell.measured = false;
            cell.seen.clear();
        }
        cell.at = self.executions;
        // Sizes of a cell differ by what the estimates differ.
        let ns = if size == cell.size || self.table[size] == 0 {
            ns
        } else {
            scaled(ns, self.table[cell.size] as f64 / self.table[size] as f64)
        };
        if cell.seen.len() < REMEMBERED {
            cell.seen.push(ns);
        } else {
            cell.seen[cell.next] = ns;
            cell.next = (cell.next + 1) % REMEMBERED;
        }
        let sorted = &mut self.scratch.sorted;
        sorted.clear();
        sorted.extend_from_slice(&cell.seen);
        let rank = sorted.len().div_ceil(2) - 1;
        let estimate = *sorted.select_nth_unstable(rank).1;
        let changed = estimate != cell.estimate;
        cell.estimate = estimate;
        changed
    }

    fn rebuild(&mut self) {
        let FitScratch {
            pools,
            points,
            slopes,
            ..
        } = &mut self.scratch;
        // Pool adjacent violators: neighbours that contradict each other share their mean.
        pools.clear();
        points.clear();
        for cell in self.cells.iter().flatten() {
            let mut pool = (cell.estimate as f64, cell.seen.len() as f64, 1);
            while let Some(before) = pools.last().copied().filter(|before| before.0 >= pool.0) {
                pools.pop();
                let weight = before.1 + pool.1;
                let mean = (before.0 * before.1 + pool.0 * pool.1) / weight;
                pool = (mean, weight, before.2 + pool.2);
            }
            pools.push(pool);
        }
        let mut cells = self.cells.iter().flatten();
        for (estimate, _, sizes) in pools.iter() {
            for cell in cells.by_ref().take(*sizes) {
                points.push((cell.size, *estimate));
            }
        }
        smooth(points, &self.cells, self.variation.deviation());
        let (Some(first), Some(last)) = (points.first().copied(), points.last().copied()) else {
            return;
        };
        slopes.clear();
        for (index, (size, estimate)) in points.iter().enumerate() {
            for (larger, other) in &points[index + 1..] {
                slopes.push((other - estimate) / (larger - size) as f64);
            }
        }
        let slope = if slopes.is_empty() {
            first.1 * (1.0 - FIXED_SHARE) / first.0 as f64
        } else {
            let middle = slopes.len() / 2;
            *slopes.select_nth_unstable_by(middle, f64::total_cmp).1
        };
        let mut index = 0;
        for (size, ns) in self.table.iter_mut().enumerate().skip(1) {
            while index < points.len() && points[index].0 < size {
                index += 1;
            }
            let line =
                |from: (usize, f64), slope: f64| from.1 + slope * (size as f64 - from.0 as f64);
            let estimate = match (index.checked_sub(1).map(|i| points[i]), points.get(index)) {
                (Some(below), Some(above)) => {
                    line(below, (above.1 - below.1) / (above.0 - below.0) as f64)
                }
                // Below the smallest: along the line, but never less than half.
                (None, Some(above)) => line(*above, slope).max(above.1 * FIXED_SHARE),
                _ => line(last, slope),
            };
            *ns = whole(estimate);
        }
        // The line through all may lie below a pooled neighbour.
        for size in 1..self.table.len() {
            self.table[size] = self.table[size].max(self.table[size - 1]);
        }
        let cost = |size: usize| self.table[size] as f64 / size as f64;
        let sizes = 1..self.table.len();
        let best = sizes.clone().map(cost).fold(f64::INFINITY, f64::min);
        let first = |within: f64| sizes.clone().find(|size| cost(*size) <= within * best);
        let unsure = UNSURE * self.variation.deviation();
        self.useful = first(HARDLY + unsure).unwrap_or(1);
        self.best = first(1.0 + unsure).unwrap_or(1);
    }
}

/// Moves estimates towards a line through all of them, the more the fewer executions each is known by: what a few
/// executions of a size happened to take says less of it than all others. Where the estimates differ from the line by
/// more than chance, they stay.
fn smooth(points: &mut [(usize, f64)], cells: &[Option<SizeCell>], deviation: f64) {
    if deviation <= 0.0 || points.len() < 3 {
        return;
    }
    let seen = || cells.iter().flatten().map(|cell| cell.seen.len() as f64);
    // Least squares, each weighted by its certainty.
    let (mut w, mut wx, mut wy, mut wxx, mut wxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for ((size, y), seen) in points.iter().zip(seen()) {
        let (x, weight) = (*size as f64, seen / (y * y).max(1.0));
        w += weight;
        wx += weight * x;
        wy += weight * y;
        wxx += weight * x * x;
        wxy += weight * x * y;
    }
    let spread = w * wxx - wx * wx;
    if spread <= 0.0 {
        return;
    }
    let slope = ((w * wxy - wx * wy) / spread).max(0.0);
    let base = (wy - slope * wx) / w;
    let line = |size: usize| base + slope * size as f64;
    let chance = MEDIAN * deviation * deviation;
    let (mut differ, mut all) = (0.0, 0.0);
    for ((size, y), seen) in points.iter().zip(seen()) {
        let on_line = line(*size);
        if on_line <= 0.0 {
            return;
        }
        let off = y / on_line - 1.0;
        differ += seen * off * off - chance;
        all += seen;
    }
    let truly = (differ / all).max(0.0);
    for ((size, y), seen) in points.iter_mut().zip(seen()) {
        let kept = truly / (truly + chance / seen);
        *y = line(*size) * (1.0 - kept) + *y * kept;
    }
}

/// A time times a factor.
fn scaled(ns: u64, factor: f64) -> u64 {
    // What is exact stays so.
    if factor.to_bits() == 1f64.to_bits() {
        return ns;
    }
    whole(ns as f64 * factor)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The nearest whole number of nanoseconds.
#[expect(
    clippy::cast_sign_loss,
    reason = "a cast from a float saturates, and no latency is negative"
)]
fn whole(ns: f64) -> u64 {
    ns.round() as u64
}

/// The cell of a size from 1.
fn cell_of(size: usize) -> usize {
    if size <= EXACT {
        return size - 1;
    }
    let octave = (size / EXACT).ilog2() as usize;
    let base = EXACT << octave;
    EXACT - 1 + octave * PER_OCTAVE + (size - base) * PER_OCTAVE / base
}

#[cfg(test)]
#[path = "latency_tests.rs"]
mod tests;
