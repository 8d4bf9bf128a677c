//! Checks of the model as a whole, and the defaults that a client is shown.

use skep_proto::inference::{
    self, model_config::SchedulingChoice, model_optimization_policy::PinnedMemoryBuffer,
};
use skep_types::ModelName;

use crate::{
    complete::{ONNXRUNTIME_PLATFORM, configured_backend},
    error::ConfigError,
    foreign::check_backend_name,
    model::backends,
    tensors::{leaves, stays_inside},
};

/// The model file's name when neither the configuration nor the caller says another.
pub(crate) const DEFAULT_MODEL_FILENAME: &str = "model.onnx";

/// The configuration's name must be the directory's; an absent one becomes it.
///
/// # Errors
/// [`ConfigError::Invalid`] for another name.
pub fn check_name(
    proto: &mut inference::ModelConfig,
    directory: &ModelName,
) -> Result<(), ConfigError> {
    let directory = directory.as_str();
    if proto.name.is_empty() {
        directory.clone_into(&mut proto.name);
    }
    if proto.name != directory {
        let reason = format!(
            "unexpected directory name '{directory}' for model '{}', directory name must equal model name",
            proto.name
        );
        return Err(ConfigError::invalid(directory, "name", reason));
    }
    Ok(())
}

/// Platform and backend must fit each other, and the backend must be one of ours.
pub(crate) fn check_backend(
    proto: &mut inference::ModelConfig,
    name: &ModelName,
) -> Result<(), ConfigError> {
    check_backend_name(proto, name)?;
    let model = proto.name.clone();
    let Some(backend) = configured_backend(proto).map(str::to_owned) else {
        let reason = format!("must specify 'platform' or 'backend' for '{model}'");
        return Err(ConfigError::invalid(&model, "backend", reason));
    };
    let platform = if backend == backends::ONNXRUNTIME {
        ONNXRUNTIME_PLATFORM
    } else {
        ""
    };
    if proto.platform.is_empty() {
        platform.clone_into(&mut proto.platform);
    }
    if proto.platform != platform {
        let reason = format!(
            "unexpected 'platform' and 'backend' pair, got:{}, {backend}",
            proto.platform
        );
        return Err(ConfigError::invalid(&model, "platform", reason));
    }
    proto.backend = backend;
    Ok(())
}

/// The model file's name that a configuration gives, `model.onnx` if none: for callers that open the file before
/// [`ModelConfig::from_proto`](crate::ModelConfig::from_proto) has checked it.
///
/// # Errors
/// [`ConfigError::Invalid`] unless it is a relative path that stays inside the version's directory.
pub fn model_filename<'a>(
    config: &'a inference::ModelConfig,
    model: &ModelName,
) -> Result<&'a str, ConfigError> {
    match config.default_model_filename.as_str() {
        "" => Ok(DEFAULT_MODEL_FILENAME),
        given if stays_inside(given) => Ok(given),
        given => {
            let what = format!("default_model_filename '{given}' of model '{model}'");
            Err(ConfigError::invalid(
                model.as_str(),
                "default_model_filename",
                leaves(&what),
            ))
        }
    }
}

/// A model without outputs answers nothing; a batch size without inputs cannot be told.
pub(crate) fn check_has_tensors(proto: &inference::ModelConfig) -> Result<(), ConfigError> {
    let (side, why) = match (proto.input.as_slice(), proto.output.as_slice()) {
        (_, []) => ("output", ""),
        ([], _) if proto.max_batch_size > 0 => ("input", " because max_batch_size is above 0"),
        _ => return Ok(()),
    };
    Err(ConfigError::Invalid {
        model: proto.name.clone(),
        field: side.to_owned(),
        reason: format!(
            "model `{}` has no {side}, expected at least one{why}",
            proto.name
        ),
        hint: Some(format!(
            "write `{side} [ {{ name: .. data_type: .. dims: [..] }} ]`, or leave auto-completion on"
        )),
    })
}

/// The defaults that Triton shows in a configuration, apart from those that the parts above wrote.
pub(crate) fn write_defaults(proto: &mut inference::ModelConfig) {
    let preferred = proto.max_batch_size;
    if let Some(SchedulingChoice::DynamicBatching(batching)) = &mut proto.scheduling_choice
        && batching.preferred_batch_size.is_empty()
        && preferred > 0
    {
        batching.preferred_batch_size.push(preferred);
    }
    let optimization = proto.optimization.get_or_insert_default();
    optimization
        .input_pinned_memory
        .get_or_insert(PinnedMemoryBuffer { enable: true });
    optimization
        .output_pinned_memory
        .get_or_insert(PinnedMemoryBuffer { enable: true });
}
