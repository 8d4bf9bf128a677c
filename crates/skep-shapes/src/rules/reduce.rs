//! Operators that sum up an axis or several: reductions, `ArgMax`, `TopK`.

use super::{Shapes, one};
use crate::{
    call::{Call, Dims, axis, size},
    error::Refusal,
};

/// Which of `rank` dimensions the axes name.
pub(crate) fn marked(axes: &[i64], rank: usize) -> Result<Vec<bool>, Refusal> {
    let mut marked = vec![false; rank];
    for &each in axes {
        marked[axis(each, rank)?] = true;
    }
    Ok(marked)
}

/// Which dimensions a reduction goes over.
pub(crate) fn reduced(call: &Call<'_, '_>) -> Result<Vec<bool>, Refusal> {
    let rank = call.dims(0)?.len();
    match call.axes(1)? {
        Some(axes) if !axes.is_empty() => marked(&axes, rank),
        _ => Ok(vec![!call.flag("noop_with_empty_axes"); rank]),
    }
}

fn without(dims: &[usize], marked: &[bool], keep: bool) -> Dims {
    let kept = dims
        .iter()
        .zip(marked)
        .filter_map(|(&dim, &marked)| match (marked, keep) {
            (false, _) => Some(dim),
            (true, true) => Some(1),
            (true, false) => None,
        });
    kept.collect()
}

/// `ReduceSum` and its kin: axes as an attribute or, in later operator sets, as an input.
pub(crate) fn reduce(call: &Call<'_, '_>) -> Shapes {
    let keep = call.int("keepdims", 1) != 0;
    one(without(call.dims(0)?, &reduced(call)?, keep))
}

/// `ArgMax`, `ArgMin`.
pub(crate) fn arg(call: &Call<'_, '_>) -> Shapes {
    let dims = call.dims(0)?;
    let marked = marked(&[call.int("axis", 0)], dims.len())?;
    one(without(dims, &marked, call.int("keepdims", 1) != 0))
}

/// `TopK`: values and indices.
pub(crate) fn top_k(call: &Call<'_, '_>) -> Shapes {
    let mut dims = call.dims(0)?.to_vec();
    let axis = call.axis("axis", -1, dims.len())?;
    let count = match call.attribute("k") {
        Some(k) => k.i(),
        None => call.number(1)?,
    };
    let count = size(i128::from(count))?;
    if count > dims[axis] {
        return Err(Refusal::Invalid(format!(
            "takes the top {count} of {} values",
            dims[axis]
        )));
    }
    dims[axis] = count;
    Ok(vec![dims.clone(), dims])
}

/// `Det`: of the matrices in the last two dimensions.
pub(crate) fn determinant(call: &Call<'_, '_>) -> Shapes {
    let dims = call.at_least(0, 2)?;
    one(&dims[..dims.len() - 2])
}

/// `NegativeLogLikelihoodLoss`, `SoftmaxCrossEntropyLoss`: a number, or without reduction one a target; the latter's
/// probabilities as its scores.
pub(crate) fn loss(call: &Call<'_, '_>) -> Shapes {
    let loss = match call.text("reduction") {
        Some("none") => call.dims(1)?.to_vec(),
        _ => Vec::new(),
    };
    Ok(vec![loss, call.dims(0)?.to_vec()])
}
