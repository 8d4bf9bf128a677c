//! Static shape inference on ONNX's own node tests: a line a test, sums, and a section of the documentation.
//!
//! ```text
//! cargo run -p skep-shapes --example node_shapes -- DIRECTORY [--markdown FILE] > tests.tsv
//! ```
//!
//! DIRECTORY is `onnx/backend/test/data/node` of PyPI's `onnx` package. Each model's outputs are inferred from the
//! shapes of its inputs, and where they depend on values once more with its inputs as constants; what the file declares
//! of them is taken away. A test is *right* by shapes or by *values*, *wrong* where type or shape differ from the
//! test's, *refused* with the reason. Left out are training, and tests whose inputs or outputs are no tensors. Fails
//! where one is wrong. FILE's last section is written again.

use std::{collections::BTreeMap, error::Error, fs, path::Path};

use prost::Message;
use skep_onnx::OnnxModel;
use skep_proto::onnx::{TensorProto, ValueInfoProto, type_proto};
use skep_shapes::{ElementType, GivenShapes, InferError, InferredShapes, infer_shapes};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The heading of the section in the documentation.
const HEADING: &str = "## Shapes before a run";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .ok_or("expected the directory of the node tests")?;
    let markdown = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => None,
        (Some("--markdown"), Some(file)) => Some(file),
        _ => return Err("expected `--markdown FILE` behind the directory".into()),
    };
    let mut paths: Vec<_> = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::result::Result<_, _>>()?;
    paths.sort();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for path in &paths {
        let (word, reason) = match outcome(path)? {
            Outcome::LeftOut => ("left out", String::new()),
            Outcome::Right => ("right", String::new()),
            Outcome::RightByValues => ("right by values", String::new()),
            Outcome::Wrong(difference) => ("wrong", difference),
            Outcome::Refused(operator, error) => {
                *refused.entry(operator).or_default() += 1;
                ("refused", error.to_string())
            }
        };
        *counts.entry(word).or_default() += 1;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        println!("{name}\t{word}\t{}", reason.replace('\n', " "));
    }
    for (word, count) in &counts {
        eprintln!("{word} {count}");
    }
    if let Some(count) = counts.get("wrong") {
        return Err(format!("{count} tests are inferred wrongly").into());
    }
    if let Some(file) = markdown {
        let page = fs::read_to_string(&file)?;
        let before = page.split(HEADING).next().unwrap_or_default().trim_end();
        fs::write(file, format!("{before}\n\n{}", section(&counts, &refused)))?;
    }
    Ok(())
}

/// The section of the documentation.
fn section(counts: &BTreeMap<&str, usize>, refused: &BTreeMap<String, usize>) -> String {
    let count = |word: &str| counts.get(word).copied().unwrap_or(0);
    let all = count("right") + count("right by values") + count("refused");
    let operators: Vec<String> = refused
        .iter()
        .map(|(operator, tests)| format!("{operator} ({tests})"))
        .collect();
    format!(
        "{HEADING}\n\n\
         <!-- Written by crates/skep-shapes/examples/node_shapes.rs: run that instead of editing this. -->\n\n\
         What a memory plan needs, the shape of each tensor, is inferred from the shapes of the inputs alone. Of the {all}\n\
         node tests of inference whose inputs and outputs are tensors of any datatype, {} are inferred rightly so, {}\n\
         when the values of their inputs are constants of the file (a shape to reshape to, say), none wrongly. Refused\n\
         are {}, as only a run tells the shapes or the operator is not known; the caller can state them:\n\
         {}.\n",
        count("right"),
        count("right by values"),
        count("refused"),
        operators.join(", ")
    )
}

/// How a test ended.
enum Outcome {
    LeftOut,
    Right,
    RightByValues,
    Wrong(String),
    /// The operator of the node that could not be inferred, and why.
    Refused(String, InferError),
}

