//! A version's model file: found, mapped, and what it declares.

use std::{collections::BTreeMap, fs, path::Path};

use skep_backend::ModelFile;
use skep_config::ModelConfig;
use skep_onnx::OnnxModel;
use skep_tensor::Tensor;
use skep_types::{ModelSignature, Shape};

use crate::RuntimeError;

/// The file in a directory that has the name of a model's file.
const DEFAULT_MODEL_FILE: &str = "model.onnx";

/// Maps a version's model file; a directory of that name holds the file under the same name.
pub(crate) fn open(version_directory: &Path, filename: &str) -> Result<ModelFile, RuntimeError> {
    let mut path = version_directory.join(filename);
    if path.is_dir() {
        path = path.join(DEFAULT_MODEL_FILE);
    }
    if !path.exists() {
        let there: BTreeMap<String, ()> = fs::read_dir(version_directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some((format!("`{}`", entry.ok()?.file_name().to_str()?), ())))
            .collect();
        let hint = there
            .keys()
            .find_map(|name| way_out(name.trim_matches('`')));
        let there: Vec<String> = there.into_keys().collect();
        let found = if there.is_empty() {
            "the directory is empty".to_owned()
        } else {
            format!("found {}", there.join(", "))
        };
        return Err(RuntimeError::invalid(format!(
            "no model file: expected `{}`, {found}",
            path.display()
        ))
        .with_hint(hint));
    }
    ModelFile::open(&path).map_err(Into::into)
}

/// What to do with a file that lies where the model's is expected.
fn way_out(file: &str) -> Option<String> {
    if file.ends_with(".onnx") {
        return Some(format!(
            "rename `{file}`, or write `default_model_filename: \"{file}\"`"
        ));
    }
    skep_config::foreign_file_hint(file)
}

pub(crate) fn decode(file: &ModelFile) -> Result<OnnxModel, RuntimeError> {
    OnnxModel::decode(file.bytes().clone()).map_err(|error| in_file(file, &error.to_string()))
}

fn in_file(file: &ModelFile, what: &str) -> RuntimeError {
    RuntimeError::invalid(format!("`{}`: {what}", file.path().display()))
}

/// What a file declares: the inputs that a run needs, and those among `named` that have a default.
pub(crate) fn signature<'a>(
    file: &ModelFile,
    onnx: &OnnxModel,
    named: impl Iterator<Item = &'a str>,
) -> Result<ModelSignature, RuntimeError> {
    onnx.signature_with(named)
        .map_err(|error| in_file(file, &error.to_string()))
}

/// The values of the configuration's optional inputs.
pub(crate) fn defaults(
    file: &ModelFile,
    onnx: &OnnxModel,
    config: &ModelConfig,
) -> Result<Vec<(String, Tensor)>, RuntimeError> {
    config.check_optional(|name| onnx.default_value(name).is_some())?;
    let optional = config.inputs().iter().filter(|input| input.optional);
    let mut defaults = Vec::new();
    for input in optional {
        let Some(value) = onnx.default_value(&input.name) else {
            continue;
        };
        let value = value.map_err(|why| in_file(file, &why))?;
        let tensor = Shape::new(&value.dims)
            .map_err(|error| error.to_string())
            .and_then(|shape| {
                Tensor::new(value.datatype, shape, value.data).map_err(|error| error.to_string())
            })
            .map_err(|why| {
                in_file(
                    file,
                    &format!("the default of input `{}`: {why}", input.name),
                )
            })?;
        defaults.push((input.name.clone(), tensor));
    }
    Ok(defaults)
}
