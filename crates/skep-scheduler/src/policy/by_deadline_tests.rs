//! Decisions by deadline, in nanoseconds: a batch of `b` takes 100 + 10 `b`, unless a test says otherwise.

use std::time::Duration;

use skep_types::Percentile;

use super::*;

/// Waiting requests: deadlines and inferences.
struct Listed {
    requests: Vec<(u64, usize)>,
    /// How many of the first could run as one batch.
    joined: usize,
    may_grow: bool,
}

impl UrgentQueue for Listed {
    fn joined(&self) -> usize {
        self.joined
    }

    fn size(&self, requests: usize) -> usize {
        self.requests[..requests].iter().map(|(_, size)| size).sum()
    }

    fn deadline(&self, requests: usize) -> Option<u64> {
        self.requests[..requests]
            .iter()
            .map(|(deadline, _)| *deadline)
            .min()
    }

    fn may_grow(&self) -> bool {
        self.may_grow
    }

    fn end(&self) -> BatchEnd {
        BatchEnd::QueueEmpty
    }

    fn inferences(&self) -> usize {
        self.size(self.requests.len())
    }

    fn urgent(&self) -> impl Iterator<Item = (u64, usize)> {
        self.requests.iter().copied()
    }
}

/// Requests of one inference each that can all run together, and for which more may come.
fn listed(deadlines: &[u64]) -> Listed {
    Listed {
        requests: deadlines.iter().map(|deadline| (*deadline, 1)).collect(),
        joined: deadlines.len(),
        may_grow: true,
    }
}

fn model(profile: &[(usize, u64)]) -> LatencyModel {
    let profile: Vec<_> = profile
        .iter()
        .map(|(size, ns)| (*size, Duration::from_nanos(*ns)))
        .collect();
    LatencyModel::new(8, &profile, Percentile::default())
}

fn affine() -> LatencyModel {
    model(&[(1, 110), (8, 180)])
}

/// 50 an inference in batches of 4, 49 in batches of 8.
fn nearly_flat() -> LatencyModel {
    model(&[(1, 100), (4, 200), (8, 392)])
}

fn context(latency: &LatencyModel) -> DecisionContext<'_> {
    DecisionContext {
        now: 0,
        terms: ObjectiveTerms {
            max_batch_size: 8,
            objective: 400,
            margin: 0,
        },
        latency,
        instances: 1,
        per_ns: 0.0,
        earned_per_ns: 0.0,
        probes: false,
    }
}

const AT_ONCE: Manner = Manner {
    patience: Patience::None,
    thrifty: false,
    strict: false,
    price_percent: 0,
    plain: false,
};

const PATIENT: Manner = Manner {
    patience: Patience::Full,
    ..AT_ONCE
};

fn decide(context: DecisionContext<'_>, manner: Manner, line: &Listed) -> Verdict {
    context.decide(manner, line, std::iter::empty(), &mut LookAhead::default())
}

fn send(requests: usize, end: BatchEnd) -> Verdict {
    Verdict::Send { requests, end }
}

#[test]
fn a_count_is_the_last_number_that_holds() {
    assert_eq!(count(10, |number| number <= 3), 3);
    assert_eq!(count(10, |_| true), 10);
    assert_eq!(count(10, |_| false), 0);
    assert_eq!(count(1, |_| true), 1);
    assert_eq!(count(0, |_| true), 0);
}

#[test]
fn a_batch_is_as_large_as_the_earliest_deadline_allows() {
    let latency = affine();
    for (now, deadlines, expected) in [
        (0, &[500, 500, 500][..], send(3, BatchEnd::QueueEmpty)),
        // A batch of two ends at its deadline, one of three does not.
        (0, &[120, 500, 500], send(2, BatchEnd::Deadline)),
        (0, &[129, 500, 500], send(2, BatchEnd::Deadline)),
        (0, &[130, 500, 500], send(3, BatchEnd::QueueEmpty)),
        (5, &[130, 500, 500], send(2, BatchEnd::Deadline)),
        // A later request's deadline counts as well.
        (0, &[500, 120, 500], send(2, BatchEnd::Deadline)),
    ] {
        let context = DecisionContext {
            now,
            ..context(&latency)
        };
        assert_eq!(
            decide(context, AT_ONCE, &listed(deadlines)),
            expected,
            "{now} {deadlines:?}"
        );
    }
}

