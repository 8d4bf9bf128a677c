//! A model's configuration, validated: the message that clients are shown, and the typed view that the server reads.

use std::{collections::BTreeMap, fmt, time::Duration};

use skep_proto::inference;
use skep_types::{Dims, ModelName, ModelSignature, TensorSpec};

use crate::{
    batching::{self, Scheduler},
    error::ConfigError,
    instances::{self, InstanceGroup},
    metrics::{self, HistogramBounds, HistogramFamily},
    normalize::{self, model_filename},
    objective,
    options::{ExecutionOptions, Isolation, MockOptions, RunLimits},
    parameters::Parameters,
    ragged::{self, BatchInput, BatchOutput, Ragged},
    review::{self, Review},
    signature::{check_signature, is_scalar, other_datatype},
    tensors::{self, InputConfig, OutputConfig},
    version_policy::{self, VersionPolicy},
    warmup::{self, Warmup},
};

/// Names of the backends, as a configuration spells them.
pub(crate) mod backends {
    pub(crate) const ONNXRUNTIME: &str = "onnxruntime";
    pub(crate) const EMBEDDED: &str = "embedded";
    pub(crate) const MOCK: &str = "mock";
}

/// Every backend that a configuration may name.
pub const BACKENDS: &[&str] = &[backends::ONNXRUNTIME, backends::EMBEDDED, backends::MOCK];

/// What the server knows about a model apart from its configuration.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The model's directory's name; the configuration must not say another.
    pub model: &'a ModelName,
    /// Threads an operator for models that set no `intra_op_thread_count` (`--backend-config`).
    pub intra_op_threads: Option<u32>,
    /// Threads across operators for models that set no `inter_op_thread_count` (`--backend-config`).
    pub inter_op_threads: Option<u32>,
    /// Whether what is configured for GPUs and accelerators is served on the CPU (`--gpu-as-cpu`).
    pub gpu_as_cpu: bool,
}

impl<'a> Context<'a> {
    /// The context of a model on a server without defaults of its own.
    #[must_use]
    pub const fn new(model: &'a ModelName) -> Self {
        Self {
            model,
            intra_op_threads: None,
            inter_op_threads: None,
            gpu_as_cpu: false,
        }
    }
}

/// A setting that is accepted and has no effect, or a warning about one. The caller logs each once when it loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The path of the field, such as `instance_group[0].secondary_devices`.
    pub field: String,
    /// Why it has no effect, or what is odd about it.
    pub text: String,
    /// Whether it has no effect because it is about GPUs or other accelerators.
    is_about_gpus: bool,
}

/// Why settings of GPUs do nothing.
pub(crate) const NO_GPU: &str = "GPUs are not used";

impl Notice {
    /// About a field.
    pub fn new(field: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            text: text.into(),
            is_about_gpus: false,
        }
    }

    /// A setting of a GPU or of another accelerator, which does nothing.
    pub(crate) fn about_gpus(field: impl Into<String>) -> Self {
        Self {
            is_about_gpus: true,
            ..Self::new(field, format!("no effect: {NO_GPU}"))
        }
    }

    /// Puts one notice in the place of all that are about GPUs.
    fn join_those_about_gpus(notices: &mut Vec<Self>) {
        let (about_gpus, others): (Vec<Self>, Vec<Self>) = std::mem::take(notices)
            .into_iter()
            .partition(|notice| notice.is_about_gpus);
        *notices = others;
        let is_group = |notice: &&Self| notice.field.starts_with("instance_group");
        let Some(first) = about_gpus.iter().find(is_group).or(about_gpus.first()) else {
            return;
        };
        let fields: Vec<&str> = about_gpus.iter().map(|notice| &*notice.field).collect();
        let text = format!(
            "served on the CPU (`--gpu-as-cpu`); no effect of `{}`",
            fields.join("`, `")
        );
        notices.push(Self::new(&*first.field, text));
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.field, self.text)
    }
}

/// A validated configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    proto: inference::ModelConfig,
    name: ModelName,
    max_batch_size: usize,
    inputs: Vec<InputConfig>,
    outputs: Vec<OutputConfig>,
    ragged: Ragged,
    instance_groups: Vec<InstanceGroup>,
    version_policy: VersionPolicy,
    warmups: Vec<Warmup>,
    execution: ExecutionOptions,
    mock: MockOptions,
    isolation: Isolation,
    run_limits: RunLimits,
    scheduler: Scheduler,
    max_queue_size: usize,
    histogram_bounds_ms: HistogramBounds,
    parameters: BTreeMap<String, String>,
    notices: Vec<Notice>,
}

