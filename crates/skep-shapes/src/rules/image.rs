//! Operators on images: resizing, sampling, regions.

use super::{OutputShapes, one};
use crate::{
    call::{OperatorCall, OutputDims, axis, size},
    error::{RuleRefusal, list},
};

/// `Resize` and `Upsample`: by scales or to sizes, which are inputs or, in the first operator sets, attributes.
pub(crate) fn resize(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.dims(0)?;
    let is_resize = call.node.op_type() == "Resize";
    // Operator set 11 put a region of interest in front of the scales.
    let (scales_at, sizes_at) = if is_resize && call.version >= 11 {
        (2, 3)
    } else {
        (1, 3)
    };
    let axes: Vec<usize> = match call.ints("axes") {
        Some(axes) => axes
            .iter()
            .map(|&a| axis(a, dims.len()))
            .collect::<Result<_, _>>()?,
        None => (0..dims.len()).collect(),
    };
    let is_given = |at: usize| {
        call.optional(at)
            .is_some_and(|f| f.shape.element_count() > 0)
    };
    if is_resize && is_given(sizes_at) {
        let sizes = call.numbers(sizes_at)?;
        let sizes = sizes
            .iter()
            .map(|&s| size(i128::from(s)))
            .collect::<Result<OutputDims, _>>()?;
        return one(to_sizes(call, dims, &axes, &sizes)?);
    }
    let scales: Vec<f64> = match call.attribute("scales") {
        Some(scales) => scales.floats.iter().map(|&s| f64::from(s)).collect(),
        None if is_given(scales_at) => call
            .input(scales_at)?
            .floats()
            .ok_or_else(|| call.open(scales_at))?,
        None => return Err(RuleRefusal::invalid("has neither scales nor sizes")),
    };
    if scales.len() != axes.len() {
        return Err(RuleRefusal::Invalid(format!(
            "has {} scales for {} axes",
            scales.len(),
            axes.len()
        )));
    }
    let mut resized = dims.to_vec();
    for (&axis, &scale) in axes.iter().zip(&scales) {
        resized[axis] = scaled(dims[axis], scale)?;
    }
    one(resized)
}

/// A size times a scale in FP32, as ONNX Runtime computes it, rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the range is checked, and FP32 is what the operator computes in"
)]
fn scaled(dim: usize, scale: f64) -> Result<usize, RuleRefusal> {
    let product = (dim as f32) * (scale as f32);
    if !(0.0..9e18).contains(&product) {
        return Err(RuleRefusal::Invalid(format!("scales {dim} by {scale}")));
    }
    Ok(product as usize)
}

/// The sizes as given, or adjusted to keep the image's proportions within or around them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the range is checked, and FP32 is what the operator computes in"
)]
fn to_sizes(
    call: &OperatorCall<'_, '_>,
    dims: &[usize],
    axes: &[usize],
    sizes: &[usize],
) -> Result<OutputDims, RuleRefusal> {
    if sizes.len() != axes.len() {
        return Err(RuleRefusal::Invalid(format!(
            "has {} sizes for {} axes",
            sizes.len(),
            axes.len()
        )));
    }
    let mut resized = dims.to_vec();
    let ratios = axes
        .iter()
        .zip(sizes)
        .map(|(&axis, &size)| size as f32 / dims[axis] as f32);
    let ratio = match call.text("keep_aspect_ratio_policy") {
        None | Some("" | "stretch") => None,
        Some("not_larger") => Some(ratios.fold(f32::INFINITY, f32::min)),
        Some("not_smaller") => Some(ratios.fold(0.0, f32::max)),
        Some(other) => {
            return Err(RuleRefusal::Invalid(format!(
                "keeps the aspect ratio by policy {other}"
            )));
        }
    };
    for (&axis, &size) in axes.iter().zip(sizes) {
        resized[axis] = match ratio {
            None => size,
            Some(ratio) => {
                // Half away from zero.
                let rounded = (dims[axis] as f32 * ratio).round();
                if !(0.0..9e18).contains(&rounded) {
                    return Err(RuleRefusal::Invalid(format!(
                        "scales {} by {ratio}",
                        dims[axis]
                    )));
                }
                rounded as usize
            }
        };
    }
    Ok(resized)
}

/// `GridSample`: batch and channels of the input, the rest of the grid.
pub(crate) fn grid_sample(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let input = call.at_least(0, 3)?;
    let grid = call.ranked(1, input.len())?;
    one([&input[..2], &grid[1..grid.len() - 1]].concat())
}

/// `AffineGrid`: a grid for images of the given size, 2-D or 3-D.
pub(crate) fn affine_grid(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = call.numbers(1)?;
    let dims = dims
        .iter()
        .map(|&d| size(i128::from(d)))
        .collect::<Result<OutputDims, _>>()?;
    match dims[..] {
        [batch, _, height, width] => one([batch, height, width, 2]),
        [batch, _, depth, height, width] => one([batch, depth, height, width, 3]),
        _ => Err(RuleRefusal::Invalid(format!(
            "has size {}, expected 4 or 5 numbers",
            list(&dims)
        ))),
    }
}

/// `RoiAlign`: a patch a region.
pub(crate) fn roi_align(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (channels, regions) = (call.ranked(0, 4)?[1], call.ranked(1, 2)?[0]);
    let patch = |name: &str| size(i128::from(call.int(name, 1)));
    one([
        regions,
        channels,
        patch("output_height")?,
        patch("output_width")?,
    ])
}

/// `MaxRoiPool`: a patch a region.
pub(crate) fn max_roi_pool(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (channels, regions) = (call.ranked(0, 4)?[1], call.ranked(1, 2)?[0]);
    match call.ints("pooled_shape") {
        Some([height, width]) => one([
            regions,
            channels,
            size(i128::from(*height))?,
            size(i128::from(*width))?,
        ]),
        _ => Err(RuleRefusal::invalid("has no `pooled_shape` of two sizes")),
    }
}

/// `Col2Im`: blocks put together into an image of the given size.
pub(crate) fn col_to_im(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let input = call.ranked(0, 3)?;
    let sizes = |at: usize| -> Result<OutputDims, RuleRefusal> {
        let numbers = call.numbers(at)?;
        numbers.iter().map(|&n| size(i128::from(n))).collect()
    };
    let (image, block) = (sizes(1)?, sizes(2)?);
    let elements = crate::call::product(&block)?;
    if elements == 0 || input[1] % elements != 0 {
        return Err(RuleRefusal::invalid(
            "has blocks that do not fit its channels",
        ));
    }
    one([vec![input[0], input[1] / elements], image].concat())
}

/// `ImageDecoder`: an image says its size itself.
pub(crate) fn image_decoder(call: &OperatorCall<'_, '_>) -> OutputShapes {
    Err(call.open(0))
}
