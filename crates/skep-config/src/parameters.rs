//! The keys of the `parameters` map: one table, from which values are read, checked and documented.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    error::ConfigError,
    model::{NO_GPU, Notice, backends},
    near_miss, objective,
    options::{
        ExecutionOptions, Isolation, MemoryPlanner, MockOptions, RUNTIME_MEMORY, RunLimits, Values,
    },
};

/// What a key's value must look like. Values are always strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    /// `1`, `0`, `true` or `false`.
    Bool,
    /// A decimal integer within bounds.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A number of milliseconds above 0, with or without a fraction.
    Milliseconds,
    /// A number of bytes above 0, plain or in `KiB`, `MiB`, `GiB`.
    Bytes,
    /// `device:id` pairs, separated by semicolons.
    Devices,
    /// 1 to 64 letters, digits, `.`, `_` and `-`.
    Name,
    /// Anything.
    Text,
}

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
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
    pub value: ValueType,
    /// The value when the key is absent.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What it does.
    pub effect: Effect,
}

/// An hour: a longer scripted latency is a mistake in units.
const MAX_LATENCY: u64 = 3_600_000_000;
/// A day: an execution that takes longer is not a request's.
const MAX_EXECUTION_MS: u64 = 86_400_000;
/// More threads than any machine has processors.
const MAX_THREADS: u64 = 4096;
const ANY: u64 = u64::MAX;
const MOCK: Effect = Effect::HonouredBy(&[backends::MOCK]);
const ORT: Effect = Effect::HonouredBy(&[backends::ONNXRUNTIME]);
const THREADED: Effect = Effect::HonouredBy(&[backends::ONNXRUNTIME, backends::EMBEDDED]);

macro_rules! parameters {
    ($($key:literal, $value:expr, $default:literal, $effect:expr, $meaning:literal;)*) => {
        &[$(ParameterSpec { key: $key, value: $value, default: $default, meaning: $meaning, effect: $effect }),*]
    };
}

