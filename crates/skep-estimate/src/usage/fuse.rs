//! ONNX Runtime's main rewrites, as far as they decide which tensors exist in a run.
//!
//! Modelled: batch normalisation, scale, bias and activation folded into convolutions; bias and activation into matrix
//! products, and scales; Gelu out of its formula, with the bias before it; the sigmoid-weighted unit; layer
//! normalisation out of its formula. Not modelled: attention, embedding and skip-layer-normalisation as one operator,
//! which need exact patterns that exporters differ in.
//!
//! The rules are those of ONNX Runtime 1.31.1's graph transformers at `ORT_ENABLE_ALL`, read off the optimised graphs
//! that it saves.

use std::borrow::Cow;

use super::graph::{GraphNode, MemoryGraph, NodeAttributes, NodeId, TensorId, TensorOrigin};

/// Activations that become part of the convolution or matrix product before them; `HardSwish` of a convolution alone.
const ACTIVATIONS: [&str; 6] = [
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
];

/// Rewrites `graph`.
pub(super) fn fuse(graph: &mut MemoryGraph) {
    for node in 0..graph.nodes.len() {
        if graph.nodes[node].is_removed {
            continue;
        }
        match &*graph.nodes[node].op {
            "Conv" => convolution(graph, node),
            "MatMul" => product(graph, node),
            "Gemm" => activation(graph, node),
            "Erf" => gelu(graph, node),
            "Sigmoid" => weighted_sigmoid(graph, node),
            "Sqrt" => layer_norm(graph, node),
            _ => {}
        }
    }
}

fn op(graph: &MemoryGraph, node: NodeId) -> &str {
    &graph.nodes[node].op
}

fn is_file(graph: &MemoryGraph, tensor: TensorId) -> bool {
    graph.tensors[tensor].origin == TensorOrigin::File
}

fn elements(graph: &MemoryGraph, tensor: TensorId) -> usize {
    graph.tensors[tensor].dims.iter().product()
}

/// Of a node's two inputs, the one out of the file and the other.
fn constant_and_other(graph: &MemoryGraph, node: NodeId) -> Option<(TensorId, TensorId)> {
    let [Some(first), Some(second)] = graph.nodes[node].inputs[..] else {
        return None;
    };
    match (is_file(graph, first), is_file(graph, second)) {
        (true, false) => Some((first, second)),
        (false, true) => Some((second, first)),
        _ => None,
    }
}

/// What a node computes out of a tensor with a single number of the file, such as `x / 2`.
fn scaled(graph: &MemoryGraph, node: NodeId, ops: &[&str]) -> Option<TensorId> {
    let (number, other) = constant_and_other(graph, node)?;
    (ops.contains(&op(graph, node)) && elements(graph, number) == 1).then_some(other)
}

/// The activation that follows becomes part of the node.
fn activation(graph: &mut MemoryGraph, node: NodeId) {
    let Some(next) = graph.follower(node) else {
        return;
    };
    let limits = graph.nodes[next].inputs.iter().skip(1).copied().flatten();
    let becomes_part = ACTIVATIONS.contains(&op(graph, next))
        || (op(graph, next) == "HardSwish" && op(graph, node) == "Conv");
    if becomes_part && limits.into_iter().all(|limit| is_file(graph, limit)) {
        graph.absorb(node, next);
        graph.nodes[node].attributes.is_activated = true;
    }
}

/// Normalisation, scale and bias of each channel become weights of the convolution; an activation its last step.
fn convolution(graph: &mut MemoryGraph, conv: NodeId) {
    let Some(channels) = graph.nodes[conv]
        .input(1)
        .filter(|&weight| is_file(graph, weight))
        .and_then(|weight| graph.tensors[weight].dims.first().copied())
    else {
        return;
    };
    while let Some(next) = graph.follower(conv) {
        let bias = match op(graph, next) {
            // Those of training have further outputs.
            "BatchNormalization" if graph.nodes[next].outputs.len() == 1 => {
                graph.nodes[next].input(2)
            }
            "Mul" | "Add" => constant_and_other(graph, next)
                .map(|(constant, _)| constant)
                .filter(|&constant| of_channels(&graph.tensors[constant].dims, channels)),
            _ => None,
        };
        let Some(bias) = bias.filter(|&bias| is_file(graph, bias)) else {
            break;
        };
        let is_bias = op(graph, next) != "Mul";
        graph.absorb(conv, next);
        if is_bias && graph.nodes[conv].input(2).is_none() {
            let mut inputs = graph.nodes[conv].inputs.clone();
            inputs.resize(2, None);
            inputs.push(Some(bias));
            graph.set_inputs(conv, inputs);
        }
    }
    activation(graph, conv);
}

