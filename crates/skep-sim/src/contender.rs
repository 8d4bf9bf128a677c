//! What is compared: the table of policies by name.

use std::{fmt, str::FromStr, time::Duration};

use skep_scheduler::{
    Objective, ObjectivePolicy, Policy, QueuePolicy, SchedulerOptions, TimeoutAction, TritonPolicy,
};
use thiserror::Error;

use crate::Model;

/// Something that is compared at a [`Point`](crate::Point).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Contender {
    /// Requests run one by one.
    None,
    /// Triton's dynamic batcher with its default settings.
    TritonDefault,
    /// The best of a grid of static settings of Triton's dynamic batcher, found for each point: the largest batch and
    /// the delay.
    StaticBest,
    /// The same, where Triton's queue policy may also reject requests that have waited for so long that an execution of
    /// the largest batch, or of one request, would be late.
    StaticTimeout,
    /// A policy that knows the objective, with executions of powers of two measured beforehand, as a warm-up does.
    Objective(ObjectivePolicy),
    /// What no policy can exceed: [`bound`](crate::bound).
    Bound,
}

/// A name that no contender has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no policy is called `{0}`")]
pub struct UnknownContender(String);

impl Contender {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::TritonDefault,
        Self::StaticBest,
        Self::StaticTimeout,
        Self::Objective(ObjectivePolicy::Aimd),
        Self::Objective(ObjectivePolicy::Quantile),
        Self::Objective(ObjectivePolicy::Edf),
        Self::Objective(ObjectivePolicy::Deferred),
        Self::Objective(ObjectivePolicy::Auto),
        Self::Bound,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::TritonDefault => "triton_default",
            Self::StaticBest => "static_best",
            Self::StaticTimeout => "static_timeout",
            Self::Objective(policy) => policy.name(),
            Self::Bound => "bound",
        }
    }

    /// What its scheduler is made with, where that is one thing.
    pub(crate) fn scheduler(self, model: &Model, objective: Duration) -> Option<SchedulerOptions> {
        let policy = match self {
            Self::None => Policy::OneByOne,
            Self::TritonDefault => Policy::Triton(TritonPolicy::default()),
            Self::Objective(policy) => Policy::Objective(Objective {
                latency: objective,
                policy,
                miss_action: TimeoutAction::Reject,
                // An answer arrives when its execution is finished.
                margin: Duration::ZERO,
                profile: profile(model),
            }),
            Self::StaticBest | Self::StaticTimeout | Self::Bound => return None,
        };
        Some(options(policy, model.table.max()))
    }
}

/// What a warm-up measures.
fn profile(model: &Model) -> Vec<(usize, Duration)> {
    let sizes = (0..usize::BITS).map(|power| 1usize << power);
    sizes
        .take_while(|size| *size <= model.table.max())
        .map(|size| (size, model.table.latency(size)))
        .collect()
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Contender {
    type Err = UnknownContender;

    fn from_str(name: &str) -> Result<Self, UnknownContender> {
        let found = Self::ALL.into_iter().find(|known| known.name() == name);
        found.ok_or_else(|| UnknownContender(name.to_owned()))
    }
}

/// Scheduler options of a policy that lets as many requests wait as come.
pub(crate) fn options(policy: Policy, max_batch_size: usize) -> SchedulerOptions {
    SchedulerOptions {
        max_waiting: usize::MAX,
        max_batch_size,
        policy,
        levels: vec![QueuePolicy::default()],
        default_level: 0,
        slots: false,
        hold_until: 0,
    }
}

/// A static setting of Triton's dynamic batcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Static {
    max_batch_size: usize,
    delay: Duration,
    timeout: Option<Duration>,
}

