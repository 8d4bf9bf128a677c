//! Rehearsals step by step, in nanoseconds: a batch of `b` takes 100 + 10 `b`.

use std::time::Duration;

use skep_types::Percentile;

use super::*;
use crate::{latency::LatencyModel, policy::by_deadline::ObjectiveTerms};

/// The manner that sends at once, and the one that waits for as many as pay.
const AT_ONCE: usize = 2;
const PATIENT: usize = 1;

/// Answered in every scenario.
const ALL: u8 = SCENARIOS as u8;

/// Which manners answer a request, from bits.
fn by(bits: u16) -> [u8; MANNERS.len()] {
    std::array::from_fn(|manner| ALL * u8::from(bits >> manner & 1 == 1))
}

fn affine() -> LatencyModel {
    let profile = [(1, 110), (8, 180)].map(|(size, ns)| (size, Duration::from_nanos(ns)));
    LatencyModel::new(8, &profile, Percentile::default())
}

fn context(latency: &LatencyModel, now: u64) -> DecisionContext<'_> {
    DecisionContext {
        now,
        terms: ObjectiveTerms {
            max_batch_size: 8,
            objective: 1000,
            margin: 0,
        },
        latency,
        instances: 1,
        per_ns: 0.0,
        earned_per_ns: 0.0,
        probes: false,
    }
}

/// A rehearsal of arrivals of one inference each: moments and deadlines.
fn rehearsal(arrivals: &[(u64, u64)]) -> Rehearsal {
    let mut rehearsal = Rehearsal::new();
    for (before, (at, deadline)) in arrivals.iter().enumerate() {
        rehearsal.past.push_back(PastArrival {
            at: *at,
            deadline: *deadline,
            size: 1,
            before,
            rate: ArrivalRate::new(Duration::from_micros(1), Duration::from_micros(10)),
            answered: [0; MANNERS.len()],
        });
    }
    rehearsal
}

/// Which of the past a manner answers in time.
fn answered(rehearsal: &Rehearsal, manner: usize) -> Vec<bool> {
    let past = rehearsal.past.iter();
    past.map(|past| past.answered[manner] == ALL).collect()
}

fn nobody() -> LiveState<std::iter::Empty<u64>> {
    LiveState {
        oldest: None,
        busy: std::iter::empty(),
    }
}

fn is_near(got: f64, expected: f64) -> bool {
    (got - expected).abs() < 1e-9
}

#[test]
fn a_rehearsed_queue_begins_at_its_stages_head() {
    let mut rehearsal = rehearsal(&[(0, 50), (1, 60), (2, 70), (3, 80)]);
    for (past, (size, before)) in
        rehearsal
            .past
            .iter_mut()
            .zip([(2, 10), (3, 12), (1, 15), (4, 16)])
    {
        (past.size, past.before) = (size, before);
    }
    let queue = |head, waiting, joined, most| RehearsedQueue {
        past: &rehearsal.past,
        head,
        waiting,
        joined,
        most,
    };
    let from_second = queue(1, 2, 2, 8);
    assert_eq!((from_second.size(1), from_second.size(2)), (3, 4));
    assert_eq!((from_second.joined(), from_second.inferences()), (2, 4));
    assert_eq!(from_second.deadline(2), Some(60));
    assert!(from_second.urgent().eq([(60, 3), (70, 1)]));
    assert!(from_second.may_grow());
    assert!(!queue(1, 2, 2, 4).may_grow(), "it is full");
    assert!(!queue(1, 3, 2, 8).may_grow(), "the next one does not fit");
}

#[test]
fn a_stage_sends_what_has_arrived_when_its_instance_is_free() {
    let latency = affine();
    let mut rehearsal = rehearsal(&[(5, 500), (10, 500), (115, 500), (116, 500), (300, 900)]);
    rehearsal.play(AT_ONCE, context(&latency, 115));
    let stage = &rehearsal.stages[AT_ONCE];
    assert_eq!(
        (stage.head, stage.seen, stage.free[0], stage.now),
        (1, 1, 115, 5)
    );
    // From 115 to 235 the second and the third.
    rehearsal.play(AT_ONCE, context(&latency, 116));
    let stage = &rehearsal.stages[AT_ONCE];
    assert_eq!(
        (stage.head, stage.seen, stage.free[0], stage.now),
        (3, 3, 235, 115)
    );
    rehearsal.play(AT_ONCE, context(&latency, 1000));
    let stage = &rehearsal.stages[AT_ONCE];
    // From 235 to 345 the fourth, from then the last one.
    assert_eq!(
        (stage.head, stage.seen, stage.free[0], stage.now),
        (5, 5, 455, 345)
    );
    assert_eq!(answered(&rehearsal, AT_ONCE), [true; 5]);
}