fn outcome(path: &Path) -> Result<Outcome> {
    let mut model = OnnxModel::decode(fs::read(path.join("model.onnx"))?.into())?;
    let tensors = |values: &[ValueInfoProto]| values.iter().all(is_tensor);
    let training = model
        .graph()
        .node
        .iter()
        .any(|node| node.domain().ends_with("training"));
    if training || !tensors(&model.graph().input) || !tensors(&model.graph().output) {
        return Ok(Outcome::LeftOut);
    }
    // Declared shapes would answer where inference cannot.
    let graph = model.proto_mut().graph.as_mut().ok_or("no graph")?;
    for value in graph.output.iter_mut().chain(&mut graph.value_info) {
        if let Some(type_proto::Value::TensorType(tensor)) =
            value.r#type.as_mut().and_then(|kind| kind.value.as_mut())
        {
            tensor.shape = None;
        }
    }
    let data = path.join("test_data_set_0");
    let (inputs, outputs) = (read(&data, "input")?, read(&data, "output")?);
    let mut given = GivenShapes::default();
    for (value, tensor) in model.graph().input.iter().zip(&inputs) {
        given.inputs.insert(value.name().to_owned(), dims(tensor)?);
    }
    let mut right = Outcome::Right;
    let mut inferred = infer_shapes(&model, &given);
    if matches!(inferred, Err(InferError::Undetermined { .. })) {
        right = Outcome::RightByValues;
        let graph = model.proto_mut().graph.as_mut().ok_or("no graph")?;
        for (value, tensor) in graph.input.drain(..).zip(inputs) {
            graph.initializer.push(TensorProto {
                name: value.name,
                ..tensor
            });
        }
        inferred = infer_shapes(&model, &GivenShapes::default());
    }
    match inferred {
        Err(error) => {
            let operator = match &error {
                InferError::Undetermined { node, .. }
                | InferError::UnknownOperator { node, .. } => node.operator.to_string(),
                _ => return Ok(Outcome::Wrong(error.to_string())),
            };
            Ok(Outcome::Refused(operator, error))
        }
        Ok(inferred) => Ok(match difference(&model, &inferred, &outputs)? {
            None => right,
            Some(difference) => Outcome::Wrong(difference),
        }),
    }
}

fn is_tensor(value: &ValueInfoProto) -> bool {
    element(value).bits().is_some()
}

/// The declared element type; that of number 0 for what is no tensor.
fn element(value: &ValueInfoProto) -> ElementType {
    match value.r#type.as_ref().and_then(|kind| kind.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => ElementType(tensor.elem_type()),
        _ => ElementType(0),
    }
}

fn read(directory: &Path, role: &str) -> Result<Vec<TensorProto>> {
    let mut tensors = Vec::new();
    loop {
        let path = directory.join(format!("{role}_{}.pb", tensors.len()));
        if !path.exists() {
            return Ok(tensors);
        }
        tensors.push(TensorProto::decode(fs::read(&path)?.as_slice())?);
    }
}

fn dims(tensor: &TensorProto) -> Result<Vec<usize>> {
    let dims = tensor.dims.iter().map(|&dim| usize::try_from(dim));
    Ok(dims.collect::<std::result::Result<_, _>>()?)
}

fn difference(
    model: &OnnxModel,
    inferred: &InferredShapes,
    expected: &[TensorProto],
) -> Result<Option<String>> {
    for (value, expected) in model.graph().output.iter().zip(expected) {
        let got = inferred
            .tensors
            .get(value.name())
            .ok_or("an output is missing")?;
        // The type is the model's: BF16 is UINT16 in the files of data.
        let (dims, declared) = (dims(expected)?, element(value));
        if got.shape.dims() != dims || got.element != declared {
            let (name, shape, element) = (value.name(), &got.shape, got.element);
            return Ok(Some(format!(
                "output `{name}` is {element} {shape}, expected {declared} {dims:?}"
            )));
        }
    }
    Ok(None)
}
