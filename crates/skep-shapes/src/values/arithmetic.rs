//! Element-wise arithmetic, comparisons, logic and casts.

use super::{Elements, as_floats, layout::stretched, truncated};
use crate::{call::Call, element::ElementType, fact::Fact};

/// What a function of two numbers is on whole numbers and on floats; `None` where it has no value.
struct Binary {
    ints: fn(i64, i64) -> Option<i64>,
    floats: fn(f64, f64) -> f64,
}

/// A function of each pair of the inputs, broadcast, from left to right.
fn combined(call: &Call<'_, '_>, output: &Fact<'_>, function: &Binary) -> Option<Elements> {
    let mut result = spread(call, output, 0)?;
    for at in 1..call.inputs.len() {
        result = match (result, spread(call, output, at)?) {
            (Elements::Ints(a), Elements::Ints(b)) => {
                let pairs = a.into_iter().zip(b);
                Elements::Ints(
                    pairs
                        .map(|(a, b)| (function.ints)(a, b))
                        .collect::<Option<_>>()?,
                )
            }
            (Elements::Floats(a), Elements::Floats(b)) => {
                let pairs = a.into_iter().zip(b);
                Elements::Floats(pairs.map(|(a, b)| (function.floats)(a, b)).collect())
            }
            _ => return None,
        };
    }
    Some(result)
}

/// The values of an input, broadcast to the output.
fn spread(call: &Call<'_, '_>, output: &Fact<'_>, at: usize) -> Option<Elements> {
    let fact = call.optional(at)?;
    let places = stretched(fact.dims(), output.dims())?;
    fact.elements()?.pick(places.into_iter())
}

pub(crate) fn add(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    combined(
        call,
        output,
        &Binary {
            ints: |a, b| Some(a.wrapping_add(b)),
            floats: |a, b| a + b,
        },
    )
}

pub(crate) fn sub(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    combined(
        call,
        output,
        &Binary {
            ints: |a, b| Some(a.wrapping_sub(b)),
            floats: |a, b| a - b,
        },
    )
}

pub(crate) fn mul(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    combined(
        call,
        output,
        &Binary {
            ints: |a, b| Some(a.wrapping_mul(b)),
            floats: |a, b| a * b,
        },
    )
}

/// Whole numbers are divided towards zero, as every runtime does.
pub(crate) fn div(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    combined(
        call,
        output,
        &Binary {
            ints: i64::checked_div,
            floats: |a, b| a / b,
        },
    )
}

pub(crate) fn min(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    combined(
        call,
        output,
        &Binary {
            ints: |a, b| Some(a.min(b)),
            floats: f64::min,
        },
    )
}

pub(crate) fn max(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    combined(
        call,
        output,
        &Binary {
            ints: |a, b| Some(a.max(b)),
            floats: f64::max,
        },
    )
}

