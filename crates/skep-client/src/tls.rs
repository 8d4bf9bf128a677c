//! Encryption: which servers a client trusts, and the certificate that it presents.

use std::{fmt, io, path::Path, sync::Arc};

use skep_tls::{Roots, TlsError, is_authority};
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    sign::{CertifiedKey, SingleCertAndKey},
};

use crate::error::Error;

/// How a client encrypts: TLS 1.2 and 1.3.
#[derive(Clone)]
pub struct ClientTls {
    provider: Arc<CryptoProvider>,
    verifier: Arc<Verifier>,
    identity: Option<Arc<CertifiedKey>>,
}

impl ClientTls {
    /// Trusts servers whose certificates the system's roots have signed; `SSL_CERT_FILE` and `SSL_CERT_DIR` name other
    /// roots.
    ///
    /// # Errors
    /// If no root is found.
    pub fn of_system() -> Result<Self, Error> {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let why = found.errors.first();
            let why = why.map_or_else(String::new, |error| format!(": {error}"));
            return Err(Error::invalid(format!(
                "the system has no root certificates{why}"
            )));
        }
        let mut anchors = RootCertStore::empty();
        // One unusable root among hundreds is not worth a warning.
        anchors.add_parsable_certificates(found.certs);
        let roots = Roots {
            certificates: Vec::new(),
            anchors: Arc::new(anchors),
        };
        Self::trusting(roots).map_err(|reason| Error::invalid(reason.to_string()))
    }

    /// Trusts servers whose certificates the roots in a PEM file have signed, or whose own certificates are in that
    /// file.
    ///
    /// # Errors
    /// If the file cannot be used; the text names it.
    pub fn of_roots(path: &Path) -> Result<Self, Error> {
        let roots = skep_tls::roots(path).map_err(unusable)?;
        Self::trusting(roots).map_err(|error| unusable(TlsError::of_roots(path, error)))
    }

    /// Accepts any certificate: the connection is encrypted, but the server may be an impostor.
    #[must_use]
    pub fn of_anybody() -> Self {
        Self::verifying(Arc::new(ring::default_provider()), Trust::Anybody)
    }

    /// Presents a certificate to servers that ask for one. Both files are PEM; the key is not encrypted.
    ///
    /// # Errors
    /// If a file cannot be used, or the key does not fit the certificate; the text names the file.
    pub fn with_identity(mut self, certificate: &Path, key: &Path) -> Result<Self, Error> {
        let identity = skep_tls::identity(certificate, key, &self.provider).map_err(unusable)?;
        self.identity = Some(Arc::new(identity.key));
        Ok(self)
    }

    fn trusting(roots: Roots) -> Result<Self, VerifierBuilderError> {
        let provider = Arc::new(ring::default_provider());
        let usual =
            WebPkiServerVerifier::builder_with_provider(roots.anchors, Arc::clone(&provider))
                .build()?;
        let trusted = roots.certificates;
        Ok(Self::verifying(provider, Trust::Roots { usual, trusted }))
    }

    fn verifying(provider: Arc<CryptoProvider>, trust: Trust) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self {
            provider,
            verifier: Arc::new(Verifier { trust, algorithms }),
            identity: None,
        }
    }

    /// The configuration of connections that speak `protocol` inside TLS.
    pub(crate) fn config(&self, protocol: &[u8]) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.verifier) as _);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let identity = SingleCertAndKey::from(Arc::clone(identity));
                builder.with_client_cert_resolver(Arc::new(identity))
            }
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn unusable(error: TlsError) -> Error {
    Error::invalid(error.to_string())
}

/// Which certificates are accepted.
#[derive(Debug)]
enum Trust {
    /// Certificates that pass the usual verification, and those that are among the roots themselves, as `openssl req
    /// -x509` makes them. These are CA certificates, so the usual verification refuses them for a server.
    Roots {
        usual: Arc<WebPkiServerVerifier>,
        trusted: Vec<CertificateDer<'static>>,
    },
    /// All.
    Anybody,
}

/// Verifies a server's certificate. It always verifies that the server has the key, even if any certificate is
/// accepted.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Roots { usual, trusted } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified = usual.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match verified {
            Err(error) if is_authority(&error) && trusted.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Why a handshake failed, in plain words for the common reasons.
pub(crate) fn handshake_reason(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|error| error.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => "the server does not speak TLS".to_owned(),
        Some(rustls::Error::InvalidCertificate(reason)) => certificate_reason(reason),
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("the server refuses the handshake: {alert:?}")
        }
        Some(other) => other.to_string(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the server ended the connection in the handshake".to_owned()
        }
        None => error.to_string(),
    }
}

fn certificate_reason(reason: &CertificateError) -> String {
    let text = match reason {
        CertificateError::UnknownIssuer => "is not signed by a trusted authority".to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired".to_owned()
        }
        other => format!("is refused: {other}"),
    };
    format!("the server's certificate {text}")
}
