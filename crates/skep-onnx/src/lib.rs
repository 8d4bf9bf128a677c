//! What an ONNX file says of itself.
//!
//! [`OnnxModel`] decodes a file from bytes, keeping weights as slices of them (so a mapped file is not read, only
//! walked), and answers what backends and the repository ask before anything is loaded: the signature with its true
//! datatypes ([`LeftOut`] are the outputs that cannot be served), and the graphs within graphs. [`recognize`] tells
//! what a file is that is not an ONNX model. [`ShapeRules`] says which output shapes follow from input shapes by
//! declaration; `skep-shapes` infers the shapes of all tensors. [`ExternalData`] says where in another file a tensor's
//! data lies. No I/O.

mod defaults;
mod external;
mod foreign;
mod outputs;
mod shapes;
#[cfg(test)]
mod test_values;

use std::collections::BTreeSet;

use bytes::Bytes;
pub use defaults::DefaultValue;
pub use external::{ExternalData, is_external};
pub use foreign::{is_ort, recognize};
pub use outputs::{LeftOut, is_undeclared};
use prost::Message;
pub use shapes::{ShapeRules, dimension_name, dimensions, known_dimension_name};
use skep_proto::onnx::{
    GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_proto, tensor_shape_proto, type_proto,
};
use skep_types::{DataType, Dims, ModelSignature, TensorSpec};

/// A decoded ONNX file.
#[derive(Debug, Clone)]
pub struct OnnxModel {
    proto: ModelProto,
}

/// Calls `look` for every initializer and every tensor in an attribute of a graph, subgraphs included.
fn for_each_tensor(graph: &GraphProto, look: &mut dyn FnMut(&TensorProto)) {
    graph.initializer.iter().for_each(&mut *look);
    sparse(&graph.sparse_initializer).for_each(&mut *look);
    for_each_tensor_of(&graph.node, look);
}

/// The same for the tensors in attributes of nodes.
fn for_each_tensor_of(nodes: &[NodeProto], look: &mut dyn FnMut(&TensorProto)) {
    for attribute in nodes.iter().flat_map(|node| &node.attribute) {
        attribute.t.iter().for_each(&mut *look);
        attribute.tensors.iter().for_each(&mut *look);
        sparse(&attribute.sparse_tensor).for_each(&mut *look);
        sparse(&attribute.sparse_tensors).for_each(&mut *look);
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            for_each_tensor(graph, look);
        }
    }
}

/// What sparse tensors are made of.
fn sparse<'a>(
    tensors: impl IntoIterator<Item = &'a SparseTensorProto>,
) -> impl Iterator<Item = &'a TensorProto> {
    let tensors = tensors.into_iter();
    tensors.flat_map(|tensor| tensor.values.iter().chain(&tensor.indices))
}

/// Why a file is not a usable ONNX model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// Not a protocol-buffer message, or a truncated one.
    #[error("not an ONNX file: {0}")]
    Decode(String),
    /// A message without a graph.
    #[error("not an ONNX file: it holds no graph")]
    NoGraph,
    /// Another kind of file; what it is, and what to do.
    #[error("not an ONNX file: {0}")]
    Foreign(String),
    /// No output is a tensor of a datatype that can be served.
    #[error("the protocol can carry none of its outputs: {0}")]
    NoOutput(String),
    /// An input or output that is not a tensor, or has a datatype that cannot be served.
    #[error(
        "{role} `{name}` is {got}, expected a tensor of a datatype that the protocol can carry"
    )]
    Unservable {
        /// `input` or `output`.
        role: &'static str,
        /// The tensor's name.
        name: String,
        /// What it is.
        got: String,
    },
    /// A declared shape with a negative dimension.
    #[error("{role} `{name}` declares a dimension of {got}, expected at least 0")]
    Dimension {
        /// `input` or `output`.
        role: &'static str,
        /// The tensor's name.
        name: String,
        /// The dimension.
        got: i64,
    },
}

impl OnnxModel {
    /// Decodes a file's bytes.
    ///
    /// # Errors
    /// [`OnnxError::Foreign`] for a known kind of other file, [`OnnxError::Decode`] for anything else that is not an
    /// ONNX message, [`OnnxError::NoGraph`] for an empty one.
    pub fn decode(bytes: Bytes) -> Result<Self, OnnxError> {
        if let Some(what) = recognize(&bytes) {
            return Err(OnnxError::Foreign(what));
        }
        let proto = ModelProto::decode(bytes.clone()).map_err(|e| OnnxError::Decode(e.to_string()));
        let error = match proto {
            Ok(proto) if proto.graph.as_ref().is_some_and(|g| !g.output.is_empty()) => {
                return Ok(Self { proto });
            }
            Ok(_) => OnnxError::NoGraph,
            Err(error) => error,
        };
        // Guess at other kinds of messages only after decoding as ONNX has failed.
        Err(foreign::guess(&bytes).map_or(error, OnnxError::Foreign))
    }

