//! Flags about the server that is asked: where it is, whom to trust, what goes with each call.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use skep_client::{Client, ClientOptions, ClientTls, Error};

/// Servers take fewer bytes of headers.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// The server: http://host:port or grpc://host:port, encrypted https:// or grpcs://
    #[arg(long, value_name = "URL", default_value = "http://localhost:8000")]
    url: String,
    /// A header of each request, `name: value`, or @FILE for a file of such lines, which keeps secrets out of process
    /// lists; may be given several times
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// The authority that signed the server's certificate, or that certificate itself, PEM; the system's roots by
    /// default
    #[arg(long, value_name = "PATH")]
    ca: Option<PathBuf>,
    /// Do not verify the server's certificate
    #[arg(long, conflicts_with = "ca")]
    insecure: bool,
    /// A certificate to show to the server, PEM
    #[arg(long, value_name = "PATH", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "PATH", requires = "cert")]
    key: Option<PathBuf>,
}

impl ServerArgs {
    /// A client of the server.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let mut options = ClientOptions::default();
        for header in &self.header {
            for line in lines(header)? {
                options.headers.add(&line).context("--header")?;
            }
        }
        options.tls = self.tls()?;
        Client::connect_with(&self.url, &options)
            .await
            .map_err(|error| self.explain(error))
    }

    /// How the connection is encrypted, where flags say so.
    fn tls(&self) -> anyhow::Result<Option<ClientTls>> {
        let flags = [
            ("--ca", self.ca.is_some()),
            ("--insecure", self.insecure),
            ("--cert", self.cert.is_some()),
        ];
        let given = flags.iter().find(|(_, is_given)| *is_given);
        match given {
            None => return Ok(None),
            Some((flag, _)) if !self.is_encrypted() => bail!(
                "{flag} is for encrypted connections, expected `--url https://...` or `grpcs://...`, got `{}`",
                self.url
            ),
            Some(_) => {}
        }
        let tls = match &self.ca {
            Some(path) => ClientTls::of_roots(path).context("--ca")?,
            None if self.insecure => ClientTls::of_anybody(),
            None => ClientTls::of_system()?,
        };
        let (Some(certificate), Some(key)) = (&self.cert, &self.key) else {
            return Ok(Some(tls));
        };
        let tls = tls.with_identity(certificate, key);
        tls.context("--cert, --key").map(Some)
    }

    fn is_encrypted(&self) -> bool {
        self.url.starts_with("https:") || self.url.starts_with("grpcs:")
    }

    /// An error of a call, with what to do about it.
    pub(crate) fn explain(&self, error: Error) -> anyhow::Error {
        let hint = match &error {
            Error::Handshake { reason, .. } if reason.contains("does not speak TLS") => {
                "\n  try: `http://` or `grpc://`"
            }
            Error::Handshake { reason, .. } if reason.contains("the server's certificate") => {
                "\n  `--ca FILE` names an authority to trust, `--insecure` trusts any server"
            }
            // Over TLS 1.3 a server says so after the handshake, and the words may be lost with the connection.
            Error::Handshake { .. } | Error::Disconnected { .. }
                if self.is_encrypted() && self.cert.is_none() =>
            {
                "\n  does the server ask for a certificate? `--cert FILE --key FILE` shows one"
            }
            Error::Disconnected { .. } | Error::Protocol { .. } if !self.is_encrypted() => {
                "\n  does the server speak TLS? try: `https://` or `grpcs://`"
            }
            _ => "",
        };
        anyhow::anyhow!("{error}{hint}")
    }
}

/// The headers that a flag gives: itself, or the lines of a file.
fn lines(header: &str) -> anyhow::Result<Vec<String>> {
    let Some(path) = header.strip_prefix('@') else {
        return Ok(vec![header.to_owned()]);
    };
    let text = skep_host::read_named_text(path.as_ref(), MAX_FILE_BYTES)
        .with_context(|| format!("--header: cannot read `{path}`"))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(lines.map(str::to_owned).collect())
}
