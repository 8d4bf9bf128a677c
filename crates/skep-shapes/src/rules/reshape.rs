//! Operators that keep the elements and change the dimensions, or repeat them along dimensions.

use super::{OutputShapes, elementwise::broadcast, one, reduce::marked};
use crate::{
    call::{OperatorCall, axis, product, size, wide},
    error::{RuleRefusal, list},
};

/// `Reshape`: 0 copies a dimension (unless `allowzero`), -1 stands for what is left.
pub(crate) fn reshape(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let input = call.dims(0)?;
    let wanted = call.numbers(1)?;
    let copies = !call.flag("allowzero");
    let mut dims = Vec::with_capacity(wanted.len());
    let mut rest = None;
    for (at, &want) in wanted.iter().enumerate() {
        dims.push(match want {
            -1 if rest.is_none() => {
                rest = Some(at);
                1
            }
            0 if copies => *input
                .get(at)
                .ok_or_else(|| mismatch(call, input, &wanted))?,
            _ => usize::try_from(want).map_err(|_| mismatch(call, input, &wanted))?,
        });
    }
    let (have, fixed) = (product(input)?, product(&dims)?);
    if let Some(at) = rest {
        if fixed == 0 || have % fixed != 0 {
            return Err(mismatch(call, input, &wanted));
        }
        dims[at] = have / fixed;
    } else if have != fixed {
        return Err(mismatch(call, input, &wanted));
    }
    one(dims)
}

fn mismatch(call: &OperatorCall<'_, '_>, input: &[usize], wanted: &[i64]) -> RuleRefusal {
    RuleRefusal::Invalid(format!(
        "reshapes {} of shape {} to {}, which does not hold as many elements",
        call.name(0),
        list(input),
        format!("{wanted:?}").replace(' ', "")
    ))
}

/// `Flatten`: a matrix, cut at an axis that may be the rank itself.
pub(crate) fn flatten(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.dims(0)?;
    let cut = axis(call.int("axis", 1), dims.len() + 1);
    // From the end, an axis counts without the place behind the last.
    let cut = match call.int("axis", 1) {
        negative if negative < 0 => axis(negative, dims.len())?,
        _ => cut?,
    };
    one([product(&dims[..cut])?, product(&dims[cut..])?])
}

/// `Squeeze`.
pub(crate) fn squeeze(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.dims(0)?;
    // No axes at all are the same as none given, as ONNX Runtime has it.
    let Some(axes) = call.axes(1)?.filter(|axes| !axes.is_empty()) else {
        return one(dims.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>());
    };
    let marked = marked(&axes, dims.len())?;
    let mut kept = Vec::new();
    for (&dim, marked) in dims.iter().zip(marked) {
        match (marked, dim) {
            (false, _) => kept.push(dim),
            (true, 1) => {}
            (true, _) => {
                return Err(RuleRefusal::Invalid(format!(
                    "squeezes a dimension of {dim} out of {} of shape {}",
                    call.name(0),
                    list(dims)
                )));
            }
        }
    }
    one(kept)
}

/// `Unsqueeze`: axes count in the output.
pub(crate) fn unsqueeze(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.dims(0)?;
    let axes = call
        .axes(1)?
        .ok_or_else(|| RuleRefusal::invalid("has no axes"))?;
    let marked = marked(&axes, dims.len() + axes.len())?;
    if marked.iter().filter(|&&marked| marked).count() != axes.len() {
        return Err(RuleRefusal::invalid("names an axis twice"));
    }
    let mut rest = dims.iter().copied();
    let filled = marked
        .iter()
        .filter_map(|&new| if new { Some(1) } else { rest.next() });
    one(filled.collect::<Vec<_>>())
}

/// Which dimension of the input each of the output is, for `Transpose`.
pub(crate) fn permutation(
    call: &OperatorCall<'_, '_>,
    rank: usize,
) -> Result<Vec<usize>, RuleRefusal> {
    let Some(order) = call.ints("perm").filter(|order| !order.is_empty()) else {
        return Ok((0..rank).rev().collect());
    };
    let order = order
        .iter()
        .map(|&at| axis(at, rank))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seen = vec![false; rank];
    order.iter().for_each(|&at| seen[at] = true);
    if order.len() != rank || seen.contains(&false) {
        return Err(RuleRefusal::Invalid(format!(
            "has a permutation of {} axes for {rank} dimensions, expected each once",
            order.len()
        )));
    }
    Ok(order)
}

/// `Transpose`.
pub(crate) fn transpose(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.dims(0)?;
    let order = permutation(call, dims.len())?;
    one(order.into_iter().map(|at| dims[at]).collect::<Vec<_>>())
}

/// `Expand`: broadcasts with a shape.
pub(crate) fn expand(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let wanted = call.numbers(1)?;
    let wanted = wanted.iter().map(|&d| size(i128::from(d)));
    one(broadcast(
        call.dims(0)?,
        &wanted.collect::<Result<Vec<_>, _>>()?,
    )?)
}

/// `Tile`.
pub(crate) fn tile(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (dims, repeats) = (call.dims(0)?, call.numbers(1)?);
    if dims.len() != repeats.len() {
        return Err(RuleRefusal::Invalid(format!(
            "repeats {} dimensions, expected {}",
            repeats.len(),
            dims.len()
        )));
    }
    let tiled = dims
        .iter()
        .zip(&repeats)
        .map(|(&dim, &n)| size(wide(dim) * i128::from(n)));
    one(tiled.collect::<Result<Vec<_>, _>>()?)
}

/// `DepthToSpace`.
pub(crate) fn depth_to_space(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (dims, block) = (call.ranked(0, 4)?, block(call)?);
    let depth = block
        .checked_mul(block)
        .filter(|&square| dims[1].is_multiple_of(square));
    let depth = depth.ok_or_else(|| uneven(call, block))?;
    let grown = |dim: usize| size(wide(dim) * wide(block));
    one([dims[0], dims[1] / depth, grown(dims[2])?, grown(dims[3])?])
}

/// `SpaceToDepth`.
pub(crate) fn space_to_depth(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (dims, block) = (call.ranked(0, 4)?, block(call)?);
    if !dims[2].is_multiple_of(block) || !dims[3].is_multiple_of(block) {
        return Err(uneven(call, block));
    }
    let square = block
        .checked_mul(block)
        .ok_or_else(|| uneven(call, block))?;
    one([
        dims[0],
        size(wide(dims[1]) * wide(square))?,
        dims[2] / block,
        dims[3] / block,
    ])
}

fn block(call: &OperatorCall<'_, '_>) -> Result<usize, RuleRefusal> {
    let block = usize::try_from(call.int("blocksize", 0)).unwrap_or(0);
    if block == 0 {
        return Err(RuleRefusal::invalid("has no `blocksize` above 0"));
    }
    Ok(block)
}

fn uneven(call: &OperatorCall<'_, '_>, block: usize) -> RuleRefusal {
    RuleRefusal::Invalid(format!(
        "takes {} apart in blocks of {block}, which do not fit",
        call.name(0)
    ))
}
