//! A model's configuration, validated: the message that clients are shown, and the typed view that the server reads.
//!
//! Here is the view; `validate.rs` makes one from a message, `signature.rs` compares it with the model's file.

mod signature;
#[cfg(test)]
mod tests;
mod validate;

use std::{collections::BTreeMap, num::NonZeroUsize, time::Duration};

use skep_proto::inference;
use skep_types::ModelName;

use crate::{
    fields::{
        instances::InstanceGroup,
        metrics::{HistogramBounds, HistogramFamily},
        options::{ExecutionOptions, Isolation, MockOptions, RunLimits},
        ragged::{BatchInput, BatchOutput, RaggedBatching},
        residency::ModelResidency,
        response_cache::ResponseCaching,
        scheduling::{
            SchedulerConfig, ensemble::Ensemble, objective, sequence_batching::SequenceBatching,
        },
        tensors::{InputConfig, OutputConfig},
        version_policy::VersionPolicy,
        warmup::Warmup,
    },
    vocabulary::notice::Notice,
};

/// A validated configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    proto: inference::ModelConfig,
    name: ModelName,
    max_batch_size: usize,
    inputs: Vec<InputConfig>,
    outputs: Vec<OutputConfig>,
    ragged: RaggedBatching,
    instance_groups: Vec<InstanceGroup>,
    version_policy: VersionPolicy,
    warmups: Vec<Warmup>,
    execution: ExecutionOptions,
    mock: MockOptions,
    isolation: Isolation,
    run_limits: RunLimits,
    residency: ModelResidency,
    response_cache: Option<ResponseCaching>,
    scheduler: SchedulerConfig,
    max_queue_size: usize,
    histogram_bounds_ms: HistogramBounds,
    parameters: BTreeMap<String, String>,
    notices: Vec<Notice>,
}

impl ModelConfig {
    /// This configuration with the instances and the version policy of `other`, which must be equal otherwise.
    #[must_use]
    pub fn with_instances_of(&self, other: &Self) -> Self {
        Self {
            proto: other.proto.clone(),
            instance_groups: other.instance_groups.clone(),
            version_policy: other.version_policy.clone(),
            ..self.clone()
        }
    }

    /// This configuration with this number of threads for an operator.
    #[must_use]
    pub fn with_intra_op_threads(&self, threads: NonZeroUsize) -> Self {
        let mut config = self.clone();
        let threads = u32::try_from(threads.get()).unwrap_or(u32::MAX);
        config.execution.intra_op_threads = Some(threads);
        config
    }

    /// The normalised message, which clients are shown.
    #[must_use]
    pub const fn proto(&self) -> &inference::ModelConfig {
        &self.proto
    }

    /// The model's name.
    #[must_use]
    pub const fn name(&self) -> &ModelName {
        &self.name
    }

