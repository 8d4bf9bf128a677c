//! The ports: opening them, serving on them, closing them.

use std::{
    fmt,
    future::Future,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use skep_regions::ClientRegions;
use skep_runtime::Runtime;
use skep_tracing::Tracer;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    task::JoinSet,
};

use crate::{
    access::AccessLog,
    edge::{
        self, BindError, Connections, Endpoint, GrpcConnections, Limits, ListenerContext,
        PortRoutes, Protocol, ServerTls,
    },
    grpc, http,
    inference::InferenceOptions,
    management::{LogControl, metadata::DEFAULT_SERVER_NAME},
    metrics::{self, Metrics, MetricsPortOptions},
    restrict::Restrictions,
    state::ServerState,
};

/// Connections to the metrics port: a few scrapers, which must get through even if clients fill the other ports.
const METRICS_CONNECTIONS: usize = 128;

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// HTTP, if it is served.
    pub http: Option<Endpoint>,
    /// gRPC, if it is served.
    pub grpc: Option<Endpoint>,
    /// Metrics, if they are served.
    pub metrics: Option<Endpoint>,
    /// Which metrics are shown.
    pub metrics_options: MetricsPortOptions,
    /// The process's log settings.
    pub logs: Arc<dyn LogControl>,
    /// The traces of requests.
    pub traces: Arc<Tracer>,
    /// Groups of HTTP calls that ask for a header.
    pub http_restrictions: Restrictions,
    /// Groups of gRPC calls that ask for a header.
    pub grpc_restrictions: Restrictions,
    /// The name in the server's metadata; `None` for the default.
    pub id: Option<String>,
    /// The largest JSON part of an HTTP request, in bytes.
    pub max_json_bytes: usize,
    /// How long a stop waits for what is in flight.
    pub exit_timeout: Duration,
    /// What the operator chooses about inference calls.
    pub inference: InferenceOptions,
    /// How much time and memory clients may use.
    pub limits: Limits,
    /// gRPC's settings of connections.
    pub grpc_connections: GrpcConnections,
    /// The access log of requests over HTTP and gRPC, if there is one.
    pub access: Option<Arc<dyn AccessLog>>,
}

/// The addresses that are served, with the real port numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Addresses {
    /// HTTP.
    pub http: Option<SocketAddr>,
    /// gRPC.
    pub grpc: Option<SocketAddr>,
    /// Metrics.
    pub metrics: Option<SocketAddr>,
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopOutcome {
    /// Whether all connections closed in time.
    pub connections_closed: bool,
    /// Model versions still running when the time was up.
    pub models_left: usize,
}

/// An open port, before anything is served on it.
struct OpenPort {
    listener: TcpListener,
    tls: Option<ServerTls>,
}

impl OpenPort {
    /// Opens the port, if it is served.
    fn open(endpoint: Option<&Endpoint>, what: &'static str) -> Result<Option<Self>, BindError> {
        let Some(endpoint) = endpoint else {
            return Ok(None);
        };
        Ok(Some(Self {
            listener: edge::listen(endpoint, what)?,
            tls: endpoint.tls.clone(),
        }))
    }

    fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Accepts connections on the port, and watches the files of its certificate.
    fn accept(self, context: ListenerContext, slots: Arc<Semaphore>, tasks: &mut JoinSet<()>) {
        if let Some(tls) = self.tls {
            tasks.spawn(tls.keep_watching());
        }
        tasks.spawn(edge::accept(self.listener, context, slots));
    }
}

/// A server whose ports are open.
pub struct Server {
    state: Arc<ServerState>,
    exit_timeout: Duration,
    limits: Limits,
    grpc_connections: GrpcConnections,
    http: Option<OpenPort>,
    grpc: Option<OpenPort>,
    metrics: Option<OpenPort>,
    metrics_options: MetricsPortOptions,
    access: Option<Arc<dyn AccessLog>>,
}

impl Server {
    /// Opens the ports. Connections wait until [`Server::run`].
    ///
    /// # Errors
    /// [`BindError`] names the port that cannot be opened.
    pub fn bind(options: &ServerOptions, runtime: Arc<Runtime>) -> Result<Self, BindError> {
        let http = OpenPort::open(options.http.as_ref(), "HTTP")?;
        let grpc = OpenPort::open(options.grpc.as_ref(), "gRPC")?;
        let metrics = OpenPort::open(options.metrics.as_ref(), "metrics")?;
        let server_name = options
            .id
            .clone()
            .unwrap_or_else(|| DEFAULT_SERVER_NAME.to_owned());
        let metrics_port = metrics.as_ref().and_then(OpenPort::address);
        let metrics_port = metrics_port.map(|address| address.port());
        let state = Arc::new(ServerState {
            page: http::render_page(metrics_port),
            runtime,
            server_name,
            max_json_bytes: options.max_json_bytes,
            client_regions: options
                .inference
                .client_regions
                .then(ClientRegions::default),
            inference: options.inference.clone(),
            logs: Arc::clone(&options.logs),
            traces: Arc::clone(&options.traces),
            http_restrictions: options.http_restrictions.clone(),
            grpc_restrictions: options.grpc_restrictions.clone(),
        });
        Ok(Self {
            state,
            exit_timeout: options.exit_timeout,
            limits: options.limits.clone(),
            grpc_connections: options.grpc_connections.clone(),
            http,
            grpc,
            metrics,
            metrics_options: options.metrics_options.clone(),
            access: options.access.clone(),
        })
    }

