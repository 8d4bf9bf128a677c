//! Everything between a socket and a router, the same for all ports: accepting, TLS, HTTP/1.1 and HTTP/2, limits.
//!
//! ```text
//! listen      the port; accepts while there is room, backs off when the system is out of descriptors
//! tls         certificates and keys into what a handshake needs; `client_certificates`: who may connect;
//!             `version_1`: how certificates of X.509 version 1 are verified
//! watched     files that are read again when they change
//! stream      a connection's bytes, plain or encrypted; notes when bytes move and when they do not
//! connection  handshake, protocol, then hyper's connection over HTTP/1.1
//! http2       a connection over HTTP/2: a task a request, each answer at the pace of its own window
//! exchange    a request and its answer, with a deadline
//! inflow      a request's body: patience, memory charged
//! intake      what has come of a request over HTTP/2 before anybody reads it
//! outflow     an answer's body: what it holds of the memory until it is written
//! activity    what each connection is doing; one sweep over all of them finds those that are over a limit
//! routes      who answers: the port's router, and a shortcut before it
//! deadline    how long a gRPC client waits
//! body        a whole body in one piece
//! ```
//!
//! Limits on connections have no timers: a connection writes down what it does, and the sweep ends it when that takes too
//! long. Timers belong to single bodies and answers, and to gRPC's keepalive.

mod activity;
mod body;
mod client_certificates;
mod connection;
mod deadline;
mod exchange;
mod http2;
mod inflow;
mod intake;
mod listen;
mod outflow;
mod routes;
mod stream;
mod tls;
mod version_1;
mod watched;

use std::{sync::Arc, time::Duration};

use skep_tensor::MemoryBudget;

use crate::access::AccessLog;

pub(crate) use self::{
    activity::Connections,
    body::{Unread, read_body},
    inflow::MessageBounds,
    listen::{accept, listen},
    routes::{Answer, Leaving, Routes, Shortcut},
};
pub use self::{
    listen::{BindError, Endpoint},
    tls::{Tls, TlsFiles},
};

/// What clients may take of a server, each in time and in memory.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections over HTTP and gRPC together.
    pub connections: usize,
    /// The memory of all requests: what comes in, what it becomes, and answers until they are written.
    pub request_memory: Arc<MemoryBudget>,
    /// From the opening of a connection, or the first byte of a further request, to the end of the request's head; the
    /// TLS handshake is part of it.
    pub head: Duration,
    /// Between two pieces of a request's body.
    pub body: Duration,
    /// How long a client over HTTP/1.1 that has ended its sending side waits for the beginning of its answer. It may as well
    /// have closed the connection: TCP shows no difference.
    pub half_closed: Duration,
    /// Fields of a request's head.
    pub header_fields: usize,
    /// In which a client takes 16 KiB of an answer, or all that is left of it.
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
    pub(crate) tls: Option<Tls>,
    pub(crate) limits: Limits,
    pub(crate) grpc: GrpcConnections,
    /// What bounds the messages of a call, by its path; `None` for HTTP.
    pub(crate) message_bounds: Option<fn(&str) -> MessageBounds>,
    pub(crate) connections: Arc<Connections>,
    /// Who writes down what requests came to.
    pub(crate) access: Option<Arc<dyn AccessLog>>,
}
