//! What both protocols say of the server and its models, before either encodes it.

use skep_runtime::{LoadedVersion, Runtime};
use skep_types::DataType;

/// The server's name in its metadata, unless `--id` says another; Triton's, since tools compare it.
pub(crate) const DEFAULT_SERVER_NAME: &str = "triton";

/// The version of Triton whose protocol is spoken; clients read capabilities out of it.
pub(crate) const PROTOCOL_VERSION: &str = "2.73.0";

/// The protocol extensions that are served.
pub(crate) const EXTENSIONS: [&str; 6] = [
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
];

/// A model's metadata.
pub(crate) struct ModelMetadata {
    pub(crate) name: String,
    /// The versions that are ready, as text, ascending.
    pub(crate) versions: Vec<String>,
    pub(crate) platform: String,
    pub(crate) inputs: Vec<TensorMetadata>,
    pub(crate) outputs: Vec<TensorMetadata>,
}

/// A tensor's metadata: -1 for variable dimensions, the batch dimension included.
pub(crate) struct TensorMetadata {
    pub(crate) name: String,
    pub(crate) datatype: DataType,
    pub(crate) shape: Vec<i64>,
}

/// The metadata of a model; `version` is what the client asked for.
pub(crate) fn metadata(
    runtime: &Runtime,
    loaded: &LoadedVersion,
    version: Option<&str>,
) -> ModelMetadata {
    let config = loaded.config();
    let tensor = |name: &str, datatype, dims: &skep_types::Dims| TensorMetadata {
        name: name.to_owned(),
        datatype,
        shape: dims.as_slice().to_vec(),
    };
    let versions = match version.filter(|v| !v.is_empty()) {
        Some(_) => vec![loaded.version().to_string()],
        None => runtime
            .versions(loaded.name().as_str())
            .iter()
            .map(ToString::to_string)
            .collect(),
    };
    let proto = config.proto();
    let platform = if proto.platform.is_empty() {
        &proto.backend
    } else {
        &proto.platform
    };
    ModelMetadata {
        name: loaded.name().to_string(),
        versions,
        platform: platform.clone(),
        inputs: config
            .inputs()
            .iter()
            .map(|t| tensor(&t.name, t.datatype, &t.client_dims()))
            .collect(),
        outputs: config
            .outputs()
            .iter()
            .map(|t| tensor(&t.name, t.datatype, &t.client_dims()))
            .collect(),
    }
}
