//! Infers a graph's shapes with a few sizes, to learn of outputs that the file does not declare and which outputs begin
//! with the batch.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use skep_onnx::{OnnxModel, dimension_name, dimensions};
use skep_proto::onnx::{
    FunctionProto, GraphProto, NodeProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto,
};
use skep_types::{Dims, TensorSpec};

use crate::{
    error::{InferError, NodeName},
    given::GivenShapes,
    infer::{InferredShapes, infer_shapes},
    order,
    scope::{domain, domain_name},
    walk,
};

/// Sizes of the open dimensions that are tried, in turn: some graphs take no small pictures.
const SIZES: [usize; 3] = [8, 64, 224];

/// Batches that are tried, no usual size of anything else.
const BATCHES: [usize; 2] = [2, 3];

/// Operators that give as many rows as they find, whatever the shapes of what they read.
const FINDERS: [&str; 4] = ["Compress", "NonMaxSuppression", "NonZero", "Unique"];

/// What a graph shows of an output's first dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FirstDimension {
    /// It is the batch.
    Batch,
    /// It is not.
    Other,
    /// It depends on the values that this node reads.
    Values(NodeName),
    /// This operator is not known, and may do anything.
    Unknown(NodeName),
    /// None of the tried sizes fits the graph.
    Unclear,
}

/// The outputs whose types the file does not declare, as far as inference finds them.
#[must_use]
pub fn computed_outputs(model: &OnnxModel) -> Vec<TensorSpec> {
    let names: Vec<&str> = model.undeclared_outputs().collect();
    if names.is_empty() {
        return Vec::new();
    }
    let bare = stripped(model, &names);
    let computed: Vec<InferredShapes> = SIZES
        .iter()
        .filter_map(|size| with_sizes(model, &bare, &|_, _| *size).ok())
        .collect();
    let (Some(one), Some(other)) = (computed.first(), computed.last()) else {
        return Vec::new();
    };
    let has_two_sizes = computed.len() > 1;
    let specs = names
        .iter()
        .filter_map(|name| computed_spec(name, one, other, has_two_sizes));
    specs.collect()
}

/// An output as two inferences with different sizes compute it: dimensions in which they differ are open. With one size
/// alone nothing shows which dimensions are open, and the output has no dims.
fn computed_spec(
    name: &str,
    one: &InferredShapes,
    other: &InferredShapes,
    has_two_sizes: bool,
) -> Option<TensorSpec> {
    let (one, other) = (one.tensors.get(name)?, other.tensors.get(name)?);
    let is_known = has_two_sizes && one.shape.rank() == other.shape.rank();
    let dims = one.shape.dims().iter().zip(other.shape.dims());
    let dims: Vec<i64> = dims
        .map(|(one, other)| match one == other {
            true => i64::try_from(*one).unwrap_or(-1),
            false => -1,
        })
        .collect();
    Some(TensorSpec {
        name: name.to_owned(),
        datatype: one.element.datatype()?,
        dims: is_known.then(|| Dims::new(&dims).ok()).flatten(),
    })
}

/// What the graph shows of these outputs' first dimensions, when each input's first dimension is the batch, and every
/// other dimension with one of these names.
pub(crate) fn first_dimensions(
    model: &OnnxModel,
    outputs: &[&str],
    batch: &BTreeSet<&str>,
) -> Vec<FirstDimension> {
    if let Ok(computed) = batches(model, &stripped(model, outputs), batch) {
        return outputs.iter().map(|name| first(&computed, name)).collect();
    }
    // One output that cannot be inferred must not hide the others.
    let outputs = outputs.iter();
    outputs
        .map(|name| first_dimension(model, name, batch))
        .collect()
}

/// The same for one output.
fn first_dimension(model: &OnnxModel, output: &str, batch: &BTreeSet<&str>) -> FirstDimension {
    let bare = stripped(model, &[output]);
    match batches(model, &bare, batch) {
        Ok(computed) => first(&computed, output),
        Err(InferError::Undetermined { node, .. }) => FirstDimension::Values(node),
        Err(InferError::UnknownOperator { node, .. }) => FirstDimension::Unknown(node),
        Err(_) => undecided(&bare).unwrap_or(FirstDimension::Unclear),
    }
}

/// The shapes with each of the batches that are tried. An error that says what is open comes before one that says that
/// a size does not fit.
fn batches(
    model: &OnnxModel,
    bare_model: &OnnxModel,
    symbols: &BTreeSet<&str>,
) -> Result<Vec<InferredShapes>, InferError> {
    let mut error = None;
    for size in SIZES {
        let of = |batch: &usize| {
            let size = |axis: usize, dim: Option<&dimension::Value>| {
                let is_batch =
                    axis == 0 || dimension_name(dim).is_some_and(|n| symbols.contains(n));
                if is_batch { *batch } else { size }
            };
            with_sizes(model, bare_model, &size)
        };
        match BATCHES.iter().map(of).collect() {
            Ok(computed) => return Ok(computed),
            Err(new) if error.is_none() || is_open(&new) => error = Some(new),
            Err(_) => {}
        }
    }
    Err(error.expect("a size was tried"))
}

