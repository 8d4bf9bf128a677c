//! The responder of an ensemble.

use std::{
    fmt,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use skep_config::{Ensemble, ModelConfig};
use skep_host::lock;
use skep_placer::configuration::RunConfiguration;
use skep_scheduler::{PolicySnapshot, RequestId};
use skep_store::Digest;
use skep_types::Time;

use super::{
    check::check_parts,
    flow::{Flow, FlowTensor},
    gate::EnsembleGate,
    graph::EnsembleGraph,
    parts::{StepModels, StepTarget},
    run::{EnsembleRun, StepSums},
};
use crate::{
    clock,
    error::{ErrorKind, RuntimeError},
    serving::{
        LoadedVersion,
        driver::room::QueueRoom,
        interface::Interface,
        job::{InferOutcome, Job, PreparedRequest},
        request::{InferResponse, NamedTensor, Timing},
        responder::{Responder, RunShape, Submission},
        response_cache::VersionCacheReport,
        validate::reshaped,
    },
    statistics::{
        FailureReason,
        recorder::{ComposedTimes, InstanceRecorder, Statistics},
    },
};

/// The reason in a response's timing: no scheduler made a batch for it.
const BATCH_END: &str = "ensemble";

/// Answers with requests to other versions.
pub(crate) struct EnsembleResponder {
    pub(super) interface: Arc<Interface>,
    config: Arc<ModelConfig>,
    pub(super) ensemble: Ensemble,
    graph: EnsembleGraph,
    /// By step.
    pub(super) targets: Vec<StepTarget>,
    pub(super) models: Arc<dyn StepModels>,
    /// The last comparison with the parts.
    fit: Mutex<PartsFit>,
    gate: EnsembleGate,
    statistics: Statistics,
    /// Lists no instance, because an ensemble has none.
    recorder: Arc<InstanceRecorder>,
}

/// Whether parts fit the ensemble.
struct PartsFit {
    /// By step.
    configs: Vec<Arc<ModelConfig>>,
    outcome: Result<(), RuntimeError>,
}

/// The parts that take requests now, by step.
type ResidentParts = Vec<Option<Arc<LoadedVersion>>>;

impl EnsembleResponder {
    /// An ensemble whose parts have these configurations, which fit it.
    pub(crate) fn new(
        interface: Arc<Interface>,
        (config, ensemble): (Arc<ModelConfig>, &Ensemble),
        (targets, configs): (Vec<StepTarget>, Vec<Arc<ModelConfig>>),
        models: Arc<dyn StepModels>,
        statistics: Statistics,
    ) -> Self {
        let recorder = statistics.recorder(config.name().as_str());
        recorder.end();
        Self {
            graph: EnsembleGraph::new(&config, ensemble),
            gate: EnsembleGate::new(
                ensemble.max_inflight_requests.map(NonZeroUsize::get),
                config.max_queue_size(),
            ),
            ensemble: ensemble.clone(),
            fit: Mutex::new(PartsFit {
                configs,
                outcome: Ok(()),
            }),
            interface,
            config,
            targets,
            models,
            statistics,
            recorder,
        }
    }

    /// The parts that take requests now. Parts that are not there, and are not loaded on request, and those that no
    /// longer fit are an error.
    fn resident_parts(&self) -> Result<ResidentParts, RuntimeError> {
        let targets = self.targets.iter();
        let parts: ResidentParts = targets.map(|target| self.models.resident(target)).collect();
        let mut fit = lock(&self.fit);
        let mut has_changed = false;
        for ((part, target), known) in parts.iter().zip(&self.targets).zip(&mut fit.configs) {
            match part {
                Some(part) if Arc::ptr_eq(&part.config, known) => {}
                Some(part) => {
                    *known = Arc::clone(&part.config);
                    has_changed = true;
                }
                None if self.models.loads_on_request(target) => {}
                None => {
                    return Err(self.unavailable(&format!(
                        "ensemble '{}' contains models that are not available or ambiguous: {target}",
                        self.interface.model
                    )));
                }
            }
        }
        if has_changed {
            fit.outcome = check_parts(&self.config, &self.ensemble, &fit.configs)
                .map_err(|error| self.unavailable(&error.to_string()));
        }
        fit.outcome.clone()?;
        Ok(parts)
    }

    fn unavailable(&self, why: &str) -> RuntimeError {
        RuntimeError::new(ErrorKind::Unavailable, why)
    }

    /// Why one of the parts cannot run requests.
    fn why_not(&self) -> Option<String> {
        match self.resident_parts() {
            Err(error) => Some(error.to_string()),
            Ok(parts) => parts.iter().flatten().find_map(|part| {
                let why = (!part.is_healthy())
                    .then(|| part.why_unhealthy().unwrap_or_else(|| "not ready".into()));
                why.map(|why| format!("its part '{}': {why}", part.name()))
            }),
        }
    }

    async fn answer(
        &self,
        job: Box<Job>,
        priority: u64,
        timeout: Option<Duration>,
    ) -> InferOutcome {
        let unfinished = UnfinishedRequest {
            statistics: &self.statistics,
            arrived: job.arrived,
            is_over: false,
        };
        let (arrived, batch_size) = (job.arrived, job.prepared.batch_size);
        let outcome = self.run(job, priority, timeout).await;
        unfinished.end(outcome.as_ref().err());
        let (mut response, taken, sums) = outcome?;
        let ended = clock::now();
        self.recorder.composed(
            batch_size,
            &ComposedTimes {
                arrived,
                taken,
                ended,
                compute: [sums.compute_input, sums.compute_infer, sums.compute_output],
            },
        );
        response.timing = Some(Timing {
            queue: taken.since(arrived),
            compute_input: sums.compute_input,
            compute_infer: sums.compute_infer,
            compute_output: sums.compute_output,
            batch_size,
            batch_end: BATCH_END,
        });
        Ok(response)
    }

    async fn run(
        &self,
        job: Box<Job>,
        priority: u64,
        timeout: Option<Duration>,
    ) -> Result<(InferResponse, Time, StepSums), RuntimeError> {
        let parts = self.resident_parts()?;
        let _pass = self.gate.enter(timeout).await?;
        let taken = clock::now();
        let Job {
            prepared,
            passed_on,
            arrived,
            ..
        } = *job;
        let PreparedRequest {
            inputs,
            omitted,
            outputs,
            charge,
            ..
        } = prepared;
        let run = EnsembleRun {
            responder: self,
            parts,
            passed_on,
            priority,
            timeout,
            arrived,
            charge,
        };
        let inputs = inputs.into_iter().enumerate().map(|(position, tensor)| {
            let is_omitted = omitted.iter().any(|index| usize::from(*index) == position);
            match is_omitted {
                true => FlowTensor::Omitted,
                false => FlowTensor::Known(tensor, false),
            }
        });
        let mut flow = Flow::new(&self.graph, inputs, &outputs);
        let sums = run.complete(&mut flow).await?;
        let outputs = outputs.iter().filter_map(|&output| {
            let port = &self.interface.outputs[output];
            // What only skipped steps write is left out.
            let FlowTensor::Known(tensor, owns_memory) = flow.output(output) else {
                return None;
            };
            Some(NamedTensor {
                name: Arc::clone(&port.name),
                tensor: self.client_shape(tensor.clone(), output),
                owns_memory: *owns_memory,
            })
        });
        let response = InferResponse {
            model: self.interface.model.clone(),
            version: self.interface.version,
            outputs: outputs.collect(),
            timing: None,
            parameters: Vec::new(),
            charge: run.charge.clone(),
        };
        Ok((response, taken, sums))
    }

    /// Gives an output with a `reshape` the shape that clients see.
    fn client_shape(&self, tensor: skep_tensor::Tensor, output: usize) -> skep_tensor::Tensor {
        let config = &self.interface.outputs[output].config;
        let Some(reshape) = &config.reshape else {
            return tensor;
        };
        let dims = tensor.shape().dims();
        let (batch, inner) = dims.split_at(usize::from(config.batched).min(dims.len()));
        let shape = reshaped(reshape, &config.dims, batch, inner);
        shape
            .and_then(|shape| tensor.clone().reshape(shape).ok())
            .unwrap_or(tensor)
    }
}

/// A request that has not ended. Dropping it counts it as cancelled: its client has left.
struct UnfinishedRequest<'a> {
    statistics: &'a Statistics,
    arrived: Time,
    is_over: bool,
}

