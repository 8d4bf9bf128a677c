//! The flags of `skep serve`, and the options of server and runtime that they make.

use std::{env, num::NonZeroUsize, path::PathBuf, sync::Arc, thread, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use skep_config::{BackendSetting, parse_backend_config};
use skep_runtime::{
    Control, LoadOptions, MetricsOptions, Repository, Runtime, RuntimeOptions, WaitingLimit,
};
use skep_server::{AccessLog, LogControl, ServerOptions};
use skep_tensor::MemoryBudget;
use skep_tracing::Tracer;
use skep_types::ModelName;

use super::{
    access_log::{AccessLogArgs, AccessLogFile},
    bare_model::{BareModelArgs, GivenRepositories},
    devices::DeviceArgs,
    forms::FormArgs,
    limits::LimitArgs,
    metrics::MetricsArgs,
    ports::PortArgs,
    profiles::ProfileFlag,
    rate_limit::RateLimitArgs,
    residency::ResidencyArgs,
    response_cache::ResponseCacheArgs,
    restrict::{RestrictArgs, Restricted},
    start::StartModels,
    stop,
    traces::TraceArgs,
    without_effect::WithoutEffect,
};
use crate::{
    allocator_libraries::AllocatorLibraries,
    commands::sandbox::SandboxArgs,
    flag_values::boolean,
    logging::{self, LogFormat},
    weights::{CacheArgs, StoreArgs},
};

/// The heading of flags about the process and its start and end.
pub(super) const SERVER: &str = "Server";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ControlMode {
    None,
    Poll,
    Explicit,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Models")]
pub(crate) struct ServeArgs {
    /// Model repositories (the same as --model-repository), or models by themselves: .onnx files, directories with
    /// model.onnx
    #[arg(value_name = "REPOSITORY")]
    repositories: Vec<PathBuf>,
    /// A model repository; may be given several times
    #[arg(
        long = "model-repository",
        visible_alias = "model-store",
        value_name = "PATH"
    )]
    model_repository: Vec<PathBuf>,
    #[command(flatten)]
    bare_model: BareModelArgs,
    /// Which models to load: all at the start (none), all and later changes (poll), or the named ones and those that
    /// clients ask for (explicit)
    #[arg(long, value_name = "MODE", default_value = "none")]
    model_control_mode: ControlMode,
    /// A model to load at the start in mode explicit; `*` alone for all; may be given several times
    #[arg(long, value_name = "NAME")]
    load_model: Vec<String>,
    /// How often mode poll checks the repository, in seconds; fractions are Skep's own
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = positive_seconds)]
    repository_poll_secs: Duration,
    /// Whether each repository is a namespace: several repositories may then have a model of the same name
    #[arg(long, value_name = "BOOL", default_value = "false", value_parser = boolean, action = clap::ArgAction::Set)]
    model_namespacing: bool,
    /// Use a model's configs/<NAME>.pbtxt, if it exists, instead of its config.pbtxt
    #[arg(long, value_name = "NAME", value_parser = config_name)]
    model_config_name: Option<String>,
    /// How often to retry a model version that failed to load
    #[arg(long, value_name = "N", default_value_t = 0)]
    model_load_retry_count: u32,
    /// How many models may load at once
    #[arg(long, value_name = "N", default_value = "4")]
    model_load_thread_count: NonZeroUsize,
    /// Whether a model that fails to load at the start ends the server
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set, help_heading = SERVER)]
    pub(super) exit_on_error: bool,
    /// How long a stop waits for running requests, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = SERVER)]
    pub(super) exit_timeout_secs: u64,
    /// Whether the server is ready only when all models are
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set, help_heading = SERVER)]
    strict_readiness: bool,
    /// Do not complete configurations from the models' files
    #[arg(long)]
    disable_auto_complete_config: bool,
    /// Triton's older flag: true means --disable-auto-complete-config
    #[arg(long, value_name = "BOOL", value_parser = boolean, action = clap::ArgAction::Set)]
    strict_model_config: Option<bool>,
    /// A backend's setting, `<backend>,<key>=<value>` or `<key>=<value>`; may be given several times
    #[arg(long, value_name = "SETTING", value_parser = |text: &str| parse_backend_config(text))]
    pub(super) backend_config: Vec<BackendSetting>,
    /// The ONNX Runtime library, or a directory that holds it, instead of the usual places (Skep's own)
    #[arg(long, value_name = "PATH")]
    pub(super) onnxruntime_library: Option<PathBuf>,
    #[command(flatten)]
    pub(super) allocators: AllocatorLibraries,
    /// Run models configured for GPUs and accelerators on the CPU, with one warning each (Skep's own)
    #[arg(long)]
    gpu_as_cpu: bool,
    /// Run models that ask for a missing backend on the embedded one (Skep's own)
    #[arg(long)]
    pub(super) allow_backend_fallback: bool,
    /// The server's name in its metadata
    #[arg(long, value_name = "NAME", help_heading = SERVER)]
    id: Option<String>,
    #[command(flatten)]
    pub(super) ports: PortArgs,
    #[command(flatten)]
    pub(super) metrics: MetricsArgs,
    #[command(flatten)]
    pub(super) restrict: RestrictArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    residency: ResidencyArgs,
    #[command(flatten)]
    devices: DeviceArgs,
    #[command(flatten)]
    profiles: ProfileFlag,
    #[command(flatten)]
    response_cache: ResponseCacheArgs,
    #[command(flatten)]
    rate_limit: RateLimitArgs,
    #[command(flatten)]
    weight_cache: CacheArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sandboxes: SandboxArgs,
    #[command(flatten)]
    pub(super) logs: LogArgs,
    #[command(flatten)]
    pub(super) access_log: AccessLogArgs,
    #[command(flatten)]
    pub(super) traces: TraceArgs,
    #[command(flatten)]
    forms: FormArgs,
    #[command(flatten)]
    pub(super) without_effect: WithoutEffect,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
