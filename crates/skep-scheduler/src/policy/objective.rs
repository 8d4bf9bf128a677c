//! Batching under a latency objective.
//!
//! A request's *deadline* is its arrival and the objective, or its own time-out if that is shorter, less a margin. What
//! an execution takes, `l(b)`, is learned (`latency.rs`). Requests are served by priority, within a level by deadline
//! (`edf`, `deferred`, `auto`) or arrival (`aimd`, `quantile`). A request that would be late even alone is given up.
//!
//! `edf`, `deferred` and `auto` differ in how long they wait and in how large they let a batch become:
//!
//! | | waits for more | until | at most |
//! |---|---|---|---|
//! | `edf` | never | | the maximum |
//! | `deferred` | up to the maximum | one more would make the most urgent late | the maximum |
//! | `auto` | up to the smallest size with which the instances keep up with the arrivals | likewise | the smallest size that takes, an inference, hardly longer than the best |
//!
//! So `auto` is `edf` at low load, `deferred` near saturation, and runs one by one what does not gain by batching (now and
//! then it tries one more than that, since what is never executed is never known better). When
//! the most urgent request's deadline keeps others out of its batch, all three look ahead (`ahead.rs`) whether it is
//! worth that, within its level. `auto` also drops what keeps a batch below the size that the load needs: the backlog
//! that a look ahead sees ends, the arrivals do not.

use std::time::Duration;

use skep_types::Time;

use crate::{
    BatchEnd, Objective, ObjectivePolicy,
    instances::Instances,
    latency::LatencyModel,
    policy::{
        Verdict,
        ahead::Ahead,
        cap::{Aimd, Quantile},
        rate::ArrivalRate,
    },
    prefix::{Prefix, Stop},
    snapshot::profile_sizes,
    waiting::{Lane, Waiter, Waiting},
};

/// How much faster than they arrive `auto` wants to serve requests: what a rate is uncertain by.
const AHEAD_OF_LOAD: f64 = 1.1;

/// Requests over which the share of those given up is averaged.
const REMEMBERED: f64 = 64.0;

/// The share from which on `auto` rather makes all wait longer.
const MANY_GIVEN_UP: f64 = 0.05;

/// Of so many executions one may have an inference more than seems to pay.
const PROBE_EVERY: u64 = 32;

/// What counts as just as good: a smaller batch is worth as much.
const NEARLY: f64 = 0.995;

/// A policy at work.
#[derive(Debug)]
pub(crate) struct Engine {
    objective: Objective,
    max_batch_size: usize,
    latency: LatencyModel,
    rule: Rule,
    ahead: Ahead,
    /// The share of the last requests that were given up; a request counts for as much as the [`REMEMBERED`] after it.
    given_up: f64,
    /// How many executions have finished.
    executions: u64,
}

/// What makes the policies differ.
#[derive(Debug)]
enum Rule {
    Aimd(Aimd),
    Quantile(Quantile),
    Edf,
    Deferred,
    Auto(ArrivalRate),
}

impl Engine {
    pub(crate) fn new(objective: Objective, max_batch_size: usize) -> Self {
        let rule = match objective.policy {
            ObjectivePolicy::Aimd => Rule::Aimd(Aimd::new()),
            ObjectivePolicy::Quantile => Rule::Quantile(Quantile::new()),
            ObjectivePolicy::Edf => Rule::Edf,
            ObjectivePolicy::Deferred => Rule::Deferred,
            ObjectivePolicy::Auto => {
                Rule::Auto(ArrivalRate::new(objective.latency, 10 * objective.latency))
            }
        };
        Self {
            latency: LatencyModel::new(max_batch_size, &objective.profile),
            objective,
            max_batch_size,
            rule,
            ahead: Ahead::default(),
            given_up: 0.0,
            executions: 0,
        }
    }

    /// When a request that arrives now has to be answered.
    pub(crate) fn deadline(
        &self,
        now: Time,
        level: Option<Duration>,
        own: Option<Duration>,
    ) -> Time {
        let bounds = level.into_iter().chain(own);
        let latency = bounds.fold(self.objective.latency, Duration::min);
        now + latency.saturating_sub(self.objective.margin)
    }

