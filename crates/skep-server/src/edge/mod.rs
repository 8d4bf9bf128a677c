//! Everything between a socket and a router, the same for all ports: accepting, TLS, HTTP/1.1 and HTTP/2, limits.
//!
//! ```text
//! listen      the port; accepts while there is room, backs off when the system is out of descriptors
//! tls         the certificate and key of a port; `client_certificates`: who may connect;
//!             `version_1`: how certificates of X.509 version 1 are verified
//! watched     files that are read again when they change
//! stream      a connection's bytes, plain or encrypted; notes when bytes move and when they do not
//! connection  handshake, protocol, then hyper's connection over HTTP/1.1
//! http2       a connection over HTTP/2: a task for each request, each answer at the pace of its own window
//! exchange    a request and its answer, with a deadline
//! inflow      a request's body: patience, memory charged
//! intake      the part of an HTTP/2 request that has arrived and is not read yet
//! outflow     an answer's body, which holds its charge until it is written
//! activity    what a connection is doing, and when that has taken too long
//! connections all open connections, and the sweep that finds those over a limit
//! limits      how much time and memory clients may use
//! listener    what the connections of a port share
//! routes      the port's router, and a shortcut past it
//! deadline    how long a gRPC client waits
//! body        a whole body in one piece
//! ```
//!
//! Limits on connections use no timers: a connection notes what it does, and the sweep ends it when that takes too
//! long. Single bodies and answers have timers, and so has gRPC's keepalive.

mod activity;
mod body;
mod client_certificates;
mod connection;
mod connections;
mod deadline;
mod exchange;
mod http2;
mod inflow;
mod intake;
mod limits;
mod listen;
mod listener;
mod outflow;
mod routes;
mod stream;
mod tls;
mod version_1;
mod watched;

pub(crate) use self::{
    body::{UnreadBody, read_body},
    connections::Connections,
    inflow::MessageBounds,
    listen::{accept, listen},
    listener::{ListenerContext, Protocol},
    routes::{AnswerFuture, Leaving, PortRoutes, Shortcut},
};
pub use self::{
    limits::{GrpcConnections, Limits},
    listen::{BindError, Endpoint},
    tls::{ServerTls, TlsFiles},
};
