//! ONNX models built by hand for tests: a few nodes between named tensors.

use prost::Message;
use skep_onnx::element_type;
use skep_proto::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_shape_proto, type_proto,
};
use skep_tensor::Tensor;
use skep_types::DataType;

/// The operator set of the models; every usable library knows it.
const OPSET: i64 = 17;
/// The file format's version that belongs to it.
const IR_VERSION: i64 = 8;

/// A graph under construction.
#[derive(Debug, Clone, Default)]
pub struct Graph(GraphProto);

/// An attribute's value.
#[derive(Debug, Clone)]
pub enum Attribute {
    /// An integer.
    Int(i64),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A number.
    Float(f32),
    /// A text.
    Text(String),
    /// A tensor.
    Tensor(Tensor),
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an input. In `dims` a number is a size, `?` is unknown, anything else is a name.
    #[must_use]
    pub fn input(mut self, name: &str, datatype: DataType, dims: &[&str]) -> Self {
        self.0.input.push(value(name, datatype, dims));
        self
    }

    /// Adds an output, with dims as [`Graph::input`] takes them.
    #[must_use]
    pub fn output(mut self, name: &str, datatype: DataType, dims: &[&str]) -> Self {
        self.0.output.push(value(name, datatype, dims));
        self
    }

    /// Adds an initializer.
    #[must_use]
    pub fn initializer(mut self, name: &str, tensor: &Tensor) -> Self {
        self.0.initializer.push(initializer(name, tensor));
        self
    }

    /// Adds a node of ONNX's own operators.
    #[must_use]
    pub fn node(
        mut self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> Self {
        self.0.node.push(NodeProto {
            name: Some(format!("{operator}_{}", self.0.node.len())),
            op_type: Some(operator.to_owned()),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: outputs.iter().map(ToString::to_string).collect(),
            attribute: attributes.iter().map(|(n, a)| attribute(n, a)).collect(),
            ..NodeProto::default()
        });
        self
    }

    /// The graph's message, for changes that these methods do not offer.
    pub const fn proto_mut(&mut self) -> &mut GraphProto {
        &mut self.0
    }

    /// The file's bytes.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let mut graph = self.0;
        graph.name = Some("test".to_owned());
        let opset = OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(OPSET),
        };
        ModelProto {
            ir_version: Some(IR_VERSION),
            opset_import: vec![opset],
            graph: Some(graph),
            ..ModelProto::default()
        }
        .encode_to_vec()
    }
}

fn value(name: &str, datatype: DataType, dims: &[&str]) -> ValueInfoProto {
    let tensor = type_proto::Tensor {
        elem_type: Some(element_type(datatype)),
        shape: Some(TensorShapeProto {
            dim: dims.iter().map(|dim| dimension(dim)).collect(),
        }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            denotation: None,
            value: Some(type_proto::Value::TensorType(tensor)),
        }),
        ..ValueInfoProto::default()
    }
}

fn dimension(dim: &str) -> tensor_shape_proto::Dimension {
    use tensor_shape_proto::dimension::Value;
    let value = match (dim.parse(), dim) {
        (Ok(size), _) => Some(Value::DimValue(size)),
        (_, "?") => None,
        (_, name) => Some(Value::DimParam(name.to_owned())),
    };
    tensor_shape_proto::Dimension {
        value,
        denotation: None,
    }
}

/// A tensor as it is stored in a file.
#[must_use]
pub fn initializer(name: &str, tensor: &Tensor) -> TensorProto {
    let mut proto = TensorProto {
        name: Some(name.to_owned()),
        dims: tensor.shape().to_wire(),
        data_type: Some(element_type(tensor.datatype())),
        ..TensorProto::default()
    };
    if tensor.datatype() == DataType::Bytes {
        let strings = tensor.view().strings();
        proto.string_data = strings.map(|s| s.to_vec().into()).collect();
    } else {
        proto.raw_data = Some(tensor.data().clone());
    }
    proto
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto {
        name: Some(name.to_owned()),
        ..AttributeProto::default()
    };
    let kind = match value {
        Attribute::Int(i) => {
            proto.i = Some(*i);
            AttributeType::Int
        }
        Attribute::Ints(ints) => {
            proto.ints.clone_from(ints);
            AttributeType::Ints
        }
        Attribute::Float(f) => {
            proto.f = Some(*f);
            AttributeType::Float
        }
        Attribute::Text(text) => {
            proto.s = Some(text.clone().into_bytes().into());
            AttributeType::String
        }
        Attribute::Tensor(tensor) => {
            proto.t = Some(initializer("", tensor));
            AttributeType::Tensor
        }
    };
    proto.set_type(kind);
    proto
}
