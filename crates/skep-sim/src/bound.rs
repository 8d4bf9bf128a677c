//! What no policy can exceed.
//!
//! [`bound`] is an upper bound on the number of requests that are answered within the objective `S`, for every policy,
//! even one that knows all arrivals beforehand, that executes whole requests in batches within the latency table.
//! `r(i)` is the arrival of request `i`, `L(q)` what a batch of `q` requests takes at least: the table's latency, made
//! monotone from above (the least of all batches of `q` *or more* requests, so that leaving late requests out of a
//! batch never costs time), times the least factor of the jitter; stretch is left out. All requests are alike, so
//! deadlines `r(i) + S` ascend.
//!
//! # One instance: the optimum
//!
//! Of any schedule keep only the answers that are in time. The batches follow each other; hand the kept requests out to
//! them again, in the order of arrival, as many to each as it had. This stays in time: by the start of a batch at least
//! as many kept requests have arrived as it and those before it hold, so it gets only ones that have; and at least as
//! many can wait for its end as it and those after it hold. Now let a batch of `q` end with request `v`: exchange its
//! other requests for `v-q+1 .. v-1`. None of them is in an earlier batch (those lie before all of this one's, of which
//! there are `q` up to `v`), and their deadlines are no earlier. So some optimal schedule executes runs of consecutive
//! requests, in order, and
//!
//! ```text
//! F(v, j) = when at the earliest j of the first v requests can have been answered in time
//!         = min of F(v-1, j)                                                       v is not answered
//!               and max(F(v-q, j-q), r(v)) + L(q), if that is <= r(v-q+1) + S,     for each q
//! ```
//!
//! finds it. States that are finished before the next arrival are as good as each other, so of them only the one with
//! the most answers is kept; the others number as many as can be answered within `S`.
//!
//! # Several instances: a relaxation
//!
//! `m` instances are relaxed to one machine of speed `m` that can put requests aside and go on with them later. Each
//! request costs its share of its batch, `L(q) / q`. Which batches can it be in? One that holds `q` requests in time
//! begins after the last of them has arrived and ends before the deadline of the first, so `q` consecutive requests, it
//! among them, arrive within `S - L(q)`. The request costs no less than the cheapest share of those batches. Being in
//! time for these costs is necessary; with ascending arrivals and deadlines such a machine loses nothing by working in
//! the order of arrival and never putting aside, so the same recursion, with `q = 1`, finds its optimum.

use std::time::Duration;

use skep_types::Time;

use crate::{Jitter, SimulatedModel};

/// How many of these requests, which arrive at ascending moments, can be answered within the objective at most. See the
/// [source](self) for the proof.
///
/// Takes time in proportion to the requests, to how many can be answered within one objective, and, with one instance,
/// to how many fit a batch.
#[must_use]
pub fn bound(arrivals: &[Time], model: &SimulatedModel, objective: Duration) -> usize {
    let objective = objective.as_nanos() as f64;
    let latencies = least_latencies(model);
    let arrivals: Vec<f64> = arrivals.iter().map(|at| at.as_nanos() as f64).collect();
    if model.instances == 1 {
        one_instance(&arrivals, &latencies, objective)
    } else {
        several_instances(&arrivals, &latencies, objective, f64::from(model.instances))
    }
}

/// `L(q)` in nanoseconds for `q` = 1, 2, ... requests.
fn least_latencies(model: &SimulatedModel) -> Vec<f64> {
    let fit = model.requests_per_batch();
    let latency = |requests: usize| {
        let nanos = model
            .table
            .latency(requests * model.request_size)
            .as_nanos() as f64;
        // Rounding may take a nanosecond away.
        let rounding = f64::from(model.jitter != Jitter::None);
        (nanos * model.jitter.least()).floor() - rounding
    };
    let mut latencies: Vec<f64> = (1..=fit).map(latency).collect();
    for index in (1..fit).rev() {
        latencies[index - 1] = latencies[index - 1].min(latencies[index]);
    }
    latencies
}

