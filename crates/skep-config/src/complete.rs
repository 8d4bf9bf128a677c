//! Auto-completion: what a configuration leaves out and the model's file tells.
//!
//! The rules are those of Triton's server and of its ONNX Runtime backend, for every backend here.

use skep_proto::inference::{self, model_config::SchedulingChoice};
use skep_types::{ModelName, ModelSignature, TensorSpec};

use crate::{
    Isolation, error::ConfigError, model::backends, normalize::DEFAULT_MODEL_FILENAME,
    tensors::datatype_number,
};

/// The platform that goes with backend `onnxruntime`, and with no other.
pub(crate) const ONNXRUNTIME_PLATFORM: &str = "onnxruntime_onnx";

/// What completion knows.
#[derive(Debug, Clone, Copy)]
pub struct Completion<'a> {
    /// The model's directory's name.
    pub model: &'a ModelName,
    /// The backend for a configuration that names none.
    pub backend: &'a str,
    /// The model file's name for a configuration that says none; empty for `model.onnx`.
    pub model_filename: &'a str,
    /// The `max_batch_size` for a model that can batch and whose configuration says none.
    pub default_max_batch_size: u32,
    /// What the model's file declares; `None` leaves inputs, outputs and batching alone.
    pub signature: Option<&'a ModelSignature>,
    /// Whether a model of this signature is not made to batch although it [looks](looks_batched) as if it could.
    pub is_unbatched: bool,
}

/// Whether every input and output has a variable first dimension, which makes a model one that can batch.
#[must_use]
pub fn looks_batched(signature: &ModelSignature) -> bool {
    let mut tensors = signature.inputs.iter().chain(&signature.outputs);
    !signature.inputs.is_empty() && tensors.all(|spec| first(spec) == Some(Some(-1)))
}

/// A tensor's first dimension, where it has one; `None` where its rank is unknown.
fn first(spec: &TensorSpec) -> Option<Option<i64>> {
    let dims = spec.dims.as_ref()?;
    Some(dims.as_slice().first().copied())
}

/// The backend that a configuration names, in `backend` or by its platform.
#[must_use]
pub fn configured_backend(config: &inference::ModelConfig) -> Option<&str> {
    match (config.backend.as_str(), config.platform.as_str()) {
        ("", ONNXRUNTIME_PLATFORM) => Some(backends::ONNXRUNTIME),
        ("", _) => None,
        (backend, _) => Some(backend),
    }
}

/// Where a configuration that is not complete yet says that its model runs.
#[must_use]
pub fn configured_isolation(config: &inference::ModelConfig) -> Isolation {
    let value = config.parameters.get("isolation");
    match value.map(|parameter| parameter.string_value.trim()) {
        Some("process") => Isolation::Process,
        _ => Isolation::Thread,
    }
}

/// Fills in name, backend, platform and file name; and, unless inputs and outputs are both given, what is missing of
/// them, `max_batch_size` and `dynamic_batching`.
///
/// # Errors
/// [`ConfigError::Signature`] when the configuration wants batches that the model cannot take, names a tensor that the
/// model lacks, or leaves out dims that the model's file does not tell.
pub fn complete(
    config: &mut inference::ModelConfig,
    c: &Completion<'_>,
) -> Result<(), ConfigError> {
    complete_identity(config, c);
    let Some(signature) = c.signature else {
        return Ok(());
    };
    if !config.input.is_empty() && !config.output.is_empty() {
        return Ok(());
    }
    complete_batching(config, c, signature)?;
    let batched = config.max_batch_size > 0;
    let side = |side, specs| Side {
        model: c.model.as_str(),
        side,
        specs,
        batched,
    };
    // Those that are computed of a batch are none of a request's.
    let computed = |name: &String| {
        let mut targets = config.batch_input.iter().flat_map(|b| &b.target_name);
        targets.any(|target| target == name)
    };
    let of_requests = signature.inputs.iter();
    let of_requests = of_requests.filter(|spec| !computed(&spec.name));
    let of_requests: Vec<TensorSpec> = of_requests.cloned().collect();
    side("input", &of_requests).complete(&mut config.input)?;
    side("output", &signature.outputs).complete(&mut config.output)
}

fn complete_identity(config: &mut inference::ModelConfig, c: &Completion<'_>) {
    let fill = |field: &mut String, value: &str| {
        if field.is_empty() {
            value.clone_into(field);
        }
    };
    fill(&mut config.name, c.model.as_str());
    // A platform of somebody else's is left to be refused under its own name.
    let backend = match configured_backend(config) {
        Some(backend) => backend.to_owned(),
        None if config.platform.is_empty() => c.backend.to_owned(),
        None => String::new(),
    };
    fill(&mut config.backend, &backend);
    if config.backend == backends::ONNXRUNTIME {
        fill(&mut config.platform, ONNXRUNTIME_PLATFORM);
    }
    let filename = if c.model_filename.is_empty() {
        DEFAULT_MODEL_FILENAME
    } else {
        c.model_filename
    };
    fill(&mut config.default_model_filename, filename);
}

