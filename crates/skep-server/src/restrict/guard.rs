//! The check before restricted calls, for HTTP and for gRPC.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    extract::{Request, State},
    handler::Handler,
    middleware::{self, Next},
    response::Response,
    routing::MethodRouter,
};
use futures_util::future::Either;
use http::StatusCode;
use tonic::{Status, server::NamedService};
use tower::Service;

use super::{HeaderRule, Restrictions, group::CallGroup};
use crate::{
    error::{PLAIN, error_response},
    verbose,
};

impl Restrictions {
    /// Puts a route behind its group's restriction, if there is one. `otherwise` answers unknown methods behind the
    /// restriction too, so that only clients with the value learn which methods exist.
    pub(crate) fn guard<S, H, T>(
        &self,
        path: &str,
        route: MethodRouter<S>,
        otherwise: H,
    ) -> MethodRouter<S>
    where
        S: Clone + Send + Sync + 'static,
        H: Handler<T, S>,
        T: 'static,
    {
        match CallGroup::of_route(path).and_then(|group| self.0.get(&group)) {
            None => route,
            Some(rule) => route
                .fallback(otherwise)
                .layer(middleware::from_fn_with_state(Arc::clone(rule), check)),
        }
    }

    /// Puts a gRPC service behind the restrictions.
    pub(crate) fn guard_service<S>(&self, service: S) -> Guarded<S> {
        Guarded {
            service,
            restrictions: (!self.0.is_empty()).then(|| Arc::new(self.clone())),
        }
    }
}

async fn check(State(rule): State<Arc<HeaderRule>>, request: Request, next: Next) -> Response {
    if rule.admits(request.headers()) {
        return next.run(request).await;
    }
    let text = format!("This API is restricted, expecting header '{}'", rule.header);
    error_response(StatusCode::FORBIDDEN, PLAIN, text)
}

/// A gRPC service that refuses restricted calls without the right header.
#[derive(Debug, Clone)]
pub(crate) struct Guarded<S> {
    service: S,
    restrictions: Option<Arc<Restrictions>>,
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

type GrpcRequest = http::Request<tonic::body::Body>;
type GrpcResponse = http::Response<tonic::body::Body>;

impl<S> Service<GrpcRequest> for Guarded<S>
where
    S: Service<GrpcRequest, Response = GrpcResponse, Error = Infallible>,
{
    type Response = GrpcResponse;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<GrpcResponse, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: GrpcRequest) -> Self::Future {
        verbose::log_call(&request);
        let rule = self.restrictions.as_ref().and_then(|restrictions| {
            let group = CallGroup::of_call(request.uri().path())?;
            restrictions.0.get(&group)
        });
        match rule {
            Some(rule) if !rule.admits(request.headers()) => {
                let text = format!(
                    "This protocol is restricted, expecting header '{}'",
                    rule.header
                );
                Either::Right(ready(Ok(Status::unavailable(text).into_http())))
            }
            _ => Either::Left(self.service.call(request)),
        }
    }
}
