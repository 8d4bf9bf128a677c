//! A builder of ONNX graphs: values, nodes, attributes, weights.
//!
//! It checks nothing: a test that needs an odd graph can build it. `layers.rs` adds the usual layers on top.

use bytes::Bytes;
use skep_proto::onnx::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto, tensor_shape_proto, type_proto,
};
use skep_types::DataType;

use crate::weights::WeightFill;

/// A value in a graph: an input, a weight or what a node gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphValue(pub(crate) String);

impl GraphValue {
    /// A value by its name, existing or not.
    pub fn named(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// A dimension of an input or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// This size.
    Fixed(i64),
    /// Any size; equal names are equal sizes.
    Variable(&'static str),
}

/// A node's attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeAttribute {
    /// One integer.
    Int(i64),
    /// Integers.
    Ints(Vec<i64>),
    /// One float.
    Float(f32),
    /// Text.
    Text(&'static str),
    /// A graph, as `If` and `Loop` have.
    Graph(Box<GraphProto>),
}

/// A weight or constant of the graph.
#[derive(Debug, Clone)]
pub(crate) struct GraphWeight {
    /// Name, datatype and dims; the data too, unless `fill` computes it.
    pub(crate) proto: TensorProto,
    pub(crate) fill: Option<WeightFill>,
    /// Statistics of a batch normalisation are not trained.
    pub(crate) trained: bool,
    /// The number of the block it belongs to, for variants.
    pub(crate) block: usize,
}

/// A graph under construction.
#[derive(Debug, Clone, Default)]
pub struct GraphBuilder {
    pub(crate) graph: GraphProto,
    pub(crate) initializers: Vec<GraphWeight>,
    pub(crate) block: usize,
    values: usize,
}

impl GraphBuilder {
    /// An empty graph.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            graph: GraphProto {
                name: Some(name.to_owned()),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, datatype: DataType, dims: &[Dim]) -> GraphValue {
        self.graph.input.push(value_info(name, datatype, dims));
        GraphValue::named(name)
    }

    /// Makes `value`, which a node gives, an output called `name`.
    pub fn output(&mut self, value: &GraphValue, name: &str, datatype: DataType, dims: &[Dim]) {
        for node in &mut self.graph.node {
            for used in node
                .input
                .iter_mut()
                .chain(&mut node.output)
                .filter(|used| **used == value.0)
            {
                name.clone_into(used);
            }
        }
        self.graph.output.push(value_info(name, datatype, dims));
    }

    /// Adds a node with one output.
    pub fn node(
        &mut self,
        operator: &str,
        inputs: &[&GraphValue],
        attributes: &[(&str, NodeAttribute)],
    ) -> GraphValue {
        let number = self.values;
        self.values += 1;
        let output = format!("{operator}_{number}");
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output: vec![output.clone()],
            name: Some(format!("node_{number}_{operator}")),
            op_type: Some(operator.to_owned()),
            attribute: attributes
                .iter()
                .map(|(name, attribute)| attribute_proto(name, attribute))
                .collect(),
            ..Default::default()
        });
        GraphValue(output)
    }

    /// Adds a trained weight, FP32.
    pub fn weight(&mut self, name: &str, dims: &[usize], fill: WeightFill) -> GraphValue {
        self.filled(name, dims, fill, true)
    }

    /// Adds FP32 values that training does not change, like the statistics of a batch normalisation.
    pub fn statistics(&mut self, name: &str, dims: &[usize], fill: WeightFill) -> GraphValue {
        self.filled(name, dims, fill, false)
    }

    /// Adds a constant tensor of INT64 numbers, rank 1.
    pub fn constant_ints(&mut self, name: &str, numbers: &[i64]) -> GraphValue {
        let data = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.constant(name, DataType::Int64, &[numbers.len()], data)
    }

    /// Adds a constant FP32 scalar.
    pub fn constant_float(&mut self, name: &str, number: f32) -> GraphValue {
        self.constant(name, DataType::Fp32, &[], number.to_le_bytes().to_vec())
    }

    /// Adds a constant tensor from its little-endian bytes. A constant of a name that exists already is that one.
    pub fn constant(
        &mut self,
        name: &str,
        datatype: DataType,
        dims: &[usize],
        data: Vec<u8>,
    ) -> GraphValue {
        if self
            .initializers
            .iter()
            .all(|initializer| initializer.proto.name() != name)
        {
            let proto = TensorProto {
                raw_data: Some(Bytes::from(data)),
                ..tensor(name, datatype, dims)
            };
            self.initializers.push(GraphWeight {
                proto,
                fill: None,
                trained: false,
                block: self.block,
            });
        }
        GraphValue::named(name)
    }

    /// What follows belongs to the next block: the stem is block 0, the head the last one (see [`crate::Variant`]).
    pub fn next_block(&mut self) {
        self.block += 1;
    }

    fn filled(
        &mut self,
        name: &str,
        dims: &[usize],
        fill: WeightFill,
        trained: bool,
    ) -> GraphValue {
        let proto = tensor(name, DataType::Fp32, dims);
        self.initializers.push(GraphWeight {
            proto,
            fill: Some(fill),
            trained,
            block: self.block,
        });
        GraphValue::named(name)
    }
}