#[test]
fn a_stage_has_as_many_instances_as_there_are() {
    let latency = affine();
    let mut rehearsal = rehearsal(&[(0, 500), (10, 500), (20, 500)]);
    let two = DecisionContext {
        instances: 2,
        ..context(&latency, 100)
    };
    rehearsal.play(AT_ONCE, two);
    let stage = &rehearsal.stages[AT_ONCE];
    assert_eq!((stage.head, stage.free.as_slice()), (2, &[110, 120][..]));
}

#[test]
fn scenarios_of_executions_take_turns() {
    let mut latency = affine();
    // Half of the executions take twice as long as the others.
    for ns in [110, 220].repeat(64) {
        latency.learn(1, Duration::from_nanos(ns));
    }
    let scenarios = *latency.variation().scenarios();
    let takes = latency.expected(1);
    let mut rehearsal = rehearsal(&[(0, 900), (10, 900)]);
    for turn in 1..=2 * SCENARIOS {
        rehearsal.stages[AT_ONCE] = RehearsalStage {
            executions: rehearsal.stages[AT_ONCE].executions,
            ..RehearsalStage::default()
        };
        rehearsal.play(AT_ONCE, context(&latency, 5));
        let scenario = scenarios[turn * STRIDE % SCENARIOS];
        #[expect(clippy::cast_sign_loss, reason = "neither is negative")]
        let free = (takes as f64 * scenario) as u64;
        assert_eq!(rehearsal.stages[AT_ONCE].free[0], free, "{turn}");
    }
    // A request counts by the scenarios in which it is in time.
    let mut rehearsal = rehearsal_of_one(takes);
    rehearsal.play(AT_ONCE, context(&latency, 5));
    let in_time = scenarios.iter().filter(|scenario| **scenario <= 1.0);
    let in_time = u8::try_from(in_time.count()).expect("few");
    assert!((1..16).contains(&in_time));
    assert_eq!(rehearsal.past[0].answered[AT_ONCE], in_time);
}

fn rehearsal_of_one(deadline: u64) -> Rehearsal {
    rehearsal(&[(0, deadline)])
}

#[test]
fn a_request_that_is_late_even_alone_is_passed_over() {
    let latency = affine();
    let mut late = rehearsal(&[(0, 500), (10, 219), (11, 220), (12, 500)]);
    late.play(AT_ONCE, context(&latency, 200));
    // At 110 the second one would end at 220, a nanosecond late, and the third one just in time, but only alone.
    assert_eq!(late.stages[AT_ONCE].head, 3);
    assert_eq!(answered(&late, AT_ONCE), [true, false, true, false]);
    // Within the margin it is tried, and the others with it.
    let mut late = rehearsal(&[(0, 500), (10, 219), (11, 250), (12, 500)]);
    let mut margin = context(&latency, 200);
    margin.terms.margin = 25;
    late.play(AT_ONCE, margin);
    assert_eq!(late.stages[AT_ONCE].head, 4);
    assert_eq!(answered(&late, AT_ONCE), [true; 4]);
}

#[test]
fn a_patient_stage_waits_for_arrivals_until_the_deadline_presses() {
    let latency = affine();
    let mut patient = rehearsal(&[(0, 300), (50, 400)]);
    patient.play(PATIENT, context(&latency, 40));
    assert_eq!(
        (patient.stages[PATIENT].head, patient.stages[PATIENT].now),
        (0, 0)
    );
    // Two of them take 120; a third one could join until 300 - 130.
    patient.play(PATIENT, context(&latency, 170));
    assert_eq!(
        (patient.stages[PATIENT].head, patient.stages[PATIENT].now),
        (0, 50)
    );
    patient.play(PATIENT, context(&latency, 171));
    let stage = &patient.stages[PATIENT];
    assert_eq!((stage.head, stage.now, stage.free[0]), (2, 170, 290));
    assert_eq!(answered(&patient, PATIENT), [true; 2]);
}

