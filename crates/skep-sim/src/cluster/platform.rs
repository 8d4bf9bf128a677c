//! What platforms differ in.

use std::{fmt, str::FromStr, time::Duration};

/// A platform that runs models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Platform {
    /// Batches, and one thread an instance (Yang and others, ASPLOS'22).
    Infless,
    /// Requests that run at the same time in one process, without batches (Dukic and others, SoCC'20).
    Photons,
    /// Both; tensors are not shared (Li and others, ATC'22, without its tensor sharing).
    TetrisRo,
    /// Both, and instances of a node share tensors (Li and others, ATC'22).
    Tetris,
    /// Many models in one process a node; the least recently used one leaves for another. Sizes are guessed from files.
    ModelMesh,
    /// Skep: one process a node, and a store of tensors.
    Skep,
    /// Skep with a process for each instance, as its option for isolation has it: what the store alone saves.
    SkepIsolated,
}

/// A name that is no platform's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPlatform(String);

impl fmt::Display for UnknownPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Platform::ALL.map(Platform::name).join(", ");
        write!(f, "unknown platform `{}`, expected one of {names}", self.0)
    }
}

impl std::error::Error for UnknownPlatform {}

impl FromStr for Platform {
    type Err = UnknownPlatform;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|platform| platform.name() == name);
        found.ok_or_else(|| UnknownPlatform(name.to_owned()))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which configurations of a model are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// The most throughput by memory (Tetris' selection).
    ByMemory,
    /// The same, of those with the fewest CPUs that keep the objective: an instance has one thread.
    FewestCpus,
    /// The most runs at once that keep the objective, on the most CPUs.
    MostConcurrent,
    /// The least memory that instances add, with a price for CPUs, and a tail that covers what is left.
    Covering,
}

/// How batches form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Batching {
    /// A batch leaves when it is full, or when half of the objective has passed.
    Timer,
    /// By deadlines; what cannot be in time any more runs after what can.
    Deadlines,
}

/// Where instances go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Where their tensors are.
    Theta,
    /// Where most cores are free.
    LeastLoaded,
    /// Anywhere that has room.
    Random,
}

/// A name that is no way of placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPlacement(String);

impl fmt::Display for UnknownPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Placement::ALL.map(Placement::name).join(", ");
        write!(f, "unknown placement `{}`, expected one of {names}", self.0)
    }
}

impl std::error::Error for UnknownPlacement {}

impl FromStr for Placement {
    type Err = UnknownPlacement;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|placement| placement.name() == name);
        found.ok_or_else(|| UnknownPlacement(name.to_owned()))
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Placement {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Theta, Self::LeastLoaded, Self::Random];

    /// Its name in flags and figures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Theta => "theta",
            Self::LeastLoaded => "least-loaded",
            Self::Random => "random",
        }
    }
}

/// What a platform does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PlatformRules {
    /// Whether batches hold several requests.
    pub(super) batches: bool,
    /// Whether an instance runs several batches at the same time.
    pub(super) concurrent: bool,
    /// Whether instances of a node share tensors.
    pub(super) shares: bool,
    /// Whether all instances of a node are in one process.
    pub(super) one_process: bool,
    pub(super) choice: Choice,
    pub(super) batching: Batching,
    pub(super) placement: Placement,
    /// Whether a model's size is guessed from its file.
    pub(super) guesses_sizes: bool,
    /// Whether a model stays until another one needs its room.
    pub(super) stays: bool,
    /// Whether the window of unneeded instances follows the pauses of their model.
    pub(super) keeps_by_pauses: bool,
    /// How often the number of instances is decided.
    pub(super) tick: Duration,
    /// The throughput that is kept, by the rate: the less, the sooner more of it is there.
    pub(super) headroom: f64,
    /// Whether requests that wait count as load.
    pub(super) counts_backlog: bool,
}

const SECOND: Duration = Duration::from_secs(1);

const BASE: PlatformRules = PlatformRules {
    batches: true,
    concurrent: true,
    shares: false,
    one_process: false,
    choice: Choice::ByMemory,
    batching: Batching::Timer,
    placement: Placement::LeastLoaded,
    guesses_sizes: false,
    stays: false,
    keeps_by_pauses: false,
    tick: SECOND,
    headroom: 1.25,
    counts_backlog: false,
};

const SKEP: PlatformRules = PlatformRules {
    shares: true,
    one_process: true,
    choice: Choice::Covering,
    batching: Batching::Deadlines,
    placement: Placement::Theta,
    keeps_by_pauses: true,
    tick: Duration::from_millis(100),
    headroom: 1.15,
    counts_backlog: true,
    ..BASE
};

impl Platform {
    /// Every platform.
    pub const ALL: [Self; 7] = [
        Self::Infless,
        Self::Photons,
        Self::TetrisRo,
        Self::Tetris,
        Self::ModelMesh,
        Self::Skep,
        Self::SkepIsolated,
    ];

    /// Its name in flags and figures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Infless => "infless",
            Self::Photons => "photons",
            Self::TetrisRo => "tetris-ro",
            Self::Tetris => "tetris",
            Self::ModelMesh => "modelmesh",
            Self::Skep => "skep",
            Self::SkepIsolated => "skep-isolated",
        }
    }

    pub(super) const fn rules(self) -> PlatformRules {
        match self {
            Self::Infless => PlatformRules {
                concurrent: false,
                choice: Choice::FewestCpus,
                keeps_by_pauses: true,
                ..BASE
            },
            Self::Photons => PlatformRules {
                batches: false,
                choice: Choice::MostConcurrent,
                ..BASE
            },
            Self::TetrisRo => BASE,
            Self::Tetris => PlatformRules {
                shares: true,
                placement: Placement::Theta,
                ..BASE
            },
            Self::ModelMesh => PlatformRules {
                batches: false,
                one_process: true,
                guesses_sizes: true,
                stays: true,
                ..BASE
            },
            Self::Skep => SKEP,
            Self::SkepIsolated => PlatformRules {
                one_process: false,
                ..SKEP
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood() {
        for platform in Platform::ALL {
            assert_eq!(platform.name().parse(), Ok(platform));
        }
        let error = "triton".parse::<Platform>().expect_err("unknown");
        assert!(error.to_string().contains("infless, photons"), "{error}");
    }
}