#[test]
fn a_request_within_its_margin_is_tried_at_once() {
    let latency = affine();
    let mut context = context(&latency);
    context.terms.margin = 15;
    // Alone it ends at 110, with another one at 120.
    assert_eq!(
        decide(context, PATIENT, &listed(&[100, 100])),
        send(1, BatchEnd::Deadline)
    );
    assert_eq!(
        decide(context, PATIENT, &listed(&[105, 500])),
        send(2, BatchEnd::QueueEmpty)
    );
    assert_eq!(
        decide(context, PATIENT, &listed(&[90, 500])),
        send(1, BatchEnd::Deadline)
    );
}

#[test]
fn a_batch_has_a_request_even_if_one_execution_in_many_is_too_slow_for_it() {
    let mut latency = affine();
    for number in 0..128_u64 {
        let ns = if number >= 126 { 220 } else { 110 };
        latency.learn(1, Duration::from_nanos(ns));
    }
    assert_eq!(
        (latency.planned(1), latency.variation().varies()),
        (220, false)
    );
    let context = context(&latency);
    assert_eq!(
        decide(context, AT_ONCE, &listed(&[150, 150])),
        send(1, BatchEnd::Deadline)
    );
}

#[test]
fn a_batch_that_is_not_worth_its_time_waits_to_its_deadline_at_most() {
    let mut latency = affine();
    // One of eight executions takes no time, so that no moment before the deadline is too late.
    for number in 0..128_u64 {
        let ns = if number % 8 == 0 { 0 } else { 110 };
        latency.learn(1, Duration::from_nanos(ns));
    }
    let dear = Manner {
        price_percent: 90,
        ..AT_ONCE
    };
    let context = DecisionContext {
        earned_per_ns: 1.0,
        ..context(&latency)
    };
    let until = Time::from_nanos(500);
    assert_eq!(decide(context, dear, &listed(&[500])), Verdict::Wait(until));
    let at_deadline = DecisionContext {
        now: 500,
        ..context
    };
    assert!(matches!(
        decide(at_deadline, dear, &listed(&[500])),
        Verdict::Send { requests: 1, .. }
    ));
}

#[test]
fn a_plain_manner_plans_by_most_executions() {
    let mut latency = affine();
    // A seventh of the executions take 1.5 times as long as the others: one of eight, seen from the percentile 99.
    for number in 0..128_u64 {
        let ns = if number % 7 == 0 { 165 } else { 110 };
        latency.learn(1, Duration::from_nanos(ns));
    }
    let plain = Manner {
        plain: true,
        ..AT_ONCE
    };
    let context = context(&latency);
    // Batches of 3 mostly take 130. The others plan by the slow ones, 195.
    let line = [135, 500, 500].as_slice();
    assert_eq!(
        decide(context, plain, &listed(line)),
        send(3, BatchEnd::QueueEmpty)
    );
    assert_eq!(context.latency.planned(3), 195);
    // A head for which most executions are too slow makes way for the others; the last one is tried.
    let late = decide(context, plain, &listed(&[109, 500]));
    assert_eq!(late, Verdict::Drop { requests: 1 });
    assert_eq!(
        decide(context, plain, &listed(&[109])),
        send(1, BatchEnd::QueueEmpty)
    );
}

