//! The model repository: its index, and what load and unload requests may say.

use std::sync::Arc;

use skep_runtime::{ErrorKind, Runtime};
use skep_wire::documents::IndexRow;

use crate::error::ApiError;

/// The repository's index: all models, or those that are ready.
pub(crate) async fn index(
    runtime: &Arc<Runtime>,
    ready_only: bool,
) -> Result<Vec<IndexRow>, ApiError> {
    let rows = runtime.request_index(ready_only).await?;
    let entries = rows.iter().map(|row| IndexRow {
        name: row.name.to_string(),
        version: row.version.map_or_else(String::new, |v| v.to_string()),
        state: row.state.map_or_else(String::new, |s| s.name().to_owned()),
        reason: row.reason.clone(),
    });
    Ok(entries.collect())
}

/// A repository cannot be named: in Triton's words.
pub(crate) fn named_repository() -> ApiError {
    ApiError::new(
        ErrorKind::Unsupported,
        "'repository_name' specification is not supported",
    )
}

/// The load parameter that holds a configuration.
pub(crate) const CONFIG: &str = "config";

/// What the names of load parameters that hold files begin with; the rest is the file's path.
pub(crate) const FILE_PREFIX: &str = "file:";

/// Why a load parameter is not taken: nobody knows it.
pub(crate) fn unrecognized_load_parameter(key: &str) -> ApiError {
    ApiError::invalid(format!("unrecognized load parameter '{key}'."))
}

/// Refuses an unload parameter of the wrong type. Others than this one mean nothing, as on Triton.
pub(crate) fn check_unload_parameter(key: &str, is_boolean: bool) -> Result<(), ApiError> {
    match key {
        // Without ensembles a model has no dependents: true and false mean the same.
        "unload_dependents" if is_boolean => Ok(()),
        "unload_dependents" => Err(ApiError::invalid(
            "invalid value type for 'unload_dependents' parameter, expected bool_param.",
        )),
        key => {
            tracing::warn!("unload parameter `{key}` has no effect");
            Ok(())
        }
    }
}
