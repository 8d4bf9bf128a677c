//! What one call of a scheduler takes, with 1,000 and with 100,000 requests waiting: `cargo bench -p skep-scheduler`.
//!
//! Each round enqueues as many requests as then leave in a batch, so that the queue stays as long as it is. A request
//! costs a place in the queue's order and one in the order of deadlines, an entry in a table by id, and its share of a
//! scan: a few hundred nanoseconds are what some dozens of dependent cache accesses allow.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use skep_scheduler::{
    Input, InstanceId, Objective, ObjectivePolicy, Output, Outputs, Percentile, Policy,
    QueuePolicy, Request, RequestId, Scheduler, SchedulerOptions, TimeoutAction, TritonPolicy,
};
use skep_types::Time;

const MAX_BATCH_SIZE: usize = 8;

const POLICIES: [&str; 7] = [
    "one by one",
    "triton",
    "triton, time-outs",
    "triton, priorities",
    "aimd",
    "edf",
    "auto",
];

/// Far beyond the benchmark's moments: nothing waits in vain, and nothing is late.
const FAR: Duration = Duration::from_secs(1_000_000);

fn options(policy: &str) -> SchedulerOptions {
    let mut options = SchedulerOptions {
        max_batch_size: MAX_BATCH_SIZE,
        policy: Policy::Triton(TritonPolicy::default()),
        ..SchedulerOptions::one_by_one(1_000_000)
    };
    let objective = |policy| {
        Policy::Objective(Objective {
            latency: FAR,
            policy,
            miss_action: TimeoutAction::Reject,
            percentile: Percentile::default(),
            margin: Duration::ZERO,
            profile: vec![
                (1, Duration::from_micros(1957)),
                (8, Duration::from_micros(2566)),
            ],
        })
    };
    match policy {
        "one by one" => options.policy = Policy::OneByOne,
        "triton" => {}
        "triton, time-outs" => options.levels[0].timeout = Some(FAR),
        "triton, priorities" => {
            options.levels = vec![QueuePolicy::default(); 4];
            options.default_level = 1;
        }
        "aimd" => options.policy = objective(ObjectivePolicy::Aimd),
        "edf" => options.policy = objective(ObjectivePolicy::Edf),
        "auto" => options.policy = objective(ObjectivePolicy::Auto),
        other => unreachable!("no policy is called {other}"),
    }
    options
}

/// A scheduler with one instance, which is busy, and a queue of this length.
struct Steady {
    scheduler: Scheduler<()>,
    outputs: Outputs<()>,
    now: Time,
    next: u64,
}

impl Steady {
    fn new(policy: &str, waiting: usize) -> Self {
        let mut steady = Self {
            scheduler: Scheduler::new(options(policy)),
            outputs: Outputs::new(),
            now: Time::ZERO,
            next: 0,
        };
        steady.handle(Input::InstanceReady(InstanceId(0)));
        while steady.scheduler.waiting() < waiting {
            steady.enqueue();
        }
        steady
    }

    fn handle(&mut self, input: Input<()>) -> usize {
        self.now = self.now + Duration::from_nanos(100);
        self.scheduler
            .handle(self.now, input, black_box(&mut self.outputs));
        let mut dispatched = 0;
        for output in self.outputs.drain(..) {
            if let Output::Dispatch { batch, .. } = output {
                dispatched += batch.requests.len();
                self.scheduler.recycle(batch.requests);
            }
        }
        dispatched
    }

    fn enqueue(&mut self) {
        let id = self.next;
        self.next += 1;
        self.handle(Input::Enqueue(Request {
            id: RequestId(id),
            batch_size: 1,
            priority: id % 5,
            timeout: None,
            payload: (),
        }));
    }

    /// One batch leaves, and as many requests come; the number of calls.
    fn round(&mut self) -> u64 {
        let left = self.handle(Input::Finished {
            instance: InstanceId(0),
            duration: Duration::from_micros(2566),
        });
        for _ in 0..left {
            self.enqueue();
        }
        1 + left as u64
    }
}

fn handle(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round");
    for policy in POLICIES {
        for waiting in [1_000, 100_000] {
            let mut steady = Steady::new(policy, waiting);
            let calls = steady.round();
            group.throughput(Throughput::Elements(calls));
            group.bench_function(BenchmarkId::new(policy, waiting), |bencher| {
                bencher.iter(|| steady.round());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, handle);
criterion_main!(benches);
