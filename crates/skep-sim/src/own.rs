//! Policies of users beside the scheduler's: a trait for them, and the queue that they decide about.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use skep_scheduler::{Batch, BatchEnd, Input, InstanceId, Output, Outputs, RejectReason, Request};
use skep_types::Time;

use crate::{SimulatedModel, simulation::Decides};

/// A batching policy decides what a free instance does. It has no clock and no randomness but what it is made with, so
/// that equal seeds give equal outcomes.
pub trait BatchPolicy {
    /// Decides about the waiting requests. The policy is asked when an instance is free and a request waits: at
    /// arrivals, at the ends of executions, at the moment until which it waits, and again after each batch and each
    /// request given up.
    fn decide(&mut self, waiting: &WaitingRequests<'_>) -> Decision;

    /// An execution of this many inferences took this long.
    fn finished(&mut self, inferences: usize, took: Duration) {
        let _ = (inferences, took);
    }
}

/// The waiting requests at one moment.
#[derive(Debug, Clone, Copy)]
pub struct WaitingRequests<'a> {
    /// The moment.
    pub now: Time,
    /// When the waiting requests arrived, ascending; at least one.
    pub arrivals: &'a [Time],
    /// How many instances are free, at least 1.
    pub idle: usize,
    /// How many requests fit a batch.
    pub most: usize,
}

impl WaitingRequests<'_> {
    /// How many requests a batch can have now.
    #[must_use]
    pub fn available(&self) -> usize {
        self.arrivals.len().min(self.most)
    }
}

/// What a policy decides. Requests leave in the order of their arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Run this many requests as a batch: from 1 to [`WaitingRequests::available`].
    Run(usize),
    /// Reject this many requests, at least 1.
    GiveUp(usize),
    /// Run nothing until something happens, or until this moment in the future.
    Wait(Option<Time>),
}

/// Makes a policy for a model and an objective.
type PolicyMaker = dyn Fn(&SimulatedModel, Duration) -> Box<dyn BatchPolicy> + Send + Sync;

/// A policy with a name, made again for each trace.
#[derive(Clone)]
pub struct OwnPolicy {
    name: Arc<str>,
    begin: Arc<PolicyMaker>,
}

impl OwnPolicy {
    /// A policy that `begin` makes for a model and an objective. No two policies of a comparison have the same name.
    pub fn new(
        name: &str,
        begin: impl Fn(&SimulatedModel, Duration) -> Box<dyn BatchPolicy> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            begin: Arc::new(begin),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn begin(
        &self,
        model: &SimulatedModel,
        objective: Duration,
    ) -> Box<dyn BatchPolicy> {
        (self.begin)(model, objective)
    }
}

impl fmt::Debug for OwnPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnPolicy").field(&self.name).finish()
    }
}

/// Policies are equal if their names are.
impl PartialEq for OwnPolicy {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for OwnPolicy {}

/// The queue of a simulation that such a policy decides about.
pub(crate) struct PolicyQueue<'a, P: ?Sized> {
    policy: &'a mut P,
    /// What a panic calls the policy.
    name: String,
    waiting: VecDeque<Request<()>>,
    /// When they arrived.
    arrivals: VecDeque<Time>,
    idle: Vec<InstanceId>,
    /// The inferences of each instance's last batch.
    running: Vec<usize>,
    /// Until when the policy waits.
    until: Option<Time>,
    most: usize,
}

impl<'a, P: BatchPolicy + ?Sized> PolicyQueue<'a, P> {
    pub(crate) fn new(policy: &'a mut P, name: Option<&str>, model: &SimulatedModel) -> Self {
        let name = name.map_or_else(
            || "the policy".to_owned(),
            |name| format!("policy `{name}`"),
        );
        Self {
            policy,
            name,
            waiting: VecDeque::new(),
            arrivals: VecDeque::new(),
            idle: Vec::new(),
            running: vec![0; model.instances as usize],
            until: None,
            most: model.requests_per_batch(),
        }
    }

    /// Asks the policy until it waits, or has nothing to decide about.
    fn decide(&mut self, now: Time, outputs: &mut Outputs<()>) {
        self.until = None;
        while !self.idle.is_empty() && !self.waiting.is_empty() {
            let waiting = WaitingRequests {
                now,
                arrivals: self.arrivals.make_contiguous(),
                idle: self.idle.len(),
                most: self.most,
            };
            let available = waiting.available();
            match self.policy.decide(&waiting) {
                Decision::Run(count) => {
                    assert!(
                        (1..=available).contains(&count),
                        "{} runs {count} requests, expected 1 to {available}",
                        self.name
                    );
                    self.run(count, outputs);
                }
                Decision::GiveUp(count) => {
                    assert!(
                        (1..=self.waiting.len()).contains(&count),
                        "{} gives up {count} requests, expected 1 to {}",
                        self.name,
                        self.waiting.len()
                    );
                    self.arrivals.drain(..count);
                    outputs.extend(self.waiting.drain(..count).map(|request| Output::Reject {
                        request,
                        reason: RejectReason::TooLate,
                    }));
                }
                Decision::Wait(until) => {
                    assert!(
                        until.is_none_or(|until| until > now),
                        "{} waits until {until:?}, expected a moment after {now:?}",
                        self.name
                    );
                    self.until = until;
                    return;
                }
            }
        }
    }

    fn run(&mut self, count: usize, outputs: &mut Outputs<()>) {
        let Some(instance) = self.idle.pop() else {
            return;
        };
        self.arrivals.drain(..count);
        let requests: Vec<Request<()>> = self.waiting.drain(..count).collect();
        // Why a batch is not larger, as far as that shows from outside.
        let end = if count == self.most {
            BatchEnd::MaxBatchSize
        } else if self.waiting.is_empty() {
            BatchEnd::QueueEmpty
        } else {
            BatchEnd::Cap
        };
        let batch = Batch {
            requests,
            end,
            rows: None,
        };
        self.running[instance.0 as usize] = batch.size();
        outputs.push(Output::Dispatch { instance, batch });
    }
}

impl<P: BatchPolicy + ?Sized> Decides for PolicyQueue<'_, P> {
    fn handle_all(
        &mut self,
        now: Time,
        inputs: impl IntoIterator<Item = Input<()>>,
        outputs: &mut Outputs<()>,
    ) {
        for input in inputs {
            match input {
                Input::Enqueue(request) => {
                    self.waiting.push_back(request);
                    self.arrivals.push_back(now);
                }
                Input::InstanceReady(instance) => self.idle.push(instance),
                Input::Finished { instance, duration } => {
                    let inferences = self.running[instance.0 as usize];
                    self.policy.finished(inferences, duration);
                    self.idle.push(instance);
                }
                _ => unreachable!("a simulation has no other inputs"),
            }
        }
        self.decide(now, outputs);
    }

    fn handle_timeout(&mut self, now: Time, outputs: &mut Outputs<()>) {
        self.decide(now, outputs);
    }

    fn next_timeout(&self) -> Option<Time> {
        self.until
    }

    fn stuck(&self, left: usize) -> String {
        format!(
            "{} answered `Wait(None)` with {left} requests in the queue, and nothing happens any more: expected that it runs them, gives them up, or waits until a moment",
            self.name
        )
    }

    fn recycle(&mut self, requests: Vec<Request<()>>) {
        drop(requests);
    }
}
