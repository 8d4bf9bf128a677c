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
use skep_tensor::Charge;
use tower::Service;

/// What the encoded messages of a call hold of the memory until they leave.
#[derive(Debug, Clone)]
pub(crate) struct Leaving(pub(crate) Arc<Charge>);

/// An answer in the making.
pub(crate) type AnswerFuture = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Takes the requests that need no router, and gives the others back.
///
/// A router costs a request some ten allocations (the path's parameters, a box a layer): as much as all that an
/// inference needs besides.
pub(crate) trait Shortcut: Send + Sync {
    /// The answer, or the request where the router has to see it. What the request comes to hold of the memory is added to
    /// `charge`.
    ///
    /// # Errors
    /// The request itself.
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
    /// The same with a shortcut before the router.
    pub(crate) fn with_shortcut(self, shortcut: Arc<dyn Shortcut>) -> Self {
        Self {
            shortcut: Some(shortcut),
            ..self
        }
    }

    /// Begins to answer a request, which `charge` counts. Where the router sees it, the charge is among its extensions; so is
    /// [`Leaving`], which is returned, where an answer `is_encoded` message by message.
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
    /// An answer in the making, wherever.
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