impl Static {
    /// The grid: powers of two, what lies halfway between them, and the maximum for batches; shares of the objective
    /// for delays. Triton's default is the last batch size without a delay.
    pub(crate) fn grid(model: &Model, objective: Duration, timeouts: bool) -> Vec<Self> {
        let max = model.table.max();
        let powers = (0..usize::BITS).map(|power| 1usize << power);
        let mut sizes: Vec<usize> = powers
            .flat_map(|size| [size, size + size / 2])
            .take_while(|size| *size < max)
            .filter(|size| *size >= model.request_size)
            .collect();
        sizes.push(max);
        sizes.dedup();
        let shares: &[f64] = if timeouts {
            &[0.0, 0.1, 0.35]
        } else {
            &[0.0, 0.05, 0.1, 0.2, 0.35, 0.5]
        };
        let mut grid = Vec::new();
        for max_batch_size in sizes {
            // One alone has nothing to wait for.
            let alone = max_batch_size < 2 * model.request_size;
            let shares = if alone { &shares[..1] } else { shares };
            let mut waits = vec![None];
            if timeouts {
                let left = |size| objective.checked_sub(model.table.latency(size));
                waits.extend([left(max_batch_size), left(model.request_size)]);
                waits.retain(|wait| wait.is_none_or(|wait| !wait.is_zero()));
                waits.dedup();
            }
            for share in shares {
                grid.extend(waits.iter().map(|&timeout| Self {
                    max_batch_size,
                    delay: objective.mul_f64(*share),
                    timeout,
                }));
            }
        }
        grid
    }

    /// Whether it is what Triton does unless told.
    pub(crate) fn is_default(self, model: &Model) -> bool {
        let batches = self.max_batch_size == model.table.max() && self.delay.is_zero();
        batches && self.timeout.is_none()
    }

    pub(crate) fn scheduler(self) -> SchedulerOptions {
        let triton = TritonPolicy {
            max_queue_delay: self.delay,
            ..TritonPolicy::default()
        };
        let mut options = options(Policy::Triton(triton), self.max_batch_size);
        options.levels[0].timeout = self.timeout;
        options
    }
}

impl fmt::Display for Static {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delay = self.delay.as_micros();
        write!(
            f,
            "max_batch_size {}, max_queue_delay {delay} us",
            self.max_batch_size
        )?;
        match self.timeout {
            Some(timeout) => write!(f, ", timeout {} us", timeout.as_micros()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LatencyTable;

    #[test]
    fn every_name_is_understood() {
        for contender in Contender::ALL {
            assert_eq!(contender.name().parse(), Ok(contender));
        }
        let known = Contender::ALL.map(Contender::name);
        let all = ObjectivePolicy::ALL.map(ObjectivePolicy::name);
        assert!(all.iter().all(|name| known.contains(name)));
        assert!("fifo".parse::<Contender>().is_err());
    }

    #[test]
    fn the_grid_holds_the_default_and_fits_requests() {
        let table = LatencyTable::affine(1.0, 0.1, 24).expect("valid");
        let mut model = Model::new(table, 1);
        model.request_size = 4;
        let objective = Duration::from_millis(2);
        for timeouts in [false, true] {
            let grid = Static::grid(&model, objective, timeouts);
            let mut sizes: Vec<usize> = grid.iter().map(|s| s.max_batch_size).collect();
            sizes.dedup();
            assert_eq!(sizes, [4, 6, 8, 12, 16, 24]);
            let defaults = grid.iter().filter(|setting| setting.is_default(&model));
            assert_eq!(defaults.count(), 1);
            // A batch of 24 takes longer than the objective, so that only one time-out makes sense with it.
            let waits = |size| {
                let of_size = grid.iter().filter(move |s| s.max_batch_size == size);
                let mut waits: Vec<_> = of_size.filter_map(|s| s.timeout).collect();
                waits.sort();
                waits.dedup();
                waits
            };
            let micros = |micros: &[u64]| -> Vec<Duration> {
                let waits = micros.iter().map(|&micros| Duration::from_micros(micros));
                waits.filter(|_| timeouts).collect()
            };
            assert_eq!(waits(24), micros(&[600]));
            assert_eq!(waits(8), micros(&[200, 600]));
        }
    }
}
