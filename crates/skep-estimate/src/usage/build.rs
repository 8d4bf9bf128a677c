//! From an ONNX file and its shapes to a [`MemoryGraph`].

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use skep_onnx::OnnxModel;
use skep_planner::shortened_name;
use skep_proto::onnx::{GraphProto, NodeProto, TensorProto, tensor_proto};
use skep_shapes::{InferredShapes, InferredTensor, KnownFrom};

use super::{
    extents::Extents,
    graph::{GraphNode, GraphTensor, MemoryGraph, NodeAttributes, NodeId, TensorId, TensorOrigin},
};

/// A graph, and facts about it beside its tensors.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) graph: MemoryGraph,
    /// Its nodes in the order of inference.
    pub(super) order: Vec<NodeId>,
    /// Nodes that hold graphs of their own, or call a function of the model.
    pub(super) left_out: Vec<String>,
}

/// How to treat nodes whose results follow from the file alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Constants {
    /// They run, but for `Constant` itself.
    Run,
    /// They were computed when the model was loaded.
    Folded,
}

/// The main graph of `model`.
pub(super) fn build(model: &OnnxModel, inferred: &InferredShapes, constants: Constants) -> Built {
    let proto = model.graph();
    let mut builder = Builder {
        inferred,
        outputs: proto.output.iter().map(|value| value.name()).collect(),
        extents: match constants {
            Constants::Run => None,
            Constants::Folded => Some(Extents::of(model, inferred)),
        },
        ids: HashMap::new(),
        graph: MemoryGraph::default(),
    };
    let sparse = proto
        .sparse_initializer
        .iter()
        .filter_map(|sparse| sparse.values.as_ref());
    for tensor in proto.initializer.iter().chain(sparse) {
        builder.tensor(tensor.name(), TensorOrigin::File);
    }
    for value in &proto.input {
        if !builder.ids.contains_key(value.name()) {
            builder.tensor(value.name(), TensorOrigin::Caller);
        }
    }
    let functions = model.proto().functions.iter();
    let functions: HashSet<(&str, &str)> = functions
        .map(|function| (function.domain(), function.name()))
        .collect();
    let mut left_out = Vec::new();
    let mut order = Vec::with_capacity(inferred.order.len());
    for node in inferred.order.iter().filter_map(|&at| proto.node.get(at)) {
        let captured = builder.captured(node);
        if holds_graph(node) || functions.contains(&(node.domain(), node.op_type())) {
            left_out.push(format!("{} `{}`", node.op_type(), shown(node)));
        }
        if builder.is_constant(node, constants) {
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                builder.tensor(name, TensorOrigin::File);
            }
            continue;
        }
        order.push(builder.node(node, captured));
    }
    if let Some(extents) = &mut builder.extents {
        extents.settle(&mut builder.graph, &order);
    }
    Built {
        graph: builder.graph,
        order,
        left_out,
    }
}

struct Builder<'a> {
    inferred: &'a InferredShapes,
    outputs: HashSet<&'a str>,
    /// For the runtime's graph alone.
    extents: Option<Extents<'a>>,
    ids: HashMap<&'a str, TensorId>,
    graph: MemoryGraph,
}

impl<'a> Builder<'a> {
    fn tensor(&mut self, name: &'a str, origin: TensorOrigin) -> TensorId {
        let fact = self.inferred.tensors.get(name);
        let dims = fact.map_or_else(Vec::new, |fact| fact.shape.dims().to_vec());
        let extents = self.extents.as_ref();
        let tensor = GraphTensor {
            name: name.to_owned(),
            extents: extents.map_or_else(Vec::new, |extents| extents.tensor(name, &dims)),
            dims,
            is_shaped: true,
            // A sequence is not a tensor: its elements were counted when they were made.
            bytes: fact.map_or(0, |fact| fact.bytes() as u64),
            padding: 0,
            is_fp32: fact
                .is_some_and(|fact| fact.element.0 == tensor_proto::DataType::Float as i32),
            origin,
            is_output: self.outputs.contains(name),
        };
        let id = self.graph.add_tensor(tensor);
        self.ids.insert(name, id);
        id
    }

