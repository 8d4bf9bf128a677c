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
//! activity    what a connection is doing, and for how long it may
//! connections all of them, and the sweep that finds those that are over a limit
//! limits      what clients may take
//! listener    what the connections of a port share
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
