//! The inspection of ONNX files, for every backend that reads them.

use std::sync::Arc;

use skep_config::looks_batched;
use skep_onnx::{OnnxModel, is_ort};
use skep_shapes::{computed_outputs, why_names_do_not_batch, why_not_batched};
use skep_tensor::Tensor;
use skep_types::{ModelSignature, Shape, TensorSpec};

use crate::{
    BackendError, ErrorKind, InspectRequest, Inspection, ModelFile, inspect::ConfiguredTensors,
};

/// The names that an ONNX model's file may have if its configuration names none; the first takes precedence.
pub const ONNX_FILES: [&str; 2] = ["model.onnx", "model.ort"];

/// The error text for an `output` whose type neither the file nor the library of `backend` determines.
#[must_use]
pub fn unknown_output_text(backend: &str, output: &str) -> String {
    format!(
        "the model's file does not declare the type of output `{output}`, and backend `{backend}` cannot infer one that the protocol \
         supports: expected its `data_type` and `dims` in the configuration"
    )
}

/// The inspection of ONNX files, with the differences between backends.
#[derive(Clone, Copy)]
pub struct OnnxReader<'a> {
    /// Whether the backend also reads ONNX Runtime's own format (`.ort`), whose inputs and outputs only a load reveals.
    pub reads_ort: bool,
    /// The error text for an output, given its name, whose type neither the file nor the backend's library determines.
    pub unknown_output_text: &'a dyn Fn(&str) -> String,
}

impl OnnxReader<'_> {
    /// Inspects an ONNX file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a file that is not a model, or that does not match the configuration;
    /// errors of [`InspectRequest::ask`] pass through.
    pub fn inspect(&self, request: &InspectRequest<'_>) -> Result<Inspection, BackendError> {
        let InspectRequest { file, tensors, ask } = *request;
        if self.reads_ort && is_ort(file.bytes()) {
            return inspect_own_format(request);
        }
        let onnx = file
            .onnx()
            .map_err(|error| in_file(file, &error.to_string()))?;
        refuse_left_out(file, &onnx, tensors)?;
        let signature = signature(request, &onnx)?;
        if ask.is_some() {
            let mut unknown = onnx.undeclared_outputs();
            let unknown =
                unknown.find(|name| names(tensors, name) && signature.output(name).is_none());
            if let Some(name) = unknown {
                return Err(in_file(file, &(self.unknown_output_text)(name)));
            }
        }
        let left_out = self.left_out(tensors, &onnx, &signature);
        if signature.outputs.is_empty() && tensors.outputs.is_empty() {
            let texts: String = left_out.iter().map(|text| format!("\n{text}")).collect();
            let text = format!("it has no output that can be served{texts}");
            return Err(in_file(file, &text));
        }
        let is_served = |name: &str| serves(tensors, name) && signature.output(name).is_some();
        let not_batched = match ask {
            Some(_) if looks_batched(&signature) => why_not_batched(&onnx, &is_served),
            _ => None,
        };
        Ok(Inspection {
            defaults: defaults(request, &onnx)?,
            signature: Some(signature),
            not_batched,
            left_out,
            _decoded: Some(onnx),
        })
    }

    /// Texts about the outputs that are omitted from an incomplete configuration, and why.
    fn left_out(
        &self,
        tensors: &ConfiguredTensors,
        onnx: &OnnxModel,
        signature: &ModelSignature,
    ) -> Vec<String> {
        if !tensors.outputs.is_empty() {
            return Vec::new();
        }
        let not_tensors = onnx.left_out().into_iter().map(|left| {
            format!("the protocol supports tensors only, so this output is left out: {left}")
        });
        let unknown = onnx.undeclared_outputs();
        let unknown = unknown.filter(|name| signature.output(name).is_none());
        let unknown = unknown.map(|name| {
            format!(
                "output `{name}` is left out: {}\nwrite `output [ {{ name: \"{name}\" data_type: .. dims: [ .. ] }} ]` and \
                 the other outputs with it",
                (self.unknown_output_text)(name)
            )
        });
        not_tensors.chain(unknown).collect()
    }
}

/// Inspects a file that only the library can read.
fn inspect_own_format(request: &InspectRequest<'_>) -> Result<Inspection, BackendError> {
    let Some(ask) = request.ask else {
        return Ok(Inspection::default());
    };
    let reported = ask()?;
    let is_served = |name: &str| serves(request.tensors, name);
    let not_batched = looks_batched(&reported.signature).then(|| {
        why_names_do_not_batch(&reported.signature, &reported.dimension_names, &is_served)
    });
    Ok(Inspection {
        signature: Some(reported.signature),
        not_batched: not_batched.flatten(),
        ..Inspection::default()
    })
}

