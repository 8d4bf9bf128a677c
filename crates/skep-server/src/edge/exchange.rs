//! A request and its answer: the body comes in at the client's pace and is counted, the answer goes out.
//!
//! Nothing here spawns a task or allocates a box, apart from the router's own.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use skep_tensor::Charge;
use tokio::time::{Sleep, sleep};

use super::{
    activity::Activity,
    deadline,
    inflow::{BodySource, Inflow},
    listener::{ListenerContext, Protocol},
    outflow::{Holding, Outflow, RequestInFlight},
    routes,
};
use crate::{
    access::AccessVisit,
    error::{JSON, error_response},
    verbose,
};

/// Answers the requests of a connection.
pub(super) struct Exchange {
    port: Arc<ListenerContext>,
    activity: Arc<Activity>,
    client: SocketAddr,
}

impl Exchange {
    pub(super) const fn new(
        port: Arc<ListenerContext>,
        activity: Arc<Activity>,
        client: SocketAddr,
    ) -> Self {
        Self {
            port,
            activity,
            client,
        }
    }

    /// Begins to answer a request.
    pub(super) fn begin(&self, mut request: Request<BodySource>) -> ExchangeFuture {
        let is_grpc = self.port.protocol == Protocol::Grpc;
        let log = self.port.access.as_ref();
        let visit = log.map(|log| AccessVisit::begin(log, self.client, is_grpc, &mut request));
        let note = visit.as_ref().map(AccessVisit::note).unwrap_or_default();
        let running = RequestInFlight::new(Arc::clone(&self.activity), visit);
        if self.port.protocol == Protocol::Http {
            verbose::log_request(&request);
        }
        let (fields, limit) = (request.headers().len(), self.port.limits.header_fields);
        if fields > limit {
            return ExchangeFuture {
                answer: self.refuse_head(fields, limit).into(),
                deadline: None,
                running: Some(running),
                holding: Holding::Nothing,
            };
        }
        let deadline = is_grpc
            .then(|| deadline::read(request.headers()))
            .flatten()
            .map(sleep);
        if request.body().is_end_stream() {
            let request = request.map(|_| Body::empty());
            let charge = Arc::new(Charge::unbounded());
            let (answer, _) = self.port.routes.call(request, &charge, false);
            return ExchangeFuture {
                answer,
                deadline,
                running: Some(running),
                holding: Holding::Nothing,
            };
        }
        let charge = Arc::new(self.port.limits.request_memory.charge());
        let bounds = self.port.message_bounds;
        let bounds = bounds.map(|bounds| bounds(request.uri().path()));
        let unread =
            matches!(request.body(), BodySource::Http1(_)).then(|| Arc::clone(&self.activity));
        let request = request.map(|source| {
            let held = Arc::clone(&charge);
            Body::new(Inflow::new(
                source,
                bounds,
                held,
                self.port.limits.body,
                unread,
                note,
            ))
        });
        let (answer, leaving) = self.port.routes.call(request, &charge, is_grpc);
        let holding = match leaving {
            Some(leaving) => Holding::Messages {
                leaving,
                _call: charge,
            },
            None => Holding::Whole(charge),
        };
        ExchangeFuture {
            answer,
            deadline,
            running: Some(running),
            holding,
        }
    }
}

impl Exchange {
    /// The answer to a request with too many header fields. Over HTTP/1.1 hyper refuses it earlier.
    fn refuse_head(&self, fields: usize, limit: usize) -> Response<Body> {
        let text = format!(
            "the request has {fields} header fields, the limit is {limit} (`--max-header-fields`)"
        );
        if self.port.protocol == Protocol::Grpc {
            return tonic::Status::resource_exhausted(text)
                .into_http::<tonic::body::Body>()
                .map(Body::new);
        }
        error_response(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, JSON, text)
    }
}

impl hyper::service::Service<Request<Incoming>> for Exchange {
    type Response = Response<Outflow>;
    type Error = Infallible;
    type Future = ExchangeFuture;

    fn call(&self, request: Request<Incoming>) -> ExchangeFuture {
        self.begin(request.map(BodySource::Http1))
    }
}

pin_project! {
    /// The future of an answer.
    pub(super) struct ExchangeFuture {
        #[pin]
        answer: routes::RoutedAnswer,
        #[pin]
        deadline: Option<Sleep>,
        running: Option<RequestInFlight>,
        holding: Holding,
    }
}

impl Future for ExchangeFuture {
    type Output = Result<Response<Outflow>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut holding = std::mem::replace(this.holding, Holding::Nothing);
        let mut response = match this.answer.poll(cx) {
            Poll::Ready(response) => {
                if let Some(running) = &this.running {
                    running.answer_begins();
                }
                let size = response.body().size_hint().exact();
                if let (Holding::Whole(charge), Some(size)) = (&holding, size) {
                    // The request has been freed; only its answer remains.
                    charge.shrink_to(usize::try_from(size).unwrap_or(usize::MAX));
                }
                response
            }
            Poll::Pending => {
                *this.holding = holding;
                let Some(deadline) = this.deadline.as_pin_mut() else {
                    return Poll::Pending;
                };
                ready!(deadline.poll(cx));
                // The request may still be running; it keeps its own charge from here on.
                holding = Holding::Nothing;
                deadline::exceeded()
            }
        };
        let mut running = this.running.take();
        if let Some(running) = &mut running {
            running.answered(&mut response);
        }
        Poll::Ready(Ok(response.map(|body| Outflow::new(body, holding, running))))
    }
}
