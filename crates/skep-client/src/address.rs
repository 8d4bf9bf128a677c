//! URLs of servers, and the options of a client.

use std::{sync::Arc, time::Duration};

use http::Uri;
use skep_types::ModelName;

use crate::{error::Error, headers::Headers, tls::ClientTls};

/// Options of a client: limits, headers, encryption.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The largest answer that is accepted, in bytes.
    pub max_answer_bytes: usize,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// Headers of each call.
    pub headers: Headers,
    /// How connections are encrypted if the URL asks for encryption; [`ClientTls::of_system`] by default.
    pub tls: Option<ClientTls>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            // A tensor of 2 GiB or more in one answer is a mistake.
            max_answer_bytes: 2 << 30,
            // Long enough for a lost packet or two, short enough for a waiting user.
            connect_timeout: Duration::from_secs(10),
            headers: Headers::default(),
            tls: None,
        }
    }
}

/// The protocol that a URL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Grpc,
}

impl Scheme {
    const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }

    /// Triton's port.
    const fn default_port(self) -> u16 {
        match self {
            Self::Http => 8000,
            Self::Grpc => 8001,
        }
    }
}

/// A server: protocol and `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) scheme: Scheme,
    pub(crate) is_encrypted: bool,
    pub(crate) authority: Arc<str>,
}

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self, Error> {
        let invalid = |why: &str| {
            Error::invalid(format!(
                "invalid server URL `{url}`: {why}, expected `http://host:8000` or `grpc://host:8001`, encrypted `https://` or `grpcs://`"
            ))
        };
        let uri: Uri = url.parse().map_err(|_| invalid("it is not a URL"))?;
        let (scheme, is_encrypted) = match uri.scheme_str() {
            Some("http") => (Scheme::Http, false),
            Some("https") => (Scheme::Http, true),
            Some("grpc") => (Scheme::Grpc, false),
            Some("grpcs") => (Scheme::Grpc, true),
            Some(_) => return Err(invalid("the scheme is unknown")),
            None => return Err(invalid("it has no scheme")),
        };
        let authority = uri.authority().ok_or_else(|| invalid("it has no host"))?;
        let host = authority.host();
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(invalid("it has no plain host"));
        }
        let port = match authority.as_str().strip_prefix(host) {
            Some("") => scheme.default_port(),
            rest => rest
                .and_then(|rest| rest.strip_prefix(':')?.parse().ok())
                .ok_or_else(|| invalid("the port is not a number up to 65535"))?,
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid("it has a path"));
        }
        Ok(Self {
            scheme,
            is_encrypted,
            authority: format!("{host}:{port}").into(),
        })
    }

    /// The host alone, an IPv6 address without its brackets.
    pub(crate) fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or("", |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The URL with HTTP's scheme, for either protocol.
    pub(crate) fn base(&self) -> String {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    /// As [`Address::parse`], for a client that speaks one protocol only.
    pub(crate) fn parse_as(url: &str, scheme: Scheme) -> Result<Self, Error> {
        let address = Self::parse(url)?;
        if address.scheme == scheme {
            return Ok(address);
        }
        Err(Error::invalid(format!(
            "server URL `{url}` has scheme `{}`, expected `{}`",
            address.scheme.name(),
            scheme.name()
        )))
    }
}

/// Refuses a name that no model can have, before it becomes part of a path or means all models.
pub(crate) fn check_model(name: &str) -> Result<(), Error> {
    match ModelName::new(name) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::invalid(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_decides_the_protocol_and_the_default_port() {
        for (url, scheme, authority) in [
            ("http://localhost", Scheme::Http, "localhost:8000"),
            ("https://localhost", Scheme::Http, "localhost:8000"),
            ("grpcs://localhost", Scheme::Grpc, "localhost:8001"),
            ("http://localhost/", Scheme::Http, "localhost:8000"),
            ("grpc://10.0.0.1", Scheme::Grpc, "10.0.0.1:8001"),
            ("grpc://h:9", Scheme::Grpc, "h:9"),
            ("http://[::1]", Scheme::Http, "[::1]:8000"),
            ("http://[::1]:80", Scheme::Http, "[::1]:80"),
        ] {
            let address = Address::parse(url).expect(url);
            assert_eq!(
                (address.scheme, &*address.authority),
                (scheme, authority),
                "{url}"
            );
            assert_eq!(address.is_encrypted, url.contains("s://"), "{url}");
        }
    }

    #[test]
    fn hosts_and_bases_have_the_form_that_tls_and_http_need() {
        for (url, host, base) in [
            ("https://h", "h", "https://h:8000"),
            ("grpcs://[::1]:9", "::1", "https://[::1]:9"),
            ("grpc://10.0.0.1", "10.0.0.1", "http://10.0.0.1:8001"),
        ] {
            let address = Address::parse(url).expect(url);
            assert_eq!((address.host(), &*address.base()), (host, base), "{url}");
        }
    }

    #[test]
    fn malformed_urls_are_refused() {
        for (url, why) in [
            ("", "not a URL"),
            ("localhost", "no scheme"),
            ("localhost:8000", "no scheme"),
            ("ftp://h", "unknown"),
            ("http://h:65536", "port"),
            ("http://h:x", "port"),
            ("http://h:", "port"),
            ("http://u@h", "plain host"),
            ("http://h/v2", "path"),
            ("http://h?a=b", "path"),
        ] {
            let text = Address::parse(url).expect_err(url).to_string();
            assert!(text.contains(why), "{url}: {text}");
        }
        assert!(Address::parse_as("grpc://h", Scheme::Http).is_err());
    }
}
