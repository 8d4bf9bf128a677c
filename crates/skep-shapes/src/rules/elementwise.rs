//! Operators that work element by element: as the first input, or with broadcasting.

use super::{OutputShapes, ml::mapped_type, one};
use crate::{
    call::{OperatorCall, OutputDims},
    element::ElementType,
    error::{RuleRefusal, list},
};
use skep_proto::onnx::tensor_proto::DataType as Onnx;

/// One output, as the first input.
pub(crate) fn same(call: &OperatorCall<'_, '_>) -> OutputShapes {
    one(call.dims(0)?)
}

/// Two shapes as one, NumPy's way: aligned at the last dimension, ones stretched.
pub(crate) fn broadcast(one: &[usize], other: &[usize]) -> Result<OutputDims, RuleRefusal> {
    let rank = one.len().max(other.len());
    let dim = |dims: &[usize], at: usize| {
        let missing = rank - dims.len();
        if at < missing { 1 } else { dims[at - missing] }
    };
    let both = (0..rank).map(|at| match (dim(one, at), dim(other, at)) {
        (1, size) | (size, 1) => Some(size),
        (size, same) if size == same => Some(size),
        _ => None,
    });
    both.collect::<Option<_>>().ok_or_else(|| {
        RuleRefusal::Invalid(format!(
            "combines shapes {} and {}, which do not broadcast",
            list(one),
            list(other)
        ))
    })
}

/// All inputs broadcast together.
pub(crate) fn all(call: &OperatorCall<'_, '_>) -> OutputShapes {
    inputs(call, 0..call.inputs.len().max(1))
}

/// The first two inputs broadcast together.
pub(crate) fn two(call: &OperatorCall<'_, '_>) -> OutputShapes {
    inputs(call, 0..2)
}

/// The inputs at 0 and 3 broadcast together: quantised operators hold scale and zero point behind each tensor.
pub(crate) fn quantised_two(call: &OperatorCall<'_, '_>) -> OutputShapes {
    one(broadcast(call.dims(0)?, call.dims(3)?)?)
}

fn inputs(call: &OperatorCall<'_, '_>, which: std::ops::Range<usize>) -> OutputShapes {
    let mut dims = Vec::new();
    for at in which {
        dims = broadcast(&dims, call.dims(at)?)?;
    }
    one(dims)
}

/// `Dropout`: output and mask, both as the input.
pub(crate) fn dropout(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.dims(0)?.to_vec();
    Ok(vec![dims.clone(), dims])
}

/// `StringNormalizer`: how many texts it drops is known only in a run.
pub(crate) fn string_normalizer(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let drops = call
        .attribute("stopwords")
        .is_some_and(|a| !a.strings.is_empty());
    if drops {
        return Err(call.open(0));
    }
    one(call.dims(0)?)
}

/// The values of `LabelEncoder`: whichever attribute lists them says their type.
pub(crate) fn label_type(call: &OperatorCall<'_, '_>) -> Option<ElementType> {
    let listed = [
        ("values_strings", Onnx::String),
        ("values_int64s", Onnx::Int64),
        ("values_floats", Onnx::Float),
    ];
    let found = listed
        .iter()
        .find(|(name, _)| call.attribute(name).is_some());
    match found {
        Some((_, element)) => Some(ElementType(*element as i32)),
        None => match call.tensor("values_tensor") {
            Some(tensor) => Some(ElementType(tensor.data_type())),
            None => mapped_type(call),
        },
    }
}