    /// What orders the requests of a level.
    pub(crate) fn urgency(&self, deadline: Time) -> Time {
        match self.rule {
            Rule::Aimd(_) | Rule::Quantile(_) => Time::ZERO,
            Rule::Edf | Rule::Deferred | Rule::Auto(_) => deadline,
        }
    }

    pub(crate) fn arrived(&mut self, now: Time, inferences: usize) {
        if let Rule::Auto(rate) = &mut self.rule {
            rate.arrived(now, inferences);
        }
    }

    /// Learns from an execution that served nobody.
    pub(crate) fn measured(&mut self, size: usize, took: Duration) {
        self.latency.measured(size, took);
    }

    /// Learns from an execution.
    pub(crate) fn finished(&mut self, size: usize, took: Duration) {
        self.executions += 1;
        self.latency.learn(size, took);
        let (objective, max) = (self.objective.latency, self.max_batch_size);
        match &mut self.rule {
            Rule::Aimd(aimd) => aimd.learn(size, took, objective, max),
            Rule::Quantile(quantile) => quantile.learn(size, took, objective, max),
            Rule::Edf | Rule::Deferred | Rule::Auto(_) => {}
        }
    }

    /// A request was given up.
    pub(crate) fn gave_up(&mut self) {
        self.given_up += (1.0 - self.given_up) / REMEMBERED;
    }

    /// A request was sent to an instance.
    pub(crate) fn sent(&mut self) {
        self.given_up -= self.given_up / REMEMBERED;
    }

    fn margin_ns(&self) -> u64 {
        u64::try_from(self.objective.margin.as_nanos()).unwrap_or(u64::MAX)
    }

    /// From when on a request is not worth an execution any more: where deadlines decide, when it would be late even if
    /// it ran alone at once; otherwise when it is late. Waits without an end are not asked for.
    pub(crate) fn gives_up_at<P>(&self, waiter: &Waiter<P>) -> Time {
        let deadline = waiter.expires.unwrap_or(waiter.since);
        match self.rule {
            Rule::Aimd(_) | Rule::Quantile(_) => deadline,
            Rule::Edf | Rule::Deferred | Rule::Auto(_) => {
                // What nothing keeps is still tried where an instance is free: an estimate of one slow execution, a cold
                // start, would otherwise refuse all that could correct it.
                let whole = self.objective.latency.saturating_sub(self.objective.margin);
                let whole = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
                let takes = self.latency.of(waiter.request.batch_size).min(whole);
                // The margin is for what nobody foresees, a timer that is late among it; and one that would end at its very
                // deadline is in time.
                let latest = deadline.as_nanos().saturating_add(self.margin_ns());
                Time::from_nanos(latest.saturating_sub(takes).saturating_add(1))
            }
        }
    }

    /// What to do with the scanned requests, of which there is at least one, and none to be given up.
    pub(crate) fn decide<P>(
        &mut self,
        now: Time,
        prefix: &Prefix,
        waiting: &Waiting<P>,
        instances: &Instances,
        hurried: bool,
    ) -> Verdict {
        match &self.rule {
            Rule::Aimd(_) | Rule::Quantile(_) => self.capped(prefix, self.cap(now, instances)),
            Rule::Edf | Rule::Deferred | Rule::Auto(_) => {
                self.by_deadline(now, prefix, waiting, instances, hurried)
            }
        }
    }

    /// All that waits, up to the cap.
    fn capped(&self, prefix: &Prefix, cap: usize) -> Verdict {
        let steps = prefix.steps();
        let requests = steps.partition_point(|step| step.size <= cap).max(1);
        let end = if requests < steps.len() || steps[requests - 1].size >= cap {
            if cap >= self.max_batch_size {
                BatchEnd::MaxBatchSize
            } else {
                BatchEnd::Cap
            }
        } else {
            self.end_of(prefix)
        };
        Verdict::Send { requests, end }
    }

