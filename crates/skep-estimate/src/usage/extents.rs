//! What ONNX Runtime knows of shapes when it loads a model: sizes, and names of dimensions that a request decides.
//!
//! Inferred shapes are those of one request, without open sizes. A second inference, with other sizes for open
//! dimensions of inputs, shows which are fixed: those that stay. A size that equals a named dimension of an input both
//! times may carry its name. ONNX Runtime loses a name where it computes a size from values or from windows, and where
//! one of two operands lost it; there the file may declare one.

use std::collections::{BTreeMap, HashMap};

use skep_onnx::OnnxModel;
use skep_proto::onnx::{
    TensorProto, ValueInfoProto, tensor_shape_proto::dimension::Value as Dimension, type_proto,
};
use skep_shapes::{GivenShapes, InferredShapes, KnownFrom, infer_shapes};

use super::graph::{Extent, GraphNode, MemoryGraph, NodeId, TensorId};

/// Other sizes differ by multiples of this: networks of images halve theirs five times and more.
const STEP: usize = 64;

/// Operators whose positions behind batch and channels are counted out of windows.
const WINDOWS: [&str; 5] = ["Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"];

/// Operators of `ai.onnx.ml` whose outputs have no shape for ONNX Runtime until they run, in any version.
const SHAPELESS: [&str; 10] = [
    "ai.onnx.ml:CastMap",
    "ai.onnx.ml:CategoryMapper",
    "ai.onnx.ml:DictVectorizer",
    "ai.onnx.ml:FeatureVectorizer",
    "ai.onnx.ml:Imputer",
    "ai.onnx.ml:LinearRegressor",
    "ai.onnx.ml:Normalizer",
    "ai.onnx.ml:SVMClassifier",
    "ai.onnx.ml:SVMRegressor",
    "ai.onnx.ml:Scaler",
];

/// Operators that stretch their inputs to one shape.
const BROADCASTS: [&str; 20] = [
    "Add",
    "And",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mul",
    "Or",
    "Pow",
    "Sub",
    "Sum",
    "Where",
];

/// Extents of tensors by name.
#[derive(Debug)]
pub(super) struct Extents<'a> {
    inferred: &'a InferredShapes,
    /// Sizes with what is open in inputs at other sizes; `None` where the model takes no others.
    other: Option<InferredShapes>,
    /// Open dimensions of inputs that have a name: the sizes in both inferences.
    named: HashMap<(usize, usize), u32>,
    /// Numbers of names.
    numbers: HashMap<&'a str, u32>,
    declared: HashMap<&'a str, Vec<Option<&'a Dimension>>>,
    /// Whole numbers of the file, by name: shapes that `Reshape` is given.
    values: HashMap<&'a str, &'a TensorProto>,
    /// The version of `ai.onnx.ml` that the file uses.
    ml_version: i64,
}

impl<'a> Extents<'a> {
    /// For `model` with the shapes of `inferred`.
    pub(super) fn of(model: &'a OnnxModel, inferred: &'a InferredShapes) -> Self {
        let graph = model.graph();
        let declared = graph.value_info.iter().chain(&graph.output);
        let constants = graph
            .node
            .iter()
            .filter(|node| node.op_type() == "Constant");
        let constants = constants.filter_map(|node| {
            Some((
                node.output.first()?.as_str(),
                node.attribute.first()?.t.as_ref()?,
            ))
        });
        let initializers = graph
            .initializer
            .iter()
            .map(|tensor| (tensor.name(), tensor));
        let mut extents = Self {
            inferred,
            other: None,
            named: HashMap::new(),
            numbers: HashMap::new(),
            declared: declared
                .filter_map(|value| Some((value.name(), dimensions(value)?)))
                .collect(),
            values: constants.chain(initializers).collect(),
            ml_version: model
                .proto()
                .opset_import
                .iter()
                .find(|set| set.domain() == "ai.onnx.ml")
                .map_or(1, |set| set.version()),
        };
        // The batch alone where a model takes no other picture or sequence.
        for only_first in [false, true] {
            let (given, named) = extents.probe(model, only_first);
            if let Ok(other) = infer_shapes(model, &given) {
                extents.other = Some(other);
                extents.named = named;
                break;
            }
        }
        extents
    }

