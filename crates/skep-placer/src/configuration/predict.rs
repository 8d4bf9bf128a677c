//! The latency of requests at a rate.
//!
//! Requests of a Poisson process are followed through the instances: one that becomes free takes what waits, up to the cap,
//! and a request that finds a free one starts a batch at once, or after the batcher's delay. A batch takes what was measured
//! for its size and for the instances that compute beside it, and varies as it did there. Formulas of queues were tried
//! before: those for single servers (M/D/n) overestimate the wait several times where batches empty the queue, and chose
//! wrong configurations for it.
//!
//! The arrivals and variations are the same for every configuration, so that differences come from the configurations.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use super::{LatencyProfile, RunConfiguration, RunTerms, profile::Seconds};

/// What a configuration brings at a rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// What 95 of 100 requests take at most; what a batch at the cap takes, if the rate is not served.
    pub late: Duration,
    /// Inferences a second at most.
    pub throughput: f64,
    /// Whether the rate is served: the instances are busy for nine tenths of the time at most, with batches at the cap.
    pub serves: bool,
}

/// Instances that are busier than this do not serve a rate: arrivals are never even.
const BUSY: f64 = 0.9;

/// The part of requests that may take longer than what is predicted.
const LATE: f64 = 0.05;

/// Requests that are followed: enough for the slowest 5 of 100 of them.
const FOLLOWED: usize = 2048;

/// The slowest of an exponential sample of this size are left out: a gap of one in millions is no gap to plan for.
const LEAST_SHARE: f64 = 1e-4;

impl Prediction {
    /// Whether the rate is served, within the objective if there is one.
    #[must_use]
    pub fn is_enough(&self, terms: &RunTerms) -> bool {
        self.serves
            && terms
                .objective
                .is_none_or(|objective| self.late <= objective)
    }
}

impl LatencyProfile {
    /// What a configuration brings; `None` beyond what was measured.
    #[must_use]
    pub fn predict(&self, configuration: RunConfiguration, terms: &RunTerms) -> Option<Prediction> {
        let RunConfiguration {
            instances,
            threads,
            batch,
        } = configuration;
        let (count, cap) = (f64::from(instances), f64::from(batch));
        let [full, full_late] = self.latency(count, threads, cap)?;
        let throughput = count * cap / full;
        if terms.rate >= BUSY * throughput {
            return Some(Prediction {
                late: Duration::from_secs_f64(full_late),
                throughput,
                serves: false,
            });
        }
        let delay = match batch {
            1 => 0.0,
            _ => terms.batch_delay.as_secs_f64(),
        };
        let late = match terms.rate > 0.0 {
            true => {
                let mut queue = BatchQueue::new(self, configuration, delay);
                queue.follow(&arrivals(terms.rate))?
            }
            // A request now and then, alone.
            false => self.latency(1.0, threads, 1.0)?[1] + delay,
        };
        Some(Prediction {
            late: Duration::from_secs_f64(late),
            throughput,
            serves: true,
        })
    }
}

/// Moments of a Poisson process, in seconds; the same numbers for every rate, scaled.
fn arrivals(rate: f64) -> Vec<f64> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut at = 0.0;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let share = (state >> 11) as f64 / (1_u64 << 53) as f64;
        at -= share.max(LEAST_SHARE).ln() / rate;
        at
    };
    (0..FOLLOWED).map(|_| next()).collect()
}

/// A moment of the queue, in nanoseconds.
type Moment = u64;

#[expect(clippy::cast_sign_loss, reason = "moments are positive")]
fn moment(seconds: f64) -> Moment {
    (seconds * 1e9) as u64
}

/// Requests on their way through the instances of a configuration.
struct BatchQueue<'a> {
    profile: &'a LatencyProfile,
    configuration: RunConfiguration,
    delay: f64,
    /// When each busy instance becomes free, the next one on top.
    busy: BinaryHeap<Reverse<Moment>>,
    /// What batches take, by instances at once and size, as far as it was needed.
    known: Vec<Option<Seconds>>,
    batches: u32,
}

impl<'a> BatchQueue<'a> {
    fn new(profile: &'a LatencyProfile, configuration: RunConfiguration, delay: f64) -> Self {
        let RunConfiguration {
            instances, batch, ..
        } = configuration;
        Self {
            profile,
            configuration,
            delay,
            busy: BinaryHeap::new(),
            known: vec![None; (instances * batch) as usize],
            batches: 0,
        }
    }

    /// What 95 of 100 requests that arrive at these moments take at most, in seconds.
    fn follow(&mut self, arrivals: &[f64]) -> Option<f64> {
        let cap = self.configuration.batch as usize;
        let mut took: Vec<f64> = Vec::with_capacity(arrivals.len());
        let mut waiting = arrivals;
        while let Some(first) = waiting.first() {
            let start = self.next_free().max(*first);
            // A batch waits for more until its first request has waited for so long, or it is full.
            let full = waiting.get(cap - 1).copied().unwrap_or(f64::INFINITY);
            let start = start.max(full.min(first + self.delay));
            let size = waiting.iter().take(cap).take_while(|at| **at <= start);
            let (batch, rest) = waiting.split_at(size.count().max(1));
            let end = start + self.batch(start, batch.len())?;
            self.busy.push(Reverse(moment(end)));
            took.extend(batch.iter().map(|at| end - at));
            waiting = rest;
        }
        took.sort_by(f64::total_cmp);
        let late = (LATE * took.len() as f64).floor();
        #[expect(clippy::cast_sign_loss, reason = "a number of requests")]
        took.get(took.len() - 1 - late as usize).copied()
    }

    /// When an instance is free, at the soonest.
    fn next_free(&mut self) -> f64 {
        if self.busy.len() < self.configuration.instances as usize {
            return 0.0;
        }
        let Reverse(end) = self.busy.pop().unwrap_or_default();
        end as f64 / 1e9
    }

    /// What a batch takes that begins now.
    fn batch(&mut self, start: f64, size: usize) -> Option<f64> {
        while let Some(Reverse(end)) = self.busy.peek()
            && *end <= moment(start)
        {
            self.busy.pop();
        }
        let RunConfiguration { threads, batch, .. } = self.configuration;
        let place = self.busy.len() * batch as usize + size - 1;
        let at_once = self.busy.len() as f64 + 1.0;
        let took = match self.known[place] {
            Some(took) => took,
            None => {
                let took = self.profile.latency(at_once, threads, size as f64)?;
                *self.known[place].insert(took)
            }
        };
        self.batches = self.batches.wrapping_add(1);
        Some(varied(took, self.batches))
    }
}

/// The golden ratio's part behind the point: its multiples fall evenly between 0 and 1.
const GOLDEN: f64 = 0.618_033_988_749_894_8;

/// A duration around the typical one, so that 95 of 100 are at most the late one: a logistic distribution.
fn varied([typical, late]: Seconds, number: u32) -> f64 {
    let share = (f64::from(number) * GOLDEN)
        .fract()
        .clamp(LEAST_SHARE, 1.0 - LEAST_SHARE);
    let deviations = (share / (1.0 - share)).ln() / ((1.0 - LATE) / LATE).ln();
    (typical + (late - typical) * deviations).max(typical / 2.0)
}
