//! Batching under a latency objective.
//!
//! A request's *deadline* is its arrival and the objective, or its own time-out if that is shorter, less a margin. What
//! an execution takes, `l(b)`, is learned (`latency.rs`). Requests are served by priority, within a level by deadline
//! (`edf`, `deferred`, `auto`) or arrival (`aimd`, `quantile`). A request that would be late even alone is given up.
//!
//! `edf`, `deferred` and `auto` decide alike (`by_deadline.rs`) but in their *manner*:
//!
//! | | waits for more | until | at most |
//! |---|---|---|---|
//! | `edf` | never | | the maximum |
//! | `deferred` | up to the maximum | one more would make the most urgent late | the maximum |
//! | `auto` | up to the smallest size with which the instances keep up with the arrivals | likewise | the smallest size that takes, an inference, hardly longer than the best |
//!
//! Now and then `auto` tries one more than that, since what is never executed is never known better.
//!
//! That is how it begins. Where instances get busy, it rehearses several manners on the requests that arrive, and takes
//! the one that answers the most in time (`rehearsal.rs`).

use std::time::Duration;

use skep_types::Time;

use crate::{
    BatchEnd, Objective, ObjectivePolicy,
    instances::Instances,
    latency::LatencyModel,
    policy::{
        Verdict,
        ahead::LookAhead,
        by_deadline::{DecisionContext, Manner, ObjectiveTerms, Patience, UrgentQueue},
        cap::{Aimd, Quantile},
        rate::ArrivalRate,
        rehearsal::{LiveState, Rehearsal},
    },
    prefix::{Prefix, PrefixEnd},
    snapshot::profile_sizes,
    waiting::{WaitQueue, WaitingRequest},
};

const EDF: Manner = Manner {
    patience: Patience::None,
    thrifty: false,
    strict: false,
    price_percent: 0,
    plain: false,
};

const DEFERRED: Manner = Manner {
    patience: Patience::Full,
    ..EDF
};

/// Of so many executions one may have an inference more than seems to pay.
const PROBE_EVERY: u64 = 32;

/// A policy at work.
#[derive(Debug)]
pub(crate) struct ObjectiveEngine {
    objective: Objective,
    terms: ObjectiveTerms,
    latency: LatencyModel,
    rule: BatchRule,
    ahead: LookAhead,
    /// How many executions have finished.
    executions: u64,
}

/// What makes the policies differ.
#[derive(Debug)]
enum BatchRule {
    Aimd(Aimd),
    Quantile(Quantile),
    Edf,
    Deferred,
    Auto(Box<AutoState>),
}

#[derive(Debug)]
struct AutoState {
    rate: ArrivalRate,
    rehearsal: Rehearsal,
}

impl ObjectiveEngine {
    pub(crate) fn new(objective: Objective, max_batch_size: usize) -> Self {
        let rule = match objective.policy {
            ObjectivePolicy::Aimd => BatchRule::Aimd(Aimd::new()),
            ObjectivePolicy::Quantile => BatchRule::Quantile(Quantile::new(objective.percentile)),
            ObjectivePolicy::Edf => BatchRule::Edf,
            ObjectivePolicy::Deferred => BatchRule::Deferred,
            ObjectivePolicy::Auto => BatchRule::Auto(Box::new(AutoState {
                rate: ArrivalRate::new(objective.latency, 10 * objective.latency),
                rehearsal: Rehearsal::new(),
            })),
        };
        Self {
            latency: LatencyModel::new(max_batch_size, &objective.profile, objective.percentile),
            terms: ObjectiveTerms {
                max_batch_size,
                objective: nanos(objective.latency.saturating_sub(objective.margin)),
                margin: nanos(objective.margin),
            },
            objective,
            rule,
            ahead: LookAhead::default(),
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
            BatchRule::Aimd(_) | BatchRule::Quantile(_) => Time::ZERO,
            BatchRule::Edf | BatchRule::Deferred | BatchRule::Auto(_) => deadline,
        }
    }

