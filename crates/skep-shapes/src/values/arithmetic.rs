//! Element-wise arithmetic, comparisons, logic and casts.

use super::{ElementValues, as_floats, layout::stretched, truncated};
use crate::{call::OperatorCall, element::ElementType, fact::Fact};

/// What a function of two numbers is on whole numbers and on floats; `None` where it has no value.
struct BinaryFunction {
    ints: fn(i64, i64) -> Option<i64>,
    floats: fn(f64, f64) -> f64,
}

/// A function of each pair of the inputs, broadcast, from left to right.
fn combined(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    function: &BinaryFunction,
) -> Option<ElementValues> {
    let mut result = spread(call, output, 0)?;
    for at in 1..call.inputs.len() {
        result = match (result, spread(call, output, at)?) {
            (ElementValues::Ints(a), ElementValues::Ints(b)) => {
                let pairs = a.into_iter().zip(b);
                ElementValues::Ints(
                    pairs
                        .map(|(a, b)| (function.ints)(a, b))
                        .collect::<Option<_>>()?,
                )
            }
            (ElementValues::Floats(a), ElementValues::Floats(b)) => {
                let pairs = a.into_iter().zip(b);
                ElementValues::Floats(pairs.map(|(a, b)| (function.floats)(a, b)).collect())
            }
            _ => return None,
        };
    }
    Some(result)
}

/// The values of an input, broadcast to the output.
fn spread(call: &OperatorCall<'_, '_>, output: &Fact<'_>, at: usize) -> Option<ElementValues> {
    let fact = call.optional(at)?;
    let places = stretched(fact.dims(), output.dims())?;
    fact.elements()?.pick(places.into_iter())
}

pub(crate) fn add(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    combined(
        call,
        output,
        &BinaryFunction {
            ints: |a, b| Some(a.wrapping_add(b)),
            floats: |a, b| a + b,
        },
    )
}

pub(crate) fn sub(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    combined(
        call,
        output,
        &BinaryFunction {
            ints: |a, b| Some(a.wrapping_sub(b)),
            floats: |a, b| a - b,
        },
    )
}

pub(crate) fn mul(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    combined(
        call,
        output,
        &BinaryFunction {
            ints: |a, b| Some(a.wrapping_mul(b)),
            floats: |a, b| a * b,
        },
    )
}

/// Whole numbers are divided towards zero, as every runtime does.
pub(crate) fn div(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    combined(
        call,
        output,
        &BinaryFunction {
            ints: i64::checked_div,
            floats: |a, b| a / b,
        },
    )
}

pub(crate) fn min(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    combined(
        call,
        output,
        &BinaryFunction {
            ints: |a, b| Some(a.min(b)),
            floats: f64::min,
        },
    )
}

pub(crate) fn max(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    combined(
        call,
        output,
        &BinaryFunction {
            ints: |a, b| Some(a.max(b)),
            floats: f64::max,
        },
    )
}

/// `Mod`: with the divisor's sign, or with `fmod` the dividend's.
pub(crate) fn modulo(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let function = if call.flag("fmod") {
        BinaryFunction {
            ints: i64::checked_rem,
            floats: |a, b| a % b,
        }
    } else {
        BinaryFunction {
            ints: |a, b| {
                let rest = a.checked_rem(b)?;
                let other_sign = rest != 0 && (rest < 0) != (b < 0);
                Some(if other_sign { rest + b } else { rest })
            },
            floats: |a, b| a - b * (a / b).floor(),
        }
    };
    combined(call, output, &function)
}

