//! The ports: opening them, serving on them, closing them.

use std::{
    fmt,
    future::Future,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use skep_runtime::Runtime;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    task::JoinSet,
};

use crate::{
    access::AccessLog,
    edge::{
        self, BindError, Connections, Endpoint, GrpcConnections, Limits, ListenerContext, Protocol,
        ServerTls,
    },
    grpc, http,
    inference::InferenceOptions,
    management::{LogControl, metadata::DEFAULT_SERVER_NAME},
    metrics::{self, Metrics, MetricsPortOptions},
    restrict::Restrictions,
    state::ServerState,
};

/// Connections to the port of metrics: a scraper or a few, which must get through when clients fill their own ports.
const METRICS_CONNECTIONS: usize = 128;

/// What a server is made with.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// HTTP, if it is served.
    pub http: Option<Endpoint>,
    /// gRPC, if it is served.
    pub grpc: Option<Endpoint>,
    /// Metrics, if they are served.
    pub metrics: Option<Endpoint>,
    /// What the metrics port shows.
    pub metrics_options: MetricsPortOptions,
    /// Whoever logs.
    pub logs: Arc<dyn LogControl>,
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
    /// What clients may take.
    pub limits: Limits,
    /// gRPC's settings of connections.
    pub grpc_connections: GrpcConnections,
    /// Who writes down what requests over HTTP and gRPC came to, if anybody does.
    pub access: Option<Arc<dyn AccessLog>>,
}

/// The addresses that are really served, ports resolved.
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
    /// Whether all connections were done in time.
    pub connections_closed: bool,
    /// Model versions that still ran when time was up.
    pub models_left: usize,
}

/// An open port, before anything is served on it.
struct OpenPort {
    listener: TcpListener,
    tls: Option<ServerTls>,
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
        let open = |endpoint: &Option<Endpoint>, what| {
            let open = |endpoint: &Endpoint| {
                Ok(OpenPort {
                    listener: edge::listen(endpoint, what)?,
                    tls: endpoint.tls.clone(),
                })
            };
            endpoint.as_ref().map(open).transpose()
        };
        let (http, grpc, metrics) = (
            open(&options.http, "HTTP")?,
            open(&options.grpc, "gRPC")?,
            open(&options.metrics, "metrics")?,
        );
        let server_name = options
            .id
            .clone()
            .unwrap_or_else(|| DEFAULT_SERVER_NAME.to_owned());
        let metrics_address = metrics
            .as_ref()
            .map(|opened: &OpenPort| opened.listener.local_addr());
        let metrics_port = metrics_address
            .and_then(Result::ok)
            .map(|address| address.port());
        let state = Arc::new(ServerState {
            page: http::render_page(metrics_port),
            runtime,
            server_name,
            max_json_bytes: options.max_json_bytes,
            inference: options.inference.clone(),
            logs: Arc::clone(&options.logs),
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
        let address =
            |opened: &Option<OpenPort>| opened.as_ref().and_then(|o| o.listener.local_addr().ok());
        Addresses {
            http: address(&self.http),
            grpc: address(&self.grpc),
            metrics: address(&self.metrics),
        }
    }

    /// Serves until `stop` is done. Then: not ready; no new connections; what is in flight finishes, idle connections
    /// are closed at once; models are unloaded. All within the exit timeout.
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
        // Listeners are closed before connections are told, so that none slips in between.
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

    /// Begins to take connections on every open port, and what belongs to the ports.
    fn accept_all(self, connections: &Arc<Connections>) -> JoinSet<()> {
        let clients = Arc::new(Semaphore::new(
            self.limits.connections.min(Semaphore::MAX_PERMITS),
        ));
        let mut running = JoinSet::new();
        let mut serve = |opened: OpenPort, protocol, routes, grpc, slots| {
            if let Some(tls) = &opened.tls {
                running.spawn(tls.clone().keep_watching());
            }
            let port = ListenerContext {
                protocol,
                routes,
                tls: opened.tls,
                limits: self.limits.clone(),
                grpc,
                message_bounds: matches!(protocol, Protocol::Grpc)
                    .then_some(grpc::message_bounds as fn(&str) -> edge::MessageBounds),
                connections: Arc::clone(connections),
                access: self
                    .access
                    .clone()
                    .filter(|_| protocol != Protocol::Metrics),
            };
            running.spawn(edge::accept(opened.listener, port, slots));
        };
        let plain = GrpcConnections::default;
        if let Some(opened) = self.http {
            let routes = http::routes(&self.state);
            serve(
                opened,
                Protocol::Http,
                routes,
                plain(),
                Arc::clone(&clients),
            );
        }
        if let Some(opened) = self.grpc {
            match grpc::routes(&self.state) {
                Ok(routes) => {
                    let settings = self.grpc_connections;
                    serve(opened, Protocol::Grpc, routes, settings, clients);
                }
                Err(error) => tracing::error!("gRPC is not served: {error}"),
            }
        }
        if let Some(opened) = self.metrics {
            let metrics = Metrics::new(
                Arc::clone(&self.state.runtime),
                self.metrics_options,
                Arc::clone(&self.limits.request_memory),
            );
            let sampling = Arc::clone(&metrics).keep_sampling();
            let slots = Arc::new(Semaphore::new(METRICS_CONNECTIONS));
            let router = metrics::router(metrics);
            serve(opened, Protocol::Metrics, router.into(), plain(), slots);
            running.spawn(sampling);
        }
        running
    }
}

/// Stops the models on a thread of its own, which nothing else can fill; how many versions still run then.
async fn stop_models(runtime: Arc<Runtime>, left: Duration) -> usize {
    let (outcome, stopped) = oneshot::channel();
    let stopping = Arc::clone(&runtime);
    let thread = thread::Builder::new().name("stop".to_owned());
    let started = thread.spawn(move || {
        let _ = outcome.send(stopping.stop(left));
    });
    match (started, stopped.await) {
        (Ok(_), Ok(models_left)) => models_left,
        // No thread, or a panic: what still runs is given up.
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
