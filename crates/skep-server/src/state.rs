//! What the handlers of all protocols share.

use std::sync::Arc;

use skep_runtime::Runtime;

use crate::{inference::InferenceOptions, management::LogControl, restrict::Restrictions};

/// What the handlers of all protocols share: built once, when the server starts.
#[derive(Debug)]
pub(crate) struct ServerState {
    pub(crate) runtime: Arc<Runtime>,
    /// The name in the server's metadata.
    pub(crate) server_name: String,
    /// The largest JSON part of an HTTP request, in bytes.
    pub(crate) max_json_bytes: usize,
    pub(crate) inference: InferenceOptions,
    pub(crate) logs: Arc<dyn LogControl>,
    pub(crate) http_restrictions: Restrictions,
    pub(crate) grpc_restrictions: Restrictions,
    /// The page at `/`.
    pub(crate) page: String,
}
