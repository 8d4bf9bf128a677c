//! How latencies are distributed: quantiles over the last minute, and counts by bucket since the start.
//!
//! An instance writes both under the lock that it holds anyway. A [`LatencyWindow`] serves Triton's summaries. It
//! counts in buckets of a constant relative width, so that recording is two shifts and an addition, and instances can
//! be summed. Triton itself keeps sorted samples, which costs its users a third of the throughput (server#8561).

use std::{sync::Arc, time::Duration};

use skep_types::Time;

/// A part of a request's way that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From arrival to the answer.
    Request,
    /// Waiting for an instance.
    Queue,
    /// Gathering inputs.
    ComputeInput,
    /// Running the model.
    ComputeInfer,
    /// Splitting outputs.
    ComputeOutput,
}

impl Phase {
    /// All phases.
    pub const ALL: [Self; 5] = [
        Self::Request,
        Self::Queue,
        Self::ComputeInput,
        Self::ComputeInfer,
        Self::ComputeOutput,
    ];

    const COUNT: usize = Self::ALL.len();
}

/// Buckets in each doubling of a duration: a value is known to half a bucket, 1/128 of itself.
const SUB_BUCKETS: u64 = 1 << SUB_BITS;
const SUB_BITS: u32 = 6;

/// Longer durations count as this one; 19 hours.
const MAX_US: u64 = (1 << 36) - 1;

/// Parts of a window, and the length of each: Triton's figures, 60 s in 5 parts. Quantiles therefore cover the last 48
/// to 60 s.
const SLOTS: usize = 5;
const SLOT: Duration = Duration::from_secs(12);

/// Durations of one phase, counted in buckets up to the longest; at most 8 KiB.
#[derive(Debug, Clone, Default)]
struct LatencySketch {
    counts: Vec<u32>,
    count: u64,
    min_us: u64,
    max_us: u64,
}

impl LatencySketch {
    fn record(&mut self, us: u64, times: u32) {
        let us = us.min(MAX_US);
        let index = bucket(us);
        if index >= self.counts.len() {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] = self.counts[index].saturating_add(times);
        self.min_us = if self.count == 0 {
            us
        } else {
            self.min_us.min(us)
        };
        self.max_us = self.max_us.max(us);
        self.count += u64::from(times);
    }

    fn clear(&mut self) {
        self.counts.fill(0);
        (self.count, self.min_us, self.max_us) = (0, 0, 0);
    }

    fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.min_us = if self.count == 0 {
            other.min_us
        } else {
            self.min_us.min(other.min_us)
        };
        self.max_us = self.max_us.max(other.max_us);
        self.count += other.count;
    }

    /// The smallest value that at least the share `quantile` of all values does not exceed.
    fn quantile_us(&self, quantile: f64) -> Option<f64> {
        let rank = (quantile * self.count as f64).ceil().max(1.0);
        let mut seen = 0.0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += f64::from(*count);
            if seen >= rank {
                let middle = middle_us(index);
                return Some(middle.clamp(self.min_us as f64, self.max_us as f64));
            }
        }
        None
    }
}

/// The bucket of a duration: the duration itself below [`SUB_BUCKETS`], then that many buckets for each doubling.
fn bucket(us: u64) -> usize {
    let index = match us.checked_ilog2() {
        Some(log) if log >= SUB_BITS => {
            let doubling = u64::from(log - SUB_BITS);
            (us >> doubling) + doubling * SUB_BUCKETS
        }
        _ => us,
    };
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn middle_us(index: usize) -> f64 {
    let index = index as u64;
    let doubling = (index / SUB_BUCKETS).saturating_sub(1);
    let start = (index - doubling * SUB_BUCKETS) << doubling;
    let width = 1u64 << doubling;
    (start + (width - 1) / 2) as f64
}

/// Durations of the last minute, by phase.
#[derive(Debug, Clone, Default)]
pub(crate) struct LatencyWindow {
    slots: [WindowSlot; SLOTS],
}

#[derive(Debug, Clone, Default)]
struct WindowSlot {
    /// The stretch of time that the slot covers, counted in [`SLOT`]s.
    turn: u64,
    phases: [LatencySketch; Phase::COUNT],
}

impl LatencyWindow {
    /// The part of the window that `now` falls into, emptied if it covers an earlier time.
    pub(crate) fn slot(&mut self, now: Time) -> WindowSlotWriter<'_> {
        let turn = turn(now);
        let index = usize::try_from(turn % SLOTS as u64).unwrap_or_default();
        let slot = &mut self.slots[index];
        if slot.turn != turn {
            slot.turn = turn;
            slot.phases.iter_mut().for_each(LatencySketch::clear);
        }
        WindowSlotWriter(slot)
    }

    /// Adds the last minute's durations of a phase.
    fn add_to(&self, sum: &mut LatencySketch, phase: Phase, now: Time) {
        let now = turn(now);
        for slot in &self.slots {
            if now.saturating_sub(slot.turn) >= SLOTS as u64 {
                continue;
            }
            sum.merge(&slot.phases[phase as usize]);
        }
    }
}

