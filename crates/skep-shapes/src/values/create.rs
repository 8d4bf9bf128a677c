//! Values that follow from shapes, and new ones.

use super::ElementValues;
use crate::{call::OperatorCall, fact::Fact, rules::create::shape_range};

fn int(size: usize) -> Option<i64> {
    i64::try_from(size).ok()
}

/// `Shape`.
pub(crate) fn shape(call: &OperatorCall<'_, '_>, _: &Fact<'_>) -> Option<ElementValues> {
    let dims = call.optional(0)?.dims();
    let (start, end) = shape_range(call).ok()?;
    let dims = dims.get(start..end)?.iter().map(|&dim| int(dim));
    dims.collect::<Option<_>>().map(ElementValues::Ints)
}

/// `Size`.
pub(crate) fn size(call: &OperatorCall<'_, '_>, _: &Fact<'_>) -> Option<ElementValues> {
    let count = call.optional(0)?.shape.element_count();
    Some(ElementValues::Ints(vec![int(count)?]))
}

/// `ConstantOfShape`: FP32 zeros unless a value is given.
pub(crate) fn constant_of_shape(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let count = output.shape.element_count();
    let Some(tensor) = call.tensor("value") else {
        return Some(ElementValues::Floats(vec![0.0; count]));
    };
    let value = Fact::of_file(tensor).ok()?;
    match (value.int(), value.float()) {
        (Some(value), _) => Some(ElementValues::Ints(vec![value; count])),
        (None, Some(value)) => Some(ElementValues::Floats(vec![value; count])),
        (None, None) => None,
    }
}

/// `Range`.
pub(crate) fn range(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let count = output.shape.element_count();
    let (start, delta) = (call.optional(0)?.elements()?, call.optional(2)?.elements()?);
    match (&*start, &*delta) {
        (ElementValues::Ints(start), ElementValues::Ints(delta)) => {
            let (start, delta) = (*start.first()?, *delta.first()?);
            let at = |at: usize| Some(start.wrapping_add(int(at)?.wrapping_mul(delta)));
            (0..count)
                .map(at)
                .collect::<Option<_>>()
                .map(ElementValues::Ints)
        }
        (ElementValues::Floats(start), ElementValues::Floats(delta)) => {
            let (start, delta) = (*start.first()?, *delta.first()?);
            let count = u32::try_from(count).ok()?;
            Some(ElementValues::Floats(
                (0..count).map(|at| start + f64::from(at) * delta).collect(),
            ))
        }
        _ => None,
    }
}

/// `NonZero`: indices of each dimension in a row.
pub(crate) fn non_zero(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let fact = call.optional(0)?;
    let places: Vec<usize> = match &*fact.elements()? {
        ElementValues::Ints(values) => (0..values.len()).filter(|&at| values[at] != 0).collect(),
        ElementValues::Floats(values) => {
            (0..values.len()).filter(|&at| values[at] != 0.0).collect()
        }
    };
    let mut rows = Vec::with_capacity(output.shape.element_count());
    let mut inner = fact.shape.element_count();
    for &dim in fact.dims() {
        inner = inner.checked_div(dim)?;
        for &place in &places {
            rows.push(int(place / inner.max(1) % dim)?);
        }
    }
    Some(ElementValues::Ints(rows))
}