/// `Mod`: with the divisor's sign, or with `fmod` the dividend's.
pub(crate) fn modulo(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    let function = if call.flag("fmod") {
        Binary {
            ints: i64::checked_rem,
            floats: |a, b| a % b,
        }
    } else {
        Binary {
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
pub(crate) fn pow(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    let (base, exponent) = (spread(call, output, 0)?, spread(call, output, 1)?);
    if let (Elements::Ints(base), Elements::Ints(exponent)) = (&base, &exponent) {
        let pairs = base.iter().zip(exponent);
        let power =
            |(base, &exponent): (&i64, &i64)| base.checked_pow(u32::try_from(exponent).ok()?);
        return pairs.map(power).collect::<Option<_>>().map(Elements::Ints);
    }
    let is_int = matches!(base, Elements::Ints(_));
    let (base, exponent) = (as_floats(&base), as_floats(&exponent));
    let powers = base
        .iter()
        .zip(&exponent)
        .map(|(base, exponent)| base.powf(*exponent));
    if is_int {
        return powers
            .map(truncated)
            .collect::<Option<_>>()
            .map(Elements::Ints);
    }
    Some(Elements::Floats(powers.collect()))
}

/// A comparison of the first two inputs, broadcast.
fn compared(
    call: &Call<'_, '_>,
    output: &Fact<'_>,
    holds: fn(std::cmp::Ordering) -> bool,
) -> Option<Elements> {
    let truths = match (spread(call, output, 0)?, spread(call, output, 1)?) {
        (Elements::Ints(a), Elements::Ints(b)) => a
            .iter()
            .zip(&b)
            .map(|(a, b)| i64::from(holds(a.cmp(b))))
            .collect(),
        (Elements::Floats(a), Elements::Floats(b)) => {
            let truth = |(a, b): (&f64, &f64)| i64::from(a.partial_cmp(b).is_some_and(holds));
            a.iter().zip(&b).map(truth).collect()
        }
        _ => return None,
    };
    Some(Elements::Ints(truths))
}

pub(crate) fn equal(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    compared(call, output, std::cmp::Ordering::is_eq)
}

pub(crate) fn less(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    compared(call, output, std::cmp::Ordering::is_lt)
}

pub(crate) fn less_or_equal(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    compared(call, output, std::cmp::Ordering::is_le)
}

pub(crate) fn greater(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    compared(call, output, std::cmp::Ordering::is_gt)
}

pub(crate) fn greater_or_equal(
    call: &Call<'_, '_>,
    output: &Fact<'_>,
    _: usize,
) -> Option<Elements> {
    compared(call, output, std::cmp::Ordering::is_ge)
}

/// A function of two truths.
fn logical(call: &Call<'_, '_>, output: &Fact<'_>, of: fn(bool, bool) -> bool) -> Option<Elements> {
    let function = |a: i64, b: i64| i64::from(of(a != 0, b != 0));
    match (spread(call, output, 0)?, spread(call, output, 1)?) {
        (Elements::Ints(a), Elements::Ints(b)) => Some(Elements::Ints(
            a.iter().zip(&b).map(|(&a, &b)| function(a, b)).collect(),
        )),
        _ => None,
    }
}

pub(crate) fn and(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    logical(call, output, |a, b| a && b)
}

pub(crate) fn or(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    logical(call, output, |a, b| a || b)
}

pub(crate) fn xor(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    logical(call, output, |a, b| a != b)
}

/// A function of each number of the first input.
fn mapped(call: &Call<'_, '_>, ints: fn(i64) -> i64, floats: fn(f64) -> f64) -> Option<Elements> {
    Some(match &*call.optional(0)?.elements()? {
        Elements::Ints(values) => Elements::Ints(values.iter().map(|&v| ints(v)).collect()),
        Elements::Floats(values) => Elements::Floats(values.iter().map(|&v| floats(v)).collect()),
    })
}

pub(crate) fn not(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    mapped(call, |v| i64::from(v == 0), |v| v)
}

pub(crate) fn neg(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    mapped(call, i64::wrapping_neg, |v| -v)
}

pub(crate) fn abs(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    mapped(call, i64::wrapping_abs, f64::abs)
}

pub(crate) fn relu(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    mapped(call, |v| v.max(0), |v| v.max(0.0))
}

pub(crate) fn sign(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    mapped(
        call,
        i64::signum,
        |v| if v == 0.0 { 0.0 } else { v.signum() },
    )
}

pub(crate) fn floor(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    mapped(call, |v| v, f64::floor)
}

pub(crate) fn ceil(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    mapped(call, |v| v, f64::ceil)
}

pub(crate) fn round(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    mapped(call, |v| v, f64::round_ties_even)
}

pub(crate) fn sqrt(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    match &*call.optional(0)?.elements()? {
        Elements::Floats(values) => {
            Some(Elements::Floats(values.iter().map(|v| v.sqrt()).collect()))
        }
        Elements::Ints(_) => None,
    }
}

pub(crate) fn reciprocal(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    match &*call.optional(0)?.elements()? {
        Elements::Floats(values) => {
            Some(Elements::Floats(values.iter().map(|v| v.recip()).collect()))
        }
        Elements::Ints(_) => None,
    }
}

/// `Clip` with bounds that are inputs.
pub(crate) fn clip(call: &Call<'_, '_>, _: &Fact<'_>, _: usize) -> Option<Elements> {
    if call.attribute("min").or(call.attribute("max")).is_some() {
        return None;
    }
    let bound = |at: usize| match call.optional(at) {
        Some(fact) => fact.elements().map(Some),
        None => Some(None),
    };
    let (low, high) = (bound(1)?, bound(2)?);
    Some(match &*call.optional(0)?.elements()? {
        Elements::Ints(values) => {
            let one = |bound: Option<std::rc::Rc<Elements>>, default| match bound.as_deref() {
                Some(Elements::Ints(bound)) => bound.first().copied(),
                Some(Elements::Floats(_)) => None,
                None => Some(default),
            };
            let (low, high) = (one(low, i64::MIN)?, one(high, i64::MAX)?);
            Elements::Ints(values.iter().map(|&v| v.max(low).min(high)).collect())
        }
        Elements::Floats(values) => {
            let one = |bound: Option<std::rc::Rc<Elements>>, default| match bound.as_deref() {
                Some(Elements::Floats(bound)) => bound.first().copied(),
                Some(Elements::Ints(_)) => None,
                None => Some(default),
            };
            let (low, high) = (one(low, f64::NEG_INFINITY)?, one(high, f64::INFINITY)?);
            Elements::Floats(values.iter().map(|&v| v.max(low).min(high)).collect())
        }
    })
}

/// `Where`.
pub(crate) fn choose(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    fn pairs<T>(chosen: &[i64], yes: Vec<T>, no: Vec<T>) -> Vec<T> {
        let both = yes.into_iter().zip(no);
        let choose = |(&chosen, (yes, no))| if chosen == 0 { no } else { yes };
        chosen.iter().zip(both).map(choose).collect()
    }
    let Elements::Ints(chosen) = spread(call, output, 0)? else {
        return None;
    };
    Some(match (spread(call, output, 1)?, spread(call, output, 2)?) {
        (Elements::Ints(yes), Elements::Ints(no)) => Elements::Ints(pairs(&chosen, yes, no)),
        (Elements::Floats(yes), Elements::Floats(no)) => Elements::Floats(pairs(&chosen, yes, no)),
        _ => return None,
    })
}

/// `Cast` and `CastLike`: floats lose what is behind the point, anything but zero is true.
pub(crate) fn cast(call: &Call<'_, '_>, output: &Fact<'_>, _: usize) -> Option<Elements> {
    let values = call.optional(0)?.elements()?;
    if output.element.is_float() {
        return Some(Elements::Floats(as_floats(&values)));
    }
    Some(Elements::Ints(match &*values {
        Elements::Ints(values) => values.clone(),
        Elements::Floats(values) if output.element == ElementType::BOOL => {
            values.iter().map(|&v| i64::from(v != 0.0)).collect()
        }
        Elements::Floats(values) => values
            .iter()
            .map(|&v| truncated(v))
            .collect::<Option<_>>()?,
    }))
}
