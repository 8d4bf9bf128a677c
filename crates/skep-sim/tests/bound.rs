//! The bound against every policy, and against an optimum that is found by trying everything.

use std::time::Duration;

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use skep_scheduler::{
    Objective, ObjectivePolicy, Percentile, Policy, QueuePolicy, SchedulerOptions, TimeoutAction,
    TritonPolicy,
};
use skep_sim::{Jitter, LatencyTable, Setup, SimulatedModel, Workload, bound, simulate};
use skep_types::Time;

/// A case in whole milliseconds.
#[derive(Debug, Clone)]
struct Case {
    /// Of batches of 1, 2, ...; need not ascend.
    latencies: Vec<u32>,
    arrivals: Vec<u32>,
    objective: u32,
    instances: u32,
    request_size: usize,
    jitter: Jitter,
    stretch: f64,
}

impl Case {
    fn model(&self) -> SimulatedModel {
        let lines: Vec<String> = (1..)
            .zip(&self.latencies)
            .map(|(batch, ms)| format!("{batch},{ms}"))
            .collect();
        let table = LatencyTable::measured(&lines.join("\n"), self.latencies.len());
        SimulatedModel {
            table: table.expect("a valid table"),
            instances: self.instances,
            request_size: self.request_size.min(self.latencies.len()),
            jitter: self.jitter,
            stretch: self.stretch,
        }
    }

    fn arrivals(&self) -> Vec<Time> {
        let mut arrivals: Vec<Time> = self
            .arrivals
            .iter()
            .map(|&ms| Time::ZERO + millis(ms))
            .collect();
        arrivals.sort();
        arrivals
    }

    fn bound(&self) -> usize {
        bound(&self.arrivals(), &self.model(), millis(self.objective))
    }

    /// The most requests that can be answered in time, found by trying everything.
    fn optimum(&self) -> usize {
        let model = self.model();
        let search = Search {
            latencies: (1..=model.requests_per_batch())
                .map(|requests| self.latencies[requests * model.request_size - 1])
                .collect(),
            arrivals: {
                let mut arrivals = self.arrivals.clone();
                arrivals.sort_unstable();
                arrivals
            },
            objective: self.objective,
        };
        search.most(
            (1 << self.arrivals.len()) - 1,
            &vec![0; self.instances as usize],
        )
    }
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

/// Every schedule in which batches are formed of any requests, in any order, each on the instance that is free first,
/// as soon as all its requests are there. (Others only waste time: a batch that begins later, or on an instance that is
/// free later, can change places with what comes after it.)
struct Search {
    latencies: Vec<u32>,
    arrivals: Vec<u32>,
    objective: u32,
}

impl Search {
    /// Out of the requests in this set, with instances that are free from these moments on.
    fn most(&self, left: u32, free: &[u32]) -> usize {
        let mut most = 0;
        let mut batch = left;
        while batch > 0 {
            most = most.max(self.with(batch, left, free));
            batch = (batch - 1) & left;
        }
        most
    }

