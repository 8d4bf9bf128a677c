//! Choices on a made-up machine: latency even in the batch, Amdahl in the threads, a little more for each other instance.

use expect_test::expect;

use super::*;

/// A model: milliseconds of a batch besides its inferences, and of each; the part that threads share; what each other
/// instance adds.
#[derive(Clone, Copy)]
struct Made {
    base: f64,
    each: f64,
    shared: f64,
    beside: f64,
}

const MODEL: Made = Made {
    base: 4.0,
    each: 2.0,
    shared: 0.8,
    beside: 0.02,
};

impl Made {
    fn millis(self, instances: u32, threads: u32, batch: u32) -> f64 {
        let work = self.base + self.each * f64::from(batch);
        let parallel = 1.0 - self.shared + self.shared / f64::from(threads);
        work * parallel * (1.0 + self.beside * f64::from(instances - 1))
    }

    fn point(self, instances: u32, threads: u32, batch: u32) -> ProfilePoint {
        let millis = self.millis(instances, threads, batch);
        ProfilePoint {
            instances,
            threads,
            batch,
            typical: Duration::from_secs_f64(millis / 1e3),
            late: Duration::from_secs_f64(1.25 * millis / 1e3),
        }
    }

    /// All points of so many cores, with batches of powers of two.
    fn profile(self, cores: u32) -> LatencyProfile {
        let mut points = Vec::new();
        for threads in 1..=cores {
            for instances in 1..=cores / threads {
                points.extend([1, 2, 4, 8].map(|batch| self.point(instances, threads, batch)));
            }
        }
        LatencyProfile::new(points).expect("points")
    }
}

fn terms(cores: u32, rate: f64) -> RunTerms {
    RunTerms {
        cores,
        max_threads: cores,
        rate,
        objective: None,
        max_batch: 8,
        is_batch_fixed: false,
        batch_delay: Duration::ZERO,
    }
}

fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}

fn chosen(terms: &RunTerms) -> RunDecision {
    decide(&MODEL.profile(terms.cores), terms, None, at(0)).expect("a choice")
}

const fn run(instances: u32, threads: u32, batch: u32) -> RunConfiguration {
    RunConfiguration {
        instances,
        threads,
        batch,
    }
}

