//! Policies that are not the scheduler's: the documented example, and what a policy must not do.

use std::time::Duration;

use skep_sim::{
    Arrivals, BatchPolicy, Contender, Decision, LatencyTable, OperatingPoint, OwnPolicy, Setup,
    SimulatedModel, TraceOutcome, WaitingRequests, Workload, simulate_own,
};
use skep_types::Time;

#[path = "../examples/own_policy.rs"]
#[expect(dead_code, reason = "its `main` prints what is checked here")]
mod example;

#[test]
fn the_example_stays_between_nothing_and_the_bound() {
    for (load, figures) in example::compare(&[0.3, 0.9]) {
        let goodput = |name: &str| {
            let mut all = figures.iter();
            let found = all.find(|figures| figures.contender.name() == name);
            found.expect("compared").goodput.median
        };
        let own = goodput("half_slack");
        assert!(own > 0.5 * goodput("auto"), "{load}: {own}");
        assert!(own <= goodput("bound"), "{load}: {own}");
    }
}

/// A policy as a function.
struct Scripted<F>(F, Vec<(usize, Duration)>);

impl<F: FnMut(&WaitingRequests<'_>) -> Decision> BatchPolicy for Scripted<F> {
    fn decide(&mut self, waiting: &WaitingRequests<'_>) -> Decision {
        (self.0)(waiting)
    }

    fn finished(&mut self, inferences: usize, took: Duration) {
        self.1.push((inferences, took));
    }
}

/// Requests of two inferences at 0, 1, 2, 3 ms, on one instance; a batch of b takes 1 + b ms, of eight at most.
fn run(
    decide: impl FnMut(&WaitingRequests<'_>) -> Decision,
) -> (TraceOutcome, Vec<(usize, Duration)>) {
    let table = LatencyTable::affine(1.0, 1.0, 8).expect("valid");
    let mut model = SimulatedModel::new(table, 1);
    model.request_size = 2;
    let arrivals = [0, 1, 2, 3].map(|ms| Time::ZERO + Duration::from_millis(ms));
    let mut policy = Scripted(decide, Vec::new());
    let setup = Setup {
        scheduler: &mut policy,
        model: &model,
        objective: Some(Duration::from_millis(9)),
        warm_up: 0,
        seed: 0,
    };
    let outcome = simulate_own(setup, Workload::Open(&arrivals));
    (outcome, policy.1)
}

/// By hand: the first two leave together at 1 ms and are answered at 6; then the third is given up, and the fourth runs
/// until 9.
#[test]
fn a_policy_by_hand() {
    let mut given_up = false;
    let (outcome, learned) = run(|waiting| {
        assert_eq!((waiting.idle, waiting.most), (1, 4));
        let ms = waiting.now.as_nanos() / 1_000_000;
        match ms {
            0 => Decision::Wait(Some(Time::ZERO + Duration::from_millis(5))),
            1 => Decision::Run(2),
            _ if !given_up => {
                given_up = true;
                assert_eq!(waiting.arrivals.len(), 2);
                Decision::GiveUp(1)
            }
            _ => Decision::Run(waiting.available()),
        }
    });
    assert_eq!((outcome.good, outcome.late, outcome.rejected), (3, 0, 1));
    assert_eq!(outcome.quantile(1.0), Some(Duration::from_millis(6)));
    assert_eq!(outcome.mean_batch(), Some(3.0));
    let ms = Duration::from_millis;
    assert_eq!(learned, [(4, ms(5)), (2, ms(3))]);
}

/// A moment that a policy waits for comes, also where nothing else happens.
#[test]
fn a_policy_waits_until_its_moment() {
    let until = Time::ZERO + Duration::from_millis(7);
    let (outcome, _) = run(|waiting| {
        if waiting.now < until {
            Decision::Wait(Some(until))
        } else {
            Decision::Run(waiting.available())
        }
    });
    assert_eq!(outcome.quantile(1.0), Some(Duration::from_millis(16)));
}

#[test]
#[should_panic(expected = "the policy runs 5 requests, expected 1 to 1")]
fn more_than_there_are() {
    run(|_| Decision::Run(5));
}

#[test]
#[should_panic(expected = "the policy gives up 0 requests, expected 1 to 1")]
fn nothing_given_up() {
    run(|_| Decision::GiveUp(0));
}

#[test]
#[should_panic(expected = "expected a moment after")]
fn waiting_until_a_past_moment() {
    run(|waiting| Decision::Wait(Some(waiting.now)));
}

#[test]
#[should_panic(
    expected = "the policy answered `Wait(None)` with 4 requests in the queue, and nothing happens any more"
)]
fn requests_left_for_ever() {
    run(|_| Decision::Wait(None));
}

#[test]
#[should_panic(expected = "policy `lazy` answered `Wait(None)` with 20 requests in the queue")]
fn a_comparison_names_the_policy() {
    let table = LatencyTable::affine(1.0, 1.0, 8).expect("valid");
    let point = OperatingPoint {
        model: &SimulatedModel::new(table, 1),
        objective: Duration::from_millis(9),
        arrivals: &Arrivals::Constant,
        rate: 100.0,
        requests: 20,
        warm_up: 2,
        seeds: &[0],
    };
    let lazy = OwnPolicy::new("lazy", |_, _| {
        let waits = |_: &WaitingRequests<'_>| Decision::Wait(None);
        Box::new(Scripted(waits, Vec::new()))
    });
    let _ = point.compare(&[Contender::Own(lazy)]);
}
