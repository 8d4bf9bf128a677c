//! Ragged batches: `allow_ragged_batch` joins inputs of different shapes flat, `batch_input` tells the model their
//! sizes, `batch_output` splits outputs again.
//!
//! Refusals are Triton's (`ValidateBatchIO`) where it has them.
//!
//! Source: Triton, user guide, "Ragged Batching"; `BatchInput` and `BatchOutput` in `model_config.proto`.

use std::collections::BTreeSet;

use skep_proto::inference::{
    self, batch_input::Kind as ProtoKind, batch_output::Kind as ProtoOutputKind,
};
use skep_types::{DataType, Dims};

use super::tensors::{InputConfig, OutputConfig};
use crate::{
    error::ConfigError,
    vocabulary::{datatypes::datatype, notice::Notice},
};

/// An input that the server computes from a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchInput {
    /// The model's input.
    pub name: String,
    /// What it contains.
    pub kind: BatchInputKind,
    /// INT32 or FP32.
    pub datatype: DataType,
    /// The input whose shapes it describes.
    pub source: String,
}

/// What a computed input contains. A request's *element count* is that of its tensor, including the batch dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BatchInputKind {
    /// The element count of each request: `[requests]`.
    ElementCount,
    /// The sum of the element counts up to and including each request: `[requests]`.
    AccumulatedElementCount,
    /// The same after a zero: `[requests + 1]`.
    AccumulatedElementCountWithZero,
    /// No meaningful data; its shape is `[the largest element count]`.
    MaxElementCountAsShape,
    /// The shape of each inference, without the batch dimension: `[inferences, rank]`.
    ItemShape,
    /// The same, flat: `[inferences * rank]`.
    ItemShapeFlatten,
}

impl BatchInputKind {
    /// The dims of such an input, as the model sees them.
    #[must_use]
    pub fn dims(self) -> Dims {
        let flat = Dims::default().with_batch();
        match self {
            Self::ItemShape => flat.with_batch(),
            _ => flat,
        }
    }
}

/// An output that is split among requests by the shapes of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchOutput {
    /// The model's output. It holds the elements of all requests in order.
    pub name: String,
    /// The input whose shape in each request gives the output's variable dimensions.
    pub source: String,
}

/// The computed inputs and split outputs of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RaggedBatching {
    pub(crate) inputs: Vec<BatchInput>,
    pub(crate) outputs: Vec<BatchOutput>,
}

/// Reads `allow_ragged_batch` into the inputs, and `batch_input` and `batch_output`.
pub(crate) fn read(
    proto: &inference::ModelConfig,
    inputs: &mut [InputConfig],
    outputs: &[OutputConfig],
    notices: &mut Vec<Notice>,
) -> Result<RaggedBatching, ConfigError> {
    let model = &*proto.name;
    for (index, (input, tensor)) in proto.input.iter().zip(inputs.iter_mut()).enumerate() {
        let field = format!("input[{index}].allow_ragged_batch");
        if input.allow_ragged_batch && !tensor.batched {
            let why = "no effect: `max_batch_size` is 0, so requests are never joined";
            notices.push(Notice::new(field, why));
        } else if input.allow_ragged_batch && tensor.optional {
            let reason = format!(
                "model input '{}' is optional, which is not supported for ragged input for {model}",
                tensor.name
            );
            return Err(ConfigError::invalid(model, field, reason));
        } else {
            tensor.ragged = input.allow_ragged_batch;
        }
    }
    let reader = RaggedReader {
        proto,
        inputs,
        outputs,
    };
    Ok(RaggedBatching {
        inputs: reader.batch_inputs()?,
        outputs: reader.batch_outputs()?,
    })
}

struct RaggedReader<'a> {
    proto: &'a inference::ModelConfig,
    inputs: &'a [InputConfig],
    outputs: &'a [OutputConfig],
}

