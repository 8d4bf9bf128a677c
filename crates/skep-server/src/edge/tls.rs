//! The certificate and key of a port, read again whenever their files change.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use skep_tls::TlsError;
use tokio::{task::spawn_blocking, time::MissedTickBehavior};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::{CryptoProvider, ring},
        server::WebPkiClientVerifier,
        sign::SingleCertAndKey,
    },
};

use super::{
    client_certificates::ClientCertificates,
    watched::{FileStamp, WatchedFiles},
};

/// How often files are checked: new certificates are installed hours before the old ones expire.
const LOOK: Duration = Duration::from_secs(2);

/// Why a file is not read again.
const PIPE: &str = "is not a regular file, and the server reads a pipe only once, at its start";

/// The files of an encrypted port, all PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, and intermediate ones.
    pub certificate: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
    /// The roots of client certificates; `None` does not ask clients for certificates.
    pub client_roots: Option<PathBuf>,
}

impl TlsFiles {
    fn all(&self) -> impl Iterator<Item = &Path> {
        let always = [&self.certificate, &self.key];
        (always.into_iter().chain(&self.client_roots)).map(PathBuf::as_path)
    }

    /// The present stamp of each file.
    fn stamps(&self) -> Vec<Option<FileStamp>> {
        self.all().map(FileStamp::of).collect()
    }

    /// A file that is not a regular one: reading it again could block forever.
    fn pipe(&self) -> Option<&Path> {
        self.all()
            .find(|path| fs::metadata(path).is_ok_and(|found| !found.is_file()))
    }

    /// Their names, for the log.
    fn names(&self) -> String {
        let names: Vec<String> = self
            .all()
            .map(|path| format!("`{}`", path.display()))
            .collect();
        names.join(", ")
    }
}

/// The encryption of a port: TLS 1.2 and 1.3, over `ring`. Its files are read again when they change.
#[derive(Clone)]
pub struct ServerTls(Arc<WatchedTls>);

struct WatchedTls {
    /// The port's name in the log.
    name: &'static str,
    files: TlsFiles,
    protocols: &'static [&'static [u8]],
    /// The configuration of new connections.
    config: ArcSwap<ServerConfig>,
    watched: Mutex<WatchedFiles>,
}

impl ServerTls {
    /// Reads the files of a port that serves HTTP/1.1 and HTTP/2.
    ///
    /// # Errors
    /// [`TlsError`] names the file that cannot be used.
    pub fn http(files: &TlsFiles) -> Result<Self, TlsError> {
        Self::new("HTTP", files, &[b"h2", b"http/1.1"])
    }

    /// Reads the files of a port that serves gRPC.
    ///
    /// # Errors
    /// [`TlsError`] names the file that cannot be used.
    pub fn grpc(files: &TlsFiles) -> Result<Self, TlsError> {
        Self::new("gRPC", files, &[b"h2"])
    }

    fn new(
        name: &'static str,
        files: &TlsFiles,
        protocols: &'static [&'static [u8]],
    ) -> Result<Self, TlsError> {
        // Stamped before they are read: a change in between shows at the next look.
        let stamps = files.stamps();
        Ok(Self(Arc::new(WatchedTls {
            name,
            files: files.clone(),
            protocols,
            config: ArcSwap::from_pointee(config(files, protocols)?),
            watched: Mutex::new(WatchedFiles::new(stamps)),
        })))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.config.load_full())
    }

    /// Reads the files again, for new connections; open ones go on. If the files cannot be used, the previous
    /// certificate stays and the files are tried again later. The log says which happened.
    pub fn reload(&self) {
        let mut watched = self.0.lock();
        let stamps = self.0.files.stamps();
        self.0.read_again(&mut watched, stamps, true);
    }

    /// Checks the files forever, and reads them again when they have changed.
    pub(crate) async fn keep_watching(self) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let port = Arc::clone(&self.0);
            // A file system may be slow; the reactor must not wait for it.
            if spawn_blocking(move || port.look()).await.is_err() {
                tracing::error!("reading certificates again panicked, the server will try again");
            }
        }
    }
}

