//! Certificates and keys into what a handshake needs.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject},
        },
        server::{VerifierBuilderError, WebPkiClientVerifier},
    },
};

use super::client_certificates::ClientCertificates;

/// The files of an encrypted port, all PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and the root.
    pub certificate: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
    /// Who signs the certificates of clients; `None` asks clients for none.
    pub client_roots: Option<PathBuf>,
}

/// Which of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFile {
    /// The server's certificate.
    Certificate,
    /// Its key.
    Key,
    /// The roots of clients' certificates.
    ClientRoots,
}

/// A file that encryption cannot be set up with.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}", path.display())]
pub struct TlsError {
    file: TlsFile,
    path: PathBuf,
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("{0}")]
    Read(io::Error),
    #[error("holds no {0} in PEM form")]
    Nothing(&'static str),
    #[error("is no PEM file: {0}")]
    Pem(pem::Error),
    #[error("{0}")]
    Refused(rustls::Error),
    #[error("{0}")]
    Roots(VerifierBuilderError),
}

impl TlsError {
    /// Which of the files it is about.
    #[must_use]
    pub const fn file(&self) -> TlsFile {
        self.file
    }
}

/// What a port needs to encrypt: TLS 1.2 and 1.3, over `ring`.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files of a port that serves HTTP/1.1 and HTTP/2.
    ///
    /// # Errors
    /// [`TlsError`] names the file that cannot be used.
    pub fn http(files: &TlsFiles) -> Result<Self, TlsError> {
        Self::new(files, &[b"h2", b"http/1.1"])
    }

    /// Reads the files of a port that serves gRPC.
    ///
    /// # Errors
    /// [`TlsError`] names the file that cannot be used.
    pub fn grpc(files: &TlsFiles) -> Result<Self, TlsError> {
        Self::new(files, &[b"h2"])
    }

    fn new(files: &TlsFiles, protocols: &[&[u8]]) -> Result<Self, TlsError> {
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let certificates = certificates(&files.certificate, TlsFile::Certificate)?;
        let of_key = |reason| error(TlsFile::Key, &files.key, reason);
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|e| of_key(reason(e, "private key")))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions");
        let builder = match &files.client_roots {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let of_roots = |reason| error(TlsFile::ClientRoots, path, reason);
                let mut roots = RootCertStore::empty();
                let trusted = self::certificates(path, TlsFile::ClientRoots)?;
                for certificate in &trusted {
                    roots
                        .add(certificate.clone())
                        .map_err(|e| of_roots(Reason::Refused(e)))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|e| of_roots(Reason::Roots(e)))?;
                let verifier = ClientCertificates::new(verifier, trusted);
                builder.with_client_cert_verifier(Arc::new(verifier))
            }
        };
        let mut config = builder
            .with_single_cert(certificates, key)
            .map_err(|e| of_key(Reason::Refused(e)))?;
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Self {
            config: Arc::new(config),
        })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn certificates(path: &Path, file: TlsFile) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certificates = read().map_err(|e| error(file, path, reason(e, "certificate")))?;
    if certificates.is_empty() {
        return Err(error(file, path, Reason::Nothing("certificate")));
    }
    Ok(certificates)
}

fn error(file: TlsFile, path: &Path, reason: Reason) -> TlsError {
    TlsError {
        file,
        path: path.to_owned(),
        reason,
    }
}

fn reason(error: pem::Error, what: &'static str) -> Reason {
    match error {
        pem::Error::Io(error) => Reason::Read(error),
        pem::Error::NoItemsFound => Reason::Nothing(what),
        other => Reason::Pem(other),
    }
}
