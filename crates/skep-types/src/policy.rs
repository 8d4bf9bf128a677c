//! Policies of queues and batches: a configuration names them, a scheduler carries them out.

use std::time::Duration;

/// What the queue of a priority level does with requests that are too many or wait too long.
///
/// Source: `ModelQueuePolicy` in Triton's `model_config.proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueuePolicy {
    /// How many requests may wait in this level, at least 1; `None` for no limit of its own.
    pub max_queue_size: Option<usize>,
    /// How long a request may wait; `None` for no limit.
    pub timeout: Option<Duration>,
    /// Whether a request's own time-out counts where it is below `timeout`. Without a `timeout` it has no effect.
    pub allow_timeout_override: bool,
    /// What happens to a request that has waited too long.
    pub timeout_action: TimeoutAction,
}

/// What happens to a request that has waited too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeoutAction {
    /// It is answered with an error.
    #[default]
    Reject,
    /// It keeps waiting, after all others of its level.
    Delay,
}

/// How batches are formed under a latency objective. `docs/batching.md` describes the rules under these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ObjectivePolicy {
    /// A cap on the size. It grows by one with each full batch that kept the objective, and shrinks by a tenth with
    /// each that did not (Crankshaw et al., Clipper, NSDI 2017).
    Aimd,
    /// The cap is the largest size whose 99th percentile keeps the objective, by linear quantile regression over the
    /// last executions (Clipper's alternative).
    Quantile,
    /// Earliest deadline first: at once, the largest batch with which the head keeps its deadline. A head that
    /// would make several others miss theirs is dropped (early drop, after Shen et al., Nexus, SOSP 2019).
    Edf,
    /// As late as the head's deadline allows, so that batches are as large as they can be (Chen et al., Symphony,
    /// arXiv:2308.07470).
    Deferred,
    /// Whichever of these suits the load.
    #[default]
    Auto,
}

impl ObjectivePolicy {
    /// All policies.
    pub const ALL: [Self; 5] = [
        Self::Aimd,
        Self::Quantile,
        Self::Edf,
        Self::Deferred,
        Self::Auto,
    ];

    /// The name in configurations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aimd => "aimd",
            Self::Quantile => "quantile",
            Self::Edf => "edf",
            Self::Deferred => "deferred",
            Self::Auto => "auto",
        }
    }

    /// The policy called `name`; `None` for any other word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}
