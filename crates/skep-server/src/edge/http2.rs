//! A connection over HTTP/2: a task for each request, and each answer at the pace of its own window.
//!
//! The `h2` crate does framing and flow control. It gets only as much of an answer as the client has room for. So the
//! bytes that a client does not read stay here, where the limit on writing applies: a stalled answer is reset and its
//! memory freed, while the connection's other answers go on. Pings do not count as progress.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Buf;
use h2::{
    Ping, PingPong, Reason, RecvStream, SendStream,
    server::{Builder, Connection, SendResponse},
};
use http::{HeaderValue, Request, header};
use http_body::Body;
use tokio::time::{Instant, Sleep, sleep};

use super::{
    activity::{Activity, ConnectionOrder, MIN_PROGRESS_BYTES},
    connections::ConnectionEntry,
    exchange::{Exchange, ExchangeFuture},
    inflow::BodySource,
    intake::{IntakeTaker, intake},
    listener::{ListenerContext, Protocol},
    outflow::{AnswerPiece, Outflow},
    stream::ConnectionStream,
};

/// Bytes of one request that a client may send before they are read: with HTTP/2's default of 64 KiB a tensor of a
/// megabyte would take sixteen round trips. The windows of all requests together fit into HTTP/2's largest window.
const STREAM_WINDOW_BYTES: u32 = (2 << 20) - (64 << 10);

/// The same for a whole connection: the sum over all its requests, so that it never runs out before a stream's own
/// window does, and unread requests never block another one. The bytes count in the memory of requests, which is the
/// real limit.
const CONNECTION_WINDOW_BYTES: u32 = MAX_CONCURRENT_STREAMS * STREAM_WINDOW_BYTES;

// HTTP/2 has no larger window.
const _: () = assert!(CONNECTION_WINDOW_BYTES < 1 << 31);

/// The largest frame: fewer, larger frames cost less work a byte.
const FRAME_BYTES: u32 = 1 << 20;

/// Bytes of an answer that are on their way to the socket at once.
const PIECE_BYTES: usize = 1 << 20;

/// Requests that a client may have under way on one connection; more than load generators use.
const MAX_CONCURRENT_STREAMS: u32 = 1024;

/// The largest head of a request, names and values together.
const MAX_HEAD_BYTES: u32 = 16 << 10;

/// Streams that may be reset because the client violated the protocol; after that the connection ends.
const MAX_RESET_STREAMS: usize = 1024;

/// Serves a connection until it ends, by the client, by itself, or by an order.
pub(super) async fn serve(
    stream: ConnectionStream,
    exchange: Exchange,
    port: &ListenerContext,
    entry: &ConnectionEntry,
) {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_send_buffer_size(PIECE_BYTES)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_local_error_reset_streams(Some(MAX_RESET_STREAMS));
    let mut handshake = builder.handshake::<_, AnswerPiece>(stream);
    let connection = entry.unless_told(|cx| Pin::new(&mut handshake).poll(cx));
    let Some(mut connection) = connection.await else {
        return;
    };
    entry.activity.multiplexed();
    let mut life = (port.protocol == Protocol::Grpc)
        .then(|| Keepalive::new(&mut connection, port))
        .flatten();
    let settings = ReplySettings {
        patience: port.limits.write,
        dated: port.protocol != Protocol::Grpc,
    };
    let mut told = false;
    let mut let_pass = false;
    let outcome = poll_fn(|cx| {
        // Answers that are ready at the same time leave in one write: this task yields once to the tasks behind it.
        let_pass = !let_pass && entry.activity.has_many_requests();
        if let_pass {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(life) = &mut life
            && life.poll_lost(cx, &entry.activity).is_ready()
        {
            connection.abrupt_shutdown(Reason::NO_ERROR);
        }
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, reply)))) => {
                    let (request, taker) = source(request, port);
                    let answering = exchange.begin(request);
                    tokio::spawn(answer(answering, reply, taker, settings));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            match entry.activity.order() {
                ConnectionOrder::Finish if !told => {
                    told = true;
                    // An order uses the registration up.
                    entry.register(cx);
                    connection.graceful_shutdown();
                }
                ConnectionOrder::Abort => return Poll::Ready(Ok(())),
                ConnectionOrder::Serve | ConnectionOrder::Finish => return Poll::Pending,
            }
        }
    })
    .await;
    if let Err(error) = outcome {
        // The client's fault: it left, or sent something other than HTTP/2.
        tracing::debug!("a connection ended with an error: {error}");
    }
}

