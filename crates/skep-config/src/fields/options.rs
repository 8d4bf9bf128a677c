//! Settings of backends and instances, typed from the `parameters` map.

use std::{collections::BTreeMap, time::Duration};

use skep_proto::inference;

use crate::parameters::{
    table::parameter,
    value::{boolean, bytes},
};

/// Whether a model's operators run one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExecutionMode {
    /// One after another.
    #[default]
    Sequential,
    /// Independent operators in parallel.
    Parallel,
}

/// How far the runtime rewrites the graph (`optimization.graph.level`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GraphOptimization {
    /// Not at all (level 2).
    Disable,
    /// Redundant nodes only (level -1).
    Basic,
    /// Also fusions (level 1).
    Extended,
    /// Also layouts (level 0).
    #[default]
    All,
}

/// Where the intermediate tensors of a run lie (`memory_planner`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryPlanner {
    /// In arenas that the runs of all models share in turn. A plan lays them out from a recorded run with the same
    /// shapes.
    #[default]
    Planned,
    /// Each in its own allocation on the process's heap.
    Malloc,
    /// Where the runtime's own allocator puts them.
    Runtime,
    /// Where the instance's own allocator puts them (`allocator`).
    Allocator,
}

/// Where the instances of a model run (`isolation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Each on a thread of the server's process.
    #[default]
    Thread,
    /// Each in its own process.
    Process,
}

/// Where the instances run according to a configuration that is not complete yet.
#[must_use]
pub fn configured_isolation(config: &inference::ModelConfig) -> Isolation {
    match config.parameters.get("isolation") {
        Some(parameter) => isolation(parameter.string_value.trim()),
        None => Isolation::default(),
    }
}

fn isolation(value: &str) -> Isolation {
    match value {
        "process" => Isolation::Process,
        _ => Isolation::Thread,
    }
}

/// The limits of one execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunLimits {
    /// Time (`max_execution_ms`).
    pub time: Duration,
    /// Bytes of intermediate tensors and outputs together (`max_run_memory`); `None` for all that the machine has.
    pub memory_bytes: Option<u64>,
}

impl Default for RunLimits {
    fn default() -> Self {
        ParameterValues(&BTreeMap::new()).run_limits()
    }
}

/// How a backend runs the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionOptions {
    /// Threads that compute one operator; `None` if it is not configured, `Some(0)` leaves it to the runtime.
    pub intra_op_threads: Option<u32>,
    /// Threads that compute independent operators; `None` if it is not configured, `Some(0)` leaves it to the runtime.
    pub inter_op_threads: Option<u32>,
    /// Sequential or parallel.
    pub execution_mode: ExecutionMode,
    /// How far the graph is rewritten.
    pub graph_optimization: GraphOptimization,
    /// Where intermediate tensors lie.
    pub memory_planner: MemoryPlanner,
    /// The allocator of each instance, with its options; with [`MemoryPlanner::Allocator`].
    pub allocator: Option<String>,
    /// Whether they come from the runtime's arena; only with [`MemoryPlanner::Runtime`].
    pub memory_arena: bool,
    /// Whether the runtime lays them out in advance; only with [`MemoryPlanner::Runtime`] and [`MemoryPlanner::Malloc`].
    pub memory_pattern: bool,
    /// Whether the arena releases unused memory after every run.
    pub arena_shrinkage: bool,
    /// Whether initializers are allocated outside the arena.
    pub device_allocator_for_initializers: bool,
    /// Whether idle threads spin.
    pub spinning: bool,
}

impl Default for ExecutionOptions {
    fn default() -> Self {
        ParameterValues(&BTreeMap::new()).execution()
    }
}

/// What the mock backend puts into outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MockOutput {
    /// Zeros.
    #[default]
    Zero,
    /// A copy of the input at the same position.
    Echo,
    /// 0, 1, 2, ...
    Ramp,
}

/// The mock backend's script.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MockOptions {
    /// How long every execution takes.
    pub latency: Duration,
    /// How much longer it takes for each inference in its batch.
    pub latency_per_item: Duration,
    /// By how many percent an execution takes longer for each other execution of the model that runs when it begins.
    pub overlap_percent: u32,
    /// Cores that an execution counts as busy; 0 for none.
    pub cpu_threads: u32,
    /// What outputs hold.
    pub output: MockOutput,
    /// Every n-th execution fails; 0 for none.
    pub fail_every: u64,
    /// Every n-th execution panics; 0 for none.
    pub panic_every: u64,
    /// How long loading takes.
    pub load_latency: Duration,
    /// The error with which loading fails.
    pub load_error: Option<String>,
    /// Whether a response carries the parameters of its request.
    pub echo_parameters: bool,
}

/// The key of an instance's own allocator.
pub(crate) const ALLOCATOR: &str = "allocator";