/// `F(v, ·)` for some `v`: when at the earliest `low`, `low + 1`, ... requests are answered; ascending.
#[derive(Debug, Clone, Default)]
struct States {
    low: usize,
    finished: Vec<f64>,
}

impl States {
    /// Drops what no optimum needs, given when the next request arrives.
    fn prune(&mut self, next: f64) {
        // Fewer answers never take longer.
        let mut least = f64::INFINITY;
        for finished in self.finished.iter_mut().rev() {
            least = least.min(*finished);
            *finished = least;
        }
        let idle = self.finished.partition_point(|finished| *finished <= next);
        let dropped = idle.saturating_sub(1);
        self.finished.drain(..dropped);
        self.low += dropped;
    }

    /// The most answers.
    fn most(&self) -> usize {
        self.low + self.finished.len() - 1
    }
}

/// The optimum of one instance.
fn one_instance(arrivals: &[f64], latencies: &[f64], objective: f64) -> usize {
    // F(v, .) lies at v modulo the ring's length.
    let mut ring = vec![States::default(); latencies.len() + 1];
    let length = ring.len();
    ring[0].finished.push(0.0);
    for v in 1..=arrivals.len() {
        let arrival = arrivals[v - 1];
        let mut states = std::mem::take(&mut ring[v % length]);
        let before = &ring[(v - 1) % length];
        states.low = before.low;
        states.finished.clone_from(&before.finished);
        for (q, latency) in (1..=v).zip(latencies) {
            let latest = arrivals[v - q] + objective - latency;
            if arrival > latest {
                // More requests arrived even earlier, and take longer.
                break;
            }
            let from = &ring[(v - q) % length];
            let usable = from
                .finished
                .partition_point(|finished| *finished <= latest);
            // What has less answers than the least kept was dropped for something better.
            let skipped = states.low.saturating_sub(from.low + q);
            let Some(usable) = from.finished[..usable].get(skipped..) else {
                continue;
            };
            let first = from.low + q + skipped - states.low;
            let needed = states.finished.len().max(first + usable.len());
            states.finished.resize(needed, f64::INFINITY);
            let targets = &mut states.finished[first..first + usable.len()];
            for (target, finished) in targets.iter_mut().zip(usable) {
                *target = target.min(finished.max(arrival) + latency);
            }
        }
        states.prune(arrivals.get(v).copied().unwrap_or(f64::INFINITY));
        ring[v % length] = states;
    }
    ring[arrivals.len() % length].most()
}

/// The optimum of the relaxation of several instances.
fn several_instances(arrivals: &[f64], latencies: &[f64], objective: f64, speed: f64) -> usize {
    let shares = least_shares(arrivals, latencies, objective);
    let mut states = States {
        low: 0,
        finished: vec![0.0],
    };
    for (index, arrival) in arrivals.iter().enumerate() {
        let deadline = arrival + objective;
        // Whole nanoseconds add up without an error.
        let cost = (shares[index] / speed).floor();
        states.finished.push(f64::INFINITY);
        for k in (1..states.finished.len()).rev() {
            let finished = states.finished[k - 1].max(*arrival) + cost;
            if finished <= deadline {
                states.finished[k] = states.finished[k].min(finished);
            }
        }
        while states.finished.last() == Some(&f64::INFINITY) {
            states.finished.pop();
        }
        states.prune(arrivals.get(index + 1).copied().unwrap_or(f64::INFINITY));
    }
    states.most()
}

/// Each request's least share of a batch that it can be in; infinite where there is none.
fn least_shares(arrivals: &[f64], latencies: &[f64], objective: f64) -> Vec<f64> {
    let mut shares = vec![f64::INFINITY; arrivals.len()];
    for (q, latency) in (1..).zip(latencies) {
        let share = latency / q as f64;
        // Up to which requests have been marked.
        let mut marked = 0;
        for (first, window) in arrivals.windows(q).enumerate() {
            if window[q - 1] - window[0] <= objective - latency {
                for least in &mut shares[marked.max(first)..first + q] {
                    *least = least.min(share);
                }
                marked = first + q;
            }
        }
    }
    shares
}
