//! Limits on clients, and gRPC's settings of connections.

use std::{sync::Arc, time::Duration};

use skep_tensor::MemoryBudget;

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