/// Whether these dimensions hold a number for each channel of [batch, channels, height, width].
fn of_channels(dims: &[usize], channels: usize) -> bool {
    let spatial = dims.iter().rev().take_while(|&&size| size == 1).count();
    let rest = &dims[..dims.len() - spatial];
    match rest {
        [] => true,
        [.., last] => {
            *last == channels
                && spatial >= 1
                && rest[..rest.len() - 1].iter().all(|&size| size == 1)
        }
    }
}

/// A scale of a product becomes a factor of it; bias and activation of one of matrices make it a `Gemm`.
fn product(graph: &mut MemoryGraph, node: NodeId) {
    let is_fp32 = graph.nodes[node]
        .output()
        .is_some_and(|made| graph.tensors[made].is_fp32);
    let Some(next) = graph.follower(node).filter(|_| is_fp32) else {
        return;
    };
    if scaled(graph, next, &["Mul"]).is_some()
        || (scaled(graph, next, &["Div"]).is_some()
            && graph.nodes[next].input(0) == graph.nodes[node].output())
    {
        graph.absorb(node, next);
        graph.nodes[node].op = Cow::Borrowed("com.microsoft:FusedMatMul");
        return;
    }
    let are_matrices = graph.nodes[node]
        .reads()
        .all(|tensor| graph.tensors[tensor].dims.len() == 2 && graph.tensors[tensor].is_shaped);
    let bias = constant_and_other(graph, next).map(|(bias, _)| bias);
    if let Some(bias) = bias.filter(|_| are_matrices && op(graph, next) == "Add") {
        graph.absorb(node, next);
        let mut inputs = graph.nodes[node].inputs.clone();
        inputs.push(Some(bias));
        graph.set_inputs(node, inputs);
        graph.nodes[node].op = Cow::Borrowed("Gemm");
        activation(graph, node);
    }
}

/// Puts a node of this operator in the place of `members`, of which `last` makes the result.
fn replace(
    graph: &mut MemoryGraph,
    op: &'static str,
    inputs: Vec<TensorId>,
    members: &[NodeId],
    last: NodeId,
) -> NodeId {
    let made = graph.nodes[last].output();
    for &member in members {
        graph.remove(member);
    }
    graph.add_node(GraphNode {
        op: Cow::Borrowed(op),
        inputs: inputs.into_iter().map(Some).collect(),
        captured: Vec::new(),
        outputs: vec![made],
        attributes: NodeAttributes::default(),
        rank: 0,
        scratch: 0,
        is_removed: false,
    })
}

/// `x * (1 + erf(x / sqrt(2))) / 2` in any order of its factors.
fn gelu(graph: &mut MemoryGraph, erf: NodeId) {
    let Some((x, members, last)) = gelu_members(graph, erf) else {
        return;
    };
    let bytes = graph.tensors[x].bytes;
    // A bias that only the formula sees becomes part of it, with a tensor of its own while it runs.
    let biased = graph.maker(x).filter(|&add| {
        let reads = members
            .iter()
            .flat_map(|&member| graph.nodes[member].reads());
        op(graph, add) == "Add" && graph.uses(x) == reads.filter(|&tensor| tensor == x).count()
    });
    let bias = biased.and_then(|add| Some((add, constant_and_other(graph, add)?)));
    let bias = bias.filter(|(_, (bias, _))| graph.tensors[*bias].dims.len() == 1);
    match bias {
        Some((add, (bias, other))) => {
            let members = [&members[..], &[add]].concat();
            let node = replace(
                graph,
                "com.microsoft:BiasGelu",
                vec![other, bias],
                &members,
                last,
            );
            graph.nodes[node].scratch = bytes;
        }
        None => {
            replace(graph, "com.microsoft:Gelu", vec![x], &members, last);
        }
    }
}

