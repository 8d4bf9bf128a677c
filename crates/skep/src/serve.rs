//! `skep serve`: a model repository, served. Flags are Triton's; Skep's own are marked as such in their help.

mod forms;
mod limits;
mod metrics;
mod ports;
mod reload;
mod restrict;
mod start;
mod stop;
mod triton;
mod without_effect;

use std::{
    env, io, num::NonZeroUsize, path::PathBuf, process::ExitCode, sync::Arc, thread, time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use skep_config::{BackendSetting, parse_backend_config};
use skep_runtime::{
    Control, LoadOptions, MetricsOptions, Repository, Runtime, RuntimeOptions, StartReport,
    WaitingLimit,
};
use skep_server::{AccessLog, LogControl, Server, ServerOptions};
use skep_tensor::MemoryBudget;
use skep_types::ModelName;
use tokio::sync::oneshot;

use crate::{
    access_log::{AccessLogArgs, AccessLogFile},
    backends,
    cli::boolean,
    logging::{self, LogFormat, LogOptions},
    pressure,
    sandbox::SandboxArgs,
    signals,
    weights::{CacheArgs, StoreArgs},
};
use limits::LimitArgs;
use metrics::MetricsArgs;
use ports::PortArgs;
use reload::Reload;
use restrict::{RestrictArgs, Restricted};
use start::Failures;
use without_effect::WithoutEffect;

/// The heading of flags about the process and its start and end.
const SERVER: &str = "Server";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ControlMode {
    None,
    Poll,
    Explicit,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Models")]
pub(crate) struct ServeArgs {
    /// Model repositories (the same as --model-repository)
    #[arg(value_name = "REPOSITORY")]
    repositories: Vec<PathBuf>,
    /// A model repository; may be given several times
    #[arg(
        long = "model-repository",
        visible_alias = "model-store",
        value_name = "PATH"
    )]
    model_repository: Vec<PathBuf>,
    /// Which models are loaded: all at the start (none), all and what changes later (poll), or those named and by
    /// request (explicit)
    #[arg(long, value_name = "MODE", default_value = "none")]
    model_control_mode: ControlMode,
    /// A model to load at the start in mode explicit; `*` alone for all; may be given several times
    #[arg(long, value_name = "NAME")]
    load_model: Vec<String>,
    /// How often the repository is looked at in mode poll, in seconds; a fraction is Skep's own
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = positive_seconds)]
    repository_poll_secs: Duration,
    /// Whether each repository is a namespace: models of one name may then stand in several
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    model_namespacing: bool,
    /// Take a model's configs/<NAME>.pbtxt instead of its config.pbtxt where there is one
    #[arg(long, value_name = "NAME", value_parser = config_name)]
    model_config_name: Option<String>,
    /// How often a model version that could not be loaded is tried again
    #[arg(long, value_name = "N", default_value_t = 0)]
    model_load_retry_count: u32,
    /// How many models load at once
    #[arg(long, value_name = "N", default_value = "4")]
    model_load_thread_count: NonZeroUsize,
    /// Whether a model that fails to load at the start ends the server
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set, help_heading = SERVER)]
    exit_on_error: bool,
    /// How long a stop waits for what is in flight, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = SERVER)]
    exit_timeout_secs: u64,
    /// Whether the server is ready only when every model is
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set, help_heading = SERVER)]
    strict_readiness: bool,
    /// Do not complete configurations from the models' files
    #[arg(long)]
    disable_auto_complete_config: bool,
    /// Triton's older form of the same: true is --disable-auto-complete-config
    #[arg(long, value_name = "BOOL", value_parser = boolean, action = clap::ArgAction::Set)]
    strict_model_config: Option<bool>,
    /// A backend's setting, `<backend>,<key>=<value>` or `<key>=<value>`; may be given several times
    #[arg(long, value_name = "SETTING", value_parser = |text: &str| parse_backend_config(text))]
    backend_config: Vec<BackendSetting>,
    /// The ONNX Runtime library, or a directory that holds it, instead of the usual places (Skep's own)
    #[arg(long, value_name = "PATH")]
    onnxruntime_library: Option<PathBuf>,
    /// Serve what is configured for GPUs and accelerators on the CPU, with one warning a model (Skep's own)
    #[arg(long)]
    gpu_as_cpu: bool,
    /// Run models that ask for a missing backend on the embedded one (Skep's own)
    #[arg(long)]
    allow_backend_fallback: bool,
    /// The server's name in its metadata
    #[arg(long, value_name = "NAME", help_heading = SERVER)]
    id: Option<String>,
    #[command(flatten)]
    ports: PortArgs,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    restrict: RestrictArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    weight_cache: CacheArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sandboxes: SandboxArgs,
    #[command(flatten)]
    logs: LogArgs,
    #[command(flatten)]
    access_log: AccessLogArgs,
    #[command(flatten)]
    forms: forms::FormArgs,
    #[command(flatten)]
    without_effect: WithoutEffect,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
