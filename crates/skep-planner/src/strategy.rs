//! The table of all strategies, by stable names.

use crate::{
    auto,
    baselines::{self, tvm},
    budget::Budget,
    objects,
    offsets::{self, PlacementOrder},
    plan::{ObjectPlan, Plan},
    problem::Problem,
};

/// A way to plan, by its name.
#[derive(Clone, Copy, Debug)]
pub struct Strategy {
    /// Stable: command lines and reports use it. The part before the dot is the kind of plan or the origin.
    pub name: &'static str,
    /// In a few words.
    pub summary: &'static str,
    method: Method,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Objects(Objects),
    Converted(Objects),
    BestFit(PlacementOrder),
    InTime,
    Tvm(tvm::Algorithm),
    Somas,
    ExecuTorch,
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Objects {
    Naive,
    Equality,
    InOrder,
    Breadth,
    Size,
    Best,
    MinCostFlow,
    Coloring,
}

/// Why a strategy gives no plan for a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// It cannot leave a buffer at a fixed offset.
    #[error("buffer {buffer} is fixed, which `{strategy}` does not support")]
    Fixed {
        /// The strategy's name.
        strategy: &'static str,
        /// The first fixed buffer.
        buffer: usize,
    },
    /// It would need too much memory.
    #[error("`{strategy}` would list {pairs} pairs of buffers, expected at most {limit}")]
    TooLarge {
        /// The strategy's name.
        strategy: &'static str,
        /// Pairs of buffers that it has to list.
        pairs: u64,
        /// How many it may.
        limit: u64,
    },
    /// The caller stopped it before it had a plan.
    #[error("`{strategy}` was stopped before it had a plan")]
    Stopped {
        /// The strategy's name.
        strategy: &'static str,
    },
}

/// Strategies that list pairs take up to about 100 bytes each: half a gigabyte.
const MAX_PAIRS: u64 = 5_000_000;

const fn strategy(name: &'static str, summary: &'static str, method: Method) -> Strategy {
    Strategy {
        name,
        summary,
        method,
    }
}

