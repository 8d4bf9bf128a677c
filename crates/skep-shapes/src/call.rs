//! One evaluation of a node, as the rules of operators see it: inputs, attributes, the operator set's version.

use std::{collections::HashMap, rc::Rc};

use skep_proto::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto};

use crate::{
    element::ElementType,
    error::{RuleRefusal, list},
    fact::{Fact, KnownFrom},
    limits::MAX_RANK,
};

/// Attributes that a function's caller gives, by name.
pub(super) type CallerAttributes<'a> = HashMap<&'a str, &'a AttributeProto>;

/// Dimensions of one output.
pub(super) type OutputDims = Vec<usize>;

/// What a name stands for.
#[derive(Debug, Clone)]
pub(super) enum Datum<'a> {
    Tensor(Fact<'a>),
    Sequence(Rc<Vec<Fact<'a>>>),
}

impl Datum<'_> {
    /// When the values of a tensor are known; those of a sequence are its tensors'.
    pub(super) fn known(&self) -> KnownFrom {
        match self {
            Self::Tensor(fact) => fact.known,
            Self::Sequence(facts) => facts
                .iter()
                .map(|f| f.known)
                .max()
                .unwrap_or(KnownFrom::File),
        }
    }
}

/// A node and the tensors that it reads.
pub(super) struct OperatorCall<'a, 's> {
    pub(super) node: &'a NodeProto,
    /// `None` for an input that is left out.
    pub(super) inputs: Vec<Option<&'s Datum<'a>>>,
    /// The version of the operator set of the node's domain.
    pub(super) version: i64,
    /// What attributes that refer to a function's stand for.
    pub(super) frame: Option<&'s CallerAttributes<'a>>,
}

impl<'a, 's> OperatorCall<'a, 's> {
    /// An input that may be left out; `None` also when it is not a tensor.
    pub(super) fn optional(&self, at: usize) -> Option<&'s Fact<'a>> {
        match self.inputs.get(at).copied().flatten()? {
            Datum::Tensor(fact) => Some(fact),
            Datum::Sequence(_) => None,
        }
    }

    /// An input that must be there.
    pub(super) fn input(&self, at: usize) -> Result<&'s Fact<'a>, RuleRefusal> {
        match self.inputs.get(at).copied().flatten() {
            Some(Datum::Tensor(fact)) => Ok(fact),
            Some(Datum::Sequence(_)) => Err(RuleRefusal::Invalid(format!(
                "reads sequence {}, expected a tensor",
                self.name(at)
            ))),
            None => Err(RuleRefusal::Invalid(format!(
                "has no input {}, expected one",
                at + 1
            ))),
        }
    }

