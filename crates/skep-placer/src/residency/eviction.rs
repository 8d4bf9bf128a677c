//! Which model leaves first.

use std::{fmt, str::FromStr, time::Duration};

use skep_types::Time;

use crate::{keep_alive::IdleHistogram, residency::usage::UsePattern};

/// The order in which idle models leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EvictionPolicy {
    /// The least recently used one first, whatever its size. ModelMesh's rule.
    Lru,
    /// The least used one first; uses of ten minutes ago count half.
    Lfu,
    /// Greedy-Dual-Size-Frequency: uses times the time of a load, over bytes, with inflation, so that old merits fade.
    ///
    /// Source: Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy", HP Labs
    /// 1998.
    Gdsf,
    /// The one that is least likely to be used soon, by the histogram of its idle times, whatever its size.
    ///
    /// Source: Shahrad and others, "Serverless in the Wild", ATC 2020, whose histograms decide how long to keep a
    /// function; here they decide who leaves.
    IdleHistogram,
    /// The one first whose room saves the least: the time of its load, times the chance that it is used before models
    /// of its age usually leave, over the bytes that it alone holds.
    #[default]
    Value,
}

/// A name that is no policy's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownEvictionPolicy(String);

impl fmt::Display for UnknownEvictionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = EvictionPolicy::ALL
            .iter()
            .map(|policy| policy.name())
            .collect();
        write!(
            f,
            "unknown eviction policy `{}`, expected one of {}",
            self.0,
            names.join(", ")
        )
    }
}

impl std::error::Error for UnknownEvictionPolicy {}

impl EvictionPolicy {
    /// Every policy.
    pub const ALL: [Self; 5] = [
        Self::Lru,
        Self::Lfu,
        Self::Gdsf,
        Self::IdleHistogram,
        Self::Value,
    ];

    /// Its name in flags and figures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::Gdsf => "gdsf",
            Self::IdleHistogram => "idle-histogram",
            Self::Value => "value",
        }
    }
}

impl fmt::Display for EvictionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EvictionPolicy {
    type Err = UnknownEvictionPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut policies = Self::ALL.into_iter();
        policies
            .find(|policy| policy.name() == name)
            .ok_or_else(|| UnknownEvictionPolicy(name.to_owned()))
    }
}

/// What a policy sees of a model that could leave.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) usage: &'a UsePattern,
    /// How long loading it again takes.
    pub(super) load_time: Duration,
    /// What its departure frees.
    pub(super) freed: u64,
    /// The inflation when it was last used, for [`EvictionPolicy::Gdsf`].
    pub(super) inflation: f64,
}

/// What the node as a whole tells a policy.
#[derive(Debug)]
pub(super) struct NodePattern {
    /// Idle times of all models.
    pub(super) idle: IdleHistogram,
    /// How long models had been idle when they left, on average; the later ones count more.
    pub(super) idle_at_departure: Duration,
    /// The merit of the last model that left, for [`EvictionPolicy::Gdsf`].
    pub(super) inflation: f64,
}

/// The part that the last departure has in the average age of departures.
const DEPARTURE_PART: f64 = 0.05;

/// How far ahead [`EvictionPolicy::Value`] looks before any model has left.
pub(super) const FIRST_HORIZON: Duration = Duration::from_secs(60);

impl NodePattern {
    /// Notes that a model leaves for want of room.
    pub(super) fn departs(&mut self, now: Time, usage: &UsePattern, merit: f64) {
        let idle = now.since(usage.last).as_secs_f64();
        let before = self.idle_at_departure.as_secs_f64();
        let average = before + DEPARTURE_PART * (idle - before);
        self.idle_at_departure = Duration::from_secs_f64(average);
        self.inflation = self.inflation.max(merit);
    }

    /// How far ahead a model's next use counts.
    fn horizon(&self) -> Duration {
        self.idle_at_departure.max(Duration::from_secs(1))
    }
}

impl EvictionPolicy {
    /// The merit of a model: the one with the least leaves first.
    pub(super) fn merit(self, now: Time, candidate: &Candidate<'_>, node: &NodePattern) -> f64 {
        let usage = candidate.usage;
        let bytes = candidate.freed.max(1) as f64;
        let load_seconds = candidate.load_time.as_secs_f64();
        match self {
            Self::Lru => usage.last.as_nanos() as f64,
            Self::Lfu => usage.recent(now),
            Self::Gdsf => candidate.inflation + usage.uses.max(1) as f64 * load_seconds / bytes,
            Self::IdleHistogram => usage.probable_within(node.horizon(), now, &node.idle),
            Self::Value => {
                // The histogram alone forgets how popular a model is that comes in bursts, the rate alone that it comes
                // at intervals. Over the recorded traces their geometric mean beats either, and every mean by weight.
                let by_idle = usage.probable_within(node.horizon(), now, &node.idle);
                let by_rate = usage.probable_by_rate(node.horizon(), now);
                (by_idle * by_rate).sqrt() * load_seconds / bytes
            }
        }
    }
}