#[test]
fn a_batch_waits_until_one_more_request_would_be_late() {
    let latency = affine();
    let mut context = context(&latency);
    context.terms.margin = 10;
    // A batch of three takes 130.
    let wait = |until| Verdict::Wait(Time::from_nanos(until));
    assert_eq!(decide(context, PATIENT, &listed(&[1000, 2000])), wait(860));
    let at = |now| DecisionContext { now, ..context };
    assert_eq!(decide(at(859), PATIENT, &listed(&[1000, 2000])), wait(860));
    assert_eq!(
        decide(at(860), PATIENT, &listed(&[1000, 2000])),
        send(2, BatchEnd::Waited)
    );
    let full = [1000; 8];
    assert_eq!(
        decide(context, PATIENT, &listed(&full)),
        send(8, BatchEnd::QueueEmpty)
    );
    let last = Listed {
        may_grow: false,
        ..listed(&[1000, 2000])
    };
    assert_eq!(
        decide(context, PATIENT, &last),
        send(2, BatchEnd::QueueEmpty)
    );
    assert_eq!(
        decide(context, AT_ONCE, &listed(&[1000])),
        send(1, BatchEnd::QueueEmpty)
    );
}

#[test]
fn a_brief_wait_is_a_tenth_of_the_objective() {
    let latency = affine();
    let brief = Manner {
        patience: Patience::Brief,
        ..AT_ONCE
    };
    // It arrived at 600 and waits for 40.
    let until = Verdict::Wait(Time::from_nanos(640));
    assert_eq!(decide(context(&latency), brief, &listed(&[1000])), until);
    // The deadline leaves less time than that.
    let mut context = context(&latency);
    context.terms.objective = 5000;
    let until = Verdict::Wait(Time::from_nanos(380));
    assert_eq!(decide(context, brief, &listed(&[500])), until);
}

#[test]
fn a_thrifty_batch_is_no_larger_than_pays() {
    let latency = nearly_flat();
    let thrifty = Manner {
        thrifty: true,
        ..AT_ONCE
    };
    let line = listed(&[5000; 8]);
    assert_eq!(
        decide(context(&latency), AT_ONCE, &line),
        send(8, BatchEnd::QueueEmpty)
    );
    assert_eq!(
        decide(context(&latency), thrifty, &line),
        send(4, BatchEnd::Cap)
    );
    let probing = DecisionContext {
        probes: true,
        ..context(&latency)
    };
    assert_eq!(decide(probing, thrifty, &line), send(5, BatchEnd::Cap));
    let large = Listed {
        requests: vec![(5000, 7)],
        joined: 1,
        may_grow: false,
    };
    assert_eq!(
        decide(context(&latency), thrifty, &large),
        send(1, BatchEnd::QueueEmpty)
    );
}

#[test]
fn a_probe_tries_a_size_whose_estimate_is_old() {
    fn probing(latency: &LatencyModel, line: &Listed) -> Verdict {
        let context = DecisionContext {
            probes: true,
            ..context(latency)
        };
        decide(context, AT_ONCE, line)
    }
    let mut latency = affine();
    let (some, all) = (listed(&[120, 500, 500, 500]), listed(&[120, 500, 500]));
    assert_eq!(probing(&latency, &some), send(3, BatchEnd::Deadline));
    assert_eq!(probing(&latency, &all), send(3, BatchEnd::QueueEmpty));
    assert_eq!(
        decide(context(&latency), AT_ONCE, &some),
        send(2, BatchEnd::Deadline)
    );
    latency.learn(3, Duration::from_nanos(130));
    assert_eq!(probing(&latency, &some), send(2, BatchEnd::Deadline));
}

#[test]
fn requests_that_make_more_others_late_are_dropped() {
    let latency = affine();
    // Served alone, the first one makes the seven others late.
    let line = listed(&[110, 170, 170, 170, 170, 170, 170, 170]);
    assert_eq!(
        decide(context(&latency), AT_ONCE, &line),
        Verdict::Drop { requests: 1 }
    );
    // At this load batches should have four inferences, for which only the first has too little time.
    let busy = DecisionContext {
        per_ns: 0.03,
        ..context(&latency)
    };
    let strict = Manner {
        strict: true,
        ..AT_ONCE
    };
    let line = listed(&[115, 1000, 1000, 1000, 1000, 1000]);
    assert_eq!(decide(busy, AT_ONCE, &line), send(1, BatchEnd::Deadline));
    assert_eq!(decide(busy, strict, &line), Verdict::Drop { requests: 1 });
}

