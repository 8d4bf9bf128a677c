//! Code that a configuration would load into the server: operator libraries and repository agents. Neither is
//! supported.

use skep_proto::inference;

use super::review::Review;
use crate::error::ConfigError;

/// `model_operations`: libraries of custom operators.
pub(super) fn review_operations(
    review: &Review<'_>,
    operations: Option<&inference::ModelOperations>,
) -> Result<(), ConfigError> {
    let Some(inference::ModelOperations {
        op_library_filename,
    }) = operations
    else {
        return Ok(());
    };
    review.unsupported(
        !op_library_filename.is_empty(),
        "model_operations.op_library_filename",
        "export the model with ONNX's own operators; Skep loads no libraries of custom operators",
    )
}

/// `model_repository_agents`: code that prepares a model's files.
pub(super) fn review_agents(
    review: &Review<'_>,
    agents: Option<&inference::ModelRepositoryAgents>,
) -> Result<(), ConfigError> {
    let Some(inference::ModelRepositoryAgents { agents }) = agents else {
        return Ok(());
    };
    review.unsupported(
        !agents.is_empty(),
        "model_repository_agents",
        "remove it, and do the agent's work (a checksum, a decryption) before you put the files into the repository",
    )
}