    /// The addresses that are served.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        Addresses {
            http: self.http.as_ref().and_then(OpenPort::address),
            grpc: self.grpc.as_ref().and_then(OpenPort::address),
            metrics: self.metrics.as_ref().and_then(OpenPort::address),
        }
    }

    /// Serves until `stop` is ready. Then the server is not ready, accepts no connections, lets requests in flight
    /// finish, closes idle connections at once, and unloads the models, all within the exit timeout.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> StopOutcome {
        let (runtime, exit_timeout) = (Arc::clone(&self.state.runtime), self.exit_timeout);
        let connections = Arc::new(Connections::new(&self.limits));
        let sweeping = tokio::spawn({
            let connections = Arc::clone(&connections);
            async move { connections.sweep().await }
        });
        let mut accepting = self.accept_all(&connections);
        stop.await;
        // A deadline that cannot be represented means no deadline.
        let deadline = Instant::now().checked_add(exit_timeout);
        runtime.begin_stop();
        // Listeners close before connections are told, so that no new connection slips in.
        accepting.shutdown().await;
        connections.finish();
        let connections_closed = tokio::time::timeout(exit_timeout, connections.all_closed())
            .await
            .is_ok();
        sweeping.abort();
        let now = Instant::now();
        let left = deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(now));
        let models_left = stop_models(runtime, left).await;
        StopOutcome {
            connections_closed,
            models_left,
        }
    }

    /// Begins to accept connections on every open port, and starts the ports' background tasks.
    fn accept_all(mut self, connections: &Arc<Connections>) -> JoinSet<()> {
        let clients = Arc::new(Semaphore::new(
            self.limits.connections.min(Semaphore::MAX_PERMITS),
        ));
        let mut tasks = JoinSet::new();
        if let Some(port) = self.http.take() {
            let context = self.context(
                &port,
                Protocol::Http,
                http::routes(&self.state),
                connections,
            );
            port.accept(context, Arc::clone(&clients), &mut tasks);
        }
        if let Some(port) = self.grpc.take() {
            match grpc::routes(&self.state) {
                Ok(routes) => {
                    let context = self.context(&port, Protocol::Grpc, routes, connections);
                    port.accept(context, clients, &mut tasks);
                }
                Err(error) => tracing::error!("gRPC is not served: {error}"),
            }
        }
        if let Some(port) = self.metrics.take() {
            let metrics = Metrics::new(
                Arc::clone(&self.state.runtime),
                self.metrics_options.clone(),
                Arc::clone(&self.limits.request_memory),
                Arc::clone(&self.state.traces),
            );
            let sampling = Arc::clone(&metrics).keep_sampling();
            let routes = metrics::router(metrics).into();
            let context = self.context(&port, Protocol::Metrics, routes, connections);
            let slots = Arc::new(Semaphore::new(METRICS_CONNECTIONS));
            port.accept(context, slots, &mut tasks);
            tasks.spawn(sampling);
        }
        tasks
    }

    /// What the connections of a port share.
    fn context(
        &self,
        port: &OpenPort,
        protocol: Protocol,
        routes: PortRoutes,
        connections: &Arc<Connections>,
    ) -> ListenerContext {
        let is_grpc = protocol == Protocol::Grpc;
        let access = self.access.clone();
        ListenerContext {
            protocol,
            routes,
            tls: port.tls.clone(),
            limits: self.limits.clone(),
            grpc: if is_grpc {
                self.grpc_connections.clone()
            } else {
                GrpcConnections::default()
            },
            message_bounds: is_grpc
                .then_some(grpc::message_bounds as fn(&str) -> edge::MessageBounds),
            connections: Arc::clone(connections),
            access: access.filter(|_| protocol != Protocol::Metrics),
        }
    }
}

/// Stops the models on a dedicated thread, which other work cannot occupy. Returns how many versions still run then.
async fn stop_models(runtime: Arc<Runtime>, left: Duration) -> usize {
    let (outcome, stopped) = oneshot::channel();
    let stopping = Arc::clone(&runtime);
    let thread = thread::Builder::new().name("stop".to_owned());
    let started = thread.spawn(move || {
        let _ = outcome.send(stopping.stop(left));
    });
    match (started, stopped.await) {
        (Ok(_), Ok(models_left)) => models_left,
        // No thread, or a panic: the versions that still run are abandoned.
        _ => runtime.loaded().len().max(1),
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses())
            .finish_non_exhaustive()
    }
}
