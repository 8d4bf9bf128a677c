//! How long an execution of each batch size takes: learned from executions, monotone, inter- and extrapolated.
//!
//! For each batch size that was seen, the last executions are kept and their 80th percentile is the size's estimate.
//! The estimates are made monotone (a larger batch takes no less) by pooling neighbours that contradict that, a size in
//! between gets what lies on the line between its neighbours, and one beyond the largest what a robust line through all
//! estimates says (the median of the slopes between them, Theil and Sen).
//!
//! Sizes above [`EXACT`] share eight cells an octave, so that a model with batches of thousands stays cheap.

use std::time::Duration;

/// Sizes up to this one have a cell each.
const EXACT: usize = 32;

/// Cells an octave above that.
const PER_OCTAVE: usize = 8;

/// Executions that are remembered for a size: few, so that a device that became slower is noticed.
const REMEMBERED: usize = 32;

/// The percentile of the remembered executions that is the estimate. Batches are as large as deadlines allow, so too
/// low an estimate makes a whole batch late, and too high a one gives up requests that would have been in time. In
/// simulations with log-normal noise of 0.2 this percentile loses least; the 95th loses a third if objectives are
/// tight.
const PERCENTILE: usize = 80;

/// If only one size is known: the share of its time that is assumed not to depend on the size.
const FIXED_SHARE: f64 = 0.5;

/// What counts as hardly longer: a little more than estimates differ from run to run.
const HARDLY: f64 = 1.03;

/// After this many further executions a size is worth another try, whatever its estimate: what slowed it may be over.
/// This is so rare that one late batch does not show.
const STALE: u64 = 1024;

/// What is known of one size's executions.
#[derive(Debug, Clone)]
struct SizeCell {
    /// The size that was seen last; sizes of a cell differ little.
    size: usize,
    /// The last executions, in nanoseconds, as a ring.
    seen: Vec<u64>,
    next: usize,
    /// Their [`PERCENTILE`].
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
    /// A model of batches up to this size, from sizes with measured latencies.
    pub(crate) fn new(max_batch_size: usize, profile: &[(usize, Duration)]) -> Self {
        let max = max_batch_size.max(1);
        let mut model = Self {
            cells: vec![None; cell_of(max) + 1],
            table: vec![0; max + 1],
            useful: max,
            best: max,
            executions: 0,
            scratch: FitScratch::default(),
        };
        for (size, latency) in profile {
            model.note(*size, nanos(*latency), true);
        }
        model.rebuild();
        model
    }

    /// The estimate for a batch of this size, in nanoseconds; zero while nothing is known.
    pub(crate) fn of(&self, size: usize) -> u64 {
        let last = self.table.len() - 1;
        if size <= last {
            return self.table[size];
        }
        // A larger request runs alone, and takes its share of the largest batch.
        let scaled = u128::from(self.table[last]) * size as u128 / last as u128;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    /// The largest size whose execution takes no longer than this.
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
        cell.size = size;
        cell.at = self.executions;
        if cell.seen.len() < REMEMBERED {
            cell.seen.push(ns);
        } else {
            cell.seen[cell.next] = ns;
            cell.next = (cell.next + 1) % REMEMBERED;
        }
        let sorted = &mut self.scratch.sorted;
        sorted.clear();
        sorted.extend_from_slice(&cell.seen);
        let rank = (sorted.len() * PERCENTILE).div_ceil(100) - 1;
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
        (self.useful, self.best) = (first(HARDLY).unwrap_or(1), first(1.0).unwrap_or(1));
    }
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
