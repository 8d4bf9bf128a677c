//! Computes what a run allocates before it begins.
//!
//! The engine ends the process if it has no memory for a tensor, so a run that needs too much must be refused
//! beforehand. For most models this works: the sizes of all tensors follow from the shapes of the inputs. If the size
//! of a tensor depends on *values* that only a run computes, or a node contains a graph, the sizes are unknown, and
//! the model must run in a worker process ([`unbounded`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard},
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

/// Operators whose output sizes depend on the values of these inputs. The shapes of the inputs bound the outputs of
/// all other operators, for example by the positions of all elements.
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

/// The most estimates that are kept: enough for the usual batch sizes.
const MAX_KNOWN: usize = 64;

/// Shapes of a run's inputs, each with its rank before it.
type ShapeKey = SmallVec<[usize; 16]>;

/// What runs of a model allocate.
pub(crate) struct RunSizes {
    /// The model without the values of its weights.
    onnx: OnnxModel,
    /// Whether sizes follow from shapes. Otherwise the model runs in a worker process.
    are_bounded: bool,
    known: Mutex<HashMap<ShapeKey, Result<u64, BackendError>>>,
}

impl RunSizes {
    pub(crate) fn of(onnx: &OnnxModel) -> Self {
        let onnx = bare(onnx);
        Self {
            are_bounded: unbounded_bare(&onnx).is_none(),
            onnx,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ShapeKey, Result<u64, BackendError>>> {
        skep_host::lock(&self.known)
    }

    /// The most bytes that a run with inputs of these shapes has in use at once for its tensors, without its inputs;
    /// 0 for a model whose sizes only a run determines.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for shapes that the graph cannot process, [`ErrorKind::Exhausted`] if it turns
    /// out that only a run determines the sizes.
    pub(crate) fn peak(
        &self,
        signature: &ModelSignature,
        shapes: &[&Shape],
    ) -> Result<u64, BackendError> {
        if !self.are_bounded {
            return Ok(0);
        }
        let mut key = ShapeKey::new();
        for shape in shapes {
            key.push(shape.rank());
            key.extend_from_slice(shape.dims());
        }
        if let Some(peak) = self.known().get(&key) {
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
            if only_a_run_determines(&error) {
                let text = format!(
                    "the memory of this run cannot be determined beforehand, and the embedded engine ends its process if there is too little: {error}\n  \
                     set the parameter `isolation` to `process` to run the model in a worker process"
                );
                return BackendError::new(ErrorKind::Exhausted, text);
            }
            BackendError::new(ErrorKind::InvalidArgument, format!("embedded engine: {error}"))
        });
        let mut known = self.known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(key, peak.clone());
        peak
    }
}

/// Whether sizes are unknown because values or a rule are missing, not because shapes do not fit.
const fn only_a_run_determines(error: &InferError) -> bool {
    matches!(
        error,
        InferError::Undetermined { .. }
            | InferError::UnknownOperator { .. }
            | InferError::UnknownType { .. }
            | InferError::NotATensor { .. }
    )
}

/// The most bytes in use at once for tensors that nodes compute, each from its node to the last node that reads it.
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

/// The model without parts that the engine ignores: names of dimensions, which may wrongly equate dimensions that it
/// broadcasts, and declared shapes of computed tensors. The values of weights are removed as well.
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

/// Why the memory of a run cannot be determined beforehand: the text names the node that makes a tensor whose size
/// only a run determines. `None` if it can.
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
    if let Some(node) = onnx.graph().node.iter().find(|node| contains_a_graph(node)) {
        let what = format!("operator {} contains graphs", named(node));
        return Some(format!("{what}, and {WHY_NOT_HERE}"));
    }
    let inferred = match infer_examples(onnx) {
        Some(Err(error)) if suspects.is_empty() => {
            return Some(format!(
                "only a run determines the sizes of its tensors ({error}), and {WHY_NOT_HERE}"
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
            "operator {} makes a tensor whose size only a run determines",
            named(node)
        );
        format!("{what}, and {WHY_NOT_HERE}")
    })
}

const WHY_NOT_HERE: &str =
    "the embedded engine ends its process if there is no memory for a tensor";

/// A node's operator, with the node's name if it has one.
fn named(node: &NodeProto) -> String {
    match node.name() {
        "" => format!("`{}`", node.op_type()),
        name => format!("`{}` (node `{name}`)", node.op_type()),
    }
}

/// Whether a node contains graphs, whose tensors are not known before a run.
fn contains_a_graph(node: &NodeProto) -> bool {
    let mut attributes = node.attribute.iter();
    attributes.any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty())
}

/// Sizes to try for open dimensions: not all suit every model.
const EXAMPLES: [usize; 3] = [2, 64, 256];

/// The shapes inferred for example inputs, or why only a run determines them; `None` if no example suits the model.
fn infer_examples(onnx: &OnnxModel) -> Option<Result<InferredShapes, InferError>> {
    EXAMPLES
        .iter()
        .find_map(|size| match infer_shapes(onnx, &examples(onnx, *size)?) {
            Err(error) if !only_a_run_determines(&error) => None,
            reported => Some(reported),
        })
}

/// A node whose output sizes depend on values, and the names of the inputs with these values.
fn suspect(node: &NodeProto) -> Option<(&NodeProto, Vec<&str>)> {
    let known = SIZED_BY_VALUES
        .iter()
        .find(|(operator, _)| *operator == node.op_type());
    let (_, positions) = known?;
    let names = positions.iter().filter_map(|at| node.input.get(*at));
    let names = names.map(String::as_str).filter(|name| !name.is_empty());
    Some((node, names.collect()))
}

/// Example shapes of the inputs: `size` for every dimension that the file leaves open.
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
    fn sizes_that_follow_from_shapes_are_known_before_a_run() {
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
        let sizes = RunSizes::of(&onnx);
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
    fn dimension_names_and_declared_outputs_are_ignored() {
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
        assert_eq!(RunSizes::of(&onnx).peak(&signature, &[&x, &b]), Ok(48));
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
        let sizes = RunSizes::of(&onnx);
        let signature = onnx.signature().expect("a signature");
        let (x, one) = (
            Shape::new(&[1000, 1000]).expect("a shape"),
            Shape::new(&[1]).expect("a shape"),
        );
        let peak = sizes.peak(&signature, &[&x, &one]).expect("known");
        assert!((4_000_000..4_000_100).contains(&peak), "{peak}");
    }

    #[test]
    fn sizes_that_depend_on_values_are_not_bounded() {
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
    fn sizes_in_inner_graphs_and_after_open_shapes_are_not_bounded() {
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
        let sizes = RunSizes::of(&onnx);
        let signature = onnx.signature().expect("a signature");
        let shape = Shape::new(&[3, 1]).expect("a shape");
        assert_eq!(
            sizes.peak(&signature, &[&shape]),
            Ok(0),
            "bounded by the worker process"
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
        assert!(why.contains("contains graphs"), "{why}");
    }
}