struct LogArgs {
    /// How much more is logged: 0 nothing, 1 each request and details, 2 everything
    #[arg(long, value_name = "LEVEL", default_value = "0", value_parser = logging::verbose_level, allow_hyphen_values = true)]
    log_verbose: u32,
    /// Whether information is logged
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    log_info: bool,
    /// Whether warnings are logged
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    log_warning: bool,
    /// Whether errors are logged
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    log_error: bool,
    /// The form of log lines; `json` is Skep's own
    #[arg(long, value_name = "FORMAT", default_value = "default")]
    log_format: LogFormat,
    /// Log to this file instead of standard error
    #[arg(long, value_name = "PATH")]
    log_file: Option<PathBuf>,
}

pub(crate) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    signals::survive().context("signals cannot be handled")?;
    skep_heap::bound_kept_memory();
    skep_heap::give_back_in_background().context("the thread that gives memory back")?;
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
    let server_options = args.server_options(
        metrics.shown,
        Arc::clone(&logs) as _,
        access.clone(),
        &restricted,
    )?;
    restricted.warn_of_open_doors(server_options.http.is_some(), server_options.grpc.is_some());
    let reload = Reload::new(logs, access.clone(), &server_options, restricted.file());
    let start_models = args.start_models()?;
    let request_memory = Arc::clone(&server_options.limits.request_memory);
    let runtime_options = args.runtime_options(metrics.recorded, request_memory)?;
    let library = args.onnxruntime_library.clone();
    let backends = backends::all(library, args.allow_backend_fallback)?;
    let weights = runtime_options.load.weights.as_ref();
    let _pressure = pressure::watch_server(weights.map(|weights| weights.store.clone()));
    let runtime = Runtime::new(runtime_options, backends);
    let cores = thread::available_parallelism()?.get();
    let reactor = tokio::runtime::Builder::new_multi_thread()
        // Half of the cores: models compute on all of them, and each further reactor thread takes turns with one. On two
        // cores under MobileNetV2 one thread instead of two saved 3 % of the server's CPU time.
        .worker_threads((cores / 2).max(1))
        .enable_all()
        .thread_name("reactor")
        .build()?;
    let serving = serve(runtime, server_options, start_models, &args, reload);
    let outcome = reactor.block_on(serving);
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

/// How a server ended.
struct Ended {
    /// Whether all that was asked for was done, within the time.
    is_clean: bool,
    /// Whether a model still runs, or a load that nobody waits for.
    something_runs: bool,
}

/// Opens the ports, loads the models while liveness is already answered, serves until a signal, stops.
async fn serve(
    runtime: Arc<Runtime>,
    options: ServerOptions,
    models: StartModels,
    args: &ServeArgs,
    reload: Reload,
) -> anyhow::Result<Ended> {
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
        tracing::warn!("{calls} loads or unloads are given up while they run");
    }
    tracing::info!("stopped");
    Ok(Ended {
        is_clean: !failed && outcome.connections_closed && outcome.models_left == 0,
        something_runs: outcome.models_left > 0 || calls > 0,
    })
}

/// Which models are loaded at the start.
enum StartModels {
    All,
    Named(Vec<ModelName>),
}

