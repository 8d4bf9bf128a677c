//! The requests at the head of the queue that could run as one batch.
//!
//! They are scanned once and remembered: while a batch waits for more requests, each arrival behind it costs one step,
//! not a new scan. A change within the scanned part restarts the scan.

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
    /// The earliest end of a wait up to this one; `None` if no wait ends.
    pub(crate) expires: Option<Time>,
    /// Whether any request up to this one has overstayed.
    pub(crate) overstayed: bool,
}

/// Why no further request can join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrefixEnd {
    /// The next one does not fit.
    Full,
    /// The next one's tensors have other shapes.
    Shape,
}

/// The scanned requests.
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

    /// A request entered, or is about to leave, this position.
    pub(crate) fn touch(&mut self, position: QueuePosition) {
        // A change behind the scanned part has no effect, unless the scan stopped there.
        let behind = self
            .steps
            .last()
            .is_some_and(|step| step.position < position);
        if !behind || self.stop.is_some() {
            self.clear();
        }
    }

    /// Continues the scan where it stopped, in order, without skipping a request.
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
            // No request has less than one inference, so a full batch stays full.
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

/// The earlier of two moments; `None` means never.
fn earlier(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    a.into_iter().chain(b).min()
}