impl RaggedReader<'_> {
    /// `<reason> for <model>`, as Triton says it.
    fn refuse(&self, field: String, reason: &str) -> ConfigError {
        let model = &*self.proto.name;
        ConfigError::invalid(model, field, format!("{reason} for {model}"))
    }

    fn batch_inputs(&self) -> Result<Vec<BatchInput>, ConfigError> {
        let mut all = Vec::new();
        let mut taken: BTreeSet<&str> = self.inputs.iter().map(|input| &*input.name).collect();
        for (index, batch_input) in self.proto.batch_input.iter().enumerate() {
            let inference::BatchInput {
                kind,
                target_name,
                data_type,
                source_input,
            } = batch_input;
            let path = format!("batch_input[{index}]");
            self.check_batched("batch_input")?;
            let Ok(proto_kind) = ProtoKind::try_from(*kind) else {
                return Err(self.refuse(format!("{path}.kind"), "unknown batch input kind"));
            };
            let kind = typed(proto_kind);
            let what = format!("batch input kind '{}'", proto_kind.as_str_name());
            let source = self.source(&format!("{path}.source_input"), &what, source_input)?;
            let Some(datatype) = datatype(*data_type)
                .filter(|datatype| matches!(datatype, DataType::Int32 | DataType::Fp32))
            else {
                let rule = "batch input data type must be TYPE_INT32 or TYPE_FP32";
                return Err(self.refuse(format!("{path}.data_type"), rule));
            };
            self.check_targets(&format!("{path}.target_name"), target_name)?;
            for name in target_name {
                if !taken.insert(name) {
                    let rule = format!("target input name '{name}' can only be specified once");
                    return Err(self.refuse(format!("{path}.target_name"), &rule));
                }
                all.push(BatchInput {
                    name: name.clone(),
                    kind,
                    datatype,
                    source: source.name.clone(),
                });
            }
        }
        Ok(all)
    }

    fn batch_outputs(&self) -> Result<Vec<BatchOutput>, ConfigError> {
        let mut all: Vec<BatchOutput> = Vec::new();
        for (index, batch_output) in self.proto.batch_output.iter().enumerate() {
            let inference::BatchOutput {
                target_name,
                kind,
                source_input,
            } = batch_output;
            let path = format!("batch_output[{index}]");
            self.check_batched("batch_output")?;
            let Ok(kind) = ProtoOutputKind::try_from(*kind) else {
                return Err(self.refuse(format!("{path}.kind"), "unknown batch output kind"));
            };
            let what = format!("batch output kind '{}'", kind.as_str_name());
            let source = self.source(&format!("{path}.source_input"), &what, source_input)?;
            self.check_targets(&format!("{path}.target_name"), target_name)?;
            for name in target_name {
                let Some(output) = self.outputs.iter().find(|output| output.name == *name) else {
                    let rule = format!("unknown target output name '{name}'");
                    return Err(self.refuse(format!("{path}.target_name"), &rule));
                };
                if all.iter().any(|other| other.name == *name) {
                    let rule = format!("target output name '{name}' can only be specified once");
                    return Err(self.refuse(format!("{path}.target_name"), &rule));
                }
                if !can_split(output, source) {
                    let rule = format!(
                        "target output '{name}' with dims {} must have no reshape, and no variable dimension beyond the rank of input '{}' with dims {}",
                        output.dims,
                        source.name,
                        source.model_dims()
                    );
                    return Err(self.refuse(format!("{path}.target_name"), &rule));
                }
                all.push(BatchOutput {
                    name: name.clone(),
                    source: source.name.clone(),
                });
            }
        }
        Ok(all)
    }

    fn check_batched(&self, field: &str) -> Result<(), ConfigError> {
        if self.proto.max_batch_size > 0 {
            return Ok(());
        }
        let rule = "batch inputs and outputs need a batch: max_batch_size must be above 0";
        Err(self.refuse(field.to_owned(), rule))
    }

    fn check_targets(&self, field: &str, names: &[String]) -> Result<(), ConfigError> {
        if names.iter().any(String::is_empty) || names.is_empty() {
            return Err(self.refuse(field.to_owned(), "must specify 'target_name'"));
        }
        Ok(())
    }

    /// The input that a kind refers to.
    fn source(
        &self,
        field: &str,
        what: &str,
        names: &[String],
    ) -> Result<&InputConfig, ConfigError> {
        let [name] = names else {
            let rule = format!("{what} expects 1 source input, got {}", names.len());
            return Err(self.refuse(field.to_owned(), &rule));
        };
        let found = self.inputs.iter().find(|input| input.name == *name);
        found.ok_or_else(|| {
            self.refuse(
                field.to_owned(),
                &format!("unknown source input name '{name}'"),
            )
        })
    }
}

/// Whether the shape of `source` in a request gives all variable dimensions of `output`.
fn can_split(output: &OutputConfig, source: &InputConfig) -> bool {
    let dims = output.dims.as_slice();
    let last_variable = dims.iter().rposition(|dim| *dim == -1);
    output.reshape.is_none() && last_variable.is_none_or(|last| last < source.model_dims().rank())
}

const fn typed(kind: ProtoKind) -> BatchInputKind {
    match kind {
        ProtoKind::BatchElementCount => BatchInputKind::ElementCount,
        ProtoKind::BatchAccumulatedElementCount => BatchInputKind::AccumulatedElementCount,
        ProtoKind::BatchAccumulatedElementCountWithZero => {
            BatchInputKind::AccumulatedElementCountWithZero
        }
        ProtoKind::BatchMaxElementCountAsShape => BatchInputKind::MaxElementCountAsShape,
        ProtoKind::BatchItemShape => BatchInputKind::ItemShape,
        ProtoKind::BatchItemShapeFlatten => BatchInputKind::ItemShapeFlatten,
    }
}

#[cfg(test)]
#[path = "ragged_tests.rs"]
mod tests;
