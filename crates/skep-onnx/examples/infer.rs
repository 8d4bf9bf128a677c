//! The shapes of a model's tensors, one a line: `cargo run -p skep-onnx --example infer -- MODEL.onnx [--batch N]
//! [--input NAME:1,2] [--tensor NAME:1,2]`.
//!
//! A line holds name, element type, shape, bytes, and when its values are known.

use std::error::Error;

use skep_onnx::{OnnxModel, infer::Given};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("expected a model's file")?;
    let mut given = Given::default();
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .ok_or("expected a value behind each flag")?;
        match flag.as_str() {
            "--batch" => given.batch = Some(value.parse()?),
            "--input" => given.inputs.extend([shape(&value)?]),
            "--tensor" => given.tensors.extend([shape(&value)?]),
            _ => return Err(format!("unknown flag `{flag}`").into()),
        }
    }
    let model = OnnxModel::decode(std::fs::read(path)?.into())?;
    let inferred = model.infer(&given)?;
    for (name, tensor) in &inferred.tensors {
        let known = tensor.known;
        let (element, shape) = (tensor.element, &tensor.shape);
        println!("{name}\t{element}\t{shape}\t{}\t{known:?}", tensor.bytes());
    }
    Ok(())
}

/// `NAME:1,2`; nothing behind the colon is a scalar.
fn shape(text: &str) -> Result<(String, Vec<usize>), Box<dyn Error>> {
    let (name, dims) = text.rsplit_once(':').ok_or("expected NAME:1,2")?;
    let dims = dims
        .split(',')
        .filter(|dim| !dim.is_empty())
        .map(str::parse);
    Ok((name.to_owned(), dims.collect::<Result<_, _>>()?))
}
