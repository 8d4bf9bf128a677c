//! An ONNX graph with numbers for names, reduced to what rewriting and live ranges need.

use std::borrow::Cow;

/// Number of a tensor in its graph.
pub(super) type TensorId = usize;
/// Number of a node in its graph.
pub(super) type NodeId = usize;

/// Where a tensor comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TensorOrigin {
    /// It is in the file, or follows from it: a weight.
    File,
    /// The caller hands it in.
    Caller,
    /// A node makes it in a run.
    Run,
}

/// What is known of a dimension when a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Extent {
    /// A size.
    Fixed(usize),
    /// A name, by its number: whatever carries it has one size.
    Named(u32),
    /// Nothing.
    Unknown,
}

/// A tensor.
#[derive(Debug, Clone)]
pub(super) struct GraphTensor {
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
    /// What of its dimensions ONNX Runtime knows when it loads the model; empty where that decides nothing.
    pub(super) extents: Vec<Extent>,
    /// Whether it knows how many dimensions there are: without that it neither rewrites nor shares.
    pub(super) is_shaped: bool,
    pub(super) bytes: u64,
    /// How many of the bytes only fill up a layout.
    pub(super) padding: u64,
    /// Whether it is FP32, which the rewrites of convolutions and matrix products are for.
    pub(super) is_fp32: bool,
    pub(super) origin: TensorOrigin,
    /// Whether it is an output of the graph, which lies in the caller's memory.
    pub(super) is_output: bool,
}

/// A node. Operators of other domains than ONNX's own carry theirs: `com.microsoft:BiasGelu`.
#[derive(Debug, Clone)]
pub(super) struct GraphNode {
    pub(super) op: Cow<'static, str>,
    pub(super) inputs: Vec<Option<TensorId>>,
    /// What graphs in its attributes read of this one.
    pub(super) captured: Vec<TensorId>,
    pub(super) outputs: Vec<Option<TensorId>>,
    pub(super) attributes: NodeAttributes,
    /// Orders nodes that may run in any order: ONNX Runtime's index of a node.
    pub(super) rank: usize,
    /// Bytes that it needs for itself while it runs.
    pub(super) scratch: u64,
    pub(super) is_removed: bool,
}

/// The attributes that matter to memory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NodeAttributes {
    pub(super) group: usize,
    pub(super) axis: Option<i64>,
    pub(super) trans_b: bool,
    /// A convolution that an activation was fused into: nothing else follows within it.
    pub(super) is_activated: bool,
}

impl GraphNode {
    /// An input that is there.
    pub(super) fn input(&self, at: usize) -> Option<TensorId> {
        self.inputs.get(at).copied().flatten()
    }

    /// Its first output.
    pub(super) fn output(&self) -> Option<TensorId> {
        self.outputs.first().copied().flatten()
    }

    /// Everything that it reads, as often as it does.
    pub(super) fn reads(&self) -> impl Iterator<Item = TensorId> + '_ {
        let inputs = self.inputs.iter().copied().flatten();
        inputs.chain(self.captured.iter().copied())
    }
}

/// How often a tensor is read. The sum of the readers' numbers is the reader where there is one: adding and removing
/// take one step however many there are.
#[derive(Debug, Clone, Copy, Default)]
struct Readers {
    count: usize,
    sum: usize,
}

/// Tensors and nodes, with the maker and the readers of each tensor.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryGraph {
    pub(super) tensors: Vec<GraphTensor>,
    pub(super) nodes: Vec<GraphNode>,
    makers: Vec<Option<NodeId>>,
    readers: Vec<Readers>,
    next_rank: usize,
}

impl MemoryGraph {
    /// A further tensor.
    pub(super) fn add_tensor(&mut self, tensor: GraphTensor) -> TensorId {
        self.tensors.push(tensor);
        self.makers.push(None);
        self.readers.push(Readers::default());
        self.tensors.len() - 1
    }

    /// A further node, ranked behind all others.
    pub(super) fn add_node(&mut self, node: GraphNode) -> NodeId {
        let id = self.nodes.len();
        for tensor in node.reads() {
            self.readers[tensor].count += 1;
            self.readers[tensor].sum = self.readers[tensor].sum.wrapping_add(id);
        }
        for tensor in node.outputs.iter().copied().flatten() {
            self.makers[tensor] = Some(id);
        }
        self.nodes.push(node);
        self.rank_last(id);
        id
    }

    /// Ranks a node behind all others, as ONNX Runtime does with a new node.
    pub(super) fn rank_last(&mut self, node: NodeId) {
        self.nodes[node].rank = self.next_rank;
        self.next_rank += 1;
    }

    /// The node that makes a tensor.
    pub(super) fn maker(&self, tensor: TensorId) -> Option<NodeId> {
        self.makers[tensor]
    }

    /// How often a tensor is read, by nodes and the caller.
    pub(super) fn uses(&self, tensor: TensorId) -> usize {
        self.readers[tensor].count + usize::from(self.tensors[tensor].is_output)
    }

