//! One request to the collector: HTTP/1.1, encrypted if its address says so.
//!
//! Each request has a connection of its own. There is one every few seconds, or one for some hundred spans, and a
//! connection that is kept may be closed by the other side at any time.

use std::{fmt, io, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prost::Message;
use skep_proto::otlp::ExportTraceServiceResponse;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::Runtime,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

/// How long a request may take, connection and answer included; OpenTelemetry's default.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer that is read: it says at most how many spans were refused, and why.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The path of traces, if the address has none.
const PATH: &str = "/v1/traces";

/// Where a collector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectorUrl {
    is_encrypted: bool,
    host: String,
    port: u16,
    path: String,
}

/// An address that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the address of a collector, expected http://HOST:PORT/v1/traces, or https://"
)]
pub struct UrlError(String);

impl Default for CollectorUrl {
    /// OpenTelemetry's and Triton's default: `http://localhost:4318/v1/traces`.
    fn default() -> Self {
        Self {
            is_encrypted: false,
            host: "localhost".to_owned(),
            port: 4318,
            path: PATH.to_owned(),
        }
    }
}

impl FromStr for CollectorUrl {
    type Err = UrlError;

    /// Reads an address; without a scheme it is `http`, as in Triton's own examples.
    fn from_str(text: &str) -> Result<Self, UrlError> {
        let wrong = || UrlError(text.to_owned());
        let whole = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let uri: Uri = whole.parse().map_err(|_| wrong())?;
        let is_encrypted = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        let has_port = authority.as_str().len() > authority.host().len();
        let is_user = authority.as_str().contains('@');
        let port = match authority.port_u16() {
            Some(port) => port,
            None if has_port => return Err(wrong()),
            None if is_encrypted => 443,
            None => 80,
        };
        if authority.host().is_empty() || is_user {
            return Err(wrong());
        }
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        Ok(Self {
            is_encrypted,
            host: authority.host().to_owned(),
            port,
            path: if path.is_empty() || path == "/" {
                PATH
            } else {
                path
            }
            .to_owned(),
        })
    }
}

impl fmt::Display for CollectorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}{}", self.host, self.port, self.path)
    }
}

/// A collector, and what requests to it need.
pub(super) struct Collector {
    url: CollectorUrl,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    reactor: Runtime,
}

impl Collector {
    pub(super) fn new(url: CollectorUrl) -> io::Result<Self> {
        let tls = if url.is_encrypted {
            let name = ServerName::try_from(url.host.trim_matches(['[', ']']).to_owned());
            let name = name.map_err(|error| io::Error::other(error.to_string()))?;
            Some((TlsConnector::from(Arc::new(client_config()?)), name))
        } else {
            None
        };
        let reactor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self { url, tls, reactor })
    }

    pub(super) const fn url(&self) -> &CollectorUrl {
        &self.url
    }

    /// Sends a request of OTLP. Blocks.
    pub(super) fn send(&self, body: Bytes) -> Result<(), String> {
        // Timers are made inside of the reactor.
        let exchange = async { timeout(PATIENCE, self.exchange(body)).await };
        let sent = self.reactor.block_on(exchange);
        sent.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
    }

    async fn exchange(&self, body: Bytes) -> Result<(), String> {
        let host = self.url.host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.url.port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        match &self.tls {
            None => self.post(stream, body).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await;
                self.post(stream.map_err(|error| error.to_string())?, body)
                    .await
            }
        }
    }

    async fn post<S>(&self, stream: S, body: Bytes) -> Result<(), String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let request = Request::post(&self.url.path)
            .header(header::HOST, format!("{}:{}", self.url.host, self.url.port))
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let answering = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
            let body = body.collect().await.map(|body| body.to_bytes());
            Ok::<_, hyper::Error>((status, body.unwrap_or_default()))
        };
        let driving = async {
            // Its error is that of the request, if there is one.
            let _ = connection.await;
        };
        let (answered, ()) = tokio::join!(answering, driving);
        let (status, body) = answered.map_err(|error| error.to_string())?;
        if !status.is_success() {
            return Err(format!("it answered {status}"));
        }
        // An answer that is no message refuses nothing.
        let answer = ExportTraceServiceResponse::decode(body).unwrap_or_default();
        match answer.partial_success {
            Some(partial) if partial.rejected_spans > 0 => Err(format!(
                "it refused {} spans: {}",
                partial.rejected_spans, partial.error_message
            )),
            _ => Ok(()),
        }
    }
}

/// Trusts the roots of the system.
fn client_config() -> io::Result<ClientConfig> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(io::Error::other("the system has no root certificates"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (text, expected) in [
            (
                "http://localhost:4318/v1/traces",
                "http://localhost:4318/v1/traces",
            ),
            (
                "localhost:4318/v1/traces",
                "http://localhost:4318/v1/traces",
            ),
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("https://c/otel?key=1", "https://c:443/otel?key=1"),
            ("http://[::1]:9/x", "http://[::1]:9/x"),
        ] {
            let url: CollectorUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), expected);
        }
        for text in [
            "",
            "grpc://c:4317",
            "http://",
            "http://u:p@c/",
            "http://c:x/",
        ] {
            assert!(text.parse::<CollectorUrl>().is_err(), "{text}");
        }
        assert_eq!(
            CollectorUrl::default().to_string(),
            "http://localhost:4318/v1/traces"
        );
    }
}