impl Strategy {
    /// Every strategy.
    pub const ALL: &'static [Self] = &[
        strategy(
            "objects.naive",
            "one object for each tensor",
            Method::Objects(Objects::Naive),
        ),
        strategy(
            "objects.equality",
            "objects of equal size",
            Method::Objects(Objects::Equality),
        ),
        strategy(
            "objects.greedy_in_order",
            "the free object of the nearest size, in the order of time",
            Method::Objects(Objects::InOrder),
        ),
        strategy(
            "objects.greedy_by_breadth",
            "tasks with the most live bytes first",
            Method::Objects(Objects::Breadth),
        ),
        strategy(
            "objects.greedy_by_size",
            "size classes, then distance",
            Method::Objects(Objects::Size),
        ),
        strategy(
            "objects.greedy_best",
            "the better of the previous two",
            Method::Objects(Objects::Best),
        ),
        strategy(
            "objects.min_cost_flow",
            "cheapest chains of tensors that follow each other",
            Method::Objects(Objects::MinCostFlow),
        ),
        strategy(
            "objects.coloring",
            "graph colouring",
            Method::Objects(Objects::Coloring),
        ),
        strategy(
            "offsets.naive",
            "tensors side by side, no sharing",
            Method::Converted(Objects::Naive),
        ),
        strategy(
            "offsets.equality",
            "the objects side by side",
            Method::Converted(Objects::Equality),
        ),
        strategy(
            "offsets.greedy_in_order",
            "the objects side by side",
            Method::Converted(Objects::InOrder),
        ),
        strategy(
            "offsets.greedy_by_breadth",
            "the objects side by side",
            Method::Converted(Objects::Breadth),
        ),
        strategy(
            "offsets.greedy_best",
            "the objects side by side",
            Method::Converted(Objects::Best),
        ),
        strategy(
            "offsets.min_cost_flow",
            "the objects side by side",
            Method::Converted(Objects::MinCostFlow),
        ),
        strategy(
            "offsets.coloring",
            "the objects side by side",
            Method::Converted(Objects::Coloring),
        ),
        strategy(
            "offsets.greedy_by_size",
            "best fit, largest first",
            Method::BestFit(PlacementOrder::Size),
        ),
        strategy(
            "offsets.best_fit_by_conflicts",
            "best fit, most conflicts first",
            Method::BestFit(PlacementOrder::ConflictsSize),
        ),
        strategy(
            "offsets.best_fit_by_load",
            "best fit, fullest moments first",
            Method::BestFit(PlacementOrder::LoadWidth),
        ),
        strategy(
            "xla.spatial",
            "best fit by size, then live range",
            Method::BestFit(PlacementOrder::SizeWidth),
        ),
        strategy(
            "xla.temporal",
            "best fit by live range, then size",
            Method::BestFit(PlacementOrder::WidthSize),
        ),
        strategy(
            "xla.spatial_temporal",
            "best fit by size times live range",
            Method::BestFit(PlacementOrder::Area),
        ),
        strategy(
            "xla.phases",
            "best fit by start, then size",
            Method::BestFit(PlacementOrder::StartSize),
        ),
        strategy(
            "tvm.greedy_by_size",
            "on top of conflicting buffers, largest first",
            Method::Tvm(tvm::Algorithm::GreedyBySize),
        ),
        strategy(
            "tvm.greedy_by_conflicts",
            "on top of conflicting buffers, most conflicts first",
            Method::Tvm(tvm::Algorithm::GreedyByConflicts),
        ),
        strategy(
            "tvm.hill_climb",
            "first fit, improved by 500 exchanges",
            Method::Tvm(tvm::Algorithm::HillClimb),
        ),
        strategy(
            "onnxruntime.memory_pattern",
            "best fit in the order of time",
            Method::InTime,
        ),
        strategy("somas.best_fit", "best fit in slabs", Method::Somas),
        strategy("executorch.greedy", "stacks in objects", Method::ExecuTorch),
        strategy("auto", "heuristics, then search with proof", Method::Auto),
    ];

    /// Whether it plans offsets in a way that [`crate::auto`] does not use.
    pub(crate) const fn is_new_to_auto(&self) -> bool {
        use Method::{Converted, ExecuTorch, Somas, Tvm};
        matches!(self.method, Converted(_) | ExecuTorch | Somas | Tvm(_))
    }

    /// The strategy of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|strategy| strategy.name == name)
    }

    /// Plans. For `auto` this drops the proof, which [`crate::auto`] returns.
    ///
    /// # Errors
    /// The problem has what the strategy does not support, or the budget ended first. `auto` always has a plan.
    pub fn plan(&self, problem: &Problem, budget: &Budget<'_>) -> Result<Plan, Unavailable> {
        let places_fixed = matches!(self.method, Method::BestFit(_) | Method::Auto);
        let fixed = problem
            .buffers()
            .iter()
            .position(|buffer| buffer.fixed.is_some());
        if let Some(buffer) = fixed.filter(|_| !places_fixed) {
            return Err(Unavailable::Fixed {
                strategy: self.name,
                buffer,
            });
        }
        let pairs = self.pairs(problem);
        if pairs > MAX_PAIRS {
            return Err(Unavailable::TooLarge {
                strategy: self.name,
                pairs,
                limit: MAX_PAIRS,
            });
        }
        let plan = match self.method {
            Method::Objects(objects) => objects.plan(problem, budget).map(Plan::Objects),
            Method::Converted(objects) => {
                let plan = objects.plan(problem, budget);
                plan.map(|plan| Plan::Offsets(plan.to_offsets(problem)))
            }
            Method::BestFit(order) => {
                let plan = offsets::best_fit(problem, order.of(problem), budget);
                plan.map(Plan::Offsets)
            }
            Method::InTime => Some(Plan::Offsets(offsets::in_time(problem))),
            Method::Tvm(algorithm) => {
                tvm::plan_problem(algorithm, problem, budget).map(Plan::Offsets)
            }
            Method::Somas => baselines::somas_best_fit(problem, budget).map(Plan::Offsets),
            Method::ExecuTorch => baselines::executorch_greedy(problem, budget).map(Plan::Offsets),
            Method::Auto => Some(Plan::Offsets(auto(problem, budget).plan)),
        };
        plan.ok_or(Unavailable::Stopped {
            strategy: self.name,
        })
    }

    /// Pairs of buffers that the strategy lists.
    fn pairs(&self, problem: &Problem) -> u64 {
        let count = problem.len() as u64;
        match self.method {
            Method::Objects(Objects::MinCostFlow) | Method::Converted(Objects::MinCostFlow) => {
                let all = count * count.saturating_sub(1) / 2;
                all - meetings(problem)
            }
            Method::Tvm(_) => meetings(problem),
            _ => 0,
        }
    }
}

/// Pairs of buffers that are live together.
fn meetings(problem: &Problem) -> u64 {
    offsets::conflicts(problem)
        .iter()
        .map(|count| *count as u64)
        .sum::<u64>()
        / 2
}

impl Objects {
    fn plan(self, problem: &Problem, budget: &Budget<'_>) -> Option<ObjectPlan> {
        match self {
            Self::Naive => Some(objects::naive(problem)),
            Self::Equality => Some(objects::equality(problem)),
            Self::InOrder => Some(objects::greedy_in_order(problem)),
            Self::Breadth => objects::greedy_by_breadth(problem, budget),
            Self::Size => objects::greedy_by_size(problem, budget),
            Self::Best => objects::greedy_best(problem, budget),
            Self::MinCostFlow => objects::min_cost_flow(problem, budget),
            Self::Coloring => baselines::coloring(problem, budget),
        }
    }
}
