//! The embedded backend: ONNX models in pure Rust, with nothing installed.
//!
//! The engine is rten. It is fast on large networks and needs little memory: it keeps one copy of the weights, in the
//! tensor store or in the mapped file if possible. But it knows fewer datatypes and operators than ONNX, and
//! misinterprets some of those that it does not know. This backend never approximates. It refuses whatever the engine
//! would compute incorrectly: at load if the file shows it (`audit`, `refusals`), per request if the values do.
//!
//! Served datatypes: FP32, INT32, INT8, UINT8, BOOL, and INT64 within 32 bits. Requests with larger INT64 inputs are
//! refused; models with larger constants are refused at load, unless the constants only bound slices. Two deviations
//! cannot be detected: INT64 arithmetic whose intermediate results exceed 32 bits wraps around, and `Relu` and `Clip`
//! do not propagate NaN.
//!
//! ```text
//! audit.rs, refusals.rs  what is refused at load
//! normalize.rs           rewrites what the engine does not know into what it knows
//! weights.rs             weights in place
//! bake.rs                the baked form, and loading from it
//! sizes.rs               what a run allocates, known before it begins
//! model.rs, convert.rs   a loaded model, its instances; the protocol's tensors as the engine's
//! ```

mod audit;
mod bake;
mod convert;
mod model;
mod normalize;
mod refusals;
mod sizes;
mod weights;

use std::{fmt, num::NonZeroUsize, path::Path, sync::Arc, thread};

use rten::{LoadErrorKind, NodeId};
use skep_backend::{
    Backend, BackendError, Capabilities, ErrorKind, FileInterface, InspectRequest, Inspection,
    LoadRequest, Model, ModelFile, OnnxReader, check_cpu,
};
use skep_cache::{Claim, FormKey, Found, Making};
use skep_config::{GraphOptimization, ModelConfig};
use skep_onnx::OnnxModel;
use skep_shapes::computed_outputs;
use skep_types::{DimensionNames, ModelSignature, TensorSpec};
use skep_weights::{
    Baked,
    baking::{self, FormPlan},
};

use crate::{bake::EmbeddedModelFile, model::EmbeddedModel, sizes::RunSizes, weights::EngineModel};

/// The backend's name in configurations.
pub const NAME: &str = "embedded";

/// The embedded engine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Embedded;

impl Backend for Embedded {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> String {
        "embedded engine (rten)".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            weights_in_place: true,
            prepared_outputs: false,
            datatypes: convert::DATATYPES,
        }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Model>, BackendError> {
        let path = request.file.path();
        check_cpu(NAME, request.device)?;
        let (subject, signature) = audited(request)?;
        // The engine has two levels: everything or nothing.
        let level = request.config.execution().graph_optimization;
        let optimize = level != GraphOptimization::Disable;
        let baked = request.weights;
        let baked = baked.and_then(|weights| subject.load_baked(weights, optimize));
        let is_baked = baked.is_some();
        let (loaded, tensors) = match baked {
            Some(loaded) => loaded,
            None => {
                let loaded = subject.load(optimize).map_err(|error| match error.kind() {
                    LoadErrorKind::OperatorInvalid => unsupported(path, &error.to_string()),
                    _ => invalid(path, &error),
                })?;
                (loaded, Vec::new())
            }
        };
        let (inputs, outputs) =
            nodes(&loaded, &subject.onnx, &signature).map_err(|error| invalid(path, &error))?;
        Ok(Arc::new(EmbeddedModel {
            sizes: RunSizes::of(&subject.onnx),
            bound: request.run_bound(),
            threads: threads(request),
            is_baked,
            tensors,
            loaded,
            signature,
            inputs,
            outputs,
        }))
    }

    fn ask(&self, file: &ModelFile) -> Result<FileInterface, BackendError> {
        let path = file.path();
        let onnx = file.onnx().map_err(|error| invalid(path, &error))?;
        let computed = computed_outputs(&onnx);
        let reported = |name: &str| computed.iter().find(|spec| spec.name == name).cloned();
        Ok(FileInterface {
            signature: onnx
                .signature_with([], &reported)
                .map_err(|error| invalid(path, &error))?,
            dimension_names: DimensionNames::new(),
        })
    }

    fn inspect(&self, request: &InspectRequest<'_>) -> Result<Inspection, BackendError> {
        let unknown_output_text = |output: &str| {
            format!(
                "backend `{NAME}` cannot infer the type of output `{output}`: declare it in the configuration, or use backend \
                 `onnxruntime`"
            )
        };
        let reader = OnnxReader {
            reads_ort: false,
            unknown_output_text: &unknown_output_text,
        };
        reader.inspect(request)
    }

    fn needs_process(&self, request: &LoadRequest<'_>) -> Option<String> {
        sizes::unbounded(&decoded(request).ok()?.onnx)
    }

