//! One node test: a model of (mostly) one node, inputs, and expected outputs.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use prost::Message;
use skep_backend::ModelFile;
use skep_onnx::OnnxModel;
use skep_proto::onnx::TensorProto;
use skep_tensor::{Tensor, encode_strings};
use skep_types::{DataType, Shape};

/// The datatypes whose tests make the table.
const DATATYPES: [DataType; 6] = [
    DataType::Fp32,
    DataType::Int32,
    DataType::Int64,
    DataType::Int8,
    DataType::Uint8,
    DataType::Bool,
];

/// Operators of training and of random numbers.
const LEFT_OUT: [&str; 9] = [
    "Bernoulli",
    "Multinomial",
    "NegativeLogLikelihoodLoss",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "SoftmaxCrossEntropyLoss",
    "ai.onnx.preview.training",
];

/// Inputs and expected outputs of one run.
pub(crate) type DataSet = (Vec<Tensor>, Vec<Tensor>);

pub(crate) struct NodeTest {
    pub(crate) name: String,
    /// The operator under test; for a test of an operator's expansion into others, that operator.
    pub(crate) operator: String,
    pub(crate) file: ModelFile,
    pub(crate) sets: Vec<DataSet>,
}

impl NodeTest {
    /// Reads a test's directory; `None` for one that is left out of the table.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>> {
        let name = directory
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        let file = ModelFile::open(&directory.join("model.onnx"))?;
        let operator = match operator_under_test(directory)? {
            Some(operator) if !name.contains("training") => operator,
            _ => return Ok(None),
        };
        let model = OnnxModel::decode(file.bytes().clone())?;
        let Ok(signature) = model.signature() else {
            return Ok(None);
        };
        let mut tensors = signature.inputs.iter().chain(&signature.outputs);
        if !tensors.all(|t| DATATYPES.contains(&t.datatype)) {
            return Ok(None);
        }
        let mut sets = Vec::new();
        while let Some(set) = data_set(&directory.join(format!("test_data_set_{}", sets.len())))? {
            sets.push(set);
        }
        Ok(Some(Self {
            name,
            operator,
            file,
            sets,
        }))
    }
}

/// The first node's operator, of the unexpanded sibling where there is one; `None` for what is left out.
fn operator_under_test(directory: &Path) -> Result<Option<String>> {
    let mut model = directory.join("model.onnx");
    let name = directory.to_string_lossy();
    if let Some((plain, _)) = name.split_once("_expanded") {
        let sibling = Path::new(plain).join("model.onnx");
        if sibling.exists() {
            model = sibling;
        }
    }
    let model = OnnxModel::decode(fs::read(model)?.into())?;
    let node = model
        .graph()
        .node
        .iter()
        .find(|n| n.op_type() != "Constant");
    let node = match (node, model.graph().node.first()) {
        (Some(node), _) | (None, Some(node)) => node,
        (None, None) => return Ok(None),
    };
    let left_out = LEFT_OUT.contains(&node.op_type()) || LEFT_OUT.contains(&node.domain());
    Ok((!left_out).then(|| node.op_type().to_owned()))
}

fn data_set(directory: &Path) -> Result<Option<DataSet>> {
    if !directory.is_dir() {
        return Ok(None);
    }
    let read = |role: &str| -> Result<Vec<Tensor>> {
        let mut tensors = Vec::new();
        loop {
            let path = directory.join(format!("{role}_{}.pb", tensors.len()));
            if !path.exists() {
                return Ok(tensors);
            }
            let proto = TensorProto::decode(fs::read(&path)?.as_slice())?;
            tensors.push(tensor(&proto).with_context(|| path.display().to_string())?);
        }
    };
    Ok(Some((read("input")?, read("output")?)))
}

/// A tensor out of a file, whichever of the message's fields holds its elements.
fn tensor(proto: &TensorProto) -> Result<Tensor> {
    let Some(datatype) = skep_onnx::datatype(proto.data_type()) else {
        bail!("element type {}", proto.data_type());
    };
    let narrow = |size: usize| -> Vec<u8> {
        let values = proto.int32_data.iter();
        values
            .flat_map(|v| v.to_le_bytes().into_iter().take(size))
            .collect()
    };
    let data: Vec<u8> = match (datatype, &proto.raw_data) {
        (DataType::Bytes, _) => encode_strings(proto.string_data.iter().map(AsRef::as_ref)),
        (_, Some(raw)) => raw.to_vec(),
        (DataType::Fp32, None) => proto
            .float_data
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
        (DataType::Fp64, None) => proto
            .double_data
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
        (DataType::Int64, None) => proto
            .int64_data
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
        (DataType::Uint64, None) => proto
            .uint64_data
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
        (DataType::Uint32, None) => {
            let values = proto.uint64_data.iter();
            values
                .flat_map(|v| v.to_le_bytes().into_iter().take(4))
                .collect()
        }
        (other, None) => narrow(other.element_size().context("a size")?),
    };
    Ok(Tensor::new(
        datatype,
        Shape::from_wire(&proto.dims)?,
        data.into(),
    )?)
}