/// The shapes of the model's bare form, with the size that `open` gives to each open dimension by its axis and name.
fn with_sizes(
    model: &OnnxModel,
    bare_model: &OnnxModel,
    open: &dyn Fn(usize, Option<&dimension::Value>) -> usize,
) -> Result<InferredShapes, InferError> {
    let inputs = model.given_inputs();
    let inputs = inputs.into_iter().filter_map(|value| {
        let dims = dimensions(value)?.enumerate();
        let size = |(axis, dim): (usize, Option<&dimension::Value>)| match dim {
            Some(dimension::Value::DimValue(size)) if *size > 0 => usize::try_from(*size).ok(),
            dim => Some(open(axis, dim)),
        };
        Some((
            value.name().to_owned(),
            dims.map(size).collect::<Option<_>>()?,
        ))
    });
    infer_shapes(
        bare_model,
        &GivenShapes {
            inputs: inputs.collect::<BTreeMap<String, Vec<usize>>>(),
            ..GivenShapes::default()
        },
    )
}

/// The model without the names of dimensions and the shapes of outputs, which files are often wrong about, and without
/// all that these outputs do not depend on.
fn stripped(model: &OnnxModel, outputs: &[&str]) -> OnnxModel {
    let mut bare = model.clone();
    let Some(graph) = &mut bare.proto_mut().graph else {
        return bare;
    };
    let needed = needed(graph, outputs);
    let mut at = 0..;
    graph
        .node
        .retain(|_| at.next().is_some_and(|at| needed.contains(&at)));
    graph.output.retain(|value| outputs.contains(&value.name()));
    graph.value_info.clear();
    for value in &mut graph.input {
        let dims = tensor(value).and_then(|tensor| tensor.shape.as_mut());
        for dim in dims.into_iter().flat_map(|shape| &mut shape.dim) {
            dim.value
                .take_if(|value| matches!(value, dimension::Value::DimParam(_)));
        }
    }
    for tensor in graph.output.iter_mut().filter_map(tensor) {
        tensor.shape = None;
    }
    bare
}

/// A node that may give any number of rows, whatever the shapes of its inputs.
fn undecided(model: &OnnxModel) -> Option<FirstDimension> {
    let key = |function| {
        (
            domain_name(FunctionProto::domain(function)),
            function.name(),
        )
    };
    let functions = model.proto().functions.iter();
    let functions: HashMap<_, _> = functions.map(|f| (key(f), f)).collect();
    let mut seen = HashSet::new();
    let mut pending: Vec<&NodeProto> = model.graph().node.iter().collect();
    while let Some(node) = pending.pop() {
        let key = (domain(node), node.op_type());
        if let Some(function) = functions.get(&key) {
            if seen.insert(key) {
                pending.extend(&function.node);
            }
        } else if !walk::is_known(node) {
            return Some(FirstDimension::Unknown(NodeName::of(node)));
        } else if FINDERS.contains(&node.op_type()) {
            return Some(FirstDimension::Values(NodeName::of(node)));
        }
        pending.extend(order::graphs(node).flat_map(|graph| &graph.node));
    }
    None
}

/// What the shapes with the tried batches show of an output.
fn first(computed: &[InferredShapes], output: &str) -> FirstDimension {
    let firsts = computed.iter().map(|inferred| {
        let shape = &inferred.tensors.get(output)?.shape;
        shape.dims().first().copied()
    });
    match firsts.eq(BATCHES.map(Some)) {
        true => FirstDimension::Batch,
        false => FirstDimension::Other,
    }
}

/// Whether an error says that no sizes would give the shape.
fn is_open(error: &InferError) -> bool {
    use InferError::{Undetermined, UnknownOperator};
    matches!(error, Undetermined { .. } | UnknownOperator { .. })
}

/// The nodes, by their index, that these outputs depend on.
fn needed(graph: &GraphProto, outputs: &[&str]) -> HashSet<usize> {
    let nodes = graph.node.iter().enumerate();
    let makers = nodes.flat_map(|(at, node)| node.output.iter().map(move |name| (&**name, at)));
    let makers: HashMap<&str, usize> = makers.collect();
    let mut needed = HashSet::new();
    let mut pending = outputs.to_vec();
    while let Some(name) = pending.pop() {
        if !name.is_empty()
            && let Some(&at) = makers.get(name)
            && needed.insert(at)
        {
            pending.extend(order::reads(&graph.node[at]));
        }
    }
    needed
}

fn tensor(value: &mut ValueInfoProto) -> Option<&mut type_proto::Tensor> {
    match value.r#type.as_mut()?.value.as_mut()? {
        type_proto::Value::TensorType(tensor) => Some(tensor),
        _ => None,
    }
}
