//! Sequences of tensors: what is in them is followed one by one.

use std::rc::Rc;

use skep_types::Shape;

use crate::{
    call::{Datum, OperatorCall, axis, size, wide},
    element::ElementType,
    error::RuleRefusal,
    fact::{ElementValues, Fact, KnownFrom},
};

/// The longest sequence that is followed.
const MAX_LENGTH: usize = 128;

type SequenceResult<'a> = Result<Vec<Datum<'a>>, RuleRefusal>;

fn sequence<'a>(facts: Vec<Fact<'a>>) -> SequenceResult<'a> {
    if facts.len() > MAX_LENGTH {
        return Err(RuleRefusal::Open(format!(
            "a sequence of {} tensors, which is not followed",
            facts.len()
        )));
    }
    Ok(vec![Datum::Sequence(Rc::new(facts))])
}

fn of<'c, 'a>(call: &'c OperatorCall<'a, '_>, at: usize) -> Result<&'c [Fact<'a>], RuleRefusal> {
    match call.inputs.get(at).copied().flatten() {
        Some(Datum::Sequence(facts)) => Ok(facts),
        _ => Err(RuleRefusal::Invalid(format!(
            "reads {}, expected a sequence",
            call.name(at)
        ))),
    }
}

/// A position in a sequence; the last one where it is left out.
fn position(
    call: &OperatorCall<'_, '_>,
    at: usize,
    length: usize,
) -> Result<Option<usize>, RuleRefusal> {
    match call.optional(at) {
        None => Ok(None),
        Some(_) => axis(call.number(at)?, length).map(Some),
    }
}

/// `SequenceEmpty`.
pub(crate) fn empty<'a>(_: &OperatorCall<'a, '_>) -> SequenceResult<'a> {
    sequence(Vec::new())
}

/// `SequenceConstruct`.
pub(crate) fn construct<'a>(call: &OperatorCall<'a, '_>) -> SequenceResult<'a> {
    let facts = (0..call.inputs.len()).map(|at| call.input(at).cloned());
    sequence(facts.collect::<Result<_, _>>()?)
}

/// `SequenceInsert`.
pub(crate) fn insert<'a>(call: &OperatorCall<'a, '_>) -> SequenceResult<'a> {
    let mut facts = of(call, 0)?.to_vec();
    let at = position(call, 2, facts.len() + 1)?.unwrap_or(facts.len());
    facts.insert(at, call.input(1)?.clone());
    sequence(facts)
}

/// `SequenceErase`.
pub(crate) fn erase<'a>(call: &OperatorCall<'a, '_>) -> SequenceResult<'a> {
    let mut facts = of(call, 0)?.to_vec();
    let last = facts.len().checked_sub(1);
    match position(call, 1, facts.len())?.or(last) {
        Some(at) => drop(facts.remove(at)),
        None => {
            return Err(RuleRefusal::invalid(
                "takes a tensor out of an empty sequence",
            ));
        }
    }
    sequence(facts)
}

/// `SequenceAt`: where all tensors are alike, the position need not be known.
pub(crate) fn at<'a>(call: &OperatorCall<'a, '_>) -> SequenceResult<'a> {
    let facts = of(call, 0)?;
    let found = match position(call, 1, facts.len()) {
        Ok(at) => at.and_then(|at| facts.get(at)).cloned(),
        Err(open @ RuleRefusal::Open(_)) => {
            let Some(first) = facts.first() else {
                return Err(open);
            };
            let alike = |f: &Fact<'_>| f.shape == first.shape && f.element == first.element;
            if !facts.iter().all(alike) {
                return Err(open);
            }
            Some(first.without_value())
        }
        Err(other) => return Err(other),
    };
    let found = found.ok_or_else(|| RuleRefusal::invalid("has no position"))?;
    Ok(vec![Datum::Tensor(found)])
}

/// `SequenceLength`.
pub(crate) fn length<'a>(call: &OperatorCall<'a, '_>) -> SequenceResult<'a> {
    let count = i64::try_from(of(call, 0)?.len()).unwrap_or(i64::MAX);
    let values = ElementValues::Ints(vec![count]);
    let mut fact = Fact::of_values(ElementType::INT64, Shape::scalar(), values);
    fact.known = KnownFrom::Shapes;
    Ok(vec![Datum::Tensor(fact)])
}

/// `SplitToSequence`: single rows, chunks of one size, or of several.
pub(crate) fn split<'a>(call: &OperatorCall<'a, '_>) -> SequenceResult<'a> {
    let input = call.input(0)?;
    let axis = call.axis("axis", 0, input.shape.rank())?;
    let length = input.dims()[axis];
    let rows = call.optional(1).is_none();
    let sizes: Vec<usize> = match call.optional(1) {
        None => chunks(length, 1)?,
        Some(fact) if fact.shape.rank() == 0 => {
            let chunk = size(i128::from(call.number(1)?))?;
            chunks(length, chunk)?
        }
        Some(_) => {
            let sizes = call.numbers(1)?;
            sizes
                .iter()
                .map(|&s| size(i128::from(s)))
                .collect::<Result<_, _>>()?
        }
    };
    let keep = !rows || call.int("keepdims", 1) != 0;
    let part = |&length: &usize| {
        let mut dims = input.dims().to_vec();
        if keep {
            dims[axis] = length;
        } else {
            dims.remove(axis);
        }
        let shape = Shape::new(&dims).map_err(|error| RuleRefusal::Invalid(error.to_string()))?;
        Ok(Fact::of_run(input.element, shape))
    };
    sequence(sizes.iter().map(part).collect::<Result<_, _>>()?)
}

fn chunks(length: usize, chunk: usize) -> Result<Vec<usize>, RuleRefusal> {
    if chunk == 0 {
        return Err(RuleRefusal::invalid("splits into chunks of 0"));
    }
    let count = length.div_ceil(chunk);
    if count > MAX_LENGTH {
        return Err(RuleRefusal::Open(format!(
            "a sequence of {count} tensors, which is not followed"
        )));
    }
    Ok((0..count)
        .map(|at| chunk.min(length - at * chunk))
        .collect())
}

/// `ConcatFromSequence`: along an axis, which may be a new one.
pub(crate) fn concat<'a>(call: &OperatorCall<'a, '_>) -> SequenceResult<'a> {
    let facts = of(call, 0)?;
    let Some(first) = facts.first() else {
        return Err(RuleRefusal::invalid("joins an empty sequence"));
    };
    let is_new = call.flag("new_axis");
    let mut dims = first.dims().to_vec();
    let rank = dims.len() + usize::from(is_new);
    let at = call.axis("axis", 0, rank)?;
    if is_new {
        dims.insert(at, 1);
    }
    let mut total = 0;
    for fact in facts {
        let mut other = fact.dims().to_vec();
        if is_new {
            other.insert(at.min(other.len()), 1);
        }
        let fits = other.len() == rank && (0..rank).all(|d| d == at || other[d] == dims[d]);
        if !fits {
            return Err(RuleRefusal::invalid(
                "joins tensors of shapes that do not fit",
            ));
        }
        total += wide(other[at]);
    }
    dims[at] = size(total)?;
    let shape = Shape::new(&dims).map_err(|error| RuleRefusal::Invalid(error.to_string()))?;
    Ok(vec![Datum::Tensor(Fact::of_run(first.element, shape))])
}

/// `Identity`, also of a sequence.
pub(crate) fn identity<'a>(call: &OperatorCall<'a, '_>) -> SequenceResult<'a> {
    match call.inputs.first().copied().flatten() {
        Some(datum) => Ok(vec![datum.clone()]),
        None => Err(RuleRefusal::invalid("has no input")),
    }
}
