//! `input` and `output`, checked by Triton's rules.

use std::collections::BTreeSet;

use skep_proto::inference;
use skep_types::{DataType, Dims};

use super::review::Review;
use crate::{
    error::ConfigError,
    vocabulary::{
        datatypes::datatype,
        paths::{leaves, stays_inside},
    },
};

/// An input or output, as clients and as the model see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorConfig {
    /// The tensor's name.
    pub name: String,
    /// The datatype of its elements.
    pub datatype: DataType,
    /// The dims that a client sends or gets, without the batch dimension; never empty.
    pub dims: Dims,
    /// The dims that the model sees instead of `dims`, without the batch dimension. The caller reshapes.
    pub reshape: Option<Dims>,
    /// Whether a request may leave it out.
    pub optional: bool,
    /// The file of class labels, relative to the model's directory.
    pub label_filename: Option<String>,
    /// Whether a batch dimension precedes `dims` and `reshape`.
    pub batched: bool,
    /// Whether its shape may differ between requests of a batch (`allow_ragged_batch`). The model then sees the
    /// elements of all requests in one flat row.
    pub ragged: bool,
}

/// An input.
pub type InputConfig = TensorConfig;
/// An output.
pub type OutputConfig = TensorConfig;

impl TensorConfig {
    /// The dims that the model sees, without the batch dimension.
    #[must_use]
    pub fn model_dims(&self) -> &Dims {
        self.reshape.as_ref().unwrap_or(&self.dims)
    }

    /// The dims that the model sees, after the batch dimension if there is one; `[-1]` for a ragged input.
    #[must_use]
    pub fn full_dims(&self) -> Dims {
        if self.ragged {
            Dims::default().with_batch()
        } else if self.batched {
            self.model_dims().with_batch()
        } else {
            self.model_dims().clone()
        }
    }

    /// The dims that a client sees in the model's metadata, after the batch dimension if there is one.
    #[must_use]
    pub fn client_dims(&self) -> Dims {
        if self.batched {
            self.dims.with_batch()
        } else {
            self.dims.clone()
        }
    }
}

pub(super) fn review_inputs(
    review: &mut Review<'_>,
    inputs: &[inference::ModelInput],
) -> Result<(), ConfigError> {
    for (index, input) in inputs.iter().enumerate() {
        let inference::ModelInput {
            // read below
            name: _,
            data_type: _,
            dims: _,
            reshape: _,
            format,
            is_shape_tensor,
            // ragged.rs
            allow_ragged_batch: _,
            // compared with the model's file by `ModelConfig::check_optional`
            optional: _,
            is_non_linear_format_io,
        } = input;
        let path = format!("input[{index}]");
        refuse_tensorrt_io(review, &path, *is_shape_tensor, *is_non_linear_format_io)?;
        review.no_effect(
            *format != 0,
            format!("{path}.format"),
            "informative only: data is passed on unchanged",
        );
    }
    Ok(())
}

pub(super) fn review_outputs(
    review: &Review<'_>,
    outputs: &[inference::ModelOutput],
) -> Result<(), ConfigError> {
    for (index, output) in outputs.iter().enumerate() {
        let inference::ModelOutput {
            // read below
            name: _,
            data_type: _,
            dims: _,
            reshape: _,
            label_filename: _,
            is_shape_tensor,
            is_non_linear_format_io,
        } = output;
        let path = format!("output[{index}]");
        refuse_tensorrt_io(review, &path, *is_shape_tensor, *is_non_linear_format_io)?;
    }
    Ok(())
}

/// Triton refuses these two, in these words, except for TensorRT.
fn refuse_tensorrt_io(
    review: &Review<'_>,
    path: &str,
    is_shape_tensor: bool,
    is_non_linear: bool,
) -> Result<(), ConfigError> {
    let (name, text) = if is_shape_tensor {
        (
            "is_shape_tensor",
            "shape tensors are only supported for TensorRT platform",
        )
    } else if is_non_linear {
        (
            "is_non_linear_format_io",
            "Non-linear IO format is only supported for the TensorRT platform",
        )
    } else {
        return Ok(());
    };
    Err(ConfigError::invalid(
        review.model,
        format!("{path}.{name}"),
        format!("{text} for {}", review.model),
    ))
}

/// The fields that inputs and outputs share.
struct TensorFields<'a> {
    model: &'a str,
    /// `input` or `output`.
    side: &'static str,
    index: usize,
    name: &'a str,
    data_type: i32,
    dims: &'a [i64],
    reshape: Option<&'a [i64]>,
    batched: bool,
}

/// Reads all inputs.
pub(crate) fn read_inputs(proto: &inference::ModelConfig) -> Result<Vec<InputConfig>, ConfigError> {
    let mut typed: Vec<InputConfig> = Vec::with_capacity(proto.input.len());
    let mut names = BTreeSet::new();
    for (index, input) in proto.input.iter().enumerate() {
        let fields = TensorFields {
            model: &proto.name,
            side: "input",
            index,
            name: &input.name,
            data_type: input.data_type,
            dims: &input.dims,
            reshape: input.reshape.as_ref().map(|r| &r.shape[..]),
            batched: proto.max_batch_size > 0,
        };
        let mut tensor = fields.read()?;
        if input.format() != inference::model_input::Format::None && input.dims.len() != 3 {
            return Err(fields.error("format", "model input NHWC/NCHW require 3 dims".to_owned()));
        }
        tensor.optional = input.optional;
        fields.refuse_duplicate(&mut names)?;
        typed.push(tensor);
    }
    Ok(typed)
}

