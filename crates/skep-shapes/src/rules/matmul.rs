//! Products of matrices: `MatMul` and its kin, `Gemm`, `Einsum`.

use std::collections::BTreeMap;

use super::{OutputShapes, elementwise::broadcast, one};
use crate::{
    call::{OperatorCall, OutputDims, size},
    error::{RuleRefusal, list},
};

/// NumPy's matmul: vectors are matrices of one row or column, leading dimensions broadcast.
fn matmul(a: &[usize], b: &[usize]) -> Result<OutputDims, RuleRefusal> {
    let differ = || {
        RuleRefusal::Invalid(format!(
            "multiplies shapes {} and {}, whose inner sizes differ",
            list(a),
            list(b)
        ))
    };
    let (Some(&inner), false) = (a.last(), b.is_empty()) else {
        return Err(RuleRefusal::invalid(
            "multiplies a scalar, expected matrices",
        ));
    };
    let row = b.len().saturating_sub(2);
    if b[row] != inner {
        return Err(differ());
    }
    let mut dims = broadcast(&a[..a.len().saturating_sub(2)], &b[..row])?;
    if a.len() > 1 {
        dims.push(a[a.len() - 2]);
    }
    if b.len() > 1 {
        dims.push(b[b.len() - 1]);
    }
    Ok(dims)
}

/// `MatMul`, `MatMulInteger`.
pub(crate) fn plain(call: &OperatorCall<'_, '_>) -> OutputShapes {
    one(matmul(call.dims(0)?, call.dims(1)?)?)
}

/// `QLinearMatMul`: scale and zero point behind each tensor.
pub(crate) fn quantised(call: &OperatorCall<'_, '_>) -> OutputShapes {
    one(matmul(call.dims(0)?, call.dims(3)?)?)
}

/// ONNX Runtime's `FusedMatMul`: operands may be transposed, also with the first axis of the matrix moved.
pub(crate) fn fused(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let turned = |at: usize, flag: &str, batch: &str| -> Result<OutputDims, RuleRefusal> {
        let mut dims = call.dims(at)?.to_vec();
        let rank = dims.len();
        if call.flag(batch) && rank > 2 {
            // [k, batch.., m] is read as [batch.., k, m].
            dims[..rank - 1].rotate_left(1);
        }
        if call.flag(flag) && rank > 1 {
            dims.swap(rank - 2, rank - 1);
        }
        Ok(dims)
    };
    let a = turned(0, "transA", "transBatchA")?;
    let b = turned(1, "transB", "transBatchB")?;
    one(matmul(&a, &b)?)
}

/// `Gemm`.
pub(crate) fn gemm(call: &OperatorCall<'_, '_>) -> OutputShapes {
    gemm_of(call, 0, 1)
}

/// ONNX Runtime's `QGemm`: scale and zero point behind each tensor.
pub(crate) fn quantised_gemm(call: &OperatorCall<'_, '_>) -> OutputShapes {
    gemm_of(call, 0, 3)
}

fn gemm_of(call: &OperatorCall<'_, '_>, a: usize, b: usize) -> OutputShapes {
    let (a, b) = (call.ranked(a, 2)?, call.ranked(b, 2)?);
    let turned = |dims: &[usize], flag: &str| {
        if call.flag(flag) {
            [dims[1], dims[0]]
        } else {
            [dims[0], dims[1]]
        }
    };
    let ([rows, inner], [other, columns]) = (turned(a, "transA"), turned(b, "transB"));
    if inner != other {
        return Err(RuleRefusal::Invalid(format!(
            "multiplies shapes {} and {}, whose inner sizes {inner} and {other} differ",
            list(a),
            list(b)
        )));
    }
    one([rows, columns])
}

/// ONNX Runtime's `MatMulNBits` and `MatMulBnb4`: the weight is packed, attributes hold its sizes.
pub(crate) fn packed(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let mut dims = call.at_least(0, 1)?.to_vec();
    let columns = size(i128::from(call.int("N", 0)))?;
    let inner = size(i128::from(call.int("K", 0)))?;
    match dims.last_mut() {
        Some(last) if *last == inner => *last = columns,
        _ => {
            return Err(RuleRefusal::Invalid(format!(
                "multiplies shape {} with a weight of {inner} rows",
                list(&dims)
            )));
        }
    }
    one(dims)
}

/// `Einsum`: letters name dimensions, an ellipsis those in front that broadcast.
pub(crate) fn einsum(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let equation: String = call.text("equation").unwrap_or("").replace(' ', "");
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != call.inputs.len() {
        return Err(RuleRefusal::Invalid(format!(
            "has {} inputs for equation `{equation}`",
            call.inputs.len()
        )));
    }
    let mut sizes: BTreeMap<u8, usize> = BTreeMap::new();
    let mut ellipsis: OutputDims = Vec::new();
    for (at, term) in terms.iter().enumerate() {
        let dims = call.dims(at)?;
        let (front, back) = term.split_once("...").unwrap_or((term, ""));
        let named = front.len() + back.len();
        let covered = dims.len().checked_sub(named);
        let covered = covered.filter(|&rest| rest == 0 || term.contains("..."));
        let Some(covered) = covered else {
            return Err(RuleRefusal::Invalid(format!(
                "reads {} of shape {} as `{term}`",
                call.name(at),
                list(dims)
            )));
        };
        let (middle, end) = (front.len(), front.len() + covered);
        ellipsis = broadcast(&ellipsis, &dims[middle..end])?;
        let letters = front.bytes().zip(&dims[..middle]);
        for (letter, &size) in letters.chain(back.bytes().zip(&dims[end..])) {
            let known = sizes.entry(letter).or_insert(size);
            if *known != size && *known != 1 && size != 1 {
                return Err(RuleRefusal::Invalid(format!(
                    "gives `{}` of equation `{equation}` the sizes {known} and {size}",
                    char::from(letter)
                )));
            }
            *known = size.max(*known);
        }
    }
    let implied;
    let right = match right {
        Some(right) => right,
        None => {
            implied = implied_output(left);
            &implied
        }
    };
    let (front, back) = right.split_once("...").unwrap_or((right, ""));
    let size = |letter: u8| {
        sizes.get(&letter).copied().ok_or_else(|| {
            RuleRefusal::Invalid(format!(
                "has `{}` in the output of `{equation}` alone",
                char::from(letter)
            ))
        })
    };
    let mut dims = front.bytes().map(size).collect::<Result<OutputDims, _>>()?;
    if right.contains("...") {
        dims.extend(&ellipsis);
    }
    for letter in back.bytes() {
        dims.push(size(letter)?);
    }
    one(dims)
}

/// Without an arrow: the ellipsis, then the letters that come once, in alphabetical order.
fn implied_output(left: &str) -> String {
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    for letter in left.chars().filter(|c| c.is_ascii_alphabetic()) {
        *counts.entry(letter).or_default() += 1;
    }
    let once = counts
        .into_iter()
        .filter(|(_, count)| *count == 1)
        .map(|(letter, _)| letter);
    let ellipsis = if left.contains("...") { "..." } else { "" };
    ellipsis.chars().chain(once).collect()
}