/// `Pow`: base and exponent may be of different types.
pub(crate) fn pow(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let (base, exponent) = (spread(call, output, 0)?, spread(call, output, 1)?);
    if let (ElementValues::Ints(base), ElementValues::Ints(exponent)) = (&base, &exponent) {
        let pairs = base.iter().zip(exponent);
        let power =
            |(base, &exponent): (&i64, &i64)| base.checked_pow(u32::try_from(exponent).ok()?);
        return pairs
            .map(power)
            .collect::<Option<_>>()
            .map(ElementValues::Ints);
    }
    let is_int = matches!(base, ElementValues::Ints(_));
    let (base, exponent) = (as_floats(&base), as_floats(&exponent));
    let powers = base
        .iter()
        .zip(&exponent)
        .map(|(base, exponent)| base.powf(*exponent));
    if is_int {
        return powers
            .map(truncated)
            .collect::<Option<_>>()
            .map(ElementValues::Ints);
    }
    Some(ElementValues::Floats(powers.collect()))
}

/// A comparison of the first two inputs, broadcast.
fn compared(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    holds: fn(std::cmp::Ordering) -> bool,
) -> Option<ElementValues> {
    let truths = match (spread(call, output, 0)?, spread(call, output, 1)?) {
        (ElementValues::Ints(a), ElementValues::Ints(b)) => a
            .iter()
            .zip(&b)
            .map(|(a, b)| i64::from(holds(a.cmp(b))))
            .collect(),
        (ElementValues::Floats(a), ElementValues::Floats(b)) => {
            let truth = |(a, b): (&f64, &f64)| i64::from(a.partial_cmp(b).is_some_and(holds));
            a.iter().zip(&b).map(truth).collect()
        }
        _ => return None,
    };
    Some(ElementValues::Ints(truths))
}

pub(crate) fn equal(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    compared(call, output, std::cmp::Ordering::is_eq)
}

pub(crate) fn less(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    compared(call, output, std::cmp::Ordering::is_lt)
}

pub(crate) fn less_or_equal(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    compared(call, output, std::cmp::Ordering::is_le)
}

pub(crate) fn greater(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    compared(call, output, std::cmp::Ordering::is_gt)
}

pub(crate) fn greater_or_equal(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    compared(call, output, std::cmp::Ordering::is_ge)
}

/// A function of two truths.
fn logical(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    of: fn(bool, bool) -> bool,
) -> Option<ElementValues> {
    let function = |a: i64, b: i64| i64::from(of(a != 0, b != 0));
    match (spread(call, output, 0)?, spread(call, output, 1)?) {
        (ElementValues::Ints(a), ElementValues::Ints(b)) => Some(ElementValues::Ints(
            a.iter().zip(&b).map(|(&a, &b)| function(a, b)).collect(),
        )),
        _ => None,
    }
}

pub(crate) fn and(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    logical(call, output, |a, b| a && b)
}

pub(crate) fn or(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    logical(call, output, |a, b| a || b)
}

pub(crate) fn xor(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    logical(call, output, |a, b| a != b)
}

/// A function of each number of the first input.
fn mapped(
    call: &OperatorCall<'_, '_>,
    ints: fn(i64) -> i64,
    floats: fn(f64) -> f64,
) -> Option<ElementValues> {
    Some(match &*call.optional(0)?.elements()? {
        ElementValues::Ints(values) => {
            ElementValues::Ints(values.iter().map(|&v| ints(v)).collect())
        }
        ElementValues::Floats(values) => {
            ElementValues::Floats(values.iter().map(|&v| floats(v)).collect())
        }
    })
}

pub(crate) fn not(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    mapped(call, |v| i64::from(v == 0), |v| v)
}

pub(crate) fn neg(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    mapped(call, i64::wrapping_neg, |v| -v)
}

pub(crate) fn abs(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    mapped(call, i64::wrapping_abs, f64::abs)
}

pub(crate) fn relu(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    mapped(call, |v| v.max(0), |v| v.max(0.0))
}

pub(crate) fn sign(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    mapped(
        call,
        i64::signum,
        |v| if v == 0.0 { 0.0 } else { v.signum() },
    )
}

pub(crate) fn floor(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    mapped(call, |v| v, f64::floor)
}

pub(crate) fn ceil(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    mapped(call, |v| v, f64::ceil)
}

