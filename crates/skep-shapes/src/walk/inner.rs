//! Functions of the file, and graphs in attributes: a scope each, walked as the main graph is.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use skep_proto::onnx::{FunctionProto, GraphProto, NodeProto};

use super::{GraphWalk, NodeStop};
use crate::{
    call::{CallerAttributes, Datum, OperatorCall},
    error::{InferError, NodeName, RuleRefusal},
    scope::{NameScope, versions},
};

impl<'a> GraphWalk<'a> {
    /// Evaluates a model-local function with the inputs and attributes of a call.
    pub(super) fn function(
        &mut self,
        scope: &NameScope<'a, '_>,
        call: &OperatorCall<'a, '_>,
        function: &'a FunctionProto,
    ) -> Result<Vec<Datum<'a>>, NodeStop> {
        let node = call.node;
        let depth = self.deeper(scope, node)?;
        let mut frame: CallerAttributes<'a> = HashMap::new();
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
        let mut inner = NameScope {
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
    pub(crate) fn graph(
        &mut self,
        scope: &NameScope<'a, '_>,
        node: &'a NodeProto,
        graph: &'a GraphProto,
        inputs: Vec<Datum<'a>>,
    ) -> Result<Vec<Datum<'a>>, NodeStop> {
        let depth = self.deeper(scope, node)?;
        let tensors = graph.initializer.len() + graph.sparse_initializer.len();
        let values = graph.value_info.len() + graph.input.len() + graph.output.len();
        self.visit(node, 1 + tensors + values)?;
        let mut inner = NameScope {
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
            return Err(NodeStop::Refused(RuleRefusal::Invalid(format!(
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
}

/// An output of a graph or a function.
fn found<'a>(
    scope: &NameScope<'a, '_>,
    name: &str,
    node: &NodeProto,
) -> Result<Datum<'a>, InferError> {
    scope
        .find(name)
        .cloned()
        .ok_or_else(|| InferError::Missing {
            tensor: name.to_owned(),
            reader: format!("the outputs of what {} holds", NodeName::of(node)),
        })
}