#[test]
fn enough_is_the_smallest_size_that_keeps_up_with_the_arrivals() {
    let latency = affine();
    for (instances, per_ns, expected) in [
        (1, 0.0, 1),
        (1, 0.008, 1),
        (1, 0.009, 2),
        (1, 0.02, 3),
        (2, 0.02, 2),
        (1, 1.0, 8),
    ] {
        let context = DecisionContext {
            instances,
            per_ns,
            ..context(&latency)
        };
        assert_eq!(context.enough(), expected, "{instances} {per_ns}");
        let enough = Manner {
            patience: Patience::Enough,
            ..AT_ONCE
        };
        assert_eq!(context.target(enough), expected);
        assert_eq!((context.target(AT_ONCE), context.target(PATIENT)), (1, 8));
    }
}

#[test]
fn larger_batches_pay_when_all_is_needed() {
    let latency = nearly_flat();
    let thrifty = Manner {
        patience: Patience::Full,
        thrifty: true,
        strict: false,
        price_percent: 0,
        plain: false,
    };
    // Batches of 4 carry 0.02 inferences a nanosecond, a tenth of which is kept in reserve.
    for (instances, per_ns, expected) in [
        (1, 0.0, 4),
        (1, 0.018, 4),
        (1, 0.0185, 8),
        (2, 0.036, 4),
        (2, 0.037, 8),
    ] {
        let context = DecisionContext {
            instances,
            per_ns,
            ..context(&latency)
        };
        assert_eq!(
            context.largest_that_pays(),
            expected,
            "{instances} {per_ns}"
        );
        assert_eq!(
            (context.cap(thrifty), context.target(thrifty)),
            (expected, expected)
        );
        assert_eq!(context.cap(PATIENT), 8);
    }
}

#[test]
fn the_sustainable_size_answers_most_in_time() {
    let latency = affine();
    for (objective, instances, per_ns, expected) in [
        // Executions bound it: the largest.
        (400, 1, 0.05, 8),
        // Requests that outlast an execution bound it: 8 / 180 against 0.055 * 120 / 180.
        (300, 1, 0.05, 7),
        // Arrivals bound it: the smallest that serves all.
        (300, 2, 0.05, 4),
        (400, 1, 0.01, 2),
        // Nothing is in time.
        (100, 1, 0.05, 1),
    ] {
        let mut context = DecisionContext {
            instances,
            per_ns,
            ..context(&latency)
        };
        context.terms.objective = objective;
        assert_eq!(
            context.sustainable(),
            expected,
            "{objective} {instances} {per_ns}"
        );
    }
}

#[test]
fn requests_in_the_way_of_a_size_have_too_little_time_for_it() {
    let latency = affine();
    let in_the_way = |now, target, deadlines: &[u64]| {
        DecisionContext {
            now,
            ..context(&latency)
        }
        .in_the_way_of(target, &listed(deadlines))
    };
    assert_eq!(in_the_way(0, 4, &[115, 130, 300, 300, 300]), 2);
    assert_eq!(in_the_way(0, 4, &[140, 130, 300, 300, 300]), 0);
    assert_eq!(in_the_way(1, 4, &[140, 150, 300, 300, 300]), 1);
    // Fewer wait than the target needs.
    assert_eq!(in_the_way(0, 4, &[115, 115, 115]), 0);
    // Once too few are left for the target, all of them are enough.
    assert_eq!(in_the_way(0, 4, &[115, 130, 300, 300]), 1);
    assert_eq!(in_the_way(0, 2, &[115, 115]), 1);
}
