//! Decisions by deadline: which requests leave now, which are given up, how long to wait.
//!
//! The most urgent requests come first, and a batch is the largest with which the most urgent one is in time. When its
//! deadline keeps others out, a look ahead (`ahead.rs`) decides within its level whether it is worth that. In all else
//! *manners* differ.

use skep_types::Time;

use crate::{
    BatchEnd,
    latency::LatencyModel,
    policy::{
        Verdict,
        ahead::{AheadTerms, LookAhead, within},
    },
    variation::{SCENARIOS, Variation},
};

/// How much faster than they arrive requests should be served: the uncertainty of a rate.
const AHEAD_OF_LOAD: f64 = 1.1;

/// The objective divided by the time of [`Patience::Brief`].
const BRIEF: u64 = 10;

/// The scenario that a [plain](Manner::plain) manner plans by: four of five executions last no longer.
const PLAIN: usize = SCENARIOS * 4 / 5;

/// What counts as equally good: a smaller batch is worth this much.
const NEARLY: f64 = 0.995;

/// The waiting requests, most urgent first.
pub(crate) trait UrgentQueue {
    /// How many of the first could run as one batch, at least 1.
    fn joined(&self) -> usize;

    /// The inferences of the first `requests`.
    fn size(&self, requests: usize) -> usize;

    /// The earliest deadline of the first `requests`, in nanoseconds; `None` if none has a deadline.
    fn deadline(&self, requests: usize) -> Option<u64>;

    /// Whether a request that arrives could join all of [`UrgentQueue::joined`], and these may be held back for it.
    fn may_grow(&self) -> bool;

    /// Why these are not more.
    fn end(&self) -> BatchEnd;

    /// The inferences of all.
    fn inferences(&self) -> usize;

    /// Deadline in nanoseconds and inferences of each request in the first one's level.
    fn urgent(&self) -> impl Iterator<Item = (u64, usize)>;
}

/// How many requests a batch waits for, as long as no deadline is near.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// None.
    None,
    /// The smallest size with which the instances keep up with the arrivals.
    Enough,
    /// As many as pay.
    Full,
    /// As many as pay, but only for a tenth of the objective: until a burst has arrived.
    Brief,
}

/// How deadlines are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Manner {
    pub(crate) patience: Patience,
    /// Whether a batch is at most as large as pays.
    pub(crate) thrifty: bool,
    /// Whether to give up requests that keep a batch below the size that the load needs: the backlog that a look ahead
    /// sees ends, the arrivals do not.
    pub(crate) strict: bool,
    /// What an execution has to earn, in percent of what time on an instance earns on average. Otherwise nothing is
    /// executed: time is better kept for what comes.
    pub(crate) price_percent: u8,
    /// Whether an execution is taken to last as long as most do, whatever the stated percentile, with no weighing of
    /// probabilities. Batches are larger then, and some of them late: where the load asks for all that instances can
    /// do, that answers more requests.
    pub(crate) plain: bool,
}

impl Manner {
    /// What executions are taken to last, over what is expected.
    fn caution(self, variation: &Variation) -> f64 {
        if self.plain {
            variation.scenarios()[PLAIN]
        } else {
            variation.planned()
        }
    }
}

/// Settings of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ObjectiveTerms {
    pub(crate) max_batch_size: usize,
    /// How long a request has from its arrival to its deadline, in nanoseconds.
    pub(crate) objective: u64,
    /// How long after its deadline an answer is still in time if nothing unforeseen happens, in nanoseconds.
    pub(crate) margin: u64,
}

/// What a decision depends on, besides the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecisionContext<'a> {
    /// In nanoseconds.
    pub(crate) now: u64,
    pub(crate) terms: ObjectiveTerms,
    pub(crate) latency: &'a LatencyModel,
    /// The number of instances.
    pub(crate) instances: usize,
    /// Inferences that arrive a nanosecond.
    pub(crate) per_ns: f64,
    /// Requests that an instance can answer in time a nanosecond, as far as is known.
    pub(crate) earned_per_ns: f64,
    /// Whether the batch may be larger by one than seems to pay. Executions of such sizes that were slow once, at
    /// loading or when the device was busy with something else, would otherwise be the last ones, and nothing would
    /// correct what was learned of them.
    pub(crate) probes: bool,
}

