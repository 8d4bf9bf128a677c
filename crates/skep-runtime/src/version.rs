//! A loaded model version: what requests are sent to.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use skep_config::{ModelConfig, TensorConfig};
use skep_scheduler::PolicySnapshot;
use skep_tensor::Tensor;
use skep_types::{ModelName, ModelSignature, ModelVersion};
use tokio::sync::oneshot;

use crate::{
    ErrorKind, InferRequest, InferResponse, Labels, Latencies, RuntimeError, StatisticsSnapshot,
    clock, driver::Driver, job::Job, ragged::Ragged, running::Running, scheduling, validate,
};

/// An input or output of the configuration, and where the loaded model has it.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) config: TensorConfig,
    /// Of an input: its place among those of requests, in the loaded model's order, which is its index in the model's
    /// signature where the model has no others. Of an output: its index there.
    pub(crate) position: usize,
    /// The name, shared with every answer.
    pub(crate) name: Arc<str>,
    /// What an optional input is in a request that leaves it out; `None` for what is required.
    pub(crate) absent: Option<Absent>,
    /// Of an output: whether the log says that the model gives it another shape than the configuration says.
    pub(crate) other_shape_said: AtomicBool,
}

/// What the model gets for an input that a request leaves out.
#[derive(Debug)]
pub(crate) enum Absent {
    /// The graph's own value, shaped as the model sees it, once for a whole batch.
    Default(Tensor),
    /// Zeros, for a backend without a graph; variable dimensions are 1.
    Zeros,
}

/// What a model takes and gives: the configuration's view, tied to the loaded model's order.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) model: ModelName,
    pub(crate) version: ModelVersion,
    pub(crate) max_batch_size: usize,
    /// Whether an answer carries its request's parameters.
    pub(crate) echo_parameters: bool,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    /// For a model that is not fed and read plainly.
    pub(crate) ragged: Option<Ragged>,
}

impl Interface {
    /// Ties a checked configuration to what the model declares.
    pub(crate) fn new(
        config: &ModelConfig,
        version: ModelVersion,
        signature: &ModelSignature,
        defaults: &[(String, Tensor)],
    ) -> Self {
        let absent = |tensor: &TensorConfig| {
            let default = defaults.iter().find(|(name, _)| *name == tensor.name);
            let absent = default.map_or(Absent::Zeros, |(_, value)| Absent::Default(value.clone()));
            tensor.optional.then_some(absent)
        };
        let of_requests = signature.inputs.iter().map(|spec| &*spec.name);
        let of_requests: Vec<&str> = of_requests
            .filter(|name| config.input(name).is_some())
            .collect();
        let outputs = signature.outputs.iter().map(|spec| &*spec.name);
        let outputs: Vec<&str> = outputs.collect();
        let port = |names: &[&str], tensor: &TensorConfig| {
            let position = names.iter().position(|name| *name == tensor.name)?;
            Some(Port {
                config: tensor.clone(),
                position,
                name: tensor.name.as_str().into(),
                absent: absent(tensor),
                other_shape_said: AtomicBool::new(false),
            })
        };
        Self {
            model: config.name().clone(),
            version,
            max_batch_size: config.max_batch_size(),
            echo_parameters: false,
            inputs: config
                .inputs()
                .iter()
                .filter_map(|t| port(&of_requests, t))
                .collect(),
            outputs: config
                .outputs()
                .iter()
                .filter_map(|t| port(&outputs, t))
                .collect(),
            ragged: Ragged::new(config, signature, &of_requests),
        }
    }
}

/// A model version that is ready for requests.
///
/// Whoever holds one may send requests to it; it is unloaded when the last holder lets go.
#[derive(Debug)]
pub struct LoadedVersion {
    pub(crate) interface: Arc<Interface>,
    pub(crate) config: Arc<ModelConfig>,
    /// By output, those that have any.
    pub(crate) labels: Vec<(String, Labels)>,
    pub(crate) backend: &'static str,
    pub(crate) driver: Arc<Driver>,
    pub(crate) load_duration: Duration,
    /// Shared by the versions that follow from one another without a reload.
    pub(crate) running: Arc<Running>,
}

