//! Values that follow from shapes, and new ones.

use super::Elements;
use crate::{call::Call, fact::Fact, rules::create::shape_range};

fn int(size: usize) -> Option<i64> {
    i64::try_from(size).ok()
}

/// `Shape`.
pub(crate) fn shape(call: &Call<'_, '_>, _: &Fact<'_>) -> Option<Elements> {
    let dims = call.optional(0)?.dims();
    let (start, end) = shape_range(call).ok()?;
    let dims = dims.get(start..end)?.iter().map(|&dim| int(dim));
    dims.collect::<Option<_>>().map(Elements::Ints)
}

/// `Size`.
pub(crate) fn size(call: &Call<'_, '_>, _: &Fact<'_>) -> Option<Elements> {
    let count = call.optional(0)?.shape.element_count();
    Some(Elements::Ints(vec![int(count)?]))
}

/// `ConstantOfShape`: FP32 zeros unless a value is given.
pub(crate) fn constant_of_shape(
    call: &Call<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<Elements> {
    let count = output.shape.element_count();
    let Some(tensor) = call.tensor("value") else {
        return Some(Elements::Floats(vec![0.0; count]));
    };
    let value = Fact::of_file(tensor).ok()?;
    match (value.int(), value.float()) {
        (Some(value), _) => Some(Elements::Ints(vec![value; count])),
        (None, Some(value)) => Some(Elements::Floats(vec![value; count])),
        (None, None) => None,
    }
}

/// `Range`.
pub(crate) fn range(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    let count = output.shape.element_count();
    let (start, delta) = (call.optional(0)?.elements()?, call.optional(2)?.elements()?);
    match (&*start, &*delta) {
        (Elements::Ints(start), Elements::Ints(delta)) => {
            let (start, delta) = (*start.first()?, *delta.first()?);
            let at = |at: usize| Some(start.wrapping_add(int(at)?.wrapping_mul(delta)));
            (0..count)
                .map(at)
                .collect::<Option<_>>()
                .map(Elements::Ints)
        }
        (Elements::Floats(start), Elements::Floats(delta)) => {
            let (start, delta) = (*start.first()?, *delta.first()?);
            let count = u32::try_from(count).ok()?;
            Some(Elements::Floats(
                (0..count).map(|at| start + f64::from(at) * delta).collect(),
            ))
        }
        _ => None,
    }
}

/// `NonZero`: indices of each dimension in a row.
pub(crate) fn non_zero(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    let fact = call.optional(0)?;
    let places: Vec<usize> = match &*fact.elements()? {
        Elements::Ints(values) => (0..values.len()).filter(|&at| values[at] != 0).collect(),
        Elements::Floats(values) => (0..values.len()).filter(|&at| values[at] != 0.0).collect(),
    };
    let mut rows = Vec::with_capacity(output.shape.element_count());
    let mut inner = fact.shape.element_count();
    for &dim in fact.dims() {
        inner = inner.checked_div(dim)?;
        for &place in &places {
            rows.push(int(place / inner.max(1) % dim)?);
        }
    }
    Some(Elements::Ints(rows))
}