#[test]
fn one_instance_with_all_cores_is_soonest_and_several_serve_more() {
    let rates = [0.0, 50.0, 150.0, 400.0, 900.0, 2000.0];
    let choices = rates.map(|rate| format!("{rate}: {}\n", chosen(&terms(4, rate)).why));
    expect![[r#"
        0: 1 instance x 4 threads, batches of up to 2: predicted p95 3.00 ms at rest; 1 instance x 3 threads would take 3.50 ms
        50: 1 instance x 4 threads, batches of up to 2: predicted p95 4.04 ms at 50 requests/s; 2 instances x 2 threads would take 4.57 ms
        150: 1 instance x 4 threads, batches of up to 2: predicted p95 5.04 ms at 150 requests/s; 2 instances x 2 threads would take 5.45 ms
        400: 1 instance x 4 threads, batches of up to 4: predicted p95 7.50 ms at 400 requests/s; 2 instances x 2 threads would take 7.97 ms
        900: 2 instances x 2 threads, batches of up to 5: predicted p95 14.5 ms at 900 requests/s; 4 instances x 1 thread would take 17.7 ms
        2000: 4 instances x 1 thread, batches of up to 8: predicted 1509 requests/s, and 2000 arrive: no configuration serves them
    "#]].assert_eq(&choices.concat());
}

#[test]
fn an_objective_is_kept_with_the_fewest_cores() {
    let with = |rate, millis| {
        let objective = Some(Duration::from_millis(millis));
        let terms = RunTerms {
            objective,
            ..terms(4, rate)
        };
        format!("{millis}: {}\n", chosen(&terms).why)
    };
    let choices = [with(50.0, 40), with(50.0, 8), with(50.0, 5), with(50.0, 1)];
    expect![[r#"
        40: 1 instance x 1 thread, batches of up to 2: predicted p95 12.2 ms at 50 requests/s, within 40.0 ms; 1 instance x 4 threads would take 4.02 ms
        8: 1 instance x 2 threads, batches of up to 2: predicted p95 6.70 ms at 50 requests/s, within 8.00 ms; 1 instance x 4 threads would take 4.02 ms
        5: 1 instance x 3 threads, batches of up to 2: predicted p95 4.85 ms at 50 requests/s, within 5.00 ms; 1 instance x 4 threads would take 4.02 ms
        1: 1 instance x 4 threads, batches of up to 2: predicted p95 4.04 ms at 50 requests/s, more than the objective of 1.00 ms; 2 instances x 2 threads would take 4.57 ms
    "#]].assert_eq(&choices.concat());
}

#[test]
fn a_change_has_to_be_worth_it() {
    let profile = MODEL.profile(4);
    let decide = |rate, configuration, seconds: u64| {
        let present = PresentRun {
            configuration,
            since: at(100),
        };
        let decision = decide(&profile, &terms(4, rate), Some(present), at(100 + seconds));
        decision.expect("a choice").configuration
    };
    let best = decide(50.0, run(1, 1, 1), 20);
    assert_eq!(best, run(1, 4, 2));
    // Not before twenty seconds are over.
    assert_eq!(decide(50.0, run(1, 1, 1), 19), run(1, 1, 1));
    // Two instances are nearly as good.
    assert_eq!(decide(50.0, run(2, 2, 2), 1000), run(2, 2, 2));
    // What does not serve the rate leaves after three seconds.
    assert_eq!(decide(900.0, run(1, 4, 1), 2), run(1, 4, 1));
    assert_ne!(decide(900.0, run(1, 4, 1), 3), run(1, 4, 1));
    // More cores than there are now: at once.
    assert_ne!(decide(50.0, run(2, 4, 1), 0), run(2, 4, 1));
    // One that was never measured says nothing.
    assert_eq!(decide(50.0, run(1, 1, 64), 0), run(1, 4, 2));
}

#[test]
fn fewer_cores_that_keep_the_objective_are_worth_a_change() {
    let terms = RunTerms {
        objective: Some(Duration::from_millis(40)),
        ..terms(4, 20.0)
    };
    let present = |threads| PresentRun {
        configuration: run(1, threads, 8),
        since: at(0),
    };
    let decide = |threads, seconds: u64| {
        let decision = decide(
            &MODEL.profile(4),
            &terms,
            Some(present(threads)),
            at(seconds),
        );
        decision.expect("a choice").configuration
    };
    assert_eq!(decide(4, 10), run(1, 4, 8));
    assert_eq!(decide(4, 30).threads, 1);
    assert_eq!(decide(1, 30), run(1, 1, 8), "as few already");
}

#[test]
fn what_lies_between_is_that_of_the_model() {
    // As `skep profile` measures four cores, and batches of 1 and 8.
    let grid = [(1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1)];
    let points = grid.iter().flat_map(|(instances, threads)| {
        [1, 8].map(|batch| MODEL.point(*instances, *threads, batch))
    });
    let profile = LatencyProfile::new(points).expect("points");
    for (instances, threads, batch) in [(1, 3, 4), (3, 1, 2), (2, 2, 8), (2, 3, 1), (1, 4, 7)] {
        let found = profile.latency(f64::from(instances), threads, f64::from(batch));
        let [typical, late] = found.expect("measured around it");
        let true_seconds = MODEL.millis(instances, threads, batch) / 1e3;
        assert!(
            (typical / true_seconds - 1.0).abs() < 0.02,
            "{instances} {threads} {batch}"
        );
        assert!((late / typical - 1.25).abs() < 0.01);
    }
    assert_eq!(profile.latency(1.0, 5, 1.0), None, "more threads");
    assert_eq!(profile.latency(1.0, 2, 9.0), None, "larger batches");
    assert_eq!(profile.batches(16), [1, 8]);
    assert_eq!(profile.batches(4), [1]);
    assert_eq!(profile.most_threads(), 4);
}

#[test]
fn points_that_say_nothing_do_not_count() {
    assert_eq!(LatencyProfile::new([]), None);
    let broken = ProfilePoint {
        batch: 0,
        ..MODEL.point(1, 1, 1)
    };
    assert_eq!(LatencyProfile::new([broken]), None);
    let never = ProfilePoint {
        typical: Duration::ZERO,
        ..MODEL.point(1, 1, 1)
    };
    assert_eq!(LatencyProfile::new([never]), None);
    let profile = LatencyProfile::new([MODEL.point(1, 2, 4)]).expect("a point");
    // Nothing for a model that takes smaller batches only.
    assert_eq!(
        decide(
            &profile,
            &RunTerms {
                max_batch: 2,
                ..terms(4, 1.0)
            },
            None,
            at(0)
        ),
        None
    );
    assert_eq!(
        decide(&profile, &terms(1, 1.0), None, at(0)),
        None,
        "2 threads, one core"
    );
}

#[test]
fn waiting_for_a_batch_counts() {
    let profile = MODEL.profile(1);
    let predict = |batch, rate, delay_ms| {
        let terms = RunTerms {
            batch_delay: Duration::from_millis(delay_ms),
            ..terms(1, rate)
        };
        let prediction = profile.predict(run(1, 1, batch), &terms).expect("measured");
        prediction.late.as_secs_f64() * 1e3
    };
    // A single request takes 7.5 ms, and now and then two come together.
    let alone = predict(8, 1.0, 0);
    assert!((alone - 7.5).abs() < 0.1, "{alone}");
    let delayed = predict(8, 1.0, 10) - alone;
    assert!((delayed - 10.0).abs() < 0.1, "{delayed}");
    let single = predict(1, 1.0, 10) - alone;
    assert!(single.abs() < 0.1, "no batch, no delay: {single}");
    // At 100 a second most batches of two are full before 50 ms are over.
    let full_before = predict(2, 100.0, 50) - predict(2, 100.0, 0);
    assert!((10.0..40.0).contains(&full_before), "{full_before}");
}

/// One instance, and batches of 8 that take 16 ms, as good as whatever their size: what comes during a batch leaves with the
/// next one, so nobody waits for more than one batch and takes one.
#[test]
fn batches_empty_the_queue() {
    let points = [1, 8].map(|batch| ProfilePoint {
        instances: 1,
        threads: 1,
        batch,
        typical: Duration::from_millis(16),
        late: Duration::from_millis(16),
    });
    let profile = LatencyProfile::new(points).expect("points");
    let late = |rate| {
        let prediction = profile
            .predict(run(1, 1, 8), &terms(1, rate))
            .expect("measured");
        prediction.late.as_secs_f64() * 1e3
    };
    assert!((16.0..16.1).contains(&late(0.1)), "{}", late(0.1));
    // 95 of 100 wait for at most 19 of 20 parts of a batch while all leave with the next one.
    let evenly = late(100.0);
    assert!((30.0..32.1).contains(&evenly), "{evenly}");
    // At three quarters of what batches of 8 serve, some wait for a second one.
    let busier = late(375.0);
    assert!((31.0..40.0).contains(&busier), "{busier}");
}