impl DecisionContext<'_> {
    /// Decides for a free instance. `free` are the moments at which the other instances are free, not before now.
    pub(crate) fn decide(
        &self,
        manner: Manner,
        line: &impl UrgentQueue,
        free: impl Iterator<Item = u64>,
        ahead: &mut LookAhead,
    ) -> Verdict {
        let largest = self.cap(manner) + usize::from(self.probes);
        let joined = line.joined();
        let paying = count(joined, |requests| line.size(requests) <= largest).max(1);
        let variation = self.latency.variation();
        let price = f64::from(manner.price_percent) / 100.0 * self.earned_per_ns;
        let fits = |caution: f64, margin: u64| {
            count(paying, |requests| {
                let takes = self.latency.expected(line.size(requests));
                line.deadline(requests).is_none_or(|deadline| {
                    let time = deadline.saturating_add(margin).checked_sub(self.now);
                    time.is_some_and(|time| takes <= within(time, caution))
                })
            })
        };
        let end = |requests: usize, otherwise| {
            if requests < joined {
                otherwise
            } else {
                line.end()
            }
        };
        let caution = manner.caution(variation);
        let requests = fits(caution, 0);
        let hope = if manner.plain {
            caution
        } else {
            variation.scenarios()[0]
        };
        if requests == 0 && fits(hope, 0) == 0 {
            let within_margin = fits(hope, self.terms.margin);
            if manner.plain && within_margin == 0 && line.inferences() > line.size(1) {
                // Most executions would be too late for it. The last one is tried all the same: if nothing ran, a wrong
                // estimate would stay.
                return Verdict::Drop { requests: 1 };
            }
            // The most urgent one is within its margin: try it at once.
            let requests = within_margin.max(1);
            return Verdict::Send {
                requests,
                end: end(requests, BatchEnd::Deadline),
            };
        }
        if requests < paying {
            let next = requests + 1;
            if self.probes && self.latency.is_stale(line.size(next)) {
                // Only an old estimate keeps the next one out, and only an execution corrects it.
                return Verdict::Send {
                    requests: next,
                    end: end(next, BatchEnd::Deadline),
                };
            }
            // The most urgent one's deadline keeps others out: is it worth that?
            let terms = AheadTerms {
                now: self.now,
                latency: self.latency,
                max_batch_size: self.terms.max_batch_size,
                price,
                caution: manner.plain.then_some(caution),
            };
            let plan = ahead.plan(terms, line.urgent(), free);
            let mut dropped = plan.dropped;
            if manner.strict {
                dropped = dropped.max(self.in_the_way_of(self.sustainable(), line));
            }
            if dropped > 0 {
                return Verdict::Drop { requests: dropped };
            }
            // Where scenarios do not differ, the most urgent one's deadline has said it all. An execution in a hundred may
            // still be so slow that not even one request is sure to be in time.
            let least = requests.max(1);
            let requests = if variation.varies() && !manner.plain {
                plan.batch.clamp(least, paying)
            } else {
                least
            };
            let in_time = plan.in_time as f64 / SCENARIOS as f64;
            if let Some(wait) = self.not_worth(price, in_time, requests, line) {
                return wait;
            }
            return Verdict::Send {
                requests,
                end: end(requests, BatchEnd::Deadline),
            };
        }
        let size = line.size(requests);
        if requests == joined
            && line.may_grow()
            && let Some(deadline) = line.deadline(requests)
        {
            // Until then one more could still join. Timers fire a little late.
            let mut until = deadline
                .saturating_sub(self.latency.with(size + 1, caution))
                .saturating_sub(self.terms.margin);
            if manner.patience == Patience::Brief {
                let arrived = deadline.saturating_sub(self.terms.objective);
                until = until.min(arrived + self.terms.objective / BRIEF);
            }
            if size < self.target(manner) {
                if self.now < until {
                    return Verdict::Wait(Time::from_nanos(until));
                }
                return Verdict::Send {
                    requests,
                    end: BatchEnd::Waited,
                };
            }
        }
        if let Some(wait) = self.not_worth(price, requests as f64, requests, line) {
            return wait;
        }
        Verdict::Send {
            requests,
            end: end(requests, BatchEnd::Cap),
        }
    }

    /// To wait for more, until the most urgent one is late, if these requests earn less than their execution costs.
    fn not_worth(
        &self,
        price: f64,
        in_time: f64,
        requests: usize,
        line: &impl UrgentQueue,
    ) -> Option<Verdict> {
        let costs = price * self.latency.mean(line.size(requests)) as f64;
        if in_time >= costs || !line.may_grow() {
            return None;
        }
        let deadline = line.deadline(1)?.saturating_add(self.terms.margin);
        // A nanosecond later it is late, however lucky the execution; none waits beyond its deadline.
        let late = deadline.saturating_sub(self.latency.luckiest(line.size(1))) + 1;
        let latest = late.min(deadline);
        (latest > self.now).then(|| Verdict::Wait(Time::from_nanos(latest)))
    }

    /// The largest batch that is formed.
    pub(crate) fn cap(&self, manner: Manner) -> usize {
        if manner.thrifty {
            self.largest_that_pays()
        } else {
            self.terms.max_batch_size
        }
    }

    /// The size up to which a batch waits for more.
    pub(crate) fn target(&self, manner: Manner) -> usize {
        match manner.patience {
            Patience::None => 1,
            Patience::Enough => self.enough().min(self.cap(manner)),
            Patience::Full | Patience::Brief => self.cap(manner),
        }
    }

    /// The smallest batch size with which the instances keep up with the arrivals, and a tenth more.
    fn enough(&self) -> usize {
        let keeps_up = |size: usize| {
            let takes = self.latency.mean(size) as f64;
            self.instances as f64 * size as f64 >= AHEAD_OF_LOAD * self.per_ns * takes
        };
        (1..self.terms.max_batch_size)
            .find(|size| keeps_up(*size))
            .unwrap_or(self.terms.max_batch_size)
    }

    /// The size from which on larger batches do not pay: a little is not worth the wait, unless all is needed.
    fn largest_that_pays(&self) -> usize {
        let size = self.latency.useful();
        let takes = self.latency.mean(size).max(1) as f64;
        if AHEAD_OF_LOAD * self.per_ns < self.instances as f64 * size as f64 / takes {
            size
        } else {
            self.latency.best()
        }
    }

    /// The smallest batch size with which the most requests are answered in time when more come than can be served one
    /// by one, at this rate and a tenth more.
    ///
    /// With batches of `b` back to back on `m` instances, three things bound what is answered: the executions,
    /// `m b / l(b)`; the arrivals; and those of them that are young enough at the start of an execution to outlast it,
    /// which came within `objective - l(b)` before it.
    fn sustainable(&self) -> usize {
        let objective = self.terms.objective as f64;
        let (rate, instances) = (AHEAD_OF_LOAD * self.per_ns, self.instances.max(1) as f64);
        let answered = |size: usize| {
            let takes = self.latency.mean(size).max(1) as f64;
            let executed = instances * size as f64 / takes;
            let young = instances * rate * (objective - takes).max(0.0) / takes;
            executed.min(young).min(rate)
        };
        let mut sizes = 1..=self.latency.best();
        let best = sizes.clone().map(answered).fold(0.0, f64::max);
        sizes
            .find(|size| answered(*size) >= NEARLY * best)
            .unwrap_or(1)
    }

    /// How many of the first requests have to go so that the next batch can have this size, if so many wait. Smaller
    /// ones would let the backlog grow, and with it the age of the next heads: a spiral.
    fn in_the_way_of(&self, target: usize, line: &impl UrgentQueue) -> usize {
        let mut left = line.inferences();
        if left < target {
            return 0;
        }
        let mut requests = 0;
        for (deadline, size) in line.urgent() {
            let time = deadline.saturating_sub(self.now);
            if self.latency.largest_within(time) >= target.min(left) {
                break;
            }
            requests += 1;
            left -= size;
        }
        requests
    }
}

/// How many of 1, 2, ... `most` there are before this fails, which it then does for all others.
pub(crate) fn count(most: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut holding, mut failing) = (0, most + 1);
    while failing - holding > 1 {
        let middle = usize::midpoint(holding, failing);
        if holds(middle) {
            holding = middle;
        } else {
            failing = middle;
        }
    }
    holding
}

#[cfg(test)]
#[path = "by_deadline_tests.rs"]
mod tests;
