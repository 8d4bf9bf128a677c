//! A point of a comparison: one model, objective, pattern of arrivals and load; several policies, on the same traces.

use std::time::Duration;

use skep_scheduler::{BatchEnd, SchedulerOptions};
use skep_types::Time;

use crate::{
    Arrivals, Contender, OwnPolicy, RandomPurpose, RandomStream, Setup, SimulatedModel,
    StaticSetting, TraceOutcome, Workload, bound, simulate, simulation::simulate_named,
};

/// The conditions under which policies are compared.
#[derive(Debug, Clone)]
pub struct OperatingPoint<'a> {
    /// The model.
    pub model: &'a SimulatedModel,
    /// The latency objective of an answer.
    pub objective: Duration,
    /// How requests arrive.
    pub arrivals: &'a Arrivals,
    /// Requests per second.
    pub rate: f64,
    /// How many requests a trace has.
    pub requests: usize,
    /// How many of them come before the first that counts.
    pub warm_up: usize,
    /// The seed of each trace; at least one.
    pub seeds: &'a [u64],
}

/// One figure over several traces.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spread {
    /// The median, which for an even number is the mean of the middle two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

/// A policy's results at a point, over the seeds. A bound has only a goodput.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyFigures {
    /// The policy.
    pub contender: Contender,
    /// Requests a second.
    pub offered: Spread,
    /// Answers within the objective per second.
    pub goodput: Spread,
    /// Answers within the objective, as a share of the requests.
    pub in_time: Spread,
    /// Latency that half of the answers do not exceed, in milliseconds.
    pub p50_ms: Option<Spread>,
    /// That 95 % do not exceed.
    pub p95_ms: Option<Spread>,
    /// That 99 % do not exceed.
    pub p99_ms: Option<Spread>,
    /// The share of requests that are refused or given up.
    pub rejected: Option<Spread>,
    /// The share of requests that are answered too late.
    pub late: Option<Spread>,
    /// Inferences an execution.
    pub mean_batch: Option<Spread>,
    /// The share of executions whose batches ended for each reason, over all seeds; reasons that did not occur are left
    /// out.
    pub ends: Vec<(BatchEnd, f64)>,
    /// The best setting, where one was searched for.
    pub setting: Option<String>,
}

/// The part of a trace on which the grid of static settings is thinned out, and how many settings survive that.
const TRIAL_REQUESTS: usize = 3000;
const SURVIVORS: usize = 5;

/// A contender's results on one trace.
struct TraceRun {
    offered: f64,
    goodput: f64,
    outcome: Option<TraceOutcome>,
}

impl TraceRun {
    fn of(outcome: TraceOutcome) -> Self {
        Self {
            offered: outcome.offered(),
            goodput: outcome.goodput(),
            outcome: Some(outcome),
        }
    }
}

