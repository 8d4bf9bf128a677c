//! One allocator on its bench: it gets a trace's events, and everything about it is measured.

use std::collections::{HashMap, HashSet};

use skep_layout::allocator::{Allocator, BlockRequest, ContractFault, MemoryFigures};
use skep_trace::{BlockId, TraceEvent};

use crate::{
    BenchSource, BlockUse, SimulatedSource, SourceCalls, SourceOptions, histogram::Histogram,
};

/// A clock in nanoseconds, from any beginning.
pub type Clock<'a> = &'a dyn Fn() -> u64;

/// What counts as one page for the translation of addresses: 2 MiB.
const HUGE_PAGE_SHIFT: u32 = 21;

/// Pages of one block that are counted at most: 128 GiB.
const MOST_PAGES: usize = 1 << 16;

/// Points of the curve of memory over time at most.
const CURVE_POINTS: usize = 2048;

/// How long calls took, in nanoseconds. Simulated: what the source's calls within them cost. Measured: by the clock,
/// with what reading it costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CallTimes {
    /// Half of the calls took no longer.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// The mean.
    pub mean: f64,
}

/// Where blocks that are used together lie.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Locality {
    /// Bytes between a new block and the one before it, if that is in use; the mean.
    pub mean_distance: f64,
    /// Pages of 2 MiB on which any block lay.
    pub huge_pages: u64,
}

/// What came of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchFigures {
    /// The most bytes that the source had given at once.
    pub peak_reserved: u64,
    /// The most bytes in use at once.
    pub peak_in_use: u64,
    /// The most padding at once.
    pub peak_padding: u64,
    /// TensorFlow's measure when most was reserved: the share of the free bytes outside of the largest free piece.
    pub fragmentation_tensorflow: f64,
    /// PyTorch's: one less the most allocated over the most reserved.
    pub fragmentation_pytorch: f64,
    /// What is reserved after the last event.
    pub reserved_at_end: u64,
    /// What is still reserved after everything was freed and trimmed.
    pub reserved_after_trim: u64,
    /// Requests that got no memory.
    pub out_of_memory: u64,
    /// Calls of the source.
    pub calls: SourceCalls,
    /// What the source's calls cost all together, in nanoseconds.
    pub source_ns: f64,
    /// Calls by the cost model.
    pub simulated: CallTimes,
    /// Calls by the clock.
    pub measured: CallTimes,
    /// Where blocks lie.
    pub locality: Locality,
    /// What using them took, on a source whose memory is used.
    pub used: Option<BlockUse>,
    /// Event, bytes in use, bytes reserved: the curve over time, thinned out.
    pub curve: Vec<(u64, u64, u64)>,
    /// Where the first blocks lay, and when, for pictures.
    pub spans: Vec<BlockSpan>,
}

/// A block's part of the map of addresses over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSpan {
    /// The event that allocates it.
    pub start: u64,
    /// The event that frees it, or the last one.
    pub end: u64,
    /// Where it lies.
    pub address: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// Blocks of a map at most.
const MOST_SPANS: usize = 20_000;

/// An allocator that gets a trace.
#[derive(Debug)]
pub struct Bench<'a> {
    allocator: Box<dyn Allocator>,
    source: Box<dyn BenchSource + 'a>,
    live: HashMap<BlockId, LiveBlock>,
    spans: Vec<BlockSpan>,
    last: Option<BlockId>,
    peak: MemoryFigures,
    peak_allocated: u64,
    free_at_peak: (u64, u64),
    out_of_memory: u64,
    simulated: Histogram,
    measured: Histogram,
    distances: (f64, u64),
    huge_pages: HashSet<u64>,
    events: u64,
    program_ns: f64,
    curve: Vec<(u64, u64, u64)>,
    /// Every so many events are points of the curve.
    every: u64,
}

/// A block in use.
#[derive(Clone, Copy, Debug)]
struct LiveBlock {
    address: u64,
    bytes: u64,
    /// Its place among the spans.
    span: usize,
}

impl<'a> Bench<'a> {
    /// A bench with an allocator, over a simulated device.
    #[must_use]
    pub fn new(allocator: Box<dyn Allocator>, source: SourceOptions) -> Self {
        Self::over(allocator, Box::new(SimulatedSource::new(source)))
    }

    /// A bench with an allocator, over any source.
    #[must_use]
    pub fn over(allocator: Box<dyn Allocator>, source: Box<dyn BenchSource + 'a>) -> Self {
        Self {
            allocator,
            source,
            live: HashMap::new(),
            spans: Vec::new(),
            last: None,
            peak: MemoryFigures::default(),
            peak_allocated: 0,
            free_at_peak: (0, 0),
            out_of_memory: 0,
            simulated: Histogram::default(),
            measured: Histogram::default(),
            distances: (0.0, 0),
            huge_pages: HashSet::new(),
            events: 0,
            program_ns: 0.0,
            curve: Vec::new(),
            every: 1,
        }
    }

    /// Carries an event out. Blocks of 0 bytes take no part.
    pub fn take(&mut self, event: TraceEvent, clock: Clock<'_>) {
        match event {
            TraceEvent::Malloc {
                block,
                bytes,
                stream,
            } if bytes > 0 => self.malloc(block, bytes, stream, clock),
            TraceEvent::Malloc { .. } => {}
            TraceEvent::Free { block } => self.free(block, clock),
        }
        self.events += 1;
        if self.events.is_multiple_of(self.every) {
            let MemoryFigures {
                in_use, reserved, ..
            } = self.allocator.figures();
            self.curve.push((self.events, in_use, reserved));
            if self.curve.len() >= CURVE_POINTS {
                // Of two points the one with more reserved stays: peaks are what the curve is for.
                self.curve = self
                    .curve
                    .chunks(2)
                    .filter_map(|two| two.iter().copied().max_by_key(|point| (point.2, point.1)))
                    .collect();
                self.every *= 2;
            }
        }
    }