/// Reads all outputs.
pub(crate) fn read_outputs(
    proto: &inference::ModelConfig,
) -> Result<Vec<OutputConfig>, ConfigError> {
    let mut typed: Vec<OutputConfig> = Vec::with_capacity(proto.output.len());
    let mut names = BTreeSet::new();
    for (index, output) in proto.output.iter().enumerate() {
        let fields = TensorFields {
            model: &proto.name,
            side: "output",
            index,
            name: &output.name,
            data_type: output.data_type,
            dims: &output.dims,
            reshape: output.reshape.as_ref().map(|r| &r.shape[..]),
            batched: proto.max_batch_size > 0,
        };
        let mut tensor = fields.read()?;
        if !output.label_filename.is_empty() {
            if !stays_inside(&output.label_filename) {
                return Err(fields.error(
                    "label_filename",
                    leaves(&format!("{}label_filename", fields.prefix())),
                ));
            }
            tensor.label_filename = Some(output.label_filename.clone());
        }
        fields.refuse_duplicate(&mut names)?;
        typed.push(tensor);
    }
    Ok(typed)
}

/// Refuses a model without outputs, which has nothing to answer, and one that batches without inputs, whose batch size
/// would be unknown.
pub(crate) fn check_has_tensors(proto: &inference::ModelConfig) -> Result<(), ConfigError> {
    let (side, why) = match (proto.input.as_slice(), proto.output.as_slice()) {
        (_, []) => ("output", ""),
        ([], _) if proto.max_batch_size > 0 => ("input", " because max_batch_size is above 0"),
        _ => return Ok(()),
    };
    Err(ConfigError::Invalid {
        model: proto.name.clone(),
        field: side.to_owned(),
        reason: format!(
            "model `{}` has no {side}, expected at least one{why}",
            proto.name
        ),
        hint: Some(format!(
            "write `{side} [ {{ name: .. data_type: .. dims: [..] }} ]`, or leave auto-completion on"
        )),
    })
}

impl<'a> TensorFields<'a> {
    /// `model input 'x' `, the start of Triton's texts.
    fn prefix(&self) -> String {
        if self.name.is_empty() {
            format!("model {} ", self.side)
        } else {
            format!("model {} '{}' ", self.side, self.name)
        }
    }

    fn error(&self, field: &str, text: String) -> ConfigError {
        let field = format!("{}[{}].{field}", self.side, self.index);
        ConfigError::invalid(self.model, field, format!("{text} for {}", self.model))
    }

    fn read(&self) -> Result<TensorConfig, ConfigError> {
        let prefix = self.prefix();
        if self.name.is_empty() {
            return Err(self.error("name", format!("{prefix}must specify 'name'")));
        }
        let Some(datatype) = datatype(self.data_type) else {
            return Err(self.error("data_type", format!("{prefix}must specify 'data_type'")));
        };
        if self.dims.is_empty() {
            return Err(self.error("dims", format!("{prefix}must specify 'dims'")));
        }
        let dims = self.checked_dims("dims", "dimension", self.dims)?;
        let reshape = match self.reshape {
            None => None,
            Some([]) if !self.batched => {
                let text = "cannot have empty reshape for non-batching model as scalar tensors are not supported";
                return Err(self.error("reshape", format!("{prefix}{text}")));
            }
            Some(shape) => {
                let reshape = self.checked_dims("reshape.shape", "reshape dimensions", shape)?;
                self.check_reshape(shape)?;
                Some(reshape)
            }
        };
        let (name, batched) = (self.name.to_owned(), self.batched);
        Ok(TensorConfig {
            name,
            datatype,
            dims,
            reshape,
            optional: false,
            label_filename: None,
            batched,
            ragged: false,
        })
    }

    fn checked_dims(&self, field: &str, words: &str, dims: &[i64]) -> Result<Dims, ConfigError> {
        if dims.iter().any(|&d| d < 1 && d != -1) {
            let text = format!(
                "{}{words} must be integer >= 1, or -1 to indicate a variable-size dimension",
                self.prefix()
            );
            return Err(self.error(field, text));
        }
        // A tensor with more elements in its fixed dimensions cannot be addressed.
        let fixed = dims
            .iter()
            .filter(|&&d| d != -1)
            .try_fold(1i64, |n, &d| n.checked_mul(d));
        if fixed.is_none_or(|n| n > i64::MAX >> 4) {
            return Err(self.error(
                field,
                format!("{}{field} {dims:?} has too many elements", self.prefix()),
            ));
        }
        Dims::new(dims).map_err(|error| self.error(field, format!("{}{error}", self.prefix())))
    }

    /// Checks that variable dimensions correspond in order, and that the fixed products between them are equal.
    fn check_reshape(&self, shape: &[i64]) -> Result<(), ConfigError> {
        let (dims, reshape) = (fixed_products(self.dims), fixed_products(shape));
        let text = match (dims.len(), reshape.len()) {
            _ if dims == reshape => return Ok(()),
            // One side has a fixed size, the other a variable one.
            (1, _) | (_, 1) => "has different size for dims and reshape",
            (d, r) if d != r => {
                "has different number of variable-size dimensions for dims and reshape"
            }
            _ => "has different size for dims and reshape",
        };
        Err(self.error("reshape.shape", format!("{}{text}", self.prefix())))
    }

    fn refuse_duplicate(&self, names: &mut BTreeSet<&'a str>) -> Result<(), ConfigError> {
        if names.insert(self.name) {
            return Ok(());
        }
        Err(self.error("name", format!("{}is listed twice", self.prefix())))
    }
}

/// The products of the fixed dimensions before, between and after the variable ones. They cannot overflow, because the
/// product of all fixed dimensions was checked.
fn fixed_products(dims: &[i64]) -> Vec<i64> {
    dims.split(|&d| d == -1)
        .map(|fixed| fixed.iter().product())
        .collect()
}

#[cfg(test)]
#[path = "tensors_tests.rs"]
mod tests;
