//! A real source on a bench: what its calls took, by the clock.

use std::{fmt, ops::Range};

use skep_layout::allocator::Source;

use crate::{Clock, SourceCalls, bench_source::BenchSource};

/// A source whose memory exists, and can be used as a program would use it.
pub trait UsableSource: Source + fmt::Debug {
    /// Writes to each cache line of a block.
    fn write(&mut self, block: Range<u64>);

    /// Reads from each cache line of a block.
    fn read(&self, block: Range<u64>);
}

/// Events of the processor that are counted while blocks are used: cache misses, misses of the translation buffer, page
/// faults; `None` for those that this machine does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UseEvents {
    /// Misses of the last cache.
    pub cache_misses: Option<u64>,
    /// Misses of the translation buffer of data.
    pub tlb_misses: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
}

/// Counts events of the processor, for this thread.
pub trait EventCounter: fmt::Debug {
    /// All so far.
    fn read(&self) -> UseEvents;
}

/// What using the blocks took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlockUse {
    /// Nanoseconds, by the clock.
    pub ns: u64,
    /// Bytes that were written and read.
    pub bytes: u64,
    /// Events meanwhile.
    pub events: UseEvents,
}

/// A real source, with a limit, failures to order, and accounts.
pub struct MeasuredSource<'a> {
    inner: Box<dyn UsableSource + 'a>,
    clock: Clock<'a>,
    limit: Option<u64>,
    fail_every: u64,
    asked: u64,
    bytes: u64,
    peak: u64,
    calls: SourceCalls,
    spent_ns: u64,
    counter: Option<Box<dyn EventCounter + 'a>>,
    used: BlockUse,
}

impl fmt::Debug for MeasuredSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeasuredSource")
            .field("inner", &self.inner)
            .field("bytes", &self.bytes)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl<'a> MeasuredSource<'a> {
    /// Measures `inner` by `clock`. It gives at most `limit` bytes at once, and every `fail_every`-th call for memory
    /// fails; 0 is never.
    #[must_use]
    pub fn new(
        inner: Box<dyn UsableSource + 'a>,
        clock: Clock<'a>,
        limit: Option<u64>,
        fail_every: u64,
    ) -> Self {
        Self {
            inner,
            clock,
            limit,
            fail_every,
            asked: 0,
            bytes: 0,
            peak: 0,
            calls: SourceCalls::default(),
            spent_ns: 0,
            counter: None,
            used: BlockUse::default(),
        }
    }

    /// Blocks are used as well: each new one is written, then the one before it is read.
    #[must_use]
    pub fn with_use(mut self, counter: Box<dyn EventCounter + 'a>) -> Self {
        self.counter = Some(counter);
        self
    }

    fn timed<T>(&mut self, call: impl FnOnce(&mut dyn UsableSource) -> T) -> T {
        let start = (self.clock)();
        let result = call(&mut *self.inner);
        self.spent_ns += (self.clock)().saturating_sub(start);
        result
    }

    /// Whether a call for memory is to fail.
    fn fails(&mut self, bytes: u64) -> bool {
        self.asked += 1;
        let injected = self.fail_every > 0 && self.asked.is_multiple_of(self.fail_every);
        let full = self
            .limit
            .is_some_and(|limit| self.bytes.saturating_add(bytes) > limit);
        injected || full
    }

    fn given(&mut self, bytes: u64, is_given: bool) {
        if is_given {
            self.bytes += bytes;
            self.peak = self.peak.max(self.bytes);
        } else {
            self.calls.refused += 1;
        }
    }
}

impl BenchSource for MeasuredSource<'_> {
    fn time_ns(&self) -> f64 {
        self.spent_ns as f64
    }

    fn calls(&self) -> SourceCalls {
        self.calls
    }

    fn peak(&self) -> u64 {
        self.peak
    }

    fn use_blocks(&mut self, new: Range<u64>, before: Option<Range<u64>>) {
        let Some(counter) = &self.counter else {
            return;
        };
        let (events, start) = (counter.read(), (self.clock)());
        self.used.bytes += new.end - new.start;
        self.inner.write(new);
        if let Some(before) = before {
            self.used.bytes += before.end - before.start;
            self.inner.read(before);
        }
        self.used.ns += (self.clock)().saturating_sub(start);
        let now = counter.read();
        let add = |sum: &mut Option<u64>, now: Option<u64>, then: Option<u64>| {
            *sum = now
                .zip(then)
                .map(|(now, then)| sum.unwrap_or(0) + now.saturating_sub(then));
        };
        let sums = &mut self.used.events;
        add(
            &mut sums.cache_misses,
            now.cache_misses,
            events.cache_misses,
        );
        add(&mut sums.tlb_misses, now.tlb_misses, events.tlb_misses);
        add(&mut sums.page_faults, now.page_faults, events.page_faults);
    }

    fn used(&self) -> Option<BlockUse> {
        self.counter.as_ref().map(|_| self.used)
    }
}

impl Source for MeasuredSource<'_> {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        self.calls.take += 1;
        let fails = self.fails(bytes);
        let taken = match fails {
            true => None,
            false => self.timed(|source| source.take(bytes)),
        };
        self.given(bytes, taken.is_some());
        taken
    }

    fn give_back(&mut self, address: u64, bytes: u64) {
        self.calls.give_back += 1;
        self.bytes -= bytes;
        self.timed(|source| source.give_back(address, bytes));
    }

    fn reserve(&mut self, bytes: u64) -> Option<u64> {
        self.calls.reserve += 1;
        self.timed(|source| source.reserve(bytes))
    }

    fn release(&mut self, address: u64, bytes: u64) {
        self.calls.reserve += 1;
        self.timed(|source| source.release(address, bytes));
    }

    fn commit(&mut self, pages: Range<u64>) -> bool {
        self.calls.commit += 1;
        let bytes = pages.end - pages.start;
        let committed = !self.fails(bytes) && self.timed(|source| source.commit(pages));
        self.given(bytes, committed);
        committed
    }

    fn decommit(&mut self, pages: Range<u64>) {
        self.calls.decommit += 1;
        self.bytes -= pages.end - pages.start;
        self.timed(|source| source.decommit(pages));
    }

    fn page(&self) -> u64 {
        self.inner.page()
    }

    fn available(&self) -> Option<u64> {
        let own = self.limit.map(|limit| limit.saturating_sub(self.bytes));
        [own, self.inner.available()].into_iter().flatten().min()
    }

    fn wait(&mut self) {
        self.calls.wait += 1;
        self.timed(|source| source.wait());
    }

    fn now(&self) -> u64 {
        self.inner.now()
    }
}
