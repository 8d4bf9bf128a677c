//! Looking ahead: which of the waiting requests are worth an execution.
//!
//! When more wait than can be answered in time, serving the most urgent first is the worst that can be done: its near
//! deadline allows a small batch only, while those behind it become as urgent in turn. Here the executions that would
//! follow are played through, once for each number of heads that are dropped at first, and the number with which the
//! most requests are answered in time wins; of equals the smallest.
//!
//! Source: the idea is Nexus' early drop (Shen et al., "Nexus: a GPU cluster engine for accelerating DNN-based video
//! analysis", SOSP 2019, section 6.3), which drops heads until the window allows the batch size that was planned.

use crate::{latency::LatencyModel, variation::SCENARIOS};

/// Requests that are looked at: some batches of a large model, some dozens of a small one.
const HORIZON: usize = 128;

/// Instances that are played through; of more, the first to be free.
const MAX_INSTANCES: usize = 16;

/// How careful a plan is: where the head's time lies among the scenarios of what executions take. Beside these there is
/// the stated percentile.
const CAUTIONS: [usize; 4] = [SCENARIOS - 3, SCENARIOS / 2, SCENARIOS / 4, 1];

/// What is best done first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BatchPlan {
    /// How many of the first requests to drop before the next batch is formed.
    pub(crate) dropped: usize,
    /// How many requests that batch has.
    pub(crate) batch: usize,
    /// In how many scenarios its requests are in time, all together.
    pub(crate) in_time: usize,
}

/// What the look ahead is told, besides the requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AheadTerms<'a> {
    /// The present moment, in nanoseconds.
    pub(crate) now: u64,
    pub(crate) latency: &'a LatencyModel,
    pub(crate) max_batch_size: usize,
    /// What an execution has to earn, in requests a nanosecond.
    pub(crate) price: f64,
    /// Only plans of this caution are compared.
    pub(crate) caution: Option<f64>,
}

/// Buffers of the look ahead, kept for their memory.
#[derive(Debug, Default)]
pub(crate) struct LookAhead {
    /// Deadline in nanoseconds and inferences of the waiting requests, most urgent first.
    requests: Vec<(u64, usize)>,
    /// When each instance is free, in nanoseconds; the first is so now.
    free: Vec<u64>,
    playing: Vec<u64>,
}

impl LookAhead {
    /// What to do first. `requests` are the waiting ones, most urgent first, `free` the moments at which the other
    /// instances are free.
    pub(crate) fn plan(
        &mut self,
        terms: AheadTerms<'_>,
        requests: impl Iterator<Item = (u64, usize)>,
        free: impl Iterator<Item = u64>,
    ) -> BatchPlan {
        self.requests.clear();
        self.requests.extend(requests.take(HORIZON));
        self.free.clear();
        self.free.push(terms.now);
        self.free.extend(free);
        self.free.sort_unstable();
        self.free.truncate(MAX_INSTANCES);
        let variation = terms.latency.variation();
        let mut best = (BatchPlan::default(), None);
        if let Some(caution) = terms.caution {
            self.plan_with(caution, terms, &mut best);
            return best.0;
        }
        let cautions = CAUTIONS.iter().map(|index| variation.scenarios()[*index]);
        let mut last = f64::INFINITY;
        for caution in std::iter::once(variation.planned()).chain(cautions) {
            if caution < last {
                last = caution;
                self.plan_with(caution, terms, &mut best);
            }
        }
        best.0
    }

