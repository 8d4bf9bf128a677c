//! Refuses models at load that the engine would accept but compute incorrectly.
//!
//! The engine has four element types: it reads FP64 and FP16 as FP32, INT64 as INT32 (saturating), and ignores types
//! that it does not know. So the audit checks datatypes everywhere in the file. It cannot detect that INT64
//! arithmetic wraps around if intermediate results exceed 32 bits.

use std::collections::{BTreeMap, BTreeSet};

use skep_onnx::OnnxModel;
use skep_proto::onnx::{
    AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto,
    tensor_proto::DataType as Onnx, type_proto::Value,
};

use crate::refusals;

/// The hint for a refused model.
pub(crate) const HINT: &str =
    "the onnxruntime backend serves such models: `pip install onnxruntime`";

/// The operator set of ONNX 1.17, whose node tests determined the refusals. A newer set may change an operator's
/// meaning.
const NEWEST_OPSET: i64 = 22;

/// Audits a model whose external tensors were resolved.
///
/// # Errors
/// A text that names the tensor or operator that is refused.
pub(crate) fn audit(model: &OnnxModel) -> Result<(), String> {
    let opset = model
        .proto()
        .opset_import
        .iter()
        .find(|o| matches!(o.domain(), "" | "ai.onnx"));
    let opset = opset
        .map(|o| o.version())
        .ok_or("it imports no operator set of ONNX's own")?;
    if opset > NEWEST_OPSET {
        return Err(format!(
            "it imports operator set {opset}, expected at most {NEWEST_OPSET}, the newest that the embedded backend was tested with"
        ));
    }
    let mut graphs = Vec::new();
    model.visit(&mut |graph| graphs.push(graph));
    let uses = TensorUses::of(&graphs);
    let declared = DeclaredTensors::of(&graphs);
    for graph in &graphs {
        values(graph)?;
        for tensor in &graph.initializer {
            constant(tensor, tensor.name(), &uses)?;
        }
        if !graph.sparse_initializer.is_empty() {
            return Err(
                "it has sparse initializers, which the embedded backend does not serve".to_owned(),
            );
        }
        for node in &graph.node {
            self::node(node, &uses)?;
            refusals::check(node, opset, &declared)?;
        }
    }
    Ok(())
}

/// Declarations of tensors, by name.
#[derive(Debug, Default)]
pub(crate) struct DeclaredTensors<'a> {
    /// Numbers of dimensions.
    pub(crate) ranks: BTreeMap<&'a str, usize>,
    /// Element types.
    pub(crate) types: BTreeMap<&'a str, i32>,
}

impl<'a> DeclaredTensors<'a> {
    fn of(graphs: &[&'a GraphProto]) -> Self {
        let mut declared = Self::default();
        for graph in graphs {
            for tensor in &graph.initializer {
                declared.ranks.insert(tensor.name(), tensor.dims.len());
                declared.types.insert(tensor.name(), tensor.data_type());
            }
            for value in graph
                .input
                .iter()
                .chain(&graph.output)
                .chain(&graph.value_info)
            {
                let value_type = value.r#type.as_ref().and_then(|t| t.value.as_ref());
                let Some(Value::TensorType(tensor)) = value_type else {
                    continue;
                };
                declared.types.insert(value.name(), tensor.elem_type());
                if let Some(shape) = &tensor.shape {
                    declared.ranks.insert(value.name(), shape.dim.len());
                }
            }
        }
        declared
    }
}

fn values(graph: &GraphProto) -> Result<(), String> {
    let declared = graph
        .input
        .iter()
        .chain(&graph.output)
        .chain(&graph.value_info);
    declared.into_iter().try_for_each(|value: &ValueInfoProto| {
        match value.r#type.as_ref().and_then(|t| t.value.as_ref()) {
            Some(Value::TensorType(t)) => {
                element_type(t.elem_type(), || format!("tensor `{}`", value.name()))
            }
            _ => Ok(()),
        }
    })
}

