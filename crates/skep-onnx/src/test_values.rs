//! For tests: values as files declare them, in a few words.

use skep_proto::onnx::{
    TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

/// A tensor's name, type and dims: a number is a size, `_` is neither size nor name, anything else a name.
pub(crate) fn tensor(name: &str, element: DataType, dims: &[&str]) -> ValueInfoProto {
    let dim = |dim: &&str| Dimension {
        value: match (dim.parse(), *dim) {
            (Ok(size), _) => Some(dimension::Value::DimValue(size)),
            (_, "_") => None,
            (_, name) => Some(dimension::Value::DimParam(name.to_owned())),
        },
        denotation: None,
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(element as i32),
        shape: Some(TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
        }),
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

/// A tensor of floats.
pub(crate) fn floats(name: &str, dims: &[&str]) -> ValueInfoProto {
    tensor(name, DataType::Float, dims)
}
