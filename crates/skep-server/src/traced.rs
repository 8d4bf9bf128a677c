//! Traces at the edge: when a request's bytes came, and when its answer's left.
//!
//! ```text
//! handlers   CallTiming::begin at the head, CallTiming::received when the model is known -> TracedRequest
//! inference  carries the trace in the request
//! outflow    drops the SendingTrace among the answer's extensions with the answer's body: the trace is over
//! ```

use std::sync::Arc;

use http::{HeaderMap, Response};
use skep_runtime::{InferRequest, RequestTrace};
use skep_tracing::{TraceParent, TracedRequest, Tracer};
use skep_types::Time;

use crate::{access::RefusalText, state::ServerState};

/// A protocol's names of the points at its edge.
#[derive(Debug)]
pub(crate) struct EdgePoints {
    receive_start: &'static str,
    receive_end: &'static str,
    send_start: &'static str,
    send_end: &'static str,
}

/// Triton's names over HTTP.
pub(crate) const HTTP: &EdgePoints = &EdgePoints {
    receive_start: "HTTP_RECV_START",
    receive_end: "HTTP_RECV_END",
    send_start: "HTTP_SEND_START",
    send_end: "HTTP_SEND_END",
};

/// Triton's names over gRPC.
pub(crate) const GRPC: &EdgePoints = &EdgePoints {
    receive_start: "GRPC_WAITREAD_START",
    receive_end: "GRPC_WAITREAD_END",
    send_start: "GRPC_SEND_START",
    send_end: "GRPC_SEND_END",
};

/// When the bytes of a call came, as long as it is not known whether the call is traced. Empty if no call is.
#[derive(Debug)]
pub(crate) struct CallTiming {
    points: &'static EdgePoints,
    began: Option<Time>,
}

impl CallTiming {
    /// A call begins now.
    pub(crate) fn begin(tracer: &Tracer, points: &'static EdgePoints) -> Self {
        Self {
            points,
            began: tracer.is_on().then(RequestTrace::now),
        }
    }

    /// The call was received, and is for this model. Returns its trace if it is to be traced.
    pub(crate) fn received(
        &self,
        state: &ServerState,
        model: &str,
        headers: &HeaderMap,
    ) -> Option<TracedCall> {
        let began = self.began?;
        let traced = state.traces.begin(model, || parent(headers))?;
        let trace = traced.trace();
        trace.mark_at(self.points.receive_start, began);
        trace.mark(self.points.receive_end);
        Some(TracedCall {
            traced,
            points: self.points,
        })
    }
}

/// The client's span, if it names one.
fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    let value = |name| headers.get(name).map(http::HeaderValue::as_bytes);
    TraceParent::read(value("traceparent")?, value("tracestate"))
}

/// A call that is traced.
#[derive(Debug)]
pub(crate) struct TracedCall {
    traced: TracedRequest,
    points: &'static EdgePoints,
}

impl TracedCall {
    /// The request of the call carries the trace.
    pub(crate) fn attach(traced: Option<&Self>, request: &mut InferRequest) {
        request.trace = traced.map(|call| Arc::clone(call.traced.trace()));
    }

    /// The call failed with this text.
    pub(crate) fn failed(&self, why: &str) {
        self.traced.trace().failed(why);
    }

    /// The answer is ready. The trace ends when the result is dropped.
    pub(crate) fn sends(self) -> SendingTrace {
        self.traced.trace().mark(self.points.send_start);
        SendingTrace {
            _end: Arc::new(SendEnd {
                traced: self.traced,
                point: self.points.send_end,
            }),
        }
    }

    /// The response of a call, traced or not, is ready. The trace ends with the response's body.
    pub(crate) fn answered<B>(traced: Option<Self>, response: &mut Response<B>) {
        let Some(call) = traced else {
            return;
        };
        if let Some(RefusalText(text)) = response.extensions().get() {
            call.failed(text);
        }
        response.extensions_mut().insert(call.sends());
    }
}

/// A traced answer on its way out.
#[derive(Debug, Clone)]
pub(crate) struct SendingTrace {
    _end: Arc<SendEnd>,
}

#[derive(Debug)]
struct SendEnd {
    traced: TracedRequest,
    point: &'static str,
}

impl Drop for SendEnd {
    fn drop(&mut self) {
        self.traced.trace().mark(self.point);
    }
}
