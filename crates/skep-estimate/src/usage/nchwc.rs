//! ONNX Runtime's blocked layout of images: channels in blocks of as many as a vector register has numbers.
//!
//! Convolutions of FP32 images run on `[batch, channels / block, height, width, block]`, their weights are laid out so
//! when the model is loaded, and channels are padded to whole blocks. What can stay in that layout does; a
//! `ReorderOutput` turns it back for what cannot. A sum with what a convolution made is done by that convolution, in
//! the place of the other operand, which is what residual networks save most by.
//!
//! Rules of `NchwcTransformer`, and observed with 1.31.1: 24 channels take 32, groups of 10 stay unblocked.

use std::{borrow::Cow, collections::HashMap};

use super::graph::{
    Extent, GraphNode, GraphTensor, MemoryGraph, NodeAttributes, NodeId, TensorId, TensorOrigin,
};

/// A convolution in the blocked layout.
pub(super) const CONV: &str = "com.microsoft.nchwc:Conv";

/// An upsampling in the blocked layout.
const UPSAMPLE: &str = "com.microsoft.nchwc:Upsample";

/// Operators that take whatever layout they get, element by element.
const ACTIVATIONS: [&str; 7] = [
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "com.microsoft:QuickGelu",
];

/// Pooling, in either layout.
const POOLING: [&str; 4] = [
    "MaxPool",
    "AveragePool",
    "GlobalMaxPool",
    "GlobalAveragePool",
];

/// Rewrites `graph` for blocks of `block` channels; 1 means that there is no such layout.
pub(super) fn block(graph: &mut MemoryGraph, block: usize) {
    if block <= 1 {
        return;
    }
    let mut layout = BlockedLayout {
        graph,
        block,
        blocked: HashMap::new(),
        reordered: HashMap::new(),
    };
    for node in layout.graph.order() {
        layout.visit(node);
    }
    layout.turn_back();
}

struct BlockedLayout<'a> {
    graph: &'a mut MemoryGraph,
    block: usize,
    /// Tensors that operators make in the blocked layout, by what they are in the file.
    blocked: HashMap<TensorId, TensorId>,
    /// Tensors that a `ReorderInput` makes for convolutions, which no other operator reads.
    reordered: HashMap<TensorId, TensorId>,
}

