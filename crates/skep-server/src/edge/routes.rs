//! What answers the requests of a port: its router, and a shortcut past it for inference.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, body::Body, routing::future::RouteFuture};
use http::{Request, Response};
use pin_project_lite::pin_project;
use skep_tensor::Charge;
use tower::Service;

/// The charge of a call's encoded messages until they leave.
#[derive(Debug, Clone)]
pub(crate) struct Leaving(pub(crate) Arc<Charge>);

/// The future of an answer.
pub(crate) type AnswerFuture = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Answers the requests that need no router, and returns the others.
///
/// A router costs a request about ten allocations (path parameters, a box for each layer): as many as the rest of an
/// inference.
pub(crate) trait Shortcut: Send + Sync {
    /// The answer, or the request if the router has to see it. The memory that the request uses is added to `charge`.
    ///
    /// # Errors
    /// The request itself, for the router.
    #[expect(
        clippy::result_large_err,
        reason = "a request that is not taken moves once more"
    )]
    fn take(
        &self,
        request: Request<Body>,
        charge: &Arc<Charge>,
    ) -> Result<AnswerFuture, Request<Body>>;
}

/// What answers the requests of a port.
#[derive(Clone)]
pub(crate) struct PortRoutes {
    router: Router,
    shortcut: Option<Arc<dyn Shortcut>>,
}

impl From<Router> for PortRoutes {
    fn from(router: Router) -> Self {
        Self {
            router,
            shortcut: None,
        }
    }
}

impl PortRoutes {
    /// These routes, with a shortcut past the router.
    pub(crate) fn with_shortcut(self, shortcut: Arc<dyn Shortcut>) -> Self {
        Self {
            shortcut: Some(shortcut),
            ..self
        }
    }

    /// Begins to answer a request, whose memory `charge` counts. If the router sees the request, the charge is among
    /// its extensions; so is [`Leaving`], which is also returned, if the answer `is_encoded` message by message.
    pub(super) fn call(
        &self,
        request: Request<Body>,
        charge: &Arc<Charge>,
        is_encoded: bool,
    ) -> (RoutedAnswer, Option<Arc<Charge>>) {
        let taken = match &self.shortcut {
            Some(shortcut) => shortcut.take(request, charge),
            None => Err(request),
        };
        match taken {
            Ok(answer) => (RoutedAnswer::Shortcut { answer }, None),
            Err(mut request) => {
                request.extensions_mut().insert(Arc::clone(charge));
                let leaving = is_encoded.then(|| Arc::new(charge.sibling()));
                if let Some(leaving) = &leaving {
                    let leaving = Leaving(Arc::clone(leaving));
                    request.extensions_mut().insert(leaving);
                }
                let answer = self.router.clone().call(request);
                (RoutedAnswer::Router { answer }, leaving)
            }
        }
    }
}

pin_project! {
    /// The future of an answer, from either of them.
    #[project = RoutedAnswerProjection]
    pub(super) enum RoutedAnswer {
        Shortcut { answer: AnswerFuture },
        Router { #[pin] answer: RouteFuture<Infallible> },
        Ready { answer: Option<Response<Body>> },
    }
}

impl From<Response<Body>> for RoutedAnswer {
    fn from(answer: Response<Body>) -> Self {
        Self::Ready {
            answer: Some(answer),
        }
    }
}

impl Future for RoutedAnswer {
    type Output = Response<Body>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        match self.project() {
            RoutedAnswerProjection::Shortcut { answer } => answer.as_mut().poll(cx),
            RoutedAnswerProjection::Router { answer } => answer
                .poll(cx)
                .map(|Ok(response): Result<_, Infallible>| response),
            RoutedAnswerProjection::Ready { answer } => {
                Poll::Ready(answer.take().expect("polled once"))
            }
        }
    }
}
