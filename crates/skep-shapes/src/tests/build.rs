//! A short way to write graphs: nodes as text, dimensions as words.

use skep_proto::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto, type_proto,
};

use skep_onnx::OnnxModel;

use crate::{
    error::InferError,
    given::GivenShapes,
    infer::{InferredShapes, infer_shapes},
    test_values::tensor,
};

pub(super) use tensor_proto::DataType as Onnx;

/// An attribute out of a word: `3` an integer, `1,2` and `1,` integers, `0.5` a float, `0.5;1` floats, `a;b` strings,
/// else text.
fn attribute(name: &str, text: &str) -> AttributeProto {
    let mut proto = AttributeProto {
        name: Some(name.to_owned()),
        ..Default::default()
    };
    if text.contains(';') {
        let words = text.trim_end_matches(';').split(';');
        let floats: Result<Vec<f32>, _> = words.clone().map(str::parse).collect();
        proto.r#type = Some(match floats {
            Ok(floats) => {
                proto.floats = floats;
                AttributeType::Floats
            }
            Err(_) => {
                proto.strings = words.map(|word| word.to_owned().into()).collect();
                AttributeType::Strings
            }
        } as i32);
        return proto;
    }
    let words = text.trim_end_matches(',').split(',');
    let ints: Option<Vec<i64>> = words.map(|word| word.parse().ok()).collect();
    let kind = match (ints, text.parse()) {
        (Some(ints), _) if text.contains(',') => {
            proto.ints = ints;
            AttributeType::Ints
        }
        (Some(ints), _) => {
            proto.i = ints.first().copied();
            AttributeType::Int
        }
        (None, Ok(float)) => {
            proto.f = Some(float);
            AttributeType::Float
        }
        (None, Err(_)) => {
            proto.s = Some(text.to_owned().into());
            AttributeType::String
        }
    };
    proto.r#type = Some(kind as i32);
    proto
}

/// A node out of a line: `y z = Split(x, sizes) axis=1 to=7`; a domain stands in front of the operator with `::`.
pub(super) fn node(line: &str) -> NodeProto {
    let (outputs, rest) = line.split_once('=').expect("outputs");
    let (operator, rest) = rest.split_once('(').expect("inputs");
    let (inputs, attributes) = rest.split_once(')').expect("inputs");
    let (domain, operator) = operator
        .trim()
        .split_once("::")
        .unwrap_or(("", operator.trim()));
    let pair = |word: &str| {
        let (name, text) = word.split_once('=').expect("an attribute");
        attribute(name, text)
    };
    let inputs = inputs.split(',').map(|name| name.trim().to_owned());
    let inputs: Vec<String> = inputs.collect();
    NodeProto {
        input: if inputs == [""] { Vec::new() } else { inputs },
        output: outputs.split_whitespace().map(str::to_owned).collect(),
        op_type: Some(operator.to_owned()),
        domain: Some(domain.to_owned()),
        attribute: attributes.split_whitespace().map(pair).collect(),
        ..Default::default()
    }
}

/// Nodes, a line each.
pub(super) fn nodes(lines: &str) -> Vec<NodeProto> {
    lines
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(node)
        .collect()
}

/// An INT64 tensor.
pub(super) fn ints(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.to_vec(),
        data_type: Some(Onnx::Int64 as i32),
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

/// A tensor whose values do not matter.
pub(super) fn weight(name: &str, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.to_vec(),
        data_type: Some(Onnx::Float as i32),
        ..Default::default()
    }
}

/// A graph of FP32 inputs, nodes, and initializers.
pub(super) struct TestGraph(pub(super) ModelProto);

impl TestGraph {
    pub(super) fn new(inputs: &[(&str, &[&str])], lines: &str) -> Self {
        let nodes = nodes(lines);
        let last = nodes.last().map(|node| node.output[0].clone());
        let output = ValueInfoProto {
            name: last,
            ..Default::default()
        };
        let inputs = inputs
            .iter()
            .map(|(name, dims)| tensor(name, Onnx::Float, dims));
        let graph = GraphProto {
            node: nodes,
            input: inputs.collect(),
            output: vec![output],
            ..Default::default()
        };
        let opset = OperatorSetIdProto {
            domain: None,
            version: Some(20),
        };
        Self(ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset],
            graph: Some(graph),
            ..Default::default()
        })
    }

    pub(super) fn opset(mut self, version: i64) -> Self {
        self.0.opset_import[0].version = Some(version);
        self
    }

    pub(super) fn graph(&mut self) -> &mut GraphProto {
        self.0.graph.as_mut().expect("a graph")
    }

    /// Other types of inputs than FP32.
    pub(super) fn typed(mut self, name: &str, element: Onnx) -> Self {
        for input in &mut self.graph().input {
            if input.name() == name
                && let Some(type_proto::Value::TensorType(tensor)) =
                    input.r#type.as_mut().and_then(|kind| kind.value.as_mut())
            {
                tensor.elem_type = Some(element as i32);
            }
        }
        self
    }

    pub(super) fn with(mut self, tensors: impl IntoIterator<Item = TensorProto>) -> Self {
        self.graph().initializer.extend(tensors);
        self
    }

    /// A graph in the attribute `name` of the node that gives `output`.
    pub(super) fn inner(mut self, output: &str, name: &str, inner: GraphProto) -> Self {
        let found = self
            .graph()
            .node
            .iter_mut()
            .find(|node| node.output[0] == output);
        found.expect("a node").attribute.push(AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(AttributeType::Graph as i32),
            g: Some(inner),
            ..Default::default()
        });
        self
    }

    pub(super) fn infer(self, given: &GivenShapes) -> Result<InferredShapes, InferError> {
        use prost::Message;
        let model = OnnxModel::decode(self.0.encode_to_vec().into()).expect("decodes");
        infer_shapes(&model, given)
    }

    /// The shape of `name` as text, or the error.
    pub(super) fn shape(self, name: &str) -> String {
        match self.infer(&GivenShapes::default()) {
            Ok(inferred) => inferred.tensors[name].shape.to_string(),
            Err(error) => error.to_string(),
        }
    }

    pub(super) fn error(self, given: &GivenShapes) -> String {
        self.infer(given).expect_err("an error").to_string()
    }
}

/// A graph to be put into an attribute.
pub(super) fn inner(inputs: &[&str], lines: &str, outputs: &[&str]) -> GraphProto {
    let named = |name: &&str| ValueInfoProto {
        name: Some((*name).to_owned()),
        ..Default::default()
    };
    GraphProto {
        node: nodes(lines),
        input: inputs.iter().map(named).collect(),
        output: outputs.iter().map(named).collect(),
        ..Default::default()
    }
}
