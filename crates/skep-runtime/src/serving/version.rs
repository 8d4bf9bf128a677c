//! A loaded model version: what requests are sent to.

use std::{sync::Arc, time::Duration};

use skep_config::ModelConfig;
use skep_scheduler::PolicySnapshot;
use skep_types::{ModelName, ModelVersion};
use tokio::sync::oneshot;

use crate::{
    InferRequest, InferResponse, Labels, Latencies, RuntimeError, StatisticsSnapshot, clock,
    serving::{
        driver::scheduling, interface::Interface, job::Job, origin::Origin, responder::Responder,
        validate,
    },
};

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
    pub(crate) load_duration: Duration,
    /// What answers requests. Dropped before the origin.
    pub(crate) responder: Arc<dyn Responder>,
    pub(crate) origin: Arc<Origin>,
}

impl LoadedVersion {
    /// The same version under a configuration that differs in nothing but instances and version policy.
    pub(crate) fn with_config(&self, config: Arc<ModelConfig>) -> Self {
        Self {
            interface: Arc::clone(&self.interface),
            config,
            labels: self.labels.clone(),
            backend: self.backend,
            load_duration: self.load_duration,
            responder: Arc::clone(&self.responder),
            origin: Arc::clone(&self.origin),
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
        self.origin.namespace.as_deref()
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
        self.responder.is_healthy()
    }

    /// Why it cannot run anything now, although it is loaded; `None` where it can, or where nobody knows.
    #[must_use]
    pub fn why_unhealthy(&self) -> Option<String> {
        self.responder.why_unhealthy()
    }

    /// Counts and durations so far.
    #[must_use]
    pub fn statistics(&self) -> StatisticsSnapshot {
        self.responder.statistics().snapshot()
    }

    /// Latencies of the last minute; `None` unless [`MetricsOptions::quantiles`](crate::MetricsOptions) asks for them.
    #[must_use]
    pub fn latencies(&self) -> Option<Latencies> {
        self.responder.statistics().latencies()
    }

    /// What its batching policy is doing now.
    #[must_use]
    pub fn policy(&self) -> PolicySnapshot {
        self.responder.policy()
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
        self.responder.pending()
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
        let submission = self
            .responder
            .submit(job, request.priority, request.timeout);
        let mut answer = submission.answered(answer).await?;
        if self.interface.echo_parameters {
            answer.parameters = request.parameters;
        }
        Ok(answer)
    }
}