    /// Inputs of other sizes where they are open, and what is named among them.
    fn probe(
        &mut self,
        model: &'a OnnxModel,
        only_first: bool,
    ) -> (GivenShapes, HashMap<(usize, usize), u32>) {
        let (mut inputs, mut named) = (BTreeMap::new(), HashMap::new());
        let mut names: HashMap<&str, usize> = HashMap::new();
        let mut steps = 0;
        for value in &model.graph().input {
            let fact = self.inferred.tensors.get(value.name());
            // Initializers may stand among the inputs.
            let (Some(dims), Some(fact)) = (
                dimensions(value),
                fact.filter(|fact| fact.known == KnownFrom::Run),
            ) else {
                continue;
            };
            let mut sizes = fact.shape.dims().to_vec();
            for (at, (size, dim)) in sizes.iter_mut().zip(dims).enumerate() {
                let name = match dim {
                    Some(Dimension::DimValue(fixed)) if *fixed > 0 => continue,
                    Some(Dimension::DimParam(name)) => name.as_str(),
                    _ => "",
                };
                let before = *size;
                if !only_first || at == 0 || names.contains_key(name) {
                    let mut step = || {
                        steps += 1;
                        steps * STEP
                    };
                    *size += match name {
                        "" | "?" => step(),
                        name => *names.entry(name).or_insert_with(step),
                    };
                }
                if !name.is_empty() {
                    let number = self.number(name);
                    named.insert((before, *size), number);
                }
            }
            inputs.insert(value.name().to_owned(), sizes);
        }
        let given = GivenShapes {
            inputs,
            ..GivenShapes::default()
        };
        (given, named)
    }

    fn number(&mut self, name: &'a str) -> u32 {
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(name).or_insert(next)
    }

    /// The extents that the tensor `name` of these sizes has at best.
    pub(super) fn tensor(&self, name: &str, dims: &[usize]) -> Vec<Extent> {
        let other = match &self.other {
            Some(other) => other
                .tensors
                .get(name)
                .map_or(&[][..], |fact| fact.shape.dims()),
            None => dims,
        };
        let extent = |(at, &size): (usize, &usize)| match other.get(at) {
            Some(&now) if now == size => Extent::Fixed(size),
            Some(&now) => {
                let named = self.named.get(&(size, now));
                named.map_or(Extent::Unknown, |&number| Extent::Named(number))
            }
            None => Extent::Unknown,
        };
        dims.iter().enumerate().map(extent).collect()
    }

    /// Takes from the tensors of `graph`, whose nodes run in `order`, the names that ONNX Runtime loses on the way.
    pub(super) fn settle(&mut self, graph: &mut MemoryGraph, order: &[NodeId]) {
        for &node in order {
            let outputs: Vec<TensorId> = graph.nodes[node]
                .outputs
                .iter()
                .copied()
                .flatten()
                .collect();
            let is_shaped = self.is_shaped(graph, &graph.nodes[node]);
            for made in outputs {
                let extents = match is_shaped {
                    true => self.settled(graph, &graph.nodes[node], made),
                    false => self.without_shape(graph, &graph.nodes[node], made),
                };
                let tensor = &mut graph.tensors[made];
                tensor.is_shaped = is_shaped
                    || extents.iter().any(|extent| *extent != Extent::Unknown)
                    || self.declared.contains_key(tensor.name.as_str());
                tensor.extents = extents;
            }
        }
    }

    /// Whether the shapes of a node's outputs follow from its inputs.
    fn is_shaped(&self, graph: &MemoryGraph, node: &GraphNode) -> bool {
        let is_shapeless = match &*node.op {
            "ai.onnx.ml:LabelEncoder" => self.ml_version < 2,
            "ai.onnx.ml:TreeEnsembleClassifier" | "ai.onnx.ml:TreeEnsembleRegressor" => {
                !(3..5).contains(&self.ml_version)
            }
            op => SHAPELESS.contains(&op),
        };
        !is_shapeless && node.reads().all(|input| graph.tensors[input].is_shaped)
    }