impl BlockedLayout<'_> {
    fn visit(&mut self, node: NodeId) {
        let op = self.graph.nodes[node].op.clone();
        match &*op {
            "Conv" => self.convolution(node),
            "Add" | "Sum" => self.sum(node),
            "Mul" => {
                self.same(node, 2);
            }
            "BatchNormalization" => self.normalisation(node),
            "Concat" => self.concatenation(node),
            "Resize" | "Upsample" => self.upsampling(node),
            op if POOLING.contains(&op) => {
                self.same(node, 1);
            }
            op if ACTIVATIONS.contains(&op) => self.activation(node),
            _ => {}
        }
    }

    fn is_whole(&self, channels: usize) -> bool {
        channels.is_multiple_of(self.block)
    }

    fn padded(&self, channels: usize) -> usize {
        channels.next_multiple_of(self.block)
    }

    /// A tensor for the blocked form of the image that `node` makes, which it makes from now on.
    fn blocked_output(&mut self, node: NodeId) {
        let Some(made) = self.graph.nodes[node].output() else {
            return;
        };
        let blocked = self.add_padded(made, 1, "blocked");
        self.set_extents(node, blocked);
        self.blocked.insert(made, blocked);
        self.graph.set_output(node, blocked);
        self.graph.rank_last(node);
    }

    /// What is known of the shape of what a node makes in the blocked layout: sizes, and the names of its inputs'
    /// dimensions where it passes them on. What the file declares is said of the other layout.
    fn set_extents(&mut self, node: NodeId, blocked: TensorId) {
        let op = &*self.graph.nodes[node].op;
        // All of their inputs are images, of which one may know more than the others.
        let is_image_by_image = ["Add", "Sum", "Mul", "Concat"].contains(&op);
        let named_axes = match op {
            "Resize" | "Upsample" => 0,
            op if is_image_by_image || ACTIVATIONS.contains(&op) => usize::MAX,
            _ => 1,
        };
        let images = if is_image_by_image { usize::MAX } else { 1 };
        let inputs: Vec<TensorId> = self.graph.nodes[node].reads().take(images).collect();
        let name = |axis: usize| {
            let mut known = inputs
                .iter()
                .filter_map(|&input| self.graph.tensors[input].extents.get(axis).copied());
            known.find(|&extent| extent != Extent::Unknown)
        };
        let mut extents = self.graph.tensors[blocked].extents.clone();
        for (axis, extent) in extents.iter_mut().enumerate() {
            if !matches!(extent, Extent::Fixed(_)) {
                let passed_on = name(axis).filter(|_| axis < named_axes);
                *extent = passed_on.unwrap_or(Extent::Unknown);
            }
        }
        self.graph.tensors[blocked].extents = extents;
    }

    /// A tensor like this one with whole blocks along an axis.
    fn add_padded(&mut self, tensor: TensorId, axis: usize, what: &str) -> TensorId {
        let mut padded = self.graph.tensors[tensor].clone();
        let channels = padded.dims[axis];
        let whole = self.padded(channels);
        padded.dims[axis] = whole;
        if let Some(extent) = padded.extents.get_mut(axis) {
            *extent = Extent::Fixed(whole);
        }
        let bytes = scale(padded.bytes, whole, channels);
        padded.padding += bytes - padded.bytes;
        padded.bytes = bytes;
        padded.name = format!("{} ({what})", padded.name);
        padded.is_output = false;
        self.graph.add_tensor(padded)
    }

    fn convolution(&mut self, node: NodeId) {
        let conv = &self.graph.nodes[node];
        let (Some(input), Some(weight), Some(made)) = (conv.input(0), conv.input(1), conv.output())
        else {
            return;
        };
        let GraphTensor {
            dims,
            is_fp32,
            origin,
            ..
        } = &self.graph.tensors[weight];
        let ([outputs, per_group, _, _], true, TensorOrigin::File) = (&dims[..], *is_fp32, *origin)
        else {
            return;
        };
        let (outputs, per_group, group) = (*outputs, *per_group, conv.attributes.group.max(1));
        let is_depthwise = per_group == 1 && outputs == group;
        let whole_groups = self.is_whole(per_group) && self.is_whole(outputs / group);
        let is_image = |tensor: TensorId| self.graph.tensors[tensor].dims.len() == 4;
        if !is_image(input) || !is_image(made) || (group > 1 && !is_depthwise && !whole_groups) {
            return;
        }
        // Images of few channels are read unblocked.
        let is_few = group == 1 && per_group < self.block;
        let mut inputs = conv.inputs.clone();
        let mut laid_out = self.add_padded(weight, 0, "blocked");
        if !is_few && !is_depthwise {
            laid_out = self.add_padded(laid_out, 1, "blocked");
        }
        inputs[1] = Some(laid_out);
        if !is_few {
            inputs[0] = Some(self.blocked_input(input));
        }
        self.graph.set_inputs(node, inputs);
        self.graph.nodes[node].op = Cow::Borrowed(CONV);
        self.blocked_output(node);
    }

    /// The blocked form of a tensor, made by a `ReorderInput` where there is none yet.
    fn blocked_input(&mut self, tensor: TensorId) -> TensorId {
        let known = self.blocked.get(&tensor).or(self.reordered.get(&tensor));
        if let Some(&blocked) = known {
            return blocked;
        }
        let blocked = self.add_padded(tensor, 1, "blocked");
        self.graph.tensors[blocked].origin = TensorOrigin::Run;
        self.reorder("com.microsoft.nchwc:ReorderInput", tensor, blocked);
        self.reordered.insert(tensor, blocked);
        blocked
    }

    fn reorder(&mut self, op: &'static str, from: TensorId, to: TensorId) {
        self.graph.add_node(GraphNode {
            op: Cow::Borrowed(op),
            inputs: vec![Some(from)],
            captured: Vec::new(),
            outputs: vec![Some(to)],
            attributes: NodeAttributes::default(),
            rank: 0,
            scratch: 0,
            is_removed: false,
        });
    }

    /// Takes the first `count` inputs in the blocked layout and makes the output in it, if all of them are in it and
    /// have the output's channels.
    fn same(&mut self, node: NodeId, count: usize) -> bool {
        let mut inputs = self.graph.nodes[node].inputs.clone();
        let (Some(made), true) = (self.graph.nodes[node].output(), inputs.len() >= count) else {
            return false;
        };
        // Indices of pooled values are of the file's layout.
        if self.graph.nodes[node]
            .outputs
            .iter()
            .skip(1)
            .any(Option::is_some)
        {
            return false;
        }
        let dims = self.graph.tensors[made].dims.clone();
        for input in &mut inputs[..count] {
            let Some((tensor, &blocked)) = input.and_then(|t| Some((t, self.blocked.get(&t)?)))
            else {
                return false;
            };
            let of_input = &self.graph.tensors[tensor].dims;
            let fits = if count > 1 {
                *of_input == dims
            } else {
                of_input.get(..2) == dims.get(..2)
            };
            if !fits {
                return false;
            }
            *input = Some(blocked);
        }
        self.graph.set_inputs(node, inputs);
        self.blocked_output(node);
        true
    }

    /// A scale and a bias for each channel: a convolution of each channel by itself.
    fn normalisation(&mut self, node: NodeId) {
        if self.same(node, 1) {
            self.graph.nodes[node].op = Cow::Borrowed(CONV);
        }
    }

    /// An image made larger by whole factors that the file has.
    fn upsampling(&mut self, node: NodeId) {
        let mut sizes = self.graph.nodes[node].inputs.iter().skip(1).flatten();
        let are_in_file =
            sizes.all(|&tensor| self.graph.tensors[tensor].origin == TensorOrigin::File);
        let dims = |tensor: Option<TensorId>| tensor.map(|tensor| &self.graph.tensors[tensor].dims);
        let read_and_made =
            dims(self.graph.nodes[node].input(0)).zip(dims(self.graph.nodes[node].output()));
        let are_whole = read_and_made.is_some_and(|(read, made)| {
            made.iter()
                .zip(read)
                .skip(2)
                .all(|(made, read)| made.is_multiple_of((*read).max(1)))
        });
        if are_in_file && are_whole && self.same(node, 1) {
            self.graph.nodes[node].op = Cow::Borrowed(UPSAMPLE);
        }
    }

    /// Channels of several images behind each other: only whole blocks stay together.
    fn concatenation(&mut self, node: NodeId) {
        let inputs = self.graph.nodes[node].inputs.clone();
        let mut blocked = Vec::with_capacity(inputs.len());
        for input in inputs {
            match input.and_then(|t| Some((t, *self.blocked.get(&t)?))) {
                Some((t, b)) if self.is_whole(self.graph.tensors[t].dims[1]) => {
                    blocked.push(Some(b))
                }
                _ => return,
            }
        }
        let is_image = self.graph.nodes[node]
            .output()
            .is_some_and(|t| self.graph.tensors[t].dims.len() == 4);
        if self.graph.nodes[node].attributes.axis == Some(1) && !blocked.is_empty() && is_image {
            self.graph.set_inputs(node, blocked);
            self.blocked_output(node);
        }
    }

    /// An element-wise operator: the last step of the convolution before it, if nothing else reads that.
    fn activation(&mut self, node: NodeId) {
        let input = self.graph.nodes[node].input(0);
        if let Some(conv) = input.and_then(|tensor| self.open_convolution(tensor))
            && self.graph.nodes[node].op != "com.microsoft:QuickGelu"
        {
            self.graph.nodes[conv].attributes.is_activated = true;
            self.take_over(conv, node);
        } else {
            self.same(node, 1);
        }
    }

    /// A sum of two: done by the convolution that makes one of them, over the other.
    fn sum(&mut self, node: NodeId) {
        let [Some(first), Some(second)] = self.graph.nodes[node].inputs[..] else {
            return;
        };
        let dims = |tensor: TensorId| &self.graph.tensors[tensor].dims;
        if dims(first) != dims(second) {
            return;
        }
        for (made, other) in [(first, second), (second, first)] {
            let Some(&residual) = self.blocked.get(&other) else {
                continue;
            };
            let conv = self.open_convolution(made);
            if let Some(conv) = conv.filter(|&conv| self.graph.nodes[conv].inputs.len() <= 3) {
                let mut inputs = self.graph.nodes[conv].inputs.clone();
                inputs.resize(3, None);
                inputs.push(Some(residual));
                self.graph.set_inputs(conv, inputs);
                self.take_over(conv, node);
                return;
            }
        }
        self.same(node, 2);
    }

    /// The convolution that makes this tensor for one reader, and ends without an activation.
    fn open_convolution(&self, tensor: TensorId) -> Option<NodeId> {
        let conv = self.graph.maker(*self.blocked.get(&tensor)?)?;
        let node = &self.graph.nodes[conv];
        let is_open = node.op == CONV && !node.attributes.is_activated;
        let blocked_reads = self
            .blocked
            .get(&tensor)
            .map(|&blocked| self.graph.uses(blocked));
        (is_open && self.graph.only_reader(tensor).is_some() && blocked_reads == Some(0))
            .then_some(conv)
    }

    /// A convolution makes the blocked form of what `node` made; that goes.
    fn take_over(&mut self, conv: NodeId, node: NodeId) {
        if let (Some(made), Some(blocked)) = (
            self.graph.nodes[node].output(),
            self.graph.nodes[conv].output(),
        ) {
            self.graph.remove(node);
            self.blocked.insert(made, blocked);
        }
    }

    /// What is still read in the file's layout, or is an output, is made from the blocked one.
    fn turn_back(&mut self) {
        let mut pairs: Vec<(TensorId, TensorId)> =
            self.blocked.iter().map(|(t, b)| (*t, *b)).collect();
        pairs.sort_unstable();
        for (tensor, blocked) in pairs {
            let is_made = self.graph.maker(tensor).is_some();
            if self.graph.uses(tensor) > 0
                && !is_made
                && self.graph.tensors[tensor].origin == TensorOrigin::Run
            {
                self.reorder("com.microsoft.nchwc:ReorderOutput", blocked, tensor);
            }
        }
    }
}

/// `bytes` times `to / from`, at most what can be counted.
fn scale(bytes: u64, to: usize, from: usize) -> u64 {
    let scaled = u128::from(bytes) * to as u128 / from.max(1) as u128;
    u64::try_from(scaled).unwrap_or(u64::MAX)
}
