//! The keys of the `parameters` map: one table. Values are read, checked and documented from it.

use skep_types::ObjectivePolicy;

use super::value::{ANY, ParameterType};
use crate::vocabulary::{backends, notice::NO_GPU};

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterEffect {
    /// Honoured by every backend.
    Honoured,
    /// Honoured by these backends, without effect on others.
    HonouredBy(&'static [&'static str]),
    /// Accepted without effect, for this reason.
    None(&'static str),
    /// Refused: not supported yet.
    Unsupported,
}

/// One row of the table of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterSpec {
    /// The key.
    pub key: &'static str,
    /// What its value must look like.
    pub value: ParameterType,
    /// The value when the key is absent.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What it does.
    pub effect: ParameterEffect,
}

/// An hour in microseconds: a longer scripted latency is a mistake in units.
const MAX_LATENCY_US: u64 = 3_600_000_000;
/// A day: no request needs a longer execution.
const MAX_EXECUTION_MS: u64 = 86_400_000;
/// More threads than any machine has processors.
const MAX_THREADS: u64 = 4096;
const MOCK: ParameterEffect = ParameterEffect::HonouredBy(&[backends::MOCK]);
const ORT: ParameterEffect = ParameterEffect::HonouredBy(&[backends::ONNXRUNTIME]);
const THREADED: ParameterEffect =
    ParameterEffect::HonouredBy(&[backends::ONNXRUNTIME, backends::EMBEDDED]);

macro_rules! parameters {
    ($($key:literal, $value:expr, $default:literal, $effect:expr, $meaning:literal;)*) => {
        &[$(ParameterSpec { key: $key, value: $value, default: $default, meaning: $meaning, effect: $effect }),*]
    };
}

