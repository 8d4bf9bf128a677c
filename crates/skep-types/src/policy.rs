//! Policies of queues and batches: a configuration names them, a scheduler carries them out.

use std::{fmt, time::Duration};

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

/// A percentile of latency, from [`Percentile::MIN`] to [`Percentile::MAX`]: this share of the durations is no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percentile {
    thousandths: u32,
}

impl Percentile {
    /// The median: with less, most answers would be late by plan.
    pub const MIN: f64 = 50.0;
    /// A higher one takes more executions to learn than a scheduler remembers.
    pub const MAX: f64 = 99.9;

    /// The percentile of this number, of which three decimals count; `None` outside of the bounds.
    #[must_use]
    pub fn new(percent: f64) -> Option<Self> {
        #[expect(clippy::cast_sign_loss, reason = "within the bounds")]
        (Self::MIN..=Self::MAX).contains(&percent).then(|| Self {
            thousandths: (percent * 1e3).round() as u32,
        })
    }

    /// The share of the durations, from 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.thousandths) / 1e5
    }

    /// Which of so many ascending durations, of at least one, this percentile is, from 1: the nearest rank.
    #[must_use]
    pub fn rank(self, durations: usize) -> usize {
        let scaled = durations as u128 * u128::from(self.thousandths);
        // At most the number of durations.
        scaled.div_ceil(100_000).max(1) as usize
    }

    /// The same, from 0 to 100.
    #[must_use]
    pub fn percent(self) -> f64 {
        f64::from(self.thousandths) / 1e3
    }
}

impl Default for Percentile {
    /// The 99th.
    fn default() -> Self {
        Self {
            thousandths: 99_000,
        }
    }
}

impl fmt::Display for Percentile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.percent())
    }
}

/// How batches are formed under a latency objective. `docs/batching.md` describes the rules under these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ObjectivePolicy {
    /// A cap on the size. It grows by one with each full batch that kept the objective, and shrinks by a tenth with
    /// each that did not (Crankshaw et al., Clipper, NSDI 2017).
    Aimd,
    /// The cap is the largest size whose latency keeps the objective at its percentile, by linear quantile regression
    /// over the last executions (Clipper's alternative).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_the_median_and_what_can_be_learned() {
        let shown = |percent| Percentile::new(percent).map(|percentile| percentile.to_string());
        assert_eq!(shown(50.0).as_deref(), Some("50"));
        assert_eq!(shown(97.5).as_deref(), Some("97.5"));
        assert_eq!(shown(99.9).as_deref(), Some("99.9"));
        for outside in [f64::NAN, -1.0, 0.99, 49.999, 99.901, 100.0, f64::INFINITY] {
            assert_eq!(Percentile::new(outside), None, "{outside}");
        }
        assert_eq!(Percentile::new(99.0), Some(Percentile::default()));
        assert!((Percentile::default().share() - 0.99).abs() < 1e-12);
    }

    #[test]
    fn a_rank_is_the_nearest() {
        let median = Percentile::new(50.0).expect("valid");
        assert_eq!([1, 2, 3, 4].map(|number| median.rank(number)), [1, 1, 2, 2]);
        let default = Percentile::default();
        assert_eq!(
            [1, 99, 100, 101, 200].map(|number| default.rank(number)),
            [1, 99, 99, 100, 198]
        );
    }
}
