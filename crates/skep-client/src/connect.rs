//! Connections: TCP, and TLS over it if the URL asks for it.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tower::Service;

use crate::{
    address::{Address, ClientOptions},
    error::{Error, HandshakeError},
    tls::{self, ClientTls},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes connections to one server.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    tls: Option<TlsHandshake>,
}

#[derive(Clone)]
struct TlsHandshake {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    timeout: Duration,
}

impl std::fmt::Debug for TlsHandshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector for a server; `protocol` is the ALPN name of the protocol inside TLS.
    pub(crate) fn new(
        address: &Address,
        options: &ClientOptions,
        protocol: &[u8],
    ) -> Result<Self, Error> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(options.connect_timeout));
        let tls = if address.is_encrypted {
            let host = address.host();
            let name = ServerName::try_from(host.to_owned()).map_err(|_| {
                Error::invalid(format!("`{host}` is not a valid host name for TLS"))
            })?;
            let tls = match &options.tls {
                Some(tls) => tls.clone(),
                None => ClientTls::of_system()?,
            };
            Some(TlsHandshake {
                config: tls.config(protocol),
                name,
                timeout: options.connect_timeout,
            })
        } else {
            None
        };
        Ok(Self { tcp, tls })
    }
}

impl Service<Uri> for Connector {
    type Response = ClientStream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<ClientStream, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tcp = self.tcp.call(uri);
        let tls = self.tls.clone();
        Box::pin(async move {
            let tcp = tcp.await?;
            let Some(TlsHandshake {
                config,
                name,
                timeout,
            }) = tls
            else {
                return Ok(ClientStream::Plain(tcp));
            };
            let shake = TlsConnector::from(config).connect(name, tcp.into_inner());
            match tokio::time::timeout(timeout, shake).await {
                Ok(Ok(stream)) => Ok(ClientStream::Encrypted(Box::new(TokioIo::new(stream)))),
                Ok(Err(error)) => Err(HandshakeError(tls::handshake_reason(&error)).into()),
                Err(_) => {
                    let text = format!("no TLS handshake within {} s", timeout.as_secs_f64());
                    Err(HandshakeError(text).into())
                }
            }
        })
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) enum ClientStream {
    Plain(TokioIo<TcpStream>),
    Encrypted(Box<TokioIo<TlsStream<TcpStream>>>),
}

/// The same call on either stream.
macro_rules! either {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            ClientStream::Plain($stream) => $call,
            ClientStream::Encrypted($stream) => $call,
        }
    };
}

impl Connection for ClientStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl Write for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(context))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Encrypted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(context, pieces))
    }
}
