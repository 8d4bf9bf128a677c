//! `grpc.health.v1.Health`: serving while the node is ready. Which service is asked for does not matter, as on Triton.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};

use crate::state::ServerState;

/// How often a watch polls: the runtime answers whether it is ready, but sends no events.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

pub(super) struct Health {
    state: Arc<ServerState>,
}

impl Health {
    pub(super) const fn new(state: Arc<ServerState>) -> Self {
        Self { state }
    }
}

fn status(state: &ServerState) -> ServingStatus {
    if state.runtime.is_ready() {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse {
            status: status(&self.state).into(),
        }))
    }

    /// Sends the status now, and again each time it changes.
    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let state = Arc::clone(&self.state);
        let changes = stream::unfold((state, None), |(state, last)| async move {
            loop {
                let now = status(&state);
                if last != Some(now) {
                    return Some((
                        Ok(HealthCheckResponse { status: now.into() }),
                        (state, Some(now)),
                    ));
                }
                // A stop does not wait for watchers.
                if state.runtime.is_stopping() {
                    return None;
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