/// Every key that means something to Skep; any other key is the user's own and is only kept.
pub const PARAMETERS: &[ParameterSpec] = parameters! {
    "max_queue_size", ValueType::Integer { min: 1, max: 1 << 32 }, "16384", Effect::Honoured,
        "requests that may wait for the model, in all its queues together; the next one is refused at once; when absent also as many as the `max_queue_size` of its queue policies add up to";
    "slo_latency_ms", ValueType::Milliseconds, "", Effect::Honoured,
        "how long a request may take until its answer, the latency objective; see [batching.md](batching.md)";
    "batching_policy", ValueType::OneOf(objective::POLICIES), "auto", Effect::Honoured,
        "how batches are formed under a latency objective; without `slo_latency_ms` Triton's batcher forms them";
    "slo_miss_action", ValueType::OneOf(&["REJECT", "DELAY"]), "REJECT", Effect::Honoured,
        "what happens to a request that cannot be answered within the objective any more: it is refused, or served behind the others";
    "isolation", ValueType::OneOf(&["thread", "process"]), "thread", Effect::Honoured,
        "where the model's instances run: `thread`, each on a thread of the server; `process`, each in a process of its own, with few rights, whose end costs the batch that it had and nothing else; see [sandboxes.md](sandboxes.md)";
    "tenant", ValueType::Name, "", THREADED,
        "which [tensor store](tensor-store.md) the model's weights lie in: that of this tenant, which the models of no other tenant see; when absent the general one";
    "max_execution_ms", ValueType::Integer { min: 1, max: MAX_EXECUTION_MS }, "600000", Effect::Honoured,
        "how long one execution may take, in milliseconds. After that its requests are answered with an error; with `isolation` `process` the worker process is ended and started again, otherwise the model is not ready until the execution ends, and the cores that it holds are given to other models";
    "max_run_memory", ValueType::Bytes, "", Effect::Honoured,
        "what one execution may take for its intermediate tensors and outputs, such as `512MiB`; one that needs more is answered with an error. When absent, what the machine and the control group still have. With `memory_planner` `runtime` only outputs count";
    "thread_spinning", ValueType::Bool, "0", ORT,
        "whether idle threads of an instance wait for work by spinning: lower latency at back-to-back load, but they use a processor while they wait";
    "mock.latency_us", ValueType::Integer { min: 0, max: MAX_LATENCY }, "0", MOCK,
        "microseconds that every execution takes";
    "mock.latency_us_per_item", ValueType::Integer { min: 0, max: MAX_LATENCY }, "0", MOCK,
        "microseconds that an execution takes in addition for each inference in its batch";
    "mock.overlap_percent", ValueType::Integer { min: 0, max: 10_000 }, "0", MOCK,
        "by how many percent an execution takes longer for each other one of the model that runs when it begins, as on an accelerator that is shared";
    "mock.cpu_threads", ValueType::Integer { min: 0, max: MAX_THREADS }, "0", MOCK,
        "cores that an execution counts as busy, as one of a real backend; 0: none, it stands for an accelerator of its own";
    "mock.output", ValueType::OneOf(&["zero", "echo", "ramp"]), "zero", MOCK,
        "what outputs hold: zeros, a copy of the input at the same position, or 0, 1, 2, ...";
    "mock.fail_every", ValueType::Integer { min: 0, max: ANY }, "0", MOCK,
        "every n-th execution fails with an error; 0: none";
    "mock.panic_every", ValueType::Integer { min: 0, max: ANY }, "0", MOCK,
        "every n-th execution panics; 0: none";
    "mock.load_latency_us", ValueType::Integer { min: 0, max: MAX_LATENCY }, "0", MOCK,
        "microseconds that loading the model takes";
    "mock.load_error", ValueType::Text, "", MOCK,
        "a text: loading the model fails with it";
    "mock.echo_parameters", ValueType::Bool, "0", MOCK,
        "whether an answer carries the parameters of its request";
    "intra_op_thread_count", ValueType::Integer { min: 0, max: MAX_THREADS }, "1", THREADED,
        "threads that compute one operator together; 0: as many as the runtime likes";
    "inter_op_thread_count", ValueType::Integer { min: 0, max: MAX_THREADS }, "1", ORT,
        "threads that compute independent operators in parallel (`execution_mode` 1); 0: as many as the runtime likes";
    "execution_mode", ValueType::OneOf(&["0", "1"]), "0", ORT,
        "0: operators run one after another, 1: independent operators run in parallel";
    "memory_planner", ValueType::OneOf(&["planned", "malloc", "runtime"]), "planned", ORT,
        "where intermediate tensors lie: `planned`, in arenas that all models' runs take turns in, laid out by what a run with the same shapes was seen to need; `malloc`, each in memory of its own; `runtime`, as ONNX Runtime does it by the next three keys. When one of these three is given and this is not: `runtime`; with `execution_mode` 1 always `runtime`. See [memory-planning.md](memory-planning.md)";
    "enable_mem_arena", ValueType::Bool, "1", ORT,
        "with `memory_planner` `runtime`: whether intermediate tensors come from an arena that keeps its memory between runs";
    "enable_mem_pattern", ValueType::Bool, "1", ORT,
        "with `memory_planner` `runtime`, and with `malloc` where given: whether intermediate tensors of runs with equal shapes are laid out in advance";
    "memory.enable_memory_arena_shrinkage", ValueType::Devices, "", ORT,
        "with `memory_planner` `runtime`: `cpu:0`: the arena gives unused memory back after every run; entries for GPUs have no effect";
    "session.use_device_allocator_for_initializers", ValueType::Bool, "0", ORT,
        "with `memory_planner` `runtime`: whether initializers are allocated outside of the arena; they always are otherwise";
    "cudnn_conv_algo_search", ValueType::Text, "", Effect::None(NO_GPU), "how cuDNN chooses convolution algorithms";
    "cudnn_conv_use_max_workspace", ValueType::Text, "", Effect::None(NO_GPU), "cuDNN's workspace for convolutions";
    "gpu_mem_limit", ValueType::Text, "", Effect::None(NO_GPU), "size of the GPU arena";
    "arena_extend_strategy", ValueType::Text, "", Effect::None(NO_GPU), "how the GPU arena grows";
    "do_copy_in_default_stream", ValueType::Text, "", Effect::None(NO_GPU), "which CUDA stream copies";
    "TRITON_BATCH_STRATEGY_PATH", ValueType::Text, "", Effect::Unsupported, "a library that forms batches";
};

