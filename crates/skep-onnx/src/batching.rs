//! Whether a model's first dimensions are a batch, and what its undeclared outputs are: both by what the graph computes.
//!
//! A model whose inputs and outputs all begin with an open dimension looks as if it could batch. The names of these
//! dimensions tell more: recurrent networks often have time first, and detectors give as many rows as they find boxes. But
//! converters also give every tensor names of its own, so names that differ count only where the graph does not tell.

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::onnx::{TensorProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto};
use skep_types::{Dims, TensorSpec};

use crate::{
    OnnxModel,
    infer::{Given, Inferred},
};

/// Sizes of the open dimensions that are tried, in turn: some graphs take no small pictures.
const SIZES: [usize; 3] = [8, 64, 224];

/// Batches that are tried, no usual size of anything else.
const BATCHES: [usize; 2] = [2, 3];

/// Dimensions as a file declares them, `None` for one without size and name.
type Declared<'a> = Vec<Option<&'a dimension::Value>>;

impl OnnxModel {
    /// Why a model of which every input and output begins with an open dimension does not batch; `None` where nothing speaks
    /// against it.
    #[must_use]
    pub fn why_not_batched(&self) -> Option<String> {
        let inputs = self.given_inputs();
        let symbols: BTreeSet<&str> = inputs
            .iter()
            .map(|value| name(declared(value)?.first().copied()?))
            .collect::<Option<_>>()?;
        let mut symbols = symbols.into_iter();
        let (Some(batch), None) = (symbols.next(), symbols.next()) else {
            return None;
        };
        if let Some((input, axis, symbol)) = inputs.iter().find_map(|value| later_batch(value))
            && !is_batch(batch)
        {
            return Some(format!(
                "dimension {axis} of input `{input}` is `{symbol}`, its first one is `{batch}`"
            ));
        }
        let others = self.graph().output.iter();
        let others: Vec<&ValueInfoProto> = others
            .filter(|value| {
                let first = declared(value).and_then(|dims| dims.first().copied());
                first.is_some_and(|first| name(first) != Some(batch))
            })
            .collect();
        if others.is_empty() {
            return None;
        }
        let computed = self.batches(batch);
        others.into_iter().find_map(|value| {
            let output = value.name();
            let first = declared(value)?.first().copied()?;
            let follows = computed.as_ref().and_then(|computed| {
                let firsts = computed.iter().map(|inferred| {
                    let tensor = inferred.tensors.get(output)?;
                    tensor.shape.dims().first().copied()
                });
                firsts.collect::<Option<Vec<usize>>>()
            });
            match (follows, name(first)) {
                (Some(firsts), _) if firsts == BATCHES => None,
                (_, Some(other)) => Some(format!(
                    "its inputs begin with dimension `{batch}`, its output `{output}` with `{other}`"
                )),
                (Some(_), None) => Some(format!(
                    "its inputs begin with dimension `{batch}`, its output `{output}` does not"
                )),
                (None, None) => None,
            }
        })
    }

    /// The outputs whose types the file does not declare, as the graph computes them: those of which that can be told.
    #[must_use]
    pub fn computed_outputs(&self) -> Vec<TensorSpec> {
        let names: Vec<&str> = self.undeclared_outputs().collect();
        if names.is_empty() {
            return Vec::new();
        }
        let bare = self.without_names();
        let computed: Vec<Inferred> = SIZES
            .iter()
            .filter_map(|size| bare.with_sizes(&|_| *size))
            .collect();
        let (Some(one), Some(other)) = (computed.first(), computed.last()) else {
            return Vec::new();
        };
        let spec = |name: &&str| {
            let (one, other) = (one.tensors.get(*name)?, other.tensors.get(*name)?);
            // With one size alone nothing tells which dimensions are open.
            let is_known = computed.len() > 1 && one.shape.rank() == other.shape.rank();
            let dims = one.shape.dims().iter().zip(other.shape.dims());
            let dims: Vec<i64> = dims
                .map(|(one, other)| match one == other {
                    true => i64::try_from(*one).unwrap_or(-1),
                    false => -1,
                })
                .collect();
            Some(TensorSpec {
                name: (*name).to_owned(),
                datatype: one.element.datatype()?,
                dims: is_known.then(|| Dims::new(&dims).ok()).flatten(),
            })
        };
        names.iter().filter_map(spec).collect()
    }