    /// The whole message.
    #[must_use]
    pub const fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The whole message, to be changed by a backend before it hands it on; it must keep its graph.
    pub const fn proto_mut(&mut self) -> &mut ModelProto {
        &mut self.proto
    }

    /// The whole message, owned.
    #[must_use]
    pub fn into_proto(self) -> ModelProto {
        self.proto
    }

    /// The main graph.
    #[must_use]
    pub fn graph(&self) -> &GraphProto {
        self.proto.graph.as_ref().expect("checked when decoded")
    }

    /// Calls `look` for every tensor that the file holds: initializers, attributes of nodes, in the main graph, in
    /// graphs within graphs and in functions.
    pub fn for_each_tensor(&self, look: &mut dyn FnMut(&TensorProto)) {
        for_each_tensor(self.graph(), look);
        for function in &self.proto.functions {
            for_each_tensor_of(&function.node, look);
        }
    }

    /// The files beside the model's that hold data of its tensors, as the file names them; those of subgraphs and
    /// functions included.
    #[must_use]
    pub fn external_files(&self) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        self.for_each_tensor(&mut |tensor| {
            // Code that reads the data checks where in the file it lies.
            if let Some(location) = external::location(tensor) {
                files.insert(location.to_owned());
            }
        });
        files
    }

    /// Inputs (without initializers) and outputs, with their true datatypes and dims. Outputs that are
    /// [undeclared](Self::undeclared_outputs) or [left out](Self::left_out) are not among them.
    ///
    /// # Errors
    /// [`OnnxError::Unservable`] for inputs that are sequences, maps, optionals, or of complex or packed datatypes;
    /// [`OnnxError::NoOutput`] where all outputs are; [`OnnxError::Dimension`] for negative sizes.
    pub fn signature(&self) -> Result<ModelSignature, OnnxError> {
        let inputs = self.given_inputs().into_iter();
        Ok(ModelSignature {
            inputs: inputs.map(|v| spec("input", v)).collect::<Result<_, _>>()?,
            outputs: self.declared_outputs(&|_| None)?,
        })
    }

    /// The inputs that a run needs: those without initializers.
    #[must_use]
    pub fn given_inputs(&self) -> Vec<&ValueInfoProto> {
        let graph = self.graph();
        let initializers: BTreeSet<&str> =
            graph.initializer.iter().map(TensorProto::name).collect();
        let given = |value: &&ValueInfoProto| !initializers.contains(value.name());
        graph.input.iter().filter(given).collect()
    }

    /// Calls `visit` for the main graph and each graph inside a node's attribute.
    pub fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a GraphProto)) {
        let mut pending = vec![self.graph()];
        while let Some(graph) = pending.pop() {
            visit(graph);
            for attribute in graph.node.iter().flat_map(|n| &n.attribute) {
                match attribute.r#type() {
                    AttributeType::Graph => pending.extend(&attribute.g),
                    AttributeType::Graphs => pending.extend(&attribute.graphs),
                    _ => {}
                }
            }
        }
    }
}

/// The ONNX element type for a datatype of the protocol.
#[must_use]
pub const fn element_type(datatype: DataType) -> i32 {
    use tensor_proto::DataType as Onnx;
    (match datatype {
        DataType::Fp32 => Onnx::Float,
        DataType::Uint8 => Onnx::Uint8,
        DataType::Int8 => Onnx::Int8,
        DataType::Uint16 => Onnx::Uint16,
        DataType::Int16 => Onnx::Int16,
        DataType::Int32 => Onnx::Int32,
        DataType::Int64 => Onnx::Int64,
        DataType::Bytes => Onnx::String,
        DataType::Bool => Onnx::Bool,
        DataType::Fp16 => Onnx::Float16,
        DataType::Fp64 => Onnx::Double,
        DataType::Uint32 => Onnx::Uint32,
        DataType::Uint64 => Onnx::Uint64,
        DataType::Bf16 => Onnx::Bfloat16,
    }) as i32
}

/// The protocol's datatype for an ONNX element type.
#[must_use]
pub fn datatype(element: i32) -> Option<DataType> {
    use tensor_proto::DataType as Onnx;
    Some(match Onnx::try_from(element).ok()? {
        Onnx::Float => DataType::Fp32,
        Onnx::Uint8 => DataType::Uint8,
        Onnx::Int8 => DataType::Int8,
        Onnx::Uint16 => DataType::Uint16,
        Onnx::Int16 => DataType::Int16,
        Onnx::Int32 => DataType::Int32,
        Onnx::Int64 => DataType::Int64,
        Onnx::String => DataType::Bytes,
        Onnx::Bool => DataType::Bool,
        Onnx::Float16 => DataType::Fp16,
        Onnx::Double => DataType::Fp64,
        Onnx::Uint32 => DataType::Uint32,
        Onnx::Uint64 => DataType::Uint64,
        Onnx::Bfloat16 => DataType::Bf16,
        _ => return None,
    })
}