impl WatchedTls {
    fn lock(&self) -> MutexGuard<'_, WatchedFiles> {
        // Each change is an assignment of a whole value.
        skep_host::lock(&self.watched)
    }

    /// Reads the files again if they have changed, but not since the last look.
    fn look(&self) {
        let mut watched = self.lock();
        // Looked at before they are read: a change in between is seen later.
        let stamps = self.files.stamps();
        if watched.look(&stamps, Instant::now()) {
            self.read_again(&mut watched, stamps, false);
        }
    }

    /// Reads the files again. If an operator asked (`is_asked`), the log says each time what happened.
    fn read_again(
        &self,
        watched: &mut WatchedFiles,
        stamps: Vec<Option<FileStamp>>,
        is_asked: bool,
    ) {
        let (name, files) = (self.name, self.files.names());
        if let Some(path) = self.files.pipe() {
            let news = watched.failed(stamps, PIPE.to_owned(), Instant::now());
            if news || is_asked {
                tracing::warn!(
                    "{name} connections keep the certificate that was read before: `{}` {PIPE}",
                    path.display()
                );
            }
            return;
        }
        match config(&self.files, self.protocols) {
            Ok(config) => {
                self.config.store(Arc::new(config));
                watched.settled(stamps);
                tracing::info!("new {name} connections use the certificate that is now in {files}");
            }
            Err(error) => {
                let is_news = watched.failed(stamps, error.to_string(), Instant::now());
                if is_news || is_asked {
                    tracing::warn!(
                        "{name} connections keep the certificate that was read before: {error}\n  the server tries again every minute, when the files change, and at SIGHUP"
                    );
                }
            }
        }
    }
}

fn days(seconds: i64) -> String {
    match seconds / 86_400 {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

/// What is wrong with a certificate that is valid from `begins` to `ends`; times are seconds since 1970.
fn not_valid((begins, ends): (i64, i64), now: i64) -> Option<String> {
    if now > ends {
        return Some(format!("expired {} ago", days(now - ends)));
    }
    (now < begins).then(|| format!("is not valid yet, for {}", days(begins - now)))
}

/// What a port's connections are configured with.
fn config(files: &TlsFiles, protocols: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let identity = skep_tls::identity(&files.certificate, &files.key, &provider)?;
    if identity.is_version_1 {
        tracing::warn!(
            "`{}` is a certificate of X.509 version 1, which names no hosts: many clients refuse it\n  `openssl x509 -req` makes one of version 3 with `-extfile`, as with `-extfile <(echo subjectAltName=DNS:HOST)`",
            files.certificate.display()
        );
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = i64::try_from(now.unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
    if let Some(what) = identity.validity.and_then(|times| not_valid(times, now)) {
        tracing::warn!(
            "`{}`: the server's certificate {what}: clients that verify it refuse it\n  put a new one in its place: the server reads the \
             files again when they change",
            files.certificate.display()
        );
    }
    let algorithms = provider.signature_verification_algorithms;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions");
    let builder = match &files.client_roots {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = skep_tls::roots(path)?;
            let anchors = Arc::clone(&roots.anchors);
            let verifier = WebPkiClientVerifier::builder_with_provider(anchors, provider)
                .build()
                .map_err(|error| TlsError::of_roots(path, error))?;
            builder.with_client_cert_verifier(Arc::new(ClientCertificates::new(
                verifier, roots, algorithms,
            )))
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key)));
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_or_early_certificate_is_reported_with_the_time() {
        const DAY: i64 = 86_400;
        let times = (10 * DAY, 20 * DAY);
        for (now, expected) in [
            (8 * DAY, Some("is not valid yet, for 2 days")),
            (10 * DAY, None),
            (20 * DAY, None),
            (20 * DAY + 1, Some("expired less than a day ago")),
            (21 * DAY, Some("expired 1 day ago")),
        ] {
            assert_eq!(not_valid(times, now).as_deref(), expected, "{now}");
        }
    }
}
