//! Outputs that a node's rule leaves open: taken from the caller or the file's declaration, else an error.

use skep_proto::onnx::NodeProto;
use skep_types::Shape;

use super::{GraphWalk, NodeStop, control};
use crate::{
    call::{Datum, OperatorCall},
    element::ElementType,
    error::{InferError, NodeName, RuleRefusal, list},
    fact::Fact,
    limits::checked,
    scope::{NameScope, domain},
    table::{self, OperatorRule},
};

impl<'a> GraphWalk<'a> {
    /// The stated or declared outputs of a node whose rule leaves them open.
    pub(super) fn fall_back(
        &mut self,
        scope: &NameScope<'a, '_>,
        call: &OperatorCall<'a, '_>,
        stop: NodeStop,
    ) -> Result<Vec<Datum<'a>>, InferError> {
        let node = call.node;
        let error = match stop {
            NodeStop::Refused(RuleRefusal::Invalid(reason)) => {
                return Err(InferError::Node {
                    node: NodeName::of(node),
                    reason,
                });
            }
            NodeStop::Within(error)
                if !matches!(
                    error,
                    InferError::Undetermined { .. } | InferError::UnknownOperator { .. }
                ) =>
            {
                return Err(error);
            }
            NodeStop::Refused(RuleRefusal::Open(why)) => OpenReason::Values(why),
            NodeStop::Unknown => OpenReason::Operator,
            NodeStop::Within(error) => OpenReason::Within(error),
        };
        let mut outputs = Vec::with_capacity(node.output.len());
        for (at, name) in node.output.iter().enumerate() {
            let (declared, shape) = scope
                .declaration(name, &self.named)
                .map_or((None, None), |(element, shape)| (Some(element), shape));
            let stated = self.stated.get(name).filter(|_| scope.is_stated);
            let shape = match (stated, shape) {
                _ if name.is_empty() => Shape::scalar(),
                (Some(dims), _) => checked(name, ElementType::FLOAT, dims)?,
                (None, Some(shape)) => shape,
                (None, None) => return Err(error.into_error(scope, node, name)),
            };
            let rule = match table::rule(domain(node), node.op_type()) {
                Some(OperatorRule::Shaped { types, .. }) => table::element(types, call, at),
                _ => None,
            };
            // An unknown operator most likely gives the type that it reads.
            let read = || {
                call.inputs
                    .iter()
                    .flatten()
                    .find_map(|datum| element_of(datum))
            };
            let element = rule
                .or(declared)
                .or_else(read)
                .unwrap_or(ElementType::FLOAT);
            let shape = checked(name, element, shape.dims())?;
            outputs.push(Datum::Tensor(Fact::of_run(element, shape)));
        }
        Ok(outputs)
    }

    pub(super) fn check_stated(
        &mut self,
        node: &'a NodeProto,
        outputs: &[Datum<'a>],
    ) -> Result<(), InferError> {
        for (name, datum) in node.output.iter().zip(outputs) {
            let Some(stated) = self.stated.get(name) else {
                continue;
            };
            self.met.insert(name);
            match datum {
                Datum::Tensor(fact) if fact.dims() == stated => {}
                Datum::Tensor(fact) => {
                    return Err(InferError::Contradiction {
                        role: "tensor",
                        tensor: name.clone(),
                        got: fact.shape.to_string(),
                        by: "what was given".to_owned(),
                        stated: list(stated),
                    });
                }
                Datum::Sequence(_) => {}
            }
        }
        Ok(())
    }
}

/// Why outputs that are neither stated nor declared are an error.
enum OpenReason {
    Values(String),
    Operator,
    Within(InferError),
}

impl OpenReason {
    fn into_error(self, scope: &NameScope<'_, '_>, node: &NodeProto, tensor: &str) -> InferError {
        let (tensor, name) = (tensor.to_owned(), NodeName::of(node));
        match self {
            Self::Values(why) => InferError::Undetermined {
                tensor,
                node: name,
                why,
            },
            Self::Operator => InferError::UnknownOperator {
                tensor,
                node: name,
                domain: match domain(node) {
                    "" => "ai.onnx".to_owned(),
                    other => other.to_owned(),
                },
                version: scope.version(node),
            },
            // Inner names of a graph can be stated; those of a function exist once a call.
            Self::Within(error) if control::rule(domain(node), node.op_type()).is_some() => error,
            Self::Within(InferError::Undetermined {
                node: inner, why, ..
            }) => {
                let why = format!("{why}, in {inner} of the function");
                InferError::Undetermined {
                    tensor,
                    node: name,
                    why,
                }
            }
            Self::Within(InferError::UnknownOperator {
                node: inner,
                domain,
                version,
                ..
            }) => InferError::UnknownOperator {
                tensor,
                node: inner,
                domain,
                version,
            },
            Self::Within(error) => error,
        }
    }
}

fn element_of(datum: &Datum<'_>) -> Option<ElementType> {
    match datum {
        Datum::Tensor(fact) => Some(fact.element),
        Datum::Sequence(_) => None,
    }
}