fn spec(role: &'static str, value: &ValueInfoProto) -> Result<TensorSpec, OnnxError> {
    let name = value.name().to_owned();
    let unservable = |got: String| OnnxError::Unservable {
        role,
        name: name.clone(),
        got,
    };
    let kind = value.r#type.as_ref().and_then(|t| t.value.as_ref());
    let Some(type_proto::Value::TensorType(tensor)) = kind else {
        return Err(unservable(outputs::describe(value.r#type.as_ref())));
    };
    let datatype = datatype(tensor.elem_type())
        .ok_or_else(|| unservable(outputs::describe(value.r#type.as_ref())))?;
    let mut dims = Vec::new();
    for dim in tensor.shape.iter().flat_map(|s| &s.dim) {
        dims.push(match dim.value {
            Some(tensor_shape_proto::dimension::Value::DimValue(size)) if size < -1 => {
                return Err(OnnxError::Dimension {
                    role,
                    name,
                    got: size,
                });
            }
            // Some exporters write 0 or -1 for "unknown"; a real size of zero could carry nothing.
            Some(tensor_shape_proto::dimension::Value::DimValue(size)) if size > 0 => size,
            _ => -1,
        });
    }
    let dims = tensor
        .shape
        .as_ref()
        .map(|_| Dims::new(&dims).expect("sizes are at least -1"));
    Ok(TensorSpec {
        name,
        datatype,
        dims,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::onnx::{TensorShapeProto, TypeProto};

    fn value(name: &str, element: tensor_proto::DataType, dims: &[i64]) -> ValueInfoProto {
        let dim = |&d: &i64| tensor_shape_proto::Dimension {
            value: Some(if d < 0 {
                tensor_shape_proto::dimension::Value::DimParam("n".into())
            } else {
                tensor_shape_proto::dimension::Value::DimValue(d)
            }),
            denotation: None,
        };
        let tensor = type_proto::Tensor {
            elem_type: Some(element.into()),
            shape: Some(TensorShapeProto {
                dim: dims.iter().map(dim).collect(),
            }),
        };
        ValueInfoProto {
            name: Some(name.into()),
            r#type: Some(TypeProto {
                denotation: None,
                value: Some(type_proto::Value::TensorType(tensor)),
            }),
            ..Default::default()
        }
    }

    fn model(inputs: Vec<ValueInfoProto>, initializers: &[&str]) -> OnnxModel {
        let graph = GraphProto {
            input: inputs,
            output: vec![value("y", tensor_proto::DataType::Float16, &[-1])],
            initializer: initializers
                .iter()
                .map(|n| TensorProto {
                    name: Some((*n).to_owned()),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let proto = ModelProto {
            graph: Some(graph),
            ..Default::default()
        };
        OnnxModel::decode(proto.encode_to_vec().into()).expect("decodes")
    }

    #[test]
    fn element_types_read_back() {
        for each in DataType::ALL {
            assert_eq!(datatype(element_type(each)), Some(each));
        }
    }

    #[test]
    fn the_signature_has_no_initializers_and_true_datatypes() {
        let model = model(
            vec![
                value("x", tensor_proto::DataType::Bfloat16, &[-1, 3]),
                value("w", tensor_proto::DataType::Float, &[3]),
            ],
            &["w"],
        );
        let signature = model.signature().expect("servable");
        assert_eq!(signature.inputs.len(), 1);
        let x = signature.input("x").expect("x");
        assert_eq!(
            (x.datatype, x.dims.clone()),
            (DataType::Bf16, Some(Dims::new(&[-1, 3]).expect("dims")))
        );
        assert_eq!(
            signature.output("y").map(|y| y.datatype),
            Some(DataType::Fp16)
        );
    }

    #[test]
    fn garbage_and_emptiness_are_refused() {
        assert!(matches!(
            OnnxModel::decode(Bytes::from_static(b"garbage!")),
            Err(OnnxError::Decode(_))
        ));
        let no_graph = ModelProto {
            ir_version: Some(8),
            ..Default::default()
        };
        assert_eq!(
            OnnxModel::decode(no_graph.encode_to_vec().into()).map(|_| ()),
            Err(OnnxError::NoGraph)
        );
    }

    #[test]
    fn an_unservable_datatype_is_named() {
        let model = model(
            vec![value("x", tensor_proto::DataType::Complex64, &[1])],
            &[],
        );
        let error = model.signature().expect_err("complex").to_string();
        assert!(
            error.contains("`x`") && error.contains("COMPLEX64"),
            "{error}"
        );
    }
}