impl ModelConfig {
    /// Validates a configuration and fills in its defaults; [`complete`](crate::complete()) comes before.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`], [`ConfigError::Parameter`], or [`ConfigError::Unsupported`] for a setting that cannot be
    /// honoured.
    pub fn from_proto(
        mut proto: inference::ModelConfig,
        context: &Context<'_>,
    ) -> Result<Self, ConfigError> {
        normalize::check_name(&mut proto, context.model)?;
        let mut notices = Vec::new();
        // Before the defaults are written: only what the user set is worth a line.
        Review::new(context, &proto.platform, &mut notices).config(&proto)?;
        normalize::check_backend(&mut proto, context.model)?;
        proto.default_model_filename = model_filename(&proto, context.model)?.to_owned();
        let max_batch_size = usize::try_from(proto.max_batch_size).map_err(|_| {
            let reason = format!(
                "'max_batch_size' must be non-negative value for {}",
                proto.name
            );
            ConfigError::invalid(&proto.name, "max_batch_size", reason)
        })?;
        let mut inputs = tensors::inputs(&proto)?;
        let outputs = tensors::outputs(&proto)?;
        let ragged = ragged::read(&proto, &mut inputs, &outputs, &mut notices)?;
        normalize::check_has_tensors(&proto)?;
        let (version_policy, normal_policy) =
            version_policy::read(&proto.name, proto.version_policy.as_ref())?;
        proto.version_policy = Some(normal_policy);
        let instance_groups = instances::read(&mut proto, context.gpu_as_cpu, &mut notices)?;
        let warmups = warmup::read(&proto, &inputs, &mut notices)?;
        let histogram_bounds_ms = metrics::read(&proto, &mut notices)?;
        let parameters: BTreeMap<String, String> = proto
            .parameters
            .iter()
            .map(|(key, p)| (key.clone(), review::parameter_text(p).to_owned()))
            .collect();
        let Parameters {
            mut execution,
            mock,
            isolation,
            run_limits,
            max_queue_size,
        } = Parameters::read(&proto.name, &proto.backend, &parameters, &mut notices)?;
        let objective = objective::read(&proto.name, &parameters, &mut notices)?;
        let scheduler = batching::read(&proto, objective, &mut notices)?;
        execution.graph_optimization = review::graph_optimization(&proto, &mut notices);
        execution.intra_op_threads = execution.intra_op_threads.or(context.intra_op_threads);
        execution.inter_op_threads = execution.inter_op_threads.or(context.inter_op_threads);
        normalize::write_defaults(&mut proto);
        if context.gpu_as_cpu {
            Notice::join_those_about_gpus(&mut notices);
            // Worker processes read this message without the flag.
            if let Some(optimization) = &mut proto.optimization {
                optimization.execution_accelerators = None;
            }
        }
        Ok(Self {
            name: context.model.clone(),
            proto,
            max_batch_size,
            inputs,
            outputs,
            ragged,
            instance_groups,
            version_policy,
            warmups,
            execution,
            mock,
            isolation,
            run_limits,
            max_queue_size: max_queue_size.unwrap_or_else(|| scheduler.default_max_queue_size()),
            scheduler,
            histogram_bounds_ms,
            parameters,
            notices,
        })
    }

    /// Holds the configuration against the model itself ([`check_signature`]) and learns which tensors are scalars
    /// there: those have dims `[1]` for clients and an empty `reshape` here (the message keeps Triton's form, which has
    /// none without batching).
    ///
    /// # Errors
    /// [`ConfigError::Signature`], as [`check_signature`].
    pub fn with_signature(mut self, signature: &ModelSignature) -> Result<Self, ConfigError> {
        check_signature(&self, signature)?;
        for (tensors, specs) in [
            (&mut self.inputs, &signature.inputs),
            (&mut self.outputs, &signature.outputs),
        ] {
            for tensor in tensors {
                let spec = specs.iter().find(|spec| spec.name == tensor.name);
                let is_open = tensor.dims.as_slice().contains(&-1);
                if tensor.reshape.is_none() && !is_open && spec.is_some_and(is_scalar) {
                    tensor.reshape = Some(Dims::default());
                }
            }
        }
        Ok(self)
    }

    /// Refuses an optional input that the model cannot do without; `has_default` says which it can.
    ///
    /// # Errors
    /// [`ConfigError::Signature`] with the first such input.
    pub fn check_optional(&self, has_default: impl Fn(&str) -> bool) -> Result<(), ConfigError> {
        let required = |tensor: &&InputConfig| tensor.optional && !has_default(&tensor.name);
        match self.inputs.iter().find(required) {
            None => Ok(()),
            Some(tensor) => Err(ConfigError::Signature {
                model: self.name.to_string(),
                tensor: tensor.name.clone(),
                reason: format!(
                    "unable to load model '{}', configuration says that input '{}' is optional, the model needs it: its \
                     file has no default for it",
                    self.name, tensor.name
                ),
                hint: Some(
                    "write `optional: false`, or give the graph an initializer with the input's name".to_owned(),
                ),
            }),
        }
    }

