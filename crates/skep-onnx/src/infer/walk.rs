//! The walk through a graph: nodes in order, each by its operator's rule, by a model-local function, or by a graph in
//! its attributes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    rc::Rc,
};

use skep_proto::onnx::{FunctionProto, GraphProto, NodeProto};
use skep_types::Shape;

use super::{
    ElementType, InferError, Known,
    call::{Attributes, Call, Datum},
    control,
    error::{NodeName, Refusal, list},
    fact::{Fact, MAX_RANK, Value, followed},
    given::NamedDims,
    order::{MAX_DEPTH, order},
    scope::{Scope, domain, versions},
    table::{self, Fold, Rule, Ty},
    values,
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

    /// Outputs of these shapes, with their values where they follow.
    fn shaped(
        &mut self,
        call: &Call<'a, '_>,
        types: &[Ty],
        shapes: Vec<Vec<usize>>,
        fold: Option<&Fold>,
    ) -> Result<Vec<Datum<'a>>, Stop> {
        let inputs = call.inputs.iter().flatten();
        let known = inputs
            .map(|datum| known(datum))
            .max()
            .unwrap_or(Known::File);
        let known = if table::is_random(call.node.op_type()) {
            Known::Run
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
                fact.known = known.min(Known::Shapes);
            }
            outputs.push(Datum::Tensor(fact));
        }
        Ok(outputs)
    }

    /// The values of output `at`, when they follow from what is known and there are steps left to compute them.
    fn fold(
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
    fn count_values(&mut self, call: &Call<'a, '_>) -> Result<(), Refusal> {
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

    /// Outputs as they are stated or declared, for a node whose rule leaves them open.
    fn fall_back(
        &mut self,
        scope: &Scope<'a, '_>,
        call: &Call<'a, '_>,
        stop: Stop,
    ) -> Result<Vec<Datum<'a>>, InferError> {
        let node = call.node;
        let error = match stop {
            Stop::Refused(Refusal::Invalid(reason)) => {
                return Err(InferError::Node {
                    node: NodeName::of(node),
                    reason,
                });
            }
            Stop::Within(error)
                if !matches!(
                    error,
                    InferError::Undetermined { .. } | InferError::UnknownOperator { .. }
                ) =>
            {
                return Err(error);
            }
            Stop::Refused(Refusal::Open(why)) => Open::Values(why),
            Stop::Unknown => Open::Operator,
            Stop::Within(error) => Open::Within(error),
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
                Some(Rule::Shaped { types, .. }) => table::element(types, call, at),
                _ => None,
            };
            // An operator that nobody knows most likely gives what it reads.
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

    fn check_stated(
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

    /// Evaluates a model-local function with the inputs and attributes of a call.
    fn function(
        &mut self,
        scope: &Scope<'a, '_>,
        call: &Call<'a, '_>,
        function: &'a FunctionProto,
    ) -> Result<Vec<Datum<'a>>, Stop> {
        let node = call.node;
        let depth = self.deeper(scope, node)?;
        let mut frame: Attributes<'a> = HashMap::new();
        frame.extend(
            function
                .attribute_proto
                .iter()
                .map(|default| (default.name(), default)),
        );
        for attribute in &node.attribute {
            if let Some(given) = call.resolved(attribute) {
                frame.insert(attribute.name(), given);
            }
        }
        let declared = function.attribute_proto.len() + function.value_info.len();
        self.visit(
            node,
            declared + function.input.len() + function.opset_import.len(),
        )?;
        let mut inner = Scope {
            data: HashMap::new(),
            outer: None,
            versions: Rc::new(versions(&function.opset_import)),
            frame: Some(Rc::new(frame)),
            declared: function.value_info.iter().map(|v| (v.name(), v)).collect(),
            is_stated: false,
            left_out: HashSet::new(),
            depth,
        };
        for (at, name) in function.input.iter().enumerate() {
            match call.inputs.get(at).copied().flatten() {
                Some(datum) => drop(inner.data.insert(name, datum.clone())),
                None => drop(inner.left_out.insert(name)),
            }
        }
        let order = self.order(&function.node, &|name| inner.is_readable(name))?;
        self.nodes(&mut inner, &function.node, &order)?;
        let outputs = function.output.iter().map(|name| found(&inner, name, node));
        Ok(outputs.collect::<Result<_, _>>()?)
    }

    /// Evaluates a graph in an attribute of `node` with these inputs.
    pub(super) fn graph(
        &mut self,
        scope: &Scope<'a, '_>,
        node: &'a NodeProto,
        graph: &'a GraphProto,
        inputs: Vec<Datum<'a>>,
    ) -> Result<Vec<Datum<'a>>, Stop> {
        let depth = self.deeper(scope, node)?;
        let tensors = graph.initializer.len() + graph.sparse_initializer.len();
        let values = graph.value_info.len() + graph.input.len() + graph.output.len();
        self.visit(node, 1 + tensors + values)?;
        let mut inner = Scope {
            data: HashMap::new(),
            outer: Some(scope),
            versions: Rc::clone(&scope.versions),
            frame: scope.frame.clone(),
            declared: HashMap::new(),
            is_stated: scope.is_stated,
            left_out: HashSet::new(),
            depth,
        };
        inner.add_graph(graph)?;
        if graph.input.len() != inputs.len() {
            return Err(Stop::Refused(Refusal::Invalid(format!(
                "holds a graph of {} inputs, expected {}",
                graph.input.len(),
                inputs.len()
            ))));
        }
        for (value, datum) in graph.input.iter().zip(inputs) {
            inner.data.insert(value.name(), datum);
        }
        let order = self.order(&graph.node, &|name| inner.is_readable(name))?;
        self.nodes(&mut inner, &graph.node, &order)?;
        let outputs = graph
            .output
            .iter()
            .map(|value| found(&inner, value.name(), node));
        Ok(outputs.collect::<Result<_, _>>()?)
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

/// Why outputs that nobody states or declares are an error.
enum Open {
    Values(String),
    Operator,
    Within(InferError),
}

impl Open {
    fn into_error(self, scope: &Scope<'_, '_>, node: &NodeProto, tensor: &str) -> InferError {
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

/// What an evaluation of a node looks at.
fn size_of(node: &NodeProto) -> usize {
    let attributes = node.attribute.iter();
    let attributes = attributes.map(|a| 1 + a.ints.len() + a.floats.len());
    1 + node.input.len() + node.output.len() + attributes.sum::<usize>()
}

fn element_of(datum: &Datum<'_>) -> Option<ElementType> {
    match datum {
        Datum::Tensor(fact) => Some(fact.element),
        Datum::Sequence(_) => None,
    }
}

fn unknown_type(node: &NodeProto, at: usize) -> InferError {
    InferError::UnknownType {
        tensor: node.output[at].clone(),
        node: NodeName::of(node),
    }
}

/// An output of a graph or a function.
fn found<'a>(scope: &Scope<'a, '_>, name: &str, node: &NodeProto) -> Result<Datum<'a>, InferError> {
    scope
        .find(name)
        .cloned()
        .ok_or_else(|| InferError::Missing {
            tensor: name.to_owned(),
            reader: format!("the outputs of what {} holds", NodeName::of(node)),
        })
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
    let shape = Shape::new(dims).map_err(|_| too_large("no memory holds it"))?;
    super::bytes(element, &shape).ok_or_else(|| too_large("no memory holds it"))?;
    Ok(shape)
}
