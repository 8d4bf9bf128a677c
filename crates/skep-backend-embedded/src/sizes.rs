//! What a run allocates, known before it begins.
//!
//! The engine ends the process when it has no memory for a tensor, so a run that needs too much has to be refused before it.
//! For most models that can be told: the sizes of all tensors follow from the shapes of the inputs. Where an operator makes
//! a tensor as large as *values* say that only a run knows, or a graph lies within a node, nothing can be told, and the model
//! belongs into a process of its own ([`unbounded`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use skep_backend::{BackendError, ErrorKind};
use skep_onnx::OnnxModel;
use skep_proto::onnx::{
    GraphProto, NodeProto, TensorProto, ValueInfoProto,
    type_proto::{self, Value},
};
use skep_shapes::{GivenShapes, InferError, InferredShapes, infer_shapes};
use skep_types::{ModelSignature, Shape};
use smallvec::SmallVec;

use crate::weights;

/// Operators whose outputs are as large as the values of these inputs say. Others give at most what follows from the shapes
/// of theirs, such as the positions of all elements.
const SIZED_BY_VALUES: [(&str, &[usize]); 12] = [
    ("CenterCropPad", &[1]),
    ("Col2Im", &[1]),
    ("ConstantOfShape", &[0]),
    ("Expand", &[1]),
    ("Loop", &[0]),
    ("MaxUnpool", &[2]),
    ("OneHot", &[1]),
    ("Pad", &[1]),
    ("Range", &[0, 1, 2]),
    ("Resize", &[2, 3]),
    ("Tile", &[1]),
    ("Upsample", &[1]),
];

/// Estimates that are kept: those of usual batch sizes.
const MAX_KNOWN: usize = 64;

/// Shapes of a run's inputs, each with its rank before it.
type Key = SmallVec<[usize; 16]>;

/// What runs of a model allocate.
pub(crate) struct Sizes {
    /// Without the values of its weights.
    onnx: OnnxModel,
    /// Whether sizes follow from shapes. A model whose sizes do not runs in a process of its own.
    are_bounded: bool,
    known: Mutex<HashMap<Key, Result<u64, BackendError>>>,
}

impl Sizes {
    pub(crate) fn of(onnx: &OnnxModel) -> Self {
        let onnx = bare(onnx);
        Self {
            are_bounded: unbounded_bare(&onnx).is_none(),
            onnx,
            known: Mutex::default(),
        }
    }

    /// The most bytes that a run with inputs of these shapes has in use at once for its tensors, its inputs not counted; 0 for
    /// a model whose sizes are known only in a run.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for shapes that the graph cannot compute with, [`ErrorKind::Exhausted`] if the sizes
    /// turn out to be known only in a run.
    pub(crate) fn peak(
        &self,
        signature: &ModelSignature,
        shapes: &[&Shape],
    ) -> Result<u64, BackendError> {
        if !self.are_bounded {
            return Ok(0);
        }
        let mut key = Key::new();
        for shape in shapes {
            key.push(shape.rank());
            key.extend_from_slice(shape.dims());
        }
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peak) = lock().get(&key) {
            return peak.clone();
        }
        let named = signature.inputs.iter().zip(shapes);
        let inputs = named.map(|(spec, shape)| (spec.name.clone(), shape.dims().to_vec()));
        let given = GivenShapes {
            inputs: inputs.collect(),
            ..GivenShapes::default()
        };
        let inferred = infer_shapes(&self.onnx, &given);
        let peak = inferred.map(|inferred| peak(self.onnx.graph(), &inferred));
        let peak = peak.map_err(|error| {
            if only_a_run_tells(&error) {
                let text = format!(
                    "the memory that this run takes cannot be known beforehand, and the embedded engine ends its process when there is too little: {error}\n  \
                     the parameter `isolation` with the value `process` runs the model in a process of its own"
                );
                return BackendError::new(ErrorKind::Exhausted, text);
            }
            BackendError::new(ErrorKind::InvalidArgument, format!("embedded engine: {error}"))
        });
        let mut known = lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(key, peak.clone());
        peak
    }
}

