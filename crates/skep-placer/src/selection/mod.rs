//! Which configurations of a model serve its rate within its objective, and how many instances of each.
//!
//! ```text
//! profile: (CPUs, concurrency, batch) -> latency, private bytes        objective, rate
//!          |                                                           |
//!          +-- configurations that keep the objective: the latency of a batch takes half of it, since the batch has
//!          |   to form; a single request may take all of it
//!          +-- instances that reach the rate for the least weight ----- cover.rs
//! ```
//!
//! Tetris (USENIX ATC'22, §5.2) takes the configuration with the most throughput by memory again and again. That pays for
//! weights with every instance, though instances share them, and for CPUs not at all. Here a weight is what an instance
//! adds: its private bytes, and a price for its CPUs; the model's tensors count once.

mod cover;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::cover::{Cover, Offer, decreasing, search, with_tail};

/// A measured way to run an instance of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Configuration {
    /// Cores that the instance may use.
    pub cpus: u32,
    /// Batches that it runs at the same time.
    pub concurrency: u32,
    /// Requests in a batch.
    pub batch: u32,
    /// What a batch takes if so many run at the same time, as a high quantile.
    pub latency: Duration,
    /// Bytes of the instance that it shares with nobody.
    pub private_bytes: u64,
}

impl Configuration {
    /// Requests a second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        f64::from(self.batch) * f64::from(self.concurrency) / self.latency.as_secs_f64()
    }

    /// Whether requests are answered within the objective. Half of it may go into forming a batch.
    #[must_use]
    pub fn keeps(&self, objective: Duration) -> bool {
        self.shortest_objective() <= objective
    }

    /// The shortest objective that it keeps.
    #[must_use]
    pub fn shortest_objective(&self) -> Duration {
        match self.batch {
            0 | 1 => self.latency,
            _ => self.latency.saturating_mul(2),
        }
    }

    /// Whether it is a way to run anything.
    fn is_sound(&self) -> bool {
        let counts = [self.cpus, self.concurrency, self.batch];
        counts.iter().all(|count| *count > 0) && !self.latency.is_zero()
    }
}

/// What instances are selected for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelectionTerms {
    /// The time in which a request has to be answered.
    pub objective: Duration,
    /// Requests a second.
    pub rate: f64,
    /// Bytes of the model's tensors.
    pub tensor_bytes: u64,
    /// Whether instances share those tensors.
    pub shares: bool,
    /// Bytes that a CPU is worth.
    pub bytes_per_cpu: u64,
}

/// How instances are selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SelectionRule {
    /// Tetris': the most throughput by memory, over and over. CPUs cost nothing, and an instance counts with its tensors.
    DecreasingThroughput,
    /// By what an instance adds to memory, and its CPUs; the last instances cover what is left for the least weight.
    CoveringTail,
    /// The same weights, and the least sum of them: an exact search, stopped after many steps.
    Exact,
}

/// Steps of the exact search: a tenth of a second at the most. Hardly a profile takes a thousandth of them.
const MAX_STEPS: u64 = 10_000_000;

/// Selected instances.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Configurations, by their index, each with a number of instances above 0.
    pub instances: Vec<(usize, u32)>,
    /// Requests a second of all instances.
    pub throughput: f64,
    /// Bytes of all instances; shared tensors once.
    pub bytes: u64,
    /// CPUs of all instances.
    pub cpus: u64,
    /// Bytes, with CPUs at their price.
    pub weight: f64,
    /// No selection from these configurations weighs less.
    pub weight_bound: f64,
}

/// Why nothing was selected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SelectionError {
    /// The rate is negative, infinite or not a number.
    Rate(f64),
    /// No configuration keeps the objective. The closest one, by its index, and the shortest objective that it keeps;
    /// `None` if there is no sound configuration at all.
    Objective(Option<(usize, Duration)>),
}

