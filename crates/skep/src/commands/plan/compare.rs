//! Every strategy on the same records, under the same budget, before the same judge.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};
use skep_planner::{
    BoundedPlan, Budget, InTurn, Plan, Proof, Strategy, Unavailable, UsageRecords, auto_with,
    validate,
};

use crate::cores::{AllCores, on_all_cores};

/// The strategy that also proves bounds.
pub(super) const AUTO: &str = "auto";

/// Plans of some records, and what is known about all plans of them.
pub(super) struct Comparison {
    pub(super) title: String,
    pub(super) records: UsageRecords,
    /// Bytes that no plan can do without.
    pub(super) lower_bound: u64,
    pub(super) proof: Proof,
    /// The smallest first; of equals `auto`, then in the order of [`Strategy::ALL`].
    pub(super) rows: Vec<StrategyRow>,
    /// Strategies that gave no plan, and why.
    pub(super) without: Vec<(&'static Strategy, Unavailable)>,
}

/// A strategy's plan, which is valid.
pub(super) struct StrategyRow {
    pub(super) strategy: &'static Strategy,
    pub(super) plan: Plan,
    pub(super) time: Took,
}

/// What planning took.
#[derive(Clone, Copy)]
pub(super) struct Took {
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
}

impl Comparison {
    /// Runs the strategies, each for as long as `budget` at most: `auto` alone on all cores, the others beside each
    /// other.
    ///
    /// # Errors
    /// A plan is invalid: an error of Skep itself.
    pub(super) fn new(
        title: String,
        records: UsageRecords,
        strategies: &[&'static Strategy],
        budget: Duration,
    ) -> anyhow::Result<Self> {
        let problem = records.problem();
        let (mut rows, mut without) = (Vec::new(), Vec::new());
        let mut others: Vec<&'static Strategy> = Vec::new();
        for strategy in strategies {
            let known = others.iter().any(|other| other.name == strategy.name);
            if strategy.name != AUTO && !known {
                others.push(strategy);
            }
        }
        let own = strategies.iter().find(|strategy| strategy.name == AUTO);
        let bounds: BoundedPlan = match own {
            Some(strategy) => {
                let (answer, time) = timed(budget, ClockId::ProcessCPUTime, |budget| {
                    auto_with(problem, budget, &AllCores::new())
                });
                let plan = Plan::Offsets(answer.plan.clone());
                rows.push(StrategyRow {
                    strategy,
                    plan,
                    time,
                });
                answer
            }
            // Its bounds cost little when it may not search.
            None => auto_with(
                problem,
                &Budget {
                    nodes: 0,
                    should_stop: &|| true,
                },
                &InTurn,
            ),
        };
        let outcomes = on_all_cores(&others, |strategy| {
            timed(budget, ClockId::ThreadCPUTime, |budget| {
                strategy.plan(problem, budget)
            })
        });
        for (strategy, (outcome, time)) in others.into_iter().zip(outcomes) {
            match outcome {
                Ok(plan) => rows.push(StrategyRow {
                    strategy,
                    plan,
                    time,
                }),
                Err(reason) => without.push((strategy, reason)),
            }
        }
        for StrategyRow { strategy, plan, .. } in &rows {
            validate(problem, plan).with_context(|| {
                format!(
                    "internal error, please report it: the plan of `{}` for {title} is invalid",
                    strategy.name
                )
            })?;
        }
        rows.sort_by_key(|row| (row.plan.size(), Reverse(row.strategy.name == AUTO)));
        let BoundedPlan {
            lower_bound, proof, ..
        } = bounds;
        Ok(Self {
            title,
            records,
            lower_bound,
            proof,
            rows,
            without,
        })
    }

    /// The smallest plan, `auto`'s if it is one of them.
    pub(super) fn best(&self) -> Option<&StrategyRow> {
        self.rows.first()
    }

    /// Why a strategy gave no plan, with the buffer's name.
    pub(super) fn why(&self, reason: Unavailable) -> String {
        match reason {
            Unavailable::Fixed { strategy, buffer } => format!(
                "buffer `{}` is fixed, which `{strategy}` does not support",
                self.records.names()[buffer]
            ),
            other => other.to_string(),
        }
    }

    /// Whether no plan is smaller.
    pub(super) fn is_optimal(&self, row: &StrategyRow) -> bool {
        row.plan.size() == self.lower_bound
    }
}

/// Runs under a budget of wall time, and tells what that took.
fn timed<T>(limit: Duration, clock: ClockId, run: impl FnOnce(&Budget<'_>) -> T) -> (T, Took) {
    let (began, cpu) = (Instant::now(), cpu_seconds(clock));
    let should_stop = || began.elapsed() > limit;
    let budget = Budget {
        nodes: u64::MAX,
        should_stop: &should_stop,
    };
    let result = run(&budget);
    let time = Took {
        seconds: began.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds(clock) - cpu,
    };
    (result, time)
}

fn cpu_seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
