//! Which model it is and what runs it: name, platform, backend, file name, batch size.

use skep_proto::inference;
use skep_types::ModelName;

use super::scheduling::ensemble::is_ensemble;
use crate::{
    error::ConfigError,
    hints::{
        foreign::{TO_ONNX, foreign_backend_hint},
        suggest::{did_you_mean, nearest},
    },
    vocabulary::{
        backends::{self, BACKENDS, ENSEMBLE_PLATFORM, ONNXRUNTIME_PLATFORM, configured_backend},
        paths::{DEFAULT_MODEL_FILENAME, leaves, stays_inside},
    },
};

/// Checks that the configuration's name is the directory's; an absent name becomes the directory's.
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

/// Refuses a backend or platform that Skep does not have. A configuration may name neither.
///
/// # Errors
/// [`ConfigError::Invalid`] or [`ConfigError::Unsupported`], with what to do instead.
pub fn check_backend_name(
    config: &inference::ModelConfig,
    model: &ModelName,
) -> Result<(), ConfigError> {
    let model = model.as_str();
    let Some(backend) = configured_backend(config) else {
        return match config.platform.as_str() {
            "" | ENSEMBLE_PLATFORM => Ok(()),
            platform => Err(ConfigError::Invalid {
                model: model.to_owned(),
                field: "platform".to_owned(),
                reason: format!("unexpected platform type '{platform}' for {model}"),
                hint: foreign_backend_hint(platform).or_else(|| Some(expected_platform(platform))),
            }),
        };
    };
    if BACKENDS.contains(&backend) {
        return Ok(());
    }
    if backend == ENSEMBLE_PLATFORM {
        return Err(ConfigError::Invalid {
            model: model.to_owned(),
            field: "backend".to_owned(),
            reason: format!("ensemble '{model}' has a backend, expected a platform alone"),
            hint: Some(format!("write `platform: \"{ENSEMBLE_PLATFORM}\"`")),
        });
    }
    Err(ConfigError::Invalid {
        model: model.to_owned(),
        field: "backend".to_owned(),
        reason: format!(
            "backend `{backend}` of model `{model}` is unknown, expected one of `{}`",
            BACKENDS.join("`, `")
        ),
        hint: foreign_backend_hint(backend)
            .or_else(|| did_you_mean(nearest(backend, BACKENDS.iter().copied())))
            .or_else(|| {
                Some(format!(
                    "Skep cannot load other backends: export the model to ONNX, then {TO_ONNX}"
                ))
            }),
    })
}

fn expected_platform(platform: &str) -> String {
    match nearest(platform, [ONNXRUNTIME_PLATFORM]) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!(
            "expected `platform: \"{ONNXRUNTIME_PLATFORM}\"` or no platform: export the model to ONNX, then {TO_ONNX}"
        ),
    }
}

/// Checks that platform and backend fit each other and that Skep has the backend. An absent one follows from the other.
pub(crate) fn check_backend(
    proto: &mut inference::ModelConfig,
    name: &ModelName,
) -> Result<(), ConfigError> {
    check_backend_name(proto, name)?;
    if is_ensemble(proto) {
        return Ok(());
    }
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

/// The name of the model's file, `model.onnx` by default. Callers use it to open the file before
/// [`ModelConfig::from_proto`](crate::ModelConfig::from_proto) has checked the configuration.
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

/// The largest batch of a request; 0 when tensors have no batch dimension.
pub(crate) fn max_batch_size(proto: &inference::ModelConfig) -> Result<usize, ConfigError> {
    usize::try_from(proto.max_batch_size).map_err(|_| {
        let reason = format!(
            "'max_batch_size' must be non-negative value for {}",
            proto.name
        );
        ConfigError::invalid(&proto.name, "max_batch_size", reason)
    })
}

#[cfg(test)]
mod tests {
    use skep_types::ModelName;

    use super::check_backend_name;
    use crate::parse_pbtxt;

    fn refusal(text: &str) -> Option<String> {
        let config = parse_pbtxt(text.as_bytes(), "c").expect("parses");
        let model = ModelName::new("m").expect("name");
        check_backend_name(&config, &model)
            .err()
            .map(|e| e.to_string())
    }

    #[test]
    fn every_backend_of_tritons_gets_a_hint() {
        for (text, way_out) in [
            ("backend: 'python'", "`model.py`"),
            ("backend: 'pytorch'", "torch.onnx.export"),
            ("platform: 'pytorch_libtorch'", "torch.onnx.export"),
            ("platform: 'tensorflow_savedmodel'", "tf2onnx"),
            ("platform: 'tensorflow_graphdef'", "tf2onnx"),
            ("backend: 'openvino'", "converted from"),
            ("platform: 'tensorrt_plan'", "built from"),
            ("backend: 'dali'", "prepare the data in the client"),
            ("backend: 'fil'", "onnxmltools"),
            ("backend: 'vllm'", "token by token"),
            ("backend: 'my_own'", "export the model to ONNX"),
            ("backend: 'onnxruntim'", "did you mean `onnxruntime`?"),
            (
                "platform: 'onnxruntime-onnx'",
                "did you mean `onnxruntime_onnx`?",
            ),
            ("platform: 'mxnet'", "`platform: \"onnxruntime_onnx\"`"),
            ("backend: 'ensemble'", "`platform: \"ensemble\"`"),
        ] {
            let refusal = refusal(text).expect(text);
            assert!(refusal.contains(way_out), "{text}: {refusal}");
        }
        for text in [
            "",
            "backend: 'mock'",
            "platform: 'onnxruntime_onnx'",
            "platform: 'ensemble'",
        ] {
            assert_eq!(refusal(text), None, "{text}");
        }
    }
}
