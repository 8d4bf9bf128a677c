//! A loaded model version, which takes requests.

use std::{sync::Arc, time::Duration};

use skep_config::ModelConfig;
use skep_placer::configuration::LatencyProfile;
use skep_scheduler::PolicySnapshot;
use skep_types::{ModelName, ModelVersion, Time};
use tokio::sync::oneshot;

use crate::{
    clock,
    error::RuntimeError,
    serving::{
        driver::scheduling,
        interface::Interface,
        job::{Job, PassedOn},
        labels::ClassLabels,
        origin::VersionOrigin,
        request::{InferRequest, InferResponse},
        responder::Responder,
        response_cache::{VersionCacheReport, digest},
        validate,
    },
    statistics::{Latencies, StatisticsSnapshot},
};

/// A model version that is ready for requests.
///
/// Every holder may send requests to it. It is unloaded when the last holder drops it.
#[derive(Debug)]
pub struct LoadedVersion {
    pub(crate) interface: Arc<Interface>,
    pub(crate) config: Arc<ModelConfig>,
    /// The labels of each output that has some.
    pub(crate) labels: Vec<(String, ClassLabels)>,
    pub(crate) backend: &'static str,
    pub(crate) load_duration: Duration,
    /// What its configuration is chosen from while it serves; `None` if it is not.
    pub(crate) profile: Option<Arc<LatencyProfile>>,
    /// Answers the requests. Dropped before the origin.
    pub(crate) responder: Arc<dyn Responder>,
    pub(crate) origin: Arc<VersionOrigin>,
}

impl LoadedVersion {
    /// The same version under a configuration that differs only in instances and version policy.
    pub(crate) fn with_config(&self, config: Arc<ModelConfig>) -> Self {
        Self {
            interface: Arc::clone(&self.interface),
            config,
            labels: self.labels.clone(),
            backend: self.backend,
            load_duration: self.load_duration,
            profile: self.profile.clone(),
            responder: Arc::clone(&self.responder),
            origin: Arc::clone(&self.origin),
        }
    }

    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &ModelName {
        &self.interface.model
    }

    /// The path of its repository, if the names of models need not be unique.
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

    /// The labels of an output's classes, if the configuration names a file with labels.
    #[must_use]
    pub fn labels(&self, output: &str) -> Option<&ClassLabels> {
        let found = self.labels.iter().find(|(name, _)| name == output);
        found.map(|(_, labels)| labels)
    }

    /// The backend that runs it, which a fallback may have chosen instead of the configured one.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// Whether it can run requests now.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.responder.is_healthy()
    }

    /// Why it cannot run requests now, although it is loaded; `None` if it can, or if the reason is unknown.
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

    /// A warning that the latency objective cannot be met, if the executions measured during the load show that a
    /// single inference takes longer. `None` also if nothing was measured, as with variable dimensions.
    #[must_use]
    pub fn objective_warning(&self) -> Option<String> {
        let policy = self.policy();
        let objective = policy.objective?;
        let (_, took) = policy.latencies.iter().find(|(size, _)| *size == 1)?;
        (*took + scheduling::margin(objective) > objective).then(|| {
            format!(
                "`slo_latency_ms` is {}, and an execution of one inference takes {:.3} ms by itself: requests will be late or given up",
                milliseconds(objective),
                milliseconds(*took)
            )
        })
    }

    /// What the response cache keeps of it; `None` if its responses are not cached.
    #[must_use]
    pub fn cached(&self) -> Option<VersionCacheReport> {
        self.responder.cached()
    }

    /// How long the load took: weights, instances, warm-up.
    #[must_use]
    pub fn load_duration(&self) -> Duration {
        self.load_duration
    }

    /// Requests that wait for an instance.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.responder.pending()
    }

    /// Runs a request. Dropping the future cancels the request if it still waits.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) when the request does not fit the model,
    /// [`Unavailable`](crate::ErrorKind::Unavailable) when the queue is full or the server stops, the backend's error when
    /// the run fails.
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
        let Some(trace) = request.trace.clone() else {
            return self.answered(request, arrived).await;
        };
        trace.begins(self, &request, arrived);
        let outcome = self.answered(request, arrived).await;
        trace.ends(&outcome, arrived, !self.responder.passes_on());
        outcome
    }

    /// The answer to a request that arrived at `arrived`.
    async fn answered(
        &self,
        request: InferRequest,
        arrived: Time,
    ) -> Result<InferResponse, RuntimeError> {
        let prepared = validate::prepare(&request, &self.interface)?;
        if let Some(trace) = &request.trace {
            trace.waits();
        }
        let (reply, answer) = oneshot::channel();
        let mut job = Job::new(prepared, reply, arrived);
        if self.responder.wants_digest() {
            digest::add_to(&mut job).await;
        }
        if self.responder.passes_on() {
            job.passed_on = Some(Box::new(PassedOn {
                id: request.id.clone(),
                parameters: request.parameters.clone(),
                sequence: request.sequence.clone(),
                trace: request.trace.clone(),
            }));
        }
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

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
