//! Inputs and outputs of a configuration, validated as Triton does.

use std::collections::BTreeSet;

use skep_proto::inference;
use skep_types::{DataType, Dims};

use crate::error::ConfigError;

/// An input or output as clients and the model see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorConfig {
    /// The tensor's name.
    pub name: String,
    /// The datatype of its elements.
    pub datatype: DataType,
    /// What a client sends or gets, without the batch dimension; never empty.
    pub dims: Dims,
    /// What the model sees instead of `dims`, without the batch dimension; the caller reshapes.
    pub reshape: Option<Dims>,
    /// Whether a request may leave it out.
    pub optional: bool,
    /// The file of class labels, relative to the model's directory.
    pub label_filename: Option<String>,
    /// Whether a batch dimension precedes `dims` and `reshape`.
    pub batched: bool,
    /// Whether requests of a batch may differ in its shape (`allow_ragged_batch`): the model sees their elements flat, one
    /// request behind the other.
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

    /// The dims that the model sees, behind the batch dimension if there is one; `[-1]` for a ragged input.
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

    /// The dims that a client sees, behind the batch dimension if there is one: what model metadata shows.
    #[must_use]
    pub fn client_dims(&self) -> Dims {
        if self.batched {
            self.dims.with_batch()
        } else {
            self.dims.clone()
        }
    }
}

/// The datatype behind a number of the wire's enum; `None` for `TYPE_INVALID` and unknown numbers.
pub(crate) fn datatype(number: i32) -> Option<DataType> {
    let name = inference::DataType::try_from(number).ok()?.as_str_name();
    DataType::ALL
        .into_iter()
        .find(|datatype| datatype.config_name() == name)
}

/// The number of a datatype in the wire's enum.
pub(crate) fn datatype_number(datatype: DataType) -> i32 {
    let number = inference::DataType::from_str_name(datatype.config_name());
    number.unwrap_or(inference::DataType::TypeInvalid).into()
}

/// The fields that inputs and outputs share.
struct Io<'a> {
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
pub(crate) fn inputs(proto: &inference::ModelConfig) -> Result<Vec<InputConfig>, ConfigError> {
    let mut typed: Vec<InputConfig> = Vec::with_capacity(proto.input.len());
    let mut names = BTreeSet::new();
    for (index, input) in proto.input.iter().enumerate() {
        let io = Io {
            model: &proto.name,
            side: "input",
            index,
            name: &input.name,
            data_type: input.data_type,
            dims: &input.dims,
            reshape: input.reshape.as_ref().map(|r| &r.shape[..]),
            batched: proto.max_batch_size > 0,
        };
        let mut tensor = io.read()?;
        if input.format() != inference::model_input::Format::None && input.dims.len() != 3 {
            return Err(io.error("format", "model input NHWC/NCHW require 3 dims".to_owned()));
        }
        tensor.optional = input.optional;
        io.refuse_second(&mut names)?;
        typed.push(tensor);
    }
    Ok(typed)
}

/// Reads all outputs.
pub(crate) fn outputs(proto: &inference::ModelConfig) -> Result<Vec<OutputConfig>, ConfigError> {
    let mut typed: Vec<OutputConfig> = Vec::with_capacity(proto.output.len());
    let mut names = BTreeSet::new();
    for (index, output) in proto.output.iter().enumerate() {
        let io = Io {
            model: &proto.name,
            side: "output",
            index,
            name: &output.name,
            data_type: output.data_type,
            dims: &output.dims,
            reshape: output.reshape.as_ref().map(|r| &r.shape[..]),
            batched: proto.max_batch_size > 0,
        };
        let mut tensor = io.read()?;
        if !output.label_filename.is_empty() {
            if !stays_inside(&output.label_filename) {
                return Err(io.error(
                    "label_filename",
                    leaves(&format!("{}label_filename", io.prefix())),
                ));
            }
            tensor.label_filename = Some(output.label_filename.clone());
        }
        io.refuse_second(&mut names)?;
        typed.push(tensor);
    }
    Ok(typed)
}

impl<'a> Io<'a> {
    /// `model input 'x' `, as Triton's texts begin.
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
        let refuse = |rule: &str| {
            self.error(
                field,
                format!("{}{words} must be integer {rule}", self.prefix()),
            )
        };
        if dims.iter().any(|&d| d < 1 && d != -1) {
            return Err(refuse(">= 1, or -1 to indicate a variable-size dimension"));
        }
        // Elements in fixed dimensions: a tensor of more cannot be addressed.
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

    /// Variable dimensions correspond in order, and the fixed products between them are equal.
    fn check_reshape(&self, shape: &[i64]) -> Result<(), ConfigError> {
        let (dims, reshape) = (
            runs_between_variables(self.dims),
            runs_between_variables(shape),
        );
        let text = match (dims.len(), reshape.len()) {
            _ if dims == reshape => return Ok(()),
            // One run on one side is a fixed size against a variable one.
            (1, _) | (_, 1) => "has different size for dims and reshape",
            (d, r) if d != r => {
                "has different number of variable-size dimensions for dims and reshape"
            }
            _ => "has different size for dims and reshape",
        };
        Err(self.error("reshape.shape", format!("{}{text}", self.prefix())))
    }

    fn refuse_second(&self, names: &mut BTreeSet<&'a str>) -> Result<(), ConfigError> {
        if names.insert(self.name) {
            return Ok(());
        }
        Err(self.error("name", format!("{}is listed twice", self.prefix())))
    }
}

