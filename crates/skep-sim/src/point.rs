//! A point of a comparison: one model, objective, pattern of arrivals and load; several policies, on the same traces.

use std::time::Duration;

use skep_scheduler::{BatchEnd, SchedulerOptions};
use skep_types::Time;

use crate::{
    Arrivals, Contender, Load, Model, Outcome, Random, Setup, Stream, bound, contender::Static,
    simulate,
};

/// Where policies are compared.
#[derive(Debug, Clone)]
pub struct Point<'a> {
    /// The model.
    pub model: &'a Model,
    /// What an answer must not take longer than.
    pub objective: Duration,
    /// How requests arrive.
    pub arrivals: &'a Arrivals,
    /// Requests a second, over those of full batches on all instances.
    pub load: f64,
    /// How many requests a trace has.
    pub requests: usize,
    /// How many of them come before the first that counts.
    pub warm_up: usize,
    /// How many traces there are; seeds are 0, 1, ...
    pub seeds: u64,
}

/// What a policy does at a point: medians over the seeds. A bound has a goodput alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Whose they are.
    pub contender: Contender,
    /// Requests a second.
    pub offered: f64,
    /// Answers within the objective a second.
    pub goodput: f64,
    /// Latency that half of the answers do not exceed, in milliseconds.
    pub p50_ms: Option<f64>,
    /// That 95 % do not exceed.
    pub p95_ms: Option<f64>,
    /// That 99 % do not exceed.
    pub p99_ms: Option<f64>,
    /// The share of requests that are refused or given up.
    pub rejected: Option<f64>,
    /// The share of requests that are answered too late.
    pub late: Option<f64>,
    /// Inferences an execution.
    pub mean_batch: Option<f64>,
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
struct Run {
    offered: f64,
    goodput: f64,
    outcome: Option<Outcome>,
}

