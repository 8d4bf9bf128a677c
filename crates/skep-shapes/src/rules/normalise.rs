//! Normalisations, and the statistics that some return.

use super::OutputShapes;
use crate::{
    call::{OperatorCall, OutputDims},
    error::{RuleRefusal, list},
};

/// `BatchNormalization`: the output as the input, statistics as the fourth input.
pub(crate) fn batch(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.at_least(0, 1)?;
    let channels = *dims.get(1).unwrap_or(&1);
    for at in 1..5 {
        if call.dims(at)? != [channels] {
            return Err(RuleRefusal::Invalid(format!(
                "normalises shape {} by {} of shape {}",
                list(dims),
                call.name(at),
                list(call.dims(at)?)
            )));
        }
    }
    let statistics = vec![channels];
    let mut shapes = vec![dims.to_vec()];
    shapes.resize(5, statistics);
    Ok(shapes)
}

/// The dimensions with ones from an axis on, as a mean leaves them.
fn means(dims: &[usize], axis: usize) -> OutputDims {
    let mut means = dims.to_vec();
    means[axis..].fill(1);
    means
}

/// `LayerNormalization` and `RMSNormalization`: output, mean, inverse standard deviation.
pub(crate) fn layer(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.dims(0)?;
    let means = means(dims, call.axis("axis", -1, dims.len())?);
    Ok(vec![dims.to_vec(), means.clone(), means])
}

/// ONNX Runtime's `SkipLayerNormalization`: output, mean, inverse standard deviation, sum.
pub(crate) fn skip_layer(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.at_least(0, 1)?;
    let means = means(dims, dims.len() - 1);
    Ok(vec![dims.to_vec(), means.clone(), means, dims.to_vec()])
}

/// ONNX Runtime's `EmbedLayerNormalization`: embeddings, length of each mask, sum.
pub(crate) fn embed_layer(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (ids, table) = (call.ranked(0, 2)?, call.ranked(2, 2)?);
    let embedded = vec![ids[0], ids[1], table[1]];
    Ok(vec![embedded.clone(), vec![ids[0]], embedded])
}
