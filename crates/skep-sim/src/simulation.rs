//! The event loop.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use skep_scheduler::{
    Batch, Input, InstanceId, Output, Outputs, Request, RequestId, Scheduler, SchedulerOptions,
};
use skep_types::Time;

use crate::{
    BatchPolicy, RandomPurpose, RandomStream, SimulatedModel, TraceOutcome, own::PolicyQueue,
};

/// The setup of a simulation.
#[derive(Debug, Clone)]
pub struct Setup<'a, S = SchedulerOptions> {
    /// What the scheduler is made with, or what decides instead of it. Its `max_batch_size` lies within the model's
    /// table, and it needs no slots.
    pub scheduler: S,
    /// What it schedules.
    pub model: &'a SimulatedModel,
    /// What an answer must not take longer than to count as good; none where all count.
    pub objective: Option<Duration>,
    /// How many requests come before the first that counts.
    pub warm_up: usize,
    /// The seed of the model's jitter.
    pub seed: u64,
}

/// How requests are sent.
#[derive(Debug, Clone, Copy)]
pub enum Workload<'a> {
    /// Requests arrive at these moments, which ascend, whatever happens to earlier ones.
    Open(&'a [Time]),
    /// Each client sends the next request when it has the answer to its last.
    Closed(Clients),
}

/// Clients that wait for their answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// How many.
    pub count: usize,
    /// Whether all begin at once. Otherwise they begin spread over one execution of a single request, as clients do
    /// that do not know each other. Where a policy waits for more requests, it can decide for ever whether they meet.
    pub together: bool,
    /// How many requests they send in all.
    pub requests: usize,
    /// From an answer to the next request. Even without a pause that comes after the finished instance has taken its
    /// next batch. A client whose request was rejected waits for a millisecond at least.
    pub pause: Duration,
}

/// A client that was rejected would otherwise come back at the same moment, for ever.
const PAUSE_AFTER_REJECT: Duration = Duration::from_millis(1);

/// What runs on an instance.
struct RunningBatch {
    finished: Time,
    duration: Duration,
    requests: Vec<Request<()>>,
}

/// When requests are sent.
enum RequestSource<'a> {
    Open(&'a [Time]),
    Closed {
        clients: Clients,
        /// When each client that is not waiting for an answer sends its next request.
        due: BinaryHeap<Reverse<Time>>,
        sent: Vec<Time>,
    },
}

/// Runs the scheduler on the model until every request is answered or rejected.
///
/// Everything that happens at one moment is applied together. What follows from it at the same moment (a client's next
/// request) is applied after that.
///
/// # Panics
///
/// If the scheduler does not keep its word: a batch on an instance that is busy, a request that never leaves, a
/// time-out that changes nothing.
#[must_use]
pub fn simulate(setup: Setup<'_>, load: Workload<'_>) -> TraceOutcome {
    assert!(
        setup.scheduler.max_batch_size <= setup.model.table.max(),
        "batches lie within the table"
    );
    let scheduler = Scheduler::new(setup.scheduler.clone());
    run(&setup, scheduler, load)
}

/// Runs a policy that is not the scheduler's, in the same way: requests wait in one queue, in the order of their
/// arrival, and the policy says what of them runs whenever an instance is free.
///
/// # Panics
///
/// If the policy runs or gives up no request, or more than there are or fit a batch; waits until a moment that is not
/// ahead; or leaves requests in the queue for ever.
#[must_use]
pub fn simulate_own<P: BatchPolicy + ?Sized>(
    setup: Setup<'_, &mut P>,
    load: Workload<'_>,
) -> TraceOutcome {
    simulate_named(setup, None, load)
}

/// The same with a name for what a panic says.
pub(crate) fn simulate_named<P: BatchPolicy + ?Sized>(
    setup: Setup<'_, &mut P>,
    name: Option<&str>,
    load: Workload<'_>,
) -> TraceOutcome {
    let Setup {
        scheduler,
        model,
        objective,
        warm_up,
        seed,
    } = setup;
    let setup = Setup {
        scheduler: (),
        model,
        objective,
        warm_up,
        seed,
    };
    run(&setup, PolicyQueue::new(scheduler, name, model), load)
}