    fn plan_form(&self, request: &LoadRequest<'_>) -> Result<FormPlan, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(FormPlan::WithoutForm("the weight cache is off".to_owned()));
        };
        let planned = baking::plan(&decoded(request)?, weights);
        let path = request.file.path();
        planned.map_err(|why| invalid(path, &why))
    }

    fn make_form(&self, request: &LoadRequest<'_>, making: Making) -> Result<(), BackendError> {
        let (subject, _) = audited(request)?;
        Ok(baking::make_form(&subject, making)?)
    }

    fn publish_form(&self, request: &LoadRequest<'_>, claim: Claim) -> Result<Found, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(Found::Nothing);
        };
        let published = baking::publish(&decoded(request)?, claim, weights);
        published.map_err(|why| BackendError::new(ErrorKind::Unavailable, why))
    }

    fn form_key(&self, request: &LoadRequest<'_>) -> Option<FormKey> {
        let (weights, subject) = request.weights.zip(decoded(request).ok())?;
        baking::form_key(&subject, weights)
    }

    fn bake(&self, request: &LoadRequest<'_>) -> Result<Baked, BackendError> {
        let Some(weights) = request.weights else {
            return Ok(Baked::WithoutForm("the weight cache is off".to_owned()));
        };
        let (subject, _) = audited(request)?;
        Ok(baking::bake(&subject, weights)?)
    }
}

/// The decoded file, without the defaults of inputs that requests supply.
fn decoded<'a>(request: &LoadRequest<'a>) -> Result<EmbeddedModelFile<'a>, BackendError> {
    let path = request.file.path();
    let onnx = request.file.onnx().map_err(|error| invalid(path, &error))?;
    let mut onnx = OnnxModel::clone(&onnx);
    // The engine treats defaults as constants, so an input that the configuration names must not have one.
    let mut forgotten: Vec<String> = request.config.fed_inputs().map(str::to_owned).collect();
    forgotten.retain(|input| onnx.forget_default(input));
    forgotten.sort();
    Ok(EmbeddedModelFile {
        path,
        files: baking::files(path, &onnx),
        onnx,
        forgotten,
    })
}

/// A model that passed the audit, and its signature.
fn audited<'a>(
    request: &LoadRequest<'a>,
) -> Result<(EmbeddedModelFile<'a>, ModelSignature), BackendError> {
    let path = request.file.path();
    let mut subject = decoded(request)?;
    let signature =
        declared(&subject.onnx, request.config).map_err(|error| invalid(path, &error))?;
    weights::resolve_external(subject.onnx.proto_mut(), path)
        .map_err(|error| invalid(path, &error))?;
    audit::audit(&subject.onnx).map_err(|reason| unsupported(path, &reason))?;
    Ok((subject, signature))
}

/// The signature. The configuration describes outputs that the file does not declare, and must agree with the graph
/// as far as their types follow from it.
fn declared(onnx: &OnnxModel, config: &ModelConfig) -> Result<ModelSignature, String> {
    for spec in computed_outputs(onnx) {
        config.check_reported_output(&spec)?;
    }
    let signature = onnx.signature_with([], &|name| config.undeclared_output(name));
    signature.map_err(|error| error.to_string())
}

/// The error for a broken file.
fn invalid(path: &Path, reason: &dyn fmt::Display) -> BackendError {
    failure(ErrorKind::InvalidModel, path, &reason.to_string())
}

/// The error for a model that only another backend can serve.
fn unsupported(path: &Path, reason: &str) -> BackendError {
    let reason = format!("{reason}\n{}", audit::HINT);
    failure(ErrorKind::Unsupported, path, &reason)
}

fn failure(kind: ErrorKind, path: &Path, reason: &str) -> BackendError {
    BackendError::new(
        kind,
        format!(
            "embedded backend cannot load `{}`: {reason}",
            path.display()
        ),
    )
}

/// Threads of a run: the configured number; 0 means all.
fn threads(request: &LoadRequest<'_>) -> usize {
    match request.config.execution().intra_op_threads {
        None => request.threads.get(),
        Some(0) => thread::available_parallelism().map_or(1, NonZeroUsize::get),
        Some(threads) => usize::try_from(threads).unwrap_or(usize::MAX),
    }
}

/// The engine's names for inputs and outputs.
fn nodes(
    loaded: &EngineModel,
    onnx: &OnnxModel,
    signature: &ModelSignature,
) -> Result<(Vec<NodeId>, Vec<NodeId>), String> {
    let engine = loaded.engine();
    let find = |spec: &TensorSpec| {
        engine
            .find_node(&spec.name)
            .ok_or_else(|| format!("no node computes tensor `{}`", spec.name))
    };
    let (ids, outputs) = (engine.output_ids(), &onnx.graph().output);
    if ids.len() != outputs.len() {
        return Err(format!(
            "the engine sees {} outputs, expected {}",
            ids.len(),
            outputs.len()
        ));
    }
    // The signature does not contain omitted outputs.
    let output = |spec: &TensorSpec| {
        let index = outputs.iter().position(|value| value.name() == spec.name);
        index.map(|index| ids[index])
    };
    let outputs = signature.outputs.iter().filter_map(output).collect();
    let inputs = signature
        .inputs
        .iter()
        .map(find)
        .collect::<Result<_, _>>()?;
    Ok((inputs, outputs))
}
