//! A request and its answer: the body comes in at the client's pace and is counted, the answer goes out.
//!
//! Nothing here costs a task, and nothing a box beyond those of the router.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{BoxError, body::Body};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version, header};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};

use super::{Port, Protocol, activity::Activity, deadline, memory::Charge, routes};
use crate::{error::ApiError, logging};

/// The largest piece of an answer that HTTP/2 is given at once: what a client does not take of it is held until the
/// connection ends, and goes unseen by the limit on writing.
const PIECE_BYTES: usize = 1 << 20;

/// What must come of a body while the limit on its pauses passes: far below any line that is of use, so that it only
/// ends those who trickle on purpose.
const MIN_PROGRESS_BYTES: usize = 1 << 10;

/// Why a request's body cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The client does not send.
    #[error("less than {MIN_PROGRESS_BYTES} bytes of it came within {} s", .0.as_secs_f32())]
    Stalled(Duration),
    /// Other requests fill the memory.
    #[error("the requests in memory would have more than {0} bytes with it, try again later")]
    NoMemory(usize),
    /// The connection ended, or what came is no HTTP.
    #[error(transparent)]
    Broken(hyper::Error),
}

/// What answers the requests of a connection.
pub(super) struct Exchange {
    port: Arc<Port>,
    activity: Arc<Activity>,
}

impl Exchange {
    pub(super) fn new(port: Arc<Port>, activity: Arc<Activity>) -> Self {
        Self { port, activity }
    }
}

impl hyper::service::Service<Request<Incoming>> for Exchange {
    type Response = Response<Outflow>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let multiplexed = request.version() == Version::HTTP_2;
        if multiplexed {
            self.activity.multiplexed();
        }
        let running = Running::new(Arc::clone(&self.activity));
        if self.port.protocol == Protocol::Http {
            logging::log_request(&request);
        }
        let is_grpc = self.port.protocol == Protocol::Grpc;
        let deadline = is_grpc
            .then(|| deadline::read(request.headers()))
            .flatten()
            .map(sleep);
        let mut charge = None;
        let request = if http_body::Body::is_end_stream(request.body()) {
            request.map(|_| Body::empty())
        } else {
            let held = Arc::new(Charge::new(Arc::clone(&self.port.memory)));
            charge = Some(Arc::clone(&held));
            let mut request = request;
            if is_compressed(request.headers()) {
                request.extensions_mut().insert(Arc::clone(&held));
            }
            request.map(|body| {
                Body::new(Inflow {
                    body,
                    messages: is_grpc.then(Messages::default),
                    charge: held,
                    patience: self.port.limits.body,
                    wait: None,
                    fresh_bytes: 0,
                    unread: (!multiplexed).then(|| Arc::clone(&self.activity)),
                })
            })
        };
        Answering {
            answer: self.port.routes.call(request),
            deadline,
            multiplexed,
            running: Some(running),
            _charge: charge,
        }
    }
}

/// Whether a body says that it becomes something else, in either protocol's words.
fn is_compressed(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_ENCODING) || headers.contains_key("grpc-encoding")
}

pin_project! {
    /// An answer in the making. What the request holds of the memory is given back when it is there.
    pub(super) struct Answering {
        #[pin]
        answer: routes::Answering,
        #[pin]
        deadline: Option<Sleep>,
        multiplexed: bool,
        running: Option<Running>,
        _charge: Option<Arc<Charge>>,
    }
}

impl Future for Answering {
    type Output = Result<Response<Outflow>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.answer.poll(cx) {
            Poll::Ready(response) => response,
            Poll::Pending => {
                let Some(deadline) = this.deadline.as_pin_mut() else {
                    return Poll::Pending;
                };
                ready!(deadline.poll(cx));
                deadline::exceeded()
            }
        };
        let running = this.running.take();
        let multiplexed = *this.multiplexed;
        Poll::Ready(Ok(response.map(|body| Outflow {
            body,
            multiplexed,
            rest: Bytes::new(),
            handed: None,
            running,
        })))
    }
}

/// A request under way, as long as it lives.
struct Running(Arc<Activity>);

impl Running {
    fn new(activity: Arc<Activity>) -> Self {
        activity.request_begins();
        Self(activity)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.request_ends();
    }
}

pin_project! {
    /// A request's body: it must keep coming and fit into the memory.
    struct Inflow {
        #[pin]
        body: Incoming,
        // Where gRPC's messages begin and end; `None` for HTTP.
        messages: Option<Messages>,
        charge: Arc<Charge>,
        patience: Duration,
        #[pin]
        wait: Option<Sleep>,
        // What has come since the wait began.
        fresh_bytes: usize,
        // Who is to know when the body is given up before its end.
        unread: Option<Arc<Activity>>,
    }

    impl PinnedDrop for Inflow {
        fn drop(this: Pin<&mut Self>) {
            if let Some(activity) = this.unread.as_ref().filter(|_| !http_body::Body::is_end_stream(&this.body)) {
                activity.leave_unread();
            }
        }
    }
}

