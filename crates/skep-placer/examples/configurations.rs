//! The chosen configurations beside the best ones of an exhaustive search, as CSV: three made-up models on 8 and 32 cores,
//! from low rates to nearly the highest that any configuration serves.
//!
//! The choice knows what `skep profile` measures: its grid of cores and instances, and batches of powers of two. The search
//! knows the true latency of every number of instances, threads and batch. Both predict latencies at a rate in the same
//! way.
//!
//! The latency of a batch is even in its size; threads share a part of the work (Amdahl); each other instance, and each
//! core that computes at the same time, takes a little of the caches and the memory's bandwidth.
//!
//! ```console
//! $ cargo run -p skep-placer --example configurations > configurations.csv
//! ```

use std::time::Duration;

use skep_placer::configuration::{
    LatencyProfile, ProfilePoint, RunConfiguration, RunTerms, decide,
};
use skep_types::Time;

/// A model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MadeModel {
    /// Its name.
    pub(crate) name: &'static str,
    /// Milliseconds of a batch on one thread, besides its inferences.
    base: f64,
    /// Milliseconds of each inference on one thread.
    each: f64,
    /// The part of the work that threads share.
    shared: f64,
    /// By which part a batch takes longer for each other core that computes.
    beside: f64,
    /// Its largest batch.
    max_batch: u32,
}

/// A small one that hardly scales, a convolutional one that scales, and a large one that memory slows.
pub(crate) const MODELS: [MadeModel; 3] = [
    MadeModel {
        name: "small",
        base: 1.2,
        each: 0.4,
        shared: 0.55,
        beside: 0.004,
        max_batch: 32,
    },
    MadeModel {
        name: "convolutional",
        base: 3.0,
        each: 18.0,
        shared: 0.94,
        beside: 0.01,
        max_batch: 16,
    },
    MadeModel {
        name: "transformer",
        base: 55.0,
        each: 35.0,
        shared: 0.85,
        beside: 0.03,
        max_batch: 8,
    },
];

/// The choice for a model at a rate, and the best configuration.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// The model.
    pub(crate) model: &'static str,
    /// Cores.
    pub(crate) cores: u32,
    /// Requests a second.
    pub(crate) rate: f64,
    /// The choice, and what it really takes in milliseconds.
    pub(crate) chosen: (RunConfiguration, f64),
    /// The best configuration of all, and what it takes.
    pub(crate) best: (RunConfiguration, f64),
}

impl MadeModel {
    fn point(&self, instances: u32, threads: u32, batch: u32) -> ProfilePoint {
        let work = self.base + self.each * f64::from(batch);
        let parallel = 1.0 - self.shared + self.shared / f64::from(threads);
        let others = f64::from(instances * threads - 1);
        let millis = work * parallel * (1.0 + self.beside * others);
        ProfilePoint {
            instances,
            threads,
            batch,
            typical: Duration::from_secs_f64(millis / 1e3),
            late: Duration::from_secs_f64(1.2 * millis / 1e3),
        }
    }

    /// What `skep profile` would measure on so many cores.
    fn measured(&self, cores: u32) -> LatencyProfile {
        let mut points = Vec::new();
        for cpus in powers(cores) {
            let few = 1..=cpus.min(4);
            for instances in few.chain(powers(cpus).filter(|count| *count > 4)) {
                let threads = cpus / instances;
                points.extend(powers(self.max_batch).map(|b| self.point(instances, threads, b)));
            }
        }
        LatencyProfile::new(points).expect("points")
    }

    /// All that is true.
    fn whole(&self, cores: u32) -> LatencyProfile {
        let every = (1..=cores).flat_map(|threads| {
            let counts = 1..=cores / threads;
            counts.flat_map(move |instances| {
                (1..=self.max_batch).map(move |b| (instances, threads, b))
            })
        });
        let points = every.map(|(instances, threads, batch)| self.point(instances, threads, batch));
        LatencyProfile::new(points).expect("points")
    }
}

fn powers(most: u32) -> impl Iterator<Item = u32> {
    (0..32)
        .map(|power| 1 << power)
        .take_while(move |power| *power <= most)
}

/// All models, on 8 and 32 cores, at rates from almost none to nearly the highest that is served.
#[must_use]
pub(crate) fn compare() -> Vec<Comparison> {
    let mut all = Vec::new();
    for model in MODELS {
        for cores in [8, 32] {
            let (measured, whole) = (model.measured(cores), model.whole(cores));
            let every: Vec<RunConfiguration> = (1..=cores)
                .flat_map(|threads| {
                    (1..=cores / threads).map(move |instances| (instances, threads))
                })
                .flat_map(|(instances, threads)| {
                    (1..=model.max_batch).map(move |batch| RunConfiguration {
                        instances,
                        threads,
                        batch,
                    })
                })
                .collect();
            let terms = |rate| RunTerms {
                cores,
                max_threads: cores,
                rate,
                objective: None,
                max_batch: model.max_batch,
                is_batch_fixed: false,
                batch_delay: Duration::ZERO,
            };
            let throughputs = every
                .iter()
                .filter_map(|one| whole.predict(*one, &terms(0.0)));
            let most = throughputs.map(|one| one.throughput).fold(0.0, f64::max);
            for percent in [1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85] {
                let terms = terms(most * f64::from(percent) / 100.0);
                let late = |one: RunConfiguration| {
                    let prediction = whole.predict(one, &terms)?;
                    let millis = prediction.late.as_secs_f64() * 1e3;
                    prediction.serves.then_some((one, millis))
                };
                let best = every.iter().filter_map(|one| late(*one));
                let best = best.min_by(|(_, a), (_, b)| a.total_cmp(b));
                let choice = decide(&measured, &terms, None, Time::ZERO).expect("a choice");
                all.push(Comparison {
                    model: model.name,
                    cores,
                    rate: terms.rate,
                    chosen: late(choice.configuration)
                        .unwrap_or((choice.configuration, f64::INFINITY)),
                    best: best.expect("one serves the rate"),
                });
            }
        }
    }
    all
}

fn main() {
    println!(
        "model,cores,requests_per_second,instances,threads,batch,p95_ms,best_instances,best_threads,best_batch,best_p95_ms,ratio"
    );
    for one in compare() {
        let [chosen, best] = [one.chosen, one.best].map(|(run, millis)| {
            format!(
                "{},{},{},{millis:.4}",
                run.instances, run.threads, run.batch
            )
        });
        let ratio = one.chosen.1 / one.best.1;
        println!(
            "{},{},{:.2},{chosen},{best},{ratio:.4}",
            one.model, one.cores, one.rate
        );
    }
}
