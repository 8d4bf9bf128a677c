//! An instance: a scheduler, and the batches that it runs.

use std::{rc::Rc, time::Duration};

use skep_placer::selection::Configuration;
use skep_scheduler::{
    Input, InstanceId, Objective, ObjectivePolicy, Outputs, Payload, Percentile, Policy, Request,
    RequestId, Scheduler, SchedulerOptions, TimeoutAction, TritonPolicy,
};
use skep_types::Time;

use super::{
    nodes::InstanceSize,
    platform::{Batching, PlatformRules},
    times::ExecutionTimes,
};
use crate::contender::options;

/// A request, by its place in the list of those that are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JourneyId(pub(super) u32);

impl Payload for JourneyId {
    fn joins(&self, _: &Self) -> bool {
        true
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Ready,
    /// It gets no new requests, and goes when it has answered those that it has.
    Leaving,
}

/// What runs in one of an instance's places.
pub(super) struct InstanceRun {
    pub(super) duration: Duration,
    pub(super) requests: Vec<Request<JourneyId>>,
}

pub(super) struct ClusterInstance {
    pub(super) model: usize,
    pub(super) node: usize,
    pub(super) size: InstanceSize,
    /// Requests a second.
    pub(super) throughput: f64,
    /// Requests that run at once.
    pub(super) places: usize,
    pub(super) phase: Phase,
    pub(super) scheduler: Scheduler<JourneyId>,
    pub(super) runs: Vec<Option<InstanceRun>>,
    pub(super) busy: usize,
    /// Requests that wait or run here.
    pub(super) outstanding: usize,
    /// The time-out for which there is an event.
    pub(super) timeout: Option<Time>,
    pub(super) last_used: Time,
    pub(super) times: Rc<ExecutionTimes>,
}

impl ClusterInstance {
    pub(super) fn new(
        rules: &PlatformRules,
        (model, objective): (usize, Duration),
        configuration: &Configuration,
        times: &Rc<ExecutionTimes>,
        (node, size): (usize, InstanceSize),
        now: Time,
    ) -> Self {
        let concurrency = configuration.concurrency as usize;
        Self {
            model,
            node,
            size,
            throughput: configuration.throughput(),
            places: concurrency * configuration.batch as usize,
            phase: Phase::Starting,
            scheduler: Scheduler::new(scheduler(rules, objective, configuration, times)),
            runs: (0..concurrency).map(|_| None).collect(),
            busy: 0,
            outstanding: 0,
            timeout: None,
            last_used: now,
            times: Rc::clone(times),
        }
    }

    /// It has started: its places are free.
    pub(super) fn ready(&mut self, now: Time, outputs: &mut Outputs<JourneyId>) {
        self.phase = Phase::Ready;
        let places = 0..u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        let inputs = places.map(|place| Input::InstanceReady(InstanceId(place)));
        self.scheduler.handle_all(now, inputs, outputs);
    }

    pub(super) fn enqueue(
        &mut self,
        now: Time,
        id: u64,
        ticket: JourneyId,
        outputs: &mut Outputs<JourneyId>,
    ) {
        self.outstanding += 1;
        self.last_used = now;
        let request = Request {
            id: RequestId(id),
            batch_size: 1,
            priority: 0,
            timeout: None,
            payload: ticket,
        };
        self.scheduler.handle(now, Input::Enqueue(request), outputs);
    }

    /// How much it has to do, in seconds: the measure by which a request finds the least loaded.
    pub(super) fn load(&self) -> f64 {
        (self.outstanding + 1) as f64 / self.throughput
    }
}

fn scheduler(
    rules: &PlatformRules,
    objective: Duration,
    configuration: &Configuration,
    times: &ExecutionTimes,
) -> SchedulerOptions {
    let most = configuration.batch as usize;
    let concurrency = configuration.concurrency as usize;
    let policy = match rules.batching {
        Batching::Timer if most == 1 => Policy::OneByOne,
        Batching::Timer => Policy::Triton(TritonPolicy {
            preferred_batch_sizes: Vec::new(),
            max_queue_delay: objective / 2,
        }),
        Batching::Deadlines => Policy::Objective(Objective {
            latency: objective,
            policy: ObjectivePolicy::Auto,
            // What is late in one stage can be in time in the end.
            miss_action: TimeoutAction::Delay,
            percentile: Percentile::default(),
            margin: Duration::ZERO,
            profile: (1..=most)
                .map(|size| (size, times.of_run(concurrency, size)))
                .collect(),
        }),
    };
    options(policy, most)
}
