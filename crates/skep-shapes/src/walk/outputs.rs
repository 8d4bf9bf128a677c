//! The outputs of a node by its operator's rule: types, shapes, and values where they follow.

use std::rc::Rc;

use skep_types::Shape;

use super::{Stop, Walk, unknown_type};
use crate::{
    call::{Call, Datum},
    element::ElementType,
    error::Refusal,
    fact::{Fact, KnownFrom, Value, followed},
    limits::checked,
    table::{self, Fold, Ty},
    values,
};

impl<'a> Walk<'a> {
    /// Outputs of these shapes, with their values where they follow.
    pub(super) fn shaped(
        &mut self,
        call: &Call<'a, '_>,
        types: &[Ty],
        shapes: Vec<Vec<usize>>,
        fold: Option<&Fold>,
    ) -> Result<Vec<Datum<'a>>, Stop> {
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
                // Nobody reads it; its place is kept for those behind it.
                let nothing = Fact::of_run(ElementType::FLOAT, Shape::scalar());
                outputs.push(Datum::Tensor(nothing));
                continue;
            }
            let element = table::element(types, call, at)
                .ok_or_else(|| Stop::Within(unknown_type(call.node, at)))?;
            let shape = checked(&call.node.output[at], element, &dims)?;
            let mut fact = Fact {
                element,
                shape,
                value: Value::Unknown,
                known,
            };
            if let Some(fold) = fold
                && let Some(elements) = self.fold(call, fold, &fact, at)
            {
                fact.value = Value::Held(Rc::new(elements));
                fact.known = known.min(KnownFrom::Shapes);
            }
            outputs.push(Datum::Tensor(fact));
        }
        Ok(outputs)
    }

    /// The values of output `at`, when they follow from what is known and there are steps left to compute them.
    pub(super) fn fold(
        &mut self,
        call: &Call<'a, '_>,
        fold: &Fold,
        output: &Fact<'a>,
        at: usize,
    ) -> Option<values::Elements> {
        if !followed(output.element, &output.shape) {
            return None;
        }
        let count = output.shape.element_count();
        if count == 0 {
            return Some(if output.element.is_integer() {
                values::Elements::Ints(Vec::new())
            } else {
                values::Elements::Floats(Vec::new())
            });
        }
        let values = match fold {
            Fold::Shapes(fold) => {
                self.value_steps_left = self.value_steps_left.checked_sub(count)?;
                fold(call, output)?
            }
            Fold::Values(fold) => {
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
    pub(super) fn count_values(&mut self, call: &Call<'a, '_>) -> Result<(), Refusal> {
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
