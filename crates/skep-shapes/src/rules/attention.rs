//! Attention and what comes with it, of ONNX and of ONNX Runtime's optimised transformers.

use super::{OutputShapes, one};
use crate::{
    call::{OperatorCall, OutputDims, size, wide},
    error::{RuleRefusal, list},
};

fn heads(call: &OperatorCall<'_, '_>, name: &str) -> Result<usize, RuleRefusal> {
    let heads = size(i128::from(call.int(name, 0)))?;
    if heads == 0 {
        return Err(RuleRefusal::Invalid(format!("has no `{name}` above 0")));
    }
    Ok(heads)
}

/// A hidden size cut into heads.
fn head(hidden: usize, heads: usize) -> Result<usize, RuleRefusal> {
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    Err(RuleRefusal::Invalid(format!(
        "cuts {hidden} into {heads} heads"
    )))
}

fn sum(one: usize, other: usize) -> Result<usize, RuleRefusal> {
    size(wide(one) + wide(other))
}

fn product(one: usize, other: usize) -> Result<usize, RuleRefusal> {
    size(wide(one) * wide(other))
}

/// ONNX Runtime's `Attention` and `QAttention`: projections included; output and the keys and values so far.
fn projected(call: &OperatorCall<'_, '_>, past_at: usize) -> OutputShapes {
    let (input, weight) = (call.ranked(0, 3)?, call.ranked(1, 2)?);
    let heads = heads(call, "num_heads")?;
    let hidden = match call.ints("qkv_hidden_sizes") {
        Some([_, _, value]) => size(i128::from(*value))?,
        _ => weight[1] / 3,
    };
    let past = match call.optional(past_at) {
        Some(_) => call.ranked(past_at, 5)?[3],
        None => 0,
    };
    let present = vec![
        2,
        input[0],
        heads,
        sum(input[1], past)?,
        head(hidden, heads)?,
    ];
    Ok(vec![vec![input[0], input[1], hidden], present])
}

/// ONNX Runtime's `Attention`.
pub(crate) fn attention_ms(call: &OperatorCall<'_, '_>) -> OutputShapes {
    projected(call, 4)
}

/// ONNX Runtime's `QAttention`.
pub(crate) fn quantised_attention(call: &OperatorCall<'_, '_>) -> OutputShapes {
    projected(call, 8)
}

/// ONNX Runtime's `MultiHeadAttention`: query, key and value apart, or packed in fours or fives of dimensions.
pub(crate) fn multi_head(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let query = call.dims(0)?;
    let heads = heads(call, "num_heads")?;
    let (batch, length, total, hidden) = match (query, call.optional(1), call.optional(2)) {
        (&[batch, length, heads, 3, head], None, None) => {
            (batch, length, length, product(heads, head)?)
        }
        (&[batch, length, hidden], Some(key), Some(value)) => match (key.dims(), value.dims()) {
            (_, &[_, other, value]) => (batch, length, other, value),
            (_, &[_, heads, other, head]) => (batch, length, other, product(heads, head)?),
            _ => return Err(unfit(call, hidden)),
        },
        (&[batch, length, hidden], Some(key), None) => match key.dims() {
            &[_, other, _, 2, _] => (batch, length, other, hidden),
            _ => return Err(unfit(call, hidden)),
        },
        _ => {
            return Err(RuleRefusal::Invalid(format!(
                "has a query of shape {}",
                list(query)
            )));
        }
    };
    let past = match call.optional(6) {
        Some(_) => call.ranked(6, 4)?[2],
        None => 0,
    };
    let present = vec![batch, heads, sum(total, past)?, head(hidden, heads)?];
    Ok(vec![vec![batch, length, hidden], present.clone(), present])
}

fn unfit(call: &OperatorCall<'_, '_>, hidden: usize) -> RuleRefusal {
    let shape = |at: usize| call.dims(at).map(list).unwrap_or_default();
    RuleRefusal::Invalid(format!(
        "has a query of {hidden}, a key of shape {} and a value of shape {}",
        shape(1),
        shape(2)
    ))
}

/// ONNX Runtime's `GroupQueryAttention`: output and the caches of keys and values, as long as the longest sequence.
pub(crate) fn group_query(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let query = call.ranked(0, 3)?;
    let (queries, keys) = (heads(call, "num_heads")?, heads(call, "kv_num_heads")?);
    // Without a key, query, key and value are packed in one.
    let head = match call.optional(1) {
        Some(_) => head(query[2], queries)?,
        None => head(query[2], sum(queries, product(2, keys)?)?)?,
    };
    let past = match call.optional(3) {
        Some(_) => call.ranked(3, 4)?[2],
        None => 0,
    };
    let output = vec![query[0], query[1], product(queries, head)?];
    if call.node.output.iter().skip(1).all(String::is_empty) {
        return one(output);
    }
    let total = size(i128::from(call.number(6)?))?;
    let present = vec![query[0], keys, past.max(total), head];
    Ok(vec![output, present.clone(), present])
}

/// ONNX's `Attention` (operator set 23): 3 dimensions with heads in attributes, or 4.
pub(crate) fn attention(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let heads_of = |dims: &[usize], name: &str| -> Result<[usize; 4], RuleRefusal> {
        match *dims {
            [batch, heads, length, head] => Ok([batch, heads, length, head]),
            [batch, length, hidden] => {
                let heads = heads(call, name)?;
                Ok([batch, heads, length, head(hidden, heads)?])
            }
            _ => Err(RuleRefusal::Invalid(format!(
                "has an input of shape {}",
                list(dims)
            ))),
        }
    };
    let query = heads_of(call.dims(0)?, "q_num_heads")?;
    let key = heads_of(call.dims(1)?, "kv_num_heads")?;
    let value = heads_of(call.dims(2)?, "kv_num_heads")?;
    let past = match call.optional(4) {
        Some(_) => call.ranked(4, 4)?[2],
        None => 0,
    };
    let total = sum(key[2], past)?;
    let output: OutputDims = if call.dims(0)?.len() == 4 {
        vec![query[0], query[1], query[2], value[3]]
    } else {
        vec![query[0], query[2], product(query[1], value[3])?]
    };
    let present = |of: [usize; 4]| vec![of[0], of[1], total, of[3]];
    let scores = vec![query[0], query[1], query[2], total];
    Ok(vec![output, present(key), present(value), scores])
}
