//! What SIGHUP makes a server do: open its log files again, and read its certificates and its secrets again.

use std::{sync::Arc, thread};

use skep_server::{ServerOptions, ServerTls};

use super::access_log::AccessLogFile;
use super::restrict::RestrictionFile;
use crate::logging::Logs;

/// What can be read again while the server runs.
#[derive(Debug, Clone)]
pub(super) struct Reload {
    logs: Arc<Logs>,
    access: Option<Arc<AccessLogFile>>,
    certificates: Vec<ServerTls>,
    restrictions: Option<RestrictionFile>,
}

impl Reload {
    /// Of a server with these options.
    pub(super) fn new(
        logs: Arc<Logs>,
        access: Option<Arc<AccessLogFile>>,
        options: &ServerOptions,
        restrictions: Option<RestrictionFile>,
    ) -> Self {
        let endpoints = [&options.http, &options.grpc].into_iter().flatten();
        Self {
            logs,
            access,
            restrictions,
            certificates: endpoints.filter_map(|port| port.tls.clone()).collect(),
        }
    }

    /// Begins to read; on a thread of its own, since files may be slow and signals are not to wait for them.
    pub(super) fn begin(&self, signal: &'static str) {
        let reload = self.clone();
        let started = thread::Builder::new()
            .name("reload".to_owned())
            .spawn(move || reload.run(signal));
        if let Err(error) = started {
            tracing::error!(
                "received {signal}, but cannot start a thread to read files again: {error}"
            );
        }
    }

    /// Whether there is nothing to read again but the log.
    fn has_no_file(&self) -> bool {
        self.access.is_none() && self.certificates.is_empty() && self.restrictions.is_none()
    }

    fn run(&self, signal: &str) {
        if let Some(access) = &self.access {
            access.reopen();
        }
        let reopened = self.logs.reopen();
        match &reopened {
            Ok(false) if self.has_no_file() => {
                tracing::info!(
                    "received {signal}: no file to read again; the repository's calls or mode `poll` load models again"
                )
            }
            Ok(false) => tracing::info!("received {signal}: reading files again"),
            Ok(true) => tracing::info!("received {signal}: opened this log file again"),
            Err(error) => {
                tracing::error!("received {signal}, still logging to the old file: {error:#}")
            }
        }
        for certificate in &self.certificates {
            certificate.reload();
        }
        if let Some(restrictions) = &self.restrictions {
            restrictions.read_again();
        }
    }
}