    fn by_deadline<P>(
        &mut self,
        now: Time,
        prefix: &Prefix,
        waiting: &Waiting<P>,
        instances: &Instances,
        hurried: bool,
    ) -> Verdict {
        let now_ns = now.as_nanos();
        let cap = self.cap(now, instances) + usize::from(self.probes());
        let all = prefix.steps();
        let steps = &all[..all.partition_point(|step| step.size <= cap).max(1)];
        let fits = |margin_ns: u64| {
            (1..=steps.len()).rev().find(|requests| {
                let step = steps[*requests - 1];
                let ends = now_ns + self.latency.of(step.size);
                step.expires
                    .is_none_or(|deadline| ends <= deadline.as_nanos().saturating_add(margin_ns))
            })
        };
        let Some(requests) = fits(0) else {
            // The most urgent one is within its margin: it is tried at once.
            let requests = fits(self.margin_ns()).unwrap_or(1);
            let end = if requests < all.len() {
                BatchEnd::Deadline
            } else {
                self.end_of(prefix)
            };
            return Verdict::Send { requests, end };
        };
        if requests < steps.len() {
            // The most urgent one's deadline keeps others out: is it worth that?
            let others = instances.runs().filter_map(|run| {
                run.map(|run| {
                    let ends = run.since.as_nanos() + self.latency.of(run.size);
                    ends.max(now_ns)
                })
            });
            let idle = instances.runs().filter(Option::is_none).count();
            let free = others.chain(std::iter::repeat_n(now_ns, idle.saturating_sub(1)));
            // No level gives anything up for a lower one.
            let lane = waiting.get(steps[0].place).lane();
            let urgent = waiting.iter().map_while(|waiter| {
                let deadline = waiter.expires.filter(|_| waiter.lane() == lane)?;
                Some((deadline.as_nanos(), waiter.request.batch_size))
            });
            let dropped =
                self.ahead
                    .early_drop(now_ns, &self.latency, self.max_batch_size, urgent, free);
            let sustained = match &self.rule {
                Rule::Auto(rate) => {
                    let target = self.sustainable(rate.per_ns(now), instances.len());
                    self.in_the_way_of(target, now_ns, waiting, lane)
                }
                _ => 0,
            };
            let dropped = dropped.max(sustained);
            if dropped > 0 {
                return Verdict::Drop { requests: dropped };
            }
            return Verdict::Send {
                requests,
                end: BatchEnd::Deadline,
            };
        }
        if steps.len() < all.len() {
            return Verdict::Send {
                requests,
                end: BatchEnd::Cap,
            };
        }
        let last = steps[requests - 1];
        if prefix.stop().is_none()
            && !hurried
            // What is late already is not held back as well.
            && !last.overstayed
            && let Some(deadline) = last.expires
        {
            // Until then one more could still join; whoever waits is woken a little late.
            let frontrun = deadline
                .as_nanos()
                .saturating_sub(self.latency.of(last.size + 1))
                .saturating_sub(self.margin_ns());
            if last.size < self.target(now, instances) && now_ns < frontrun {
                return Verdict::Wait(Time::from_nanos(frontrun));
            }
        }
        Verdict::Send {
            requests,
            end: self.end_of(prefix),
        }
    }

    /// The largest batch that is formed now.
    pub(crate) fn cap(&self, now: Time, instances: &Instances) -> usize {
        match &self.rule {
            Rule::Aimd(aimd) => aimd.cap(),
            Rule::Quantile(quantile) => quantile.cap(),
            Rule::Edf | Rule::Deferred => self.max_batch_size,
            // Where larger batches do not pay, the rest is left for the next execution.
            Rule::Auto(rate) => self.largest_that_pays(rate.per_ns(now), instances),
        }
    }

    /// The size up to which a free instance waits for more.
    pub(crate) fn target(&self, now: Time, instances: &Instances) -> usize {
        match &self.rule {
            Rule::Aimd(_) | Rule::Quantile(_) | Rule::Edf => 1,
            Rule::Deferred => self.max_batch_size,
            Rule::Auto(rate) => {
                let cap = self.cap(now, instances);
                // Where requests are given up though there is room, they come in bursts, and a batch that begins with the
                // first of a burst makes the others late.
                if self.given_up > MANY_GIVEN_UP
                    && rate.long_run_per_ns(now) < self.capacity(instances) / 2.0
                {
                    return cap;
                }
                self.enough(rate.per_ns(now), instances.len()).min(cap)
            }
        }
    }

