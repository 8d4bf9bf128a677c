//! Values of small tensors that follow from other values or from shapes: the arithmetic that exporters write in front
//! of `Reshape`, `Expand`, `Slice`, `Resize`.
//!
//! A function here gives the values of an output in row-major order, `None` where they do not follow. The walk has
//! checked that every input has values ([`ValueFold::Values`](super::table::ValueFold)) and that they are few.

pub(super) mod arithmetic;
pub(super) mod create;
pub(super) mod layout;
pub(super) mod reduce;

use skep_proto::onnx::tensor_proto::DataType as Onnx;

pub(super) use super::fact::ElementValues;
use crate::element::ElementType;

/// Values as a tensor of this type holds them: integers wrapped to their width, FP32 rounded.
pub(super) fn fit(element: ElementType, values: ElementValues) -> Option<ElementValues> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "integers of a narrower type keep their low bits, FP32 is rounded"
    )]
    Some(match values {
        ElementValues::Ints(mut values) => {
            let narrow: fn(i64) -> i64 = match Onnx::try_from(element.0).ok()? {
                Onnx::Bool => |v| i64::from(v != 0),
                Onnx::Uint8 => |v| i64::from(v as u8),
                Onnx::Int8 => |v| i64::from(v as i8),
                Onnx::Uint16 => |v| i64::from(v as u16),
                Onnx::Int16 => |v| i64::from(v as i16),
                Onnx::Uint32 => |v| i64::from(v as u32),
                Onnx::Int32 => |v| i64::from(v as i32),
                Onnx::Int64 => |v| v,
                Onnx::Uint64 if values.iter().all(|&v| v >= 0) => |v| v,
                _ => return None,
            };
            values.iter_mut().for_each(|v| *v = narrow(*v));
            ElementValues::Ints(values)
        }
        ElementValues::Floats(mut values) => {
            match Onnx::try_from(element.0).ok()? {
                Onnx::Float => values.iter_mut().for_each(|v| *v = f64::from(*v as f32)),
                Onnx::Double => {}
                _ => return None,
            }
            ElementValues::Floats(values)
        }
    })
}

/// The whole part of a float; `None` where INT64 does not hold it.
pub(super) fn truncated(value: f64) -> Option<i64> {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    #[expect(clippy::cast_possible_truncation, reason = "within the range of INT64")]
    (-LIMIT..LIMIT).contains(&value).then_some(value as i64)
}

/// Values as floats, whatever they are.
pub(super) fn as_floats(values: &ElementValues) -> Vec<f64> {
    match values {
        #[expect(clippy::cast_precision_loss, reason = "as a cast to a float rounds")]
        ElementValues::Ints(values) => values.iter().map(|&v| v as f64).collect(),
        ElementValues::Floats(values) => values.clone(),
    }
}