#[test]
fn requests_count_when_all_stages_have_decided_them() {
    let latency = affine();
    let mut rehearsal = rehearsal(&[(10, 500), (20, 500), (1040, 1500), (1050, 1500)]);
    for stage in &mut rehearsal.stages {
        (stage.head, stage.seen) = (3, 4);
    }
    rehearsal.stages[4].head = 2;
    for (past, bits) in rehearsal
        .past
        .iter_mut()
        .zip([0b000_011, 0b000_010, 0b111_111, 0])
    {
        past.answered = by(bits);
    }
    rehearsal.count(context(&latency, 1100));
    // Gaps of 10 of 20 objectives of 1000.
    let keeps = 1.0 - 10.0 / 20_000.0;
    assert!(is_near(rehearsal.counted, keeps + 1.0));
    assert!(is_near(rehearsal.span, 10.0 * keeps + 10.0));
    assert_eq!((rehearsal.last, rehearsal.past.len()), (20, 2));
    let scores: Vec<f64> = rehearsal.stages.iter().map(|stage| stage.score).collect();
    let mut expected = [0.0; MANNERS.len()];
    (expected[0], expected[1]) = (keeps, keeps + 1.0);
    assert!(
        scores
            .iter()
            .zip(expected)
            .all(|(got, expected)| is_near(*got, expected))
    );
    let places: Vec<(usize, usize)> = rehearsal
        .stages
        .iter()
        .map(|stage| (stage.head, stage.seen))
        .collect();
    let mut expected = [(1, 2); MANNERS.len()];
    expected[4] = (0, 2);
    assert_eq!(places, expected);
    // After a long gap no more fades than after a request among many.
    rehearsal.stages[4].head = 1;
    let before = rehearsal.counted;
    rehearsal.count(context(&latency, 1100));
    assert!(is_near(
        rehearsal.counted,
        before * (1.0 - 1.0 / 1024.0) + 1.0
    ));
    assert!(is_near(rehearsal.stages[5].score, 1.0));
    assert_eq!(rehearsal.past.len(), 1, "the last one stays");
}

#[test]
fn of_too_many_requests_the_oldest_count_undecided() {
    let latency = affine();
    let arrivals: Vec<(u64, u64)> = (0..MAX_PAST as u64 + 3).map(|at| (at, at + 500)).collect();
    let mut rehearsal = rehearsal(&arrivals);
    rehearsal.count(context(&latency, 10_000));
    assert_eq!((rehearsal.past.len(), rehearsal.past[0].at), (MAX_PAST, 3));
    assert_eq!(rehearsal.stages[0].head, 0);
}

/// What is chosen with these scores, after `chosen`, if `counted` requests came within `span`.
fn choice(scores: [f64; 6], chosen: usize, span: f64, instances: usize) -> usize {
    let latency = affine();
    let mut rehearsal = Rehearsal::new();
    for (stage, score) in rehearsal.stages.iter_mut().zip(scores) {
        stage.score = score;
    }
    (rehearsal.counted, rehearsal.span, rehearsal.chosen) = (1000.0, span, chosen);
    rehearsal.choose(DecisionContext {
        instances,
        ..context(&latency, 0)
    });
    rehearsal.chosen
}

