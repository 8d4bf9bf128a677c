//! Operators that put tensors together or take them apart along an axis: `Concat`, `Split`.

use super::{OutputShapes, one};
use crate::{
    call::{OperatorCall, axis, size, wide},
    error::{RuleRefusal, list},
};

/// `Concat`.
pub(crate) fn concat(call: &OperatorCall<'_, '_>) -> OutputShapes {
    concat_of(call, (0..call.inputs.len().max(1)).step_by(1), "axis")
}

/// ONNX Runtime's `QLinearConcat`: behind the output's scale and zero point, three inputs a tensor.
pub(crate) fn quantised_concat(call: &OperatorCall<'_, '_>) -> OutputShapes {
    concat_of(call, (2..call.inputs.len().max(3)).step_by(3), "axis")
}

fn concat_of(
    call: &OperatorCall<'_, '_>,
    mut which: impl Iterator<Item = usize>,
    name: &str,
) -> OutputShapes {
    let first = which.next().unwrap_or(0);
    let mut dims = call.dims(first)?.to_vec();
    let axis = call.axis(name, 1, dims.len())?;
    for at in which {
        let other = call.dims(at)?;
        let fits = dims.len() == other.len()
            && (0..dims.len()).all(|at| at == axis || dims[at] == other[at]);
        if !fits {
            return Err(RuleRefusal::Invalid(format!(
                "joins shapes {} and {} along axis {axis}",
                list(&dims),
                list(other)
            )));
        }
        dims[axis] = size(wide(dims[axis]) + wide(other[axis]))?;
    }
    one(dims)
}

/// The sizes of a split's parts along its axis.
pub(crate) fn parts(call: &OperatorCall<'_, '_>, length: usize) -> Result<Vec<usize>, RuleRefusal> {
    let count = call.node.output.len();
    let sizes = match (call.ints("split"), call.optional(1)) {
        (Some(sizes), _) => sizes.to_vec(),
        (None, Some(fact)) if fact.shape.element_count() == count => {
            fact.ints().ok_or_else(|| call.open(1))?
        }
        (None, Some(fact)) => {
            return Err(RuleRefusal::Invalid(format!(
                "has {count} outputs, but sizes of shape {}",
                fact.shape
            )));
        }
        (None, None) => {
            // Equal parts; from operator set 18 on the last may be smaller.
            let part = length.div_ceil(count.max(1));
            let start = |at: usize| part.saturating_mul(at).min(length);
            return Ok((0..count).map(|at| start(at + 1) - start(at)).collect());
        }
    };
    let sizes = sizes
        .iter()
        .map(|&s| size(i128::from(s)))
        .collect::<Result<Vec<_>, _>>()?;
    let total: u128 = sizes.iter().map(|&s| s as u128).sum();
    if total != length as u128 || sizes.len() != count {
        return Err(RuleRefusal::Invalid(format!(
            "splits {length} into {} parts of {total} in all, expected {count} parts",
            sizes.len()
        )));
    }
    Ok(sizes)
}

/// `Split`.
pub(crate) fn split(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.dims(0)?;
    let axis = axis(call.int("axis", 0), dims.len())?;
    let part = |length: usize| {
        let mut part = dims.to_vec();
        part[axis] = length;
        part
    };
    Ok(parts(call, dims[axis])?.into_iter().map(part).collect())
}