    /// What is known of a tensor whose node's input or operator has no shape: what the file says.
    fn without_shape(
        &mut self,
        graph: &MemoryGraph,
        node: &GraphNode,
        made: TensorId,
    ) -> Vec<Extent> {
        let tensor = &graph.tensors[made];
        let shape = node.input(1).filter(|_| node.op == "Reshape");
        let shape = shape.map(|shape| graph.tensors[shape].name.as_str());
        let axes = 0..tensor.dims.len();
        let extents = axes.map(|axis| {
            let stated = shape.and_then(|shape| number(self.values.get(shape)?, axis));
            match stated.map(usize::try_from) {
                Some(Ok(size)) if size > 0 => Extent::Fixed(size),
                _ => self.declared_or_fixed(&tensor.name, axis),
            }
        });
        extents.collect()
    }

    fn settled(&mut self, graph: &MemoryGraph, node: &GraphNode, made: TensorId) -> Vec<Extent> {
        let tensor = &graph.tensors[made];
        let is_computed = node.reads().any(|input| {
            let fact = self.inferred.tensors.get(&graph.tensors[input].name);
            fact.is_some_and(|fact| fact.known == KnownFrom::Shapes)
        });
        let mut extents = tensor.extents.clone();
        for (axis, extent) in extents.iter_mut().enumerate() {
            let is_kept = match *extent {
                Extent::Fixed(_) => true,
                Extent::Unknown => false,
                Extent::Named(_) => !is_computed && self.is_kept(graph, node, made, axis, *extent),
            };
            if !is_kept {
                *extent = self.declared(&tensor.name, axis);
            }
        }
        extents
    }

    /// Whether a node passes the name of a dimension on.
    fn is_kept(
        &self,
        graph: &MemoryGraph,
        node: &GraphNode,
        made: TensorId,
        axis: usize,
        name: Extent,
    ) -> bool {
        let rank = graph.tensors[made].dims.len();
        let of = |input: TensorId| &graph.tensors[input].extents;
        match &*node.op {
            op if WINDOWS.contains(&op) && axis >= 2 => false,
            "Resize" | "Upsample" => false,
            op if BROADCASTS.contains(&op) => node.reads().all(|input| {
                // Aligned at the last dimension; what is missing is 1.
                let at = (axis + of(input).len()).checked_sub(rank);
                let extent = at.and_then(|at| of(input).get(at));
                extent.is_none_or(|extent| [Extent::Fixed(1), name].contains(extent))
            }),
            "Reshape" => {
                let shape = node.input(1).map(|shape| &*graph.tensors[shape].name);
                let copies = shape.and_then(|shape| number(self.values.get(shape)?, axis));
                copies == Some(0)
                    && node
                        .input(0)
                        .is_some_and(|input| of(input).get(axis) == Some(&name))
            }
            _ => node.reads().any(|input| of(input).contains(&name)),
        }
    }

    /// A tensor's dimension as the file declares it, sizes included.
    fn declared_or_fixed(&mut self, tensor: &str, axis: usize) -> Extent {
        let declared = self.declared.get(tensor);
        match declared.and_then(|dims| dims.get(axis).copied().flatten()) {
            Some(Dimension::DimValue(size)) if *size > 0 => {
                usize::try_from(*size).map_or(Extent::Unknown, Extent::Fixed)
            }
            _ => self.declared(tensor, axis),
        }
    }

    /// A tensor's dimension as the file declares it.
    fn declared(&mut self, tensor: &str, axis: usize) -> Extent {
        let declared = self.declared.get(tensor);
        match declared.and_then(|dims| dims.get(axis).copied().flatten()) {
            Some(Dimension::DimParam(name)) if !name.is_empty() => Extent::Named(self.number(name)),
            _ => Extent::Unknown,
        }
    }
}

/// One of the whole numbers that a tensor of the file holds.
fn number(tensor: &TensorProto, at: usize) -> Option<i64> {
    match tensor.raw_data.as_deref() {
        Some(raw) if !raw.is_empty() => {
            let (numbers, _) = raw.as_chunks::<8>();
            numbers.get(at).map(|&number| i64::from_le_bytes(number))
        }
        _ => tensor.int64_data.get(at).copied(),
    }
}

/// The declared dimensions of a tensor.
fn dimensions(value: &ValueInfoProto) -> Option<Vec<Option<&Dimension>>> {
    match value.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => {
            let dims = tensor.shape.as_ref()?.dim.iter();
            Some(dims.map(|dim| dim.value.as_ref()).collect())
        }
        _ => None,
    }
}
