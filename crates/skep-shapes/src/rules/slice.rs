//! Operators that cut a tensor out of a larger one, or put one in: `Slice`, `Pad`, `CenterCropPad`.

use super::{OutputShapes, one};
use crate::{
    call::{OperatorCall, axis, size, wide},
    error::RuleRefusal,
};

/// The elements that a slice takes of one dimension: `count` elements from `start`, `step` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SliceRange {
    pub(crate) start: i64,
    pub(crate) step: i64,
    pub(crate) count: usize,
}

/// What `Slice` takes of each dimension.
pub(crate) fn cuts(call: &OperatorCall<'_, '_>) -> Result<Vec<SliceRange>, RuleRefusal> {
    let dims = call.dims(0)?;
    let (starts, ends, axes, steps) = match (call.ints("starts"), call.ints("ends")) {
        (Some(starts), Some(ends)) => {
            let axes = call.ints("axes").map(<[i64]>::to_vec);
            (starts.to_vec(), ends.to_vec(), axes, None)
        }
        _ => {
            let optional = |at: usize| call.optional(at).map(|_| call.numbers(at)).transpose();
            (
                call.numbers(1)?,
                call.numbers(2)?,
                optional(3)?,
                optional(4)?,
            )
        }
    };
    let count = starts.len();
    let axes = axes.unwrap_or_else(|| (0..).take(count).collect());
    let steps = steps.unwrap_or_else(|| vec![1; count]);
    if ends.len() != count || axes.len() != count || steps.len() != count {
        return Err(RuleRefusal::invalid(
            "has starts, ends, axes and steps of different numbers",
        ));
    }
    let whole = |&count: &usize| SliceRange {
        start: 0,
        step: 1,
        count,
    };
    let mut cuts: Vec<SliceRange> = dims.iter().map(whole).collect();
    for (at, &each) in axes.iter().enumerate() {
        let axis = axis(each, dims.len())?;
        cuts[axis] = cut(dims[axis], starts[at], ends[at], steps[at])?;
    }
    Ok(cuts)
}

/// As NumPy slices: from either end, clamped.
fn cut(length: usize, start: i64, end: i64, step: i64) -> Result<SliceRange, RuleRefusal> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let from_start = |at: i64| {
        if at < 0 {
            at.saturating_add(length)
        } else {
            at
        }
    };
    let (start, end) = (from_start(start), from_start(end));
    let (start, distance) = match step {
        0 => return Err(RuleRefusal::invalid("has a step of 0")),
        1.. => {
            let start = start.clamp(0, length);
            (start, i128::from(end.clamp(0, length)) - i128::from(start))
        }
        _ => {
            let start = start.clamp(-1, length - 1);
            (
                start,
                i128::from(start) - i128::from(end.clamp(-1, length - 1)),
            )
        }
    };
    let step_size = i128::from(step.unsigned_abs());
    let count = size(((distance + step_size - 1) / step_size).max(0))?;
    Ok(SliceRange { start, step, count })
}

/// `Slice`: attributes in operator sets before 10, then inputs.
pub(crate) fn slice(call: &OperatorCall<'_, '_>) -> OutputShapes {
    one(cuts(call)?.iter().map(|cut| cut.count).collect::<Vec<_>>())
}

/// `Pad`: paddings in front of all dimensions, then behind them; negative ones cut.
pub(crate) fn pad(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let mut dims = call.dims(0)?.to_vec();
    let pads = match call.ints("pads") {
        Some(pads) => pads.to_vec(),
        None => call.numbers(1)?,
    };
    let axes: Vec<usize> = match call.optional(3) {
        Some(_) => {
            let axes = call.numbers(3)?;
            axes.iter()
                .map(|&each| axis(each, dims.len()))
                .collect::<Result<_, _>>()?
        }
        None => (0..dims.len()).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(RuleRefusal::Invalid(format!(
            "has {} paddings for {} axes, expected two an axis",
            pads.len(),
            axes.len()
        )));
    }
    for (at, &axis) in axes.iter().enumerate() {
        let (before, behind) = (i128::from(pads[at]), i128::from(pads[at + axes.len()]));
        dims[axis] = size(wide(dims[axis]) + before + behind)?;
    }
    one(dims)
}

/// `CenterCropPad`.
pub(crate) fn center_crop_pad(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let mut dims = call.dims(0)?.to_vec();
    let wanted = call.numbers(1)?;
    let axes = call.ints("axes").map(<[i64]>::to_vec);
    let axes = axes.unwrap_or_else(|| (0..).take(dims.len()).collect());
    if axes.len() != wanted.len() {
        return Err(RuleRefusal::invalid("has more sizes than axes, or fewer"));
    }
    for (&each, &want) in axes.iter().zip(&wanted) {
        let axis = axis(each, dims.len())?;
        dims[axis] = size(i128::from(want))?;
    }
    one(dims)
}