/// A model can batch when every input and output has a variable first dimension.
fn complete_batching(
    config: &mut inference::ModelConfig,
    c: &Completion<'_>,
    signature: &ModelSignature,
) -> Result<(), ConfigError> {
    let tensors = || signature.inputs.iter().chain(&signature.outputs);
    if config.max_batch_size > 0 {
        // A tensor of unknown rank neither allows nor forbids what the user asked for.
        if let Some(spec) =
            tensors().find(|spec| first(spec).is_some_and(|first| first != Some(-1)))
        {
            return Err(no_batching(c.model.as_str(), config.max_batch_size, spec));
        }
    } else if config.max_batch_size == 0 && looks_batched(signature) && !c.is_unbatched {
        config.max_batch_size = i32::try_from(c.default_max_batch_size).unwrap_or(i32::MAX);
    }
    if config.max_batch_size > 1 && config.scheduling_choice.is_none() {
        config.scheduling_choice = Some(SchedulingChoice::DynamicBatching(
            inference::ModelDynamicBatching::default(),
        ));
    }
    Ok(())
}

fn no_batching(model: &str, max_batch_size: i32, spec: &TensorSpec) -> ConfigError {
    let shape = spec
        .dims
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    ConfigError::Signature {
        model: model.to_owned(),
        tensor: spec.name.clone(),
        reason: format!(
            "autofill failed for model '{model}': model does not support batching while non-zero max_batch_size is \
             specified: tensor '{}' has shape {shape}, max_batch_size is {max_batch_size}",
            spec.name
        ),
        hint: Some(
            "write `max_batch_size: 0`, or make the first dimension of every tensor variable"
                .to_owned(),
        ),
    }
}

/// An input or output in the wire's form.
trait Tensor: Default {
    fn name(&mut self) -> &mut String;
    fn data_type(&mut self) -> &mut i32;
    fn dims(&mut self) -> &mut Vec<i64>;
    fn reshape(&mut self) -> &mut Option<inference::ModelTensorReshape>;
}

macro_rules! tensor {
    ($message:ty) => {
        impl Tensor for $message {
            fn name(&mut self) -> &mut String {
                &mut self.name
            }
            fn data_type(&mut self) -> &mut i32 {
                &mut self.data_type
            }
            fn dims(&mut self) -> &mut Vec<i64> {
                &mut self.dims
            }
            fn reshape(&mut self) -> &mut Option<inference::ModelTensorReshape> {
                &mut self.reshape
            }
        }
    };
}
tensor!(inference::ModelInput);
tensor!(inference::ModelOutput);

/// All inputs, or all outputs, of the model's file.
struct Side<'a> {
    model: &'a str,
    side: &'static str,
    specs: &'a [TensorSpec],
    batched: bool,
}

impl Side<'_> {
    /// Lists every tensor where none is given; else fills in what the given ones lack.
    fn complete<T: Tensor>(&self, tensors: &mut Vec<T>) -> Result<(), ConfigError> {
        if tensors.is_empty() {
            for spec in self.specs {
                let mut tensor = T::default();
                spec.name.clone_into(tensor.name());
                self.complete_tensor(&mut tensor, spec)?;
                tensors.push(tensor);
            }
            return Ok(());
        }
        for tensor in tensors {
            // Without a name there is nothing to go by; validation says so.
            if tensor.name().is_empty() || (*tensor.data_type() != 0 && !tensor.dims().is_empty()) {
                continue;
            }
            let Some(spec) = self.specs.iter().find(|spec| spec.name == *tensor.name()) else {
                return Err(self.unknown(tensor.name()));
            };
            self.complete_tensor(tensor, spec)?;
        }
        Ok(())
    }

    fn complete_tensor<T: Tensor>(
        &self,
        tensor: &mut T,
        spec: &TensorSpec,
    ) -> Result<(), ConfigError> {
        if *tensor.data_type() == 0 {
            *tensor.data_type() = datatype_number(spec.datatype);
        }
        if !tensor.dims().is_empty() {
            return Ok(());
        }
        let Some(dims) = &spec.dims else {
            return Err(self.no_rank(spec));
        };
        let dims = dims
            .as_slice()
            .get(usize::from(self.batched)..)
            .unwrap_or_default();
        tensor.dims().extend_from_slice(dims);
        if dims.is_empty() {
            tensor.dims().push(1);
            // Without batching an empty reshape is no valid configuration; `ModelConfig::with_signature` knows scalars.
            if self.batched {
                tensor.reshape().get_or_insert_default();
            }
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> ConfigError {
        let side = self.side;
        let allowed: Vec<&str> = self.specs.iter().map(|spec| spec.name.as_str()).collect();
        ConfigError::Signature {
            model: self.model.to_owned(),
            tensor: name.to_owned(),
            reason: format!(
                "unexpected inference {side} '{name}', allowed {side}s are: {}",
                allowed.join(", ")
            ),
            hint: None,
        }
    }

    fn no_rank(&self, spec: &TensorSpec) -> ConfigError {
        let (side, name) = (self.side, &spec.name);
        ConfigError::Signature {
            model: self.model.to_owned(),
            tensor: name.clone(),
            reason: format!(
                "{side} `{name}` of model `{}` has no shape in the model's file, expected its dims in the configuration",
                self.model
            ),
            hint: Some(format!(
                "write `{side} [ {{ name: \"{name}\" data_type: {} dims: [ .. ] }} ]`, and the other {side}s with it",
                spec.datatype.config_name()
            )),
        }
    }
}

#[cfg(test)]
#[path = "complete_tests.rs"]
mod tests;