pub(super) struct LogArgs {
    /// How much more to log: 0 nothing, 1 each request and details, 2 everything
    #[arg(long, value_name = "LEVEL", default_value = "0", value_parser = logging::verbose_level, allow_hyphen_values = true)]
    pub(super) log_verbose: u32,
    /// Whether to log information
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    pub(super) log_info: bool,
    /// Whether to log warnings
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    pub(super) log_warning: bool,
    /// Whether to log errors
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    pub(super) log_error: bool,
    /// The format of log lines; `json` is Skep's own
    #[arg(long, value_name = "FORMAT", default_value = "default")]
    pub(super) log_format: LogFormat,
    /// Log to this file instead of standard error
    #[arg(long, value_name = "PATH")]
    pub(super) log_file: Option<PathBuf>,
}

impl ServeArgs {
    pub(super) fn start_models(&self) -> anyhow::Result<StartModels> {
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
                    bail!("--load-model=* loads all models and cannot be combined with names");
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
    pub(super) fn say_layout(&self, runtime: &Runtime) {
        for finding in runtime.layout() {
            if !finding.is_wrong && self.model_control_mode != ControlMode::None {
                tracing::info!("{}", finding.text);
            } else {
                tracing::warn!("{}", finding.text);
            }
        }
    }

    /// How long a stop may take.
    pub(super) const fn exit_timeout(&self) -> Duration {
        Duration::from_secs(self.exit_timeout_secs)
    }

    /// The repositories to serve.
    pub(super) fn repositories(&self) -> anyhow::Result<GivenRepositories> {
        let given = self.repositories.iter().chain(&self.model_repository);
        let given: Vec<PathBuf> = given.cloned().collect();
        if given.is_empty() {
            bail!("no model repository given\n  try: skep serve examples/models");
        }
        self.bare_model.repositories(given)
    }

    pub(super) fn runtime_options(
        &self,
        roots: Vec<PathBuf>,
        metrics: MetricsOptions,
        request_memory: Arc<MemoryBudget>,
    ) -> anyhow::Result<RuntimeOptions> {
        // Counts the cgroup's quota and the affinity mask.
        let cores = thread::available_parallelism()?;
        let response_cache = self.response_cache.cache()?;
        let cache_bytes = response_cache
            .as_ref()
            .map(|cache| cache.report().limit_bytes);
        let taken = (request_memory.limit() as u64).saturating_add(cache_bytes.unwrap_or(0));
        let residency = self.residency.settings(taken)?;
        let mut weights = self.store.weights(self.weight_cache.open()?)?;
        if let Some(weights) = weights.as_mut().filter(|_| residency.budget.is_some()) {
            // What is kept of a model that left is not in the budget.
            weights.keep_unloaded = Duration::ZERO;
        }
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
                devices: self.devices.declared(residency.budget)?,
                profiles: self.profiles.read()?,
                response_cache,
                rate_limiter: self.rate_limit.limiter(),
                metrics,
                config_name: self.model_config_name.clone(),
                gpu_as_cpu: self.gpu_as_cpu,
                retries: self.model_load_retry_count,
                waiting_limit: Arc::new(WaitingLimit::new(self.limits.max_waiting_requests())),
                hold_until: delay_scheduler()?,
                weights,
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
            residency,
        })
    }

    pub(super) fn server_options(
        &self,
        metrics_options: skep_server::MetricsPortOptions,
        logs: Arc<dyn LogControl>,
        traces: Arc<Tracer>,
        access: Option<Arc<AccessLogFile>>,
        restricted: &Restricted,
    ) -> anyhow::Result<ServerOptions> {
        Ok(ServerOptions {
            http: self.ports.http()?,
            grpc: self.ports.grpc()?,
            metrics: self.ports.metrics()?,
            metrics_options,
            logs,
            traces,
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
        format!("environment variable {NAME} is `{got}`, expected a number of requests")
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