    /// The inputs that a run needs.
    fn given_inputs(&self) -> Vec<&ValueInfoProto> {
        let graph = self.graph();
        let initializers: BTreeSet<&str> =
            graph.initializer.iter().map(TensorProto::name).collect();
        let inputs = graph.input.iter();
        inputs
            .filter(|value| !initializers.contains(value.name()))
            .collect()
    }

    /// The shapes with each of the batches that are tried, where the graph tells them.
    fn batches(&self, symbol: &str) -> Option<Vec<Inferred>> {
        let bare = self.without_names();
        SIZES.iter().find_map(|size| {
            let of = |batch: usize| {
                let inputs = self.given_inputs();
                let inputs = inputs.into_iter().map(|value| {
                    let size = |dim: Option<&dimension::Value>| match name(dim) {
                        Some(name) if name == symbol => batch,
                        _ => *size,
                    };
                    Some((value.name().to_owned(), sizes(value, &size)?))
                });
                bare.with_inputs(inputs.collect::<Option<_>>()?)
            };
            BATCHES.iter().map(|batch| of(*batch)).collect()
        })
    }

    fn with_sizes(&self, open: &dyn Fn(Option<&dimension::Value>) -> usize) -> Option<Inferred> {
        let inputs = self.given_inputs();
        let inputs = inputs.into_iter();
        let inputs = inputs.map(|value| Some((value.name().to_owned(), sizes(value, open)?)));
        self.with_inputs(inputs.collect::<Option<_>>()?)
    }

    fn with_inputs(&self, inputs: BTreeMap<String, Vec<usize>>) -> Option<Inferred> {
        let given = Given {
            inputs,
            ..Given::default()
        };
        self.infer(&given).ok()
    }

    /// The model without the names of dimensions and the shapes of outputs, which files are often wrong about.
    fn without_names(&self) -> Self {
        let mut bare = self.clone();
        if let Some(graph) = &mut bare.proto_mut().graph {
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
        }
        bare
    }
}

fn tensor(value: &mut ValueInfoProto) -> Option<&mut type_proto::Tensor> {
    match value.r#type.as_mut()?.value.as_mut()? {
        type_proto::Value::TensorType(tensor) => Some(tensor),
        _ => None,
    }
}

fn declared(value: &ValueInfoProto) -> Option<Declared<'_>> {
    match value.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => {
            let dims = tensor.shape.as_ref()?.dim.iter();
            Some(dims.map(|dim| dim.value.as_ref()).collect())
        }
        _ => None,
    }
}

/// A dimension's name.
fn name(dim: Option<&dimension::Value>) -> Option<&str> {
    match dim {
        Some(dimension::Value::DimParam(name)) if !name.is_empty() => Some(name),
        _ => None,
    }
}

/// An input's dimensions: those that the file fixes, and what `open` says of the others.
fn sizes(
    value: &ValueInfoProto,
    open: &dyn Fn(Option<&dimension::Value>) -> usize,
) -> Option<Vec<usize>> {
    let size = |dim: &Option<&dimension::Value>| match dim {
        Some(dimension::Value::DimValue(size)) if *size > 0 => usize::try_from(*size).ok(),
        dim => Some(open(*dim)),
    };
    declared(value)?.iter().map(size).collect()
}

fn is_batch(symbol: &str) -> bool {
    symbol.to_ascii_lowercase().contains("batch")
}

