//! What a version takes and gives.

use std::sync::{Arc, atomic::AtomicBool};

use skep_config::{ModelConfig, TensorConfig};
use skep_tensor::Tensor;
use skep_types::{ModelName, ModelSignature, ModelVersion};

use crate::serving::ragged::Ragged;

/// An input or output of the configuration, and where the loaded model has it.
#[derive(Debug)]
pub(crate) struct InterfaceTensor {
    pub(crate) config: TensorConfig,
    /// Of an input: its place among those of requests, in the loaded model's order, which is its index in the model's
    /// signature where the model has no others. Of an output: its index there.
    pub(crate) position: usize,
    /// The name, shared with every answer.
    pub(crate) name: Arc<str>,
    /// What an optional input is in a request that leaves it out; `None` for what is required.
    pub(crate) absent: Option<OmittedInput>,
    /// Of an output: whether the log says that its shape contradicts the configuration.
    pub(crate) warned_of_shape: AtomicBool,
}

/// What the model gets for an input that a request leaves out.
#[derive(Debug)]
pub(crate) enum OmittedInput {
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
    pub(crate) inputs: Vec<InterfaceTensor>,
    pub(crate) outputs: Vec<InterfaceTensor>,
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
            let absent = default.map_or(OmittedInput::Zeros, |(_, value)| {
                OmittedInput::Default(value.clone())
            });
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
            Some(InterfaceTensor {
                config: tensor.clone(),
                position,
                name: tensor.name.as_str().into(),
                absent: absent(tensor),
                warned_of_shape: AtomicBool::new(false),
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
