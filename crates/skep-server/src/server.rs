//! The ports: opening them, serving on them, closing them.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{ServiceExt as _, serve::ListenerExt};
use skep_runtime::Runtime;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
};
use tower::ServiceExt as _;

use crate::{
    api,
    forms::Forms,
    grpc, http,
    logging::{self, LogControl},
    metrics::{self, Metrics, MetricsOptions},
    restrict::Restrictions,
};

/// Connections that may wait to be accepted.
const LISTEN_BACKLOG: u32 = 1024;

/// Where a port is opened.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The address, such as `0.0.0.0`, `::` or `localhost`'s.
    pub address: IpAddr,
    /// The port; 0 for any free one.
    pub port: u16,
    /// Whether other processes may open the same port (`SO_REUSEPORT`).
    pub reuse: bool,
}

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
    pub metrics_options: MetricsOptions,
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
    /// Forms of requests and answers.
    pub forms: Forms,
}

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {what} port {address}: {source}")]
pub struct BindError {
    what: &'static str,
    address: SocketAddr,
    source: io::Error,
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

/// What the handlers of all protocols share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) server_name: String,
    pub(crate) max_json_bytes: usize,
    pub(crate) forms: Forms,
    pub(crate) logs: Arc<dyn LogControl>,
    pub(crate) http_restrictions: Restrictions,
    pub(crate) grpc_restrictions: Restrictions,
}

/// A server whose ports are open.
pub struct Server {
    shared: Arc<Shared>,
    exit_timeout: Duration,
    addresses: Addresses,
    http: Option<TcpListener>,
    grpc: Option<TcpListener>,
    metrics: Option<TcpListener>,
    metrics_options: MetricsOptions,
}

impl Server {
    /// Opens the ports. Connections wait until [`Server::run`].
    ///
    /// # Errors
    /// [`BindError`] names the port that cannot be opened.
    pub fn bind(options: &ServerOptions, runtime: Arc<Runtime>) -> Result<Self, BindError> {
        let open = |endpoint: &Option<Endpoint>, what| {
            endpoint.as_ref().map(|e| listen(e, what)).transpose()
        };
        let (http, grpc, metrics) = (
            open(&options.http, "HTTP")?,
            open(&options.grpc, "gRPC")?,
            open(&options.metrics, "metrics")?,
        );
        let address =
            |listener: &Option<TcpListener>| listener.as_ref().and_then(|l| l.local_addr().ok());
        let addresses = Addresses {
            http: address(&http),
            grpc: address(&grpc),
            metrics: address(&metrics),
        };
        let server_name = options
            .id
            .clone()
            .unwrap_or_else(|| api::DEFAULT_SERVER_NAME.to_owned());
        let shared = Arc::new(Shared {
            runtime,
            server_name,
            max_json_bytes: options.max_json_bytes,
            forms: options.forms.clone(),
            logs: Arc::clone(&options.logs),
            http_restrictions: options.http_restrictions.clone(),
            grpc_restrictions: options.grpc_restrictions.clone(),
        });
        Ok(Self {
            shared,
            exit_timeout: options.exit_timeout,
            addresses,
            http,
            grpc,
            metrics,
            metrics_options: options.metrics_options.clone(),
        })
    }

    /// The addresses that are served.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until `stop` is done. Then: not ready; no new connections; what is in flight finishes, idle connections
    /// are closed at once; models are unloaded. All within the exit timeout.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> StopOutcome {
        let (stopping, stopped) = watch::channel(false);
        let until = |mut stopped: watch::Receiver<bool>| async move {
            // An error means that the sender is gone, which is a stop as well.
            drop(stopped.wait_for(|stop| *stop).await);
        };
        let mut tasks = tokio::task::JoinSet::new();
        // Ends with this call.
        let mut sampling = tokio::task::JoinSet::new();
        if let Some(listener) = self.http {
            let listener = listener.tap_io(no_delay);
            let service = http::router(Arc::clone(&self.shared)).map_request(logging::log_request);
            let serve = axum::serve(listener, service.into_make_service())
                .with_graceful_shutdown(until(stopped.clone()));
            tasks.spawn(async move { serve.await.map_err(|e| e.to_string()) });
        }
        if let Some(listener) = self.grpc {
            let serve = grpc::serve(listener, Arc::clone(&self.shared), until(stopped.clone()));
            tasks.spawn(async move { serve.await.map_err(|e| e.to_string()) });
        }
        if let Some(listener) = self.metrics {
            let metrics = Metrics::new(Arc::clone(&self.shared.runtime), self.metrics_options);
            sampling.spawn(Arc::clone(&metrics).keep_sampling());
            let service = metrics::router(metrics);
            let serve = axum::serve(listener, service).with_graceful_shutdown(until(stopped));
            tasks.spawn(async move { serve.await.map_err(|e| e.to_string()) });
        }
        stop.await;
        let deadline = Instant::now() + self.exit_timeout;
        self.shared.runtime.begin_stop();
        // Nobody is left to tell if every port has ended by itself.
        stopping.send_replace(true);
        let drained = async {
            while let Some(ended) = tasks.join_next().await {
                if let Ok(Err(error)) = ended {
                    tracing::error!("a port ended with an error: {error}");
                }
            }
        };
        let connections_closed = tokio::time::timeout(self.exit_timeout, drained)
            .await
            .is_ok();
        tasks.abort_all();
        let runtime = Arc::clone(&self.shared.runtime);
        let left = deadline.saturating_duration_since(Instant::now());
        let models_left = tokio::task::spawn_blocking(move || runtime.stop(left))
            .await
            .unwrap_or(0);
        StopOutcome {
            connections_closed,
            models_left,
        }
    }
}

/// Small answers leave at once.
pub(crate) fn no_delay(stream: &mut tokio::net::TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("cannot set TCP_NODELAY: {error}");
    }
}

fn listen(endpoint: &Endpoint, what: &'static str) -> Result<TcpListener, BindError> {
    let address = SocketAddr::new(endpoint.address, endpoint.port);
    let open = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // A port that a stopped server has just left can be opened again at once.
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(endpoint.reuse)?;
        socket.bind(address)?;
        socket.listen(LISTEN_BACKLOG)
    };
    open().map_err(|source| BindError {
        what,
        address,
        source,
    })
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}
