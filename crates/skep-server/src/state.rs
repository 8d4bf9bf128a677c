//! What the handlers of all protocols share.

use std::sync::Arc;

use skep_regions::ClientRegions;
use skep_runtime::{ErrorKind, Runtime};
use skep_tracing::Tracer;

use crate::{
    error::ApiError, inference::InferenceOptions, management::LogControl, restrict::Restrictions,
};

/// What the handlers of all protocols share: built once, when the server starts.
#[derive(Debug)]
pub(crate) struct ServerState {
    pub(crate) runtime: Arc<Runtime>,
    /// The name in the server's metadata.
    pub(crate) server_name: String,
    /// The largest JSON part of an HTTP request, in bytes.
    pub(crate) max_json_bytes: usize,
    pub(crate) inference: InferenceOptions,
    /// Clients' shared-memory regions; `None` unless the operator allows them.
    pub(crate) client_regions: Option<ClientRegions>,
    pub(crate) logs: Arc<dyn LogControl>,
    pub(crate) traces: Arc<Tracer>,
    pub(crate) http_restrictions: Restrictions,
    pub(crate) grpc_restrictions: Restrictions,
    /// The page at `/`.
    pub(crate) page: String,
}

impl ServerState {
    /// Clients' shared-memory regions, or an error if the operator does not allow them.
    pub(crate) fn regions(&self) -> Result<&ClientRegions, ApiError> {
        self.client_regions.as_ref().ok_or_else(|| {
            ApiError::new(
                ErrorKind::Unsupported,
                "shared memory of clients is not enabled, start the server with --allow-client-shm=true",
            )
        })
    }
}
