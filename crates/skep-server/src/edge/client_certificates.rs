//! Certificates of clients: signed by one of the roots, or themselves one of them.
//!
//! The second kind is what `openssl req -x509` makes, and with it most test clusters: one certificate, signed by itself,
//! that is the client's and also the root that the server is given. It says that it is an authority's, so the usual
//! verification refuses it as a client's; OpenSSL, and with it Triton, takes it. Here it is taken where it is one of the
//! roots byte by byte: whoever gave the server that root trusts the holder of its key with more than this.
//!
//! Those of X.509 version 1 have a verification of their own: see `version_1`.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::version_1;

/// How long refusals are not logged again: clients that are set up wrongly try on.
const QUIET: Duration = Duration::from_secs(60);

/// Verifies the certificates of clients.
#[derive(Debug)]
pub(super) struct ClientCertificates {
    usual: Arc<dyn ClientCertVerifier>,
    roots: Vec<CertificateDer<'static>>,
    /// The same, as certificates are verified against them.
    anchors: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    /// When a refusal was logged last.
    logged: Mutex<Option<Instant>>,
    /// Refusals since then.
    unlogged: AtomicU64,
}

impl ClientCertificates {
    /// `usual` and `anchors` know the same roots.
    pub(super) fn new(
        usual: Arc<dyn ClientCertVerifier>,
        roots: Vec<CertificateDer<'static>>,
        anchors: Arc<RootCertStore>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self {
            usual,
            roots,
            anchors,
            algorithms,
            logged: Mutex::default(),
            unlogged: AtomicU64::new(0),
        }
    }

    fn log(&self, error: &Error, is_version_1: bool) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_some_and(|last| last.elapsed() < QUIET) {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
            return;
        }
        *logged = Some(Instant::now());
        let unlogged = self.unlogged.swap(0, Ordering::Relaxed);
        drop(logged);
        let hint = if is_version_1 {
            ": it is of X.509 version 1, as `openssl x509 -req` makes them; one of the roots itself has to sign it, and constrain no names\n  or give it an extension, as with `-extfile <(echo basicConstraints=CA:FALSE)`"
        } else if is_authority(error) {
            ": it says that it is an authority's, and is none of the roots itself\n  give clients certificates with `basicConstraints` `CA:FALSE`, or add this one to the roots"
        } else {
            ""
        };
        let more = if unlogged > 0 {
            format!(" (and {unlogged} more since the last of these lines)")
        } else {
            String::new()
        };
        tracing::warn!("a client's certificate is refused: {error}{hint}{more}");
    }
}

/// Whether a certificate is refused as a client's for nothing but being an authority's. Its time is checked before that.
fn is_authority(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::Other(error)) => {
            error.0.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
        }
        _ => false,
    }
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
            Err(error) if is_authority(&error) && self.roots.contains(end_entity) => {
                Ok(ClientCertVerified::assertion())
            }
            Err(error) if version_1::is_reason(&error) => {
                let verified = version_1::verify(end_entity, &self.anchors, self.algorithms, now);
                verified
                    .inspect_err(|error| self.log(error, true))
                    .map(|()| ClientCertVerified::assertion())
            }
            Err(error) => {
                self.log(&error, false);
                Err(error)
            }
            Ok(verified) => Ok(verified),
        }
    }

    /// That the client has the certificate's key, whichever kind of certificate it is.
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
            Err(error) if version_1::is_reason(&error) => {
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
            Err(error) if version_1::is_reason(&error) => {
                version_1::verify_tls13_signature(message, certificate, signature, self.algorithms)
            }
            usual => usual,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
