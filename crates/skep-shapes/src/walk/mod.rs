//! The walk through a graph: nodes in order, each by its operator's rule, by a model-local function, or by a graph in
//! its attributes.

mod control;
mod inner;
mod open;
mod outputs;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use skep_proto::onnx::{FunctionProto, NodeProto};

use crate::{
    call::{Datum, OperatorCall},
    declaration::NamedDims,
    error::{InferError, NodeName, RuleRefusal},
    limits::addressable,
    order::{MAX_DEPTH, order},
    scope::{NameScope, domain},
    table::{self, OperatorRule},
};

/// What functions and inner graphs hold may be looked at this often in all, however they repeat each other. The main
/// graph is walked once, whatever its size.
const MAX_VISITS: usize = 1_000_000;
/// Values that are read and written in all while following them; bounds time and, at 8 bytes each, memory.
const MAX_VALUE_STEPS: usize = 16 << 20;

/// Why a node has no outputs.
pub(super) enum NodeStop {
    /// Its rule says so.
    Refused(RuleRefusal),
    /// No rule for its operator.
    Unknown,
    /// Something within a graph or function that it holds.
    Within(InferError),
}

impl From<RuleRefusal> for NodeStop {
    fn from(refusal: RuleRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<InferError> for NodeStop {
    fn from(error: InferError) -> Self {
        Self::Within(error)
    }
}

/// Whether there is a rule for an operator of ONNX or ONNX Runtime; the model's own functions do not count.
pub(super) fn is_known(node: &NodeProto) -> bool {
    let (domain, operator) = (domain(node), node.op_type());
    control::rule(domain, operator).is_some() || table::rule(domain, operator).is_some()
}

/// A walk through a graph and all that it holds.
pub(super) struct GraphWalk<'a> {
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

impl<'a> GraphWalk<'a> {
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
        scope: &mut NameScope<'a, '_>,
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
            limit: format!("that repeat to more than {MAX_VISITS} nodes"),
        })?;
        Ok(())
    }

    /// The outputs of a node: by its rule, or as stated or declared where the rule leaves them open.
    fn node(
        &mut self,
        scope: &NameScope<'a, '_>,
        node: &'a NodeProto,
    ) -> Result<Vec<Datum<'a>>, InferError> {
        let find = |name: &'a String| {
            if name.is_empty() {
                None
            } else {
                scope.find(name)
            }
        };
        let call = OperatorCall {
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
        scope: &NameScope<'a, '_>,
        call: &OperatorCall<'a, '_>,
    ) -> Result<Vec<Datum<'a>>, NodeStop> {
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
            Some(OperatorRule::Direct(rule)) => Ok(rule(call)?),
            Some(OperatorRule::Shaped {
                types,
                shapes,
                fold,
            }) => {
                if table::counts_values(node.op_type()) {
                    self.count_values(call)?;
                }
                self.shaped(call, types, shapes(call)?, fold.as_ref())
            }
            None => Err(NodeStop::Unknown),
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

    fn deeper(&self, scope: &NameScope<'a, '_>, node: &NodeProto) -> Result<usize, InferError> {
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