    /// This configuration with the instances and the version policy of `other`, which differs in nothing else.
    #[must_use]
    pub fn with_instances_of(&self, other: &Self) -> Self {
        Self {
            proto: other.proto.clone(),
            instance_groups: other.instance_groups.clone(),
            version_policy: other.version_policy.clone(),
            ..self.clone()
        }
    }

    /// The normalised message: what a client that asks for the configuration is shown.
    #[must_use]
    pub const fn proto(&self) -> &inference::ModelConfig {
        &self.proto
    }

    /// The model's name.
    #[must_use]
    pub const fn name(&self) -> &ModelName {
        &self.name
    }

    /// The configured backend's name, one of [`BACKENDS`].
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

    /// The model's inputs that are computed of a batch; requests do not have them.
    #[must_use]
    pub fn batch_inputs(&self) -> &[BatchInput] {
        &self.ragged.inputs
    }

    /// The outputs that are given back to requests by the shapes of an input.
    #[must_use]
    pub fn batch_outputs(&self) -> &[BatchOutput] {
        &self.ragged.outputs
    }

    /// The names of all inputs that the model is fed with, those of requests first.
    pub fn fed_inputs(&self) -> impl Iterator<Item = &str> {
        let computed = self.ragged.inputs.iter().map(|input| &*input.name);
        self.inputs.iter().map(|input| &*input.name).chain(computed)
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

    /// An output as the configuration tells it, for a file that does not declare it: without the dims, which are the
    /// configuration's to say.
    #[must_use]
    pub fn told_output(&self, name: &str) -> Option<TensorSpec> {
        let output = self.output(name)?;
        Some(TensorSpec {
            name: name.to_owned(),
            datatype: output.datatype,
            dims: None,
        })
    }

    /// Holds an output as the runtime tells it against the one of the configuration, where there is one.
    ///
    /// # Errors
    /// A text with both datatypes.
    pub fn check_told_output(&self, told: &TensorSpec) -> Result<(), String> {
        match self.output(&told.name) {
            Some(output) if output.datatype != told.datatype => Err(other_datatype(
                self.name().as_str(),
                "output",
                output.datatype,
                told,
            )),
            _ => Ok(()),
        }
    }

    /// The instance groups; at least one.
    #[must_use]
    pub fn instance_groups(&self) -> &[InstanceGroup] {
        &self.instance_groups
    }

    /// Which versions are served.
    #[must_use]
    pub const fn version_policy(&self) -> &VersionPolicy {
        &self.version_policy
    }

    /// The model file's (or folder's) name in a version's directory; a relative path that stays inside.
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

    /// What one execution may take.
    #[must_use]
    pub const fn run_limits(&self) -> RunLimits {
        self.run_limits
    }

    /// Whose tensor store the weights lie in; `None` for the general one.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.parameters.get("tenant").map(|name| name.trim())
    }

    /// How requests come to instances.
    #[must_use]
    pub const fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Requests that may wait in all queues of the model together; at least 1.
    #[must_use]
    pub const fn max_queue_size(&self) -> usize {
        self.max_queue_size
    }

    /// Every parameter, the user's own included.
    #[must_use]
    pub const fn parameters(&self) -> &BTreeMap<String, String> {
        &self.parameters
    }

    /// Extra labels of the model's metrics: names, without the underscore that comes before each, and values.
    pub fn metric_tags(&self) -> impl Iterator<Item = (&str, &str)> {
        let tags = self.proto.metric_tags.iter();
        tags.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether a request may have any number of answers (`model_transaction_policy.decoupled`): calls that have one answer
    /// refuse the model's requests.
    #[must_use]
    pub fn is_decoupled(&self) -> bool {
        let policy = self.proto.model_transaction_policy;
        policy.is_some_and(|inference::ModelTransactionPolicy { decoupled }| decoupled)
    }

    /// How long an answer may take, if the configuration says so; whatever policy forms the batches.
    #[must_use]
    pub fn latency_objective(&self) -> Option<Duration> {
        objective::milliseconds(self.parameters.get("slo_latency_ms")?)
    }

    /// Ascending bounds of a latency histogram in milliseconds, if the configuration sets any.
    #[must_use]
    pub fn histogram_bounds_ms(&self, family: HistogramFamily) -> Option<&[f64]> {
        self.histogram_bounds_ms.get(&family).map(Vec::as_slice)
    }

    /// What has no effect or looks odd.
    #[must_use]
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
