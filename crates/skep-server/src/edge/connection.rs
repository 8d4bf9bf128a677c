//! One connection: handshake, protocol, requests, end.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};

use super::{
    Port, Protocol,
    activity::{Entry, Order},
    exchange::Exchange,
    stream::Stream,
};

/// What a client may send of one request before it is read: with HTTP/2's 64 KiB a tensor of a megabyte would take
/// sixteen round trips.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// The same over all requests of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The largest frame: fewer, larger frames cost less work a byte.
const FRAME_BYTES: u32 = 1 << 20;

/// Requests that an HTTP/2 client may have under way on a connection; more than the widest load generators use.
const MAX_CONCURRENT_STREAMS: u32 = 1024;

/// How hyper is to serve the connections of a port.
pub(super) fn builder(port: &Port) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // The sweep over all connections does it, without a timer a request.
        .header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS);
    if port.protocol == Protocol::Grpc {
        builder
            .http2()
            .keep_alive_interval(port.grpc.keepalive_time)
            .keep_alive_timeout(port.grpc.keepalive_timeout);
        builder = builder.http2_only();
    }
    builder
}

/// Serves a connection until it ends, by the client, by itself, or by an order.
pub(super) async fn serve(
    socket: TcpStream,
    port: Arc<Port>,
    builder: Arc<auto::Builder<TokioExecutor>>,
    entry: Entry,
    _slot: OwnedSemaphorePermit,
) {
    // Small answers leave at once.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!("cannot set TCP_NODELAY: {error}");
    }
    // A peer that is gone without a word is found out in the end.
    if let Err(error) = rustix::net::sockopt::set_socket_keepalive(&socket, true) {
        tracing::debug!("cannot set SO_KEEPALIVE: {error}");
    }
    poll_fn(|cx| {
        entry.register(cx);
        Poll::Ready(())
    })
    .await;
    let Some(stream) = handshake(socket, &port, &entry).await else {
        return;
    };
    if port.protocol == Protocol::Grpc {
        entry.activity.multiplexed();
    }
    let exchange = Exchange::new(port, Arc::clone(&entry.activity));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), exchange));
    let mut told = false;
    let mut let_pass = false;
    let outcome = poll_fn(|cx| {
        // Answers of several requests that are ready at once leave in one write: those whose tasks wait behind this
        // one are let pass, once.
        let_pass = !let_pass && entry.activity.has_many_requests();
        if let_pass {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let Poll::Ready(outcome) = connection.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            match entry.activity.order() {
                Order::Finish if !told => {
                    told = true;
                    // An order uses the registration up.
                    entry.register(cx);
                    connection.as_mut().graceful_shutdown();
                }
                Order::Abort => return Poll::Ready(Ok(())),
                Order::Serve | Order::Finish => return Poll::Pending,
            }
        }
    })
    .await;
    if let Err(error) = outcome {
        // The client's doing: it left, or sent what is no HTTP.
        tracing::debug!("a connection ended with an error: {error}");
    }
}

/// The connection's bytes, once encryption has been agreed on where the port has it; `None` if that failed, or took
/// too long, or the server stops.
async fn handshake(socket: TcpStream, port: &Port, entry: &Entry) -> Option<Stream> {
    let activity = &entry.activity;
    let Some(tls) = &port.tls else {
        return Some(Stream::plain(socket, Arc::clone(activity)));
    };
    let mut accept = tls.accept(socket);
    let accepted = poll_fn(|cx| match Pin::new(&mut accept).poll(cx) {
        Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
        Poll::Pending if activity.order() == Order::Serve => Poll::Pending,
        Poll::Pending => Poll::Ready(None),
    })
    .await;
    match accepted? {
        Ok(stream) => Some(Stream::tls(stream, Arc::clone(activity))),
        Err(error) => {
            tracing::debug!("a TLS handshake failed: {error}");
            None
        }
    }
}