fn tensor(name: &str, datatype: DataType, dims: &[usize]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.iter().map(|&d| int(d)).collect(),
        data_type: Some(element_type(datatype) as i32),
        ..Default::default()
    }
}

fn value_info(name: &str, datatype: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|dim| tensor_shape_proto::Dimension {
            value: Some(match dim {
                Dim::Fixed(size) => tensor_shape_proto::dimension::Value::DimValue(*size),
                Dim::Variable(name) => {
                    tensor_shape_proto::dimension::Value::DimParam((*name).to_owned())
                }
            }),
            ..Default::default()
        })
        .collect();
    let tensor = type_proto::Tensor {
        elem_type: Some(element_type(datatype) as i32),
        shape: Some(TensorShapeProto { dim }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn attribute_proto(name: &str, attribute: &NodeAttribute) -> AttributeProto {
    let mut proto = AttributeProto {
        name: Some(name.to_owned()),
        ..Default::default()
    };
    let kind = match attribute {
        NodeAttribute::Int(number) => {
            proto.i = Some(*number);
            AttributeType::Int
        }
        NodeAttribute::Ints(numbers) => {
            proto.ints.clone_from(numbers);
            AttributeType::Ints
        }
        NodeAttribute::Float(number) => {
            proto.f = Some(*number);
            AttributeType::Float
        }
        NodeAttribute::Text(text) => {
            proto.s = Some(Bytes::from_static(text.as_bytes()));
            AttributeType::String
        }
        NodeAttribute::Graph(graph) => {
            proto.g = Some((**graph).clone());
            AttributeType::Graph
        }
    };
    proto.r#type = Some(kind as i32);
    proto
}

/// A size as ONNX holds it.
pub(crate) fn int(size: usize) -> i64 {
    i64::try_from(size).expect("sizes of generated models are limited by `Kind::check`")
}

/// ONNX's name of a datatype.
pub(crate) fn element_type(datatype: DataType) -> tensor_proto::DataType {
    match datatype {
        DataType::Bool => tensor_proto::DataType::Bool,
        DataType::Uint8 => tensor_proto::DataType::Uint8,
        DataType::Uint16 => tensor_proto::DataType::Uint16,
        DataType::Uint32 => tensor_proto::DataType::Uint32,
        DataType::Uint64 => tensor_proto::DataType::Uint64,
        DataType::Int8 => tensor_proto::DataType::Int8,
        DataType::Int16 => tensor_proto::DataType::Int16,
        DataType::Int32 => tensor_proto::DataType::Int32,
        DataType::Int64 => tensor_proto::DataType::Int64,
        DataType::Fp16 => tensor_proto::DataType::Float16,
        DataType::Bf16 => tensor_proto::DataType::Bfloat16,
        DataType::Fp32 => tensor_proto::DataType::Float,
        DataType::Fp64 => tensor_proto::DataType::Double,
        DataType::Bytes => tensor_proto::DataType::String,
    }
}
