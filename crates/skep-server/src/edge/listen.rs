//! The ports: opening them, and taking connections while there is room.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{activity::ActivityLimits, connection, listener::ListenerContext, tls::ServerTls};

/// Connections that may wait to be accepted.
const LISTEN_BACKLOG: u32 = 1024;

/// How long to wait when the system is out of descriptors or memory: long enough not to spin, short enough that a
/// client whose turn it is does not notice.
const PAUSE: Duration = Duration::from_millis(50);

/// The interval between log lines about a persistent error.
const QUIET: Duration = Duration::from_secs(60);

/// Where a port is opened.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The address, such as `0.0.0.0`, `::` or `localhost`'s.
    pub address: IpAddr,
    /// The port; 0 for any free one.
    pub port: u16,
    /// Whether other processes may open the same port (`SO_REUSEPORT`).
    pub reuse: bool,
    /// Encryption, if connections are encrypted.
    pub tls: Option<ServerTls>,
}

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {what} port {address}: {reason}")]
pub struct BindError {
    what: &'static str,
    address: SocketAddr,
    reason: io::Error,
}

/// Opens a port.
pub(crate) fn listen(endpoint: &Endpoint, what: &'static str) -> Result<TcpListener, BindError> {
    let address = SocketAddr::new(endpoint.address, endpoint.port);
    open(address, endpoint.reuse).map_err(|reason| BindError {
        what,
        address,
        reason,
    })
}

fn open(address: SocketAddr, reuse: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // Lets a new server open the port right after another has stopped.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(reuse)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// Accepts connections forever. If no slot is free, the connection waits for one, and later connections wait in the
/// backlog.
pub(crate) async fn accept(listener: TcpListener, port: ListenerContext, slots: Arc<Semaphore>) {
    let times = ActivityLimits::new(&port.limits, port.grpc.max_age, port.grpc.max_age_grace);
    let port = Arc::new(port);
    let mut warned: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                tracing::debug!("accepted a connection from {peer}");
                let Some(slot) = slot(&slots, &port).await else {
                    return;
                };
                let entry = port.connections.enter(times);
                tokio::spawn(connection::serve(socket, Arc::clone(&port), entry, slot));
            }
            // Concerns only that connection, which is gone.
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                if warned.is_none_or(|last| last.elapsed() > QUIET) {
                    tracing::warn!("cannot accept a connection, will try again: {error}");
                    warned = Some(Instant::now());
                }
                port.connections.close_idlest();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A slot for one more connection; `None` once the semaphore is closed.
async fn slot(slots: &Arc<Semaphore>, port: &ListenerContext) -> Option<OwnedSemaphorePermit> {
    if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
        return Some(slot);
    }
    tracing::debug!("the limit on connections is reached, closing the idlest");
    port.connections.close_idlest();
    Arc::clone(slots).acquire_owned().await.ok()
}

fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
