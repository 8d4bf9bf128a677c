//! Metadata of the server and its models. A model that is only known is loaded for it.

use std::sync::Arc;

use skep_config::TensorConfig;
use skep_runtime::Runtime;
use skep_wire::documents::{ModelMetadata, ServerMetadata, TensorMetadata};

use crate::{error::ApiError, state::ServerState};

/// The server's name in its metadata, unless `--id` sets another: Triton's, since tools compare it.
pub(crate) const DEFAULT_SERVER_NAME: &str = "triton";

/// The version of Triton whose protocol is served; clients infer capabilities from it.
pub(crate) const PROTOCOL_VERSION: &str = "2.73.0";

/// The version of the program.
pub(crate) const SKEP_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The protocol extensions that are served, in Triton's order. The first entry names Skep and its version: name and
/// version in the metadata are Triton's, since clients compare them, and there is no other member for it.
const EXTENSIONS: [&str; 12] = [
    concat!("skep(", env!("CARGO_PKG_VERSION"), ")"),
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    SYSTEM_SHARED_MEMORY,
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
];

/// The extension that clients may use if the operator allows it. CUDA regions are never served.
const SYSTEM_SHARED_MEMORY: &str = "system_shared_memory";

/// The server's metadata.
pub(crate) fn of_server(state: &ServerState) -> ServerMetadata {
    let served = |extension: &&str| *extension != SYSTEM_SHARED_MEMORY || state.regions().is_ok();
    ServerMetadata {
        name: state.server_name.clone(),
        version: PROTOCOL_VERSION.to_owned(),
        extensions: EXTENSIONS
            .into_iter()
            .filter(served)
            .map(str::to_owned)
            .collect(),
    }
}

/// A model's metadata; `version` is what the client asked for, empty or absent for any.
pub(crate) async fn of_model(
    runtime: &Arc<Runtime>,
    model: &str,
    version: Option<&str>,
) -> Result<ModelMetadata, ApiError> {
    let loaded = runtime.acquire(model, version, None).await?;
    let versions = match version.filter(|version| !version.is_empty()) {
        Some(_) => vec![loaded.version().to_string()],
        None => {
            let versions = runtime.versions(loaded.name().as_str());
            versions.iter().map(ToString::to_string).collect()
        }
    };
    let config = loaded.config();
    let proto = config.proto();
    let platform = if proto.platform.is_empty() {
        &proto.backend
    } else {
        &proto.platform
    };
    Ok(ModelMetadata {
        name: loaded.name().to_string(),
        versions,
        platform: platform.clone(),
        inputs: config.inputs().iter().map(tensor).collect(),
        outputs: config.outputs().iter().map(tensor).collect(),
    })
}

fn tensor(tensor: &TensorConfig) -> TensorMetadata {
    TensorMetadata {
        name: tensor.name.clone(),
        datatype: tensor.datatype,
        shape: tensor.client_dims(),
    }
}
