//! The walk through a graph: nodes in order, each by its operator's rule, by a model-local function, or by a graph in
//! its attributes.

mod inner;
mod open;
mod outputs;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use skep_proto::onnx::{FunctionProto, NodeProto};
use skep_types::Shape;

use super::{
    ElementType, InferError, Known,
    call::{Call, Datum},
    control,
    error::{NodeName, Refusal, list},
    fact::MAX_RANK,
    given::NamedDims,
    order::{MAX_DEPTH, order},
    scope::{Scope, domain},
    table::{self, Rule},
};

/// What functions and inner graphs hold may be looked at this often in all, however they repeat each other. The main
/// graph is walked once, whatever its size.
const MAX_VISITS: usize = 1_000_000;
/// Values that are read and written in all while following them; bounds time and, at 8 bytes each, memory.
const MAX_VALUE_STEPS: usize = 16 << 20;

/// Why a node has no outputs.
pub(super) enum Stop {
    /// Its rule says so.
    Refused(Refusal),
    /// No rule for its operator.
    Unknown,
    /// Something within a graph or function that it holds.
    Within(InferError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<InferError> for Stop {
    fn from(error: InferError) -> Self {
        Self::Within(error)
    }
}

pub(super) struct Walk<'a> {
    functions: HashMap<(&'a str, &'a str, &'a str), &'a FunctionProto>,
    stated: &'a BTreeMap<String, Vec<usize>>,
    named: NamedDims<'a>,
    /// Stated tensors that were met.
    met: BTreeSet<&'a str>,
    visits_left: usize,
    value_steps_left: usize,
    /// Orders of inner graphs and functions, by the address of their nodes: a loop's body is sorted once.
    orders: HashMap<*const NodeProto, Rc<[usize]>>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        functions: &'a [FunctionProto],
        stated: &'a BTreeMap<String, Vec<usize>>,
        named: NamedDims<'a>,
    ) -> Self {
        let key = |f: &'a FunctionProto| {
            let domain = if f.domain() == "ai.onnx" {
                ""
            } else {
                f.domain()
            };
            (domain, f.name(), f.overload())
        };
        Self {
            functions: functions.iter().map(|f| (key(f), f)).collect(),
            stated,
            named,
            met: BTreeSet::new(),
            visits_left: MAX_VISITS,
            value_steps_left: MAX_VALUE_STEPS,
            orders: HashMap::new(),
        }
    }

