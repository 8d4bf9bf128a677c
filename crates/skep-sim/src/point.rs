//! A point of a comparison: one model, objective, pattern of arrivals and load; several policies, on the same traces.

use std::time::Duration;

use skep_scheduler::{BatchEnd, SchedulerOptions};
use skep_types::Time;

use crate::{
    Arrivals, Contender, OwnPolicy, RandomPurpose, RandomStream, Setup, SimulatedModel,
    StaticSetting, TraceOutcome, Workload, bound, simulate, simulation::simulate_named,
};

/// Where policies are compared.
#[derive(Debug, Clone)]
pub struct OperatingPoint<'a> {
    /// The model.
    pub model: &'a SimulatedModel,
    /// What an answer must not take longer than.
    pub objective: Duration,
    /// How requests arrive.
    pub arrivals: &'a Arrivals,
    /// Requests a second.
    pub rate: f64,
    /// How many requests a trace has.
    pub requests: usize,
    /// How many of them come before the first that counts.
    pub warm_up: usize,
    /// The seed of each trace; at least one.
    pub seeds: &'a [u64],
}

/// What several traces gave for one figure.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spread {
    /// The median, which for an even number is the mean of the middle two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

/// What a policy does at a point, over the seeds. A bound has a goodput alone.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyFigures {
    /// Whose they are.
    pub contender: Contender,
    /// Requests a second.
    pub offered: Spread,
    /// Answers within the objective a second.
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
    /// The setting that was found, where one was looked for.
    pub setting: Option<String>,
}

/// The part of a trace on which the grid of static settings is thinned out, and how many settings survive that.
const TRIAL_REQUESTS: usize = 3000;
const SURVIVORS: usize = 5;

/// What a contender did on one trace.
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
    /// Without a seed; for a static setting that does not [fit](Static::fits) the model; where a policy does not keep
    /// its word.
    #[must_use]
    pub fn compare(&self, contenders: &[Contender]) -> Vec<PolicyFigures> {
        let traces: Vec<Vec<Time>> = self.seeds.iter().map(|seed| self.trace(*seed)).collect();
        let figures = |contender: &Contender| match contender {
            Contender::Bound => {
                let runs = self.runs(&traces, |_, trace| self.bound(trace));
                Self::figures(contender, &runs, None)
            }
            Contender::StaticBest | Contender::StaticTimeout => self.best(contender, &traces),
            Contender::Own(policy) => {
                let runs = self.runs(&traces, |seed, trace| self.own(policy, seed, trace));
                Self::figures(contender, &runs, None)
            }
            _ => {
                let options = contender.scheduler(self.model, self.objective);
                let options = options.expect("all others have a scheduler");
                let runs = self.runs(&traces, |seed, trace| {
                    self.simulate(options.clone(), seed, trace)
                });
                Self::figures(contender, &runs, None)
            }
        };
        contenders.iter().map(figures).collect()
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
        // Where nothing is in time any more, what is least late.
        tried.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let survives = |(rank, setting): (usize, &StaticSetting)| {
            rank < SURVIVORS || setting.is_default(self.model)
        };
        let settings = tried.iter().map(|(_, _, setting)| setting).enumerate();
        let survivors = settings.filter(|tried| survives(*tried));
        let figures = survivors.map(|(_, setting)| {
            let runs = self.runs(traces, |seed, trace| {
                self.simulate(setting.scheduler(self.model), seed, trace)
            });
            Self::figures(contender, &runs, Some(setting.to_string()))
        });
        // By the share that is shown, since traces differ in what they offer: the median of the shares need not belong
        // to the trace of the median goodput. Then by goodput; of equals the one that did better in the trial.
        let rank = |figures: &PolicyFigures| (figures.in_time.median, figures.goodput.median);
        let best = figures.reduce(|best, other| {
            if rank(&other) > rank(&best) {
                other
            } else {
                best
            }
        });
        best.expect("Triton's default is in the grid")
    }

    fn figures(contender: &Contender, runs: &[TraceRun], setting: Option<String>) -> PolicyFigures {
        let ms = |share: f64| {
            spread_of(runs, |o| {
                o.quantile(share).map(|latency| latency.as_secs_f64() * 1e3)
            })
        };
        let share = |count: fn(&TraceOutcome) -> usize| {
            spread_of(runs, |o| Some(count(o) as f64 / o.sent.max(1) as f64))
        };
        let of = |figure: fn(&TraceRun) -> f64| {
            let figures = runs.iter().map(figure).collect();
            spread(figures).unwrap_or_default()
        };
        PolicyFigures {
            contender: contender.clone(),
            offered: of(|run| run.offered),
            goodput: of(|run| run.goodput),
            in_time: of(|run| run.goodput / run.offered.max(1e-9)),
            p50_ms: ms(0.5),
            p95_ms: ms(0.95),
            p99_ms: ms(0.99),
            rejected: share(|o| o.rejected),
            late: share(|o| o.late),
            mean_batch: spread_of(runs, TraceOutcome::mean_batch),
            ends: ends(runs),
            setting,
        }
    }
}

fn ends(runs: &[TraceRun]) -> Vec<(BatchEnd, f64)> {
    let outcomes = || runs.iter().filter_map(|run| run.outcome.as_ref());
    let all: usize = outcomes().map(TraceOutcome::executions).sum();
    let of = |end| {
        outcomes()
            .flat_map(TraceOutcome::batches)
            .filter(move |(other, _)| *other == end)
    };
    let share = |end| of(end).map(|(_, count)| count).sum::<usize>() as f64 / all.max(1) as f64;
    let ends = BatchEnd::ALL.into_iter().map(|end| (end, share(end)));
    ends.filter(|(_, share)| *share > 0.0).collect()
}

fn spread_of(runs: &[TraceRun], value: impl Fn(&TraceOutcome) -> Option<f64>) -> Option<Spread> {
    let outcomes = runs.iter().filter_map(|run| run.outcome.as_ref());
    spread(outcomes.filter_map(value).collect())
}

/// None of no values.
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
