//! One request on its way through the steps.

use std::{future::Future, future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};

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
            charge: self.charge.clone(),
        };
        part.infer(request).await
    }

    /// How long a step may wait: its own timeout, and what is left of the request's.
    fn time_left(&self, of_step: Option<Duration>) -> Option<Duration> {
        // 0 would mean no timeout.
        const LEAST: Duration = Duration::from_micros(1);
        let waited = clock::now().since(self.arrived);
        let left = self
            .timeout
            .map(|timeout| timeout.saturating_sub(waited).max(LEAST));
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
