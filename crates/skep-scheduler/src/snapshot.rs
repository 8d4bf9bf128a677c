//! The state of a scheduler's policy, for metrics and logs.

use std::time::Duration;

use crate::{BatchEnd, Percentile};

/// The state of a scheduler's policy at one moment. No decision depends on it.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySnapshot {
    /// The policy's name in configurations; `none` where requests are never merged.
    pub policy: &'static str,
    /// How long an answer may take, where the policy keeps an objective.
    pub objective: Option<Duration>,
    /// The percentile of latency that it plans by; there with an objective.
    pub percentile: Option<Percentile>,
    /// The largest batch that is formed now, in inferences.
    pub cap: usize,
    /// The batch size up to which a free instance waits for more, in inferences; 1 where it does not wait.
    pub target: usize,
    /// Inferences that arrive a second, if the policy measures them.
    pub arrivals_per_s: Option<f64>,
    /// What executions take at that percentile, by [`profile_sizes`]. Empty if the policy does not learn them, or has seen no execution.
    pub latencies: Vec<(usize, Duration)>,
    /// The size of the last batch in inferences, and why it was not larger.
    pub last_batch: Option<(usize, BatchEnd)>,
    /// Requests that were rejected because they had waited too long, or could no longer be answered in time.
    pub rejected: u64,
    /// Requests that were put behind all others of their level for the same reasons.
    pub delayed: u64,
    /// The sequences, if requests belong to some.
    pub sequences: Option<SequenceCounts>,
}

/// How many sequences there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceCounts {
    /// Slots that sequences have, or candidates.
    pub used: usize,
    /// Slots that sequences could get.
    pub free: usize,
    /// Sequences that wait for a slot.
    pub waiting: usize,
}

/// The batch sizes of a profile: the powers of two below the maximum, and the maximum, which is at least 1.
pub fn profile_sizes(max: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), move |size| {
        (*size < max).then(|| (2 * size).min(max))
    })
}
