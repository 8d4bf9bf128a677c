//! A scheduler in its steady state takes no memory.

use std::time::Duration;

use skep_heap::CountingHeap;
use skep_scheduler::{
    Input, InstanceId, Objective, ObjectivePolicy, Output, Outputs, Percentile, Policy, Request,
    RequestId, Scheduler, SchedulerOptions, TimeoutAction, TritonPolicy,
};
use skep_types::Time;

#[global_allocator]
static HEAP: CountingHeap = CountingHeap::of_blocks(0);

/// Requests come in bursts, wait, are cancelled, time out, and leave in batches, over and over.
fn churn(scheduler: &mut Scheduler<()>, outputs: &mut Outputs<()>, rounds: std::ops::Range<u64>) {
    let mut run = |scheduler: &mut Scheduler<()>, now, input| {
        scheduler.handle(now, input, outputs);
        for output in outputs.drain(..) {
            if let Output::Dispatch { batch, .. } = output {
                scheduler.recycle(batch.requests);
            }
        }
    };
    for round in rounds {
        let now = Time::from_nanos(round * 1_000_000);
        for burst in 0..6 {
            let id = RequestId(round * 6 + burst);
            let request = Request {
                id,
                batch_size: 1,
                priority: 0,
                timeout: None,
                payload: (),
            };
            run(scheduler, now, Input::Enqueue(request));
            if burst == 3 {
                run(scheduler, now, Input::Cancel(id));
            }
        }
        for instance in 0..2 {
            if scheduler.is_busy(InstanceId(instance)) == Some(true) {
                let input = Input::Finished {
                    instance: InstanceId(instance),
                    duration: Duration::from_micros(700 + round % 90),
                };
                run(scheduler, now, input);
            }
        }
    }
}

#[test]
fn a_steady_state_takes_no_memory() {
    let objective = |policy| {
        Policy::Objective(Objective {
            latency: Duration::from_millis(20),
            policy,
            miss_action: TimeoutAction::Reject,
            percentile: Percentile::default(),
            margin: Duration::ZERO,
            profile: Vec::new(),
        })
    };
    let triton = Policy::Triton(TritonPolicy {
        preferred_batch_sizes: vec![2, 3],
        max_queue_delay: Duration::from_millis(2),
    });
    let policies = ObjectivePolicy::ALL.into_iter().map(objective);
    for policy in policies.chain([Policy::OneByOne, triton]) {
        let mut options = SchedulerOptions {
            max_batch_size: 4,
            policy: policy.clone(),
            ..SchedulerOptions::one_by_one(100)
        };
        options.levels[0].timeout = Some(Duration::from_millis(30));
        let mut scheduler = Scheduler::new(options);
        let mut outputs = Outputs::new();
        for instance in 0..2 {
            scheduler.handle(
                Time::ZERO,
                Input::InstanceReady(InstanceId(instance)),
                &mut outputs,
            );
        }
        churn(&mut scheduler, &mut outputs, 0..2_000);
        let before = HEAP.taken_here();
        churn(&mut scheduler, &mut outputs, 2_000..10_000);
        assert_eq!(HEAP.taken_here() - before, 0, "{policy:?}");
    }
}
