//! What completion learns of a model's file: inputs and outputs, and what is odd about them.
//!
//! Most files declare everything. Where one does not declare the type of an output, or is in a format that only its runtime
//! reads, the runtime is asked: in a process of its own where the model is to run in one.

use std::time::Duration;

use skep_backend::{Backend, FileInterface, ModelFile};
use skep_config::{Isolation, Notice, configured_isolation, looks_batched};
use skep_onnx::OnnxModel;
use skep_proto::inference;
use skep_shapes::{computed_outputs, why_names_do_not_batch, why_not_batched};
use skep_types::{DataType, ModelName, ModelSignature, TensorSpec};

use crate::{
    RuntimeError,
    model_file::{decode, in_file, refuse_left_out},
};

/// What a file tells, for a configuration that leaves something open.
pub(crate) struct Told {
    pub(crate) signature: ModelSignature,
    /// Whether the first dimensions of tensors are found to be no batch.
    pub(crate) is_unbatched: bool,
    pub(crate) notices: Vec<Notice>,
}

impl Told {
    /// With why the first dimensions are no batch.
    fn new(
        signature: ModelSignature,
        why: Option<String>,
        mut notices: Vec<Notice>,
        config: &inference::ModelConfig,
    ) -> Self {
        let is_unbatched = why.is_some();
        notices.extend(why.map(|why| unbatched(&why, config.max_batch_size)));
        Self {
            signature,
            is_unbatched,
            notices,
        }
    }
}

/// The backend that is asked where the file does not tell.
pub(crate) struct Asked<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) model: &'a ModelName,
    /// What a process of its own may take.
    pub(crate) limit: Option<Duration>,
}

impl Asked<'_> {
    /// Reads a model's file for this configuration.
    pub(crate) fn about(
        &self,
        file: &ModelFile,
        config: &inference::ModelConfig,
    ) -> Result<Told, RuntimeError> {
        let named = |name: &str| config.output.iter().any(|output| output.name == name);
        let is_served = |name: &str| config.output.is_empty() || named(name);
        let Some(onnx) = decode(file, self.backend)? else {
            let told = self.ask(file, config)?;
            let (signature, names) = (told.signature, &told.dimension_names);
            let why = || why_names_do_not_batch(&signature, names, &is_served);
            let why = looks_batched(&signature).then(why).flatten();
            return Ok(Told::new(signature, why, Vec::new(), config));
        };
        refuse_left_out(file, &onnx, &named)?;
        let signature = self.signature(file, &onnx, config)?;
        let unknown = |name: &&str| named(name) && signature.output(name).is_none();
        if let Some(name) = onnx.undeclared_outputs().find(unknown) {
            return Err(in_file(file, &self.backend.untold_output(name)));
        }
        let notices = self.left_out(&onnx, &signature, config);
        if signature.outputs.is_empty() && config.output.is_empty() {
            let texts = notices.iter().map(|notice| format!("\n{}", notice.text));
            let texts: String = texts.collect();
            return Err(in_file(
                file,
                &format!("it has no output that can be served{texts}"),
            ));
        }
        let is_served = |name: &str| is_served(name) && signature.output(name).is_some();
        let why = || why_not_batched(&onnx, &is_served);
        let why = looks_batched(&signature).then(why).flatten();
        Ok(Told::new(signature, why, notices, config))
    }

    /// What the file declares, with what the configuration says of undeclared outputs, or else the runtime.
    fn signature(
        &self,
        file: &ModelFile,
        onnx: &OnnxModel,
        config: &inference::ModelConfig,
    ) -> Result<ModelSignature, RuntimeError> {
        let is_open = |name: &str| {
            let output = config.output.iter().find(|output| output.name == name);
            match output {
                Some(_) => configured(config, name).is_none(),
                None => config.output.is_empty(),
            }
        };
        let asked = match onnx.undeclared_outputs().any(is_open) {
            true => self.ask(file, config)?.signature,
            false => ModelSignature::default(),
        };
        let computed = computed_outputs(onnx);
        let told = |name: &str| {
            configured(config, name).or_else(|| {
                let mut spec = asked.output(name)?.clone();
                // What a runtime knows no rank of looks like a scalar.
                if spec.dims.as_ref().is_some_and(|dims| dims.rank() == 0)
                    && let Some(computed) = computed.iter().find(|computed| computed.name == name)
                {
                    spec.dims.clone_from(&computed.dims);
                }
                Some(spec)
            })
        };
        let inputs = config.input.iter().map(|input| &*input.name);
        onnx.signature_with(inputs, &told)
            .map_err(|error| in_file(file, &error.to_string()))
    }

    /// Says which outputs a completed configuration does not list, and why.
    fn left_out(
        &self,
        onnx: &OnnxModel,
        signature: &ModelSignature,
        config: &inference::ModelConfig,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        if !config.output.is_empty() {
            return notices;
        }
        for left in onnx.left_out() {
            let text =
                format!("the protocol carries tensors alone and this output is left out: {left}");
            notices.push(Notice::new("output", text));
        }
        for name in onnx.undeclared_outputs() {
            if signature.output(name).is_none() {
                let text = format!(
                    "output `{name}` is left out: {}\nwrite `output [ {{ name: \"{name}\" data_type: .. dims: [ .. ] }} ]` and \
                     the other outputs with it",
                    self.backend.untold_output(name)
                );
                notices.push(Notice::new("output", text));
            }
        }
        notices
    }

    fn ask(
        &self,
        file: &ModelFile,
        config: &inference::ModelConfig,
    ) -> Result<FileInterface, RuntimeError> {
        let told = match configured_isolation(config) {
            Isolation::Process => {
                skep_sandbox::ask(self.backend, self.model.as_str(), file, self.limit)
            }
            Isolation::Thread => {
                let ask = std::panic::AssertUnwindSafe(|| self.backend.ask(file));
                // A broken file must not take the server down with it.
                std::panic::catch_unwind(ask).unwrap_or_else(|_| {
                    let name = self.backend.name();
                    let text = format!("backend `{name}` panicked while reading the model");
                    let kind = skep_backend::ErrorKind::Internal;
                    Err(skep_backend::BackendError::new(kind, text))
                })
            }
        };
        told.map_err(Into::into)
    }
}

/// What a configuration says of an output, where it says datatype and dims.
fn configured(config: &inference::ModelConfig, name: &str) -> Option<TensorSpec> {
    let mut outputs = config.output.iter();
    let output = outputs.find(|output| output.name == name && !output.dims.is_empty())?;
    let datatype = inference::DataType::try_from(output.data_type).ok()?;
    let mut known = DataType::ALL.into_iter();
    Some(TensorSpec {
        name: name.to_owned(),
        datatype: known.find(|known| known.config_name() == datatype.as_str_name())?,
        dims: None,
    })
}

fn unbatched(why: &str, max_batch_size: i32) -> Notice {
    let text = match max_batch_size {
        0 => format!(
            "the model is served without batching: {why}\nwrite `max_batch_size` into the configuration if \
             the first dimension is the batch all the same"
        ),
        size => format!(
            "max_batch_size is {size}, and the first dimension may be no batch: {why}\nwrite `max_batch_size: 0` if requests fail \
             because an output cannot be split"
        ),
    };
    Notice::new("max_batch_size", text)
}