#[test]
fn the_first_manner_is_chosen_unless_another_is_better() {
    // One by one, 1000 requests take 110,000: all of one instance, or half of two.
    let with = |second: f64| [900.0, second, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(choice(with(901.9), 1, 110_000.0, 1), 0);
    assert_eq!(choice(with(902.1), 0, 110_000.0, 1), 1);
    assert_eq!(choice(with(914.9), 1, 110_000.0, 2), 0);
    assert_eq!(choice(with(915.1), 0, 110_000.0, 2), 1);
    assert_eq!(choice(with(926.9), 1, 1_100_000.0, 1), 0);
    assert_eq!(choice(with(927.1), 0, 1_100_000.0, 1), 1);
    assert_eq!(
        choice(with(902.1), 0, 55_000.0, 1),
        1,
        "overload is not less than no rest"
    );
    assert_eq!(choice([0.0; 6], 3, 110_000.0, 1), 0);
}

#[test]
fn the_present_manner_stays_if_it_is_as_good_as_the_best() {
    let with = |third: f64| [0.0, 950.0, third, 940.0, 0.0, 0.0];
    assert_eq!(choice(with(948.1), 2, 110_000.0, 1), 2);
    assert_eq!(choice(with(947.9), 2, 110_000.0, 1), 1);
    assert_eq!(
        choice([0.0, 950.0, 950.0, 0.0, 0.0, 0.0], 3, 110_000.0, 1),
        1
    );
}

#[test]
fn stages_begin_again_with_what_waits_and_runs() {
    let latency = affine();
    let mut rehearsal = rehearsal(&[(10, 500), (20, 500), (30, 500), (40, 500)]);
    rehearsal.stages[0].head = 1;
    (rehearsal.stages[1].head, rehearsal.stages[1].seen) = (3, 4);
    let two = DecisionContext {
        instances: 3,
        ..context(&latency, 45)
    };
    let live = LiveState {
        oldest: Some(30),
        busy: [70, 60].into_iter(),
    };
    rehearsal.begin_again(two, live);
    for stage in &rehearsal.stages {
        assert_eq!(
            (stage.head, stage.now, stage.free.as_slice()),
            (2, 45, &[70, 60, 0][..])
        );
    }
    assert_eq!((rehearsal.stages[0].seen, rehearsal.stages[1].seen), (2, 4));
    // The first stage had decided one, the second all, the others none.
    let answered: Vec<_> = rehearsal.past.iter().map(|past| past.answered).collect();
    assert_eq!(answered, [0b111_111_100, 0b111_111_101, 0, 0].map(by));
    assert_eq!((rehearsal.began, rehearsal.since), (45, 0));
    rehearsal.begin_again(
        two,
        LiveState {
            oldest: None,
            busy: std::iter::empty(),
        },
    );
    assert_eq!(rehearsal.stages[0].head, 3, "only the newest is left");
}

#[test]
fn nothing_is_rehearsed_while_an_instance_is_free() {
    let latency = affine();
    let rate = ArrivalRate::new(Duration::from_micros(1), Duration::from_micros(10));
    let mut rehearsal = Rehearsal::new();
    rehearsal.chosen = 3;
    rehearsal.arrived(500, 1, &rate, context(&latency, 10), nobody());
    assert!(rehearsal.past.is_empty() && rehearsal.chosen == 0);
    let busy = || LiveState {
        oldest: None,
        busy: [100].into_iter(),
    };
    rehearsal.arrived(500, 2, &rate, context(&latency, 20), busy());
    rehearsal.arrived(500, 1, &rate, context(&latency, 30), nobody());
    assert_eq!(
        (rehearsal.past.len(), rehearsal.attention),
        (2, ATTENTIVE - 2)
    );
    assert_eq!((rehearsal.past[1].before, rehearsal.past[1].at), (2, 30));
    assert_eq!(
        (rehearsal.turn, rehearsal.since, rehearsal.began),
        (2, 2, 20)
    );
    let two = DecisionContext {
        instances: 2,
        ..context(&latency, 40)
    };
    rehearsal.arrived(500, 1, &rate, two, busy());
    assert_eq!(rehearsal.attention, ATTENTIVE - 3, "one of two is free");
}

#[test]
fn stages_take_turns_and_begin_again_after_many_requests_and_long_enough() {
    let latency = affine();
    let rate = ArrivalRate::new(Duration::from_micros(1), Duration::from_micros(10));
    let mut rehearsal = Rehearsal::new();
    let mut began = Vec::new();
    for number in 1..=2100 {
        let busy = LiveState {
            oldest: None,
            busy: [0].into_iter(),
        };
        rehearsal.arrived(
            10 * number + 900,
            1,
            &rate,
            context(&latency, 10 * number),
            busy,
        );
        assert_eq!(rehearsal.turn as u64, number % 6);
        if began.last() != Some(&rehearsal.began) {
            began.push(rehearsal.began);
        }
    }
    // At the first turn after 1024 requests, in which more than four objectives pass.
    assert_eq!(began, [10, 10_260, 20_520]);
}
