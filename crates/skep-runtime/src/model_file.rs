//! A version's model file: found, mapped, and what it declares.

use std::{collections::BTreeSet, fs, path::Path};

use skep_backend::{Backend, ModelFile};
use skep_config::ModelConfig;
use skep_onnx::{OnnxModel, is_ort};
use skep_tensor::Tensor;
use skep_types::{ModelSignature, Shape};

use crate::RuntimeError;

/// The names of a model's file where a configuration names none, the first before the second.
const DEFAULT_MODEL_FILES: [&str; 2] = ["model.onnx", "model.ort"];

/// The name of a version's model file where the configuration names none; `None` where that is the usual one.
pub(crate) fn lone_default(version_directory: &Path) -> Option<&'static str> {
    let there = |name: &&&str| version_directory.join(name).exists();
    let name = DEFAULT_MODEL_FILES.iter().find(there)?;
    (*name != DEFAULT_MODEL_FILES[0]).then_some(*name)
}

/// Maps a version's model file; a directory of that name holds the file under a usual name. Versions of a model may have
/// different ones of the usual names.
pub(crate) fn open(version_directory: &Path, filename: &str) -> Result<ModelFile, RuntimeError> {
    let mut path = version_directory.join(filename);
    let mut is_usual = DEFAULT_MODEL_FILES.contains(&filename);
    if path.is_dir() {
        path = path.join(DEFAULT_MODEL_FILES[0]);
        is_usual = true;
    }
    if is_usual && !path.exists() {
        let other = DEFAULT_MODEL_FILES.iter();
        let mut other = other.map(|name| path.with_file_name(name));
        path = other.find(|other| other.exists()).unwrap_or(path);
    }
    // The link itself is there, and what it names is not.
    if !path.exists() && path.is_symlink() {
        let target = fs::read_link(&path).unwrap_or_default();
        return Err(RuntimeError::invalid(format!(
            "no model file: `{}` is a link that leads nowhere: it names `{}`",
            path.display(),
            target.display()
        )));
    }
    if !path.exists() {
        let there: BTreeSet<String> = fs::read_dir(version_directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let hint = way_out(&there);
        let there: Vec<String> = there.iter().map(|name| format!("`{name}`")).collect();
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

/// What to do with the files that lie where the model's is expected. An ONNX file is the model, whatever lies beside it.
fn way_out(files: &BTreeSet<String>) -> Option<String> {
    match files.iter().find(|file| file.ends_with(".onnx")) {
        Some(file) => Some(format!(
            "rename `{file}`, or write `default_model_filename: \"{file}\"`"
        )),
        None => files
            .iter()
            .find_map(|file| skep_config::foreign_file_hint(file)),
    }
}

/// Decodes a file; `None` for one in ONNX Runtime's own format, which this backend alone can read.
pub(crate) fn decode(
    file: &ModelFile,
    backend: &dyn Backend,
) -> Result<Option<OnnxModel>, RuntimeError> {
    if backend.reads_ort() && is_ort(file.bytes()) {
        return Ok(None);
    }
    OnnxModel::decode(file.bytes().clone())
        .map(Some)
        .map_err(|error| in_file(file, &error.to_string()))
}

pub(crate) fn in_file(file: &ModelFile, what: &str) -> RuntimeError {
    RuntimeError::invalid(format!("`{}`: {what}", file.path().display()))
}

/// Refuses a configuration that names an output which the protocol cannot carry.
pub(crate) fn refuse_left_out(
    file: &ModelFile,
    onnx: &OnnxModel,
    is_named: &dyn Fn(&str) -> bool,
) -> Result<(), RuntimeError> {
    let left_out = onnx.left_out();
    match left_out.iter().find(|left| is_named(&left.name)) {
        Some(left) => {
            let text = format!("the protocol carries tensors alone, {left}");
            Err(in_file(file, &text))
        }
        None => Ok(()),
    }
}

/// What a file declares: the inputs that a run needs, and those among the configuration's that have a default; outputs that
/// it does not declare are what the configuration says of them.
pub(crate) fn signature(
    file: &ModelFile,
    onnx: &OnnxModel,
    config: &ModelConfig,
) -> Result<ModelSignature, RuntimeError> {
    refuse_left_out(file, onnx, &|name| config.output(name).is_some())?;
    onnx.signature_with(config.fed_inputs(), &|name| config.undeclared_output(name))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_onnx_file_is_the_way_out_whatever_lies_beside_it() {
        for (files, expected) in [
            (&["config.json", "net.onnx"][..], "rename `net.onnx`"),
            (&["model.pt", "net.onnx"], "rename `net.onnx`"),
            (
                &["export.py", "labels.json", "model.pt"],
                "`model.pt` looks like",
            ),
            (&["labels.json", "vocab.txt"], ""),
        ] {
            let files = files.iter().map(|file| (*file).to_owned()).collect();
            let found = way_out(&files).unwrap_or_default();
            assert!(found.contains(expected), "{found}");
            assert_eq!(found.is_empty(), expected.is_empty(), "{found}");
        }
    }
}