/// The argument of the formula around an `Erf`, its nodes, and the one that makes the result.
fn gelu_members(graph: &MemoryGraph, erf: NodeId) -> Option<(TensorId, Vec<NodeId>, NodeId)> {
    let argument = graph.nodes[erf]
        .input(0)
        .filter(|&argument| graph.uses(argument) == 1)?;
    let divided = graph.maker(argument)?;
    let x = scaled(graph, divided, &["Div", "Mul"])?;
    let sum = graph.follower(erf)?;
    scaled(graph, sum, &["Add"])?;
    let product = graph
        .follower(sum)
        .filter(|&product| op(graph, product) == "Mul")?;
    let reads: Vec<TensorId> = graph.nodes[product].reads().collect();
    let other = reads
        .into_iter()
        .find(|&tensor| Some(tensor) != graph.nodes[sum].output())?;
    let mut members = vec![divided, erf, sum, product];
    if other == x {
        let last = graph.follower(product)?;
        scaled(graph, last, &["Mul", "Div"])?;
        members.push(last);
        return Some((x, members, last));
    }
    let half = graph.maker(other).filter(|_| graph.uses(other) == 1)?;
    (scaled(graph, half, &["Mul", "Div"])? == x).then(|| {
        members.push(half);
        (x, members, product)
    })
}

/// `x * sigmoid(x)`.
fn weighted_sigmoid(graph: &mut MemoryGraph, sigmoid: NodeId) {
    let Some(x) = graph.nodes[sigmoid].input(0) else {
        return;
    };
    let Some(product) = graph
        .follower(sigmoid)
        .filter(|&next| op(graph, next) == "Mul")
    else {
        return;
    };
    if graph.nodes[product].reads().any(|tensor| tensor == x) {
        replace(
            graph,
            "com.microsoft:QuickGelu",
            vec![x],
            &[sigmoid, product],
            product,
        );
    }
}

/// `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias`, from the square root.
fn layer_norm(graph: &mut MemoryGraph, root: NodeId) {
    if let Some((inputs, members, last)) = layer_norm_members(graph, root) {
        replace(graph, "LayerNormalization", inputs, &members, last);
    }
}

fn layer_norm_members(
    graph: &MemoryGraph,
    root: NodeId,
) -> Option<(Vec<TensorId>, Vec<NodeId>, NodeId)> {
    let maker = |tensor: TensorId, wanted: &str| {
        graph
            .maker(tensor)
            .filter(|&node| op(graph, node) == wanted)
    };
    let variance = maker(graph.nodes[root].input(0)?, "Add")?;
    let mean = maker(scaled(graph, variance, &["Add"])?, "ReduceMean")?;
    let power = maker(graph.nodes[mean].input(0)?, "Pow")?;
    let difference = graph.nodes[power].input(0)?;
    let centred = maker(difference, "Sub")?;
    let x = graph.nodes[centred].input(0)?;
    let mean_of_x = maker(graph.nodes[centred].input(1)?, "ReduceMean")?;
    let divided = graph
        .follower(root)
        .filter(|&node| op(graph, node) == "Div")?;
    let scaled_by = graph
        .follower(divided)
        .filter(|&node| op(graph, node) == "Mul")?;
    let last = graph
        .follower(scaled_by)
        .filter(|&node| op(graph, node) == "Add")?;
    let (scale, _) = constant_and_other(graph, scaled_by)?;
    let (bias, _) = constant_and_other(graph, last)?;
    // What a part outside of the formula reads must stay.
    let members = vec![
        variance, mean, power, centred, mean_of_x, root, divided, scaled_by, last,
    ];
    let is_whole = graph.uses(difference) == 2
        && graph.nodes[mean_of_x].input(0) == Some(x)
        && graph.nodes[divided].input(0) == Some(difference)
        && [variance, mean, power, mean_of_x]
            .iter()
            .all(|&node| graph.follower(node).is_some());
    is_whole.then_some((vec![x, scale, bias], members, last))
}
