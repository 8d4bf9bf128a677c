//! The policies that are compared, by name.

use std::{fmt, str::FromStr, time::Duration};

use skep_scheduler::{
    Objective, ObjectivePolicy, Percentile, Policy, QueuePolicy, SchedulerOptions, TimeoutAction,
    TritonPolicy,
};
use thiserror::Error;

use crate::{InvalidSetting, OwnPolicy, SimulatedModel, StaticSetting, setting::TRITON};

/// Something that is compared at an [`OperatingPoint`](crate::OperatingPoint).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contender {
    /// Requests run one by one.
    None,
    /// Triton's dynamic batcher with its default settings.
    TritonDefault,
    /// The best of a grid of static settings of Triton's dynamic batcher, found for each point: the largest batch and
    /// the delay.
    StaticBest,
    /// The same, but Triton's queue policy may also reject requests that have waited so long that an execution of the
    /// largest batch, or of one request, would be late.
    StaticTimeout,
    /// Triton's dynamic batcher with these settings.
    Triton(StaticSetting),
    /// A policy that knows the objective, with executions of powers of two measured beforehand, as a warm-up does.
    Objective(ObjectivePolicy),
    /// What no policy can exceed: [`bound`](crate::bound).
    Bound,
    /// A policy that is not the scheduler's.
    Own(OwnPolicy),
}

/// A text that names no contender.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnknownContender {
    /// No policy has this name.
    #[error("no policy is called `{0}`")]
    Name(String),
    /// Triton's dynamic batcher with invalid settings.
    #[error(transparent)]
    Triton(#[from] InvalidSetting),
}

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
    pub fn name(&self) -> &str {
        match self {
            Self::None => "none",
            Self::TritonDefault => "triton_default",
            Self::StaticBest => "static_best",
            Self::StaticTimeout => "static_timeout",
            Self::Triton(setting) => setting.name(),
            Self::Objective(policy) => policy.name(),
            Self::Bound => "bound",
            Self::Own(policy) => policy.name(),
        }
    }

    /// Its scheduler's options, where there is one set of them.
    pub(crate) fn scheduler(
        &self,
        model: &SimulatedModel,
        objective: Duration,
    ) -> Option<SchedulerOptions> {
        let policy = match self {
            Self::Triton(setting) => return Some(setting.scheduler(model)),
            Self::None => Policy::OneByOne,
            Self::TritonDefault => Policy::Triton(TritonPolicy::default()),
            Self::Objective(policy) => Policy::Objective(Objective {
                latency: objective,
                policy: *policy,
                miss_action: TimeoutAction::Reject,
                // An answer arrives when its execution is finished.
                percentile: Percentile::default(),
                margin: Duration::ZERO,
                profile: profile(model),
            }),
            Self::StaticBest | Self::StaticTimeout | Self::Bound | Self::Own(_) => return None,
        };
        Some(options(policy, model.table.max()))
    }
}

/// The measurements of a warm-up.
fn profile(model: &SimulatedModel) -> Vec<(usize, Duration)> {
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
        if name.starts_with(TRITON) {
            return Ok(Self::Triton(name.parse()?));
        }
        let found = Self::ALL.into_iter().find(|known| known.name() == name);
        found.ok_or_else(|| UnknownContender::Name(name.to_owned()))
    }
}

/// Scheduler options of a policy whose queue has no bound.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood() {
        for contender in Contender::ALL {
            assert_eq!(contender.name().parse(), Ok(contender.clone()));
        }
        let known = Contender::ALL.map(|known| known.name().to_owned());
        let all = ObjectivePolicy::ALL.map(ObjectivePolicy::name);
        assert!(
            all.iter()
                .all(|name| known.iter().any(|known| known == name))
        );
        assert!("fifo".parse::<Contender>().is_err());
    }
}
