//! What a scheduler shows of its state, and payloads without tensors.

use std::time::Duration;

use skep_scheduler::{
    BatchEnd, Input, InstanceId, Objective, ObjectivePolicy, Output, Outputs, Percentile, Policy,
    Request, RequestId, Scheduler, SchedulerOptions, TimeoutAction, TritonPolicy, profile_sizes,
};
use skep_types::Time;

const INSTANCE: InstanceId = InstanceId(3);

fn request(id: u64, batch_size: usize) -> Request<()> {
    Request {
        id: RequestId(id),
        batch_size,
        priority: 0,
        timeout: None,
        payload: (),
    }
}

fn options(policy: Policy) -> SchedulerOptions {
    SchedulerOptions {
        max_batch_size: 8,
        policy,
        ..SchedulerOptions::one_by_one(10)
    }
}

/// Applies inputs at the beginning of time.
fn apply(scheduler: &mut Scheduler<()>, inputs: Vec<Input<()>>) -> Outputs<()> {
    let mut outputs = Outputs::new();
    scheduler.handle_all(Time::ZERO, inputs, &mut outputs);
    outputs
}

fn objective(policy: ObjectivePolicy) -> Policy {
    Policy::Objective(Objective {
        latency: Duration::from_millis(50),
        policy,
        miss_action: TimeoutAction::Reject,
        percentile: Percentile::default(),
        margin: Duration::ZERO,
        profile: vec![(1, Duration::from_millis(2)), (8, Duration::from_millis(9))],
    })
}

#[test]
fn an_instance_is_unknown_then_free_then_busy() {
    let mut scheduler = Scheduler::new(SchedulerOptions::one_by_one(10));
    assert_eq!(scheduler.is_busy(INSTANCE), None);
    apply(&mut scheduler, vec![Input::InstanceReady(INSTANCE)]);
    assert_eq!(scheduler.is_busy(INSTANCE), Some(false));
    apply(&mut scheduler, vec![Input::Enqueue(request(0, 1))]);
    assert_eq!(scheduler.is_busy(INSTANCE), Some(true));
    apply(&mut scheduler, vec![Input::InstanceGone(INSTANCE)]);
    assert_eq!(scheduler.is_busy(INSTANCE), None);
}

#[test]
fn requests_without_tensors_run_together() {
    let mut scheduler = Scheduler::new(options(Policy::Triton(TritonPolicy::default())));
    let inputs = vec![
        Input::Enqueue(request(0, 2)),
        Input::Enqueue(request(1, 3)),
        Input::InstanceReady(INSTANCE),
    ];
    let outputs = apply(&mut scheduler, inputs);
    let [Output::Dispatch { instance, batch }] = outputs.as_slice() else {
        panic!("{outputs:?}");
    };
    assert_eq!(
        (*instance, batch.requests.len(), batch.size()),
        (INSTANCE, 2, 5)
    );
}

#[test]
fn waiting_requests_and_inferences_are_counted() {
    let mut scheduler = Scheduler::new(SchedulerOptions::one_by_one(10));
    apply(
        &mut scheduler,
        vec![Input::Enqueue(request(0, 2)), Input::Enqueue(request(1, 3))],
    );
    assert_eq!(
        (scheduler.waiting(), scheduler.waiting_inferences()),
        (2, 5)
    );
    apply(&mut scheduler, vec![Input::Cancel(RequestId(0))]);
    assert_eq!(
        (scheduler.waiting(), scheduler.waiting_inferences()),
        (1, 3)
    );
}

#[test]
fn a_snapshot_names_the_policy_and_its_sizes() {
    let triton = |delay_ms, sizes: &[usize]| {
        Policy::Triton(TritonPolicy {
            preferred_batch_sizes: sizes.to_vec(),
            max_queue_delay: Duration::from_millis(delay_ms),
        })
    };
    for (policy, expected) in [
        (Policy::OneByOne, ("none", 1, 1)),
        (triton(0, &[4, 6]), ("triton", 8, 1)),
        (triton(5, &[4, 6]), ("triton", 8, 6)),
        (triton(5, &[]), ("triton", 8, 8)),
        (objective(ObjectivePolicy::Aimd), ("aimd", 1, 1)),
        (objective(ObjectivePolicy::Quantile), ("quantile", 1, 1)),
        (objective(ObjectivePolicy::Edf), ("edf", 8, 1)),
        (objective(ObjectivePolicy::Deferred), ("deferred", 8, 8)),
        (objective(ObjectivePolicy::Auto), ("auto", 8, 1)),
    ] {
        let scheduler = Scheduler::<()>::new(options(policy.clone()));
        let got = scheduler.policy_snapshot(Time::ZERO);
        assert_eq!((got.policy, got.cap, got.target), expected, "{policy:?}");
        let is_objective = matches!(policy, Policy::Objective(_));
        assert_eq!(
            got.objective,
            is_objective.then(|| Duration::from_millis(50))
        );
        let known =
            [(1, 2), (2, 3), (4, 5), (8, 9)].map(|(size, ms)| (size, Duration::from_millis(ms)));
        assert_eq!(
            got.latencies,
            if is_objective {
                known.to_vec()
            } else {
                Vec::new()
            }
        );
        assert_eq!(got.arrivals_per_s.is_some(), got.policy == "auto");
    }
}

#[test]
fn a_snapshot_counts_what_was_too_late() {
    for (action, expected) in [
        (TimeoutAction::Reject, (2, 0)),
        (TimeoutAction::Delay, (0, 2)),
    ] {
        let mut options = options(Policy::Triton(TritonPolicy::default()));
        options.levels[0].timeout = Some(Duration::from_millis(1));
        options.levels[0].timeout_action = action;
        let mut scheduler = Scheduler::new(options);
        apply(
            &mut scheduler,
            vec![Input::Enqueue(request(0, 1)), Input::Enqueue(request(1, 1))],
        );
        assert_eq!(
            scheduler.next_timeout(),
            Some(Time::ZERO + Duration::from_millis(1))
        );
        scheduler.handle_timeout(Time::ZERO + Duration::from_millis(1), &mut Outputs::new());
        let got = scheduler.policy_snapshot(Time::ZERO);
        assert_eq!((got.rejected, got.delayed), expected);
        assert_eq!(got.last_batch, None);
    }
}

#[test]
fn a_snapshot_shows_arrivals_and_the_last_batch() {
    let mut scheduler = Scheduler::new(options(objective(ObjectivePolicy::Auto)));
    apply(
        &mut scheduler,
        vec![
            Input::InstanceReady(INSTANCE),
            Input::Enqueue(request(0, 5)),
        ],
    );
    let got = scheduler.policy_snapshot(Time::ZERO);
    // Five within the objective of 50 ms.
    assert!((got.arrivals_per_s.expect("auto measures them") - 100.0).abs() < 1e-6);
    assert_eq!(got.last_batch.map(|(size, _)| size), Some(5));
}

#[test]
fn sizes_of_a_profile_double_up_to_the_maximum() {
    let sizes = |max| profile_sizes(max).collect::<Vec<_>>();
    assert_eq!(sizes(1), [1]);
    assert_eq!(sizes(2), [1, 2]);
    assert_eq!(sizes(6), [1, 2, 4, 6]);
    assert_eq!(sizes(8), [1, 2, 4, 8]);
}

#[test]
fn every_policy_and_batch_end_has_a_name_of_its_own() {
    let mut names: Vec<&str> = BatchEnd::ALL.iter().map(|end| end.name()).collect();
    names.extend(ObjectivePolicy::ALL.iter().map(|policy| policy.name()));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(names.iter().all(|name| name.len() > 2));
}
