//! The latency of requests at a rate.
//!
//! An instance that becomes free takes what waits, up to the cap. With instances that are not always busy, that is mostly
//! one request; with busy ones, what arrives while a batch runs. So the *usual batch* `k` solves
//!
//! ```text
//! k = rate * latency(k) / instances        within 1 and the cap
//! ```
//!
//! and a request waits, if all instances are busy (Erlang's second formula), until the next one becomes free. If the
//! instances hardly keep up even with batches at the cap, it waits for batches before its own: that time is the one of an
//! M/D/n queue, which is about half of that of M/M/n.
//!
//! Fewer instances compute at once than there are if the rate is low, and they take less time from each other.

use std::time::Duration;

use super::{LatencyProfile, RunConfiguration, RunTerms};
use crate::scaling::waits_longer;

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

/// So many standard deviations above the mean 95 of 100 numbers of arrivals lie at most.
const DEVIATIONS: f64 = 1.65;

/// Steps to the usual batch. Each brings it closer by the part of the time that batches add.
const STEPS: usize = 32;

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
        let mut usual = 1.0;
        let mut took = [0.0; 2];
        for _ in 0..STEPS {
            // Instances that compute at the same time.
            let at_once = |took: f64| (terms.rate * took / usual).clamp(1.0, count);
            let [alone, _] = self.latency(1.0, threads, usual)?;
            took = self.latency(at_once(alone), threads, usual)?;
            took = self.latency(at_once(took[0]), threads, usual)?;
            let next = (terms.rate * took[0] / count).clamp(1.0, cap);
            if (next - usual).abs() < 1e-3 {
                break;
            }
            usual = next;
        }
        let (busy, wait) = wait(instances, (usual, took[0]), (cap, full), terms.rate);
        if busy > LATE {
            // Those that wait the longest find others waiting: as many as come meanwhile, and some more by chance.
            let meanwhile = terms.rate * took[0] / count;
            let late = meanwhile + DEVIATIONS * meanwhile.sqrt();
            let at_once = (terms.rate * took[0] / usual).clamp(1.0, count);
            took = self.latency(at_once, threads, late.clamp(usual, cap))?;
        }
        let delay = match batch {
            1 => 0.0,
            // The delay ends early if a batch is full before.
            _ if terms.rate > 0.0 => terms
                .batch_delay
                .as_secs_f64()
                .min((cap - 1.0) / terms.rate),
            _ => terms.batch_delay.as_secs_f64(),
        };
        Some(Prediction {
            late: Duration::from_secs_f64(wait + delay + took[1]),
            throughput,
            serves: true,
        })
    }
}

/// How many requests find all instances busy, as a part, and what 95 of 100 wait at most, in seconds. `usual` batches and
/// those at the `cap` come with what they take.
fn wait(
    instances: u32,
    (usual, took): (f64, f64),
    (cap, full): (f64, f64),
    rate: f64,
) -> (f64, f64) {
    let count = f64::from(instances);
    let busy = waits_longer(instances, (rate * took / usual).min(count), 0.0);
    if busy <= LATE {
        return (busy, 0.0);
    }
    // The next instance becomes free at any moment of this time.
    let next = took / count * (1.0 - LATE / busy);
    let offered = rate * full / cap;
    let behind = waits_longer(instances, offered, 0.0);
    let queue = match behind > LATE {
        true => full / (count - offered) * (behind / LATE).ln() / 2.0,
        false => 0.0,
    };
    (busy, next.max(queue))
}