pub(crate) fn round(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    mapped(call, |v| v, f64::round_ties_even)
}

pub(crate) fn sqrt(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    match &*call.optional(0)?.elements()? {
        ElementValues::Floats(values) => Some(ElementValues::Floats(
            values.iter().map(|v| v.sqrt()).collect(),
        )),
        ElementValues::Ints(_) => None,
    }
}

pub(crate) fn reciprocal(
    call: &OperatorCall<'_, '_>,
    _: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    match &*call.optional(0)?.elements()? {
        ElementValues::Floats(values) => Some(ElementValues::Floats(
            values.iter().map(|v| v.recip()).collect(),
        )),
        ElementValues::Ints(_) => None,
    }
}

/// `Clip` with bounds that are inputs.
pub(crate) fn clip(call: &OperatorCall<'_, '_>, _: &Fact<'_>, _: usize) -> Option<ElementValues> {
    if call.attribute("min").or(call.attribute("max")).is_some() {
        return None;
    }
    let bound = |at: usize| match call.optional(at) {
        Some(fact) => fact.elements().map(Some),
        None => Some(None),
    };
    let (low, high) = (bound(1)?, bound(2)?);
    Some(match &*call.optional(0)?.elements()? {
        ElementValues::Ints(values) => {
            let one = |bound: Option<std::rc::Rc<ElementValues>>, default| match bound.as_deref() {
                Some(ElementValues::Ints(bound)) => bound.first().copied(),
                Some(ElementValues::Floats(_)) => None,
                None => Some(default),
            };
            let (low, high) = (one(low, i64::MIN)?, one(high, i64::MAX)?);
            ElementValues::Ints(values.iter().map(|&v| v.max(low).min(high)).collect())
        }
        ElementValues::Floats(values) => {
            let one = |bound: Option<std::rc::Rc<ElementValues>>, default| match bound.as_deref() {
                Some(ElementValues::Floats(bound)) => bound.first().copied(),
                Some(ElementValues::Ints(_)) => None,
                None => Some(default),
            };
            let (low, high) = (one(low, f64::NEG_INFINITY)?, one(high, f64::INFINITY)?);
            ElementValues::Floats(values.iter().map(|&v| v.max(low).min(high)).collect())
        }
    })
}

/// `Where`.
pub(crate) fn choose(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    fn pairs<T>(chosen: &[i64], yes: Vec<T>, no: Vec<T>) -> Vec<T> {
        let both = yes.into_iter().zip(no);
        let choose = |(&chosen, (yes, no))| if chosen == 0 { no } else { yes };
        chosen.iter().zip(both).map(choose).collect()
    }
    let ElementValues::Ints(chosen) = spread(call, output, 0)? else {
        return None;
    };
    Some(match (spread(call, output, 1)?, spread(call, output, 2)?) {
        (ElementValues::Ints(yes), ElementValues::Ints(no)) => {
            ElementValues::Ints(pairs(&chosen, yes, no))
        }
        (ElementValues::Floats(yes), ElementValues::Floats(no)) => {
            ElementValues::Floats(pairs(&chosen, yes, no))
        }
        _ => return None,
    })
}

/// `Cast` and `CastLike`: floats lose what is behind the point, anything but zero is true.
pub(crate) fn cast(
    call: &OperatorCall<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<ElementValues> {
    let values = call.optional(0)?.elements()?;
    if output.element.is_float() {
        return Some(ElementValues::Floats(as_floats(&values)));
    }
    Some(ElementValues::Ints(match &*values {
        ElementValues::Ints(values) => values.clone(),
        ElementValues::Floats(values) if output.element == ElementType::BOOL => {
            values.iter().map(|&v| i64::from(v != 0.0)).collect()
        }
        ElementValues::Floats(values) => values
            .iter()
            .map(|&v| truncated(v))
            .collect::<Option<_>>()?,
    }))
}
