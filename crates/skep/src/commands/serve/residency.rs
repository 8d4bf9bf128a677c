//! Flags on which models are in memory.

use std::{num::NonZeroU64, time::Duration};

use anyhow::bail;
use clap::{Args, ValueEnum};
use skep_runtime::{EvictionPolicy, KeepAlive, LoadPolicy, ResidencySettings, residency_slack};

use crate::units::human;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LoadPolicyFlag {
    /// At the start, or when a client asks for its load
    Eager,
    /// At its first request
    Lazy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KeepAliveFlag {
    /// All of --keep-alive-secs
    Fixed,
    /// As long as 99 of 100 of the model's own pauses last, once it has had a few of ten seconds or more
    IdleHistogram,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Residency")]
pub(super) struct ResidencyArgs {
    /// When a model is loaded (Skep's own)
    #[arg(long, value_name = "WHEN", default_value = "eager")]
    load_policy: LoadPolicyFlag,
    /// Memory of all models together, in bytes; a tensor that several models share counts once. Idle models leave if
    /// another one needs their room, and requests load them again. With --load-policy=lazy the default is nine tenths of
    /// the machine's or the cgroup's memory, less --max-request-memory, the response cache and what the process has at its
    /// start; otherwise there is no budget (Skep's own)
    #[arg(long, value_name = "BYTES")]
    memory_budget: Option<NonZeroU64>,
    /// Which model leaves first: lru (the least recently used), lfu (the least used), gdsf (by uses, load time and size),
    /// idle-histogram (the least likely to be used soon), value (likelihood, load time and size) (Skep's own)
    #[arg(long, value_name = "POLICY", default_value_t = EvictionPolicy::default())]
    eviction_policy: EvictionPolicy,
    /// How long an idle model stays although nothing needs its room, in seconds; for ever by default (Skep's own)
    #[arg(long, value_name = "SECONDS")]
    keep_alive_secs: Option<NonZeroU64>,
    /// Whether an idle model stays for all of --keep-alive-secs, or, where its own pauses are usually shorter, only as long
    /// as those last (Skep's own)
    #[arg(
        long,
        value_name = "HOW",
        default_value = "fixed",
        requires = "keep_alive_secs"
    )]
    keep_alive_by: KeepAliveFlag,
    /// How long a request waits for its model to load, in milliseconds (Skep's own)
    #[arg(long, value_name = "MS", default_value = "60000")]
    max_load_wait_ms: NonZeroU64,
}

/// The part of memory that models and requests share; the rest is for what neither counts.
const TENTHS: u64 = 9;

impl ResidencyArgs {
    /// How models come into memory and leave it, where requests and cached responses may take `taken` bytes.
    ///
    /// # Errors
    /// If these leave no room for models.
    pub(super) fn settings(&self, taken: u64) -> anyhow::Result<ResidencySettings> {
        let load_policy = match self.load_policy {
            LoadPolicyFlag::Eager => LoadPolicy::Eager,
            LoadPolicyFlag::Lazy => LoadPolicy::Lazy,
        };
        let budget = match (self.memory_budget, load_policy) {
            (Some(budget), _) => Some(budget.get()),
            (None, LoadPolicy::Lazy) => Some(default_budget(taken)?),
            (None, LoadPolicy::Eager) => None,
        };
        if let Some(budget) = budget {
            tracing::info!("models may hold {} of memory", human(budget));
        }
        let longest = self
            .keep_alive_secs
            .map(|seconds| Duration::from_secs(seconds.get()));
        let keep_alive = match (longest, self.keep_alive_by) {
            (None, _) => KeepAlive::Forever,
            (Some(longest), KeepAliveFlag::Fixed) => KeepAlive::Fixed(longest),
            (Some(longest), KeepAliveFlag::IdleHistogram) => KeepAlive::IdleHistogram(longest),
        };
        Ok(ResidencySettings {
            load_policy,
            budget,
            policy: self.eviction_policy,
            keep_alive,
            max_load_wait: Duration::from_millis(self.max_load_wait_ms.get()),
        })
    }
}

fn default_budget(taken: u64) -> anyhow::Result<u64> {
    let total = skep_host::memory().total;
    let own = skep_host::private_bytes().unwrap_or(0);
    let left = (total / 10 * TENTHS).saturating_sub(taken.saturating_add(own));
    match NonZeroU64::new(left.saturating_sub(residency_slack(left))) {
        Some(budget) => Ok(budget.get()),
        None => bail!(
            "{} of memory leave no room for models beside {} for requests (--max-request-memory) and the response cache\n  `--memory-budget` sets what models may hold",
            human(total),
            human(taken)
        ),
    }
}
