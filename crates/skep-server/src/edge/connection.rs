//! One connection: handshake, protocol, requests, end.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};

use super::{
    activity::ConnectionOrder,
    connections::ConnectionEntry,
    exchange::Exchange,
    http2,
    listener::{ListenerContext, Protocol},
    stream::ConnectionStream,
};

/// Header fields that hyper parses without an allocation.
const HYPERS_HEADER_FIELDS: usize = 100;

/// The largest head of a request; hyper's buffer holds this much anyway.
const MAX_HEAD_BYTES: usize = 400 << 10;

/// Serves a connection until it ends, by the client, by itself, or by an order.
pub(super) async fn serve(
    socket: TcpStream,
    port: Arc<ListenerContext>,
    entry: ConnectionEntry,
    _slot: OwnedSemaphorePermit,
) {
    // Small answers leave at once.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!("cannot set TCP_NODELAY: {error}");
    }
    // Detects a peer that vanished without closing.
    if let Err(error) = rustix::net::sockopt::set_socket_keepalive(&socket, true) {
        tracing::debug!("cannot set SO_KEEPALIVE: {error}");
    }
    let Ok(client) = socket.peer_addr() else {
        // The client is gone already.
        return;
    };
    poll_fn(|cx| {
        entry.register(cx);
        Poll::Ready(())
    })
    .await;
    let Some(mut stream) = handshake(socket, &port, &entry).await else {
        return;
    };
    let is_http2 = match port.protocol {
        // A client that does not speak HTTP/2 gets an error from the protocol.
        Protocol::Grpc => Some(true),
        Protocol::Http | Protocol::Metrics => {
            entry.unless_told(|cx| stream.poll_is_http2(cx)).await
        }
    };
    let Some(is_http2) = is_http2 else {
        return;
    };
    let exchange = Exchange::new(Arc::clone(&port), Arc::clone(&entry.activity), client);
    if is_http2 {
        http2::serve(stream, exchange, &port, &entry).await;
    } else {
        http1(stream, exchange, &port, &entry).await;
    }
}

/// Serves HTTP/1.1.
async fn http1(
    stream: ConnectionStream,
    exchange: Exchange,
    port: &ListenerContext,
    entry: &ConnectionEntry,
) {
    let mut builder = http1::Builder::new();
    // The sweep enforces this limit, without a timer for each request.
    builder.header_read_timeout(None);
    builder.max_header_size(MAX_HEAD_BYTES);
    if port.limits.header_fields != HYPERS_HEADER_FIELDS {
        builder.max_headers(port.limits.header_fields);
    }
    let stream = TokioIo::new(stream.half_closes());
    let connection = builder.serve_connection(stream, exchange);
    let mut connection = pin!(connection);
    let mut told = false;
    let outcome = poll_fn(|cx| {
        if entry.activity.has_ended_sending() {
            // The end of a request consumes the registered waker.
            entry.register(cx);
        }
        loop {
            if let Poll::Ready(outcome) = connection.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            match entry.activity.order() {
                ConnectionOrder::Finish if !told => {
                    told = true;
                    // An order consumes the registered waker.
                    entry.register(cx);
                    connection.as_mut().graceful_shutdown();
                }
                ConnectionOrder::Abort => return Poll::Ready(Ok(())),
                ConnectionOrder::Serve | ConnectionOrder::Finish => return Poll::Pending,
            }
        }
    })
    .await;
    if let Err(error) = outcome {
        // The client's fault: it left, or sent something other than HTTP.
        tracing::debug!("a connection ended with an error: {error}");
    }
}

/// The connection's bytes, after the TLS handshake if the port has TLS; `None` if the handshake failed or timed out, or
/// the server stops.
async fn handshake(
    socket: TcpStream,
    port: &ListenerContext,
    entry: &ConnectionEntry,
) -> Option<ConnectionStream> {
    let activity = &entry.activity;
    let Some(tls) = &port.tls else {
        return Some(ConnectionStream::plain(socket, Arc::clone(activity)));
    };
    let mut accept = tls.acceptor().accept(socket);
    let accepted = entry.unless_told(|cx| Pin::new(&mut accept).poll(cx)).await;
    accepted.map(|stream| ConnectionStream::tls(stream, Arc::clone(activity)))
}
