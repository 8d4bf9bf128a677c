//! Operators with a sliding window: convolutions and pools.

use super::{OutputShapes, one};
use crate::{
    call::{OperatorCall, OutputDims, size, wide},
    error::{RuleRefusal, list},
};

/// Window, stride and padding along one spatial dimension.
struct WindowAxis {
    kernel: i128,
    stride: i128,
    dilation: i128,
    pad_start: i128,
    pad_end: i128,
    output_padding: i128,
}

impl WindowAxis {
    /// What a window covers with its gaps.
    const fn reach(&self) -> i128 {
        (self.kernel - 1) * self.dilation + 1
    }
}

/// How `auto_pad` says the padding.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AutoPad {
    Explicit,
    Same,
    Valid,
}

fn padding(call: &OperatorCall<'_, '_>) -> Result<AutoPad, RuleRefusal> {
    match call.text("auto_pad") {
        None | Some("" | "NOTSET") => Ok(AutoPad::Explicit),
        Some("SAME_UPPER" | "SAME_LOWER") => Ok(AutoPad::Same),
        Some("VALID") => Ok(AutoPad::Valid),
        Some(other) => Err(RuleRefusal::Invalid(format!(
            "has `auto_pad` {other}, which is none"
        ))),
    }
}

/// The windows of a node over as many spatial dimensions as its kernel has.
fn slides(call: &OperatorCall<'_, '_>, kernel: &[usize]) -> Result<Vec<WindowAxis>, RuleRefusal> {
    let rank = kernel.len();
    let list = |name: &str, default: i64, count: usize| match call.ints(name) {
        None | Some([]) => Ok(vec![i128::from(default); count]),
        Some(values) if values.len() == count => {
            Ok(values.iter().map(|&v| i128::from(v)).collect())
        }
        Some(values) => Err(RuleRefusal::Invalid(format!(
            "has {} numbers in `{name}`, expected {count}",
            values.len()
        ))),
    };
    let (strides, dilations) = (list("strides", 1, rank)?, list("dilations", 1, rank)?);
    let pads = match padding(call)? {
        AutoPad::Explicit => list("pads", 0, 2 * rank)?,
        _ => vec![0; 2 * rank],
    };
    let more = list("output_padding", 0, rank)?;
    if strides.iter().chain(&dilations).any(|&step| step < 1) {
        return Err(RuleRefusal::invalid("has a stride or a dilation below 1"));
    }
    let slide = |at: usize| WindowAxis {
        kernel: wide(kernel[at]),
        stride: strides[at],
        dilation: dilations[at],
        pad_start: pads[at],
        pad_end: pads[at + rank],
        output_padding: more[at],
    };
    Ok((0..rank).map(slide).collect())
}

/// How often a window fits along a dimension.
fn slid(
    input: usize,
    slide: &WindowAxis,
    padding: AutoPad,
    ceil: bool,
) -> Result<usize, RuleRefusal> {
    let input = wide(input);
    if padding == AutoPad::Same {
        return size(input.div_euclid(slide.stride) + i128::from(input % slide.stride != 0));
    }
    let room = input + slide.pad_start + slide.pad_end - slide.reach();
    if room < 0 {
        return Err(RuleRefusal::Invalid(format!(
            "slides a window of {} over {input} padded by {}",
            slide.reach(),
            slide.pad_start + slide.pad_end
        )));
    }
    let mut count = room / slide.stride + 1;
    if ceil {
        count += i128::from(room % slide.stride != 0);
        // A window that would begin in the padding behind the input is left out.
        let begins = (count - 1) * slide.stride;
        count -= i128::from(begins >= input + slide.pad_start);
    }
    size(count)
}

fn kernel(call: &OperatorCall<'_, '_>) -> Result<Option<Vec<usize>>, RuleRefusal> {
    let Some(kernel) = call
        .ints("kernel_shape")
        .filter(|kernel| !kernel.is_empty())
    else {
        return Ok(None);
    };
    let sizes = kernel
        .iter()
        .map(|&k| usize::try_from(k).ok().filter(|&k| k > 0));
    let sizes: Option<Vec<usize>> = sizes.collect();
    sizes
        .map(Some)
        .ok_or_else(|| RuleRefusal::invalid("has a kernel of a size below 1"))
}

/// The spatial sizes of a convolution.
fn convolved(call: &OperatorCall<'_, '_>, x: usize, w: usize) -> OutputShapes {
    let (input, weight) = (call.at_least(x, 2)?, call.ranked(w, call.dims(x)?.len())?);
    let groups = usize::try_from(call.int("group", 1)).unwrap_or(0);
    if groups.checked_mul(weight[1]) != Some(input[1]) {
        return Err(RuleRefusal::Invalid(format!(
            "convolves {} channels in {groups} groups with a weight of shape {}",
            input[1],
            list(weight)
        )));
    }
    let kernel = kernel(call)?.unwrap_or_else(|| weight[2..].to_vec());
    if kernel != weight[2..] {
        return Err(RuleRefusal::Invalid(format!(
            "has kernel {}, but a weight of shape {}",
            list(&kernel),
            list(weight)
        )));
    }
    let (slides, padding) = (slides(call, &kernel)?, padding(call)?);
    let mut dims = vec![input[0], weight[0]];
    for (&input, slide) in input[2..].iter().zip(&slides) {
        dims.push(slid(input, slide, padding, false)?);
    }
    one(dims)
}