/// Settings of all answers of a connection.
#[derive(Clone, Copy)]
struct ReplySettings {
    /// The limit on writing.
    patience: Duration,
    /// Whether answers have a `Date` header.
    dated: bool,
}

/// A request with its body and declared length, and the side that takes the body in, if there is a body.
fn source(
    request: Request<RecvStream>,
    port: &ListenerContext,
) -> (Request<BodySource>, Option<IntakeTaker>) {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let is_over = request.body().is_end_stream();
    let mut taker = None;
    let request = request.map(|stream| {
        let (reader, side) = intake(stream, port.limits.request_memory.charge());
        taker = (!is_over).then_some(side);
        BodySource::Http2 { reader, length }
    });
    (request, taker)
}

/// Answers one request, to the end or until the client resets it.
async fn answer(
    answering: ExchangeFuture,
    mut reply: SendResponse<AnswerPiece>,
    taker: Option<IntakeTaker>,
    settings: ReplySettings,
) {
    let response = {
        let mut answering = pin!(answering);
        poll_fn(|cx| match answering.as_mut().poll(cx) {
            Poll::Ready(Ok(response)) => Poll::Ready(Some(response)),
            Poll::Pending => {
                take(taker.as_ref(), cx);
                reply.poll_reset(cx).map(|_| None)
            }
        })
        .await
    };
    let Some(response) = response else {
        return;
    };
    let (mut head, body) = response.into_parts();
    if settings.dated {
        head.headers.entry(header::DATE).or_insert_with(date);
    }
    let is_over = body.is_end_stream();
    if !is_over && let Some(length) = body.size_hint().exact() {
        head.headers
            .entry(header::CONTENT_LENGTH)
            .or_insert_with(|| HeaderValue::from(length));
    }
    let response = http::Response::from_parts(head, ());
    // Fails where the client has reset the request or is gone.
    let Ok(stream) = reply.send_response(response, is_over) else {
        return;
    };
    if !is_over {
        let body = pin!(body);
        let mut sending = Sending {
            body,
            stream,
            left: AnswerPiece::default(),
            patience: settings.patience,
            wait: None,
            fresh_bytes: 0,
        };
        poll_fn(|cx| {
            let done = sending.poll(cx);
            take(taker.as_ref(), cx);
            done
        })
        .await;
    }
}

/// Takes in the bytes of a request that have arrived and are not read yet.
fn take(taker: Option<&IntakeTaker>, cx: &mut Context<'_>) {
    if let Some(taker) = taker {
        taker.take(cx);
    }
}

/// The body of an answer on its way out.
struct Sending<'a> {
    body: Pin<&'a mut Outflow>,
    stream: SendStream<AnswerPiece>,
    /// Bytes that the body gave and the client has no room for yet.
    left: AnswerPiece,
    patience: Duration,
    /// The limit on writing, while there is something left.
    wait: Option<Pin<Box<Sleep>>>,
    /// Bytes that the client took since the wait began.
    fresh_bytes: usize,
}

