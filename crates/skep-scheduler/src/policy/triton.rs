//! Triton's dynamic batcher.
//!
//! With `P` the largest preferred size, the batcher looks at as many requests from the head as fit the maximum and have
//! equal shapes, remembers the largest preferred size on its way (or, without one, the point before `P` is passed), and
//!
//! 1. sends up to that point, unless the oldest request has waited for the whole delay;
//! 2. otherwise sends all it looked at if the next cannot join or there are `P` of them;
//! 3. or if there is no delay, or it is over;
//! 4. or else waits for more until the delay is over.
//!
//! Triton forms up to two batches an instance ahead of time and lets those that are not full grow; here a batch is
//! formed when its instance is free, so that each can grow until then.
//!
//! Source: behaviour of Triton Inference Server 2.51 (core/dynamic_batch_scheduler.cc).

use std::time::Duration;

use skep_types::Time;

use crate::{
    BatchEnd, TritonPolicy,
    policy::Verdict,
    prefix::{Prefix, PrefixEnd},
};

impl TritonPolicy {
    /// What to do with the scanned requests, of which there is at least one. Nothing is waited for when `hurried`.
    pub(crate) fn decide(
        &self,
        now: Time,
        prefix: &Prefix,
        max_batch_size: usize,
        hurried: bool,
    ) -> Verdict {
        let steps = prefix.steps();
        let all = steps[steps.len() - 1];
        let delay = if hurried {
            Duration::ZERO
        } else {
            self.max_queue_delay
        };
        let over = all.oldest + delay;
        let overdue = delay > Duration::ZERO && now >= over;
        let largest = self.largest_preferred(max_batch_size);
        if let (Some(cut), false) = (prefix.cut(), overdue) {
            let size = steps[cut - 1].size;
            let chosen = size < max_batch_size && self.preferred_batch_sizes.contains(&size);
            return Verdict::Send {
                requests: cut,
                end: if chosen || largest < max_batch_size {
                    BatchEnd::PreferredSize
                } else {
                    BatchEnd::MaxBatchSize
                },
            };
        }
        let end = match prefix.stop() {
            Some(PrefixEnd::Full) => BatchEnd::MaxBatchSize,
            Some(PrefixEnd::Shape) => BatchEnd::ShapeChange,
            None if all.size >= largest => BatchEnd::PreferredSize,
            None if overdue => BatchEnd::Delay,
            None if delay.is_zero() => BatchEnd::QueueEmpty,
            None => return Verdict::Wait(over),
        };
        Verdict::Send {
            requests: steps.len(),
            end,
        }
    }

    /// The size up to which a free instance waits for more.
    pub(crate) fn target(&self, max_batch_size: usize) -> usize {
        if self.max_queue_delay.is_zero() {
            1
        } else {
            self.largest_preferred(max_batch_size)
        }
    }

    fn largest_preferred(&self, max_batch_size: usize) -> usize {
        let largest = self.preferred_batch_sizes.last();
        largest.copied().unwrap_or(max_batch_size)
    }
}