    /// The node that alone reads a tensor, and once.
    pub(super) fn only_reader(&self, tensor: TensorId) -> Option<NodeId> {
        (self.uses(tensor) == 1 && !self.tensors[tensor].is_output)
            .then_some(self.readers[tensor].sum)
    }

    /// The node that alone reads what a node makes.
    pub(super) fn follower(&self, node: NodeId) -> Option<NodeId> {
        self.only_reader(self.nodes[node].output()?)
    }

    /// Takes a node out; what it made has no maker.
    pub(super) fn remove(&mut self, node: NodeId) {
        let reads: Vec<TensorId> = self.nodes[node].reads().collect();
        for tensor in reads {
            self.unread(node, tensor);
        }
        for tensor in self.nodes[node].outputs.clone().into_iter().flatten() {
            if self.makers[tensor] == Some(node) {
                self.makers[tensor] = None;
            }
        }
        self.nodes[node].is_removed = true;
    }

    fn unread(&mut self, node: NodeId, tensor: TensorId) {
        self.readers[tensor].count -= 1;
        self.readers[tensor].sum = self.readers[tensor].sum.wrapping_sub(node);
    }

    /// `node` does `last`'s work as well, and makes what that made; `last` goes.
    pub(super) fn absorb(&mut self, node: NodeId, last: NodeId) {
        let made = self.nodes[last].output();
        self.remove(last);
        if let Some(middle) = self.nodes[node].output() {
            self.makers[middle] = None;
        }
        self.nodes[node].outputs = vec![made];
        if let Some(made) = made {
            self.makers[made] = Some(node);
        }
    }

    /// Has a node read these inputs from now on.
    pub(super) fn set_inputs(&mut self, node: NodeId, inputs: Vec<Option<TensorId>>) {
        for tensor in self.nodes[node].inputs.clone().into_iter().flatten() {
            self.unread(node, tensor);
        }
        for &tensor in inputs.iter().flatten() {
            self.readers[tensor].count += 1;
            self.readers[tensor].sum = self.readers[tensor].sum.wrapping_add(node);
        }
        self.nodes[node].inputs = inputs;
    }

    /// Has a node make this tensor in place of its first output.
    pub(super) fn set_output(&mut self, node: NodeId, made: TensorId) {
        if let Some(before) = self.nodes[node].output() {
            self.makers[before] = None;
        }
        self.nodes[node].outputs = vec![Some(made)];
        self.makers[made] = Some(node);
    }

    /// Nodes that are still there, in the order of their numbers.
    pub(super) fn alive(&self) -> impl Iterator<Item = NodeId> + '_ {
        (0..self.nodes.len()).filter(|&node| !self.nodes[node].is_removed)
    }

    /// Takes out what nothing reads, back to what feeds that alone.
    pub(super) fn remove_unread(&mut self) {
        let mut pending: Vec<NodeId> = self.alive().collect();
        while let Some(node) = pending.pop() {
            let outputs = self.nodes[node].outputs.iter().copied().flatten();
            let is_read = outputs.map(|tensor| self.uses(tensor)).any(|uses| uses > 0);
            if self.nodes[node].is_removed || is_read {
                continue;
            }
            let feeds: Vec<NodeId> = self.nodes[node]
                .reads()
                .filter_map(|tensor| self.maker(tensor))
                .collect();
            self.remove(node);
            pending.extend(feeds);
        }
    }

    /// The nodes in the order in which ONNX Runtime runs them: depth first from the nodes that nothing follows, the
    /// highest rank first (`Graph::ReverseDFSFrom` with `NodeCompare`). A graph has no cycles.
    pub(super) fn order(&self) -> Vec<NodeId> {
        enum OrderVisit {
            Enter(NodeId),
            Leave(NodeId),
        }
        let is_leaf = |node: &NodeId| {
            let outputs = self.nodes[*node].outputs.iter().copied().flatten();
            outputs
                .map(|tensor| self.readers[tensor].count)
                .all(|count| count == 0)
        };
        let mut leaves: Vec<NodeId> = self.alive().filter(is_leaf).collect();
        leaves.sort_by_key(|&node| self.nodes[node].rank);
        let mut stack: Vec<OrderVisit> = leaves.into_iter().map(OrderVisit::Enter).collect();
        let mut is_visited = vec![false; self.nodes.len()];
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(visit) = stack.pop() {
            let node = match visit {
                OrderVisit::Leave(node) => {
                    order.push(node);
                    continue;
                }
                OrderVisit::Enter(node) if is_visited[node] => continue,
                OrderVisit::Enter(node) => node,
            };
            is_visited[node] = true;
            stack.push(OrderVisit::Leave(node));
            let makers = self.nodes[node]
                .reads()
                .filter_map(|tensor| self.maker(tensor));
            let mut feeds: Vec<NodeId> = makers.filter(|&feed| !is_visited[feed]).collect();
            feeds.sort_by_key(|&feed| self.nodes[feed].rank);
            stack.extend(feeds.into_iter().map(OrderVisit::Enter));
        }
        order
    }
}
