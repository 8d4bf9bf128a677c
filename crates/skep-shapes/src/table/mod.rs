//! The table of operators: for each its rule, found by domain and name.

mod onnx;
mod others;

use skep_proto::onnx::tensor_proto::DataType as Onnx;

use self::{
    onnx::ONNX,
    others::{MICROSOFT, ML},
};
use crate::{
    call::{Datum, OperatorCall},
    element::ElementType,
    error::RuleRefusal,
    fact::{ElementValues, Fact},
    rules::OutputShapes,
};

/// How the outputs of an operator follow from its inputs.
pub(super) enum OperatorRule {
    /// The types of the outputs, their shapes, and for some operators the values of an output.
    Shaped {
        types: &'static [OutputType],
        shapes: fn(&OperatorCall<'_, '_>) -> OutputShapes,
        fold: Option<ValueFold>,
    },
    /// The outputs themselves.
    Direct(for<'a> fn(&OperatorCall<'a, '_>) -> Result<Vec<Datum<'a>>, RuleRefusal>),
}

/// What gives the values of an output.
pub(super) enum ValueFold {
    /// The values of all inputs; the number is the output's.
    Values(fn(&OperatorCall<'_, '_>, &Fact<'_>, usize) -> Option<ElementValues>),
    /// The shapes of the inputs.
    Shapes(fn(&OperatorCall<'_, '_>, &Fact<'_>) -> Option<ElementValues>),
}

/// The element type of an output; the last of a list is that of all further outputs.
pub(super) enum OutputType {
    /// An input's.
    In(usize),
    Is(Onnx),
    /// What an attribute says, else FP32.
    Attribute(&'static str),
    /// What an attribute says, else an input's.
    AttributeOr(&'static str, usize),
    Special(fn(&OperatorCall<'_, '_>) -> Option<ElementType>),
}

/// The rule of an operator.
pub(super) fn rule(domain: &str, operator: &str) -> Option<&'static OperatorRule> {
    let table = match domain {
        "" => ONNX,
        "com.microsoft" => MICROSOFT,
        "ai.onnx.ml" => ML,
        _ => return None,
    };
    let at = table
        .binary_search_by(|(name, _)| (*name).cmp(operator))
        .ok()?;
    Some(&table[at].1)
}

/// The element type of output `at`.
pub(super) fn element(
    types: &[OutputType],
    call: &OperatorCall<'_, '_>,
    at: usize,
) -> Option<ElementType> {
    let input = |at: usize| call.optional(at).map(|fact| fact.element);
    let known = match types.get(at).or(types.last())? {
        OutputType::In(at) => input(*at),
        OutputType::Is(element) => Some(ElementType(*element as i32)),
        OutputType::Attribute(name) => Some(call.element(name).unwrap_or(ElementType::FLOAT)),
        OutputType::AttributeOr(name, at) => call.element(name).or_else(|| input(*at)),
        OutputType::Special(special) => special(call),
    };
    known.filter(|element| element.bits().is_some())
}

/// Whether an operator gives other values each time.
pub(super) fn is_random(operator: &str) -> bool {
    operator.starts_with("Random") || matches!(operator, "Bernoulli" | "Multinomial")
}

/// Whether an operator's shapes follow from values that may be many.
pub(super) fn counts_values(operator: &str) -> bool {
    matches!(operator, "NonZero" | "Compress")
}

const fn rule_of(
    types: &'static [OutputType],
    shapes: fn(&OperatorCall<'_, '_>) -> OutputShapes,
) -> OperatorRule {
    OperatorRule::Shaped {
        types,
        shapes,
        fold: None,
    }
}

const fn folded(
    types: &'static [OutputType],
    shapes: fn(&OperatorCall<'_, '_>) -> OutputShapes,
    fold: fn(&OperatorCall<'_, '_>, &Fact<'_>, usize) -> Option<ElementValues>,
) -> OperatorRule {
    OperatorRule::Shaped {
        types,
        shapes,
        fold: Some(ValueFold::Values(fold)),
    }
}

const fn from_shapes(
    types: &'static [OutputType],
    shapes: fn(&OperatorCall<'_, '_>) -> OutputShapes,
    fold: fn(&OperatorCall<'_, '_>, &Fact<'_>) -> Option<ElementValues>,
) -> OperatorRule {
    OperatorRule::Shaped {
        types,
        shapes,
        fold: Some(ValueFold::Shapes(fold)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        for table in [ONNX, MICROSOFT, ML] {
            assert!(table.is_sorted_by(|(a, _), (b, _)| a < b));
        }
    }
}