impl LoadedVersion {
    /// The same version under a configuration that differs in nothing but instances and version policy.
    pub(crate) fn with_config(&self, config: Arc<ModelConfig>) -> Self {
        Self {
            interface: Arc::clone(&self.interface),
            config,
            labels: self.labels.clone(),
            backend: self.backend,
            driver: Arc::clone(&self.driver),
            load_duration: self.load_duration,
            running: Arc::clone(&self.running),
        }
    }

    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &ModelName {
        &self.interface.model
    }

    /// The path of its repository, where the names of models need not be unique.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.running.namespace.as_deref()
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> ModelVersion {
        self.interface.version
    }

    /// The configuration, completed and normalised.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The labels of an output's classes, if the configuration names a file of them.
    #[must_use]
    pub fn labels(&self, output: &str) -> Option<&Labels> {
        let found = self.labels.iter().find(|(name, _)| name == output);
        found.map(|(_, labels)| labels)
    }

    /// The backend that runs it; another one than the configuration names under a fallback.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// Whether any instance is alive.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.driver.is_healthy()
    }

    /// Why it cannot run anything now, although it is loaded; `None` where it can, or where nobody knows.
    #[must_use]
    pub fn why_unhealthy(&self) -> Option<String> {
        self.driver.why_not()
    }

    /// Counts and durations so far.
    #[must_use]
    pub fn statistics(&self) -> StatisticsSnapshot {
        self.driver.statistics().snapshot()
    }

    /// Latencies of the last minute; `None` unless [`MetricsOptions::quantiles`](crate::MetricsOptions) asks for them.
    #[must_use]
    pub fn latencies(&self) -> Option<Latencies> {
        self.driver.statistics().latencies()
    }

    /// What its batching policy is doing now.
    #[must_use]
    pub fn policy(&self) -> PolicySnapshot {
        self.driver.policy_snapshot()
    }

    /// Says that the latency objective cannot be kept, where the executions that were measured while the version loaded show
    /// that: a single inference takes longer by itself. `None` also where nothing was measured, as with variable dimensions.
    #[must_use]
    pub fn objective_warning(&self) -> Option<String> {
        let policy = self.policy();
        let objective = policy.objective?;
        let (_, took) = policy.latencies.iter().find(|(size, _)| *size == 1)?;
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        (*took + scheduling::margin(objective) > objective).then(|| {
            format!(
                "`slo_latency_ms` is {}, and an execution of one inference takes {:.3} ms by itself: requests will be late or given up",
                ms(objective),
                ms(*took)
            )
        })
    }

    /// How long it took to load: weights, instances, warm-up.
    #[must_use]
    pub fn load_duration(&self) -> Duration {
        self.load_duration
    }

    /// Requests that wait for an instance.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.driver.waiting()
    }

    /// Runs a request. Dropping the future cancels it: it does not run if it still waits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when the request does not fit the model, [`ErrorKind::Unavailable`] when the
    /// queue is full or the server stops, the backend's error when the run fails.
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse, RuntimeError> {
        let arrived = clock::now();
        tracing::debug!(
            "[request id: {}] inference of model `{}` version {}",
            if request.id.is_empty() {
                "<id_unknown>"
            } else {
                &request.id
            },
            self.name(),
            self.version()
        );
        let prepared = validate::prepare(&request, &self.interface)?;
        let (reply, answer) = oneshot::channel();
        let job = Job::new(prepared, reply, arrived);
        let (id, handover) = self.driver.enqueue(job, request.priority, request.timeout);
        let mut guard = CancelOnDrop {
            driver: &self.driver,
            id: Some(id),
        };
        handover.complete().await;
        let answer = answer.await;
        guard.id = None;
        let mut answer = answer.unwrap_or_else(|_| {
            Err(RuntimeError::new(
                ErrorKind::Internal,
                "the instance ended without an answer",
            ))
        })?;
        if self.interface.echo_parameters {
            answer.parameters = request.parameters;
        }
        Ok(answer)
    }
}

/// Takes a request back when nobody waits for its answer any more.
struct CancelOnDrop<'a> {
    driver: &'a Arc<Driver>,
    id: Option<skep_scheduler::RequestId>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.driver.cancel(id);
        }
    }
}
