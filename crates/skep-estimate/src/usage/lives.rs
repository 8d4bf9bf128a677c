//! From a graph and an order of its nodes to buffers: when each tensor is live, and which could share memory.

use skep_planner::Buffer;

use super::graph::{GraphNode, MemoryGraph, NodeId, TensorId};

/// The alignment of tensors in ONNX Runtime and in its planned arena.
pub(super) const ALIGNMENT: u64 = 64;

/// How far outputs share memory with inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputSharing {
    /// Not at all.
    Nothing,
    /// Views lie where they view; element-wise operators may write over an input of their output's size that nothing
    /// reads afterwards.
    Possible,
}

/// Where a tensor's bytes are.
#[derive(Debug, Clone, Copy)]
enum TensorPlace {
    /// In no buffer of the plan: in weights, or in the caller's memory.
    Outside,
    Buffer(usize),
}

/// Operators whose output is their first input in another shape.
pub(super) const VIEWS: [&str; 6] = [
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Dropout",
];

/// Operators that compute each element of their output from the elements at its place.
const ELEMENT_WISE: [&str; 47] = [
    "Abs",
    "Acos",
    "Add",
    "And",
    "Asin",
    "Atan",
    "BatchNormalization",
    "BitShift",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Less",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Selu",
    "Sigmoid",
    "Sin",
    "Softplus",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
];

/// The buffers that the nodes of `graph` need when they run in `order`: names and records.
pub(super) fn buffers(
    graph: &MemoryGraph,
    order: &[NodeId],
    sharing: InputSharing,
) -> Vec<(String, Buffer)> {
    let mut lives = Lives {
        graph,
        sharing,
        last: last_steps(graph, order),
        places: vec![TensorPlace::Outside; graph.tensors.len()],
        named: Vec::new(),
    };
    for (step, &node) in order.iter().enumerate() {
        lives.add(step as u64, &graph.nodes[node]);
    }
    lives.named
}

/// For each tensor the step after the last one that reads it; 0 where none does.
fn last_steps(graph: &MemoryGraph, order: &[NodeId]) -> Vec<u64> {
    let mut last = vec![0; graph.tensors.len()];
    for (step, &node) in order.iter().enumerate() {
        for tensor in graph.nodes[node].reads() {
            last[tensor] = step as u64 + 1;
        }
    }
    last
}

struct Lives<'a> {
    graph: &'a MemoryGraph,
    sharing: InputSharing,
    last: Vec<u64>,
    places: Vec<TensorPlace>,
    named: Vec<(String, Buffer)>,
}

impl Lives<'_> {
    /// Adds a node's outputs and scratch memory.
    fn add(&mut self, step: u64, node: &GraphNode) {
        for (position, tensor) in node.outputs.iter().enumerate() {
            if let Some(tensor) = *tensor {
                self.make(step, node, tensor, position == 0);
            }
        }
        if let Some(made) = node.output().filter(|_| node.scratch > 0) {
            let name = format!("{} (workspace)", self.graph.tensors[made].name);
            let buffer = Buffer::new(node.scratch, step, step + 1).aligned(ALIGNMENT);
            self.named.push((name, buffer));
        }
    }

    fn make(&mut self, step: u64, node: &GraphNode, tensor: TensorId, is_first: bool) {
        let made = &self.graph.tensors[tensor];
        // The caller's memory is never an input's: what is a view elsewhere is a copy here.
        if made.is_output {
            return;
        }
        let end = self.last[tensor].max(step + 1);
        if let Some(place) = self.view(node).filter(|_| is_first) {
            self.places[tensor] = place;
            self.extend(place, end);
            return;
        }
        let mut buffer = Buffer::new(made.bytes, step, end).aligned(ALIGNMENT);
        if let Some(input) = self
            .written_over(step, node, made.bytes)
            .filter(|_| is_first)
        {
            buffer = buffer.in_place_of(input);
        }
        self.places[tensor] = TensorPlace::Buffer(self.named.len());
        self.named.push((made.name.clone(), buffer));
    }

    fn extend(&mut self, place: TensorPlace, end: u64) {
        if let TensorPlace::Buffer(number) = place {
            let buffer = &mut self.named[number].1;
            buffer.end = buffer.end.max(end);
        }
    }

    /// Where a view's bytes are.
    fn view(&self, node: &GraphNode) -> Option<TensorPlace> {
        let is_view = self.sharing != InputSharing::Nothing && VIEWS.contains(&&*node.op);
        Some(self.places[node.input(0).filter(|_| is_view)?])
    }

    /// The buffer that a node's first output of this size can be written over: nothing reads it any more.
    fn written_over(&self, step: u64, node: &GraphNode, bytes: u64) -> Option<usize> {
        let op = &*node.op;
        let inputs = match self.sharing {
            InputSharing::Nothing => return None,
            InputSharing::Possible if ELEMENT_WISE.contains(&op) => 0..node.inputs.len(),
            InputSharing::Possible => return None,
        };
        inputs
            .into_iter()
            .find_map(|at| match self.places[node.input(at)?] {
                TensorPlace::Buffer(number) => {
                    let buffer = self.named[number].1;
                    let dies = buffer.end == step + 1 && buffer.start < step;
                    (dies && buffer.size == bytes).then_some(number)
                }
                TensorPlace::Outside => None,
            })
    }
}
