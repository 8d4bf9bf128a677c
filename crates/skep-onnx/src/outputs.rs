//! A file's outputs: those that can be served, those whose type it does not declare, and those that are left out.
//!
//! A graph's output may be anything that ONNX knows; the protocol carries only tensors. A model is served without the
//! outputs that cannot be carried: scikit-learn's classifiers give labels as a tensor, and probabilities as a sequence
//! of maps. And a file need not declare the type of an output: exposing an inner tensor takes no more than its name.

use skep_proto::onnx::{TypeProto, ValueInfoProto, tensor_proto, type_proto};
use skep_types::TensorSpec;

use crate::{OnnxError, OnnxModel, datatype, spec};

/// An output that the protocol cannot carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// What it is: `a sequence of maps`.
    pub what: String,
    /// What to do to get it as a tensor, where that is known.
    pub remedy: Option<String>,
}

impl std::fmt::Display for LeftOut {
    /// `output `p` is a sequence of maps`, and the remedy on a line of its own.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "output `{}` is {}", self.name, self.what)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n{remedy}"),
            None => Ok(()),
        }
    }
}

/// How to get tensors of a classifier that scikit-learn's converters and their like wrote.
const NO_ZIP_MAP: &str = "convert the model with `zipmap=False` to get this output as a tensor (skl2onnx: `to_onnx(model, x, options={'zipmap': False})`)";

impl OnnxModel {
    /// The outputs whose datatype the file does not declare; the runtime or the configuration must.
    pub fn undeclared_outputs(&self) -> impl Iterator<Item = &str> {
        let outputs = self.graph().output.iter();
        outputs
            .filter(|v| is_undeclared(v))
            .map(ValueInfoProto::name)
    }

    /// The outputs that the protocol cannot carry: no tensors, or of another datatype than it has.
    #[must_use]
    pub fn left_out(&self) -> Vec<LeftOut> {
        let outputs = self.graph().output.iter();
        let left = outputs.filter(|v| !is_undeclared(v) && !is_servable(v));
        left.map(|value| LeftOut {
            name: value.name().to_owned(),
            what: describe(value.r#type.as_ref()),
            remedy: self.is_zip_map(value.name()).then(|| NO_ZIP_MAP.to_owned()),
        })
        .collect()
    }

    /// Whether an output is what `ZipMap` gives: maps from classes to probabilities.
    fn is_zip_map(&self, output: &str) -> bool {
        let mut nodes = self.graph().node.iter();
        nodes.any(|node| node.op_type() == "ZipMap" && node.output.iter().any(|o| o == output))
    }

    /// The outputs that can be served, in the file's order. `told` describes those that the file does not declare.
    ///
    /// # Errors
    /// As [`OnnxModel::signature`].
    pub(crate) fn declared_outputs(
        &self,
        told: &dyn Fn(&str) -> Option<TensorSpec>,
    ) -> Result<Vec<TensorSpec>, OnnxError> {
        let outputs = &self.graph().output;
        if !outputs.iter().any(|v| is_undeclared(v) || is_servable(v)) {
            let left: Vec<String> = self.left_out().iter().map(ToString::to_string).collect();
            return Err(OnnxError::NoOutput(left.join("\n")));
        }
        let of = |value: &ValueInfoProto| {
            if is_undeclared(value) {
                return told(value.name()).map(Ok);
            }
            is_servable(value).then(|| spec("output", value))
        };
        outputs.iter().filter_map(of).collect()
    }
}

/// The element type in a tensor's declaration, 0 where there is none; `None` where the value is not a tensor.
fn element(value: &ValueInfoProto) -> Option<i32> {
    match value.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => Some(tensor.elem_type()),
        _ => None,
    }
}

/// Whether a file does not declare the datatype of an output.
#[must_use]
pub fn is_undeclared(value: &ValueInfoProto) -> bool {
    let has_type = value.r#type.as_ref().is_some_and(|t| t.value.is_some());
    !has_type || element(value) == Some(tensor_proto::DataType::Undefined as i32)
}

pub(crate) fn is_servable(value: &ValueInfoProto) -> bool {
    element(value).and_then(datatype).is_some()
}

