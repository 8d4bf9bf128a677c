//! One request on its way through the steps.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use skep_tensor::{Charge, Tensor};
use skep_types::Time;

use super::{flow::Flow, responder::EnsembleResponder};
use crate::{
    clock,
    error::RuntimeError,
    serving::{
        LoadedVersion,
        job::PassedOn,
        request::{InferRequest, InferResponse, Timing},
    },
};

/// 0 would mean no timeout.
const LEAST_TIMEOUT: Duration = Duration::from_micros(1);

/// What the steps of a request took together.
#[derive(Debug, Default)]
pub(super) struct StepSums {
    pub(super) compute_input: Duration,
    pub(super) compute_infer: Duration,
    pub(super) compute_output: Duration,
}

impl StepSums {
    fn add(&mut self, timing: &Timing) {
        self.compute_input += timing.compute_input;
        self.compute_infer += timing.compute_infer;
        self.compute_output += timing.compute_output;
    }
}

/// What a request's steps have in common.
pub(super) struct EnsembleRun<'a> {
    pub(super) responder: &'a EnsembleResponder,
    /// By step: the part, if it took requests when the request began.
    pub(super) parts: Vec<Option<Arc<LoadedVersion>>>,
    pub(super) passed_on: Option<Box<PassedOn>>,
    pub(super) priority: u64,
    /// How long the request may wait, from its arrival.
    pub(super) timeout: Option<Duration>,
    pub(super) arrived: Time,
    pub(super) charge: Option<Arc<Charge>>,
}

/// A step that runs, and what it answers.
type RunningStep<'a> =
    Pin<Box<dyn Future<Output = (usize, Result<InferResponse, RuntimeError>)> + Send + 'a>>;

impl EnsembleRun<'_> {
    /// Runs the steps that a flow needs. The first step that fails ends the others.
    pub(super) async fn complete(&self, flow: &mut Flow<'_>) -> Result<StepSums, RuntimeError> {
        let mut sums = StepSums::default();
        let mut running: Vec<RunningStep<'_>> = Vec::new();
        loop {
            for (step, inputs) in flow.start() {
                let wanted = flow.wanted_outputs(step);
                let outputs = wanted.map(|(name, _)| name.to_owned()).collect();
                running.push(Box::pin(async move {
                    (step, self.step(step, inputs, outputs).await)
                }));
            }
            if running.is_empty() {
                return Ok(sums);
            }
            let (step, outcome) = first(&mut running).await;
            let response = outcome.map_err(|error| self.in_ensemble(&error))?;
            if let Some(timing) = &response.timing {
                sums.add(timing);
            }
            let written: Vec<_> = flow
                .wanted_outputs(step)
                .filter_map(|(name, tensor)| {
                    let mut outputs = response.outputs.iter();
                    let output = outputs.find(|output| *output.name == *name)?;
                    Some((tensor, output.tensor.clone(), output.owns_memory))
                })
                .collect();
            // An ordinary response has what was asked for; one of an ensemble may lack what its conditions left out.
            flow.finish(step, written);
        }
    }

    async fn step(
        &self,
        step: usize,
        inputs: Vec<(String, Tensor)>,
        outputs: Vec<String>,
    ) -> Result<InferResponse, RuntimeError> {
        let settings = &self.responder.ensemble.steps[step];
        let timeout = self.time_left(settings.timeout);
        let part = match &self.parts[step] {
            Some(part) => Arc::clone(part),
            None => {
                let target = self.responder.targets[step].clone();
                self.responder.models.acquire(target, timeout).await?
            }
        };
        let passed_on = self.passed_on.as_deref();
        let request = InferRequest {
            id: passed_on
                .map(|passed| passed.id.clone())
                .unwrap_or_default(),
            inputs,
            outputs,
            priority: settings.priority.unwrap_or(self.priority),
            timeout,
            parameters: passed_on
                .map(|passed| passed.parameters.clone())
                .unwrap_or_default(),
            sequence: passed_on.and_then(|passed| passed.sequence.clone()),
            charge: self.charge.clone(),
            trace: passed_on
                .and_then(|passed| passed.trace.as_ref())
                .map(|trace| trace.child()),
        };
        self.infer(&part, request).await
    }

    /// Makes a step's request. If the part's queue is full, a request with a timeout waits outside of it: it has come too
    /// far to be refused while there is time left.
    async fn infer(
        &self,
        part: &LoadedVersion,
        request: InferRequest,
    ) -> Result<InferResponse, RuntimeError> {
        let (Some(_), Some(room)) = (self.timeout, part.responder.room()) else {
            return part.infer(request).await;
        };
        let mut refusal = match part.infer(request.clone()).await {
            Err(error) if error.is_queue_full() => error,
            outcome => return outcome,
        };
        let waiter = room.waiter();
        while let Some(left) = self.time_left(None).filter(|left| *left > LEAST_TIMEOUT) {
            let mut place = pin!(waiter.place());
            // From here on no place is missed.
            place.as_mut().enable();
            let again = InferRequest {
                timeout: self.time_left(request.timeout),
                ..request.clone()
            };
            refusal = match part.infer(again).await {
                Err(error) if error.is_queue_full() => error,
                outcome => return outcome,
            };
            if tokio::time::timeout(left, place).await.is_err() {
                break;
            }
        }
        Err(refusal)
    }

    /// How long a step may wait: its own timeout, and what is left of the request's.
    fn time_left(&self, of_step: Option<Duration>) -> Option<Duration> {
        let waited = clock::now().since(self.arrived);
        let left = self
            .timeout
            .map(|timeout| timeout.saturating_sub(waited).max(LEAST_TIMEOUT));
        match (left, of_step) {
            (Some(left), Some(own)) => Some(left.min(own)),
            (left, own) => left.or(own),
        }
    }

    fn in_ensemble(&self, error: &RuntimeError) -> RuntimeError {
        let text = format!("in ensemble '{}', {error}", self.responder.interface.model);
        RuntimeError::new(error.kind(), text)
    }
}

/// The first of several steps that ends.
async fn first<T>(running: &mut Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> T {
    let (position, outcome) = poll_fn(|context| {
        for (position, step) in running.iter_mut().enumerate() {
            if let Poll::Ready(outcome) = step.as_mut().poll(context) {
                return Poll::Ready((position, outcome));
            }
        }
        Poll::Pending
    })
    .await;
    drop(running.swap_remove(position));
    outcome
}