/// The part of a window that is being written.
pub(crate) struct WindowSlotWriter<'a>(&'a mut WindowSlot);

impl WindowSlotWriter<'_> {
    /// Records a duration for `times` requests.
    pub(crate) fn record(&mut self, phase: Phase, ns: u64, times: u64) {
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        self.0.phases[phase as usize].record(ns / 1_000, times);
    }
}

fn turn(now: Time) -> u64 {
    now.as_nanos() / (SLOT.as_secs() * 1_000_000_000)
}

/// Latencies of the last minute, over all instances of a version.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    phases: [LatencySketch; Phase::COUNT],
}

impl Latencies {
    /// The smallest duration, in microseconds, that at least the share `quantile` of the last minute's requests did not
    /// exceed, to 1/128 of itself; `None` without requests.
    #[must_use]
    pub fn quantile_us(&self, phase: Phase, quantile: f64) -> Option<f64> {
        self.phases[phase as usize].quantile_us(quantile)
    }

    pub(crate) fn add(&mut self, window: &LatencyWindow, now: Time) {
        for phase in Phase::ALL {
            window.add_to(&mut self.phases[phase as usize], phase, now);
        }
    }
}

/// Counts of durations by upper bound, since the start.
#[derive(Debug, Clone)]
pub(crate) struct LatencyBuckets {
    bounds_ns: Arc<[u64]>,
    /// One more than there are bounds.
    counts: Vec<u64>,
}

impl LatencyBuckets {
    pub(crate) fn new(bounds_ns: &Arc<[u64]>) -> Self {
        Self {
            bounds_ns: Arc::clone(bounds_ns),
            counts: vec![0; bounds_ns.len() + 1],
        }
    }

    pub(crate) fn record(&mut self, ns: u64, times: u64) {
        let index = self.bounds_ns.partition_point(|bound| *bound < ns);
        self.counts[index] += times;
    }

    pub(crate) fn counts(&self) -> &[u64] {
        &self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    fn latencies(window: &LatencyWindow, seconds: u64) -> Latencies {
        let mut latencies = Latencies::default();
        latencies.add(window, at(seconds));
        latencies
    }

    fn median(window: &LatencyWindow, seconds: u64) -> Option<f64> {
        latencies(window, seconds).quantile_us(Phase::Request, 0.5)
    }

    #[test]
    fn buckets_have_the_stated_width() {
        let mut previous = 0;
        for us in (0..100_000).chain((20..=36).map(|bits| (1 << bits) - 1)) {
            let index = bucket(us);
            assert!(index >= previous, "{us}");
            previous = index;
            let error = (middle_us(index) - us as f64).abs();
            assert!(error <= us as f64 / 128.0, "{us} is off by {error}");
        }
        assert!(bucket(MAX_US) < 2048);
    }

    #[test]
    fn quantiles_have_the_right_rank() {
        let mut window = LatencyWindow::default();
        for us in 1..=1000 {
            window.slot(at(100)).record(Phase::Queue, us * 1_000, 1);
        }
        let got = latencies(&window, 100);
        for (quantile, expected) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let us = got.quantile_us(Phase::Queue, quantile).expect("recorded");
            assert!(
                (us - expected).abs() <= expected / 128.0,
                "{quantile}: {us}"
            );
        }
        assert_eq!(got.quantile_us(Phase::Request, 0.5), None);
    }

    #[test]
    fn a_single_duration_is_exact() {
        let mut window = LatencyWindow::default();
        window.slot(at(7)).record(Phase::Request, 40_036_999, 3);
        let got = latencies(&window, 7);
        assert_eq!(got.quantile_us(Phase::Request, 0.999), Some(40_036.0));
    }

    #[test]
    fn durations_are_forgotten_after_a_minute() {
        let mut window = LatencyWindow::default();
        window.slot(at(0)).record(Phase::Request, 5_000, 1);
        window.slot(at(30)).record(Phase::Request, 9_000, 1);
        assert_eq!(median(&window, 59), Some(5.0));
        assert_eq!(median(&window, 60), Some(9.0));
        assert_eq!(median(&window, 90), None);
        // The slot of the first duration is used again.
        window.slot(at(60)).record(Phase::Request, 1_000, 1);
        assert_eq!(median(&window, 61), Some(1.0));
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut buckets = LatencyBuckets::new(&[10, 20].into());
        for (ns, times) in [(0, 1), (10, 1), (11, 2), (20, 1), (21, 5)] {
            buckets.record(ns, times);
        }
        assert_eq!(buckets.counts(), [2, 3, 5]);
    }
}