impl Sending<'_> {
    /// Ready when the answer has been handed to the socket, or was given up.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            if !self.left.has_remaining() {
                // Waiting for the body is not waiting for the client.
                self.wait = None;
                if ready!(self.poll_body(cx)).is_none() {
                    return Poll::Ready(());
                }
                continue;
            }
            match self.stream.capacity() {
                0 => {
                    let wanted = self.left.remaining().min(PIECE_BYTES);
                    self.stream.reserve_capacity(wanted);
                    match self.stream.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(_))) => {}
                        Poll::Ready(_) => return Poll::Ready(()),
                        Poll::Pending => {
                            ready!(self.poll_stalled(cx));
                            tracing::debug!("giving an answer up: the client reads it too slowly");
                            self.stream.send_reset(Reason::CANCEL);
                            return Poll::Ready(());
                        }
                    }
                }
                room => {
                    let bytes = room.min(self.left.remaining());
                    let piece = self.left.split_to(bytes);
                    self.fresh_bytes += bytes;
                    let is_last = !self.left.has_remaining() && self.body.is_end_stream();
                    if self.stream.send_data(piece, is_last).is_err() || is_last {
                        return Poll::Ready(());
                    }
                }
            }
        }
    }

    /// Gets the next piece of the body; `None` at the end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        let frame = match ready!(self.body.as_mut().poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                tracing::debug!("an answer ended with an error: {error}");
                self.stream.send_reset(Reason::INTERNAL_ERROR);
                return Poll::Ready(None);
            }
            None => {
                // Fails where the client is gone.
                drop(self.stream.send_data(AnswerPiece::default(), true));
                return Poll::Ready(None);
            }
        };
        match frame.into_data() {
            Ok(data) => {
                self.left = data;
                let is_over = !self.left.has_remaining() && self.body.is_end_stream();
                if is_over {
                    drop(self.stream.send_data(AnswerPiece::default(), true));
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(()))
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    drop(self.stream.send_trailers(trailers));
                }
                Poll::Ready(None)
            }
        }
    }

    /// Ready when the client has read too little for too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.wait.is_none() {
            self.fresh_bytes = 0;
        }
        let patience = self.patience;
        let wait = self.wait.get_or_insert_with(|| Box::pin(sleep(patience)));
        loop {
            ready!(wait.as_mut().poll(cx));
            if self.fresh_bytes < MIN_PROGRESS_BYTES {
                return Poll::Ready(());
            }
            self.fresh_bytes = 0;
            wait.as_mut().reset(Instant::now() + patience);
        }
    }
}

/// Pings a silent client.
struct Keepalive {
    pings: PingPong,
    /// How long it may be silent.
    interval: Duration,
    /// How long the answer to a ping may take.
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    asked: bool,
}

impl Keepalive {
    /// `None` where keepalive is off.
    fn new(
        connection: &mut Connection<ConnectionStream, AnswerPiece>,
        port: &ListenerContext,
    ) -> Option<Self> {
        let interval = port.grpc.keepalive_time?;
        Some(Self {
            pings: connection.ping_pong()?,
            interval,
            timeout: port.grpc.keepalive_timeout,
            timer: Box::pin(sleep(interval)),
            asked: false,
        })
    }

    /// Ready when the client does not answer a ping in time.
    fn poll_lost(&mut self, cx: &mut Context<'_>, activity: &Activity) -> Poll<()> {
        loop {
            if self.asked && self.pings.poll_pong(cx).is_ready() {
                self.asked = false;
                self.timer.as_mut().reset(Instant::now() + self.interval);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.asked {
                return Poll::Ready(());
            }
            let mut wait = self.interval.saturating_sub(activity.silence());
            if wait.is_zero() {
                // Fails if the connection is ending.
                self.asked = self.pings.send_ping(Ping::opaque()).is_ok();
                wait = if self.asked {
                    self.timeout
                } else {
                    self.interval
                };
            }
            self.timer.as_mut().reset(Instant::now() + wait);
        }
    }
}

/// The value of the `Date` header, to the second.
fn date() -> HeaderValue {
    thread_local! {
        static LAST: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
    }
    let now = SystemTime::now();
    let second = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|last| match last {
        Some((of, date)) if *of == second => date.clone(),
        _ => {
            let date = HeaderValue::try_from(httpdate::fmt_http_date(now));
            let date = date.expect("letters and digits");
            *last = Some((second, date.clone()));
            date
        }
    })
}
