//! Certificates and keys in PEM files, as server and client both read them; errors name the file.
//!
//! [`identity`] reads the certificate and key that one side presents, [`roots`] the certificates that it trusts.
//! [`certificate`] reads the few fields of a certificate that webpki does not expose, of X.509 version 1 too.

pub mod certificate;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, RootCertStore,
    client::VerifierBuilderError,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};

use crate::certificate::Certificate;

/// The roots of all public authorities take a quarter of a mebibyte.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The role of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFile {
    /// The own certificate.
    Certificate,
    /// Its key.
    Key,
    /// The roots of the other side's certificates.
    Roots,
}

/// A file that cannot be used for encryption.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}", path.display())]
pub struct TlsError {
    file: TlsFile,
    path: PathBuf,
    reason: TlsErrorReason,
}

#[derive(Debug, thiserror::Error)]
enum TlsErrorReason {
    #[error("{0}")]
    Read(io::Error),
    #[error("holds no {0} in PEM form")]
    Nothing(&'static str),
    #[error("is not a PEM file: {0}")]
    Pem(pem::Error),
    #[error("{0}")]
    Refused(rustls::Error),
    #[error("{0}")]
    Roots(VerifierBuilderError),
    #[error("its first entry is not an X.509 certificate")]
    NotX509,
    #[error("is not the key of the certificate in `{}`: their public keys differ", .0.display())]
    Mismatch(PathBuf),
}

impl TlsError {
    /// The role of the file.
    #[must_use]
    pub const fn file(&self) -> TlsFile {
        self.file
    }

    /// An error about roots that no verifier accepts.
    #[must_use]
    pub fn of_roots(path: &Path, error: VerifierBuilderError) -> Self {
        Self::new(TlsFile::Roots, path, TlsErrorReason::Roots(error))
    }

    fn new(file: TlsFile, path: &Path, reason: TlsErrorReason) -> Self {
        Self {
            file,
            path: path.to_owned(),
            reason,
        }
    }
}

/// The certificate and key that one side presents.
pub struct TlsIdentity {
    /// The certificate, intermediate ones, and the key.
    pub key: CertifiedKey,
    /// Whether the certificate is of X.509 version 1, which names no hosts.
    pub is_version_1: bool,
    /// The certificate's period of validity, in seconds since 1970; `None` if it cannot be read.
    pub validity: Option<(i64, i64)>,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Reads a certificate and its key, both PEM, the key not encrypted.
///
/// The check that they fit is done here: rustls's own refuses certificates of X.509 version 1, and blames the key.
///
/// # Errors
/// [`TlsError`] names the file that cannot be used; if the two do not fit, the key's.
pub fn identity(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<TlsIdentity, TlsError> {
    let chain = certificates(certificate, TlsFile::Certificate)?;
    let of_key = |reason| TlsError::new(TlsFile::Key, key, reason);
    let private = read(key)
        .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem))
        .map_err(|error| of_key(reason(error, "private key")))?;
    let private = (provider.key_provider.load_private_key(private))
        .map_err(|error| of_key(TlsErrorReason::Refused(error)))?;
    let Some(own) = chain.first().and_then(|own| Certificate::parse(own)) else {
        let error = TlsError::new(TlsFile::Certificate, certificate, TlsErrorReason::NotX509);
        return Err(error);
    };
    let fits = |key: SubjectPublicKeyInfoDer<'_>| key.as_ref() == own.public_key_info;
    if !private.public_key().is_none_or(fits) {
        return Err(of_key(TlsErrorReason::Mismatch(certificate.to_owned())));
    }
    Ok(TlsIdentity {
        is_version_1: own.is_version_1,
        validity: own.validity(),
        key: CertifiedKey::new(chain, private),
    })
}

/// The roots that one side trusts.
#[derive(Debug)]
pub struct Roots {
    /// The certificates in the file.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The same, as trust anchors.
    pub anchors: Arc<RootCertStore>,
}

/// Reads the roots in a PEM file.
///
/// # Errors
/// If the file cannot be read, or one of its certificates cannot be a root.
pub fn roots(path: &Path) -> Result<Roots, TlsError> {
    let certificates = certificates(path, TlsFile::Roots)?;
    let mut anchors = RootCertStore::empty();
    for certificate in &certificates {
        anchors
            .add(certificate.clone())
            .map_err(|error| TlsError::new(TlsFile::Roots, path, TlsErrorReason::Refused(error)))?;
    }
    Ok(Roots {
        certificates,
        anchors: Arc::new(anchors),
    })
}

/// Whether webpki refuses a certificate only because it is a CA certificate. It checks the period of validity before
/// that.
#[must_use]
pub fn is_authority(error: &rustls::Error) -> bool {
    is_refused_as(error, &webpki::Error::CaUsedAsEndEntity)
}

/// Whether webpki refuses a chain because one of its certificates does not have X.509 version 3.
#[must_use]
pub fn is_of_other_version(error: &rustls::Error) -> bool {
    is_refused_as(error, &webpki::Error::UnsupportedCertVersion)
}

fn is_refused_as(error: &rustls::Error, reason: &webpki::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(error)) => {
            error.0.downcast_ref() == Some(reason)
        }
        _ => false,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, pem::Error> {
    skep_host::read_named(path, MAX_FILE_BYTES).map_err(pem::Error::Io)
}

fn certificates(path: &Path, file: TlsFile) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || {
        let pem = read(path)?;
        CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>()
    };
    let found = read().map_err(|error| TlsError::new(file, path, reason(error, "certificate")))?;
    if found.is_empty() {
        return Err(TlsError::new(
            file,
            path,
            TlsErrorReason::Nothing("certificate"),
        ));
    }
    Ok(found)
}

fn reason(error: pem::Error, what: &'static str) -> TlsErrorReason {
    match error {
        pem::Error::Io(error) => TlsErrorReason::Read(error),
        pem::Error::NoItemsFound => TlsErrorReason::Nothing(what),
        other => TlsErrorReason::Pem(other),
    }
}