/// What the `parameters` map says, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) execution: ExecutionOptions,
    pub(crate) mock: MockOptions,
    pub(crate) isolation: Isolation,
    pub(crate) run_limits: RunLimits,
    /// None where the map does not say.
    pub(crate) max_queue_size: Option<usize>,
}

impl Parameters {
    /// Checks every value, then reads the known keys. `backend` decides which of them have an effect.
    pub(crate) fn read(
        model: &str,
        backend: &str,
        map: &BTreeMap<String, String>,
        notices: &mut Vec<Notice>,
    ) -> Result<Self, ConfigError> {
        for (key, value) in map {
            match PARAMETERS.iter().find(|spec| spec.key == key) {
                Some(spec) => spec.check(model, backend, value, notices)?,
                None => notices.extend(misspelt(key)),
            }
        }
        let values = Values(map);
        notices.extend(without_effect(backend, map, values.memory_planner()));
        let max_queue_size = map
            .contains_key("max_queue_size")
            .then(|| usize::try_from(values.integer("max_queue_size")).unwrap_or(usize::MAX));
        Ok(Self {
            execution: values.execution(),
            mock: values.mock(),
            isolation: values.isolation(),
            run_limits: values.run_limits(),
            max_queue_size,
        })
    }
}

/// What the choice of a memory planner leaves without effect.
fn without_effect(
    backend: &str,
    map: &BTreeMap<String, String>,
    chosen: MemoryPlanner,
) -> Vec<Notice> {
    if backend != backends::ONNXRUNTIME {
        return Vec::new();
    }
    let said = map.get("memory_planner").map(|value| value.trim());
    if chosen == MemoryPlanner::Runtime {
        let notice = |said| {
            let text = format!(
                "no effect of `{said}` with `execution_mode` 1, in which allocations have no order"
            );
            Notice::new("parameters.memory_planner", text)
        };
        let overruled = said.filter(|said| *said != "runtime");
        return overruled.map(notice).into_iter().collect();
    }
    let honoured = |key: &str| chosen == MemoryPlanner::Malloc && key == "enable_mem_pattern";
    let unused = RUNTIME_MEMORY
        .iter()
        .chain([&INITIALIZERS_ASIDE])
        .filter(|key| map.contains_key(**key) && !honoured(key));
    let notice = |key: &&str| {
        let planner = said.unwrap_or("planned");
        Notice::new(
            format!("parameters.{key}"),
            format!("no effect with `memory_planner` `{planner}`"),
        )
    };
    unused.map(notice).collect()
}

/// Of the runtime's arena as well, but by itself no reason to choose that.
const INITIALIZERS_ASIDE: &str = "session.use_device_allocator_for_initializers";

/// A warning about a key that is nearly one of the table's; any other key is the user's own.
fn misspelt(key: &str) -> Option<Notice> {
    let meant = near_miss::meant(key)?;
    let text = format!("unknown key, kept without effect; did you mean `{meant}`?");
    Some(Notice::new(format!("parameters.{key}"), text))
}

impl ParameterSpec {
    fn check(
        &self,
        model: &str,
        backend: &str,
        value: &str,
        notices: &mut Vec<Notice>,
    ) -> Result<(), ConfigError> {
        let field = format!("parameters.{}", self.key);
        if !self.value.accepts(value) {
            let (model, key) = (model.to_owned(), self.key.to_owned());
            return Err(ConfigError::Parameter {
                model,
                key,
                expected: self.value.describe(),
                got: value.to_owned(),
            });
        }
        match self.effect {
            Effect::Unsupported => return Err(ConfigError::unsupported(model, field)),
            Effect::None(NO_GPU) => notices.push(Notice::about_gpus(field)),
            Effect::None(why) => notices.push(Notice::new(field, format!("no effect: {why}"))),
            Effect::HonouredBy(backends) if !backends.contains(&backend) => {
                let names = backends.join("`, `");
                notices.push(Notice::new(
                    field,
                    format!("no effect with backend `{backend}`: honoured by `{names}`"),
                ));
            }
            Effect::Honoured | Effect::HonouredBy(_) => {
                if self.value == ValueType::Devices
                    && value
                        .split(';')
                        .any(|device| device.trim().starts_with("gpu"))
                {
                    notices.push(Notice::new(field, format!("no effect on GPUs: {NO_GPU}")));
                }
            }
        }
        Ok(())
    }
}