/// The signature: the inputs that a run needs, and the configured ones that have a default; the outputs that the file
/// declares, and the others as the configuration, or else the library, describes them.
fn signature(
    request: &InspectRequest<'_>,
    onnx: &OnnxModel,
) -> Result<ModelSignature, BackendError> {
    let InspectRequest { file, tensors, ask } = *request;
    let configured = |name: &str| {
        let mut outputs = tensors.outputs.iter();
        let output = outputs.find(|output| output.name == name)?;
        Some(TensorSpec {
            name: name.to_owned(),
            datatype: output.datatype?,
            // The configuration alone determines these.
            dims: None,
        })
    };
    let is_open = |name: &str| serves(tensors, name) && configured(name).is_none();
    let asked = match ask {
        Some(ask) if onnx.undeclared_outputs().any(is_open) => ask()?.signature,
        _ => ModelSignature::default(),
    };
    let computed = match asked.outputs.is_empty() {
        true => Vec::new(),
        false => computed_outputs(onnx),
    };
    let reported = |name: &str| {
        configured(name).or_else(|| {
            let mut spec = asked.output(name)?.clone();
            // The library reports an output of unknown rank as a scalar.
            if spec.dims.as_ref().is_some_and(|dims| dims.rank() == 0)
                && let Some(computed) = computed.iter().find(|computed| computed.name == name)
            {
                spec.dims.clone_from(&computed.dims);
            }
            Some(spec)
        })
    };
    let inputs = tensors.inputs.iter().map(String::as_str);
    onnx.signature_with(inputs, &reported)
        .map_err(|error| in_file(file, &error.to_string()))
}

/// Refuses a configuration that names an output that is not a tensor.
fn refuse_left_out(
    file: &ModelFile,
    onnx: &OnnxModel,
    tensors: &ConfiguredTensors,
) -> Result<(), BackendError> {
    let left_out = onnx.left_out();
    match left_out.iter().find(|left| names(tensors, &left.name)) {
        Some(left) => {
            let text = format!("the protocol supports tensors only, but {left}");
            Err(in_file(file, &text))
        }
        None => Ok(()),
    }
}

/// The defaults of optional inputs.
fn defaults(
    request: &InspectRequest<'_>,
    onnx: &OnnxModel,
) -> Result<Vec<(String, Tensor)>, BackendError> {
    let mut defaults = Vec::new();
    for name in &request.tensors.optional_inputs {
        let Some(value) = onnx.default_value(name) else {
            continue;
        };
        let value = value.map_err(|why| in_file(request.file, &why))?;
        let tensor = Shape::new(&value.dims)
            .map_err(|error| error.to_string())
            .and_then(|shape| {
                Tensor::new(value.datatype, shape, value.data).map_err(|error| error.to_string())
            })
            .map_err(|why| {
                in_file(
                    request.file,
                    &format!("the default of input `{name}`: {why}"),
                )
            })?;
        defaults.push((name.clone(), tensor));
    }
    Ok(defaults)
}

/// Whether the configuration names this output.
fn names(tensors: &ConfiguredTensors, output: &str) -> bool {
    tensors.outputs.iter().any(|named| named.name == output)
}

/// Whether this output is to be served: the configuration names it, or names none.
fn serves(tensors: &ConfiguredTensors, output: &str) -> bool {
    tensors.outputs.is_empty() || names(tensors, output)
}

fn in_file(file: &ModelFile, what: &str) -> BackendError {
    let text = format!("`{}`: {what}", file.path().display());
    BackendError::new(ErrorKind::InvalidArgument, text)
}

impl ModelFile {
    /// The file as an ONNX model. All holders of the result share one decoded copy.
    ///
    /// # Errors
    /// Errors of [`OnnxModel::decode`].
    pub fn onnx(&self) -> Result<Arc<OnnxModel>, skep_onnx::OnnxError> {
        let mut decoded = skep_host::lock(&self.decoded);
        if let Some(onnx) = decoded.upgrade() {
            return Ok(onnx);
        }
        let onnx = Arc::new(OnnxModel::decode(self.bytes().clone())?);
        *decoded = Arc::downgrade(&onnx);
        Ok(onnx)
    }
}