impl http_body::Body for Inflow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let is_grpc = this.messages.is_some();
        let refuse = |error: BodyError| Poll::Ready(Some(Err(boxed(error, is_grpc))));
        match this.body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let Some(data) = frame.data_ref() else {
                    return Poll::Ready(Some(Ok(frame)));
                };
                *this.fresh_bytes += data.len();
                if this.messages.as_mut().is_some_and(|m| m.pass(data)) {
                    this.charge.clear();
                }
                if let Err(error) = this.charge.add(data.len()) {
                    return refuse(error);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => refuse(BodyError::Broken(error)),
            Poll::Ready(None) => {
                *this.unread = None;
                Poll::Ready(None)
            }
            // A stream of messages may pause for as long as it likes between two of them.
            Poll::Pending if this.messages.as_ref().is_some_and(Messages::is_between) => {
                this.wait.set(None);
                Poll::Pending
            }
            Poll::Pending => {
                if this.wait.is_none() {
                    *this.fresh_bytes = 0;
                    this.wait.set(Some(sleep(*this.patience)));
                }
                let mut wait = this.wait.as_pin_mut().expect("set above");
                ready!(wait.as_mut().poll(cx));
                if *this.fresh_bytes < MIN_PROGRESS_BYTES {
                    return refuse(BodyError::Stalled(*this.patience));
                }
                *this.fresh_bytes = 0;
                wait.as_mut().reset(Instant::now() + *this.patience);
                // Registers the task with the new end.
                wait.poll(cx).map(|()| None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An error as the handlers of a protocol look for it.
fn boxed(error: BodyError, is_grpc: bool) -> BoxError {
    if is_grpc {
        Box::new(tonic::Status::from(ApiError::from(&error)))
    } else {
        Box::new(error)
    }
}

/// Where the messages of a call begin and end: a flag, a length of four bytes, and so many bytes.
///
/// Source: gRPC over HTTP/2, "Length-Prefixed-Message".
#[derive(Debug, Default)]
struct Messages {
    /// How much of a message's prefix has come, and the length in it so far.
    prefix_bytes: usize,
    length: u32,
    /// What is to come of a message.
    left: usize,
    any: bool,
}

/// A flag and a length.
const PREFIX_BYTES: usize = 5;

impl Messages {
    const fn is_between(&self) -> bool {
        self.prefix_bytes == 0 && self.left == 0
    }

    /// Takes note of data; whether a message begins in it that is not the call's first one. Those before it have been
    /// taken out by then.
    fn pass(&mut self, mut data: &[u8]) -> bool {
        let mut further = false;
        while let Some(&byte) = data.first() {
            if self.left > 0 {
                let passed = self.left.min(data.len());
                self.left -= passed;
                data = &data[passed..];
                continue;
            }
            if self.prefix_bytes == 0 {
                further |= self.any;
                self.any = true;
                self.length = 0;
            } else {
                self.length = self.length << 8 | u32::from(byte);
            }
            self.prefix_bytes += 1;
            if self.prefix_bytes == PREFIX_BYTES {
                self.prefix_bytes = 0;
                self.left = usize::try_from(self.length).unwrap_or(usize::MAX);
            }
            data = &data[1..];
        }
        further
    }
}

pin_project! {
    /// An answer's body; the request is under way until it is dropped.
    pub(super) struct Outflow {
        #[pin]
        body: Body,
        multiplexed: bool,
        // What is left of a piece that is too large to be handed over at once.
        rest: Bytes,
        handed: Option<Handed>,
        running: Option<Running>,
    }
}

/// A piece that the protocol has and the client may not.
struct Handed(Arc<Activity>);

impl Handed {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.sending_begins();
        Self(Arc::clone(activity))
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.0.sending_ends();
    }
}

impl http_body::Body for Outflow {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        if !*this.multiplexed {
            // The socket itself says when the client takes nothing.
            return this.body.poll_frame(cx);
        }
        *this.handed = None;
        if this.rest.is_empty() {
            let Some(frame) = ready!(this.body.poll_frame(cx)?) else {
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => *this.rest = data,
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
        *this.handed = this.running.as_ref().map(|running| Handed::new(&running.0));
        let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(exact) = hint.exact() {
            hint.set_exact(exact + rest);
        } else {
            hint.set_lower(hint.lower() + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart_wherever_they_are_cut() {
        let call = [
            &[0, 0, 0, 0, 3][..],
            b"abc",
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 1, 0],
            &[7; 256],
        ]
        .concat();
        for cut in 1..call.len() {
            let mut messages = Messages::default();
            let (first, second) = call.split_at(cut);
            let begins = [messages.pass(first), messages.pass(second)];
            assert_eq!(begins, [cut > 8, cut < 14], "cut at {cut}");
            assert!(messages.is_between());
        }
        let mut messages = Messages::default();
        assert!(!messages.pass(&call[..6]));
        assert!(!messages.is_between());
        assert!(!messages.pass(&call[6..8]));
        assert!(messages.is_between());
    }
}
