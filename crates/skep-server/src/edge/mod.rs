//! Everything between a socket and a router, the same for all ports: accepting, TLS, HTTP/1.1 and HTTP/2, limits.
//!
//! ```text
//! listen      the port; accepts while there is room, backs off when the system is out of descriptors
//! tls         certificates and keys into what a handshake needs
//! stream      a connection's bytes, plain or encrypted; notes when bytes move and when they do not
//! connection  handshake, then hyper's connection; one task, no further task or box a request
//! exchange    a request and its answer: body in, memory charged, deadline, body out
//! activity    what each connection is doing; one sweep over all of them finds those that are over a limit
//! routes      who answers: the port's router, and a shortcut before it
//! deadline    how long a gRPC client waits
//! body        a whole body in one piece
//! memory      how many bytes of requests are in memory, and the bound on them
//! ```
//!
//! No connection has a timer of its own: it writes down what it does, and the sweep ends it when that takes too long.

mod activity;
mod body;
mod connection;
mod deadline;
mod exchange;
mod listen;
mod memory;
mod routes;
mod stream;
mod tls;

use std::{sync::Arc, time::Duration};

use tokio_rustls::TlsAcceptor;

pub(crate) use self::{
    activity::Connections,
    body::{Unread, read_body},
    exchange::BodyError,
    listen::{accept, listen},
    memory::{Charge, RequestMemory},
    routes::{Answer, Routes, Shortcut},
};
pub use self::{
    listen::{BindError, Endpoint},
    tls::{Tls, TlsError, TlsFile, TlsFiles},
};

/// What clients may take of a server, each in time and in memory.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections over HTTP and gRPC together.
    pub connections: usize,
    /// Bytes of requests in memory, over all requests that are read or run.
    pub request_bytes: usize,
    /// From the opening of a connection, or the first byte of a further request, to the end of the request's head; the
    /// TLS handshake is part of it.
    pub head: Duration,
    /// Between two pieces of a request's body.
    pub body: Duration,
    /// Between two pieces of an answer that the client takes.
    pub write: Duration,
    /// How long a connection without a request stays open.
    pub idle: Duration,
}

/// gRPC's settings of connections.
#[derive(Debug, Clone, Default)]
pub struct GrpcConnections {
    /// How long a connection must be silent before it is asked for a sign of life; `None` for never.
    pub keepalive_time: Option<Duration>,
    /// How long that sign may take.
    pub keepalive_timeout: Duration,
    /// When a connection takes no more calls.
    pub max_age: Option<Duration>,
    /// How long the calls in flight may then go on; `None` for as long as they take.
    pub max_age_grace: Option<Duration>,
}

/// Which protocol a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1, and HTTP/2 for clients that begin with it.
    Http,
    /// HTTP/2 only, with gRPC's deadlines and statuses.
    Grpc,
    /// As `Http`, for those who look at the server rather than use it.
    Metrics,
}

/// What the connections of a port share.
pub(crate) struct Port {
    pub(crate) protocol: Protocol,
    pub(crate) routes: Routes,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) limits: Limits,
    pub(crate) grpc: GrpcConnections,
    pub(crate) memory: Arc<RequestMemory>,
    pub(crate) connections: Arc<Connections>,
}