const PATTERN: &str = "enable_mem_pattern";

/// Keys that tell the runtime's own arena how to place intermediate tensors.
pub(crate) const RUNTIME_MEMORY: [&str; 3] = [
    "enable_mem_arena",
    PATTERN,
    "memory.enable_memory_arena_shrinkage",
];

/// Checked values; the table's defaults stand in for absent keys.
pub(crate) struct ParameterValues<'a>(pub(crate) &'a BTreeMap<String, String>);

impl ParameterValues<'_> {
    /// The value of a key of the table, or its default. A key that the table lacks reads as empty; a test reads every
    /// key.
    fn get(&self, key: &str) -> &str {
        match self.0.get(key) {
            Some(value) => value.trim(),
            None => parameter(key).map_or("", |spec| spec.default),
        }
    }

    pub(crate) fn bool(&self, key: &str) -> bool {
        boolean(self.get(key)).unwrap_or_default()
    }

    pub(crate) fn integer(&self, key: &str) -> u64 {
        self.get(key).parse().unwrap_or_default()
    }

    /// A number of threads, if the map sets it: the default depends on more than this map.
    fn threads(&self, key: &str) -> Option<u32> {
        self.0.get(key).and_then(|value| value.trim().parse().ok())
    }

    pub(crate) fn execution(&self) -> ExecutionOptions {
        let memory_planner = self.memory_planner();
        ExecutionOptions {
            intra_op_threads: self.threads("intra_op_thread_count"),
            inter_op_threads: self.threads("inter_op_thread_count"),
            execution_mode: match self.get("execution_mode") {
                "1" => ExecutionMode::Parallel,
                _ => ExecutionMode::Sequential,
            },
            graph_optimization: GraphOptimization::All,
            memory_planner,
            allocator: (memory_planner == MemoryPlanner::Allocator)
                .then(|| self.get(ALLOCATOR).to_owned()),
            memory_arena: memory_planner == MemoryPlanner::Runtime && self.bool("enable_mem_arena"),
            memory_pattern: match memory_planner {
                MemoryPlanner::Planned | MemoryPlanner::Allocator => false,
                MemoryPlanner::Malloc => self.0.contains_key(PATTERN) && self.bool(PATTERN),
                MemoryPlanner::Runtime => self.bool(PATTERN),
            },
            arena_shrinkage: self
                .get("memory.enable_memory_arena_shrinkage")
                .split(';')
                .any(|d| d.trim() == "cpu:0"),
            device_allocator_for_initializers: self
                .bool("session.use_device_allocator_for_initializers"),
            spinning: self.bool("thread_spinning"),
        }
    }

    /// The planner that the map names, unless it names an allocator. Without either, keys about the runtime's arena choose the runtime. Operators that
    /// run in parallel always do, because their allocations have no order.
    pub(crate) fn memory_planner(&self) -> MemoryPlanner {
        if self.get("execution_mode") == "1" {
            return MemoryPlanner::Runtime;
        }
        if !self.get(ALLOCATOR).is_empty() {
            return MemoryPlanner::Allocator;
        }
        match self.0.get("memory_planner").map(|value| value.trim()) {
            Some("malloc") => MemoryPlanner::Malloc,
            Some("runtime") => MemoryPlanner::Runtime,
            None if RUNTIME_MEMORY.iter().any(|key| self.0.contains_key(*key)) => {
                MemoryPlanner::Runtime
            }
            _ => MemoryPlanner::Planned,
        }
    }

    pub(crate) fn isolation(&self) -> Isolation {
        isolation(self.get("isolation"))
    }

    pub(crate) fn run_limits(&self) -> RunLimits {
        RunLimits {
            time: Duration::from_millis(self.integer("max_execution_ms")),
            memory_bytes: bytes(self.get("max_run_memory")),
        }
    }

    pub(crate) fn mock(&self) -> MockOptions {
        MockOptions {
            latency: Duration::from_micros(self.integer("mock.latency_us")),
            latency_per_item: Duration::from_micros(self.integer("mock.latency_us_per_item")),
            output: match self.get("mock.output") {
                "echo" => MockOutput::Echo,
                "ramp" => MockOutput::Ramp,
                _ => MockOutput::Zero,
            },
            fail_every: self.integer("mock.fail_every"),
            panic_every: self.integer("mock.panic_every"),
            overlap_percent: u32::try_from(self.integer("mock.overlap_percent"))
                .unwrap_or(u32::MAX),
            cpu_threads: self.threads("mock.cpu_threads").unwrap_or_default(),
            echo_parameters: self.bool("mock.echo_parameters"),
            load_latency: Duration::from_micros(self.integer("mock.load_latency_us")),
            load_error: Some(self.get("mock.load_error").to_owned())
                .filter(|text| !text.is_empty()),
        }
    }
}
