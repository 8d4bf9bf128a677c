//! In-place pairs: an output that may lie where its input lies, all or nothing.
//!
//! Which pairs share their place is a decision for each of them. What is decided makes a problem without pairs
//! ([`relaxed`]): pairs of equal size that share are one buffer, and while nothing is decided the smaller one of a pair
//! counts only where it is live alone. No plan is smaller than such a problem's bound, so that a search over the
//! decisions proves bounds, and where all are made it finds the smallest plan.

mod join;
mod relaxed;

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::{
    auto::{self, BoundedPlan, Proof},
    bounds,
    budget::{Budget, JobRunner},
    offsets,
    plan::OffsetPlan,
    problem::{Buffer, Problem},
};
use relaxed::{Decision, Pairs, Relaxation};

/// Nodes for each buffer that the first turn of all searches may take; each turn after it may take eight times as many.
const FIRST_TURN: u64 = 64;
/// Of a turn's nodes, the part that one set of decisions may take.
const DECISION_SHARE: u64 = 16;
/// With more pairs than this only the problem with all of them open is searched.
const MAX_PAIRS: usize = 256;
/// Sets of decisions that one turn looks at: each takes as many bytes as there are pairs.
const MAX_SETS: usize = 1 << 16;

/// Plans a problem with in-place pairs.
pub(crate) fn plan(problem: &Problem, budget: &Budget<'_>, workers: &dyn JobRunner) -> BoundedPlan {
    let pairs = Pairs::of(problem);
    let buffers = problem.buffers().iter();
    let apart = Problem::new(
        buffers
            .map(|buffer| Buffer {
                in_place: None,
                ..*buffer
            })
            .collect(),
    );
    if let Ok(apart) = apart.as_ref()
        && pairs.is_empty()
    {
        return auto::plan(apart, budget, workers);
    }
    // Two fixed buffers in one place are a contradiction without their permission to share it.
    let apart = apart.as_ref().unwrap_or(problem);
    let mut search = PairSearch {
        problem,
        pairs,
        workers,
        best: offsets::in_time(problem),
        lower_bound: bounds::max_load(problem),
        nodes: 0,
    };
    let load = search.lower_bound;
    let joined = join::join(problem);
    let mut turn = FIRST_TURN.saturating_mul(problem.len() as u64);
    loop {
        let left = budget.nodes.saturating_sub(search.nodes);
        let limited = Budget {
            nodes: turn.min(left / 3),
            ..*budget
        };
        if let Some(joined) = &joined
            && !search.is_done()
        {
            let first = auto::plan(&joined.problem, &limited, workers);
            search.nodes += first.nodes;
            search.adopt(joined.expand(problem, &first.plan));
        }
        if !search.is_done() {
            let second = auto::plan(apart, &limited, workers);
            search.nodes += second.nodes;
            search.adopt(second.plan);
        }
        let is_finished = search.is_done() || search.decide(&limited);
        if is_finished || limited.nodes < turn || budget.is_over() {
            break;
        }
        turn = turn.saturating_mul(8);
    }
    BoundedPlan {
        plan: search.best,
        lower_bound: search.lower_bound,
        proof: if search.lower_bound > load {
            Proof::Search
        } else {
            Proof::Load
        },
        nodes: search.nodes,
    }
}

/// The search over what the pairs do.
struct PairSearch<'p> {
    problem: &'p Problem,
    pairs: Pairs,
    workers: &'p dyn JobRunner,
    best: OffsetPlan,
    lower_bound: u64,
    nodes: u64,
}

impl PairSearch<'_> {
    fn is_done(&self) -> bool {
        self.best.size <= self.lower_bound
    }

    fn adopt(&mut self, plan: OffsetPlan) {
        if plan.size < self.best.size {
            self.best = plan;
        }
    }

    /// Searches the decisions, those with the lowest bound first. Returns whether more nodes would find nothing more.
    fn decide(&mut self, budget: &Budget<'_>) -> bool {
        let last = self.nodes.saturating_add(budget.nodes);
        let mut open = BinaryHeap::from([Reverse((self.lower_bound, 0))]);
        let mut decisions = vec![vec![Decision::Open; self.pairs.len()]];
        // The lowest bound of what is decided and yet has no smallest plan.
        let mut undecided = u64::MAX;
        let mut was_stopped = false;
        while let Some(Reverse((bound, number))) = open.pop() {
            if bound >= self.best.size {
                open.clear();
                break;
            }
            if self.nodes >= last || decisions.len() > MAX_SETS || budget.is_over() {
                undecided = undecided.min(bound);
                was_stopped = true;
                break;
            }
            self.nodes += 1;
            let own = std::mem::take(&mut decisions[number]);
            let relaxed = match self.pairs.relaxed(self.problem, &own) {
                Relaxation::Impossible => continue,
                Relaxation::Problem(relaxed) => relaxed,
                Relaxation::Unknown => {
                    undecided = undecided.min(bound);
                    continue;
                }
            };
            let limited = Budget {
                nodes: (budget.nodes / DECISION_SHARE).min(last.saturating_sub(self.nodes)),
                ..*budget
            };
            let answer = auto::plan(&relaxed.problem, &limited, self.workers);
            self.nodes += answer.nodes;
            let bound = bound.max(answer.lower_bound);
            if let Some(plan) = relaxed.plan(self.problem, &answer.plan) {
                self.adopt(plan);
            }
            if bound >= self.best.size {
                continue;
            }
            let pair = self.pairs.next_open(self.problem, &own);
            let Some(pair) = pair.filter(|_| self.pairs.len() <= MAX_PAIRS) else {
                undecided = undecided.min(bound);
                was_stopped |= answer.nodes >= limited.nodes;
                continue;
            };
            for decision in [Decision::Shared, Decision::Apart] {
                let mut child = own.clone();
                child[pair] = decision;
                open.push(Reverse((bound, decisions.len())));
                decisions.push(child);
            }
        }
        let proved = self.best.size.min(undecided);
        self.lower_bound = self.lower_bound.max(proved);
        !was_stopped
    }
}