    fn with(&self, batch: u32, left: u32, free: &[u32]) -> usize {
        let size = batch.count_ones() as usize;
        if size > self.latencies.len() {
            return 0;
        }
        let members = || {
            (0..)
                .zip(&self.arrivals)
                .filter(|(i, _)| batch & (1 << i) != 0)
        };
        let arrived = members().map(|(_, at)| *at).max().unwrap_or_default();
        let (instance, &idle) = free
            .iter()
            .enumerate()
            .min_by_key(|(_, at)| **at)
            .expect("one");
        let finished = idle.max(arrived) + self.latencies[size - 1];
        let good = members()
            .filter(|(_, at)| finished <= **at + self.objective)
            .count();
        if good < size {
            // Some smaller batch of those that are good, which takes as long, is padded with late ones: only where
            // more take less time can that help.
            if good == 0 || self.latencies.is_sorted() {
                return 0;
            }
        }
        let mut free = free.to_vec();
        free[instance] = finished;
        good + self.most(left & !batch, &free)
    }
}

fn case(instances: std::ops::RangeInclusive<u32>, requests: usize) -> impl Strategy<Value = Case> {
    let latencies = prop::collection::vec(1u32..6, 1..5).prop_flat_map(|steps| {
        // Mostly ascending, as real ones are; now and then not.
        let mut sum = 0;
        let ascending: Vec<u32> = steps
            .iter()
            .map(|step| {
                sum += step - 1;
                1 + sum
            })
            .collect();
        prop_oneof![4 => Just(ascending), 1 => Just(steps)]
    });
    (
        latencies,
        prop::collection::vec(0u32..25, 1..=requests),
        1u32..20,
        instances,
        1usize..3,
    )
        .prop_map(
            |(latencies, arrivals, objective, instances, request_size)| Case {
                latencies,
                arrivals,
                objective,
                instances,
                request_size,
                jitter: Jitter::None,
                stretch: 0.0,
            },
        )
}

/// A policy, for an objective.
fn policies(objective: u32) -> impl Strategy<Value = Policy> {
    let triton = (0u32..10).prop_map(|delay| {
        Policy::Triton(TritonPolicy {
            max_queue_delay: millis(delay),
            ..TritonPolicy::default()
        })
    });
    let miss = prop_oneof![Just(TimeoutAction::Reject), Just(TimeoutAction::Delay)];
    let with_objective = (prop::sample::select(&ObjectivePolicy::ALL), miss);
    let with_objective = with_objective.prop_map(move |(policy, miss_action)| {
        Policy::Objective(Objective {
            latency: millis(objective),
            policy,
            miss_action,
            percentile: Percentile::default(),
            margin: Duration::ZERO,
            profile: Vec::new(),
        })
    });
    prop_oneof![1 => Just(Policy::OneByOne), 3 => triton, 6 => with_objective]
}

fn jitter() -> impl Strategy<Value = Jitter> {
    prop_oneof![
        Just(Jitter::None),
        (0.01..0.9).prop_map(Jitter::Uniform),
        (0.01..0.9).prop_map(Jitter::LogNormal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// With one instance the bound is the optimum. Latencies that fall with the batch are the only exception: there the
    /// bound may fill a batch up with requests that nobody sent.
    #[test]
    fn one_instance_is_exact(case in case(1..=1, 6)) {
        let (bound, optimum) = (case.bound(), case.optimum());
        prop_assert!(bound >= optimum, "{bound} of {optimum}");
        if case.latencies.is_sorted() {
            prop_assert_eq!(bound, optimum);
        }
    }

    /// With several it is never below.
    #[test]
    fn several_instances_are_bounded(case in case(2..=3, 6)) {
        let (bound, optimum) = (case.bound(), case.optimum());
        prop_assert!(bound >= optimum, "{bound} of {optimum}");
    }

    /// No policy exceeds it, whatever it is made with.
    #[test]
    fn no_policy_exceeds_it(
        (mut case, policy) in case(1..=3, 60).prop_flat_map(|case| {
            let objective = case.objective;
            (Just(case), policies(objective))
        }),
        timeout in prop::option::of(0u32..20),
        (jitter, stretch) in (jitter(), prop_oneof![Just(0.0), 0.0..1.0]),
        seed: u64,
    ) {
        (case.jitter, case.stretch) = (jitter, stretch);
        let (model, arrivals) = (case.model(), case.arrivals());
        let scheduler = SchedulerOptions {
            max_batch_size: model.table.max(),
            policy,
            levels: vec![QueuePolicy { timeout: timeout.map(millis), ..QueuePolicy::default() }],
            ..SchedulerOptions::one_by_one(usize::MAX)
        };
        let objective = Some(millis(case.objective));
        let setup = Setup { scheduler, model: &model, objective, warm_up: 0, seed };
        let good = simulate(setup, Workload::Open(&arrivals)).good;
        let bound = case.bound();
        prop_assert!(good <= bound, "{good} of {bound}");
    }
}

/// How far above the optimum the relaxation of two instances lies, over 2,000 small cases: a figure of the
/// documentation.
#[test]
fn the_relaxation_is_close() {
    let (mut exact, mut bounds, mut optima) = (0, 0, 0);
    let runner = &mut TestRunner::deterministic();
    for _ in 0..2000 {
        let case = case(2..=2, 6).new_tree(runner).expect("a case").current();
        let (bound, optimum) = (case.bound(), case.optimum());
        exact += usize::from(bound == optimum);
        bounds += bound;
        optima += optimum;
    }
    assert_eq!((exact, bounds, optima), (1953, 5900, 5847));
}