    /// A request with this deadline arrives. `oldest` is the arrival of the one that waits for longest.
    pub(crate) fn arrived(
        &mut self,
        now: Time,
        deadline: Time,
        inferences: usize,
        instances: &Instances,
        oldest: Option<Time>,
    ) {
        let BatchRule::Auto(auto) = &mut self.rule else {
            return;
        };
        let AutoState { rate, rehearsal } = auto.as_mut();
        rate.arrived(now, inferences);
        let context = DecisionContext {
            now: now.as_nanos(),
            terms: self.terms,
            latency: &self.latency,
            instances: instances.len(),
            per_ns: rate.per_ns(now),
            earned_per_ns: rehearsal.earned_per_ns(),
            probes: false,
        };
        let live = LiveState {
            oldest: oldest.map(Time::as_nanos),
            busy: ends(instances, &self.latency),
        };
        rehearsal.arrived(deadline.as_nanos(), inferences, rate, context, live);
    }

    /// Learns from an execution outside of serving.
    pub(crate) fn measured(&mut self, size: usize, took: Duration) {
        self.latency.measured(size, took);
    }

    /// Learns from an execution.
    pub(crate) fn finished(&mut self, size: usize, took: Duration) {
        self.executions += 1;
        self.latency.learn(size, took);
        let (objective, max) = (self.objective.latency, self.terms.max_batch_size);
        match &mut self.rule {
            BatchRule::Aimd(aimd) => aimd.learn(size, took, objective, max),
            BatchRule::Quantile(quantile) => quantile.learn(size, took, objective, max),
            BatchRule::Auto(_) | BatchRule::Edf | BatchRule::Deferred => {}
        }
    }

    /// From when on a request is not worth an execution any more: where deadlines decide, when it would be late even if
    /// it ran alone at once; otherwise when it is late. Waits without an end are not asked for.
    pub(crate) fn gives_up_at<P>(&self, waiter: &WaitingRequest<P>) -> Time {
        let deadline = waiter.expires.unwrap_or(waiter.since);
        match self.rule {
            BatchRule::Aimd(_) | BatchRule::Quantile(_) => deadline,
            BatchRule::Edf | BatchRule::Deferred | BatchRule::Auto(_) => {
                // A request that cannot be in time is still tried if an instance is free. Otherwise the estimate of one
                // slow execution, a cold start, would refuse every request that could correct it.
                let takes = self.latency.luckiest(waiter.request.batch_size);
                let takes = takes.min(self.terms.objective);
                // The margin is for the unforeseen, such as a late timer. An execution that ends exactly at the
                // deadline is in time.
                let latest = deadline.as_nanos().saturating_add(self.terms.margin);
                Time::from_nanos(latest.saturating_sub(takes).saturating_add(1))
            }
        }
    }

    /// What to do with the scanned requests, of which there is at least one, and none to be given up.
    pub(crate) fn decide<P>(
        &mut self,
        now: Time,
        prefix: &Prefix,
        waiting: &WaitQueue<P>,
        instances: &Instances,
        hurried: bool,
    ) -> Verdict {
        match &self.rule {
            BatchRule::Aimd(_) | BatchRule::Quantile(_) => {
                self.capped(prefix, self.cap(now, instances))
            }
            BatchRule::Edf | BatchRule::Deferred | BatchRule::Auto(_) => {
                let mut ahead = std::mem::take(&mut self.ahead);
                let verdict =
                    self.by_deadline(now, prefix, waiting, instances, hurried, &mut ahead);
                self.ahead = ahead;
                verdict
            }
        }
    }

    /// All that waits, up to the cap.
    fn capped(&self, prefix: &Prefix, cap: usize) -> Verdict {
        let steps = prefix.steps();
        let requests = steps.partition_point(|step| step.size <= cap).max(1);
        let end = if requests < steps.len() || steps[requests - 1].size >= cap {
            if cap >= self.terms.max_batch_size {
                BatchEnd::MaxBatchSize
            } else {
                BatchEnd::Cap
            }
        } else {
            end_of(prefix)
        };
        Verdict::Send { requests, end }
    }

    fn by_deadline<P>(
        &self,
        now: Time,
        prefix: &Prefix,
        waiting: &WaitQueue<P>,
        instances: &Instances,
        hurried: bool,
        ahead: &mut LookAhead,
    ) -> Verdict {
        let (context, manner) = (self.context(now, instances), self.manner());
        let line = QueueHead {
            prefix,
            waiting,
            hurried,
        };
        let busy = ends(instances, &self.latency).map(|end| end.max(context.now));
        let idle = instances.runs().filter(Option::is_none).count();
        let free = busy.chain(std::iter::repeat_n(context.now, idle.saturating_sub(1)));
        context.decide(manner, &line, free, ahead)
    }

