//! Operators that pick elements by indices, or count those that hold something.

use super::{OutputShapes, one};
use crate::{
    call::{OperatorCall, size},
    error::{RuleRefusal, list},
    values::truncated,
};

/// `Gather`: the indices' dimensions take the axis' place.
pub(crate) fn gather(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (data, indices) = (call.at_least(0, 1)?, call.dims(1)?);
    let axis = call.axis("axis", 0, data.len())?;
    one([&data[..axis], indices, &data[axis + 1..]].concat())
}

/// `GatherElements`: as the indices.
pub(crate) fn gather_elements(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let rank = call.dims(0)?.len();
    one(call.ranked(1, rank)?)
}

/// `GatherND`: the indices' last dimension says how many of the data's an index covers, behind the batch's.
pub(crate) fn gather_nd(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (data, indices) = (call.at_least(0, 1)?, call.at_least(1, 1)?);
    let batch = size(i128::from(call.int("batch_dims", 0)))?;
    let (outer, covered) = (&indices[..indices.len() - 1], indices[indices.len() - 1]);
    let covered = batch
        .checked_add(covered)
        .filter(|&c| c <= data.len() && batch <= outer.len());
    let Some(covered) = covered else {
        return Err(RuleRefusal::Invalid(format!(
            "picks from shape {} by indices of shape {}",
            list(data),
            list(indices)
        )));
    };
    one([outer, &data[covered..]].concat())
}

/// `ArrayFeatureExtractor`: of the last dimension.
pub(crate) fn array_feature_extractor(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (data, indices) = (call.at_least(0, 1)?, call.dims(1)?);
    let count = indices.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let count = count.ok_or_else(|| RuleRefusal::invalid("has too many indices"))?;
    match data {
        [_] => one([1, count]),
        _ => one([&data[..data.len() - 1], &[count]].concat()),
    }
}

/// `OneHot`: a new axis, of a depth that is an input.
pub(crate) fn one_hot(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let mut dims = call.dims(0)?.to_vec();
    let depth = match call.input(1)?.float() {
        // The depth may be a float.
        Some(depth) => truncated(depth).ok_or_else(|| call.open(1))?,
        None => call.number(1)?,
    };
    let at = call.axis("axis", -1, dims.len() + 1)?;
    dims.insert(at, size(i128::from(depth))?);
    one(dims)
}

/// `NonZero` of values that are known; otherwise the count is known only in a run.
pub(crate) fn non_zero(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let input = call.input(0)?;
    let ints = input
        .ints()
        .map(|values| values.iter().filter(|&&v| v != 0).count());
    let floats = || {
        input
            .floats()
            .map(|values| values.iter().filter(|&&v| v != 0.0).count())
    };
    let count = ints.or_else(floats).ok_or_else(|| call.open(0))?;
    one([input.shape.rank(), count])
}

/// `Compress` by conditions that are known.
pub(crate) fn compress(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let data = call.dims(0)?;
    let chosen = call.input(1)?.ints().ok_or_else(|| call.open(1))?;
    let count = chosen.iter().filter(|&&chosen| chosen != 0).count();
    if call.attribute("axis").is_none() {
        return one([count]);
    }
    let mut dims = data.to_vec();
    let axis = call.axis("axis", 0, dims.len())?;
    dims[axis] = count;
    one(dims)
}

/// Operators whose result decides how many elements their outputs have: `NonMaxSuppression`, `Unique`.
pub(crate) fn counted(call: &OperatorCall<'_, '_>) -> OutputShapes {
    Err(call.open(0))
}

/// `TfIdfVectorizer`: as many numbers a row as the largest of its indices says.
pub(crate) fn tf_idf(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.dims(0)?;
    let largest = call
        .ints("ngram_indexes")
        .and_then(|indices| indices.iter().max());
    let columns =
        size(i128::from(*largest.ok_or_else(|| RuleRefusal::invalid("has no indices"))?) + 1)?;
    match dims {
        [_] => one([columns]),
        [rows, _] => one([*rows, columns]),
        _ => Err(RuleRefusal::Invalid(format!(
            "reads shape {}, expected 1 or 2 dimensions",
            list(dims)
        ))),
    }
}
