//! What the connections of a port share.

use std::sync::Arc;

use super::{
    connections::Connections,
    inflow::MessageBounds,
    limits::{GrpcConnections, Limits},
    routes::PortRoutes,
    tls::ServerTls,
};
use crate::access::AccessLog;

/// Which protocol a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1, and HTTP/2 for clients that begin with it.
    Http,
    /// HTTP/2 only, with gRPC's deadlines and statuses.
    Grpc,
    /// As `Http`, for monitoring.
    Metrics,
}

/// What the connections of a port share.
pub(crate) struct ListenerContext {
    pub(crate) protocol: Protocol,
    pub(crate) routes: PortRoutes,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) limits: Limits,
    pub(crate) grpc: GrpcConnections,
    /// The bounds on a call's messages, by its path; `None` for HTTP.
    pub(crate) message_bounds: Option<fn(&str) -> MessageBounds>,
    pub(crate) connections: Arc<Connections>,
    /// The access log, if there is one.
    pub(crate) access: Option<Arc<dyn AccessLog>>,
}