impl OperatingPoint<'_> {
    /// Runs each contender on the same traces.
    ///
    /// # Panics
    ///
    /// Without a seed; for a static setting that does not [fit](StaticSetting::fits) the model; where a policy breaks its
    /// contract.
    #[must_use]
    pub fn compare(&self, contenders: &[Contender]) -> Vec<PolicyFigures> {
        let traces: Vec<Vec<Time>> = self.seeds.iter().map(|seed| self.trace(*seed)).collect();
        let contenders = contenders.iter();
        contenders
            .map(|contender| self.compare_one(contender, &traces))
            .collect()
    }

    /// Runs one contender on the traces.
    fn compare_one(&self, contender: &Contender, traces: &[Vec<Time>]) -> PolicyFigures {
        let runs = match contender {
            Contender::StaticBest | Contender::StaticTimeout => {
                return self.best(contender, traces);
            }
            Contender::Bound => self.runs(traces, |_, trace| self.bound(trace)),
            Contender::Own(policy) => {
                self.runs(traces, |seed, trace| self.own(policy, seed, trace))
            }
            _ => {
                let options = contender.scheduler(self.model, self.objective);
                let options = options.expect("all others have a scheduler");
                self.runs(traces, |seed, trace| {
                    self.simulate(options.clone(), seed, trace)
                })
            }
        };
        Self::figures(contender, &runs, None)
    }

    fn trace(&self, seed: u64) -> Vec<Time> {
        let mut random = RandomStream::new(seed, RandomPurpose::Arrivals);
        let warm_up = self.warm_up.min(self.requests - 1);
        self.arrivals
            .generate_after(warm_up, self.rate, self.requests, &mut random)
    }

    fn runs(&self, traces: &[Vec<Time>], run: impl Fn(u64, &[Time]) -> TraceRun) -> Vec<TraceRun> {
        let traces = self.seeds.iter().zip(traces);
        traces.map(|(seed, trace)| run(*seed, trace)).collect()
    }

    fn simulate(&self, scheduler: SchedulerOptions, seed: u64, trace: &[Time]) -> TraceRun {
        let setup = self.setup(scheduler, seed, trace);
        TraceRun::of(simulate(setup, Workload::Open(trace)))
    }

    fn own(&self, policy: &OwnPolicy, seed: u64, trace: &[Time]) -> TraceRun {
        let mut decides = policy.begin(self.model, self.objective);
        let setup = self.setup(&mut *decides, seed, trace);
        TraceRun::of(simulate_named(
            setup,
            Some(policy.name()),
            Workload::Open(trace),
        ))
    }

    fn setup<S>(&self, scheduler: S, seed: u64, trace: &[Time]) -> Setup<'_, S> {
        Setup {
            scheduler,
            model: self.model,
            objective: Some(self.objective),
            warm_up: self.warm_up.min(trace.len() - 1),
            seed,
        }
    }

    fn bound(&self, trace: &[Time]) -> TraceRun {
        let warm_up = self.warm_up.min(trace.len() - 1);
        let begin = warm_up
            .checked_sub(1)
            .map_or(Time::ZERO, |last| trace[last]);
        let span = trace[trace.len() - 1].since(begin).as_secs_f64().max(1e-9);
        // A policy that had nothing else to do could do no worse.
        let counted = &trace[warm_up..];
        TraceRun {
            offered: counted.len() as f64 / span,
            goodput: bound(counted, self.model, self.objective) as f64 / span,
            outcome: None,
        }
    }

    /// Tries every setting on a part of one trace, and the best of them on all.
    fn best(&self, contender: &Contender, traces: &[Vec<Time>]) -> PolicyFigures {
        let timeouts = *contender == Contender::StaticTimeout;
        let grid = StaticSetting::grid(self.model, self.objective, timeouts);
        let trial = &traces[0][..TRIAL_REQUESTS.min(traces[0].len())];
        let part = OperatingPoint {
            warm_up: self.warm_up.min(trial.len() / 10),
            ..self.clone()
        };
        let mut tried: Vec<(f64, Duration, StaticSetting)> = grid
            .into_iter()
            .map(|setting| {
                let run = part.simulate(setting.scheduler(self.model), self.seeds[0], trial);
                let median = run.outcome.and_then(|outcome| outcome.quantile(0.5));
                (run.goodput, median.unwrap_or_default(), setting)
            })
            .collect();
        // By goodput; where nothing is in time any more, by the median latency.
        tried.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let settings = tried.iter().map(|(_, _, setting)| setting).enumerate();
        let survivors =
            settings.filter(|(rank, setting)| *rank < SURVIVORS || setting.is_default(self.model));
        let figures = survivors.map(|(_, setting)| {
            let runs = self.runs(traces, |seed, trace| {
                self.simulate(setting.scheduler(self.model), seed, trace)
            });
            Self::figures(contender, &runs, Some(setting.to_string()))
        });
        // By the share that is shown: traces differ in what they offer, so the median share need not belong to the
        // trace of the median goodput. Then by goodput; of equals the one that did better in the trial.
        let best = figures.reduce(|best, other| {
            if other.medians() > best.medians() {
                other
            } else {
                best
            }
        });
        best.expect("Triton's default is in the grid")
    }

    fn figures(contender: &Contender, runs: &[TraceRun], setting: Option<String>) -> PolicyFigures {
        PolicyFigures {
            contender: contender.clone(),
            offered: spread_of_runs(runs, |run| run.offered),
            goodput: spread_of_runs(runs, |run| run.goodput),
            in_time: spread_of_runs(runs, |run| run.goodput / run.offered.max(1e-9)),
            p50_ms: quantile_ms(runs, 0.5),
            p95_ms: quantile_ms(runs, 0.95),
            p99_ms: quantile_ms(runs, 0.99),
            rejected: share_of_sent(runs, |outcome| outcome.rejected),
            late: share_of_sent(runs, |outcome| outcome.late),
            mean_batch: spread_of(runs, TraceOutcome::mean_batch),
            ends: ends(runs),
            setting,
        }
    }
}

impl PolicyFigures {
    /// What static settings are ranked by.
    fn medians(&self) -> (f64, f64) {
        (self.in_time.median, self.goodput.median)
    }
}

/// The share of executions that ended for each reason, over all runs; reasons that did not occur are left out.
fn ends(runs: &[TraceRun]) -> Vec<(BatchEnd, f64)> {
    let outcomes = runs.iter().filter_map(|run| run.outcome.as_ref());
    let ended: Vec<(BatchEnd, usize)> = outcomes.flat_map(TraceOutcome::batches).collect();
    let all: usize = ended.iter().map(|(_, count)| count).sum();
    let shares = BatchEnd::ALL.into_iter().map(|end| {
        let of_end = ended.iter().filter(|(other, _)| *other == end);
        let count: usize = of_end.map(|(_, count)| count).sum();
        (end, count as f64 / all.max(1) as f64)
    });
    shares.filter(|(_, share)| *share > 0.0).collect()
}

fn spread_of_runs(runs: &[TraceRun], figure: impl Fn(&TraceRun) -> f64) -> Spread {
    spread(runs.iter().map(figure).collect()).unwrap_or_default()
}

/// The latency that this share of the answers does not exceed.
fn quantile_ms(runs: &[TraceRun], share: f64) -> Option<Spread> {
    spread_of(runs, |outcome| {
        let latency = outcome.quantile(share)?;
        Some(latency.as_secs_f64() * 1e3)
    })
}

fn share_of_sent(runs: &[TraceRun], count: impl Fn(&TraceOutcome) -> usize) -> Option<Spread> {
    spread_of(runs, |outcome| {
        Some(count(outcome) as f64 / outcome.sent.max(1) as f64)
    })
}

fn spread_of(runs: &[TraceRun], value: impl Fn(&TraceOutcome) -> Option<f64>) -> Option<Spread> {
    let outcomes = runs.iter().filter_map(|run| run.outcome.as_ref());
    spread(outcomes.filter_map(value).collect())
}

/// `None` without values.
fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    let lower = values[middle - (1 - values.len() % 2).min(middle)];
    Some(Spread {
        median: f64::midpoint(lower, upper),
        min: values[0],
        max: values[values.len() - 1],
    })
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn medians_lie_between_the_least_and_the_most() {
        let of = |values: &[f64]| spread(values.to_vec()).map(|s| (s.median, s.min, s.max));
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(of(&[1.0]), Some((1.0, 1.0, 1.0)));
        assert_eq!(of(&[]), None);
    }
}