/// `Conv`, `ConvInteger`, `FusedConv`.
pub(crate) fn conv(call: &OperatorCall<'_, '_>) -> OutputShapes {
    convolved(call, 0, 1)
}

/// `QLinearConv`: scale and zero point behind each tensor.
pub(crate) fn quantised_conv(call: &OperatorCall<'_, '_>) -> OutputShapes {
    if call.flag("channels_last") {
        return Err(RuleRefusal::Open(
            "channels that lie last, which is not followed".to_owned(),
        ));
    }
    convolved(call, 0, 3)
}

/// `ConvTranspose`.
pub(crate) fn conv_transpose(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (input, weight) = (call.at_least(0, 2)?, call.ranked(1, call.dims(0)?.len())?);
    if input[1] != weight[0] {
        return Err(RuleRefusal::Invalid(format!(
            "takes {} channels with a weight of shape {}",
            input[1],
            list(weight)
        )));
    }
    let kernel = kernel(call)?.unwrap_or_else(|| weight[2..].to_vec());
    if kernel.len() != weight.len() - 2 {
        return Err(RuleRefusal::invalid(
            "has a kernel of another rank than its weight",
        ));
    }
    let slides = slides(call, &kernel)?;
    let same = padding(call)? == AutoPad::Same;
    let asked = call.ints("output_shape").filter(|asked| !asked.is_empty());
    let channels = wide(weight[1]) * i128::from(call.int("group", 1));
    let mut dims = vec![input[0], size(channels)?];
    for (at, (&input, slide)) in input[2..].iter().zip(&slides).enumerate() {
        let input = wide(input);
        dims.push(match asked {
            // Some writers put batch and channels in front.
            Some(asked) => {
                let from_end = slides.len() - at;
                let asked = asked
                    .len()
                    .checked_sub(from_end)
                    .and_then(|at| asked.get(at));
                let asked =
                    asked.ok_or_else(|| RuleRefusal::invalid("has too short an `output_shape`"))?;
                size(i128::from(*asked))?
            }
            None if same => size(input * slide.stride)?,
            None => size(
                slide.stride * (input - 1) + slide.output_padding + slide.reach()
                    - slide.pad_start
                    - slide.pad_end,
            )?,
        });
    }
    one(dims)
}

/// `DeformConv`.
pub(crate) fn deform_conv(call: &OperatorCall<'_, '_>) -> OutputShapes {
    convolved(call, 0, 1)
}

fn pooled(call: &OperatorCall<'_, '_>) -> Result<OutputDims, RuleRefusal> {
    let input = call.at_least(0, 2)?;
    let kernel = kernel(call)?.ok_or_else(|| RuleRefusal::invalid("has no `kernel_shape`"))?;
    if kernel.len() != input.len() - 2 {
        return Err(RuleRefusal::Invalid(format!(
            "has kernel {} for an input of shape {}",
            list(&kernel),
            list(input)
        )));
    }
    let (slides, padding) = (slides(call, &kernel)?, padding(call)?);
    let mut dims = input[..2].to_vec();
    for (&input, slide) in input[2..].iter().zip(&slides) {
        dims.push(slid(input, slide, padding, call.flag("ceil_mode"))?);
    }
    Ok(dims)
}

/// `AveragePool`, `LpPool`, and `MaxPool` with its indices.
pub(crate) fn pool(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let dims = pooled(call)?;
    Ok(vec![dims.clone(), dims])
}

/// Pools over all of the spatial dimensions.
pub(crate) fn global_pool(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let input = call.at_least(0, 2)?;
    let mut dims = vec![1; input.len()];
    dims[..2].copy_from_slice(&input[..2]);
    one(dims)
}

/// `QLinearGlobalAveragePool`, with channels second or last.
pub(crate) fn quantised_global_pool(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let input = call.at_least(0, 2)?;
    let mut dims = vec![1; input.len()];
    let channels = if call.flag("channels_last") {
        input.len() - 1
    } else {
        1
    };
    (dims[0], dims[channels]) = (input[0], input[channels]);
    one(dims)
}

/// `MaxUnpool`: the size that a pool of these windows would have had, unless it is given.
pub(crate) fn max_unpool(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let input = call.at_least(0, 2)?;
    if call.optional(2).is_some() {
        let dims = call.numbers(2)?;
        let dims = dims.iter().map(|&d| size(i128::from(d)));
        return one(dims.collect::<Result<Vec<_>, _>>()?);
    }
    let kernel = kernel(call)?.ok_or_else(|| RuleRefusal::invalid("has no `kernel_shape`"))?;
    if kernel.len() != input.len() - 2 {
        return Err(RuleRefusal::invalid(
            "has a kernel of another rank than its input",
        ));
    }
    let mut dims = input[..2].to_vec();
    for (&input, slide) in input[2..].iter().zip(&slides(call, &kernel)?) {
        let unpooled = (wide(input) - 1) * slide.stride + slide.kernel;
        dims.push(size(unpooled - slide.pad_start - slide.pad_end)?);
    }
    one(dims)
}