/// What decides in a simulation.
pub(crate) trait Decides {
    fn handle_all(
        &mut self,
        now: Time,
        inputs: impl IntoIterator<Item = Input<()>>,
        outputs: &mut Outputs<()>,
    );
    fn handle_timeout(&mut self, now: Time, outputs: &mut Outputs<()>);
    fn next_timeout(&self) -> Option<Time>;
    /// The policy's mistake, when this many requests are left and nothing happens any more.
    fn stuck(&self, left: usize) -> String;
    fn recycle(&mut self, requests: Vec<Request<()>>);
}

impl Decides for Scheduler<()> {
    fn handle_all(
        &mut self,
        now: Time,
        inputs: impl IntoIterator<Item = Input<()>>,
        outputs: &mut Outputs<()>,
    ) {
        Self::handle_all(self, now, inputs, outputs);
    }

    fn handle_timeout(&mut self, now: Time, outputs: &mut Outputs<()>) {
        Self::handle_timeout(self, now, outputs);
    }

    fn next_timeout(&self) -> Option<Time> {
        Self::next_timeout(self)
    }

    fn stuck(&self, left: usize) -> String {
        format!("the scheduler leaves {left} requests in its queue for ever")
    }

    fn recycle(&mut self, requests: Vec<Request<()>>) {
        Self::recycle(self, requests);
    }
}

fn run<D: Decides, S>(setup: &Setup<'_, S>, scheduler: D, load: Workload<'_>) -> TraceOutcome {
    let model = setup.model;
    assert!(
        model.request_size <= model.table.max(),
        "requests lie within the table"
    );
    let mut simulation = Simulation {
        now: Time::ZERO,
        scheduler,
        source: RequestSource::new(load, model),
        next: 0,
        running: (0..model.instances).map(|_| None).collect(),
        busy: 0,
        model,
        objective: setup.objective.map_or(u64::MAX, nanos),
        warm_up: setup.warm_up,
        random: RandomStream::new(setup.seed, RandomPurpose::Executions),
        outcome: TraceOutcome::new(model.request_size),
        left: 0,
        inputs: (0..model.instances)
            .map(|index| Input::InstanceReady(InstanceId(index)))
            .collect(),
        outputs: Outputs::new(),
    };
    simulation.step();
    while let Some(moment) = simulation.next_event() {
        simulation.now = moment;
        simulation.collect();
        simulation.step();
    }
    simulation.finish()
}

struct Simulation<'a, D> {
    now: Time,
    scheduler: D,
    source: RequestSource<'a>,
    /// The id of the next request, which is how many were sent.
    next: usize,
    running: Vec<Option<RunningBatch>>,
    /// How many instances run something.
    busy: u32,
    model: &'a SimulatedModel,
    /// In nanoseconds.
    objective: u64,
    warm_up: usize,
    random: RandomStream,
    outcome: TraceOutcome,
    /// How many requests were answered or rejected.
    left: usize,
    inputs: Vec<Input<()>>,
    outputs: Outputs<()>,
}