    fn malloc(&mut self, block: BlockId, bytes: u64, stream: u64, clock: Clock<'_>) {
        let request = BlockRequest {
            stream,
            ..BlockRequest::of(bytes)
        };
        self.source.queue_work();
        let began = self.source.time_ns();
        let start = clock();
        let placed = self.allocator.malloc(request, &mut *self.source);
        self.measured.add(clock().saturating_sub(start));
        self.simulated.add(whole(self.source.time_ns() - began));
        self.pass();
        let Ok(address) = placed else {
            self.out_of_memory += 1;
            return;
        };
        let before = self.last.and_then(|last| self.live.get(&last)).copied();
        if let Some(before) = before {
            self.distances.0 += address.abs_diff(before.address) as f64;
            self.distances.1 += 1;
        }
        let before = before.map(|before| before.address..before.address + before.bytes);
        self.source.use_blocks(address..address + bytes, before);
        self.last = Some(block);
        let span = self.spans.len();
        self.live.insert(
            block,
            LiveBlock {
                address,
                bytes,
                span,
            },
        );
        if self.spans.len() < MOST_SPANS {
            self.spans.push(BlockSpan {
                start: self.events,
                end: u64::MAX,
                address,
                bytes,
            });
        }
        let pages = address >> HUGE_PAGE_SHIFT..=(address + bytes - 1) >> HUGE_PAGE_SHIFT;
        self.huge_pages.extend(pages.take(MOST_PAGES));
        let figures = self.allocator.figures();
        self.peak.in_use = self.peak.in_use.max(figures.in_use);
        self.peak.padding = self.peak.padding.max(figures.padding);
        self.peak_allocated = self.peak_allocated.max(figures.in_use + figures.padding);
        if figures.reserved > self.peak.reserved {
            self.peak.reserved = figures.reserved;
            self.free_at_peak = (figures.idle(), self.allocator.largest_free());
        }
    }

    fn free(&mut self, block: BlockId, clock: Clock<'_>) {
        let Some(LiveBlock { address, span, .. }) = self.live.remove(&block) else {
            return;
        };
        // Beyond the bound, all have the same place behind the last span.
        if let Some(span) = self.spans.get_mut(span)
            && span.address == address
            && span.end == u64::MAX
        {
            span.end = self.events;
        }
        let began = self.source.time_ns();
        let start = clock();
        let freed = self.allocator.free(address, &mut *self.source);
        self.measured.add(clock().saturating_sub(start));
        debug_assert!(freed.is_ok(), "a live block can be freed");
        self.simulated.add(whole(self.source.time_ns() - began));
        self.pass();
    }

    /// The program works until its next call.
    fn pass(&mut self) {
        let before = self.source.time_ns();
        self.source.pass(PROGRAM_NS);
        self.program_ns += self.source.time_ns() - before;
    }

    /// What it holds now.
    #[must_use]
    pub fn figures(&self) -> MemoryFigures {
        self.allocator.figures()
    }

    /// How the allocator broke its contract, if its answers are checked.
    #[must_use]
    pub fn fault(&self) -> Option<&ContractFault> {
        self.allocator.fault()
    }

    /// Frees what is left, and tells what came of all.
    #[must_use]
    pub fn finish(mut self) -> BenchFigures {
        let reserved_at_end = self.allocator.figures().reserved;
        for span in &mut self.spans {
            span.end = span.end.min(self.events);
        }
        let (calls, source_ns) = (self.source.calls(), self.source.time_ns());
        let mut left: Vec<u64> = self.live.values().map(|block| block.address).collect();
        left.sort_unstable();
        for address in left {
            let freed = self.allocator.free(address, &mut *self.source);
            debug_assert!(freed.is_ok(), "a live block can be freed");
        }
        self.allocator.trim(&mut *self.source);
        // The source knows of peaks within a call, too.
        let peak_reserved = self.peak.reserved.max(self.source.peak());
        let (idle, largest) = self.free_at_peak;
        let times = |histogram: &Histogram| CallTimes {
            p50: histogram.quantile(0.5),
            p99: histogram.quantile(0.99),
            mean: histogram.mean(),
        };
        BenchFigures {
            peak_reserved,
            peak_in_use: self.peak.in_use,
            peak_padding: self.peak.padding,
            fragmentation_tensorflow: idle.saturating_sub(largest) as f64 / idle.max(1) as f64,
            fragmentation_pytorch: 1.0 - self.peak_allocated as f64 / peak_reserved.max(1) as f64,
            reserved_at_end,
            reserved_after_trim: self.allocator.figures().reserved,
            out_of_memory: self.out_of_memory,
            calls,
            source_ns: source_ns - self.program_ns,
            simulated: times(&self.simulated),
            measured: times(&self.measured),
            locality: Locality {
                mean_distance: self.distances.0 / self.distances.1.max(1) as f64,
                huge_pages: self.huge_pages.len() as u64,
            },
            used: self.source.used(),
            curve: self.curve,
            spans: self.spans,
        }
    }
}

/// The program's own time between two calls, in nanoseconds: queued work is done meanwhile.
const PROGRAM_NS: f64 = 10_000.0;

#[expect(clippy::cast_sign_loss, reason = "time does not run backwards")]
fn whole(ns: f64) -> u64 {
    ns.round() as u64
}