    /// Improves on the best plan and its score with plans of this caution.
    fn plan_with(
        &mut self,
        caution: f64,
        terms: AheadTerms<'_>,
        best: &mut (BatchPlan, Option<f64>),
    ) {
        let mut largest = 0;
        for start in 0..self.requests.len() {
            // No more than all that are left can be answered.
            let left = (SCENARIOS * (self.requests.len() - start)) as f64;
            if best.1.is_some_and(|best| left <= best) {
                break;
            }
            // Dropping one more helps only if the next one allows a larger batch.
            let (deadline, _) = self.requests[start];
            let time = within(deadline.saturating_sub(terms.now), caution);
            let size = terms.latency.largest_within(time);
            let size = size.min(terms.max_batch_size);
            if size <= largest {
                continue;
            }
            largest = size;
            let (score, first) = Self::play(
                &self.requests[start..],
                &self.free,
                &mut self.playing,
                caution,
                terms,
            );
            if best.1.is_none_or(|best| score > best) {
                let plan = BatchPlan {
                    dropped: start + first.dropped,
                    ..first
                };
                *best = (plan, Some(score));
            }
            if size == terms.max_batch_size {
                break;
            }
        }
    }

    /// In how many scenarios requests are answered in time if each free instance takes the most urgent ones, as many as
    /// fit; and how many are dropped before the first batch, and its requests.
    fn play(
        requests: &[(u64, usize)],
        free: &[u64],
        playing: &mut Vec<u64>,
        caution: f64,
        terms: AheadTerms<'_>,
    ) -> (f64, BatchPlan) {
        let AheadTerms {
            latency,
            max_batch_size,
            price,
            ..
        } = terms;
        playing.clear();
        playing.extend_from_slice(free);
        let (mut next, mut score, mut busy) = (0, 0, 0);
        let mut first = None;
        while next < requests.len() {
            let (at, now) = playing
                .iter()
                .copied()
                .enumerate()
                .min_by_key(|(_, moment)| *moment)
                .expect("an instance is free");
            let (deadline, size) = requests[next];
            let time = within(deadline.saturating_sub(now), caution);
            if deadline < now || latency.expected(size) > time {
                next += 1;
                continue;
            }
            let fits = latency.largest_within(time).min(max_batch_size).max(size);
            let (begin, mut total) = (next, 0);
            while next < requests.len() && total + requests[next].1 <= fits {
                total += requests[next].1;
                next += 1;
            }
            let takes = latency.expected(total);
            let mut chance = Chance::new(latency, takes);
            let times = requests[begin..next].iter();
            let times = times.map(|(deadline, _)| deadline.saturating_sub(now));
            let in_time = times.map(|time| chance.within(time)).sum();
            let takes = latency.mean(total);
            if (in_time as f64) < price * takes as f64 * SCENARIOS as f64 {
                // Time is better kept for what comes.
                continue;
            }
            first.get_or_insert(BatchPlan {
                dropped: begin,
                batch: next - begin,
                in_time,
            });
            score += in_time;
            busy += takes;
            playing[at] = now + takes;
        }
        let costs = price * busy as f64 * SCENARIOS as f64;
        (score as f64 - costs, first.unwrap_or_default())
    }
}

/// What may be expected to take this time, with that caution.
pub(crate) fn within(time: u64, caution: f64) -> u64 {
    if caution.to_bits() == 1f64.to_bits() {
        return time;
    }
    #[expect(clippy::cast_sign_loss, reason = "neither is negative")]
    let time = (time as f64 / caution) as u64;
    time
}

/// In how many scenarios an execution ends in time, for times that ascend.
pub(crate) struct Chance<'a> {
    scenarios: &'a [f64; SCENARIOS],
    takes: f64,
    /// The scenarios in which it takes no longer than the last time that was asked.
    ends: usize,
}

impl<'a> Chance<'a> {
    /// Of an execution that is expected to take this.
    pub(crate) fn new(latency: &'a LatencyModel, takes: u64) -> Self {
        Self {
            scenarios: latency.variation().scenarios(),
            takes: takes as f64,
            ends: 0,
        }
    }

    /// Of [`SCENARIOS`].
    pub(crate) fn within(&mut self, time: u64) -> usize {
        let time = time as f64;
        while self.ends < SCENARIOS && self.takes * self.scenarios[self.ends] <= time {
            self.ends += 1;
        }
        self.ends
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
