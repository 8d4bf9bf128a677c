//! Who answers the requests of a port: its router, and before it a shortcut for the call that is made by the thousand.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, body::Body, routing::future::RouteFuture};
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower::Service;

/// An answer in the making.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Takes the requests that need no router, and gives the others back.
///
/// A router costs a request some ten allocations (the path's parameters, a box a layer): as much as all that an
/// inference needs besides.
pub(crate) trait Shortcut: Send + Sync {
    /// The answer, or the request where the router has to see it.
    ///
    /// # Errors
    /// The request itself.
    #[expect(
        clippy::result_large_err,
        reason = "a request that is not taken moves once more"
    )]
    fn take(&self, request: Request<Body>) -> Result<Answer, Request<Body>>;
}

/// What answers the requests of a port.
#[derive(Clone)]
pub(crate) struct Routes {
    router: Router,
    shortcut: Option<Arc<dyn Shortcut>>,
}

impl From<Router> for Routes {
    fn from(router: Router) -> Self {
        Self {
            router,
            shortcut: None,
        }
    }
}

impl Routes {
    /// The same with a shortcut before the router.
    pub(crate) fn with_shortcut(self, shortcut: Arc<dyn Shortcut>) -> Self {
        Self {
            shortcut: Some(shortcut),
            ..self
        }
    }

    pub(super) fn call(&self, request: Request<Body>) -> Answering {
        let taken = match &self.shortcut {
            Some(shortcut) => shortcut.take(request),
            None => Err(request),
        };
        match taken {
            Ok(answer) => Answering::Shortcut { answer },
            Err(request) => Answering::Router {
                answer: self.router.clone().call(request),
            },
        }
    }
}

pin_project! {
    /// An answer in the making, wherever.
    #[project = AnsweringProjection]
    pub(super) enum Answering {
        Shortcut { answer: Answer },
        Router { #[pin] answer: RouteFuture<Infallible> },
    }
}

impl Future for Answering {
    type Output = Response<Body>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        match self.project() {
            AnsweringProjection::Shortcut { answer } => answer.as_mut().poll(cx),
            AnsweringProjection::Router { answer } => answer
                .poll(cx)
                .map(|Ok(response): Result<_, Infallible>| response),
        }
    }
}
