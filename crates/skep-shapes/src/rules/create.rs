//! Operators that make tensors: constants, ranges, random numbers, and shapes as values.

use super::{OutputShapes, one};
use crate::{
    call::{Datum, OperatorCall, size},
    element::ElementType,
    error::RuleRefusal,
    fact::{ElementValues, Fact},
};
use skep_proto::onnx::tensor_proto::DataType as Onnx;
use skep_types::Shape;

/// `Constant`, whichever attribute holds its value.
pub(crate) fn constant<'a>(call: &OperatorCall<'a, '_>) -> Result<Vec<Datum<'a>>, RuleRefusal> {
    if let Some(tensor) = call.tensor("value") {
        return Ok(vec![Datum::Tensor(Fact::of_file(tensor)?)]);
    }
    let list = |count: usize| {
        Shape::new(&[count]).map_err(|error| RuleRefusal::Invalid(error.to_string()))
    };
    let known = |element, shape, values| Ok(Fact::of_values(element, shape, values));
    let fact: Result<Fact<'a>, RuleRefusal> = if let Some(a) = call.attribute("value_int") {
        known(
            ElementType::INT64,
            Shape::scalar(),
            ElementValues::Ints(vec![a.i()]),
        )
    } else if let Some(a) = call.attribute("value_ints") {
        known(
            ElementType::INT64,
            list(a.ints.len())?,
            ElementValues::Ints(a.ints.clone()),
        )
    } else if let Some(a) = call.attribute("value_float") {
        let value = f64::from(a.f());
        known(
            ElementType::FLOAT,
            Shape::scalar(),
            ElementValues::Floats(vec![value]),
        )
    } else if let Some(a) = call.attribute("value_floats") {
        let values = a.floats.iter().map(|&v| f64::from(v)).collect();
        known(
            ElementType::FLOAT,
            list(a.floats.len())?,
            ElementValues::Floats(values),
        )
    } else if call.attribute("value_string").is_some() {
        Ok(Fact::of_constant(
            ElementType(Onnx::String as i32),
            Shape::scalar(),
        ))
    } else if let Some(a) = call.attribute("value_strings") {
        Ok(Fact::of_constant(
            ElementType(Onnx::String as i32),
            list(a.strings.len())?,
        ))
    } else if let Some(sparse) = call
        .attribute("sparse_value")
        .and_then(|a| a.sparse_tensor.as_ref())
    {
        let shape =
            Shape::from_wire(&sparse.dims).map_err(|e| RuleRefusal::Invalid(e.to_string()))?;
        let element = sparse
            .values
            .as_ref()
            .map_or(0, |values| values.data_type());
        Ok(Fact::of_constant(ElementType(element), shape))
    } else {
        Err(RuleRefusal::invalid("has no value"))
    };
    Ok(vec![Datum::Tensor(fact?)])
}

/// `Shape`: as many numbers as the range of dimensions that `start` and `end` leave.
pub(crate) fn shape(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (start, end) = shape_range(call)?;
    one([end - start])
}

/// Which dimensions `Shape` returns.
pub(crate) fn shape_range(call: &OperatorCall<'_, '_>) -> Result<(usize, usize), RuleRefusal> {
    let rank = i64::try_from(call.dims(0)?.len()).unwrap_or(i64::MAX);
    let clamped = |at: i64| {
        let at = if at < 0 { at.saturating_add(rank) } else { at };
        usize::try_from(at.clamp(0, rank)).unwrap_or(0)
    };
    let (start, end) = (
        clamped(call.int("start", 0)),
        clamped(call.int("end", rank)),
    );
    Ok((start, end.max(start)))
}

/// One number.
pub(crate) fn scalar(_: &OperatorCall<'_, '_>) -> OutputShapes {
    one([])
}

/// `ConstantOfShape`.
pub(crate) fn constant_of_shape(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.numbers(0)?;
    let dims = dims.iter().map(|&d| size(i128::from(d)));
    one(dims.collect::<Result<Vec<_>, _>>()?)
}

/// The element type of `ConstantOfShape`: its value's, or FP32.
pub(crate) fn value_type(call: &OperatorCall<'_, '_>) -> Option<ElementType> {
    let value = call.tensor("value");
    Some(value.map_or(ElementType::FLOAT, |tensor| ElementType(tensor.data_type())))
}

/// `Range`: as many numbers as fit between start and limit.
pub(crate) fn range(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let int = |at: usize| call.input(at).map(|fact| fact.int().map(i128::from));
    if let (Some(start), Some(limit), Some(delta)) = (int(0)?, int(1)?, int(2)?) {
        if delta == 0 {
            return Err(RuleRefusal::invalid("has a delta of 0"));
        }
        let rounded_up = (limit - start + delta - delta.signum()) / delta;
        return one([size(rounded_up.max(0))?]);
    }
    let float = |at: usize| call.input(at)?.float().ok_or_else(|| call.open(at));
    let count = ((float(1)? - float(0)?) / float(2)?).ceil().max(0.0);
    // `max` has turned NaN into 0; what is left is whole.
    if count > f64::from(u32::MAX) {
        return Err(RuleRefusal::Invalid(format!("counts {count} numbers")));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 2^32, checked above"
    )]
    one([count as usize])
}

/// `EyeLike`: as the input, a matrix.
pub(crate) fn eye_like(call: &OperatorCall<'_, '_>) -> OutputShapes {
    one(call.ranked(0, 2)?)
}

/// Random numbers of a shape in an attribute.
pub(crate) fn random(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call
        .ints("shape")
        .ok_or_else(|| RuleRefusal::invalid("has no `shape`"))?;
    let dims = dims.iter().map(|&d| size(i128::from(d)));
    one(dims.collect::<Result<Vec<_>, _>>()?)
}

/// `Multinomial`: a number of samples for each row.
pub(crate) fn multinomial(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let rows = call.ranked(0, 2)?[0];
    one([rows, size(i128::from(call.int("sample_size", 1)))?])
}