    /// The configured backend's name, one of [`BACKENDS`](crate::BACKENDS); empty for an ensemble.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.proto.backend
    }

    /// The largest batch of a request; 0 when tensors have no batch dimension.
    #[must_use]
    pub const fn max_batch_size(&self) -> usize {
        self.max_batch_size
    }

    /// Whether tensors have a batch dimension.
    #[must_use]
    pub const fn is_batched(&self) -> bool {
        self.max_batch_size > 0
    }

    /// The inputs, in the configuration's order.
    #[must_use]
    pub fn inputs(&self) -> &[InputConfig] {
        &self.inputs
    }

    /// The outputs, in the configuration's order.
    #[must_use]
    pub fn outputs(&self) -> &[OutputConfig] {
        &self.outputs
    }

    /// The model's inputs that the server computes from a batch. Requests do not have them.
    #[must_use]
    pub fn batch_inputs(&self) -> &[BatchInput] {
        &self.ragged.inputs
    }

    /// The outputs that are split among requests by the shapes of an input.
    #[must_use]
    pub fn batch_outputs(&self) -> &[BatchOutput] {
        &self.ragged.outputs
    }

    /// The sequence batcher's settings, if requests belong to sequences.
    #[must_use]
    pub const fn sequences(&self) -> Option<&SequenceBatching> {
        match &self.scheduler {
            SchedulerConfig::Sequence(batching) => Some(batching),
            _ => None,
        }
    }

    /// The names of all inputs of a run: first those of requests, then those that the server computes.
    pub fn fed_inputs(&self) -> impl Iterator<Item = &str> {
        let requests = self.inputs.iter().map(|input| &*input.name);
        let computed = self.ragged.inputs.iter().map(|input| &*input.name);
        let (controls, states) = match self.sequences() {
            Some(batching) => (&*batching.controls, &*batching.states),
            None => (&[][..], &[][..]),
        };
        let controls = controls.iter().map(|control| &*control.name);
        let states = states.iter().map(|state| &*state.input.name);
        requests.chain(computed).chain(controls).chain(states)
    }

    /// The input called `name`.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&InputConfig> {
        self.inputs.iter().find(|tensor| tensor.name == name)
    }

    /// The output called `name`.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&OutputConfig> {
        self.outputs.iter().find(|tensor| tensor.name == name)
    }

    /// The steps, if it is an ensemble.
    #[must_use]
    pub const fn ensemble(&self) -> Option<&Ensemble> {
        match &self.scheduler {
            SchedulerConfig::Ensemble(ensemble) => Some(ensemble),
            _ => None,
        }
    }

    /// The instance groups; at least one, except of an ensemble.
    #[must_use]
    pub fn instance_groups(&self) -> &[InstanceGroup] {
        &self.instance_groups
    }

    /// Which versions are served.
    #[must_use]
    pub const fn version_policy(&self) -> &VersionPolicy {
        &self.version_policy
    }

    /// The name of the model's file or folder in a version's directory: a relative path that stays inside.
    #[must_use]
    pub fn model_filename(&self) -> &str {
        &self.proto.default_model_filename
    }

    /// What each instance runs before it is ready.
    #[must_use]
    pub fn warmups(&self) -> &[Warmup] {
        &self.warmups
    }

    /// How the backend runs the model.
    #[must_use]
    pub const fn execution(&self) -> &ExecutionOptions {
        &self.execution
    }

    /// The script of the mock backend.
    #[must_use]
    pub const fn mock(&self) -> &MockOptions {
        &self.mock
    }

    /// Where the instances run.
    #[must_use]
    pub const fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// The limits of one execution.
    #[must_use]
    pub const fn run_limits(&self) -> RunLimits {
        self.run_limits
    }

    /// When it is in memory, and with how many instances.
    #[must_use]
    pub const fn residency(&self) -> &ModelResidency {
        &self.residency
    }

    /// How its responses are kept for equal requests; `None` if they are not.
    #[must_use]
    pub const fn response_cache(&self) -> Option<&ResponseCaching> {
        self.response_cache.as_ref()
    }

    /// The tenant whose tensor store holds the weights; `None` for the general store.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.parameters.get("tenant").map(|name| name.trim())
    }

    /// How requests come to instances.
    #[must_use]
    pub const fn scheduler(&self) -> &SchedulerConfig {
        &self.scheduler
    }

    /// Requests that may wait in all queues of the model together; at least 1.
    #[must_use]
    pub const fn max_queue_size(&self) -> usize {
        self.max_queue_size
    }

    /// All parameters, including the user's own.
    #[must_use]
    pub const fn parameters(&self) -> &BTreeMap<String, String> {
        &self.parameters
    }

    /// The names and values of extra labels of the model's metrics. The metrics put an underscore before each name.
    pub fn metric_tags(&self) -> impl Iterator<Item = (&str, &str)> {
        let tags = self.proto.metric_tags.iter();
        tags.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether a request may have any number of responses (`model_transaction_policy.decoupled`). Calls with exactly
    /// one response refuse such a model.
    #[must_use]
    pub fn is_decoupled(&self) -> bool {
        let policy = self.proto.model_transaction_policy;
        policy.is_some_and(|inference::ModelTransactionPolicy { decoupled }| decoupled)
    }

    /// The latency objective, if there is one, whatever policy forms the batches.
    #[must_use]
    pub fn latency_objective(&self) -> Option<Duration> {
        objective::latency(&self.parameters)
    }

    /// The ascending bounds of a latency histogram in milliseconds, if the configuration sets them.
    #[must_use]
    pub fn histogram_bounds_ms(&self, family: HistogramFamily) -> Option<&[f64]> {
        self.histogram_bounds_ms.get(&family).map(Vec::as_slice)
    }

    /// Settings without effect, and warnings.
    #[must_use]
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }
}
