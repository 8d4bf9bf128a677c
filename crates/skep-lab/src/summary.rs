//! What a trace is like: sizes, lifetimes, and how soon memory could be used again.

use std::collections::HashMap;

use skep_trace::{BlockId, TraceEvent};

use crate::histogram::Histogram;

/// The quantiles of a distribution, within 10 %.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Half are no larger.
    pub p50: u64,
    /// 90 of 100 are no larger.
    pub p90: u64,
    /// 99 of 100 are no larger.
    pub p99: u64,
    /// The largest.
    pub most: u64,
    /// The mean.
    pub mean: f64,
}

impl Spread {
    fn of(histogram: &Histogram) -> Self {
        Self {
            p50: histogram.quantile(0.5),
            p90: histogram.quantile(0.9),
            p99: histogram.quantile(0.99),
            most: histogram.quantile(1.0),
            mean: histogram.mean(),
        }
    }
}

/// See [`TraceSummary::finish`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceFigures {
    /// Allocations and frees.
    pub events: u64,
    /// Blocks of at least a byte.
    pub blocks: u64,
    /// Bytes of all blocks together.
    pub allocated_bytes: u64,
    /// The most bytes in use at once.
    pub peak_live: u64,
    /// Of these, the bytes of blocks that are never freed.
    pub kept_bytes: u64,
    /// Sizes of blocks, in bytes.
    pub sizes: Spread,
    /// How many sizes there are.
    pub distinct_sizes: u64,
    /// Events from a block's allocation to its free, of the blocks that are freed.
    pub lifetimes: Spread,
    /// Blocks of a size of which a block was freed before.
    pub reused_blocks: u64,
    /// Events from the latest such free to the allocation.
    pub reuse_distances: Spread,
    /// The share of all bytes times events that blocks take which outlive half of the trace.
    pub long_lived_share: f64,
}

/// Takes a trace in, event by event. What it keeps grows with the live blocks and the distinct sizes.
#[derive(Debug, Default)]
pub struct TraceSummary {
    live: HashMap<BlockId, (u64, u64)>,
    /// The latest free of each size, if a block of it was freed since the last allocation of it.
    freed: HashMap<u64, Vec<u64>>,
    sizes: Histogram,
    lifetimes: Histogram,
    distances: Histogram,
    events: u64,
    blocks: u64,
    reused: u64,
    bytes: u64,
    in_use: u64,
    peak: u64,
    /// Bytes times events of freed blocks, by how many events they lived, as a power of two.
    areas: Vec<f64>,
}

impl TraceSummary {
    /// Takes an event in. Blocks of 0 bytes take no part.
    pub fn take(&mut self, event: TraceEvent) {
        match event {
            TraceEvent::Malloc { block, bytes, .. } if bytes > 0 => self.malloc(block, bytes),
            TraceEvent::Malloc { .. } => {}
            TraceEvent::Free { block } => self.free(block),
        }
        self.events += 1;
    }

    fn malloc(&mut self, block: BlockId, bytes: u64) {
        self.blocks += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.in_use = self.in_use.saturating_add(bytes);
        self.peak = self.peak.max(self.in_use);
        self.sizes.add(bytes);
        self.live.insert(block, (bytes, self.events));
        // An entry without moments says that the size occurs.
        if let Some(freed) = self.freed.entry(bytes).or_default().pop() {
            self.reused += 1;
            self.distances.add(self.events - freed);
        }
    }

    fn free(&mut self, block: BlockId) {
        let Some((bytes, since)) = self.live.remove(&block) else {
            return;
        };
        self.in_use -= bytes;
        let lifetime = self.events - since;
        self.lifetimes.add(lifetime);
        self.add_area(bytes, lifetime);
        self.freed.entry(bytes).or_default().push(self.events);
    }

    fn add_area(&mut self, bytes: u64, lifetime: u64) {
        let octave = lifetime.max(1).ilog2() as usize;
        if self.areas.len() <= octave {
            self.areas.resize(octave + 1, 0.0);
        }
        self.areas[octave] += bytes as f64 * lifetime as f64;
    }

    /// The figures of all events so far.
    #[must_use]
    pub fn finish(mut self) -> TraceFigures {
        let kept: Vec<(u64, u64)> = self.live.values().copied().collect();
        for (bytes, since) in &kept {
            self.add_area(*bytes, self.events - since);
        }
        let long = (self.events / 2).max(1).ilog2() as usize;
        // A sum of no floating figures would be a negative zero.
        let all = self.areas.iter().fold(0.0, |sum, area| sum + area);
        let long_lived = self
            .areas
            .iter()
            .skip(long)
            .fold(0.0, |sum, area| sum + area);
        TraceFigures {
            events: self.events,
            blocks: self.blocks,
            allocated_bytes: self.bytes,
            peak_live: self.peak,
            kept_bytes: kept.iter().map(|(bytes, _)| bytes).sum(),
            sizes: Spread::of(&self.sizes),
            distinct_sizes: self.freed.len() as u64,
            lifetimes: Spread::of(&self.lifetimes),
            reused_blocks: self.reused,
            reuse_distances: Spread::of(&self.distances),
            long_lived_share: if all > 0.0 { long_lived / all } else { 0.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_summed_up() {
        let mut summary = TraceSummary::default();
        let malloc = |summary: &mut TraceSummary, block, bytes| {
            summary.take(TraceEvent::Malloc {
                block: BlockId(block),
                bytes,
                stream: 0,
            });
        };
        let free = |summary: &mut TraceSummary, block| {
            summary.take(TraceEvent::Free {
                block: BlockId(block),
            });
        };
        malloc(&mut summary, 0, 4);
        malloc(&mut summary, 1, 2);
        malloc(&mut summary, 2, 0);
        free(&mut summary, 1);
        free(&mut summary, 2);
        malloc(&mut summary, 3, 2);
        free(&mut summary, 3);
        malloc(&mut summary, 4, 3);
        let figures = summary.finish();
        assert_eq!((figures.events, figures.blocks), (8, 4));
        assert_eq!((figures.allocated_bytes, figures.peak_live), (11, 7));
        assert_eq!((figures.kept_bytes, figures.distinct_sizes), (7, 3));
        assert_eq!((figures.sizes.p50, figures.sizes.most), (2, 4));
        // Blocks 1 and 3 lived for two events and for one.
        assert_eq!((figures.lifetimes.p50, figures.lifetimes.most), (1, 2));
        assert_eq!((figures.reused_blocks, figures.reuse_distances.p50), (1, 2));
        // Block 0 alone lives for at least half: 32 of 32 + 4 + 2 + 3.
        assert!((figures.long_lived_share - 32.0 / 41.0).abs() < 1e-12);
    }

    #[test]
    fn nothing_is_summed_up_too() {
        let share = TraceSummary::default().finish().long_lived_share;
        assert!(share == 0.0 && share.is_sign_positive());
    }
}