/// `a sequence of maps`, `a tensor of element type 14 (COMPLEX64)`.
pub(crate) fn describe(value: Option<&TypeProto>) -> String {
    use type_proto::Value;
    match value.and_then(|t| t.value.as_ref()) {
        Some(Value::TensorType(tensor)) => {
            let element = tensor.elem_type();
            let known = tensor_proto::DataType::try_from(element);
            let known = known.map_or("of an unknown", |t| t.as_str_name());
            format!("a tensor of element type {element} ({known})")
        }
        Some(Value::SequenceType(sequence)) => {
            let inner = sequence.elem_type.as_deref().and_then(|t| t.value.as_ref());
            let of = match inner {
                Some(Value::TensorType(_)) => " of tensors",
                Some(Value::MapType(_)) => " of maps",
                _ => "",
            };
            format!("a sequence{of}")
        }
        Some(Value::MapType(_)) => "a map".to_owned(),
        Some(Value::OptionalType(_)) => "an optional".to_owned(),
        Some(Value::SparseTensorType(_)) => "a sparse tensor".to_owned(),
        Some(Value::OpaqueType(_)) => "opaque".to_owned(),
        None => "of no declared type".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use skep_proto::onnx::{GraphProto, ModelProto, NodeProto, TensorShapeProto};
    use skep_types::DataType;

    use super::*;
    use crate::ShapeRules;

    fn output(name: &str, value: Option<type_proto::Value>) -> ValueInfoProto {
        ValueInfoProto {
            name: Some(name.to_owned()),
            r#type: value.map(|value| TypeProto {
                denotation: None,
                value: Some(value),
            }),
            ..Default::default()
        }
    }

    fn tensor(element: i32) -> Option<type_proto::Value> {
        Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: Some(element),
            shape: Some(TensorShapeProto::default()),
        }))
    }

    fn maps() -> Option<type_proto::Value> {
        let map = type_proto::Value::MapType(Box::default());
        let sequence = type_proto::Sequence {
            elem_type: Some(Box::new(TypeProto {
                denotation: None,
                value: Some(map),
            })),
        };
        Some(type_proto::Value::SequenceType(Box::new(sequence)))
    }

    fn model(outputs: Vec<ValueInfoProto>) -> OnnxModel {
        let zip = NodeProto {
            op_type: Some("ZipMap".to_owned()),
            output: vec!["p".to_owned()],
            ..Default::default()
        };
        let graph = GraphProto {
            output: outputs,
            node: vec![zip],
            ..Default::default()
        };
        let proto = ModelProto {
            graph: Some(graph),
            ..Default::default()
        };
        OnnxModel::decode(proto.encode_to_vec().into()).expect("decodes")
    }

    #[test]
    fn unservable_outputs_are_left_out_with_a_remedy() {
        let complex = tensor_proto::DataType::Complex64 as i32;
        let model = model(vec![
            output("label", tensor(7)),
            output("p", maps()),
            output("c", tensor(complex)),
        ]);
        let outputs = model.signature().expect("servable").outputs;
        assert_eq!(outputs.len(), 1);
        assert_eq!(outputs[0].name, "label");
        let left: Vec<String> = model.left_out().iter().map(ToString::to_string).collect();
        assert_eq!(left.len(), 2);
        assert!(
            left[0].starts_with("output `p` is a sequence of maps\n"),
            "{left:?}"
        );
        assert!(left[0].contains("`zipmap=False`"), "{left:?}");
        assert_eq!(
            left[1],
            "output `c` is a tensor of element type 14 (COMPLEX64)"
        );
        let rules = ShapeRules::of(&model).expect("of those that are served");
        assert_eq!(rules.output_shapes(&[]).map(|shapes| shapes.len()), Some(1));
    }

    #[test]
    fn a_model_without_a_servable_output_is_refused() {
        let model = model(vec![output("q", maps()), output("r", maps())]);
        assert_eq!(
            model.signature().map(drop).map_err(|error| error.to_string()),
            Err("the protocol can carry none of its outputs: output `q` is a sequence of maps\noutput `r` is a sequence of maps".to_owned())
        );
    }

    #[test]
    fn the_caller_describes_undeclared_outputs() {
        let model = model(vec![
            output("a", None),
            output("y", tensor(1)),
            output("b", tensor(0)),
        ]);
        let undeclared: Vec<&str> = model.undeclared_outputs().collect();
        assert_eq!(undeclared, ["a", "b"]);
        assert!(model.left_out().is_empty());
        assert_eq!(model.signature().expect("servable").outputs.len(), 1);
        let told = |name: &str| {
            (name == "b").then(|| TensorSpec {
                name: name.to_owned(),
                datatype: DataType::Int8,
                dims: None,
            })
        };
        let outputs = model.signature_with([], &told).expect("servable").outputs;
        let names: Vec<&str> = outputs.iter().map(|spec| &*spec.name).collect();
        assert_eq!(names, ["y", "b"]);
        assert_eq!(outputs[1].datatype, DataType::Int8);
    }
}