/// Whether sizes are not known for want of values, or of a rule, and not since something does not fit.
const fn only_a_run_tells(error: &InferError) -> bool {
    matches!(
        error,
        InferError::Undetermined { .. }
            | InferError::UnknownOperator { .. }
            | InferError::UnknownType { .. }
            | InferError::NotATensor { .. }
    )
}

/// The most bytes of tensors that nodes give which are in use at once, each from its node to the last one that reads it.
fn peak(graph: &GraphProto, inferred: &InferredShapes) -> u64 {
    let bytes = |name: &String| {
        let tensor = inferred.tensors.get(name);
        tensor.map_or(0, |tensor| tensor.bytes() as u64)
    };
    let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name()).collect();
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (step, index) in inferred.order.iter().enumerate() {
        for input in &graph.node[*index].input {
            last.insert(input, step);
        }
    }
    let made: HashSet<&str> = graph
        .node
        .iter()
        .flat_map(|node| &node.output)
        .map(String::as_str)
        .collect();
    let (mut live, mut peak) = (0_u64, 0);
    for (step, index) in inferred.order.iter().enumerate() {
        let node = &graph.node[*index];
        live = node
            .output
            .iter()
            .map(bytes)
            .fold(live, u64::saturating_add);
        peak = peak.max(live);
        let mut freed = HashSet::new();
        for input in &node.input {
            let is_over = last.get(input.as_str()) == Some(&step);
            let is_given = made.contains(input.as_str()) && !outputs.contains(input.as_str());
            if is_over && is_given && freed.insert(input) {
                live = live.saturating_sub(bytes(input));
            }
        }
    }
    peak
}

fn tensor(info: &mut ValueInfoProto) -> Option<&mut type_proto::Tensor> {
    match info.r#type.as_mut()?.value.as_mut()? {
        Value::TensorType(tensor) => Some(tensor),
        _ => None,
    }
}

/// The model without what the engine does not look at either: the names of dimensions, which may say that what it broadcasts
/// is equal, and shapes of tensors that nodes give; nor the values of its weights.
fn bare(onnx: &OnnxModel) -> OnnxModel {
    use skep_proto::onnx::tensor_shape_proto::dimension::Value as Dimension;
    let mut onnx = onnx.clone();
    let proto = onnx.proto_mut();
    weights::forget_large(proto);
    if let Some(graph) = &mut proto.graph {
        for dim in graph
            .input
            .iter_mut()
            .filter_map(tensor)
            .flat_map(|tensor| tensor.shape.iter_mut())
            .flat_map(|shape| &mut shape.dim)
        {
            dim.value
                .take_if(|value| matches!(value, Dimension::DimParam(_)));
        }
        graph.value_info.clear();
        for output in graph.output.iter_mut().filter_map(tensor) {
            output.shape = None;
        }
    }
    onnx
}

/// Why it cannot be told before a run how much that allocates, if that is so: the node that makes a tensor of a size which
/// only a run tells.
pub(crate) fn unbounded(onnx: &OnnxModel) -> Option<String> {
    unbounded_bare(&bare(onnx))
}

fn unbounded_bare(onnx: &OnnxModel) -> Option<String> {
    let mut suspects: Vec<(&NodeProto, Vec<&str>)> = Vec::new();
    let mut constants: HashSet<&str> = HashSet::new();
    onnx.visit(&mut |graph| {
        constants.extend(graph.initializer.iter().map(TensorProto::name));
        for node in &graph.node {
            if node.op_type() == "Constant" {
                constants.extend(node.output.iter().map(String::as_str));
            }
            suspects.extend(suspect(node));
        }
    });
    suspects.retain(|(_, sizes)| sizes.iter().any(|size| !constants.contains(size)));
    if let Some(node) = onnx.graph().node.iter().find(|node| holds_a_graph(node)) {
        let what = format!("operator {} has graphs of its own", named(node));
        return Some(format!("{what}, and {WHY_NOT_HERE}"));
    }
    let inferred = match infer_examples(onnx) {
        Some(Err(error)) if suspects.is_empty() => {
            return Some(format!(
                "the sizes of its tensors are known only in a run ({error}), and {WHY_NOT_HERE}"
            ));
        }
        other => other.and_then(Result::ok),
    };
    let follows = |name: &str| {
        let tensor = inferred
            .as_ref()
            .and_then(|inferred| inferred.tensors.get(name));
        constants.contains(name) || tensor.is_some_and(|tensor| tensor.is_constant())
    };
    let culprit = suspects
        .iter()
        .find(|(_, sizes)| !sizes.iter().all(|size| follows(size)));
    culprit.map(|(node, _)| {
        let what = format!(
            "operator {} makes a tensor of a size that is known only in a run",
            named(node)
        );
        format!("{what}, and {WHY_NOT_HERE}")
    })
}

