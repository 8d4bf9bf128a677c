//! A configuration's execution options as a session's.

use std::{num::NonZeroUsize, thread};

use ort_sys::GraphOptimizationLevel;
use skep_config::{ExecutionMode, ExecutionOptions, GraphOptimization, MemoryPlanner};
use skep_host::{on_cpus, with_niceness};
use skep_types::CpuSet;

use crate::ffi::{ApiError, ApiErrorCode, OrtRuntime, RunOptions, SessionOptions};

/// How many threads a run keeps busy at most.
pub(crate) fn busy_threads(execution: &ExecutionOptions, threads: NonZeroUsize) -> NonZeroUsize {
    let intra = thread_count(execution.intra_op_threads, threads);
    match execution.execution_mode {
        ExecutionMode::Sequential => intra,
        ExecutionMode::Parallel => intra.max(thread_count(execution.inter_op_threads, threads)),
    }
}

/// The niceness of a thread that makes a session: with 10, a run that competes with it for a core gets nine tenths.
const LOAD_NICENESS: i32 = 10;

/// Makes a session, which keeps a core busy for tens of milliseconds and more, on a thread that runs go before. If the
/// library starts threads for the session, they would inherit the low priority, and it is made at the usual one: on a
/// thread that is bound to the setting's CPUs, which they inherit as well.
pub(crate) fn behind_runs<T: Send, E: From<ApiError> + Send>(
    setting: &SessionSettings<'_>,
    make: impl Fn() -> Result<T, E> + Sync,
) -> Result<T, E> {
    match (setting.starts_threads(), setting.cpus) {
        (false, _) => with_niceness("load", LOAD_NICENESS, &make).unwrap_or_else(|_| make()),
        (true, None) => make(),
        (true, Some(cpus)) => on_cpus("load", cpus.numbers(), &make).unwrap_or_else(|error| {
            Err(E::from(ApiError {
                code: ApiErrorCode::FAIL,
                message: format!("its threads cannot run on CPUs {cpus}: {error}"),
            }))
        }),
    }
}

/// A configured number of threads, `default` if none is configured.
fn thread_count(configured: Option<u32>, default: NonZeroUsize) -> NonZeroUsize {
    match configured {
        None => default,
        // The library chooses: all of the machine.
        Some(0) => thread::available_parallelism().unwrap_or(default),
        Some(count) => {
            NonZeroUsize::new(usize::try_from(count).unwrap_or(usize::MAX)).unwrap_or(default)
        }
    }
}

/// The settings of a model's sessions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionSettings<'a> {
    /// The configuration's options.
    pub(crate) execution: &'a ExecutionOptions,
    /// Threads that a run may use if the options do not say.
    pub(crate) threads: NonZeroUsize,
    /// The CPUs that the sessions' own threads may run on; `None` for those of the process.
    pub(crate) cpus: Option<&'a CpuSet>,
}

impl SessionSettings<'_> {
    /// Whether sessions have threads besides the callers'.
    pub(crate) fn starts_threads(&self) -> bool {
        busy_threads(self.execution, self.threads).get() > 1
    }
}

/// The session options for these settings.
pub(crate) fn session_options(
    runtime: &'static OrtRuntime,
    setting: &SessionSettings<'_>,
) -> Result<SessionOptions, ApiError> {
    let execution = setting.execution;
    let threads = u32::try_from(setting.threads.get()).unwrap_or(u32::MAX);
    let parallel = execution.execution_mode == ExecutionMode::Parallel;
    let inter = execution
        .inter_op_threads
        .unwrap_or(if parallel { threads } else { 1 });
    let mut options = SessionOptions::new(runtime)?;
    options.threads(execution.intra_op_threads.unwrap_or(threads), inter)?;
    options.parallel(parallel)?;
    options.optimization(match execution.graph_optimization {
        GraphOptimization::Disable => GraphOptimizationLevel::ORT_DISABLE_ALL,
        GraphOptimization::Basic => GraphOptimizationLevel::ORT_ENABLE_BASIC,
        GraphOptimization::Extended => GraphOptimizationLevel::ORT_ENABLE_EXTENDED,
        GraphOptimization::All => GraphOptimizationLevel::ORT_ENABLE_ALL,
    })?;
    options.memory(execution.memory_arena, execution.memory_pattern)?;
    if execution.memory_planner != MemoryPlanner::Runtime {
        options.entry(c"session.use_env_allocators", c"1")?;
    }
    // Idle threads that spin take the processor from other models' instances: 3.5 times the CPU time at 20 ms gaps.
    let spinning = if execution.spinning { c"1" } else { c"0" };
    options.entry(c"session.intra_op.allow_spinning", spinning)?;
    options.entry(c"session.inter_op.allow_spinning", spinning)?;
    if execution.device_allocator_for_initializers {
        options.entry(c"session.use_device_allocator_for_initializers", c"1")?;
    }
    Ok(options)
}

/// Whether the library's arena releases unused memory after every run.
pub(crate) const fn shrinks_arena(execution: &ExecutionOptions) -> bool {
    execution.arena_shrinkage && execution.memory_arena
}

/// Options of an instance's runs.
pub(crate) fn run_options(
    runtime: &'static OrtRuntime,
    shrinks_arena: bool,
) -> Result<RunOptions, ApiError> {
    let mut options = RunOptions::new(runtime)?;
    if shrinks_arena {
        options.entry(c"memory.enable_memory_arena_shrinkage", c"cpu:0")?;
    }
    Ok(options)
}