    /// A stated tensor that the walk did not come across.
    pub(super) fn not_met(&self) -> Option<&'a str> {
        let mut stated = self.stated.keys();
        stated
            .find(|name| !self.met.contains(name.as_str()))
            .map(String::as_str)
    }

    /// Evaluates `nodes` in `order` within `scope`.
    pub(super) fn nodes(
        &mut self,
        scope: &mut Scope<'a, '_>,
        nodes: &'a [NodeProto],
        order: &[usize],
    ) -> Result<(), InferError> {
        for node in order.iter().map(|&at| &nodes[at]) {
            if scope.depth > 0 {
                self.visit(node, size_of(node))?;
            }
            let outputs = self.node(scope, node)?;
            for (name, datum) in node.output.iter().zip(outputs) {
                if name.is_empty() {
                    continue;
                }
                if let Datum::Tensor(fact) = &datum {
                    addressable(name, fact.element, &fact.shape)?;
                }
                if scope.data.insert(name, datum).is_some() {
                    return Err(InferError::Twice {
                        tensor: name.clone(),
                        second: NodeName::of(node).to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    fn visit(&mut self, node: &NodeProto, count: usize) -> Result<(), InferError> {
        let left = self.visits_left.checked_sub(count);
        self.visits_left = left.ok_or_else(|| InferError::Nesting {
            node: NodeName::of(node),
            limit: format!("that repeat until more than {MAX_VISITS} nodes are to be looked at"),
        })?;
        Ok(())
    }

    /// The outputs of a node: by its rule, or as they are stated or declared where that leaves them open.
    fn node(
        &mut self,
        scope: &Scope<'a, '_>,
        node: &'a NodeProto,
    ) -> Result<Vec<Datum<'a>>, InferError> {
        let find = |name: &'a String| {
            if name.is_empty() {
                None
            } else {
                scope.find(name)
            }
        };
        let call = Call {
            node,
            inputs: node.input.iter().map(find).collect(),
            version: scope.version(node),
            frame: scope.frame.as_deref(),
        };
        let outputs = match self.evaluate(scope, &call) {
            Ok(outputs) => outputs,
            Err(stop) => self.fall_back(scope, &call, stop)?,
        };
        if let Some(missing) = node.output.get(outputs.len()..)
            && missing.iter().any(|name| !name.is_empty())
        {
            return Err(InferError::Node {
                node: NodeName::of(node),
                reason: format!(
                    "has {} outputs, expected {}",
                    node.output.len(),
                    outputs.len()
                ),
            });
        }
        if scope.is_stated && !self.stated.is_empty() {
            self.check_stated(node, &outputs)?;
        }
        Ok(outputs)
    }

    fn evaluate(
        &mut self,
        scope: &Scope<'a, '_>,
        call: &Call<'a, '_>,
    ) -> Result<Vec<Datum<'a>>, Stop> {
        let node = call.node;
        let domain = domain(node);
        if let Some(function) = self
            .functions
            .get(&(domain, node.op_type(), node.overload()))
        {
            return self.function(scope, call, function);
        }
        if let Some(control) = control::rule(domain, node.op_type()) {
            return control(self, scope, call);
        }
        match table::rule(domain, node.op_type()) {
            Some(Rule::Direct(rule)) => Ok(rule(call)?),
            Some(Rule::Shaped {
                types,
                shapes,
                fold,
            }) => {
                if table::counts_values(node.op_type()) {
                    self.count_values(call)?;
                }
                self.shaped(call, types, shapes(call)?, fold.as_ref())
            }
            None => Err(Stop::Unknown),
        }
    }

    fn order(
        &mut self,
        nodes: &'a [NodeProto],
        outside: &dyn Fn(&str) -> bool,
    ) -> Result<Rc<[usize]>, InferError> {
        if let Some(known) = self.orders.get(&nodes.as_ptr()) {
            return Ok(Rc::clone(known));
        }
        let sorted: Rc<[usize]> = order(nodes, outside)?.into();
        if !nodes.is_empty() {
            self.orders.insert(nodes.as_ptr(), Rc::clone(&sorted));
        }
        Ok(sorted)
    }

    fn deeper(&self, scope: &Scope<'a, '_>, node: &NodeProto) -> Result<usize, InferError> {
        if scope.depth < MAX_DEPTH {
            return Ok(scope.depth + 1);
        }
        Err(InferError::Nesting {
            node: NodeName::of(node),
            limit: format!("deeper than {MAX_DEPTH}"),
        })
    }
}

/// What an evaluation of a node looks at.
fn size_of(node: &NodeProto) -> usize {
    let attributes = node.attribute.iter();
    let attributes = attributes.map(|a| 1 + a.ints.len() + a.floats.len());
    1 + node.input.len() + node.output.len() + attributes.sum::<usize>()
}

fn unknown_type(node: &NodeProto, at: usize) -> InferError {
    InferError::UnknownType {
        tensor: node.output[at].clone(),
        node: NodeName::of(node),
    }
}

/// When the values of a tensor are known; those of a sequence are its tensors'.
pub(super) fn known(datum: &Datum<'_>) -> Known {
    match datum {
        Datum::Tensor(fact) => fact.known,
        Datum::Sequence(facts) => facts.iter().map(|f| f.known).max().unwrap_or(Known::File),
    }
}

/// A shape whose bytes can be addressed, of a rank that something can be done with.
pub(super) fn checked(
    tensor: &str,
    element: ElementType,
    dims: &[usize],
) -> Result<Shape, InferError> {
    let too_large = |limit: &str| InferError::TooLarge {
        tensor: tensor.to_owned(),
        shape: list(&dims[..dims.len().min(MAX_RANK)]),
        limit: limit.to_owned(),
    };
    if dims.len() > MAX_RANK {
        return Err(too_large(&format!(
            "it has {} dimensions, expected at most {MAX_RANK}",
            dims.len()
        )));
    }
    let shape = Shape::new(dims).map_err(|_| too_large(NO_MEMORY))?;
    addressable(tensor, element, &shape)?;
    Ok(shape)
}

/// What a tensor exceeds whose bytes cannot be addressed.
const NO_MEMORY: &str = "no memory holds it";

/// Whether the bytes of a tensor can be told, and addressed.
pub(super) fn addressable(
    tensor: &str,
    element: ElementType,
    shape: &Shape,
) -> Result<(), InferError> {
    if element.bits().is_none() {
        return Err(InferError::ElementType {
            tensor: tensor.to_owned(),
            element,
        });
    }
    let bytes = super::bytes(element, shape).ok_or_else(|| InferError::TooLarge {
        tensor: tensor.to_owned(),
        shape: shape.to_string(),
        limit: NO_MEMORY.to_owned(),
    });
    bytes.map(drop)
}