impl UnfinishedRequest<'_> {
    /// Notes its end, and why it failed.
    fn end(mut self, error: Option<&RuntimeError>) {
        self.is_over = true;
        if let Some(error) = error {
            let reason = match error.kind() {
                ErrorKind::Unavailable => FailureReason::Rejected,
                _ => FailureReason::Other,
            };
            self.failed(reason);
        }
    }

    fn failed(&self, reason: FailureReason) {
        let took = clock::now().since(self.arrived);
        self.statistics.failed(reason, took);
    }
}

impl Drop for UnfinishedRequest<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.failed(FailureReason::Canceled);
        }
    }
}

impl Responder for EnsembleResponder {
    fn wants_digest(&self) -> bool {
        false
    }

    fn passes_on(&self) -> bool {
        true
    }

    fn submit(&self, job: Box<Job>, priority: u64, timeout: Option<Duration>) -> Submission<'_> {
        Submission::working(self, Box::pin(self.answer(job, priority, timeout)))
    }

    fn answer_at_once(&self, mut job: Box<Job>, mut response: InferResponse, began: Time) {
        let waiter = job.take_waiter();
        let charged = response.charge_to(job.prepared.charge.take());
        let outcome = charged.map(|()| {
            self.statistics.found(waiter.arrived, began, clock::now());
            response
        });
        if outcome.is_err() {
            let took = clock::now().since(waiter.arrived);
            self.statistics.failed(FailureReason::Rejected, took);
        }
        // The client may have gone.
        drop(waiter.reply.send(outcome));
    }

    fn cached(&self) -> Option<VersionCacheReport> {
        None
    }

    /// Its requests end with the future that answers them.
    fn cancel(&self, _request: RequestId) {}

    /// Without instances only the version policy differs.
    fn reconfigure(&self, _config: &ModelConfig, _directory: &Path) -> Result<(), RuntimeError> {
        Ok(())
    }

    fn scale(
        &self,
        _config: &ModelConfig,
        _directory: &Path,
        _shape: RunShape,
    ) -> Result<(), RuntimeError> {
        Err(RuntimeError::invalid("an ensemble has no instances"))
    }

    fn run(&self) -> Option<RunConfiguration> {
        None
    }

    fn active_instances(&self) -> u32 {
        0
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        None
    }

    fn devices(&self) -> Vec<(String, u32)> {
        Vec::new()
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn policy(&self) -> PolicySnapshot {
        PolicySnapshot {
            policy: "none",
            objective: None,
            percentile: None,
            cap: 1,
            target: 1,
            arrivals_per_s: None,
            latencies: Vec::new(),
            last_batch: None,
            rejected: 0,
            delayed: 0,
            sequences: None,
        }
    }

    fn pending(&self) -> usize {
        self.gate.waiting()
    }

    fn room(&self) -> Option<&QueueRoom> {
        None
    }

    fn stored_tensors(&self) -> Vec<(Digest, u64)> {
        Vec::new()
    }

    /// It has no weights.
    fn is_baked(&self) -> bool {
        true
    }

    fn is_healthy(&self) -> bool {
        self.why_not().is_none()
    }

    fn why_unhealthy(&self) -> Option<String> {
        self.why_not()
    }

    fn hurry(&self) {}

    fn drain(&self) {
        self.gate.drain();
    }

    fn wait_until_idle(&self, deadline: Option<Instant>) {
        self.gate.wait_until_idle(deadline);
    }
}

impl fmt::Debug for EnsembleResponder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnsembleResponder")
            .field("model", &self.interface.model)
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}
