//! The outputs of a node by its operator's rule: types, shapes, and values where they follow.

use std::rc::Rc;

use skep_types::Shape;

use super::{GraphWalk, NodeStop, unknown_type};
use crate::{
    call::{Datum, OperatorCall},
    element::ElementType,
    error::RuleRefusal,
    fact::{Fact, FactValue, KnownFrom, followed},
    limits::checked,
    table::{self, OutputType, ValueFold},
    values,
};

impl<'a> GraphWalk<'a> {
    /// Outputs of these shapes, with their values where they follow.
    pub(super) fn shaped(
        &mut self,
        call: &OperatorCall<'a, '_>,
        types: &[OutputType],
        shapes: Vec<Vec<usize>>,
        fold: Option<&ValueFold>,
    ) -> Result<Vec<Datum<'a>>, NodeStop> {
        let inputs = call.inputs.iter().flatten();
        let known = inputs
            .map(|datum| datum.known())
            .max()
            .unwrap_or(KnownFrom::File);
        let known = if table::is_random(call.node.op_type()) {
            KnownFrom::Run
        } else {
            known
        };
        let mut outputs = Vec::with_capacity(shapes.len());
        for (at, dims) in shapes.into_iter().enumerate().take(call.node.output.len()) {
            if call.node.output[at].is_empty() {
                // Nothing reads it; it keeps the later outputs at their positions.
                let nothing = Fact::of_run(ElementType::FLOAT, Shape::scalar());
                outputs.push(Datum::Tensor(nothing));
                continue;
            }
            let element = table::element(types, call, at)
                .ok_or_else(|| NodeStop::Within(unknown_type(call.node, at)))?;
            let shape = checked(&call.node.output[at], element, &dims)?;
            let mut fact = Fact {
                element,
                shape,
                value: FactValue::Unknown,
                known,
            };
            if let Some(fold) = fold
                && let Some(elements) = self.fold(call, fold, &fact, at)
            {
                fact.value = FactValue::Held(Rc::new(elements));
                fact.known = known.min(KnownFrom::Shapes);
            }
            outputs.push(Datum::Tensor(fact));
        }
        Ok(outputs)
    }

    /// The values of output `at`, when they follow from what is known and there are steps left to compute them.
    pub(super) fn fold(
        &mut self,
        call: &OperatorCall<'a, '_>,
        fold: &ValueFold,
        output: &Fact<'a>,
        at: usize,
    ) -> Option<values::ElementValues> {
        if !followed(output.element, &output.shape) {
            return None;
        }
        let count = output.shape.element_count();
        if count == 0 {
            return Some(if output.element.is_integer() {
                values::ElementValues::Ints(Vec::new())
            } else {
                values::ElementValues::Floats(Vec::new())
            });
        }
        let values = match fold {
            ValueFold::Shapes(fold) => {
                self.value_steps_left = self.value_steps_left.checked_sub(count)?;
                fold(call, output)?
            }
            ValueFold::Values(fold) => {
                let mut steps = count + call.inputs.len() + call.node.output.len();
                for input in call.inputs.iter().flatten() {
                    match input {
                        Datum::Tensor(fact) if fact.has_value() => {
                            steps = steps.checked_add(fact.shape.element_count())?;
                        }
                        _ => return None,
                    }
                }
                self.value_steps_left = self.value_steps_left.checked_sub(steps)?;
                fold(call, output, at)?
            }
        };
        let values = values::fit(output.element, values)?;
        (values.len() == count).then_some(values)
    }

    /// Takes the values that a rule of shapes reads off those that may be followed.
    pub(super) fn count_values(&mut self, call: &OperatorCall<'a, '_>) -> Result<(), RuleRefusal> {
        for (at, fact) in (0..call.inputs.len()).filter_map(|at| Some((at, call.optional(at)?))) {
            if fact.has_value() {
                let left = self
                    .value_steps_left
                    .checked_sub(fact.shape.element_count());
                self.value_steps_left = left.ok_or_else(|| call.open(at))?;
            }
        }
        Ok(())
    }
}
