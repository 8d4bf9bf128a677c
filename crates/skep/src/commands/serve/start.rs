//! A server's start: the models that it loads, and what the log says of ports, models and readiness.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    thread,
};

use skep_runtime::{Runtime, StartReport, VersionState};
use skep_server::Addresses;
use skep_types::ModelName;
use tokio::sync::oneshot;

/// Which models are loaded at the start.
pub(super) enum StartModels {
    All,
    Named(Vec<ModelName>),
}

impl StartModels {
    /// Loads them on a thread of its own, which waits for loads that a stop does not wait for.
    pub(super) fn load(self, runtime: &Arc<Runtime>) -> io::Result<oneshot::Receiver<StartReport>> {
        let (outcome, loaded) = oneshot::channel();
        let runtime = Arc::clone(runtime);
        let load = move || {
            let report = match &self {
                Self::All => runtime.start(None),
                Self::Named(names) => runtime.start(Some(names)),
            };
            drop(outcome.send(report));
        };
        thread::Builder::new()
            .name("start".to_owned())
            .spawn(load)?;
        Ok(loaded)
    }
}

/// The start lines: one a port, with the port that was really opened.
pub(super) fn announce(addresses: Addresses, is_encrypted: bool) {
    let line = |what: &str, address: Option<SocketAddr>| {
        if let Some(address) = address {
            tracing::info!("Started {what} at {address}");
        }
    };
    line("GRPCInferenceService", addresses.grpc);
    line("HTTPService", addresses.http);
    line("Metrics Service", addresses.metrics);
    if let Some(address) = addresses.http {
        let scheme = if is_encrypted { "https" } else { "http" };
        let ip = address.ip();
        let host =
            match ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST {
                true => format!("localhost:{}", address.port()),
                false => address.to_string(),
            };
        tracing::info!("page at {scheme}://{host}/");
    }
}

/// Logs which versions take requests. What failed was logged, with its reason, when it did.
pub(super) fn list_ready(runtime: &Runtime) {
    let mut on_request = 0_usize;
    for row in runtime.index(true) {
        if runtime.versions(row.name.as_str()).is_empty() {
            on_request += 1;
            continue;
        }
        let version = row
            .version
            .map_or_else(String::new, |version| format!(" version {version}"));
        let state = VersionState::Ready.name();
        tracing::info!("model `{}`{version}: {state}", row.name);
    }
    if on_request > 0 {
        tracing::info!("{on_request} model versions are known: requests load them");
    }
}

/// What failed at the start.
pub(super) struct Failures(String);

impl Failures {
    /// How many names are said.
    const SHOWN: usize = 20;

    pub(super) fn of(report: &StartReport) -> Option<Self> {
        let failed = report.iter().filter(|(_, outcome)| outcome.is_err());
        let names: Vec<String> = failed.map(|(name, _)| format!("`{name}`")).collect();
        let more = match names.len().saturating_sub(Self::SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let shown = names.iter().take(Self::SHOWN).cloned().collect::<Vec<_>>();
        let count = format!("{} of {} models failed to load", names.len(), report.len());
        (!names.is_empty()).then(|| Self(format!("{count}: {}{more}", shown.join(", "))))
    }
}

/// The line that ends the start: whether the server is ready, and what is missing.
pub(super) fn say_started(runtime: &Runtime, failures: Option<&Failures>, exit_on_error: bool) {
    match failures {
        None => tracing::info!("started, ready for requests"),
        Some(Failures(failures)) if exit_on_error => {
            tracing::error!("stopping: {failures}; `--exit-on-error=false` serves the others")
        }
        Some(Failures(failures)) if runtime.is_ready() => {
            tracing::warn!("started, ready for requests, although {failures}");
        }
        Some(Failures(failures)) => tracing::warn!(
            "started, but not ready: {failures}; the others are served, and `/v2/health/ready` answers 400 until every model is \
             loaded; with `--strict-readiness=false` the server is ready without them"
        ),
    }
}
