//! From a message to a validated configuration.

use std::collections::BTreeMap;

use skep_proto::inference;

use super::ModelConfig;
use crate::{
    error::ConfigError,
    fields::{
        self, identity, instances, live, metrics, optimization,
        parameters::Parameters,
        ragged, response_cache,
        scheduling::{self, SchedulingTerms, ensemble::is_ensemble, objective},
        tensors, version_policy, warmup,
    },
    vocabulary::{backends::ENSEMBLE_PLATFORM, context::ConfigContext, notice::Notice},
};

impl ModelConfig {
    /// Validates a configuration and fills in its defaults. Call [`complete`](crate::complete()) before it.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`], [`ConfigError::Parameter`], or [`ConfigError::Unsupported`] for a setting that cannot
    /// be honoured.
    pub fn from_proto(
        mut proto: inference::ModelConfig,
        context: &ConfigContext<'_>,
    ) -> Result<Self, ConfigError> {
        identity::check_name(&mut proto, context.model)?;
        let is_ensemble = is_ensemble(&proto);
        if is_ensemble && proto.platform.is_empty() && proto.backend.is_empty() {
            ENSEMBLE_PLATFORM.clone_into(&mut proto.platform);
        }
        let mut notices = Vec::new();
        fields::review(&proto, context, &mut notices)?;
        identity::check_backend(&mut proto, context.model)?;
        if !is_ensemble {
            let filename = identity::model_filename(&proto, context.model)?;
            proto.default_model_filename = filename.to_owned();
        }
        let max_batch_size = identity::max_batch_size(&proto)?;
        let mut inputs = tensors::read_inputs(&proto)?;
        let outputs = tensors::read_outputs(&proto)?;
        let ragged = ragged::read(&proto, &mut inputs, &outputs, &mut notices)?;
        tensors::check_has_tensors(&proto)?;
        let (version_policy, normal_policy) =
            version_policy::read(&proto.name, proto.version_policy.as_ref())?;
        proto.version_policy = Some(normal_policy);
        live::check(&proto)?;
        let instance_groups = match is_ensemble {
            true => Vec::new(),
            false => instances::read(&mut proto, context, &mut notices)?,
        };
        let warmups = warmup::read(&proto, &inputs, &mut notices)?;
        let histogram_bounds_ms = metrics::read(&proto, &mut notices)?;
        let parameters = parameter_texts(&proto);
        let Parameters {
            mut execution,
            mock,
            isolation,
            run_limits,
            residency,
            max_queue_size,
        } = Parameters::read(&proto.name, runner(&proto), &parameters, &mut notices)?;
        residency.check(&proto.name, &instance_groups)?;
        let response_cache = response_cache::read(&proto, &parameters, &mut notices);
        let objective = objective::read(&proto.name, &parameters, &mut notices)?;
        let terms = SchedulingTerms {
            inputs: &inputs,
            outputs: &outputs,
            parameters: &parameters,
            objective,
        };
        let scheduler = scheduling::read(&proto, terms, &mut notices)?;
        execution.graph_optimization = optimization::graph_optimization(&proto, &mut notices);
        execution.intra_op_threads = execution.intra_op_threads.or(context.intra_op_threads);
        execution.inter_op_threads = execution.inter_op_threads.or(context.inter_op_threads);
        scheduling::write_defaults(&mut proto);
        optimization::write_defaults(&mut proto);
        if context.gpu_as_cpu {
            Notice::join_those_about_gpus(&mut notices);
            optimization::remove_accelerators(&mut proto);
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
            residency,
            response_cache,
            max_queue_size: max_queue_size.unwrap_or_else(|| scheduler.default_max_queue_size()),
            scheduler,
            histogram_bounds_ms,
            parameters,
            notices,
        })
    }
}

/// The backend, or what a model without one is.
fn runner(proto: &inference::ModelConfig) -> &str {
    match proto.backend.as_str() {
        "" => ENSEMBLE_PLATFORM,
        backend => backend,
    }
}

/// The `parameters` map. Each value is a message with one string.
fn parameter_texts(proto: &inference::ModelConfig) -> BTreeMap<String, String> {
    proto
        .parameters
        .iter()
        .map(|(key, inference::ModelParameter { string_value })| {
            (key.clone(), string_value.clone())
        })
        .collect()
}
