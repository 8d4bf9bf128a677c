//! The look ahead, in nanoseconds: a batch of `b` takes 100 + 10 `b`.

use std::time::Duration;

use skep_types::Percentile;

use super::*;

fn dropped(now: u64, max: usize, requests: &[(u64, usize)], others: &[u64]) -> usize {
    let profile = [
        (1, Duration::from_nanos(110)),
        (8, Duration::from_nanos(180)),
    ];
    let latency = LatencyModel::new(8, &profile, Percentile::default());
    let mut ahead = LookAhead::default();
    let (requests, others) = (requests.iter().copied(), others.iter().copied());
    let terms = AheadTerms {
        now,
        latency: &latency,
        max_batch_size: max,
        price: 0.0,
        caution: None,
    };
    ahead.plan(terms, requests, others).dropped
}

/// Requests of one inference each.
fn ones(deadlines: &[u64]) -> Vec<(u64, usize)> {
    deadlines.iter().map(|deadline| (*deadline, 1)).collect()
}

#[test]
fn a_head_that_makes_more_others_late_is_dropped() {
    // Alone until 110, and the next batch would end at 220 or later.
    let requests = ones(&[110, 170, 170, 170, 170, 170, 170, 170]);
    assert_eq!(dropped(0, 8, &requests, &[]), 1);
    assert_eq!(dropped(0, 8, &requests[1..], &[]), 0);
    let later: Vec<_> = requests
        .iter()
        .map(|(deadline, size)| (deadline + 50, *size))
        .collect();
    assert_eq!(dropped(50, 8, &later, &[]), 1);
}

#[test]
fn another_instance_may_serve_the_others() {
    let requests = ones(&[110, 170, 170, 170, 170, 170, 170, 170]);
    assert_eq!(dropped(0, 8, &requests, &[0]), 0);
    // It is free too late for seven at once, and early enough for one.
    assert_eq!(dropped(0, 8, &requests, &[61]), 1);
    assert_eq!(dropped(0, 8, &ones(&[110, 170]), &[60]), 0);
}

#[test]
fn of_equally_good_numbers_the_smallest_is_dropped() {
    assert_eq!(
        dropped(0, 8, &ones(&[110, 330, 330]), &[]),
        0,
        "all are in time"
    );
    assert_eq!(
        dropped(0, 8, &ones(&[110, 150]), &[]),
        0,
        "one is in time either way"
    );
    for deadlines in [[110, 120, 120, 220], [110, 120, 170, 220]] {
        let why = "two are in time either way, the second time in one batch";
        assert_eq!(dropped(0, 8, &ones(&deadlines), &[]), 0, "{why}");
    }
    assert_eq!(dropped(0, 8, &ones(&[50, 60]), &[]), 0, "none is in time");
    assert_eq!(dropped(0, 8, &[], &[]), 0);
}

#[test]
fn as_many_are_dropped_as_allow_the_best_batch() {
    // Two are too early for a batch of four; with one of them dropped, two would be answered.
    let requests = ones(&[110, 120, 140, 140, 140, 140]);
    assert_eq!(dropped(0, 8, &requests, &[]), 2);
    // A maximum of two leaves nothing to gain by the second.
    assert_eq!(dropped(0, 2, &requests, &[]), 1);
}

#[test]
fn inferences_count_for_a_batch_and_requests_for_the_score() {
    // Three requests of two inferences fit into 160.
    assert_eq!(
        dropped(0, 8, &[(120, 2), (160, 2), (160, 2), (160, 2)], &[]),
        1
    );
    // One of six inferences fits as well, and is a single request.
    assert_eq!(dropped(0, 8, &[(120, 2), (160, 6)], &[]), 0);
}
