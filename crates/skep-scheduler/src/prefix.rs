//! The requests at the head of the queue that could run as one batch.
//!
//! Scanned once and kept: while a batch waits for more requests, each that arrives behind it costs one step, not a new
//! scan. Whatever changes the part that was scanned makes it start again.

use skep_types::Time;

use crate::{
    Payload,
    waiting::{QueuePosition, WaitQueue},
};

/// A batch that ends with a certain request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CandidateBatch {
    pub(crate) position: QueuePosition,
    /// The inferences up to and with this request.
    pub(crate) size: usize,
    /// When the oldest request up to this one was enqueued.
    pub(crate) oldest: Time,
    /// The earliest end of a wait up to this one; none for those that have no end.
    pub(crate) expires: Option<Time>,
    /// Whether there is one up to this one that has overstayed.
    pub(crate) overstayed: bool,
}

/// Why no further request can join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrefixEnd {
    /// The next one is too large for what is left.
    Full,
    /// The next one has tensors of other shapes.
    Shape,
}

/// What was scanned.
#[derive(Debug, Default)]
pub(crate) struct Prefix {
    steps: Vec<CandidateBatch>,
    stop: Option<PrefixEnd>,
    /// How many requests Triton's batcher would send at once: see [`Prefix::extend`].
    cut: Option<usize>,
}

impl Prefix {
    pub(crate) fn clear(&mut self) {
        self.steps.clear();
        self.stop = None;
        self.cut = None;
    }

    /// A request was put into, or is about to leave, this place.
    pub(crate) fn touch(&mut self, position: QueuePosition) {
        // What is behind the scanned part changes nothing, unless the scan ended because of it.
        let behind = self
            .steps
            .last()
            .is_some_and(|step| step.position < position);
        if !behind || self.stop.is_some() {
            self.clear();
        }
    }

    /// Scans on from where it stopped, in order, never skipping.
    ///
    /// `preferred` are the sizes that leave at once. The *cut* is behind the largest batch that has one of them, or,
    /// when none was met, before the request that goes past the largest.
    pub(crate) fn extend<P: Payload>(
        &mut self,
        waiting: &WaitQueue<P>,
        max_batch_size: usize,
        preferred: &[usize],
    ) {
        let largest = preferred.last().copied().unwrap_or(max_batch_size);
        while self.stop.is_none() {
            let last = self.steps.last().copied();
            let next = last.map_or_else(|| waiting.first(), |step| waiting.after(step.position));
            let Some(position) = next else { return };
            let waiter = waiting.get(position);
            let mut oldest = waiter.since;
            let mut expires = waiter.expires;
            let mut overstayed = waiter.lane().overstayed;
            let mut size = waiter.request.batch_size;
            if let Some(last) = last {
                oldest = oldest.min(last.oldest);
                expires = earlier(expires, last.expires);
                overstayed |= last.overstayed;
                size += last.size;
                if size > largest && self.cut.is_none() {
                    self.cut = Some(self.steps.len());
                }
                let first = &waiting.get(self.steps[0].position).request;
                if size > max_batch_size {
                    self.stop = Some(PrefixEnd::Full);
                    return;
                }
                if !first.payload.joins(&waiter.request.payload) {
                    self.stop = Some(PrefixEnd::Shape);
                    return;
                }
            }
            self.steps.push(CandidateBatch {
                position,
                size,
                oldest,
                expires,
                overstayed,
            });
            if preferred.contains(&size) || (preferred.is_empty() && size == max_batch_size) {
                self.cut = Some(self.steps.len());
            }
            // Nothing has less than one inference: what is full stays so.
            if size >= max_batch_size {
                self.stop = Some(PrefixEnd::Full);
            }
        }
    }

    /// The batches that are possible, from one request to all that were scanned.
    pub(crate) fn steps(&self) -> &[CandidateBatch] {
        &self.steps
    }

    pub(crate) fn stop(&self) -> Option<PrefixEnd> {
        self.stop
    }

    pub(crate) fn cut(&self) -> Option<usize> {
        self.cut
    }
}

/// The earlier of two moments that may be never.
fn earlier(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    a.into_iter().chain(b).min()
}