    /// The dimensions of an input that must be there.
    pub(super) fn dims(&self, at: usize) -> Result<&'s [usize], RuleRefusal> {
        self.input(at).map(|fact| fact.dims())
    }

    /// The dimensions of an input that must have this many.
    pub(super) fn ranked(&self, at: usize, rank: usize) -> Result<&'s [usize], RuleRefusal> {
        let dims = self.dims(at)?;
        if dims.len() == rank {
            return Ok(dims);
        }
        Err(RuleRefusal::Invalid(format!(
            "reads {} of shape {}, expected {rank} dimensions",
            self.name(at),
            list(dims)
        )))
    }

    /// The dimensions of an input that must have at least this many.
    pub(super) fn at_least(&self, at: usize, rank: usize) -> Result<&'s [usize], RuleRefusal> {
        let dims = self.dims(at)?;
        if dims.len() >= rank {
            return Ok(dims);
        }
        Err(RuleRefusal::Invalid(format!(
            "reads {} of shape {}, expected at least {rank} dimensions",
            self.name(at),
            list(dims)
        )))
    }

    /// An input's name for messages.
    pub(super) fn name(&self, at: usize) -> String {
        format!("`{}`", self.node.input.get(at).map_or("", String::as_str))
    }

    /// The whole numbers that an input holds, at most two a dimension of the largest rank.
    ///
    /// # Errors
    /// [`RuleRefusal::Open`] when they are known only in a run.
    pub(super) fn numbers(&self, at: usize) -> Result<Vec<i64>, RuleRefusal> {
        let fact = self.input(at)?;
        if fact.shape.element_count() > 2 * MAX_RANK {
            return Err(RuleRefusal::Invalid(format!(
                "reads {} of shape {}, expected at most {} values",
                self.name(at),
                fact.shape,
                2 * MAX_RANK
            )));
        }
        fact.ints().ok_or_else(|| self.open(at))
    }

    /// The one whole number that an input holds.
    pub(super) fn number(&self, at: usize) -> Result<i64, RuleRefusal> {
        match self.numbers(at)?[..] {
            [number] => Ok(number),
            ref other => Err(RuleRefusal::Invalid(format!(
                "reads {} of {} values, expected one",
                self.name(at),
                other.len()
            ))),
        }
    }

    /// The refusal where an input's values decide and are known only in a run.
    pub(super) fn open(&self, at: usize) -> RuleRefusal {
        RuleRefusal::Open(format!("those of {}", self.name(at)))
    }

    /// An attribute, the function caller's where the node refers to one.
    pub(super) fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.resolved(self.node.attribute.iter().find(|a| a.name() == name)?)
    }

    /// One of the node's attributes, the function caller's where it refers to one.
    pub(super) fn resolved(&self, attribute: &'a AttributeProto) -> Option<&'a AttributeProto> {
        match attribute.ref_attr_name() {
            "" => Some(attribute),
            reference => self.frame?.get(reference).copied(),
        }
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).and_then(|a| a.i).unwrap_or(default)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.int(name, 0) != 0
    }

    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        std::str::from_utf8(self.attribute(name)?.s.as_deref()?).ok()
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.attribute(name)?.t.as_ref()
    }

    pub(super) fn graph(&self, name: &str) -> Result<&'a GraphProto, RuleRefusal> {
        let graph = self.attribute(name).and_then(|a| a.g.as_ref());
        graph.ok_or_else(|| {
            RuleRefusal::Invalid(format!("has no attribute `{name}` that is a graph"))
        })
    }

    /// An axis of a tensor with `rank` dimensions, as the attribute `name` has it.
    pub(super) fn axis(&self, name: &str, default: i64, rank: usize) -> Result<usize, RuleRefusal> {
        axis(self.int(name, default), rank)
    }

    /// Axes, from an attribute or, in later operator sets, from the input at `at`; `None` where neither is there.
    pub(super) fn axes(&self, at: usize) -> Result<Option<Vec<i64>>, RuleRefusal> {
        match self.ints("axes") {
            Some(axes) => Ok(Some(axes.to_vec())),
            None if self.optional(at).is_some() => self.numbers(at).map(Some),
            None => Ok(None),
        }
    }

    /// The element type that an attribute says; `None` where it is missing or zero.
    pub(super) fn element(&self, name: &str) -> Option<ElementType> {
        let number = i32::try_from(self.int(name, 0)).ok()?;
        (number != 0).then_some(ElementType(number))
    }
}

/// An axis counted from either end of `rank` dimensions.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, RuleRefusal> {
    let signed = i64::try_from(rank).unwrap_or(i64::MAX);
    let from_start = if axis < 0 {
        axis.saturating_add(signed)
    } else {
        axis
    };
    match usize::try_from(from_start) {
        Ok(at) if at < rank => Ok(at),
        _ => Err(RuleRefusal::Invalid(format!(
            "names axis {axis} of a tensor of {rank} dimensions"
        ))),
    }
}

/// A dimension out of a computation that neither overflowed nor went below zero.
pub(super) fn size(number: i128) -> Result<usize, RuleRefusal> {
    usize::try_from(number)
        .map_err(|_| RuleRefusal::Invalid(format!("would give a dimension of {number}")))
}

/// The product of dimensions.
pub(super) fn product(dims: &[usize]) -> Result<usize, RuleRefusal> {
    let product = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    product.ok_or_else(|| RuleRefusal::Invalid(format!("reads {}, too large a shape", list(dims))))
}

/// A size as a signed number wide enough for any arithmetic here.
pub(super) fn wide(size: usize) -> i128 {
    i128::try_from(size).unwrap_or(i128::MAX)
}
