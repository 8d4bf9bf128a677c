//! Backends and platforms of Triton's that Skep does not have, and what to do instead with a model of theirs.

use skep_proto::inference;
use skep_types::ModelName;

use crate::{
    complete::configured_backend,
    error::{ConfigError, did_you_mean},
    model::BACKENDS,
    suggest,
};

/// What a name in `backend` or `platform` stands for on Triton.
struct Foreign {
    names: &'static [&'static str],
    /// What its models are.
    what: &'static str,
    /// How such a model becomes one that Skep serves.
    instead: &'static str,
    /// How the names of its models' files end. Of an ending that other files have too, only Triton's whole names count.
    files: &'static [&'static str],
}

const TO_ONNX: &str =
    "put it in the version's directory as `model.onnx`, and write `backend: \"onnxruntime\"`";

const FOREIGN: &[Foreign] = &[
    Foreign {
        names: &["python"],
        what: "Python code",
        instead: "export the network that `model.py` runs to ONNX; what `model.py` does before and after it belongs in the \
                  client or in the graph",
        files: &["model.py"],
    },
    Foreign {
        names: &["pytorch", "pytorch_libtorch", "libtorch"],
        what: "a PyTorch model",
        instead: "export it to ONNX with `torch.onnx.export`",
        files: &[".pt", ".pth", ".pt2"],
    },
    Foreign {
        names: &["tensorflow", "tensorflow_savedmodel", "tensorflow_graphdef"],
        what: "a TensorFlow model",
        instead: "convert it to ONNX with `python -m tf2onnx.convert`",
        files: &[".savedmodel", ".graphdef", ".pb"],
    },
    Foreign {
        names: &["openvino"],
        what: "an OpenVINO model",
        instead: "use the ONNX file that it was converted from, or export the original model to ONNX",
        files: &["model.xml"],
    },
    Foreign {
        names: &["tensorrt", "tensorrt_plan"],
        what: "a TensorRT plan, which runs on the GPU it was built for",
        instead: "use the ONNX file that it was built from",
        files: &[".plan", ".engine", ".trt"],
    },
    Foreign {
        names: &["dali"],
        what: "a DALI pipeline",
        instead: "prepare the data in the client, or export the steps to ONNX",
        files: &[".dali"],
    },
    Foreign {
        names: &["fil"],
        what: "a forest of decision trees",
        instead: "convert it to ONNX with `onnxmltools`, or with `skl2onnx` for scikit-learn",
        files: &["xgboost.json", "model.json", ".cbm", ".tl"],
    },
    Foreign {
        names: &["vllm", "tensorrtllm"],
        what: "a language model that generates token by token, which Skep does not serve",
        instead: "a network that answers in one run, such as an encoder, can be exported to ONNX",
        files: &[],
    },
    Foreign {
        names: &["identity", "square", "repeat"],
        what: "one of Triton's backends for tests",
        instead: "`backend: \"mock\"` answers without a model; a graph can also be exported to ONNX",
        files: &[],
    },
    Foreign {
        names: &["caffe2_netdef", "custom"],
        what: "of a kind that Triton itself no longer serves",
        instead: "export the model to ONNX",
        files: &[],
    },
];

/// What to do with an ensemble.
pub(crate) const INSTEAD_OF_ENSEMBLE: &str = "serve each step as a model of its own and let the client call one after the other, or merge the steps \
                        into one ONNX graph (`onnx.compose.merge_models`)";

fn hint(name: &str) -> Option<String> {
    let foreign = FOREIGN.iter().find(|foreign| foreign.names.contains(&name));
    let instead = |foreign: &Foreign| {
        let Foreign { what, instead, .. } = foreign;
        format!(
            "Skep serves ONNX models, and `{name}` stands for {what}: {instead}; then {TO_ONNX}"
        )
    };
    foreign.map(instead)
}

/// What to do with a model file of another kind than ONNX, told by the end of its name.
#[must_use]
pub fn foreign_file_hint(file: &str) -> Option<String> {
    let of_name = |foreign: &&Foreign| {
        let mut ends = foreign.files.iter();
        ends.any(|end| file == *end || (end.starts_with('.') && file.ends_with(end)))
    };
    let Foreign { what, instead, .. } = FOREIGN.iter().find(of_name)?;
    Some(format!(
        "Skep serves ONNX models, and `{file}` looks like {what}: {instead}; then {TO_ONNX}"
    ))
}

/// Refuses a backend or platform that Skep does not have. One that is not named at all is not refused.
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
            "" => Ok(()),
            "ensemble" => Err(ensemble(model, "platform: \"ensemble\"")),
            platform => Err(ConfigError::Invalid {
                model: model.to_owned(),
                field: "platform".to_owned(),
                reason: format!("unexpected platform type '{platform}' for {model}"),
                hint: hint(platform).or_else(|| Some(expected_platform(platform))),
            }),
        };
    };
    if BACKENDS.contains(&backend) {
        return Ok(());
    }
    if backend == "ensemble" {
        return Err(ensemble(model, "backend: \"ensemble\""));
    }
    let near = || did_you_mean(suggest::nearest(backend, BACKENDS.iter().copied()));
    Err(ConfigError::Invalid {
        model: model.to_owned(),
        field: "backend".to_owned(),
        reason: format!(
            "backend `{backend}` of model `{model}` is unknown, expected one of `{}`",
            BACKENDS.join("`, `")
        ),
        hint: hint(backend).or_else(near).or_else(|| {
            Some(format!(
                "Skep loads no backends of others: export the model to ONNX, then {TO_ONNX}"
            ))
        }),
    })
}

fn expected_platform(platform: &str) -> String {
    let known = crate::complete::ONNXRUNTIME_PLATFORM;
    match suggest::nearest(platform, [known]) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!(
            "expected `platform: \"{known}\"` or none: export the model to ONNX, then {TO_ONNX}"
        ),
    }
}

fn ensemble(model: &str, field: &str) -> ConfigError {
    ConfigError::Unsupported {
        model: model.to_owned(),
        field: field.to_owned(),
        hint: Some(INSTEAD_OF_ENSEMBLE.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{check_backend_name, foreign_file_hint};
    use crate::parse_pbtxt;
    use skep_types::ModelName;

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
            ("platform: 'ensemble'", "serve each step"),
        ] {
            let refusal = refusal(text).expect(text);
            assert!(refusal.contains(way_out), "{text}: {refusal}");
        }
        for text in ["", "backend: 'mock'", "platform: 'onnxruntime_onnx'"] {
            assert_eq!(refusal(text), None, "{text}");
        }
    }

    #[test]
    fn files_are_told_by_their_names() {
        for (file, what) in [
            ("model.pt", Some("a PyTorch model")),
            ("model.py", Some("Python code")),
            ("model.savedmodel", Some("a TensorFlow model")),
            ("model.plan", Some("a TensorRT plan")),
            ("xgboost.json", Some("a forest of decision trees")),
            ("model.xml", Some("an OpenVINO model")),
            ("modell.onnx", None),
            ("config.json", None),
            ("my_model.json", None),
            ("pom.xml", None),
            ("export.py", None),
        ] {
            let hint = foreign_file_hint(file);
            assert_eq!(hint.is_some(), what.is_some(), "{file}");
            assert!(hint.unwrap_or_default().contains(what.unwrap_or_default()));
        }
    }
}
