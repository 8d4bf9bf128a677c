//! `skep serve`: a model repository, served. Flags are Triton's; Skep's own are marked as such in their help.

mod access_log;
mod arguments;
mod bare_model;
mod devices;
mod forms;
mod limits;
mod metrics;
mod ports;
mod profiles;
mod rate_limit;
mod reload;
mod residency;
mod response_cache;
mod restrict;
mod start;
mod stop;
mod traces;
mod triton;
mod without_effect;

use std::{
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use skep_config::BackendSetting;
use skep_runtime::Runtime;
use skep_server::{Server, ServerOptions};
use skep_tracing::Tracer;
use tokio::sync::oneshot;

use crate::{
    backends,
    logging::{self, LogOptions},
    pressure, signals,
};
use bare_model::GivenRepositories;
use reload::Reload;
use start::{Failures, StartModels};

pub(crate) use arguments::{ServeArgs, config_name};

/// How long the end of a server waits for the last traces at most: a collector that does not answer delays it so long.
const MOST_TRACE_TIME: Duration = Duration::from_secs(5);

/// The same where the stop has used up its time already; the watch keeps more than this back.
const LEAST_TRACE_TIME: Duration = Duration::from_millis(100);

pub(crate) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    signals::survive().context("cannot handle signals")?;
    skep_heap::bound_kept_memory();
    skep_heap::give_back_in_background().context("cannot start the thread that returns memory")?;
    let logs = logging::start(LogOptions {
        verbose: args.logs.log_verbose,
        info: args.logs.log_info,
        warning: args.logs.log_warning,
        error: args.logs.log_error,
        file: args.logs.log_file.clone(),
        format: args.logs.log_format,
    })?;
    args.without_effect.check()?;
    for flag in args.without_effect.given() {
        tracing::warn!("accepted without effect: {flag}");
    }
    for setting in &args.backend_config {
        if let BackendSetting::NoEffect(notice) = setting {
            tracing::warn!("accepted without effect: {notice}");
        }
    }
    let metrics = args.metrics.settings(args.ports.allow_metrics())?;
    let restricted = args.restrict.read()?;
    let access = args.access_log.start()?;
    let traces = Tracer::start(args.traces.options()?).context("cannot trace requests")?;
    let server_options = args.server_options(
        metrics.shown,
        Arc::clone(&logs) as _,
        Arc::clone(&traces),
        access.clone(),
        &restricted,
    )?;
    restricted.warn_of_open_doors(server_options.http.is_some(), server_options.grpc.is_some());
    let reload = Reload::new(logs, access.clone(), &server_options, restricted.file());
    let start_models = args.start_models()?;
    let request_memory = Arc::clone(&server_options.limits.request_memory);
    let GivenRepositories { roots, links } = args.repositories()?;
    let runtime_options = args.runtime_options(roots, metrics.recorded, request_memory)?;
    args.allocators.open()?;
    let library = args.onnxruntime_library.clone();
    let backends = backends::all(library, args.allow_backend_fallback)?;
    let weights = runtime_options.load.weights.as_ref();
    let _pressure = pressure::watch_server(weights.map(|weights| weights.store.clone()));
    let runtime = Runtime::new(runtime_options, backends);
    let cores = thread::available_parallelism()?.get();
    let reactor = tokio::runtime::Builder::new_multi_thread()
        // Half of the cores: models compute on all of them, and each further reactor thread takes turns with one. On
        // two cores under MobileNetV2 one thread instead of two saved 3 % of the server's CPU time.
        .worker_threads((cores / 2).max(1))
        .enable_all()
        .thread_name("reactor")
        .build()?;
    let serving = serve(runtime, server_options, start_models, &args, reload);
    let outcome = reactor.block_on(serving);
    // Before the process may be ended without its destructors.
    drop(links);
    let stop_began = outcome.as_ref().ok().map(|ended| ended.stop_began);
    finish_traces(&traces, stop_began, args.exit_timeout());
    if let Some(access) = &access {
        access.flush();
    }
    let ended = match outcome {
        Ok(ended) => ended,
        Err(error) => {
            reactor.shutdown_background();
            return Err(error);
        }
    };
    if ended.something_runs {
        // Exit handlers would take libraries' globals away under what runs in them.
        skep_host::end_process(u8::from(!ended.is_clean));
    }
    reactor.shutdown_background();
    Ok(if ended.is_clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Writes the last traces, within what is left of the exit timeout.
fn finish_traces(traces: &Tracer, stop_began: Option<Instant>, exit_timeout: Duration) {
    let passed = stop_began.map_or(Duration::ZERO, |began| began.elapsed());
    let left = stop::servers_share(exit_timeout).saturating_sub(passed);
    if !traces.finish(left.clamp(LEAST_TRACE_TIME, MOST_TRACE_TIME)) {
        tracing::warn!("the last traces of requests could not be written in time");
    }
}

/// How a server ended.
struct ServeEnd {
    /// When the stop began.
    stop_began: Instant,
    /// Whether all that was asked for was done, within the time.
    is_clean: bool,
    /// Whether a model still runs, or an abandoned load.
    something_runs: bool,
}

/// Opens the ports, loads the models while liveness is already answered, serves until a signal, stops.
async fn serve(
    runtime: Arc<Runtime>,
    options: ServerOptions,
    models: StartModels,
    args: &ServeArgs,
    reload: Reload,
) -> anyhow::Result<ServeEnd> {
    // Before anybody can see that the process is there, and end it by a signal that nothing handles.
    let (watch, mut signal) = stop::watch(&runtime, args.exit_timeout(), reload)?;
    runtime.announce_start();
    let server = Server::bind(&options, Arc::clone(&runtime))?;
    let addresses = server.addresses();
    let is_encrypted = options.http.as_ref().is_some_and(|port| port.tls.is_some());
    start::announce(addresses, is_encrypted);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(async move {
        // The sender's end is a stop as well.
        drop(stopped.await);
    }));
    args.say_layout(&runtime);
    let mut loaded = models.load(&runtime)?;
    let report = tokio::select! {
        report = &mut loaded => Some(report.context("the thread that loads models ended")?),
        name = &mut signal => {
            tracing::info!("received {} while loading models", name?);
            None
        }
    };
    let mut failed = false;
    let mut waiting = report.is_some();
    if let Some(report) = report {
        start::list_ready(&runtime);
        let failures = Failures::of(&report);
        failed = failures.is_some() && args.exit_on_error;
        start::say_started(&runtime, failures.as_ref(), args.exit_on_error);
        waiting = !failed;
    }
    if waiting {
        let name = signal.await?;
        tracing::info!("received {name}, stopping");
    }
    watch.stop_begins();
    let stop_began = Instant::now();
    drop(stop);
    let outcome = serving.await?;
    if !outcome.connections_closed {
        tracing::error!(
            "stopped with connections still open after {} s",
            args.exit_timeout_secs
        );
    }
    if outcome.models_left > 0 {
        tracing::error!(
            "stopped with {} model versions still running",
            outcome.models_left
        );
    }
    let (_, calls) = runtime.left_at_stop();
    if calls > 0 {
        tracing::warn!("abandoned {calls} running loads or unloads");
    }
    tracing::info!("stopped");
    Ok(ServeEnd {
        stop_began,
        is_clean: !failed && outcome.connections_closed && outcome.models_left == 0,
        something_runs: outcome.models_left > 0 || calls > 0,
    })
}
