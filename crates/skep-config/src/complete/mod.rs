//! Auto-completion: fills in what a configuration leaves out and the model's file declares.
//!
//! The rules are those of Triton's server and of its ONNX Runtime backend; here they hold for every backend.

mod tensors;

use skep_proto::inference::{self, model_config::SchedulingChoice};
use skep_types::{ModelName, ModelSignature, TensorSpec};

use self::tensors::TensorCompletion;
use crate::{
    error::ConfigError,
    vocabulary::{
        backends::{self, ONNXRUNTIME_PLATFORM, configured_backend},
        paths::DEFAULT_MODEL_FILENAME,
    },
};

/// What completion takes into account besides the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Completion<'a> {
    /// The name of the model's directory.
    pub model: &'a ModelName,
    /// The backend for a configuration without one.
    pub backend: &'a str,
    /// The name of the model's file for a configuration without one; empty for `model.onnx`.
    pub model_filename: &'a str,
    /// The `max_batch_size` for a model that can batch and whose configuration does not set it.
    pub default_max_batch_size: u32,
    /// What the model's file declares; `None` leaves inputs, outputs and batching unchanged.
    pub signature: Option<&'a ModelSignature>,
    /// Whether the model must not batch although its signature [looks](looks_batched) batched.
    pub is_unbatched: bool,
}

/// Whether every input and output has a variable first dimension, as in a model that can batch.
#[must_use]
pub fn looks_batched(signature: &ModelSignature) -> bool {
    let mut tensors = signature.inputs.iter().chain(&signature.outputs);
    !signature.inputs.is_empty() && tensors.all(|spec| first(spec) == Some(Some(-1)))
}

/// A tensor's first dimension, if it has one; the outer `None` means an unknown rank.
fn first(spec: &TensorSpec) -> Option<Option<i64>> {
    let dims = spec.dims.as_ref()?;
    Some(dims.as_slice().first().copied())
}

/// Fills in name, backend, platform and file name. Unless inputs and outputs are both given, also fills in what they
/// lack, `max_batch_size` and `dynamic_batching`.
///
/// # Errors
/// [`ConfigError::Signature`] if the configuration asks for batches that the model cannot take, names a tensor that the
/// model lacks, or leaves out dims that the model's file does not declare.
pub fn complete(
    config: &mut inference::ModelConfig,
    c: &Completion<'_>,
) -> Result<(), ConfigError> {
    complete_identity(config, c);
    let Some(signature) = c.signature else {
        return Ok(());
    };
    if !config.input.is_empty() && !config.output.is_empty() {
        return Ok(());
    }
    complete_batching(config, c, signature)?;
    let batched = config.max_batch_size > 0;
    let inputs = request_inputs(config, signature);
    let outputs = response_outputs(config, signature);
    let model = c.model.as_str();
    TensorCompletion {
        model,
        side: "input",
        specs: &inputs,
        batched,
    }
    .complete(&mut config.input)?;
    TensorCompletion {
        model,
        side: "output",
        specs: &outputs,
        batched,
    }
    .complete(&mut config.output)
}

/// The inputs that requests bring; the server computes those of `batch_input` from a batch, and sets those of sequences.
fn request_inputs(config: &inference::ModelConfig, signature: &ModelSignature) -> Vec<TensorSpec> {
    let computed = config.batch_input.iter();
    let computed = computed.flat_map(|batch_input| &batch_input.target_name);
    let mut fed: Vec<&String> = computed.collect();
    if let Some(SchedulingChoice::SequenceBatching(batching)) = &config.scheduling_choice {
        fed.extend(batching.control_input.iter().map(|control| &control.name));
        fed.extend(batching.state.iter().map(|state| &state.input_name));
    }
    without(&signature.inputs, &fed)
}

/// The outputs that responses have; states stay in the server.
fn response_outputs(
    config: &inference::ModelConfig,
    signature: &ModelSignature,
) -> Vec<TensorSpec> {
    let kept: Vec<&String> = match &config.scheduling_choice {
        // An output that is listed is wanted, state or not.
        Some(SchedulingChoice::SequenceBatching(batching)) if config.output.is_empty() => {
            batching.state.iter().map(|s| &s.output_name).collect()
        }
        _ => Vec::new(),
    };
    without(&signature.outputs, &kept)
}

fn without(specs: &[TensorSpec], names: &[&String]) -> Vec<TensorSpec> {
    let others = specs.iter().filter(|spec| !names.contains(&&spec.name));
    others.cloned().collect()
}

fn complete_identity(config: &mut inference::ModelConfig, c: &Completion<'_>) {
    fill(&mut config.name, c.model.as_str());
    // Validation refuses a foreign platform under its own name.
    let backend = match configured_backend(config) {
        Some(backend) => backend.to_owned(),
        None if config.platform.is_empty() => c.backend.to_owned(),
        None => String::new(),
    };
    fill(&mut config.backend, &backend);
    if config.backend == backends::ONNXRUNTIME {
        fill(&mut config.platform, ONNXRUNTIME_PLATFORM);
    }
    let filename = if c.model_filename.is_empty() {
        DEFAULT_MODEL_FILENAME
    } else {
        c.model_filename
    };
    fill(&mut config.default_model_filename, filename);
}

fn fill(field: &mut String, value: &str) {
    if field.is_empty() {
        value.clone_into(field);
    }
}

/// A model can batch when every input and output has a variable first dimension.
fn complete_batching(
    config: &mut inference::ModelConfig,
    c: &Completion<'_>,
    signature: &ModelSignature,
) -> Result<(), ConfigError> {
    if config.max_batch_size > 0 {
        // A tensor of unknown rank neither allows nor forbids what the user asked for.
        let mut tensors = signature.inputs.iter().chain(&signature.outputs);
        if let Some(spec) = tensors.find(|spec| first(spec).is_some_and(|first| first != Some(-1)))
        {
            return Err(no_batching(c.model.as_str(), config.max_batch_size, spec));
        }
    } else if config.max_batch_size == 0 && looks_batched(signature) && !c.is_unbatched {
        config.max_batch_size = i32::try_from(c.default_max_batch_size).unwrap_or(i32::MAX);
    }
    if config.max_batch_size > 1 && config.scheduling_choice.is_none() {
        config.scheduling_choice = Some(SchedulingChoice::DynamicBatching(
            inference::ModelDynamicBatching::default(),
        ));
    }
    Ok(())
}

fn no_batching(model: &str, max_batch_size: i32, spec: &TensorSpec) -> ConfigError {
    let shape = spec
        .dims
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    ConfigError::Signature {
        model: model.to_owned(),
        tensor: spec.name.clone(),
        reason: format!(
            "autofill failed for model '{model}': model does not support batching while non-zero max_batch_size is \
             specified: tensor '{}' has shape {shape}, max_batch_size is {max_batch_size}",
            spec.name
        ),
        hint: Some(
            "write `max_batch_size: 0`, or make the first dimension of every tensor variable"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests;