    fn is_constant(&self, node: &NodeProto, constants: Constants) -> bool {
        if node.op_type() == "Constant" {
            return true;
        }
        let is_known = |name: &String| {
            let known = self
                .inferred
                .tensors
                .get(name)
                .map(|fact: &InferredTensor| fact.known);
            known == Some(KnownFrom::File)
        };
        let mut outputs = node
            .output
            .iter()
            .filter(|name| !name.is_empty())
            .peekable();
        constants == Constants::Folded && outputs.peek().is_some() && outputs.all(is_known)
    }

    fn node(&mut self, proto: &'a NodeProto, captured: Vec<TensorId>) -> NodeId {
        let op = match proto.domain() {
            "" | "ai.onnx" => Cow::Owned(proto.op_type().to_owned()),
            domain => Cow::Owned(format!("{domain}:{}", proto.op_type())),
        };
        let inputs = proto
            .input
            .iter()
            .map(|name| self.ids.get(name.as_str()).copied());
        let inputs = inputs.collect();
        let outputs = proto.output.iter();
        let outputs =
            outputs.map(|name| (!name.is_empty()).then(|| self.tensor(name, TensorOrigin::Run)));
        let outputs = outputs.collect();
        self.graph.add_node(GraphNode {
            op,
            inputs,
            captured,
            outputs,
            attributes: attributes(proto),
            rank: 0,
            scratch: 0,
            is_removed: false,
        })
    }

    /// What graphs in a node's attributes read of this graph.
    fn captured(&self, node: &NodeProto) -> Vec<TensorId> {
        let mut found = Vec::new();
        let mut pending: Vec<&GraphProto> = graphs(node).collect();
        while let Some(graph) = pending.pop() {
            let outputs = graph.output.iter().map(|value| value.name());
            let inputs = graph
                .node
                .iter()
                .flat_map(|node| &node.input)
                .map(String::as_str);
            found.extend(
                inputs
                    .chain(outputs)
                    .filter_map(|name| self.ids.get(name).copied()),
            );
            pending.extend(graph.node.iter().flat_map(graphs));
        }
        found
    }
}

fn graphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute
        .iter()
        .flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

fn holds_graph(node: &NodeProto) -> bool {
    graphs(node).next().is_some()
}

/// A node's name, or where it has none, its first output's.
fn shown(node: &NodeProto) -> String {
    let name = Some(node.name()).filter(|name| !name.is_empty());
    let output = || node.output.first().map_or("", String::as_str);
    shortened_name(name.unwrap_or_else(output))
}

fn attributes(node: &NodeProto) -> NodeAttributes {
    let number = |name: &str| {
        let attribute = node
            .attribute
            .iter()
            .find(|attribute| attribute.name() == name);
        attribute.and_then(|attribute| attribute.i)
    };
    NodeAttributes {
        group: number("group")
            .and_then(|group| usize::try_from(group).ok())
            .unwrap_or(1),
        axis: number("axis"),
        trans_b: number("transB") == Some(1),
        is_activated: false,
    }
}

/// Bytes of weights within the graphs of nodes, which are loaded as the main graph's are.
pub(super) fn inner_weights(model: &OnnxModel) -> u64 {
    let mut total = 0_u64;
    let main = model.graph();
    model.visit(&mut |graph| {
        if std::ptr::eq(graph, main) {
            return;
        }
        let constants = graph
            .node
            .iter()
            .filter(|node| node.op_type() == "Constant");
        let constants = constants
            .flat_map(|node| &node.attribute)
            .filter_map(|a| a.t.as_ref());
        for tensor in graph.initializer.iter().chain(constants) {
            total = total.saturating_add(bytes(tensor));
        }
    });
    total
}

/// Bytes of a tensor in the file, 0 for an invalid one.
pub(super) fn bytes(tensor: &TensorProto) -> u64 {
    let bits = skep_shapes::ElementType(tensor.data_type())
        .bits()
        .unwrap_or(0) as u64;
    let elements = tensor.dims.iter().try_fold(1_u64, |product, &size| {
        product.checked_mul(u64::try_from(size).ok()?)
    });
    elements
        .and_then(|elements| elements.checked_mul(bits))
        .map_or(0, |bits| bits.div_ceil(8))
}
