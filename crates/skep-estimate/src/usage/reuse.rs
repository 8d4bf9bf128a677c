//! Which memory ONNX Runtime's tensors share: its allocation planner, replayed on the predicted graph.
//!
//! The planner walks the nodes in their order. An output lies where a view's input lies, or over an input that nothing
//! reads afterwards, if the operator's kernel allows that; else it takes over the block that was released last by a
//! tensor of the same element size and the same shape; else it gets a block. It decides when the model is loaded, on
//! what it knows of shapes then: sizes and names of dimensions. A block that is taken over later is not freed in
//! between, so memory that no tensor lives in stays in use.

use std::collections::HashMap;

use skep_planner::Buffer;

use super::{
    graph::{Extent, GraphNode, MemoryGraph, NodeId, TensorId},
    lives::{ALIGNMENT, VIEWS},
    nchwc,
};

/// Operators of which ONNX Runtime writes the output over the first input. Observed with 1.31.1, by the blocks that
/// runs of each operator take; `Add`, `Mul` and others of two inputs, and `Erf`, `Sqrt`, `Neg` and the like, take a
/// block of their own there.
const WRITES_OVER_FIRST: [&str; 14] = [
    "Relu",
    "Sigmoid",
    "Tanh",
    "Clip",
    "LeakyRelu",
    "HardSigmoid",
    "ThresholdedRelu",
    "Softmax",
    "LogSoftmax",
    "Softplus",
    "Softsign",
    "Elu",
    "Celu",
    "Selu",
];

/// The input of a fused convolution that is added to its result, in its place.
const RESIDUAL: usize = 3;

/// A block, from the first tensor in it to the last.
#[derive(Debug)]
struct ReusedBlock {
    name: String,
    buffer: Buffer,
    /// The tensor that it was allocated for, whose shape it has.
    tensor: TensorId,
    /// Reads still to come.
    uses: usize,
}

#[derive(Debug)]
struct Reuse<'a> {
    graph: &'a MemoryGraph,
    /// The block of each tensor; `None` for weights and what lies in the caller's memory.
    places: Vec<Option<usize>>,
    blocks: Vec<ReusedBlock>,
    /// Blocks that nothing needs, by bytes and shape; the one given up last at the end.
    free: HashMap<BlockForm<'a>, Vec<usize>>,
}

/// What two tensors must have in common for one to take over the other's block.
type BlockForm<'a> = (u64, &'a [Extent]);

/// The form of a tensor; `None` where its shape is not known when the model is loaded.
fn form(graph: &MemoryGraph, tensor: TensorId) -> Option<BlockForm<'_>> {
    let tensor = &graph.tensors[tensor];
    let is_known = tensor.is_shaped && !tensor.extents.contains(&Extent::Unknown);
    is_known.then_some((tensor.bytes, &tensor.extents))
}

/// The blocks and scratch memory that the nodes of `graph` need when they run in `order`: names and records.
pub(super) fn buffers(graph: &MemoryGraph, order: &[NodeId]) -> Vec<(String, Buffer)> {
    let mut reuse = Reuse {
        graph,
        places: vec![None; graph.tensors.len()],
        blocks: Vec::new(),
        free: HashMap::new(),
    };
    for (step, &node) in order.iter().enumerate() {
        reuse.run(step as u64, &graph.nodes[node]);
    }
    let blocks = reuse.blocks.into_iter();
    blocks.map(|block| (block.name, block.buffer)).collect()
}

impl Reuse<'_> {
    fn run(&mut self, step: u64, node: &GraphNode) {
        let outputs = node.outputs.iter().enumerate();
        for (position, tensor) in outputs.filter_map(|(at, tensor)| Some((at, (*tensor)?))) {
            // The caller's memory is never an input's: what is a view elsewhere is a copy here.
            if !self.graph.tensors[tensor].is_output {
                self.places[tensor] = self.place(step, node, tensor, position == 0);
            }
        }
        if let Some(made) = node.output().filter(|_| node.scratch > 0) {
            let name = format!("{} (workspace)", self.graph.tensors[made].name);
            let number = self.allocate(name, node.scratch, made, step);
            self.blocks[number].uses = 0;
        }
        // A node holds what it makes while it runs, so that what nothing reads is given up behind it.
        let made = node.outputs.iter().copied().flatten();
        for tensor in node.reads().chain(made) {
            self.release(step, tensor);
        }
    }

    /// The block of what a node makes; a view of what is in none is in none.
    fn place(
        &mut self,
        step: u64,
        node: &GraphNode,
        tensor: TensorId,
        is_first: bool,
    ) -> Option<usize> {
        let uses = self.graph.uses(tensor) + 1;
        let view = node
            .input(0)
            .filter(|_| is_first && VIEWS.contains(&&*node.op));
        let place = match view {
            Some(viewed) => self.places[viewed],
            None => self
                .written_over(node, tensor)
                .filter(|_| is_first)
                .or_else(|| self.taken_over(tensor))
                .or_else(|| {
                    let made = &self.graph.tensors[tensor];
                    Some(self.allocate(made.name.clone(), made.bytes, tensor, step))
                }),
        };
        self.blocks[place?].uses += uses;
        place
    }

    fn allocate(&mut self, name: String, bytes: u64, tensor: TensorId, step: u64) -> usize {
        self.blocks.push(ReusedBlock {
            name,
            buffer: Buffer::new(bytes, step, step + 1).aligned(ALIGNMENT),
            tensor,
            uses: 0,
        });
        self.blocks.len() - 1
    }

    /// The block of an input that only this node still reads, and whose kernel may write over it.
    fn written_over(&self, node: &GraphNode, tensor: TensorId) -> Option<usize> {
        let at = match &*node.op {
            op if WRITES_OVER_FIRST.contains(&op) => 0,
            nchwc::CONV => RESIDUAL,
            _ => return None,
        };
        let input = node.input(at)?;
        let place = self.places[input]?;
        let form = |tensor| form(self.graph, tensor);
        let is_alike = form(input).is_some() && form(input) == form(tensor);
        (self.blocks[place].uses == 1 && is_alike).then_some(place)
    }

    /// The block that was given up last, of those of this tensor's form. Scalars take none over.
    fn taken_over(&mut self, tensor: TensorId) -> Option<usize> {
        let form = form(self.graph, tensor).filter(|(_, extents)| !extents.is_empty())?;
        self.free.get_mut(&form)?.pop()
    }

    /// Counts one read as done.
    fn release(&mut self, step: u64, tensor: TensorId) {
        let Some(number) = self.places[tensor] else {
            return;
        };
        let block = &mut self.blocks[number];
        block.buffer.end = block.buffer.end.max(step + 1);
        block.uses = block.uses.saturating_sub(1);
        if block.uses > 0 {
            return;
        }
        if let Some(form) = form(self.graph, block.tensor) {
            self.free.entry(form).or_default().push(number);
        }
    }
}