impl ValueType {
    fn accepts(self, value: &str) -> bool {
        match self {
            Self::Bool => boolean(value).is_some(),
            Self::Integer { min, max } => value
                .trim()
                .parse::<u64>()
                .is_ok_and(|n| (min..=max).contains(&n)),
            Self::OneOf(words) => words.contains(&value.trim()),
            Self::Milliseconds => objective::milliseconds(value).is_some(),
            Self::Bytes => bytes(value).is_some(),
            Self::Devices => value.split(';').all(|device| {
                let device = device.trim();
                let id = device
                    .strip_prefix("cpu:")
                    .or_else(|| device.strip_prefix("gpu:"));
                id.is_some_and(|id| id.parse::<u32>().is_ok())
            }),
            Self::Name => is_name(value.trim()),
            Self::Text => true,
        }
    }

    /// What it takes, for errors and the documentation.
    fn describe(self) -> String {
        match self {
            Self::Bool => "`1`, `0`, `true` or `false`".to_owned(),
            Self::Integer { min, max: ANY } => format!("an integer of at least {min}"),
            Self::Integer { min, max } => format!("an integer from {min} to {max}"),
            Self::OneOf(words) => format!("one of `{}`", words.join("`, `")),
            Self::Milliseconds => format!(
                "a number of milliseconds above 0 and up to {}",
                objective::MAX_LATENCY_MS
            ),
            Self::Bytes => {
                "a number of bytes above 0 such as `268435456`, `512KiB`, `256MiB` or `2GiB`"
                    .to_owned()
            }
            Self::Devices => "devices such as `cpu:0`, separated by `;`".to_owned(),
            Self::Name => "1 to 64 letters, digits, `.`, `_` or `-`".to_owned(),
            Self::Text => "any text".to_owned(),
        }
    }
}

/// Whether a tenant may be called so: the name is a part of a file's name as well.
fn is_name(value: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=64).contains(&value.len()) && value.bytes().all(plain)
}

/// A boolean as Triton's backends read one.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// A size as users write it.
pub(crate) fn bytes(value: &str) -> Option<u64> {
    let value = value.trim();
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let (number, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((value.strip_suffix(unit)?.trim_end(), *shift)))
        .unwrap_or((value, 0));
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    number.checked_mul(1 << shift)
}

/// `docs/model-parameters.md`, written from [`PARAMETERS`].
#[must_use]
pub fn parameters_markdown() -> String {
    let mut page = String::from(
        "# Keys of `parameters`\n\n\
         <!-- Written from the table in crates/skep-config/src/parameters.rs: change that, then run\n\
         SKEP_UPDATE_DOCS=1 cargo test -p skep-config. -->\n\n\
         Every value is a string:\n\n\
         ```text\n\
         parameters { key: \"max_queue_size\" value { string_value: \"100\" } }\n\
         ```\n\n\
         A value that its key does not allow fails the load. A key that is nearly one of these (`slo_latency`,\n\
         `SLO_LATENCY_MS`, `max_latency_ms`) is warned about, with the right one; any other key is yours, and is only kept.\n\
         A key that stands in `config.pbtxt` as a field is an unknown field, and the error shows the form above.\n\n\
         | key | value | default | meaning | effect |\n|---|---|---|---|---|\n",
    );
    for spec in PARAMETERS {
        let default = if spec.default.is_empty() {
            "none".to_owned()
        } else {
            format!("`{}`", spec.default)
        };
        let effect = match spec.effect {
            Effect::Honoured => "honoured".to_owned(),
            Effect::HonouredBy(backends) => format!("honoured by `{}`", backends.join("`, `")),
            Effect::None(why) => format!("accepted, no effect: {why}"),
            Effect::Unsupported => "refused: not supported yet".to_owned(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | {} | {default} | {} | {effect} |",
            spec.key,
            spec.value.describe(),
            spec.meaning
        );
    }
    page
}

#[cfg(test)]
#[path = "parameters_tests.rs"]
mod tests;
