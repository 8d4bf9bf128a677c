//! What became of a cluster's requests, and what it took.

use std::time::Duration;

use skep_types::Time;

use super::{nodes::Held, platform::Platform};

/// Figures of one platform. Means are over time.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterOutcome {
    /// The platform.
    pub platform: Platform,
    /// Requests that were sent.
    pub requests: usize,
    /// Late requests that were given up, since they could no longer be answered in time.
    pub given_up: usize,
    /// Requests that waited for an instance to start, because there was none.
    pub cold: usize,
    /// Requests that were not answered within the sum of their stages' objectives, by application.
    pub late_of: Vec<usize>,
    /// Starts of instances.
    pub starts: usize,
    /// Starts that found no node with room.
    pub unplaced: usize,
    /// Bytes of tensors that starts read.
    pub read_bytes: u64,
    /// The time that counts.
    pub span: Duration,
    /// Bytes that are held.
    pub mean_bytes: f64,
    /// Bytes of tensors, those that are shared once a node.
    pub mean_tensor_bytes: f64,
    /// The same tensors once in the cluster: what sharing comes to at best.
    pub mean_distinct_bytes: f64,
    /// Cores that instances own.
    pub mean_cores: f64,
    /// Instances.
    pub mean_instances: f64,
    /// Nodes with an instance.
    pub mean_nodes: f64,
    /// The most bytes at a time.
    pub peak_bytes: u64,
    /// The most instances at a time.
    pub peak_instances: u32,
    /// The most that a node held beyond its memory, where sizes are guessed: a real node would have been killed.
    pub overrun_bytes: u64,
}

/// The price that the authors of Tetris charge for memory, in dollars for a GB and an hour. It is that of a whole
/// r6g.medium with its 8 GiB; by that instance's memory it would be an eighth.
const DOLLARS_PER_GB_HOUR: f64 = 0.0504;

/// What memory costs, at the rate that the authors of Tetris use: $0.0504 for a GB and an hour.
#[must_use]
pub fn memory_dollars(gb_seconds: f64) -> f64 {
    gb_seconds * DOLLARS_PER_GB_HOUR / 3600.0
}

impl ClusterOutcome {
    pub(super) fn new(
        platform: Platform,
        requests: usize,
        applications: usize,
        span: Duration,
    ) -> Self {
        Self {
            platform,
            requests,
            given_up: 0,
            cold: 0,
            late_of: vec![0; applications],
            starts: 0,
            unplaced: 0,
            read_bytes: 0,
            span,
            mean_bytes: 0.0,
            mean_tensor_bytes: 0.0,
            mean_distinct_bytes: 0.0,
            mean_cores: 0.0,
            mean_instances: 0.0,
            mean_nodes: 0.0,
            peak_bytes: 0,
            peak_instances: 0,
            overrun_bytes: 0,
        }
    }

    /// Late requests of all applications.
    #[must_use]
    pub fn late(&self) -> usize {
        self.late_of.iter().sum()
    }

    /// The part of the requests that were late.
    #[must_use]
    pub fn late_part(&self) -> f64 {
        self.late() as f64 / self.requests.max(1) as f64
    }

    /// GB times seconds that a hundred requests took.
    #[must_use]
    pub fn gb_seconds_per_100(&self) -> f64 {
        let gb_seconds = self.mean_bytes / 1e9 * self.span.as_secs_f64();
        100.0 * gb_seconds / self.requests.max(1) as f64
    }

    /// Instances that a GB holds.
    #[must_use]
    pub fn instances_per_gb(&self) -> f64 {
        self.mean_instances / (self.mean_bytes / 1e9).max(1e-9)
    }

    /// Bytes beyond what sharing comes to at best.
    #[must_use]
    pub fn bytes_above_bound(&self) -> f64 {
        self.mean_bytes - self.mean_distinct_bytes
    }
}

/// Sums up what is held over time.
#[derive(Debug)]
pub(super) struct HeldOverTime {
    since: Time,
    end: Time,
    /// Sums of figures times seconds, in the order of [`HeldOverTime::figures`].
    sums: [f64; 6],
    peak_bytes: u64,
    peak_instances: u32,
}

impl HeldOverTime {
    pub(super) const fn new(end: Time) -> Self {
        Self {
            since: Time::ZERO,
            end,
            sums: [0.0; 6],
            peak_bytes: 0,
            peak_instances: 0,
        }
    }

    fn figures(held: &Held) -> [f64; 6] {
        [
            held.bytes as f64,
            held.tensor_bytes as f64,
            held.distinct_bytes as f64,
            held.millicores as f64 / 1e3,
            f64::from(held.instances),
            f64::from(held.nodes),
        ]
    }

    /// This was held until now.
    pub(super) fn until(&mut self, now: Time, held: &Held) {
        let now = now.min(self.end);
        let seconds = now.since(self.since).as_secs_f64();
        if seconds > 0.0 {
            let figures = Self::figures(held);
            for (sum, figure) in self.sums.iter_mut().zip(figures) {
                *sum += figure * seconds;
            }
            self.since = now;
            self.peak_bytes = self.peak_bytes.max(held.bytes);
            self.peak_instances = self.peak_instances.max(held.instances);
        }
    }

    pub(super) fn write(self, outcome: &mut ClusterOutcome) {
        let seconds = self.end.since(Time::ZERO).as_secs_f64().max(1e-9);
        let [bytes, tensors, distinct, cores, instances, nodes] =
            self.sums.map(|sum| sum / seconds);
        outcome.mean_bytes = bytes;
        outcome.mean_tensor_bytes = tensors;
        outcome.mean_distinct_bytes = distinct;
        outcome.mean_cores = cores;
        outcome.mean_instances = instances;
        outcome.mean_nodes = nodes;
        outcome.peak_bytes = self.peak_bytes;
        outcome.peak_instances = self.peak_instances;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_costs_what_the_paper_says() {
        // 61.5 and 20.2 GB by 100 requests are $0.000861 and $0.000283.
        assert!((memory_dollars(61.5) - 0.000_861).abs() < 5e-7);
        assert!((memory_dollars(20.2) - 0.000_283).abs() < 5e-7);
    }

    #[test]
    fn means_are_over_time_up_to_the_end() {
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let held = |bytes| Held {
            bytes,
            ..Held::default()
        };
        let mut over_time = HeldOverTime::new(at(10));
        over_time.until(at(4), &held(100));
        over_time.until(at(9), &held(0));
        over_time.until(at(30), &held(600));
        assert_eq!(over_time.sums[0], 1000.0);
        assert_eq!(over_time.peak_bytes, 600);
    }
}