impl Point<'_> {
    /// Runs each contender on the same traces.
    #[must_use]
    pub fn compare(&self, contenders: &[Contender]) -> Vec<Figures> {
        let traces: Vec<Vec<Time>> = (0..self.seeds).map(|seed| self.trace(seed)).collect();
        let figures = |&contender: &Contender| match contender {
            Contender::Bound => {
                let runs = self.runs(&traces, |_, trace| self.bound(trace));
                self.figures(contender, &runs, None)
            }
            Contender::StaticBest | Contender::StaticTimeout => self.best(contender, &traces),
            _ => {
                let options = contender.scheduler(self.model, self.objective);
                let options = options.expect("all others have a scheduler");
                let runs = self.runs(&traces, |seed, trace| {
                    self.simulate(options.clone(), seed, trace)
                });
                self.figures(contender, &runs, None)
            }
        };
        contenders.iter().map(figures).collect()
    }

    fn trace(&self, seed: u64) -> Vec<Time> {
        let rate = self.load * self.model.capacity();
        let mut random = Random::new(seed, Stream::Arrivals);
        self.arrivals.generate(rate, self.requests, &mut random)
    }

    fn runs(&self, traces: &[Vec<Time>], run: impl Fn(u64, &[Time]) -> Run) -> Vec<Run> {
        let traces = (0..self.seeds).zip(traces);
        traces.map(|(seed, trace)| run(seed, trace)).collect()
    }

    fn simulate(&self, scheduler: SchedulerOptions, seed: u64, trace: &[Time]) -> Run {
        let setup = Setup {
            scheduler,
            model: self.model,
            objective: Some(self.objective),
            warm_up: self.warm_up.min(trace.len() - 1),
            seed,
        };
        let outcome = simulate(setup, Load::Open(trace));
        Run {
            offered: outcome.offered(),
            goodput: outcome.goodput(),
            outcome: Some(outcome),
        }
    }

    fn bound(&self, trace: &[Time]) -> Run {
        let warm_up = self.warm_up.min(trace.len() - 1);
        let begin = warm_up
            .checked_sub(1)
            .map_or(Time::ZERO, |last| trace[last]);
        let span = trace[trace.len() - 1].since(begin).as_secs_f64().max(1e-9);
        // A policy that had nothing else to do could do no worse.
        let counted = &trace[warm_up..];
        Run {
            offered: counted.len() as f64 / span,
            goodput: bound(counted, self.model, self.objective) as f64 / span,
            outcome: None,
        }
    }

    /// Tries every setting on a part of one trace, and the best of them on all.
    fn best(&self, contender: Contender, traces: &[Vec<Time>]) -> Figures {
        let timeouts = contender == Contender::StaticTimeout;
        let grid = Static::grid(self.model, self.objective, timeouts);
        let trial = &traces[0][..TRIAL_REQUESTS.min(traces[0].len())];
        let part = Point {
            warm_up: self.warm_up.min(trial.len() / 10),
            ..self.clone()
        };
        let mut tried: Vec<(f64, Duration, Static)> = grid
            .into_iter()
            .map(|setting| {
                let run = part.simulate(setting.scheduler(), 0, trial);
                let median = run.outcome.and_then(|outcome| outcome.quantile(0.5));
                (run.goodput, median.unwrap_or_default(), setting)
            })
            .collect();
        // Where nothing is in time any more, what is least late.
        tried.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let survives =
            |(rank, setting): (usize, &Static)| rank < SURVIVORS || setting.is_default(self.model);
        let settings = tried.iter().map(|(_, _, setting)| setting).enumerate();
        let survivors = settings.filter(|tried| survives(*tried));
        let figures = survivors.map(|(_, setting)| {
            let runs = self.runs(traces, |seed, trace| {
                self.simulate(setting.scheduler(), seed, trace)
            });
            self.figures(contender, &runs, Some(setting.to_string()))
        });
        // Of equals the one that did better in the trial.
        let best = figures.reduce(|best, other| {
            if other.goodput > best.goodput {
                other
            } else {
                best
            }
        });
        best.expect("Triton's default is in the grid")
    }

    fn figures(&self, contender: Contender, runs: &[Run], setting: Option<String>) -> Figures {
        let ms = |share: f64| {
            median_of(runs, |o| {
                o.quantile(share).map(|latency| latency.as_secs_f64() * 1e3)
            })
        };
        let share = |count: fn(&Outcome) -> usize| {
            median_of(runs, |o| Some(count(o) as f64 / o.sent.max(1) as f64))
        };
        Figures {
            contender,
            offered: median(runs.iter().map(|run| run.offered).collect()).unwrap_or_default(),
            goodput: median(runs.iter().map(|run| run.goodput).collect()).unwrap_or_default(),
            p50_ms: ms(0.5),
            p95_ms: ms(0.95),
            p99_ms: ms(0.99),
            rejected: share(|o| o.rejected),
            late: share(|o| o.late),
            mean_batch: median_of(runs, Outcome::mean_batch),
            ends: ends(runs),
            setting,
        }
    }
}

fn ends(runs: &[Run]) -> Vec<(BatchEnd, f64)> {
    let outcomes = || runs.iter().filter_map(|run| run.outcome.as_ref());
    let all: usize = outcomes().map(Outcome::executions).sum();
    let of = |end| {
        outcomes()
            .flat_map(Outcome::batches)
            .filter(move |(other, _)| *other == end)
    };
    let share = |end| of(end).map(|(_, count)| count).sum::<usize>() as f64 / all.max(1) as f64;
    let ends = BatchEnd::ALL.into_iter().map(|end| (end, share(end)));
    ends.filter(|(_, share)| *share > 0.0).collect()
}

fn median_of(runs: &[Run], value: impl Fn(&Outcome) -> Option<f64>) -> Option<f64> {
    let outcomes = runs.iter().filter_map(|run| run.outcome.as_ref());
    median(outcomes.filter_map(value).collect())
}

/// The median, which for an even number is the mean of the middle two.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    let lower = values[middle - (1 - values.len() % 2).min(middle)];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![1.0]), Some(1.0));
        assert_eq!(median(vec![]), None);
    }
}
