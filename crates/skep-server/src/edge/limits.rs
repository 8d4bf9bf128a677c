//! Limits on clients, and gRPC's settings of connections.

use std::{sync::Arc, time::Duration};

use skep_tensor::MemoryBudget;

/// How much time and memory clients may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections over HTTP and gRPC together.
    pub connections: usize,
    /// The memory of all requests: incoming bytes, their decoded form, and answers until they are written.
    pub request_memory: Arc<MemoryBudget>,
    /// From the opening of a connection, or the first byte of a further request, to the end of the request's head; the
    /// TLS handshake is part of it.
    pub head: Duration,
    /// Between two pieces of a request's body.
    pub body: Duration,
    /// How long an HTTP/1.1 client that has closed its sending side may wait for its answer to begin. TCP does not show
    /// whether the client closed the whole connection.
    pub half_closed: Duration,
    /// Fields of a request's head.
    pub header_fields: usize,
    /// The time in which a client must read 16 KiB of an answer, or the rest of it.
    pub write: Duration,
    /// How long a connection without a request stays open.
    pub idle: Duration,
}

/// gRPC's settings of connections.
#[derive(Debug, Clone, Default)]
pub struct GrpcConnections {
    /// How long a connection must be silent before it is pinged; `None` for never.
    pub keepalive_time: Option<Duration>,
    /// How long the answer to a ping may take.
    pub keepalive_timeout: Duration,
    /// The age at which a connection stops accepting calls; `None` for no limit.
    pub max_age: Option<Duration>,
    /// How long calls in flight may go on after that; `None` for no limit.
    pub max_age_grace: Option<Duration>,
}
