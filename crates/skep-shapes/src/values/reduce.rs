//! Reductions of known values.

use super::ElementValues;
use crate::{call::OperatorCall, fact::Fact, rules::reduce::reduced};

/// The sums, products.. of the values that fall together; nothing for a reduction of no values but `start`.
fn reduce(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    ints: (Option<i64>, fn(i64, i64) -> i64),
    floats: (Option<f64>, fn(f64, f64) -> f64),
) -> Option<ElementValues> {
    let fact = call.optional(0)?;
    let marked = reduced(call).ok()?;
    // The strides of the output along the input's dimensions, zero along those that fall together.
    let mut steps = vec![0usize; marked.len()];
    let mut stride = 1;
    for (at, marked) in marked.iter().enumerate().rev() {
        if !marked {
            steps[at] = stride;
            stride *= fact.dims()[at];
        }
    }
    let place = |mut at: usize| {
        let mut place = 0;
        for (&dim, step) in fact.dims().iter().zip(&steps).rev() {
            place += at % dim * step;
            at /= dim;
        }
        place
    };
    let count = output.shape.element_count();
    match &*fact.elements()? {
        ElementValues::Ints(values) => fold(values, count, place, ints).map(ElementValues::Ints),
        ElementValues::Floats(values) => {
            fold(values, count, place, floats).map(ElementValues::Floats)
        }
    }
}

fn fold<T: Copy>(
    values: &[T],
    count: usize,
    place: impl Fn(usize) -> usize,
    (start, of): (Option<T>, fn(T, T) -> T),
) -> Option<Vec<T>> {
    let mut results = vec![start; count];
    for (at, &value) in values.iter().enumerate() {
        let result = results.get_mut(place(at))?;
        *result = Some(result.map_or(value, |known| of(known, value)));
    }
    results.into_iter().collect()
}

pub(crate) fn sum(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    reduce(
        call,
        output,
        (Some(0), i64::wrapping_add),
        (Some(0.0), |a, b| a + b),
    )
}

pub(crate) fn product(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    reduce(
        call,
        output,
        (Some(1), i64::wrapping_mul),
        (Some(1.0), |a, b| a * b),
    )
}

pub(crate) fn min(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    reduce(call, output, (None, i64::min), (None, f64::min))
}

pub(crate) fn max(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    reduce(call, output, (None, i64::max), (None, f64::max))
}
