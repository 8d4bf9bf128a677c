//! `grpc.health.v1.Health`: serving while the node is ready. Which service is asked for does not matter, as on Triton.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};

use crate::server::Shared;

/// How often a watcher looks; readiness is a question to the runtime, not an event.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

pub(super) struct Health {
    shared: Arc<Shared>,
}

impl Health {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

fn status(shared: &Shared) -> ServingStatus {
    if shared.runtime.is_ready() {
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
            status: status(&self.shared).into(),
        }))
    }

    /// The status now, and again each time it has changed.
    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let shared = Arc::clone(&self.shared);
        let changes = stream::unfold((shared, None), |(shared, last)| async move {
            loop {
                let now = status(&shared);
                if last != Some(now) {
                    return Some((
                        Ok(HealthCheckResponse { status: now.into() }),
                        (shared, Some(now)),
                    ));
                }
                // A stop does not wait for those who watch it.
                if shared.runtime.is_stopping() {
                    return None;
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
