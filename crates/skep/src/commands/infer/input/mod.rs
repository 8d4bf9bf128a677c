//! Inputs that the command line gives: JSON, NumPy's files, raw bytes.

mod elements;
mod file;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;
use skep_client::TensorMetadata;
use skep_tensor::{Tensor, encode_strings};
use skep_types::{DataType, Shape};

use elements::{of_json, whole};
use file::{of_file, read};

/// What a flag gives of an input.
#[derive(Debug, Clone)]
pub(super) enum InputData {
    /// As it stands there.
    Text(String),
    /// What a file holds.
    File(PathBuf),
}

const DATA_EXPECTED: &str = "expected an input's name and data, as in `x=[1,2,3]` or `x=@file.npy`";
const SHAPE_EXPECTED: &str = "expected an input's name and its dimensions, as in `x=1,3,224,224`";
const FILE_EXPECTED: &str = "expected the name of a file behind `@`";

/// `name=[1,2]`, `name=@file`, as far as it can be checked before the model's inputs are known.
pub(super) fn given(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        None | Some(("", _)) => Err(DATA_EXPECTED.to_owned()),
        Some((_, "@")) => Err(FILE_EXPECTED.to_owned()),
        Some(_) => Ok(text.to_owned()),
    }
}

/// `name=1,3,224,224`; nothing behind the sign for a scalar. As far as it can be checked before the inputs are known.
pub(crate) fn given_shape(text: &str) -> Result<String, String> {
    let (name, dims) = text.rsplit_once('=').ok_or(SHAPE_EXPECTED)?;
    if name.is_empty() {
        return Err(SHAPE_EXPECTED.to_owned());
    }
    shape(dims).map(|_| text.to_owned())
}

/// Takes `name=rest` apart. Names may hold the sign themselves: the longest input's name with the sign behind it
/// counts.
pub(crate) fn named<'a>(text: &'a str, inputs: &'a [TensorMetadata]) -> Option<(&'a str, &'a str)> {
    let fitting = inputs.iter().filter_map(|input| {
        let rest = text.strip_prefix(&input.name)?.strip_prefix('=')?;
        Some((input.name.as_str(), rest))
    });
    fitting.max_by_key(|(name, _)| name.len())
}

/// `[1,2]`, `@file`.
pub(super) fn data(text: &str) -> Result<InputData, String> {
    match text.strip_prefix('@') {
        Some("") => Err(FILE_EXPECTED.to_owned()),
        Some(path) => Ok(InputData::File(path.into())),
        None => Ok(InputData::Text(text.to_owned())),
    }
}

/// `1,3,224,224`.
pub(crate) fn shape(dims: &str) -> Result<Shape, String> {
    let dims = dims.trim_start_matches('[').trim_end_matches(']');
    let dims = if dims.trim().is_empty() {
        Vec::new()
    } else {
        let dims = dims.split(',').map(|dim| dim.trim().parse::<usize>());
        dims.collect::<Result<_, _>>()
            .map_err(|_| format!("{SHAPE_EXPECTED}: numbers from 0"))?
    };
    Shape::new(&dims).map_err(|error| error.to_string())
}

/// Zeros or empty strings; variable dimensions that are not given are 1.
pub(crate) fn zeros(input: &TensorMetadata, shape: Option<&Shape>) -> anyhow::Result<Tensor> {
    let dims = input.shape.as_slice().iter();
    let dims: Vec<usize> = dims.map(|dim| usize::try_from(*dim).unwrap_or(1)).collect();
    let shape = shape.map_or_else(|| Shape::new(&dims), |shape| Ok(shape.clone()))?;
    Ok(Tensor::zeros(input.datatype, shape))
}

/// The tensor of an input. Its shape is the one that is given, that of the data where it has as many dimensions as the
/// model's, or the model's with its one variable dimension filled.
pub(super) fn tensor(
    input: &TensorMetadata,
    data: &InputData,
    shape: Option<&Shape>,
) -> anyhow::Result<Tensor> {
    match data {
        InputData::Text(text) => {
            // Text for a string needs no quotes.
            let is_json = text.trim_start().starts_with(['[', '"']);
            if input.datatype == DataType::Bytes && !is_json {
                let data = encode_strings([text.as_bytes()]).into();
                return whole(input, shape, &[], 1, data);
            }
            let tensor = of_json(input, text, shape);
            if tensor.is_err() && is_file(text) {
                bail!(
                    "`{text}` is not JSON, but the name of a file\n  try: `--input {}=@{text}`",
                    input.name
                );
            }
            tensor
        }
        InputData::File(path) => {
            let file = read(path)?;
            of_file(input, path, &file, shape).with_context(|| format!("`{}`", path.display()))
        }
    }
}

/// Whether a text names a file rather than being data: its user forgot the `@`.
fn is_file(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_err() && Path::new(text).is_file()
}