/// The first dimension named as a batch of an input that does not begin with one: input, axis, name.
fn later_batch(value: &ValueInfoProto) -> Option<(&str, usize, &str)> {
    let dims = declared(value)?;
    let named = dims.into_iter().enumerate().skip(1);
    let mut named = named.filter_map(|(axis, dim)| Some((axis, name(dim)?)));
    let (axis, symbol) = named.find(|(_, symbol)| is_batch(symbol))?;
    Some((value.name(), axis, symbol))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use skep_proto::onnx::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto,
        tensor_shape_proto,
    };

    use super::*;

    /// `dims`: a number is a size, anything else a name, `?` is neither.
    fn value(name: &str, dims: &[&str]) -> ValueInfoProto {
        let dim = |dim: &&str| tensor_shape_proto::Dimension {
            value: match (dim.parse(), *dim) {
                (Ok(size), _) => Some(dimension::Value::DimValue(size)),
                (_, "?") => None,
                (_, name) => Some(dimension::Value::DimParam(name.to_owned())),
            },
            denotation: None,
        };
        let tensor = type_proto::Tensor {
            elem_type: Some(1),
            shape: Some(TensorShapeProto {
                dim: dims.iter().map(dim).collect(),
            }),
        };
        ValueInfoProto {
            name: Some(name.to_owned()),
            r#type: Some(TypeProto {
                denotation: None,
                value: Some(type_proto::Value::TensorType(tensor)),
            }),
            ..Default::default()
        }
    }

    /// A model that gives `y` as this operator computes it of the inputs.
    fn model(inputs: &[&[&str]], output: Option<&[&str]>, operator: &str) -> OnnxModel {
        let inputs = inputs.iter().enumerate();
        let inputs: Vec<_> = inputs
            .map(|(at, dims)| value(&format!("x{at}"), dims))
            .collect();
        let node = NodeProto {
            op_type: Some(operator.to_owned()),
            input: inputs.iter().map(|input| input.name().to_owned()).collect(),
            output: vec!["y".to_owned()],
            ..Default::default()
        };
        let undeclared = || ValueInfoProto {
            name: Some("y".to_owned()),
            ..Default::default()
        };
        let graph = GraphProto {
            input: inputs,
            output: vec![output.map_or_else(undeclared, |dims| value("y", dims))],
            node: vec![node],
            ..Default::default()
        };
        let opset = OperatorSetIdProto {
            version: Some(17),
            ..Default::default()
        };
        let proto = ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset],
            graph: Some(graph),
            ..Default::default()
        };
        OnnxModel::decode(proto.encode_to_vec().into()).expect("decodes")
    }

    #[test]
    fn an_output_that_begins_otherwise_than_the_inputs_is_no_batch() {
        let boxes: &[&str] = &["batch", "100", "4"];
        for (inputs, output, operator, expected) in [
            // Only a run tells how many.
            (
                &[boxes][..],
                &["found", "3"][..],
                "NonZero",
                Some("its inputs begin with dimension `batch`, its output `y` with `found`"),
            ),
            (
                &[&["seq", "4"]],
                &["batch", "4"],
                "NonZero",
                Some("its inputs begin with dimension `seq`, its output `y` with `batch`"),
            ),
            (
                &[&["seq", "batch", "4"]],
                &["seq", "batch", "4"],
                "Relu",
                Some("dimension 1 of input `x0` is `batch`, its first one is `seq`"),
            ),
            (
                &[&["n", "4"]],
                &["?", "n"],
                "Transpose",
                Some("its inputs begin with dimension `n`, its output `y` does not"),
            ),
            // The graph tells that it is the batch.
            (&[&["unk__6", "4"]], &["unk__7", "4"], "Relu", None),
            (&[&["n", "4"]], &["?", "4"], "Relu", None),
            // The same name, no shared name, nothing known.
            (&[&["n", "4"]], &["n", "4"], "NonZero", None),
            (&[&["n", "4"], &["m", "4"]], &["k", "4"], "NonZero", None),
            (&[&["?", "4"]], &["k", "4"], "NonZero", None),
            (&[&["n", "4"]], &["?", "4"], "NonZero", None),
        ] {
            let why = model(inputs, Some(output), operator).why_not_batched();
            assert_eq!(why.as_deref(), expected, "{inputs:?} {output:?} {operator}");
        }
    }

    #[test]
    fn undeclared_outputs_follow_from_the_graph() {
        let outputs = model(&[&["n", "4"]], None, "Relu").computed_outputs();
        let [y] = outputs.as_slice() else {
            panic!("{outputs:?}");
        };
        assert_eq!(y.datatype, skep_types::DataType::Fp32);
        assert_eq!(y.dims, Some(Dims::new(&[-1, 4]).expect("dims")));
        assert_eq!(
            model(&[&["n", "4"]], None, "NonZero").computed_outputs(),
            []
        );
        assert_eq!(
            model(&[&["n", "4"]], Some(&["n", "4"]), "Relu").computed_outputs(),
            []
        );
    }
}
