//! Operators on signals: Fourier transforms and windows.

use super::{OutputShapes, one};
use crate::{
    call::{OperatorCall, axis, size, wide},
    error::RuleRefusal,
};

/// The complex numbers of a one-sided spectrum are half as many, and the one in the middle.
const fn one_sided(length: usize) -> usize {
    length / 2 + 1
}

/// `DFT`: complex numbers in the last dimension; the axis is an attribute until operator set 20.
pub(crate) fn dft(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let input = call.at_least(0, 2)?;
    let mut dims = input.to_vec();
    let at = if call.version >= 20 {
        match call.optional(2) {
            Some(_) => call.number(2)?,
            None => -2,
        }
    } else {
        call.int("axis", 1)
    };
    let axis = axis(at, dims.len())?;
    let last = dims.len() - 1;
    if axis == last {
        return Err(RuleRefusal::invalid(
            "transforms the dimension that holds the complex numbers",
        ));
    }
    if call.optional(1).is_some() {
        dims[axis] = size(i128::from(call.number(1)?))?;
    }
    let (half, back) = (call.flag("onesided"), call.flag("inverse"));
    if half && !back {
        dims[axis] = one_sided(dims[axis]);
    } else if half && call.optional(1).is_none() {
        dims[axis] = size((wide(dims[axis]) - 1) * 2)?;
    }
    // A one-sided spectrum taken back is real.
    dims[last] = if half && back { 1 } else { 2 };
    one(dims)
}

/// `STFT`: frames of the signal, each a spectrum.
pub(crate) fn stft(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let signal = call.at_least(0, 2)?;
    let step = call.number(1)?;
    let frame = match (call.optional(3), call.optional(2)) {
        (Some(_), _) => call.number(3)?,
        (None, Some(window)) => i64::try_from(window.shape.element_count()).unwrap_or(i64::MAX),
        (None, None) => {
            return Err(RuleRefusal::invalid(
                "has neither a window nor a frame length",
            ));
        }
    };
    let room = wide(signal[1]) - i128::from(frame);
    if step < 1 || frame < 0 || room < 0 {
        return Err(RuleRefusal::Invalid(format!(
            "takes frames of {frame} every {step} of {}",
            signal[1]
        )));
    }
    let frames = size(room / i128::from(step) + 1)?;
    let frame = size(i128::from(frame))?;
    let bins = if call.int("onesided", 1) != 0 {
        one_sided(frame)
    } else {
        frame
    };
    one([signal[0], frames, bins, 2])
}

/// `HannWindow`, `HammingWindow`, `BlackmanWindow`: of a size that is an input.
pub(crate) fn window(call: &OperatorCall<'_, '_>) -> OutputShapes {
    one([size(i128::from(call.number(0)?))?])
}

/// `MelWeightMatrix`: bins of the spectrum by bins of the scale.
pub(crate) fn mel(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let bins = size(i128::from(call.number(0)?))?;
    let length = size(i128::from(call.number(1)?))?;
    one([one_sided(length), bins])
}
