//! How many requests a second of wall time are simulated on one core: `cargo run --release -p skep-sim --example
//! speed`.

use std::time::{Duration, Instant};

use skep_scheduler::{
    Objective, ObjectivePolicy, Percentile, Policy, SchedulerOptions, TimeoutAction, TritonPolicy,
};
use skep_sim::{
    Arrivals, LatencyTable, RandomPurpose, RandomStream, Setup, SimulatedModel, Workload, bound,
    simulate,
};

const REQUESTS: usize = 1_000_000;

fn main() {
    let table = LatencyTable::affine(1.87, 0.087, 64).expect("a valid table");
    let model = SimulatedModel::new(table, 1);
    let triton = |delay_ms| {
        Policy::Triton(TritonPolicy {
            max_queue_delay: Duration::from_millis(delay_ms),
            ..TritonPolicy::default()
        })
    };
    let objective = Duration::from_millis(20);
    let with_objective = |policy| {
        Policy::Objective(Objective {
            latency: objective,
            policy,
            miss_action: TimeoutAction::Reject,
            percentile: Percentile::default(),
            margin: Duration::ZERO,
            profile: Vec::new(),
        })
    };
    let policies = [
        ("none", Policy::OneByOne),
        ("triton, no delay", triton(0)),
        ("triton, 5 ms", triton(5)),
        ("aimd", with_objective(ObjectivePolicy::Aimd)),
        ("quantile", with_objective(ObjectivePolicy::Quantile)),
        ("edf", with_objective(ObjectivePolicy::Edf)),
        ("deferred", with_objective(ObjectivePolicy::Deferred)),
        ("auto", with_objective(ObjectivePolicy::Auto)),
    ];
    println!("| load | policy | million requests/s | mean batch |\n|---|---|---|---|");
    for load in [0.05, 0.5, 0.9, 1.2] {
        let mut random = RandomStream::new(1, RandomPurpose::Arrivals);
        let arrivals =
            Arrivals::Poisson.generate(load * model.capacity().rate, REQUESTS, &mut random);
        for (name, policy) in &policies {
            let setup = Setup {
                scheduler: SchedulerOptions {
                    max_batch_size: 64,
                    policy: policy.clone(),
                    ..SchedulerOptions::one_by_one(usize::MAX)
                },
                model: &model,
                objective: Some(objective),
                warm_up: 0,
                seed: 1,
            };
            let begin = Instant::now();
            let outcome = simulate(setup, Workload::Open(&arrivals));
            report(load, name, REQUESTS, begin, outcome.mean_batch());
        }
        let few = &arrivals[..REQUESTS / 20];
        let begin = Instant::now();
        let most = bound(few, &model, objective);
        assert!(most <= few.len());
        report(load, "bound", few.len(), begin, None);
    }
}

fn report(load: f64, name: &str, requests: usize, begin: Instant, mean_batch: Option<f64>) {
    let speed = requests as f64 / begin.elapsed().as_secs_f64() / 1e6;
    let batch = mean_batch.unwrap_or_default();
    println!("| {load} | {name} | {speed:.2} | {batch:.1} |");
}