const WHY_NOT_HERE: &str =
    "the embedded engine ends its process when there is no memory for a tensor";

/// A node's operator, and its name if it has one.
fn named(node: &NodeProto) -> String {
    match node.name() {
        "" => format!("`{}`", node.op_type()),
        name => format!("`{}` (node `{name}`)", node.op_type()),
    }
}

/// Whether a node computes graphs of its own, of whose tensors nothing is known before.
fn holds_a_graph(node: &NodeProto) -> bool {
    let mut attributes = node.attribute.iter();
    attributes.any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty())
}

/// Sizes that open dimensions are tried with: not all suit every model.
const EXAMPLES: [usize; 3] = [2, 64, 256];

/// What is inferred for inputs of some shapes, or why only a run tells; `None` where none of the shapes suits the model.
fn infer_examples(onnx: &OnnxModel) -> Option<Result<InferredShapes, InferError>> {
    EXAMPLES
        .iter()
        .find_map(|size| match infer_shapes(onnx, &examples(onnx, *size)?) {
            Err(error) if !only_a_run_tells(&error) => None,
            told => Some(told),
        })
}

/// A node whose outputs are as large as values say, and the names of these.
fn suspect(node: &NodeProto) -> Option<(&NodeProto, Vec<&str>)> {
    let known = SIZED_BY_VALUES
        .iter()
        .find(|(operator, _)| *operator == node.op_type());
    let (_, positions) = known?;
    let names = positions.iter().filter_map(|at| node.input.get(*at));
    let names = names.map(String::as_str).filter(|name| !name.is_empty());
    Some((node, names.collect()))
}

