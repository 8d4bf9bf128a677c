//! What a file declares of a value: its type, its dimensions, and the sizes that their names stand for.

use std::collections::BTreeMap;

use skep_onnx::dimension_name;
use skep_proto::onnx::{ValueInfoProto, tensor_shape_proto::dimension, type_proto};

use crate::error::InferError;

/// The type of a value that is a tensor.
pub(super) fn tensor_type(value: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    match value.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => Some(tensor),
        _ => None,
    }
}

/// The sizes of named dimensions, and where each comes from.
#[derive(Debug, Default)]
pub(super) struct NamedDims<'a>(BTreeMap<&'a str, (usize, String)>);

impl<'a> NamedDims<'a> {
    pub(super) fn get(&self, name: &str) -> Option<usize> {
        self.0.get(name).map(|(size, _)| *size)
    }

    pub(super) fn set(
        &mut self,
        name: &'a str,
        size: usize,
        by: &dyn Fn() -> String,
    ) -> Result<(), InferError> {
        if name.is_empty() {
            return Ok(());
        }
        let (known, first) = self.0.entry(name).or_insert_with(|| (size, by()));
        if *known == size {
            return Ok(());
        }
        Err(InferError::Dimension {
            name: name.to_owned(),
            size: *known,
            first: first.clone(),
            other: size,
            second: by(),
        })
    }
}

/// A declared dimension. Some exporters write 0 or -1 for one that is not known.
pub(super) fn fixed(value: Option<&dimension::Value>) -> Option<usize> {
    match value {
        Some(dimension::Value::DimValue(size)) => usize::try_from(*size).ok().filter(|&s| s > 0),
        _ => None,
    }
}

/// A dimension's name, empty where it has none.
pub(super) fn name(value: Option<&dimension::Value>) -> &str {
    dimension_name(value).unwrap_or("")
}

/// Dimensions as the file declares them: sizes, names, `?` for neither.
pub(super) fn declared(value: &ValueInfoProto) -> Option<String> {
    let shape = tensor_type(value)?.shape.as_ref()?;
    let dims =
        shape.dim.iter().map(
            |dim| match (fixed(dim.value.as_ref()), name(dim.value.as_ref())) {
                (Some(size), _) => size.to_string(),
                (None, "") => "?".to_owned(),
                (None, name) => name.to_owned(),
            },
        );
    Some(format!("[{}]", dims.collect::<Vec<_>>().join(",")))
}

/// Whether a tensor of these dimensions is what the file declares, as far as it fixes anything.
pub(super) fn accepts(value: &ValueInfoProto, dims: &[usize]) -> bool {
    let Some(shape) = tensor_type(value).and_then(|tensor| tensor.shape.as_ref()) else {
        return true;
    };
    let fits = |(dim, &size): (&skep_proto::onnx::tensor_shape_proto::Dimension, &usize)| {
        fixed(dim.value.as_ref()).is_none_or(|fixed| fixed == size)
    };
    shape.dim.len() == dims.len() && shape.dim.iter().zip(dims).all(fits)
}
