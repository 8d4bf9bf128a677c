//! Verification of client certificates: signed by one of the roots, or one of the roots themselves.
//!
//! The second kind is what `openssl req -x509` makes, and with it most test clusters: one certificate, signed by
//! itself, that is the client's and also the root that the server is given. It is a CA certificate, so the usual
//! verification refuses it as a client's; OpenSSL, and with it Triton, takes it. It is accepted here if it equals one
//! of the roots byte for byte: the operator who configured that root already trusts the holder of its key with more
//! than this.
//!
//! `version_1` verifies certificates of X.509 version 1.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use skep_tls::{Roots, certificate::Certificate, is_authority, is_of_other_version};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::version_1;

/// The interval between log lines about refusals: a misconfigured client keeps retrying.
const QUIET: Duration = Duration::from_secs(60);

/// Verifies the certificates of clients.
#[derive(Debug)]
pub(super) struct ClientCertificates {
    usual: Arc<dyn ClientCertVerifier>,
    roots: Roots,
    algorithms: WebPkiSupportedAlgorithms,
    /// When a refusal was logged last.
    logged: Mutex<Option<Instant>>,
    /// Refusals since then.
    unlogged: AtomicU64,
}

impl ClientCertificates {
    /// `usual` must know the same roots.
    pub(super) fn new(
        usual: Arc<dyn ClientCertVerifier>,
        roots: Roots,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self {
            usual,
            roots,
            algorithms,
            logged: Mutex::default(),
            unlogged: AtomicU64::new(0),
        }
    }

    fn log(&self, error: &Error, hint: &str) {
        let mut logged = skep_host::lock(&self.logged);
        if logged.is_some_and(|last| last.elapsed() < QUIET) {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
            return;
        }
        *logged = Some(Instant::now());
        let unlogged = self.unlogged.swap(0, Ordering::Relaxed);
        drop(logged);
        let more = if unlogged > 0 {
            format!(" (and {unlogged} more since the last of these lines)")
        } else {
            String::new()
        };
        let reason = in_words(error);
        tracing::warn!("a client's certificate is refused: {reason}{hint}{more}");
    }
}

/// Hint: the client's certificate has version 1, and no root accepts it.
const VERSION_1: &str = ": it is of X.509 version 1, as `openssl x509 -req` makes them; one of the roots itself has to sign it, and constrain no names\n  or give it an extension, as with `-extfile <(echo basicConstraints=CA:FALSE)`";

/// Hint: an intermediate certificate has version 1, the client's own does not.
const VERSION_1_BETWEEN: &str = ": a certificate between it and the root is of version 1\n  only certificates with `basicConstraints` `CA:TRUE` sign others: make that one again, as with `-extfile <(echo basicConstraints=CA:TRUE)`";

/// Hint: the client presents a CA certificate as its own.
const AUTHORITY: &str = ": it is a CA certificate, and not one of the roots\n  give clients certificates with `basicConstraints` `CA:FALSE`, or add this one to the roots";

/// Whether the error is only about the algorithm or the key of a signature.
const fn is_unsupported(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
        )
    )
}

/// The library's text would show the raw bytes of identifiers.
fn in_words(error: &Error) -> String {
    if is_unsupported(error) {
        return "its issuer signed it with an unsupported algorithm or key, such as SHA-1 or RSA of fewer than 2048 bits".to_owned();
    }
    error.to_string()
}

fn is_version_1(der: &CertificateDer<'_>) -> bool {
    Certificate::parse(der).is_some_and(|certificate| certificate.is_version_1)
}

impl ClientCertVerifier for ClientCertificates {
    fn offer_client_auth(&self) -> bool {
        self.usual.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.usual.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.usual.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .usual
            .verify_client_cert(end_entity, intermediates, now);
        match verified {
            Err(error) if is_authority(&error) && self.roots.certificates.contains(end_entity) => {
                Ok(ClientCertVerified::assertion())
            }
            Err(error) if is_of_other_version(&error) && is_version_1(end_entity) => {
                let verified =
                    version_1::verify(end_entity, &self.roots.anchors, self.algorithms, now);
                verified
                    .inspect_err(|error| {
                        self.log(error, if is_unsupported(error) { "" } else { VERSION_1 })
                    })
                    .map(|()| ClientCertVerified::assertion())
            }
            Err(error) => {
                let hint = if is_authority(&error) {
                    AUTHORITY
                } else if is_of_other_version(&error) && intermediates.iter().any(is_version_1) {
                    VERSION_1_BETWEEN
                } else {
                    ""
                };
                self.log(&error, hint);
                Err(error)
            }
            Ok(verified) => Ok(verified),
        }
    }

    /// Verifies that the client has the certificate's key, for either kind of certificate.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let usual = self
            .usual
            .verify_tls12_signature(message, certificate, signature);
        match usual {
            Err(error) if is_of_other_version(&error) => {
                version_1::verify_tls12_signature(message, certificate, signature, self.algorithms)
            }
            usual => usual,
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let usual = self
            .usual
            .verify_tls13_signature(message, certificate, signature);
        match usual {
            Err(error) if is_of_other_version(&error) => {
                version_1::verify_tls13_signature(message, certificate, signature, self.algorithms)
            }
            usual => usual,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