    fn manner(&self) -> Manner {
        match &self.rule {
            BatchRule::Auto(auto) => auto.rehearsal.manner(),
            BatchRule::Deferred => DEFERRED,
            BatchRule::Edf | BatchRule::Aimd(_) | BatchRule::Quantile(_) => EDF,
        }
    }

    fn context(&self, now: Time, instances: &Instances) -> DecisionContext<'_> {
        DecisionContext {
            now: now.as_nanos(),
            terms: self.terms,
            latency: &self.latency,
            instances: instances.len(),
            per_ns: match &self.rule {
                BatchRule::Auto(auto) => auto.rate.per_ns(now),
                _ => 0.0,
            },
            earned_per_ns: match &self.rule {
                BatchRule::Auto(auto) => auto.rehearsal.earned_per_ns(),
                _ => 0.0,
            },
            probes: self.executions % PROBE_EVERY == PROBE_EVERY - 1,
        }
    }

    /// The largest batch that is formed now.
    pub(crate) fn cap(&self, now: Time, instances: &Instances) -> usize {
        match &self.rule {
            BatchRule::Aimd(aimd) => aimd.cap(),
            BatchRule::Quantile(quantile) => quantile.cap(),
            _ => self.context(now, instances).cap(self.manner()),
        }
    }

    /// The size up to which a free instance waits for more.
    pub(crate) fn target(&self, now: Time, instances: &Instances) -> usize {
        self.context(now, instances).target(self.manner())
    }

    /// Inferences that arrive a second, where that is measured.
    pub(crate) fn arrivals_per_s(&self, now: Time) -> Option<f64> {
        match &self.rule {
            BatchRule::Auto(auto) => Some(auto.rate.per_ns(now) * 1e9),
            BatchRule::Aimd(_) | BatchRule::Quantile(_) | BatchRule::Edf | BatchRule::Deferred => {
                None
            }
        }
    }

    /// What executions of some batch sizes are thought to take; none while none was seen.
    pub(crate) fn latencies(&self) -> Vec<(usize, Duration)> {
        let known = |size| (size, Duration::from_nanos(self.latency.planned(size)));
        let latencies = profile_sizes(self.terms.max_batch_size).map(known);
        latencies.filter(|(_, took)| !took.is_zero()).collect()
    }

    pub(crate) fn objective(&self) -> &Objective {
        &self.objective
    }
}

/// When the busy instances will be free, in nanoseconds.
fn ends(instances: &Instances, latency: &LatencyModel) -> impl Iterator<Item = u64> + Clone {
    let runs = instances.runs().flatten();
    runs.map(|run| run.since.as_nanos() + latency.mean(run.size))
}

/// Why a batch of all that was scanned is not larger.
fn end_of(prefix: &Prefix) -> BatchEnd {
    match prefix.stop() {
        Some(PrefixEnd::Full) => BatchEnd::MaxBatchSize,
        Some(PrefixEnd::Shape) => BatchEnd::ShapeChange,
        None => BatchEnd::QueueEmpty,
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The head of the queue.
struct QueueHead<'a, P> {
    prefix: &'a Prefix,
    waiting: &'a WaitQueue<P>,
    hurried: bool,
}

impl<P> UrgentQueue for QueueHead<'_, P> {
    fn joined(&self) -> usize {
        self.prefix.steps().len()
    }

    fn size(&self, requests: usize) -> usize {
        self.prefix.steps()[requests - 1].size
    }

    fn deadline(&self, requests: usize) -> Option<u64> {
        let expires = self.prefix.steps()[requests - 1].expires;
        expires.map(Time::as_nanos)
    }

    fn may_grow(&self) -> bool {
        // What is late already is not held back as well.
        let overstayed = self
            .prefix
            .steps()
            .last()
            .is_some_and(|step| step.overstayed);
        self.prefix.stop().is_none() && !self.hurried && !overstayed
    }

    fn end(&self) -> BatchEnd {
        end_of(self.prefix)
    }

    fn inferences(&self) -> usize {
        self.waiting.inferences()
    }

    /// No level gives anything up for a lower one.
    fn urgent(&self) -> impl Iterator<Item = (u64, usize)> {
        let lane = self.waiting.get(self.prefix.steps()[0].position).lane();
        self.waiting.iter().map_while(move |waiter| {
            let deadline = waiter.expires.filter(|_| waiter.lane() == lane)?;
            Some((deadline.as_nanos(), waiter.request.batch_size))
        })
    }
}