/// Every key that Skep reads. Any other key is the user's own: Skep keeps it and does nothing else with it.
pub const PARAMETERS: &[ParameterSpec] = parameters! {
    "max_queue_size", ParameterType::Integer { min: 1, max: 1 << 32 }, "16384", ParameterEffect::Honoured,
        "how many requests may wait for the model over all its queues; the next one is refused. When absent: 16384, or the sum of the `max_queue_size` of its queue policies if that is larger";
    "slo_latency_ms", ParameterType::Milliseconds, "", ParameterEffect::Honoured,
        "the latency objective: how long a response may take from the request's arrival; see [batching.md](batching.md)";
    "slo_percentile", ParameterType::Percentile, "99", ParameterEffect::Honoured,
        "the percentile of latency that should keep to the objective: the batcher plans executions by it; see [batching.md](batching.md)";
    "batching_policy", ParameterType::OneOf(POLICIES), "auto", ParameterEffect::Honoured,
        "how batches are formed under a latency objective; without `slo_latency_ms`, Triton's batcher forms them";
    "slo_miss_action", ParameterType::OneOf(&["REJECT", "DELAY"]), "REJECT", ParameterEffect::Honoured,
        "what happens to a request that can no longer meet the objective: `REJECT` refuses it, `DELAY` serves it behind the others";
    "isolation", ParameterType::OneOf(&["thread", "process"]), "thread", ParameterEffect::Honoured,
        "where instances run: `thread`, on threads of the server; `process`, each in a worker process with few rights, where a crash costs one batch; see [sandboxes.md](sandboxes.md)";
    "load_policy", ParameterType::OneOf(&["eager", "lazy"]), "", ParameterEffect::Honoured,
        "when the model is loaded: `eager`, at the start; `lazy`, at its first request; see [residency.md](residency.md). When absent, as `--load-policy` says";
    "min_instances", ParameterType::Integer { min: 0, max: 1024 }, "", ParameterEffect::Honoured,
        "instances that the model always has. With 1 or more it is loaded at the start and leaves memory only when a client unloads it; see [residency.md](residency.md). When absent, the model may leave, and has the instances of `instance_group` while it is loaded";
    "max_instances", ParameterType::Integer { min: 1, max: 1024 }, "", ParameterEffect::Honoured,
        "instances that the model has at most: their number follows the load. When absent, `instance_group` fixes the number; see [residency.md](residency.md)";
    "live_configuration", ParameterType::Bool, "0", ParameterEffect::Honoured,
        "whether the server chooses the model's instances, their threads and the cap on its batches while it serves, from its profile (`--profiles`) and its request rate; see [live-configuration.md](live-configuration.md)";
    "max_load_wait_ms", ParameterType::Integer { min: 1, max: MAX_EXECUTION_MS }, "", ParameterEffect::Honoured,
        "how long a request waits for the model to load, in milliseconds. When absent, as `--max-load-wait-ms` says";
    "response_cache_bytes", ParameterType::Bytes, "", ParameterEffect::Honoured,
        "memory that the model's cached responses may take together, such as `64MiB`, within the server's `--cache-config`; see [response-cache.md](response-cache.md). When absent, all of the server's cache";
    "response_cache_ttl_ms", ParameterType::Integer { min: 1, max: ANY }, "", ParameterEffect::Honoured,
        "how long a cached response is used, in milliseconds; see [response-cache.md](response-cache.md). When absent, until other responses need its room";
    "max_waiting_sequences", ParameterType::Integer { min: 0, max: 1 << 32 }, "", ParameterEffect::Honoured,
        "with `sequence_batching`: how many sequences may wait for a slot; the first request of a further one is refused. When absent, as many as requests may wait; see [sequences.md](sequences.md)";
    "max_sequence_wait_ms", ParameterType::Integer { min: 1, max: MAX_EXECUTION_MS }, "", ParameterEffect::Honoured,
        "with `sequence_batching`: how long a sequence may wait for a slot, in milliseconds; its requests are then refused. When absent, for ever; see [sequences.md](sequences.md)";
    "tenant", ParameterType::Name, "", THREADED,
        "the tenant whose [tensor store](tensor-store.md) holds the model's weights; models of other tenants cannot see it. When absent, the general store";
    "max_execution_ms", ParameterType::Integer { min: 1, max: MAX_EXECUTION_MS }, "600000", ParameterEffect::Honoured,
        "time limit of one execution in milliseconds; beyond it, its requests get an error. With `isolation` `process`, the worker process is killed and restarted. Otherwise the model is not ready until the execution ends, and other models get its cores";
    "max_run_memory", ParameterType::Bytes, "", ParameterEffect::Honoured,
        "memory that one execution may take for its intermediate tensors and outputs, such as `512MiB`; if it needs more, its requests get an error. When absent, all that the machine and the control group have left. With `memory_planner` `runtime`, only outputs count";
    "thread_spinning", ParameterType::Bool, "0", ORT,
        "whether idle threads of an instance spin while they wait for work: latency is lower under back-to-back load, but each waiting thread keeps a core busy";
    "mock.latency_us", ParameterType::Integer { min: 0, max: MAX_LATENCY_US }, "0", MOCK,
        "microseconds that every execution takes";
    "mock.latency_us_per_item", ParameterType::Integer { min: 0, max: MAX_LATENCY_US }, "0", MOCK,
        "additional microseconds for each inference in the batch";
    "mock.overlap_percent", ParameterType::Integer { min: 0, max: 10_000 }, "0", MOCK,
        "by how many percent an execution takes longer for each other execution of the model that runs when it begins, as on a shared accelerator";
    "mock.cpu_threads", ParameterType::Integer { min: 0, max: MAX_THREADS }, "0", MOCK,
        "cores that an execution counts as busy, like one of a real backend; 0: none, as on an accelerator";
    "mock.output", ParameterType::OneOf(&["zero", "echo", "ramp"]), "zero", MOCK,
        "what outputs hold: zeros, a copy of the input at the same position, or 0, 1, 2, ...";
    "mock.fail_every", ParameterType::Integer { min: 0, max: ANY }, "0", MOCK,
        "every n-th execution fails with an error; 0: none";
    "mock.panic_every", ParameterType::Integer { min: 0, max: ANY }, "0", MOCK,
        "every n-th execution panics; 0: none";
    "mock.load_latency_us", ParameterType::Integer { min: 0, max: MAX_LATENCY_US }, "0", MOCK,
        "microseconds that loading the model takes";
    "mock.load_error", ParameterType::Text, "", MOCK,
        "the error with which loading the model fails";
    "mock.echo_parameters", ParameterType::Bool, "0", MOCK,
        "whether a response carries the parameters of its request";
    "intra_op_thread_count", ParameterType::Integer { min: 0, max: MAX_THREADS }, "1", THREADED,
        "threads that compute one operator together; 0: the runtime decides";
    "inter_op_thread_count", ParameterType::Integer { min: 0, max: MAX_THREADS }, "1", ORT,
        "threads that compute independent operators in parallel (`execution_mode` 1); 0: the runtime decides";
    "execution_mode", ParameterType::OneOf(&["0", "1"]), "0", ORT,
        "0: operators run one after another, 1: independent operators run in parallel";
    "memory_planner", ParameterType::OneOf(&["planned", "malloc", "runtime"]), "planned", ORT,
        "how intermediate tensors get their memory: `planned`, in arenas that the runs of all models use in turn, at offsets planned from a recorded run with the same shapes; `malloc`, one allocation for each tensor; `runtime`, by ONNX Runtime's own methods, which the next three keys set. If one of these three is given and this key is not: `runtime`. With `execution_mode` 1: always `runtime`. See [memory-planning.md](memory-planning.md)";
    "allocator", ParameterType::Text, "", ORT,
        "the allocator of each instance's intermediate tensors, with its options, as in `bfc` or `pytorch_caching:max_split_size=20MiB`; or the name of a library that the server was started with (`--allocator-library`). `memory_planner` has no effect then. With `execution_mode` 1: no effect. When absent, as `memory_planner` says. See [allocators.md](allocators.md)";
    "enable_mem_arena", ParameterType::Bool, "1", ORT,
        "with `memory_planner` `runtime`: whether intermediate tensors come from an arena that keeps its memory between runs";
    "enable_mem_pattern", ParameterType::Bool, "1", ORT,
        "with `memory_planner` `runtime`, and with `malloc` if given: whether intermediate tensors of runs with equal shapes are laid out in advance";
    "memory.enable_memory_arena_shrinkage", ParameterType::Devices, "", ORT,
        "with `memory_planner` `runtime`: with `cpu:0` the arena releases unused memory after every run; entries for GPUs have no effect";
    "session.use_device_allocator_for_initializers", ParameterType::Bool, "0", ORT,
        "with `memory_planner` `runtime`: whether initializers are allocated outside the arena; with other planners they always are";
    "cudnn_conv_algo_search", ParameterType::Text, "", ParameterEffect::None(NO_GPU), "how cuDNN chooses convolution algorithms";
    "cudnn_conv_use_max_workspace", ParameterType::Text, "", ParameterEffect::None(NO_GPU), "cuDNN's workspace for convolutions";
    "gpu_mem_limit", ParameterType::Text, "", ParameterEffect::None(NO_GPU), "size of the GPU arena";
    "arena_extend_strategy", ParameterType::Text, "", ParameterEffect::None(NO_GPU), "how the GPU arena grows";
    "do_copy_in_default_stream", ParameterType::Text, "", ParameterEffect::None(NO_GPU), "which CUDA stream copies";
    "TRITON_BATCH_STRATEGY_PATH", ParameterType::Text, "", ParameterEffect::Unsupported, "a library that forms batches";
};

/// The values of `batching_policy`, in the order in which they are documented.
const POLICIES: &[&str] = &[
    ObjectivePolicy::Auto.name(),
    TRITON_POLICY,
    ObjectivePolicy::Aimd.name(),
    ObjectivePolicy::Quantile.name(),
    ObjectivePolicy::Edf.name(),
    ObjectivePolicy::Deferred.name(),
];

/// The value of `batching_policy` for Triton's batcher, which ignores the objective.
pub(crate) const TRITON_POLICY: &str = "triton";

/// The row of a key; `None` for a key of the user's own.
pub(crate) fn parameter(key: &str) -> Option<&'static ParameterSpec> {
    PARAMETERS.iter().find(|spec| spec.key == key)
}