/// Selects instances that serve the rate within the objective.
///
/// # Errors
/// See [`SelectionError`].
pub fn select(
    configurations: &[Configuration],
    terms: &SelectionTerms,
    rule: SelectionRule,
) -> Result<Selection, SelectionError> {
    if !terms.rate.is_finite() || terms.rate < 0.0 {
        return Err(SelectionError::Rate(terms.rate));
    }
    let sound = || {
        let all = configurations.iter().enumerate();
        all.filter(|(_, configuration)| configuration.is_sound())
    };
    let kept: Vec<usize> = sound()
        .filter(|(_, configuration)| configuration.keeps(terms.objective))
        .map(|(index, _)| index)
        .collect();
    if kept.is_empty() {
        let objectives = sound().map(|(index, one)| (index, one.shortest_objective()));
        let closest = objectives.min_by_key(|(_, objective)| *objective);
        return Err(SelectionError::Objective(closest));
    }
    let chosen = || kept.iter().map(|index| &configurations[*index]);
    let marginal: Vec<Offer> = chosen().map(|one| terms.offer(one)).collect();
    let found = match rule {
        SelectionRule::DecreasingThroughput => {
            let whole: Vec<Offer> = chosen().map(|one| terms.whole_offer(one)).collect();
            let counts = decreasing(&whole, terms.rate);
            Cover::with_fractional_bound(counts, &marginal, terms.rate)
        }
        SelectionRule::CoveringTail => {
            let counts = with_tail(&marginal, terms.rate);
            Cover::with_fractional_bound(counts, &marginal, terms.rate)
        }
        SelectionRule::Exact => search(&marginal, terms.rate, MAX_STEPS),
    };
    Ok(terms.selection(configurations, &kept, &marginal, &found))
}

impl SelectionTerms {
    /// What an instance brings, and what it adds.
    fn offer(&self, configuration: &Configuration) -> Offer {
        let tensors = if self.shares { 0 } else { self.tensor_bytes };
        let bytes = configuration.private_bytes.saturating_add(tensors);
        let cpus = f64::from(configuration.cpus) * self.bytes_per_cpu as f64;
        Offer {
            throughput: configuration.throughput(),
            weight: (bytes as f64 + cpus).max(1.0),
        }
    }

    /// What an instance brings, and its memory if it shared nothing.
    fn whole_offer(&self, configuration: &Configuration) -> Offer {
        let bytes = configuration
            .private_bytes
            .saturating_add(self.tensor_bytes);
        Offer {
            throughput: configuration.throughput(),
            weight: (bytes as f64).max(1.0),
        }
    }

    fn selection(
        &self,
        configurations: &[Configuration],
        kept: &[usize],
        offers: &[Offer],
        found: &Cover,
    ) -> Selection {
        let instances: Vec<(usize, u32)> = kept
            .iter()
            .zip(&found.counts)
            .filter(|(_, count)| **count > 0)
            .map(|(index, count)| (*index, *count))
            .collect();
        let sum = |of: &dyn Fn(&Configuration) -> u64| {
            let parts = instances.iter();
            parts.fold(0_u64, |sum, (index, count)| {
                let part = of(&configurations[*index]).saturating_mul(u64::from(*count));
                sum.saturating_add(part)
            })
        };
        let all = instances
            .iter()
            .fold(0_u64, |sum, (_, count)| sum + u64::from(*count));
        let copies = if self.shares { all.min(1) } else { all };
        let tensors = self.tensor_bytes.saturating_mul(copies);
        let once = if self.shares { tensors as f64 } else { 0.0 };
        let throughputs = instances
            .iter()
            .map(|(index, count)| configurations[*index].throughput() * f64::from(*count));
        Selection {
            throughput: throughputs.sum(),
            bytes: sum(&|one| one.private_bytes).saturating_add(tensors),
            cpus: sum(&|one| u64::from(one.cpus)),
            weight: once + cover::weight(offers, &found.counts),
            weight_bound: once + found.bound,
            instances,
        }
    }
}
