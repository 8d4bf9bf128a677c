//! Flags of the ports: which are opened where, and how they are encrypted.

use std::{
    net::{IpAddr, ToSocketAddrs},
    path::PathBuf,
};

use anyhow::{Context, bail};
use clap::Args;
use skep_server::{Endpoint, ServerTls, TlsError, TlsFile, TlsFiles};

use crate::flag_values::boolean;

#[derive(Debug, Args)]
#[command(next_help_heading = "Ports")]
pub(super) struct PortArgs {
    /// Whether HTTP is served
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    allow_http: bool,
    /// The address of HTTP
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    http_address: String,
    /// The port of HTTP; 0 takes a free one, which the start line names
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    http_port: u16,
    /// Whether other processes may open the HTTP port too
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    reuse_http_port: bool,
    /// Whether gRPC is served
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    allow_grpc: bool,
    /// The address of gRPC
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    grpc_address: String,
    /// The port of gRPC; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8001)]
    grpc_port: u16,
    /// Whether other processes may open the gRPC port too
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    reuse_grpc_port: bool,
    /// Whether metrics are served
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    allow_metrics: bool,
    /// The address of metrics; by default that of HTTP
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<String>,
    /// The port of metrics; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8002)]
    metrics_port: u16,
    #[command(flatten)]
    tls: TlsArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Encryption")]
struct TlsArgs {
    /// Whether HTTP is encrypted (Skep's own, as are the other flags of HTTPS)
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    http_use_ssl: bool,
    /// Whether clients of HTTPS must show a certificate; implies --http-use-ssl
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    http_use_ssl_mutual: bool,
    /// The certificate of HTTPS with its intermediate certificates, PEM
    #[arg(long, value_name = "PATH")]
    http_server_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "PATH")]
    http_server_key: Option<PathBuf>,
    /// The authorities that sign the certificates of HTTPS clients, PEM
    #[arg(long, value_name = "PATH")]
    http_root_cert: Option<PathBuf>,
    /// Whether gRPC is encrypted
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    grpc_use_ssl: bool,
    /// Whether clients of gRPC must show a certificate; implies --grpc-use-ssl
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    grpc_use_ssl_mutual: bool,
    /// The certificate of gRPC with its intermediate certificates, PEM
    #[arg(long, value_name = "PATH")]
    grpc_server_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "PATH")]
    grpc_server_key: Option<PathBuf>,
    /// The authorities that sign the certificates of gRPC clients, PEM
    #[arg(long, value_name = "PATH")]
    grpc_root_cert: Option<PathBuf>,
}

impl PortArgs {
    /// Whether metrics are served.
    pub(super) const fn allow_metrics(&self) -> bool {
        self.allow_metrics
    }

    /// HTTP, if it is served.
    pub(super) fn http(&self) -> anyhow::Result<Option<Endpoint>> {
        let flags = &self.tls;
        let tls = TlsFlags {
            port: "http",
            on: flags.http_use_ssl,
            mutual: flags.http_use_ssl_mutual,
            certificate: &flags.http_server_cert,
            key: &flags.http_server_key,
            roots: &flags.http_root_cert,
        };
        endpoint(self.allow_http, || {
            Ok(Endpoint {
                address: resolve(&self.http_address).context("--http-address")?,
                port: self.http_port,
                reuse: self.reuse_http_port,
                tls: tls.read(ServerTls::http)?,
            })
        })
    }

    /// gRPC, if it is served.
    pub(super) fn grpc(&self) -> anyhow::Result<Option<Endpoint>> {
        let flags = &self.tls;
        let tls = TlsFlags {
            port: "grpc",
            on: flags.grpc_use_ssl,
            mutual: flags.grpc_use_ssl_mutual,
            certificate: &flags.grpc_server_cert,
            key: &flags.grpc_server_key,
            roots: &flags.grpc_root_cert,
        };
        endpoint(self.allow_grpc, || {
            Ok(Endpoint {
                address: resolve(&self.grpc_address).context("--grpc-address")?,
                port: self.grpc_port,
                reuse: self.reuse_grpc_port,
                tls: tls.read(ServerTls::grpc)?,
            })
        })
    }

    /// Metrics, if they are served.
    pub(super) fn metrics(&self) -> anyhow::Result<Option<Endpoint>> {
        let (flag, address) = match &self.metrics_address {
            Some(address) => ("--metrics-address", address),
            None => ("--http-address", &self.http_address),
        };
        endpoint(self.allow_metrics, || {
            Ok(Endpoint {
                address: resolve(address).context(flag)?,
                port: self.metrics_port,
                reuse: false,
                tls: None,
            })
        })
    }
}

fn endpoint(
    allowed: bool,
    make: impl FnOnce() -> anyhow::Result<Endpoint>,
) -> anyhow::Result<Option<Endpoint>> {
    allowed.then(make).transpose()
}

/// An address as text, `[::]` and host names included.
fn resolve(address: &str) -> anyhow::Result<IpAddr> {
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(address);
    }
    let found = (bare, 0)
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve address `{address}`"))?;
    found
        .map(|found| found.ip())
        .next()
        .with_context(|| format!("address `{address}` resolves to nothing"))
}

/// The flags of one port's encryption.
struct TlsFlags<'a> {
    port: &'static str,
    on: bool,
    mutual: bool,
    certificate: &'a Option<PathBuf>,
    key: &'a Option<PathBuf>,
    roots: &'a Option<PathBuf>,
}

impl TlsFlags<'_> {
    fn read(
        &self,
        read: impl FnOnce(&TlsFiles) -> Result<ServerTls, TlsError>,
    ) -> anyhow::Result<Option<ServerTls>> {
        let port = self.port;
        // As Triton takes it: asking for clients' certificates asks for encryption.
        let on = self.on || self.mutual;
        for (flag, file, is_used, by) in [
            ("server-cert", self.certificate, on, "use-ssl"),
            ("server-key", self.key, on, "use-ssl"),
            ("root-cert", self.roots, self.mutual, "use-ssl-mutual"),
        ] {
            if file.is_some() && !is_used {
                tracing::warn!(
                    "accepted without effect: --{port}-{flag}: it needs --{port}-{by}=true"
                );
            }
            if file.is_none() && is_used {
                bail!("--{port}-{by}=true needs --{port}-{flag}: a file in PEM form");
            }
        }
        let (Some(certificate), Some(key), true) = (self.certificate, self.key, on) else {
            return Ok(None);
        };
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_roots: self.roots.clone().filter(|_| self.mutual),
        };
        let tls = read(&files).map_err(|error| {
            let flag = match error.file() {
                TlsFile::Certificate => "server-cert",
                TlsFile::Key => "server-key",
                TlsFile::Roots => "root-cert",
            };
            anyhow::Error::new(error).context(format!("--{port}-{flag}"))
        })?;
        Ok(Some(tls))
    }
}
