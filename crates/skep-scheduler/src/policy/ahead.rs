//! Looking ahead: which of the waiting requests are worth an execution.
//!
//! When more wait than can be answered in time, serving the most urgent first is the worst that can be done: its near
//! deadline allows a small batch only, while those behind it become as urgent in turn. Here the executions that would
//! follow are played through, once for each number of heads that are dropped at first, and the number with which the
//! most requests are answered in time wins; of equals the smallest.
//!
//! Source: the idea is Nexus' early drop (Shen et al., "Nexus: a GPU cluster engine for accelerating DNN-based video
//! analysis", SOSP 2019, section 6.3), which drops heads until the window allows the batch size that was planned.

use crate::latency::LatencyModel;

/// Requests that are looked at: some batches of a large model, some dozens of a small one.
const HORIZON: usize = 128;

/// Instances that are played through; of more, the first to be free.
const MAX_INSTANCES: usize = 16;

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
    /// How many of the first requests to drop before the next batch is formed. `requests` are the waiting ones, most
    /// urgent first, `free` the moments at which the other instances are free.
    pub(crate) fn early_drop(
        &mut self,
        now: u64,
        latency: &LatencyModel,
        max_batch_size: usize,
        requests: impl Iterator<Item = (u64, usize)>,
        free: impl Iterator<Item = u64>,
    ) -> usize {
        self.requests.clear();
        self.requests.extend(requests.take(HORIZON));
        self.free.clear();
        self.free.push(now);
        self.free.extend(free);
        self.free.sort_unstable();
        self.free.truncate(MAX_INSTANCES);
        let fits = |start: usize| {
            let (deadline, _) = self.requests[start];
            let time = deadline.saturating_sub(now);
            latency.largest_within(time).min(max_batch_size)
        };
        let mut best = (0, 0);
        let mut largest = 0;
        for start in 0..self.requests.len() {
            // No more than all that are left can be answered.
            if self.requests.len() - start <= best.1 {
                break;
            }
            // Dropping one more helps only if the next one allows a larger batch.
            let size = fits(start);
            if size <= largest {
                continue;
            }
            largest = size;
            let answered = Self::play(
                &self.requests[start..],
                &self.free,
                &mut self.playing,
                latency,
                max_batch_size,
            );
            if start == 0 || answered > best.1 {
                best = (start, answered);
            }
            if size == max_batch_size {
                break;
            }
        }
        best.0
    }

    /// How many requests are answered in time if each free instance takes the most urgent ones, as many as fit.
    fn play(
        requests: &[(u64, usize)],
        free: &[u64],
        playing: &mut Vec<u64>,
        latency: &LatencyModel,
        max_batch_size: usize,
    ) -> usize {
        playing.clear();
        playing.extend_from_slice(free);
        let (mut next, mut answered) = (0, 0);
        while next < requests.len() {
            let (at, now) = playing
                .iter()
                .copied()
                .enumerate()
                .min_by_key(|(_, moment)| *moment)
                .expect("an instance is free");
            let (deadline, size) = requests[next];
            if now + latency.of(size) > deadline {
                next += 1;
                continue;
            }
            let fits = latency
                .largest_within(deadline - now)
                .min(max_batch_size)
                .max(size);
            let mut total = 0;
            while next < requests.len() && total + requests[next].1 <= fits {
                total += requests[next].1;
                answered += 1;
                next += 1;
            }
            playing[at] = now + latency.of(total);
        }
        answered
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