fn node(node: &NodeProto, uses: &TensorUses<'_>) -> Result<(), String> {
    let operator = node.op_type();
    if !matches!(node.domain(), "" | "ai.onnx") {
        return Err(format!(
            "operator `{}:{operator}` of node `{}` is not one of ONNX's own",
            node.domain(),
            node.name()
        ));
    }
    let output = node.output.first().map_or("", String::as_str);
    for attribute in &node.attribute {
        let place = || {
            format!(
                "attribute `{}` of {operator} node `{}`",
                attribute.name(),
                node.name()
            )
        };
        for tensor in attribute.t.iter().chain(&attribute.tensors) {
            element_type(tensor.data_type(), place)?;
            if operator == "Constant" {
                constant(tensor, output, uses)?;
            } else {
                in_range(out_of_range(tensor), place)?;
            }
        }
        if matches!(attribute.name(), "to" | "dtype" | "output_dtype") {
            element_type(i32::try_from(attribute.i()).unwrap_or(i32::MAX), place)?;
        } else if !(operator == "Constant" && uses.only_as_slice_bound(output)) {
            in_range(attribute_out_of_range(attribute), place)?;
        }
    }
    Ok(())
}

/// An initializer or the tensor of a `Constant`.
fn constant(tensor: &TensorProto, name: &str, uses: &TensorUses<'_>) -> Result<(), String> {
    let place = || format!("tensor `{name}`");
    element_type(tensor.data_type(), place)?;
    if uses.only_as_slice_bound(name) {
        return Ok(());
    }
    in_range(out_of_range(tensor), place)
}

fn in_range(value: Option<i64>, place: impl Fn() -> String) -> Result<(), String> {
    match value {
        Some(value) => Err(format!(
            "{} holds {value}, which does not fit into the 32 bits with which the embedded backend computes INT64",
            place()
        )),
        None => Ok(()),
    }
}

/// Refuses an element type that the engine does not compute. 0 means "not declared": shape inference or the operator
/// determines the type.
fn element_type(number: i32, place: impl Fn() -> String) -> Result<(), String> {
    match Onnx::try_from(number) {
        Ok(
            Onnx::Undefined
            | Onnx::Float
            | Onnx::Int32
            | Onnx::Int8
            | Onnx::Uint8
            | Onnx::Bool
            | Onnx::Int64,
        ) => Ok(()),
        Ok(other) => Err(format!(
            "{} has datatype {}, which the embedded backend does not serve",
            place(),
            other.as_str_name()
        )),
        Err(_) => Err(format!("{} has the unknown datatype {number}", place())),
    }
}

/// The first INT64 element that does not fit into 32 bits.
fn out_of_range(tensor: &TensorProto) -> Option<i64> {
    if tensor.data_type() != Onnx::Int64 as i32 {
        return None;
    }
    let raw = tensor.raw_data.as_deref().unwrap_or_default();
    let raw = raw
        .as_chunks::<8>()
        .0
        .iter()
        .map(|c| i64::from_le_bytes(*c));
    raw.chain(tensor.int64_data.iter().copied())
        .find(|&v| i32::try_from(v).is_err())
}

fn attribute_out_of_range(attribute: &AttributeProto) -> Option<i64> {
    let values = attribute.i.iter().chain(&attribute.ints).copied();
    values.into_iter().find(|&v| i32::try_from(v).is_err())
}

/// The operators that read each tensor.
struct TensorUses<'a> {
    readers: BTreeMap<&'a str, Vec<(&'a NodeProto, usize)>>,
    outputs: BTreeSet<&'a str>,
}

/// The most steps to follow between a constant and a `Slice`; exporters write one or two.
const MAX_STEPS: usize = 8;

impl<'a> TensorUses<'a> {
    fn of(graphs: &[&'a GraphProto]) -> Self {
        let mut readers: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for node in graphs.iter().flat_map(|g| &g.node) {
            for (position, input) in node.input.iter().enumerate() {
                readers
                    .entry(input.as_str())
                    .or_default()
                    .push((node, position));
            }
        }
        let outputs = graphs
            .iter()
            .flat_map(|g| &g.output)
            .map(|v| v.name())
            .collect();
        Self { readers, outputs }
    }

    /// Whether a tensor only says where slices begin or end. There a value beyond 32 bits means the end of the axis,
    /// and so does the engine's saturated value.
    fn only_as_slice_bound(&self, tensor: &str) -> bool {
        self.bound_within(tensor, MAX_STEPS)
    }

    fn bound_within(&self, tensor: &str, steps: usize) -> bool {
        let Some(readers) = self.readers.get(tensor) else {
            return false;
        };
        steps > 0
            && !self.outputs.contains(tensor)
            && readers
                .iter()
                .all(|&(node, position)| match (node.op_type(), position) {
                    ("Slice", 1 | 2) => true,
                    ("Concat", _)
                    | ("Unsqueeze" | "Squeeze" | "Reshape" | "Identity" | "Gather", 0) => node
                        .output
                        .iter()
                        .all(|output| self.bound_within(output, steps - 1)),
                    _ => false,
                })
    }
}
