//! Backends and platforms of Triton's that Skep lacks, and how Skep can serve their models instead.

/// A backend of Triton's that Skep lacks.
struct ForeignBackend {
    /// Its names in `backend` and `platform`.
    names: &'static [&'static str],
    /// What its models are.
    what: &'static str,
    /// How such a model becomes one that Skep serves.
    instead: &'static str,
    /// How the names of its models' files end. Where other files have the same ending, Triton's whole name.
    files: &'static [&'static str],
}

/// The last step on the way to ONNX.
pub(crate) const TO_ONNX: &str =
    "put it in the version's directory as `model.onnx`, and write `backend: \"onnxruntime\"`";

const FOREIGN: &[ForeignBackend] = &[
    ForeignBackend {
        names: &["python"],
        what: "Python code",
        instead: "export the network that `model.py` runs to ONNX; move its pre- and postprocessing into the client or \
                  the graph",
        files: &["model.py"],
    },
    ForeignBackend {
        names: &["pytorch", "pytorch_libtorch", "libtorch"],
        what: "a PyTorch model",
        instead: "export it to ONNX with `torch.onnx.export`",
        files: &[".pt", ".pth", ".pt2"],
    },
    ForeignBackend {
        names: &["tensorflow", "tensorflow_savedmodel", "tensorflow_graphdef"],
        what: "a TensorFlow model",
        instead: "convert it to ONNX with `python -m tf2onnx.convert`",
        files: &[".savedmodel", ".graphdef", ".pb"],
    },
    ForeignBackend {
        names: &["openvino"],
        what: "an OpenVINO model",
        instead: "use the ONNX file that it was converted from, or export the original model to ONNX",
        files: &["model.xml"],
    },
    ForeignBackend {
        names: &["tensorrt", "tensorrt_plan"],
        what: "a TensorRT plan, which runs on the GPU it was built for",
        instead: "use the ONNX file that it was built from",
        files: &[".plan", ".engine", ".trt"],
    },
    ForeignBackend {
        names: &["dali"],
        what: "a DALI pipeline",
        instead: "prepare the data in the client, or export the steps to ONNX",
        files: &[".dali"],
    },
    ForeignBackend {
        names: &["fil"],
        what: "a forest of decision trees",
        instead: "convert it to ONNX with `onnxmltools`, or with `skl2onnx` for scikit-learn",
        files: &["xgboost.json", "model.json", ".cbm", ".tl"],
    },
    ForeignBackend {
        names: &["vllm", "tensorrtllm"],
        what: "a language model that generates token by token, which Skep does not serve",
        instead: "a network that answers in one run, such as an encoder, can be exported to ONNX",
        files: &[],
    },
    ForeignBackend {
        names: &["identity", "square", "repeat"],
        what: "one of Triton's test backends",
        instead: "`backend: \"mock\"` answers without a model; a graph can also be exported to ONNX",
        files: &[],
    },
    ForeignBackend {
        names: &["caffe2_netdef", "custom"],
        what: "a kind of model that Triton itself no longer serves",
        instead: "export the model to ONNX",
        files: &[],
    },
];

/// How to serve a model that names this backend or platform of Triton's; `None` for an unknown name.
pub(crate) fn foreign_backend_hint(name: &str) -> Option<String> {
    let ForeignBackend { what, instead, .. } = FOREIGN
        .iter()
        .find(|foreign| foreign.names.contains(&name))?;
    Some(format!(
        "Skep serves ONNX models, and `{name}` stands for {what}: {instead}; then {TO_ONNX}"
    ))
}

/// How to serve a model file that is not an ONNX file, judged by its name; `None` for an unknown kind of file.
#[must_use]
pub fn foreign_file_hint(file: &str) -> Option<String> {
    let ForeignBackend { what, instead, .. } = FOREIGN.iter().find(|foreign| foreign.owns(file))?;
    Some(format!(
        "Skep serves ONNX models, and `{file}` looks like {what}: {instead}; then {TO_ONNX}"
    ))
}

impl ForeignBackend {
    /// Whether its models have files of this name.
    fn owns(&self, file: &str) -> bool {
        self.files
            .iter()
            .any(|end| file == *end || (end.starts_with('.') && file.ends_with(end)))
    }
}

#[cfg(test)]
mod tests {
    use super::foreign_file_hint;

    #[test]
    fn files_are_recognised_by_their_names() {
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
