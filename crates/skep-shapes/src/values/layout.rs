//! Values in another order, some of them, or several times: what only moves elements.

use super::ElementValues;
use crate::{
    call::OperatorCall,
    fact::Fact,
    rules::{join::parts, reshape::permutation, slice::cuts},
};

/// How many elements apart neighbours of each dimension are, in row-major order.
fn strides(dims: &[usize]) -> Vec<i64> {
    let mut strides = vec![1; dims.len()];
    let mut stride: i64 = 1;
    for (at, &dim) in dims.iter().enumerate().rev() {
        strides[at] = stride;
        stride = stride.saturating_mul(i64::try_from(dim).unwrap_or(i64::MAX));
    }
    strides
}

/// The places of elements that lie `strides` apart from `start`, in row-major order of `dims`.
fn places(dims: &[usize], strides: &[i64], start: i64) -> Option<Vec<usize>> {
    let count = dims.iter().product();
    let mut at = vec![0usize; dims.len()];
    let mut place = start;
    let mut places = Vec::with_capacity(count);
    while places.len() < count {
        places.push(usize::try_from(place).ok()?);
        for axis in (0..dims.len()).rev() {
            at[axis] += 1;
            place = place.checked_add(strides[axis])?;
            if at[axis] < dims[axis] {
                break;
            }
            place = place.checked_sub(strides[axis].checked_mul(i64::try_from(at[axis]).ok()?)?)?;
            at[axis] = 0;
        }
    }
    Some(places)
}

/// Where the elements of a tensor of dimensions `from`, broadcast to `to`, come from.
pub(super) fn stretched(from: &[usize], to: &[usize]) -> Option<Vec<usize>> {
    let missing = to.len().checked_sub(from.len())?;
    let mut all = vec![0; missing];
    all.extend(strides(from));
    for (at, &dim) in from.iter().enumerate() {
        if dim == 1 {
            all[missing + at] = 0;
        }
    }
    places(to, &all, 0)
}

/// `Reshape`, `Squeeze`, `Unsqueeze`, `Flatten`, `Identity`: as the first input.
pub(crate) fn keep(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    Some((*call.optional(0)?.elements()?).clone())
}

/// `Expand`.
pub(crate) fn expand(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let fact = call.optional(0)?;
    fact.elements()?
        .pick(stretched(fact.dims(), output.dims())?.into_iter())
}

/// `Transpose`.
pub(crate) fn transpose(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let fact = call.optional(0)?;
    let own = strides(fact.dims());
    let order = permutation(call, own.len()).ok()?;
    let turned: Vec<i64> = order.into_iter().map(|at| own[at]).collect();
    fact.elements()?
        .pick(places(output.dims(), &turned, 0)?.into_iter())
}

/// `Slice`.
pub(crate) fn slice(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let fact = call.optional(0)?;
    let own = strides(fact.dims());
    let cuts = cuts(call).ok()?;
    let mut start: i64 = 0;
    let mut steps = Vec::with_capacity(own.len());
    for (cut, stride) in cuts.iter().zip(own) {
        // Of a dimension with one element left, the step is never taken.
        let step = if cut.count > 1 { cut.step } else { 0 };
        start = start.checked_add(cut.start.checked_mul(stride)?)?;
        steps.push(step.checked_mul(stride)?);
    }
    fact.elements()?
        .pick(places(output.dims(), &steps, start)?.into_iter())
}

/// `Tile`.
pub(crate) fn tile(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let fact = call.optional(0)?;
    let own = strides(fact.dims());
    let mut tiled = Vec::with_capacity(output.shape.element_count());
    let row_major = strides(output.dims());
    for at in 0..output.shape.element_count() {
        let mut place = 0;
        for (axis, &dim) in fact.dims().iter().enumerate() {
            let here = at / usize::try_from(row_major[axis]).ok()? % output.dims()[axis];
            place += (here % dim) * usize::try_from(own[axis]).ok()?;
        }
        tiled.push(place);
    }
    fact.elements()?.pick(tiled.into_iter())
}

/// How many elements lie in front of an axis, and how many one step along it is.
fn around(dims: &[usize], axis: usize) -> (usize, usize) {
    (
        dims[..axis].iter().product(),
        dims[axis + 1..].iter().product(),
    )
}

/// `Gather`.
pub(crate) fn gather(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    let (data, indices) = (call.optional(0)?, call.optional(1)?.ints()?);
    let dims = data.dims();
    let axis = call.axis("axis", 0, dims.len()).ok()?;
    let (outer, inner) = around(dims, axis);
    let length = i64::try_from(dims[axis]).ok()?;
    let mut places = Vec::new();
    for before in 0..outer {
        for &index in &indices {
            let index = if index < 0 {
                index.checked_add(length)?
            } else {
                index
            };
            let index = usize::try_from(index).ok().filter(|&at| at < dims[axis])?;
            let first = (before * dims[axis] + index) * inner;
            places.extend(first..first + inner);
        }
    }
    data.elements()?.pick(places.into_iter())
}

/// `Concat`.
pub(crate) fn concat(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let axis = call.axis("axis", 1, output.shape.rank()).ok()?;
    let (outer, inner) = around(output.dims(), axis);
    let mut parts = Vec::with_capacity(call.inputs.len());
    for at in 0..call.inputs.len() {
        let fact = call.optional(at)?;
        parts.push((fact.elements()?, fact.dims()[axis].checked_mul(inner)?));
    }
    let (mut ints, mut floats) = (Vec::new(), Vec::new());
    for row in 0..outer {
        for (values, width) in &parts {
            let range = row * width..(row + 1) * width;
            match &**values {
                ElementValues::Ints(values) => ints.extend(values.get(range)?),
                ElementValues::Floats(values) => floats.extend(values.get(range)?),
            }
        }
    }
    match (ints.is_empty(), floats.is_empty()) {
        (_, true) => Some(ElementValues::Ints(ints)),
        (true, false) => Some(ElementValues::Floats(floats)),
        (false, false) => None,
    }
}

/// `Split`: part `at`.
pub(crate) fn split(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    at: usize,
) -> Option<ElementValues> {
    let fact = call.optional(0)?;
    let axis = call.axis("axis", 0, fact.shape.rank()).ok()?;
    let before: usize = parts(call, fact.dims()[axis]).ok()?.iter().take(at).sum();
    let own = strides(fact.dims());
    let start = own[axis].checked_mul(i64::try_from(before).ok()?)?;
    fact.elements()?
        .pick(places(output.dims(), &own, start)?.into_iter())
}
