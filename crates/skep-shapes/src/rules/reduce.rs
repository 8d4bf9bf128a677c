//! Operators that sum up an axis or several: reductions, `ArgMax`, `TopK`.

use super::{OutputShapes, one};
use crate::{
    call::{OperatorCall, OutputDims, axis, size},
    error::RuleRefusal,
};

/// Which of `rank` dimensions the axes name.
pub(crate) fn marked(axes: &[i64], rank: usize) -> Result<Vec<bool>, RuleRefusal> {
    let mut marked = vec![false; rank];
    for &each in axes {
        marked[axis(each, rank)?] = true;
    }
    Ok(marked)
}

/// Which dimensions a reduction goes over.
pub(crate) fn reduced(call: &OperatorCall<'_, '_>) -> Result<Vec<bool>, RuleRefusal> {
    let rank = call.dims(0)?.len();
    match call.axes(1)? {
        Some(axes) if !axes.is_empty() => marked(&axes, rank),
        _ => Ok(vec![!call.flag("noop_with_empty_axes"); rank]),
    }
}

fn without(dims: &[usize], marked: &[bool], keep: bool) -> OutputDims {
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
pub(crate) fn reduce(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let keep = call.int("keepdims", 1) != 0;
    one(without(call.dims(0)?, &reduced(call)?, keep))
}

/// `ArgMax`, `ArgMin`.
pub(crate) fn arg(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.dims(0)?;
    let marked = marked(&[call.int("axis", 0)], dims.len())?;
    one(without(dims, &marked, call.int("keepdims", 1) != 0))
}

/// `TopK`: values and indices.
pub(crate) fn top_k(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let mut dims = call.dims(0)?.to_vec();
    let axis = call.axis("axis", -1, dims.len())?;
    let count = match call.attribute("k") {
        Some(k) => k.i(),
        None => call.number(1)?,
    };
    let count = size(i128::from(count))?;
    if count > dims[axis] {
        return Err(RuleRefusal::Invalid(format!(
            "takes the top {count} of {} values",
            dims[axis]
        )));
    }
    dims[axis] = count;
    Ok(vec![dims.clone(), dims])
}

/// `Det`: of the matrices in the last two dimensions.
pub(crate) fn determinant(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.at_least(0, 2)?;
    one(&dims[..dims.len() - 2])
}

/// `NegativeLogLikelihoodLoss`, `SoftmaxCrossEntropyLoss`: a number, or without reduction one a target; the latter's
/// probabilities as its scores.
pub(crate) fn loss(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let loss = match call.text("reduction") {
        Some("none") => call.dims(1)?.to_vec(),
        _ => Vec::new(),
    };
    Ok(vec![loss, call.dims(0)?.to_vec()])
}
