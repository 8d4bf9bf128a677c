//! Quantisation.

use super::OutputShapes;
use crate::{call::OperatorCall, element::ElementType};
use skep_proto::onnx::tensor_proto::DataType as Onnx;

/// `DynamicQuantizeLinear`: output, scale, zero point.
pub(crate) fn dynamic(call: &OperatorCall<'_, '_>) -> OutputShapes {
    Ok(vec![call.dims(0)?.to_vec(), Vec::new(), Vec::new()])
}

/// What `QuantizeLinear` gives: the type that an attribute or the zero point says, else UINT8.
pub(crate) fn quantised_type(call: &OperatorCall<'_, '_>) -> Option<ElementType> {
    let zero_point = call.optional(2).map(|fact| fact.element);
    let said = call.element("output_dtype").or(zero_point);
    Some(said.unwrap_or(ElementType(Onnx::Uint8 as i32)))
}

/// What `DequantizeLinear` gives: the type that an attribute or the scale says.
pub(crate) fn dequantised_type(call: &OperatorCall<'_, '_>) -> Option<ElementType> {
    let scale = call.optional(1).map(|fact| fact.element);
    call.element("output_dtype").or(scale)
}

/// What ONNX Runtime's `QGemm` gives: the type of the output's zero point, FP32 without one.
pub(crate) fn gemm_type(call: &OperatorCall<'_, '_>) -> Option<ElementType> {
    let zero_point = call.optional(8).map(|fact| fact.element);
    Some(zero_point.unwrap_or(ElementType::FLOAT))
}