impl StartModels {
    /// Loads them on a thread of its own, which waits for loads that a stop does not wait for.
    fn load(self, runtime: &Arc<Runtime>) -> io::Result<oneshot::Receiver<StartReport>> {
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

impl ServeArgs {
    fn start_models(&self) -> anyhow::Result<StartModels> {
        match self.model_control_mode {
            ControlMode::None | ControlMode::Poll if !self.load_model.is_empty() => {
                bail!(
                    "--load-model needs --model-control-mode=explicit: the other modes load every model"
                )
            }
            ControlMode::None | ControlMode::Poll => Ok(StartModels::All),
            ControlMode::Explicit if self.load_model == ["*"] => Ok(StartModels::All),
            ControlMode::Explicit => {
                if self.load_model.iter().any(|name| name == "*") {
                    bail!("--load-model=* loads all models, it cannot stand beside others");
                }
                let names = self
                    .load_model
                    .iter()
                    .map(|name| ModelName::new(name))
                    .collect::<Result<_, _>>();
                Ok(StartModels::Named(names.context("--load-model")?))
            }
        }
    }

    /// Logs what looks odd about the repositories as a whole.
    fn say_layout(&self, runtime: &Runtime) {
        for finding in runtime.layout() {
            if !finding.is_wrong && self.model_control_mode != ControlMode::None {
                tracing::info!("{}", finding.text);
            } else {
                tracing::warn!("{}", finding.text);
            }
        }
    }

    /// How long a stop may take.
    const fn exit_timeout(&self) -> Duration {
        Duration::from_secs(self.exit_timeout_secs)
    }

    fn runtime_options(
        &self,
        metrics: MetricsOptions,
        request_memory: Arc<MemoryBudget>,
    ) -> anyhow::Result<RuntimeOptions> {
        let roots: Vec<PathBuf> = self
            .repositories
            .iter()
            .chain(&self.model_repository)
            .cloned()
            .collect();
        if roots.is_empty() {
            bail!("no model repository given\n  try: skep serve examples/models");
        }
        // Counts the cgroup's quota and the affinity mask.
        let cores = thread::available_parallelism()?;
        Ok(RuntimeOptions {
            repository: Repository::open(roots)
                .map_err(anyhow::Error::msg)?
                .with_namespaces(self.model_namespacing),
            load: LoadOptions {
                auto_complete: !self.disable_auto_complete_config
                    && self.strict_model_config != Some(true),
                backend_settings: self.backend_config.clone(),
                cores,
                cpu: self.limits.cpu(cores),
                metrics,
                config_name: self.model_config_name.clone(),
                gpu_as_cpu: self.gpu_as_cpu,
                retries: self.model_load_retry_count,
                waiting_limit: Arc::new(WaitingLimit::new(self.limits.max_waiting_requests())),
                hold_until: delay_scheduler()?,
                weights: self.store.weights(self.weight_cache.open()?)?,
                sandbox_load_limit: self.sandboxes.load_limit(),
                request_memory: Some(request_memory),
            },
            load_threads: self.model_load_thread_count.get(),
            max_waiting_loads: self.limits.max_waiting_loads(),
            control: match self.model_control_mode {
                ControlMode::None => Control::None,
                ControlMode::Poll => Control::Poll(self.repository_poll_secs),
                ControlMode::Explicit => Control::Explicit,
            },
            strict_readiness: self.strict_readiness,
        })
    }

    fn server_options(
        &self,
        metrics_options: skep_server::MetricsPortOptions,
        logs: Arc<dyn LogControl>,
        access: Option<Arc<AccessLogFile>>,
        restricted: &Restricted,
    ) -> anyhow::Result<ServerOptions> {
        Ok(ServerOptions {
            http: self.ports.http()?,
            grpc: self.ports.grpc()?,
            metrics: self.ports.metrics()?,
            metrics_options,
            logs,
            http_restrictions: restricted.http.clone(),
            grpc_restrictions: restricted.grpc.clone(),
            id: self.id.clone(),
            max_json_bytes: self.limits.max_json_bytes(),
            exit_timeout: stop::servers_share(self.exit_timeout()),
            inference: self.forms.forms(),
            limits: self.limits.limits(),
            grpc_connections: self.limits.grpc_connections(),
            access: access.map(|access| access as Arc<dyn AccessLog>),
        })
    }
}

/// Triton's hook for tests: batchers execute nothing before so many requests wait.
fn delay_scheduler() -> anyhow::Result<usize> {
    const NAME: &str = "TRITONSERVER_DELAY_SCHEDULER";
    let Some(value) = env::var_os(NAME) else {
        return Ok(0);
    };
    let requests = value.to_str().and_then(|text| text.parse().ok());
    let requests = requests.with_context(|| {
        let got = value.display();
        format!("the environment's {NAME} is `{got}`, expected a number of requests")
    })?;
    tracing::warn!("{NAME}: each batcher waits until {requests} requests are queued");
    Ok(requests)
}

/// A time of more than nothing.
fn positive_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds")?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "expected a number of seconds above 0".to_owned())
}

/// The name of a configuration: a plain file name.
pub(crate) fn config_name(text: &str) -> Result<String, String> {
    let is_plain = !matches!(text, "" | "." | "..") && !text.contains(['/', '\\']);
    if is_plain {
        Ok(text.to_owned())
    } else {
        Err(
            "expected the name of a file in a model's `configs` directory, without `.pbtxt`"
                .to_owned(),
        )
    }
}