impl<D: Decides> Simulation<'_, D> {
    /// The next moment at which something happens.
    fn next_event(&self) -> Option<Time> {
        let finished = self.running.iter().flatten().map(|run| run.finished).min();
        let by_itself = [finished, self.scheduler.next_timeout()];
        let sent = self.source.next(self.next);
        // A time-out may lie in the past: then it is due now.
        let next = by_itself.into_iter().flatten().chain(sent).min()?;
        Some(next.max(self.now))
    }

    /// Takes in what happens now.
    fn collect(&mut self) {
        while self.source.next(self.next).is_some_and(|at| at <= self.now) {
            self.source.send();
            self.inputs.push(Input::Enqueue(Request {
                id: RequestId(self.next as u64),
                batch_size: self.model.request_size,
                priority: 0,
                timeout: None,
                payload: (),
            }));
            self.next += 1;
        }
        // Clients that are answered here come back in the next step, even if that is at the same moment.
        for index in 0..self.running.len() {
            let slot = &mut self.running[index];
            let Some(run) = slot.take_if(|run| run.finished <= self.now) else {
                continue;
            };
            self.busy -= 1;
            self.inputs.push(Input::Finished {
                instance: InstanceId(u32::try_from(index).expect("made from one")),
                duration: run.duration,
            });
            for request in &run.requests {
                self.left += 1;
                let id = index_of(request);
                if id >= self.warm_up {
                    let latency = self.now.since(self.source.sent(id));
                    self.outcome.answered(nanos(latency), self.objective);
                }
                self.source.left(self.now, Duration::ZERO);
            }
            self.scheduler.recycle(run.requests);
        }
    }

    /// Lets the scheduler decide, and carries it out.
    fn step(&mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        let idle = self.inputs.is_empty();
        if idle {
            self.scheduler.handle_timeout(self.now, &mut outputs);
        } else {
            let inputs = self.inputs.drain(..);
            self.scheduler.handle_all(self.now, inputs, &mut outputs);
        }
        let stuck = idle && outputs.is_empty();
        assert!(
            !stuck || self.scheduler.next_timeout().is_none_or(|at| at > self.now),
            "the scheduler's time-out at {:?} changes nothing",
            self.now
        );
        for output in outputs.drain(..) {
            match output {
                Output::Dispatch { instance, batch } => self.execute(instance, batch),
                Output::Reject { request, .. } => {
                    self.left += 1;
                    if index_of(&request) >= self.warm_up {
                        self.outcome.rejected += 1;
                    }
                    self.source.left(self.now, PAUSE_AFTER_REJECT);
                }
                Output::WantSlot | Output::ReturnSlot => {
                    unreachable!("the scheduler is made without slots")
                }
            }
        }
        self.outputs = outputs;
    }

    fn execute(&mut self, instance: InstanceId, batch: Batch<()>) {
        let size = batch.size();
        let overlap = 1.0 + self.model.stretch * f64::from(self.busy);
        let mut duration = self.model.table.latency(size);
        let factor = overlap * self.model.jitter.factor(&mut self.random);
        // What is exact stays so.
        if factor.to_bits() != 1f64.to_bits() {
            duration = duration.mul_f64(factor);
        }
        if index_of(&batch.requests[0]) >= self.warm_up {
            self.outcome.batch(batch.requests.len(), batch.end);
        }
        let slot = &mut self.running[instance.0 as usize];
        assert!(slot.is_none(), "{instance:?} is busy");
        *slot = Some(RunningBatch {
            finished: self.now + duration,
            duration,
            requests: batch.requests,
        });
        self.busy += 1;
    }

    fn finish(mut self) -> TraceOutcome {
        let left = self.next - self.left;
        assert!(left == 0, "{}", self.scheduler.stuck(left));
        self.outcome.sent = self.next.saturating_sub(self.warm_up);
        let begin = match self.warm_up {
            0 => Time::ZERO,
            warm_up => self.source.sent(warm_up.min(self.next) - 1),
        };
        let end = match self.source {
            // Which lasts as long for every policy.
            RequestSource::Open(moments) => moments.last().copied().unwrap_or(begin),
            RequestSource::Closed { .. } => self.now,
        };
        self.outcome.finish(end.since(begin));
        self.outcome
    }
}

impl<'a> RequestSource<'a> {
    fn new(load: Workload<'a>, model: &SimulatedModel) -> Self {
        match load {
            Workload::Open(moments) => Self::Open(moments),
            Workload::Closed(clients) => {
                let whole = model.table.latency(model.request_size);
                let begin = |index: usize| {
                    let share = if clients.together {
                        0.0
                    } else {
                        index as f64 / clients.count as f64
                    };
                    Reverse(Time::ZERO + whole.mul_f64(share))
                };
                Self::Closed {
                    clients,
                    due: (0..clients.count).map(begin).collect(),
                    sent: Vec::with_capacity(clients.requests),
                }
            }
        }
    }

    /// When the request with this index is sent, as far as is known by now.
    fn next(&self, index: usize) -> Option<Time> {
        match self {
            Self::Open(moments) => moments.get(index).copied(),
            Self::Closed { clients, due, .. } if index < clients.requests => {
                due.peek().map(|Reverse(at)| *at)
            }
            Self::Closed { .. } => None,
        }
    }

    /// The next request is sent.
    fn send(&mut self) {
        if let Self::Closed { due, sent, .. } = self {
            sent.extend(due.pop().map(|Reverse(at)| at));
        }
    }

    /// When a request was sent.
    fn sent(&self, index: usize) -> Time {
        match self {
            Self::Open(moments) => moments[index],
            Self::Closed { sent, .. } => sent[index],
        }
    }

    /// A client has its answer, and comes back after its pause, or this one if that is longer.
    fn left(&mut self, now: Time, pause: Duration) {
        if let Self::Closed { clients, due, .. } = self {
            due.push(Reverse(now + pause.max(clients.pause)));
        }
    }
}

/// Requests are numbered as they are sent.
fn index_of(request: &Request<()>) -> usize {
    usize::try_from(request.id.0).expect("made from one")
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