    /// Whether the next batch may be larger by one than seems to pay. Executions of such sizes that were slow once, at
    /// loading or when the device was busy with something else, would otherwise be the last ones, and nothing would
    /// correct what was learned of them.
    fn probes(&self) -> bool {
        self.executions % PROBE_EVERY == PROBE_EVERY - 1
    }

    /// Inferences that arrive a second, where that is measured.
    pub(crate) fn arrivals_per_s(&self, now: Time) -> Option<f64> {
        match &self.rule {
            Rule::Auto(rate) => Some(rate.per_ns(now) * 1e9),
            Rule::Aimd(_) | Rule::Quantile(_) | Rule::Edf | Rule::Deferred => None,
        }
    }

    /// What executions of some batch sizes are thought to take; none while none was seen.
    pub(crate) fn latencies(&self) -> Vec<(usize, Duration)> {
        let known = |size| (size, Duration::from_nanos(self.latency.of(size)));
        let latencies = profile_sizes(self.max_batch_size).map(known);
        latencies.filter(|(_, took)| !took.is_zero()).collect()
    }

    pub(crate) fn objective(&self) -> &Objective {
        &self.objective
    }

    /// The smallest batch size with which the most requests are answered in time when more come than can be served one
    /// by one, at this rate and a tenth more.
    ///
    /// With batches of `b` back to back on `m` instances, three things bound what is answered: the executions,
    /// `m b / l(b)`; the arrivals; and those of them that are young enough at the start of an execution to outlast it,
    /// which came within `objective - l(b)` before it.
    fn sustainable(&self, per_ns: f64, instances: usize) -> usize {
        let objective = self.objective.latency.saturating_sub(self.objective.margin);
        let objective = objective.as_nanos() as f64;
        let (rate, instances) = (AHEAD_OF_LOAD * per_ns, instances.max(1) as f64);
        let answered = |size: usize| {
            let takes = self.latency.of(size).max(1) as f64;
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
    fn in_the_way_of<P>(
        &self,
        target: usize,
        now_ns: u64,
        waiting: &Waiting<P>,
        lane: Lane,
    ) -> usize {
        let mut left = waiting.inferences();
        if left < target {
            return 0;
        }
        let mut requests = 0;
        for waiter in waiting.iter().take_while(|waiter| waiter.lane() == lane) {
            let Some(deadline) = waiter.expires else {
                break;
            };
            let time = deadline.as_nanos().saturating_sub(now_ns);
            if self.latency.largest_within(time) >= target.min(left) {
                break;
            }
            requests += 1;
            left -= waiter.request.batch_size;
        }
        requests
    }

    /// Inferences a nanosecond with batches of the size that pays.
    fn capacity(&self, instances: &Instances) -> f64 {
        let size = self.latency.useful();
        instances.len() as f64 * size as f64 / self.latency.of(size).max(1) as f64
    }

    /// The size from which on larger batches do not pay: a little is not worth the wait, unless all is needed.
    fn largest_that_pays(&self, per_ns: f64, instances: &Instances) -> usize {
        if AHEAD_OF_LOAD * per_ns < self.capacity(instances) {
            self.latency.useful()
        } else {
            self.latency.best()
        }
    }

    /// The smallest batch size with which the instances keep up with this rate, and a tenth more.
    fn enough(&self, per_ns: f64, instances: usize) -> usize {
        let keeps_up = |size: usize| {
            let takes = self.latency.of(size) as f64;
            instances as f64 * size as f64 >= AHEAD_OF_LOAD * per_ns * takes
        };
        (1..self.max_batch_size)
            .find(|size| keeps_up(*size))
            .unwrap_or(self.max_batch_size)
    }

    /// Why a batch of all that was scanned is not larger.
    fn end_of(&self, prefix: &Prefix) -> BatchEnd {
        match prefix.stop() {
            Some(Stop::Full) => BatchEnd::MaxBatchSize,
            Some(Stop::Shape) => BatchEnd::ShapeChange,
            None => BatchEnd::QueueEmpty,
        }
    }
}
