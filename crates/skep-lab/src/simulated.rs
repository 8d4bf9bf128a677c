//! An imagined device: addresses without memory, a limit, failures, and what each call costs.

use std::ops::Range;

use skep_layout::allocator::{CHUNK_ALIGNMENT, Source};

use crate::{BenchSource, CostModel};

/// How a simulated device is.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceOptions {
    /// Bytes of the device; `None` has no end.
    pub limit: Option<u64>,
    /// Bytes of a page, a power of two.
    pub page: u64,
    /// Every so many calls for memory fail, for no reason; 0 is never.
    pub fail_every: u64,
    /// What calls cost.
    pub cost: CostModel,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            limit: None,
            page: 4096,
            fail_every: 0,
            cost: CostModel::default(),
        }
    }
}

/// Calls of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCalls {
    /// Chunks taken.
    pub take: u64,
    /// Chunks given back.
    pub give_back: u64,
    /// Ranges of pages that got memory.
    pub commit: u64,
    /// Ranges of pages whose memory was taken back.
    pub decommit: u64,
    /// Addresses reserved and released.
    pub reserve: u64,
    /// Waits for queued work.
    pub wait: u64,
    /// Calls for memory that failed.
    pub refused: u64,
}

impl SourceCalls {
    /// All calls.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.take + self.give_back + self.commit + self.decommit + self.reserve + self.wait
    }
}

/// A simulated device.
#[derive(Debug)]
pub struct SimulatedSource {
    options: SourceOptions,
    next: u64,
    bytes: u64,
    peak: u64,
    calls: SourceCalls,
    /// The time of the program, and when the device will be done with what is queued, in nanoseconds.
    now: f64,
    busy_until: f64,
    asked: u64,
}

/// Chunks begin at multiples of this and never touch, as those of `cudaMalloc` mostly do.
const SPACING: u64 = 2 << 20;

impl SimulatedSource {
    /// A device that has given nothing yet.
    #[must_use]
    pub fn new(options: SourceOptions) -> Self {
        Self {
            options,
            next: 1 << 40,
            bytes: 0,
            peak: 0,
            calls: SourceCalls::default(),
            now: 0.0,
            busy_until: 0.0,
            asked: 0,
        }
    }

    fn fails(&mut self, bytes: u64) -> bool {
        self.asked += 1;
        let every = self.options.fail_every;
        let injected = every > 0 && self.asked.is_multiple_of(every);
        let full = self
            .options
            .limit
            .is_some_and(|limit| self.bytes.saturating_add(bytes) > limit);
        let fails = injected || full;
        self.calls.refused += u64::from(fails);
        fails
    }

    fn give(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.peak = self.peak.max(self.bytes);
    }

    fn addresses(&mut self, bytes: u64, alignment: u64) -> Option<u64> {
        let address = self.next.next_multiple_of(alignment);
        self.next = address
            .checked_add(bytes)?
            .checked_next_multiple_of(SPACING)?
            .checked_add(SPACING)
            .filter(|next| *next < 1 << 62)?;
        Some(address)
    }

    const fn pages(&self, range: &Range<u64>) -> f64 {
        ((range.end - range.start) / self.options.page) as f64
    }
}

impl BenchSource for SimulatedSource {
    fn queue_work(&mut self) {
        let CostModel {
            work_ns, queue_ns, ..
        } = self.options.cost;
        self.busy_until = (self.busy_until.max(self.now) + work_ns).min(self.now + queue_ns);
    }

    fn pass(&mut self, ns: f64) {
        self.now += ns;
    }

    fn time_ns(&self) -> f64 {
        self.now
    }

    fn calls(&self) -> SourceCalls {
        self.calls
    }

    fn peak(&self) -> u64 {
        self.peak
    }
}

impl Source for SimulatedSource {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let cost = &self.options.cost;
        self.calls.take += 1;
        self.now += if (bytes as f64) < cost.small_bytes {
            cost.small_take_ns
        } else {
            cost.take_ns + cost.byte_ns * bytes as f64
        };
        if self.fails(bytes) {
            return None;
        }
        let address = self.addresses(bytes, CHUNK_ALIGNMENT.max(SPACING))?;
        self.give(bytes);
        Some(address)
    }

    fn give_back(&mut self, _: u64, bytes: u64) {
        self.calls.give_back += 1;
        // Memory that queued work may still use cannot go.
        self.now = self.now.max(self.busy_until) + self.options.cost.give_back_ns;
        self.bytes -= bytes;
    }

    fn reserve(&mut self, bytes: u64) -> Option<u64> {
        self.calls.reserve += 1;
        self.now += self.options.cost.reserve_ns;
        self.addresses(bytes, self.options.page.max(SPACING))
    }

    fn release(&mut self, _: u64, _: u64) {
        self.calls.reserve += 1;
        self.now += self.options.cost.reserve_ns;
    }

    fn commit(&mut self, pages: Range<u64>) -> bool {
        let bytes = pages.end - pages.start;
        self.calls.commit += 1;
        let cost = &self.options.cost;
        self.now +=
            cost.commit_ns + cost.page_ns * self.pages(&pages) + cost.byte_ns * bytes as f64;
        if self.fails(bytes) {
            return false;
        }
        self.give(bytes);
        true
    }

    fn decommit(&mut self, pages: Range<u64>) {
        self.calls.decommit += 1;
        let cost = &self.options.cost;
        let takes = cost.commit_ns + cost.page_ns * self.pages(&pages);
        self.now = self.now.max(self.busy_until) + takes;
        self.bytes -= pages.end - pages.start;
    }

    fn page(&self) -> u64 {
        self.options.page
    }

    fn available(&self) -> Option<u64> {
        self.options
            .limit
            .map(|limit| limit.saturating_sub(self.bytes))
    }

    fn wait(&mut self) {
        self.calls.wait += 1;
        self.now = self.now.max(self.busy_until);
    }

    #[expect(clippy::cast_sign_loss, reason = "time never runs backwards from 0")]
    fn now(&self) -> u64 {
        self.now as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_is_given_back_waits_for_queued_work() {
        let cost = CostModel {
            take_ns: 50.0,
            byte_ns: 0.0,
            give_back_ns: 20.0,
            work_ns: 1000.0,
            queue_ns: 2500.0,
            ..CostModel::default()
        };
        let mut source = SimulatedSource::new(SourceOptions {
            cost,
            ..SourceOptions::default()
        });
        let chunk = source.take(1 << 20).expect("memory");
        assert_eq!(source.time_ns(), 50.0);
        for _ in 0..5 {
            source.queue_work();
        }
        source.give_back(chunk, 1 << 20);
        assert_eq!(
            source.time_ns(),
            50.0 + 2500.0 + 20.0,
            "a queue has its bound"
        );
    }

    #[test]
    fn calls_fail_beyond_the_limit_and_when_they_are_told_to() {
        let options = SourceOptions {
            limit: Some(1000),
            fail_every: 3,
            ..SourceOptions::default()
        };
        let mut source = SimulatedSource::new(options);
        let taken = [400, 601, 1, 600].map(|bytes| source.take(bytes).is_some());
        assert_eq!(taken, [true, false, false, true]);
        assert_eq!((source.peak(), source.available()), (1000, Some(0)));
        assert_eq!((source.calls().take, source.calls().refused), (4, 2));
    }
}