/// The products of the fixed dimensions before, between and after the variable ones. They cannot overflow: the product
/// of all fixed dimensions was checked.
fn runs_between_variables(dims: &[i64]) -> Vec<i64> {
    dims.split(|&d| d == -1)
        .map(|run| run.iter().product())
        .collect()
}

/// Whether a path of the configuration stays inside the directory that it is relative to.
pub(crate) fn stays_inside(path: &str) -> bool {
    let bad_part = |part: &str| part == ".." || part.contains(['\0', '\\']);
    !path.is_empty() && !path.starts_with('/') && !path.split('/').any(bad_part)
}

/// The text for a path that does not.
pub(crate) fn leaves(what: &str) -> String {
    format!("{what} must be a relative path without '..'")
}

#[cfg(test)]
mod tests {
    use super::{inputs, outputs, stays_inside};
    use crate::parse_pbtxt;

    fn read(text: &str) -> Result<String, String> {
        let config = parse_pbtxt(format!("name: 'm' {text}").as_bytes(), "c").expect("parses");
        let shown = inputs(&config).and_then(|mut all| {
            all.extend(outputs(&config)?);
            Ok(all
                .iter()
                .map(|t| {
                    format!(
                        "{} {} {} {}",
                        t.name,
                        t.datatype,
                        t.client_dims(),
                        t.full_dims()
                    )
                })
                .collect())
        });
        shown
            .map(|lines: Vec<String>| lines.join("; "))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn tensors_are_read() {
        assert_eq!(
            read(
                "max_batch_size: 8 input { name: 'x' data_type: TYPE_STRING dims: [1] reshape {} } output { name: 'y' data_type: TYPE_BF16 dims: [-1, 4] }"
            ),
            Ok("x BYTES [-1,1] [-1]; y BF16 [-1,-1,4] [-1,-1,4]".to_owned())
        );
        assert_eq!(
            read(
                "input { name: 'x' data_type: TYPE_FP32 dims: [2,4,-1,6] reshape { shape: [8,-1,1,6] } }"
            ),
            Ok("x FP32 [2,4,-1,6] [8,-1,1,6]".to_owned())
        );
        assert_eq!(
            read("input { name: 'x' data_type: TYPE_FP32 format: FORMAT_NHWC dims: [2,4,3] }"),
            Ok("x FP32 [2,4,3] [2,4,3]".to_owned())
        );
    }

    #[test]
    fn refusals_use_tritons_words() {
        let variable = "must be integer >= 1, or -1 to indicate a variable-size dimension for m";
        for (text, expected) in [
            ("input {}", "model input must specify 'name' for m".to_owned()),
            ("output { name: 'y' }", "model output 'y' must specify 'data_type' for m".to_owned()),
            ("input { name: 'x' data_type: TYPE_FP32 }", "model input 'x' must specify 'dims' for m".to_owned()),
            ("input { name: 'x' data_type: 1 dims: 0 }", format!("model input 'x' dimension {variable}")),
            ("input { name: 'x' data_type: 1 dims: -2 }", format!("model input 'x' dimension {variable}")),
            (
                "input { name: 'x' data_type: 1 dims: 1 reshape { shape: 0 } }",
                format!("model input 'x' reshape dimensions {variable}"),
            ),
            (
                "input { name: 'x' data_type: 1 dims: 1 reshape {} }",
                "model input 'x' cannot have empty reshape for non-batching model as scalar tensors are not supported for m".to_owned(),
            ),
            (
                "input { name: 'x' data_type: 1 dims: [2,3] reshape { shape: [5] } }",
                "model input 'x' has different size for dims and reshape for m".to_owned(),
            ),
            (
                "input { name: 'x' data_type: 1 dims: [2,3] reshape { shape: [-1] } }",
                "model input 'x' has different size for dims and reshape for m".to_owned(),
            ),
            (
                "max_batch_size: 1 input { name: 'x' data_type: 1 dims: [2] reshape { } }",
                "model input 'x' has different size for dims and reshape for m".to_owned(),
            ),
            (
                "input { name: 'x' data_type: 1 dims: [2,-1,3] reshape { shape: [3,-1,2] } }",
                "model input 'x' has different size for dims and reshape for m".to_owned(),
            ),
            (
                "output { name: 'x' data_type: 1 dims: [-1,-1] reshape { shape: [-1,1,-1,-1] } }",
                "model output 'x' has different number of variable-size dimensions for dims and reshape for m".to_owned(),
            ),
            (
                "input { name: 'x' data_type: 1 dims: [4611686018427387904, 4] }",
                "model input 'x' dims [4611686018427387904, 4] has too many elements for m".to_owned(),
            ),
            (
                "input { name: 'x' data_type: 1 dims: [3, 2] format: FORMAT_NCHW }",
                "model input NHWC/NCHW require 3 dims for m".to_owned(),
            ),
            (
                "input [ { name: 'x' data_type: 1 dims: 1 }, { name: 'x' data_type: 1 dims: 1 } ]",
                "model input 'x' is listed twice for m".to_owned(),
            ),
            (
                "output { name: 'y' data_type: 1 dims: 1 label_filename: '../l' }",
                "model output 'y' label_filename must be a relative path without '..' for m".to_owned(),
            ),
        ] {
            assert_eq!(read(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn paths() {
        for good in ["model.onnx", "a/b.onnx", "..a", "a..", "./x"] {
            assert!(stays_inside(good), "{good}");
        }
        for bad in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../../x",
            "a\\..\\b",
            "a\0",
        ] {
            assert!(!stays_inside(bad), "{bad}");
        }
    }
}
