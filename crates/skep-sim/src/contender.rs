//! What is compared: the table of policies by name.

use std::{fmt, str::FromStr, time::Duration};

use skep_scheduler::{Policy, QueuePolicy, SchedulerOptions, TritonPolicy};
use thiserror::Error;

/// Something that is compared at a [`Point`](crate::Point).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Contender {
    /// Requests run one by one.
    None,
    /// Triton's dynamic batcher with its default settings.
    TritonDefault,
    /// The best of a grid of static settings of Triton's dynamic batcher, found for each point.
    StaticBest,
    /// What no policy can exceed: [`bound`](crate::bound).
    Bound,
}

/// A name that no contender has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no policy is called `{0}`")]
pub struct UnknownContender(String);

impl Contender {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [
        Self::None,
        Self::TritonDefault,
        Self::StaticBest,
        Self::Bound,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::TritonDefault => "triton_default",
            Self::StaticBest => "static_best",
            Self::Bound => "bound",
        }
    }

    /// What its scheduler is made with, where it has one that is the same everywhere.
    pub(crate) fn policy(self, _objective: Duration) -> Option<Policy> {
        match self {
            Self::None => Some(Policy::OneByOne),
            Self::TritonDefault => Some(Policy::Triton(TritonPolicy::default())),
            Self::StaticBest | Self::Bound => None,
        }
    }
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
    }
}

/// A static setting of Triton's dynamic batcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Static {
    pub(crate) max_batch_size: usize,
    pub(crate) delay: Duration,
}

impl Static {
    /// The grid: powers of two, the maximum and what lies halfway for batches; shares of the objective for delays.
    pub(crate) fn grid(max_batch_size: usize, objective: Duration) -> Vec<Self> {
        let powers = (0..usize::BITS).map(|power| 1usize << power);
        let mut sizes: Vec<usize> = powers
            .flat_map(|size| [size, size + size / 2])
            .take_while(|size| *size < max_batch_size)
            .collect();
        sizes.push(max_batch_size);
        sizes.dedup();
        let delays = [0.0, 0.05, 0.1, 0.2, 0.35, 0.5].map(|share| objective.mul_f64(share));
        let mut grid = Vec::with_capacity(sizes.len() * delays.len());
        for max_batch_size in sizes {
            // One alone has nothing to wait for.
            let delays = if max_batch_size == 1 {
                &delays[..1]
            } else {
                &delays
            };
            grid.extend(delays.iter().map(|&delay| Self {
                max_batch_size,
                delay,
            }));
        }
        grid
    }

    pub(crate) fn options(self) -> SchedulerOptions {
        let triton = TritonPolicy {
            max_queue_delay: self.delay,
            ..TritonPolicy::default()
        };
        options(Policy::Triton(triton), self.max_batch_size)
    }
}

impl fmt::Display for Static {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.delay.as_micros();
        write!(
            f,
            "max_batch_size {}, max_queue_delay {micros} us",
            self.max_batch_size
        )
    }
}
