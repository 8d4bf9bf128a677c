//! The model repository: its index, and the parameters of load and unload requests.

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

/// Refuses a request that names a repository, in Triton's words.
pub(crate) fn named_repository() -> ApiError {
    ApiError::new(
        ErrorKind::Unsupported,
        "'repository_name' specification is not supported",
    )
}

/// The load parameter that holds a configuration.
pub(crate) const CONFIG: &str = "config";

/// The prefix of load parameters that hold files; the rest of the name is the file's path.
pub(crate) const FILE_PREFIX: &str = "file:";

/// An error about an unknown load parameter.
pub(crate) fn unrecognized_load_parameter(key: &str) -> ApiError {
    ApiError::invalid(format!("unrecognized load parameter '{key}'."))
}

/// Whether an unload also unloads the models that go with it: ensembles on it, parts that were loaded for it alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct UnloadTerms {
    pub(crate) dependents: bool,
}

impl UnloadTerms {
    /// Reads a parameter, whose value is `None` if it is no truth value. Unknown ones are ignored, as on Triton.
    pub(crate) fn read(&mut self, key: &str, value: Option<bool>) -> Result<(), ApiError> {
        match (key, value) {
            ("unload_dependents", Some(value)) => self.dependents = value,
            ("unload_dependents", None) => {
                return Err(ApiError::invalid(
                    "invalid value type for 'unload_dependents' parameter, expected bool_param.",
                ));
            }
            (key, _) => tracing::warn!("unload parameter `{key}` has no effect"),
        }
        Ok(())
    }
}