/// Shapes that inputs can have: `size` wherever the file leaves a dimension open.
fn examples(onnx: &OnnxModel, size: usize) -> Option<GivenShapes> {
    use skep_proto::onnx::tensor_shape_proto::dimension::Value as Dimension;
    let graph = onnx.graph();
    let defaults: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    let mut inputs = BTreeMap::new();
    for input in &graph.input {
        if defaults.contains(input.name()) {
            continue;
        }
        let Some(Value::TensorType(tensor)) = input.r#type.as_ref()?.value.as_ref() else {
            return None;
        };
        let dims = tensor
            .shape
            .as_ref()?
            .dim
            .iter()
            .map(|dim| match dim.value {
                Some(Dimension::DimValue(size)) => usize::try_from(size).unwrap_or(1).max(1),
                _ => size,
            });
        inputs.insert(input.name().to_owned(), dims.collect());
    }
    Some(GivenShapes {
        inputs,
        ..GivenShapes::default()
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use skep_backend::conformance::{Graph, fp32, int64, sized_by_value};
    use skep_types::DataType;

    use super::*;

    fn model(graph: Graph) -> OnnxModel {
        OnnxModel::decode(Bytes::from(graph.encode())).expect("a model")
    }

    #[test]
    fn sizes_that_follow_from_shapes_are_told_beforehand() {
        let weights = fp32(&[4, 1000], &[0.0; 4000]);
        let onnx = model(
            Graph::new()
                .input("x", DataType::Fp32, &["n", "4"])
                .output("y", DataType::Fp32, &["n", "1000"])
                .initializer("w", &weights)
                .node("MatMul", &["x", "w"], &["a"], &[])
                .node("Relu", &["a"], &["b"], &[])
                .node("Relu", &["b"], &["y"], &[]),
        );
        assert_eq!(unbounded(&onnx), None);
        let sizes = Sizes::of(&onnx);
        let signature = onnx.signature().expect("a signature");
        let shape = |n: usize| Shape::new(&[n, 4]).expect("a shape");
        // Two of the three are in use at once.
        for n in [1, 7, 7] {
            let peak = sizes.peak(&signature, &[&shape(n)]);
            assert_eq!(peak, Ok(2 * 4000 * n as u64));
        }
        let other = Shape::new(&[7, 5]).expect("a shape");
        let refused = sizes.peak(&signature, &[&other]).expect_err("does not fit");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn names_of_dimensions_and_declared_outputs_do_not_refuse_what_the_engine_computes() {
        let onnx = model(
            Graph::new()
                .input("x", DataType::Fp32, &["batch", "4"])
                .input("b", DataType::Fp32, &["batch", "4"])
                .output("y", DataType::Fp32, &["2", "4"])
                .node("Add", &["x", "b"], &["y"], &[]),
        );
        assert_eq!(unbounded(&onnx), None);
        let signature = onnx.signature().expect("a signature");
        let shape = |rows: usize| Shape::new(&[rows, 4]).expect("a shape");
        let (x, b) = (shape(3), shape(1));
        assert_eq!(Sizes::of(&onnx).peak(&signature, &[&x, &b]), Ok(48));
    }

    #[test]
    fn shapes_that_are_computed_from_shapes_are_known() {
        let onnx = model(
            Graph::new()
                .input("x", DataType::Fp32, &["n", "k"])
                .input("one", DataType::Fp32, &["1"])
                .output("y", DataType::Fp32, &["n", "k"])
                .node("Shape", &["x"], &["s"], &[])
                .node("Expand", &["one", "s"], &["y"], &[]),
        );
        assert_eq!(unbounded(&onnx), None);
        let sizes = Sizes::of(&onnx);
        let signature = onnx.signature().expect("a signature");
        let (x, one) = (
            Shape::new(&[1000, 1000]).expect("a shape"),
            Shape::new(&[1]).expect("a shape"),
        );
        let peak = sizes.peak(&signature, &[&x, &one]).expect("known");
        assert!((4_000_000..4_000_100).contains(&peak), "{peak}");
    }

    #[test]
    fn sizes_that_values_say_are_not_bounded() {
        let why = unbounded(&model(sized_by_value(false))).expect("unbounded");
        assert!(why.starts_with("operator `ConstantOfShape`"), "{why}");
        let tiled = |repeats: bool| {
            let graph = Graph::new()
                .input("x", DataType::Fp32, &["n"])
                .output("y", DataType::Fp32, &["m"])
                .node("Tile", &["x", "r"], &["y"], &[]);
            if repeats {
                graph.initializer("r", &int64(&[1], &[3]))
            } else {
                graph.input("r", DataType::Int64, &["1"])
            }
        };
        assert!(unbounded(&model(tiled(false))).is_some());
        assert_eq!(unbounded(&model(tiled(true))), None, "the file says it");
    }

    #[test]
    fn sizes_within_inner_graphs_and_behind_open_shapes_are_not_bounded() {
        let outer = |graph: Graph| {
            graph
                .input("x", DataType::Fp32, &["n", "1"])
                .node("Transpose", &["x"], &["t"], &[])
                .node("MatMul", &["x", "t"], &["m"], &[])
        };
        let onnx = model(
            outer(Graph::new())
                .output("y", DataType::Int64, &["2", "k"])
                .node("NonZero", &["m"], &["y"], &[]),
        );
        assert!(unbounded(&onnx).is_some(), "how many are not zero");
        let sizes = Sizes::of(&onnx);
        let signature = onnx.signature().expect("a signature");
        let shape = Shape::new(&[3, 1]).expect("a shape");
        assert_eq!(
            sizes.peak(&signature, &[&shape]),
            Ok(0),
            "by a process of its own"
        );
        let mut onnx = model(
            Graph::new()
                .input("x", DataType::Fp32, &["n"])
                .output("y", DataType::Fp32, &["n"])
                .node("Relu", &["x"], &["y"], &[]),
        );
        assert_eq!(unbounded(&onnx), None);
        let inner = onnx.graph().clone();
        let graph = onnx.proto_mut().graph.as_mut().expect("a graph");
        graph.node[0]
            .attribute
            .push(skep_proto::onnx::AttributeProto {
                g: Some(inner),
                ..Default::default()
            });
        let why = unbounded(&onnx).expect("an inner graph");
        assert!(why.contains("has graphs of its own"), "{why}");
    }
}
