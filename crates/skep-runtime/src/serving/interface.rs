//! A version's interface: its inputs and outputs.

use std::sync::{Arc, atomic::AtomicBool};

use skep_config::{ModelConfig, TensorConfig};
use skep_tensor::Tensor;
use skep_types::{ModelName, ModelSignature, ModelVersion};

use crate::serving::{ragged::BatchFeeds, sequences::SequenceFeeds};

/// An input or output of the configuration, and its position in the loaded model.
#[derive(Debug)]
pub(crate) struct InterfaceTensor {
    pub(crate) config: TensorConfig,
    /// Of an input: its index among the inputs that requests have, in the loaded model's order. It equals the index in
    /// the model's signature if the model has no other inputs. Of an output: its index in the signature.
    pub(crate) position: usize,
    /// The name, shared with every response.
    pub(crate) name: Arc<str>,
    /// The value of an optional input that a request omits; `None` if the input is required.
    pub(crate) when_omitted: Option<OmittedInput>,
    /// Of an output: whether the log says that its shape contradicts the configuration.
    pub(crate) warned_of_shape: AtomicBool,
}

impl InterfaceTensor {
    /// `None` if the name is not among `names`, which are in the model's order.
    fn new(config: &TensorConfig, names: &[&str], defaults: &[(String, Tensor)]) -> Option<Self> {
        let position = names.iter().position(|name| *name == config.name)?;
        let default = defaults.iter().find(|(name, _)| *name == config.name);
        let value = default.map_or(OmittedInput::Zeros, |(_, value)| {
            OmittedInput::Default(value.clone())
        });
        Some(Self {
            config: config.clone(),
            position,
            name: config.name.as_str().into(),
            when_omitted: config.optional.then_some(value),
            warned_of_shape: AtomicBool::new(false),
        })
    }
}

/// What the model gets for an input that a request omits.
#[derive(Debug)]
pub(crate) enum OmittedInput {
    /// The graph's default, in the shape that the model sees, once for a whole batch.
    Default(Tensor),
    /// Zeros, for a backend without a graph. Variable dimensions are 1.
    Zeros,
}

/// The inputs and outputs of a model: the configuration's, tied to the loaded model's order.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) model: ModelName,
    pub(crate) version: ModelVersion,
    pub(crate) max_batch_size: usize,
    /// Whether a response carries its request's parameters.
    pub(crate) echo_parameters: bool,
    pub(crate) inputs: Vec<InterfaceTensor>,
    pub(crate) outputs: Vec<InterfaceTensor>,
    /// Set for a model with ragged inputs or inputs of the server's.
    pub(crate) feeds: Option<BatchFeeds>,
    /// Set for a model whose requests belong to sequences.
    pub(crate) sequences: Option<SequenceFeeds>,
}

impl Interface {
    /// Ties a checked configuration to the model's signature.
    pub(crate) fn new(
        config: &ModelConfig,
        version: ModelVersion,
        signature: &ModelSignature,
        defaults: &[(String, Tensor)],
        sequences: Option<SequenceFeeds>,
    ) -> Self {
        let of_requests = signature.inputs.iter().map(|spec| &*spec.name);
        let of_requests: Vec<&str> = of_requests
            .filter(|name| config.input(name).is_some())
            .collect();
        let outputs = signature.outputs.iter().map(|spec| &*spec.name);
        let outputs: Vec<&str> = outputs.collect();
        Self {
            model: config.name().clone(),
            version,
            max_batch_size: config.max_batch_size(),
            echo_parameters: false,
            inputs: config
                .inputs()
                .iter()
                .filter_map(|input| InterfaceTensor::new(input, &of_requests, defaults))
                .collect(),
            outputs: config
                .outputs()
                .iter()
                .filter_map(|output| InterfaceTensor::new(output, &outputs, defaults))
                .collect(),
            feeds: BatchFeeds::new(config, signature, &of_requests, sequences.as_ref()),
            sequences,
        }
    }
}
