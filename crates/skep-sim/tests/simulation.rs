//! Simulations whose outcome is known.

use std::{fmt::Write, time::Duration};

use expect_test::expect;
use skep_scheduler::{
    ObjectivePolicy, Policy, QueuePolicy, SchedulerOptions, TimeoutAction, TritonPolicy,
};
use skep_sim::{
    Arrivals, Clients, Contender, Jitter, LatencyTable, OperatingPoint, RandomPurpose,
    RandomStream, Setup, SimulatedModel, TraceOutcome, Workload, simulate,
};
use skep_types::Time;

fn affine(base_ms: f64, per_inference_ms: f64, max: usize) -> LatencyTable {
    LatencyTable::affine(base_ms, per_inference_ms, max).expect("a valid table")
}

fn triton(max: usize, delay_ms: f64) -> SchedulerOptions {
    let triton = TritonPolicy {
        max_queue_delay: Duration::from_secs_f64(delay_ms / 1e3),
        ..TritonPolicy::default()
    };
    SchedulerOptions {
        max_batch_size: max,
        policy: Policy::Triton(triton),
        ..SchedulerOptions::one_by_one(usize::MAX)
    }
}

fn run(scheduler: SchedulerOptions, model: &SimulatedModel, load: Workload<'_>) -> TraceOutcome {
    let setup = Setup {
        scheduler,
        model,
        objective: Some(Duration::from_millis(20)),
        warm_up: 0,
        seed: 1,
    };
    simulate(setup, load)
}

fn at(ms: &[f64]) -> Vec<Time> {
    let time = |ms: &f64| Time::ZERO + Duration::from_secs_f64(ms / 1e3);
    ms.iter().map(time).collect()
}

fn show(outcome: &TraceOutcome) -> String {
    let mut text = format!(
        "sent {} in {:?}: {} good, {} late, {} rejected\n",
        outcome.sent, outcome.span, outcome.good, outcome.late, outcome.rejected
    );
    for share in [0.5, 0.95, 0.99, 1.0] {
        let latency = outcome.quantile(share).unwrap_or_default();
        writeln!(text, "p{}: {latency:?}", share * 100.0).expect("a string takes all");
    }
    let mean = outcome.mean_batch().unwrap_or_default();
    write!(text, "{} executions of {mean:.3}", outcome.executions()).expect("a string takes all");
    for (end, count) in outcome.batches().filter(|(_, count)| *count > 0) {
        write!(text, ", {} {count}", end.name()).expect("a string takes all");
    }
    text
}

/// By hand: the first waits 4 ms for others, gets two, and they run for 10 ms together. The fourth comes during that,
/// and has waited for longer than its 4 ms when the instance is free again.
#[test]
fn a_batch_by_hand() {
    let model = SimulatedModel::new(affine(10.0, 0.0001, 8), 1);
    let arrivals = at(&[0.0, 1.0, 3.0, 6.0]);
    let outcome = run(triton(8, 4.0), &model, Workload::Open(&arrivals));
    expect![[r#"
        sent 4 in 6ms: 4 good, 0 late, 0 rejected
        p50: 13.0003ms
        p95: 18.0004ms
        p99: 18.0004ms
        p100: 18.0004ms
        2 executions of 2.000, queue_delay 2"#]]
    .assert_eq(&show(&outcome));
}

/// Two executions of 4 ms begin together on two instances, the second beside the first; and a third when the first is
/// done, again beside one.
#[test]
fn executions_stretch_each_other_by_hand() {
    let mut model = SimulatedModel::new(affine(4.0, 0.0, 1), 2);
    model.stretch = 0.5;
    let arrivals = at(&[1.0, 1.0, 1.0]);
    let options = SchedulerOptions::one_by_one(usize::MAX);
    let outcome = run(options, &model, Workload::Open(&arrivals));
    let latency = |rank: f64| outcome.quantile(rank / 3.0);
    assert_eq!(latency(1.0), Some(Duration::from_millis(4)));
    assert_eq!(latency(2.0), Some(Duration::from_millis(6)));
    assert_eq!(latency(3.0), Some(Duration::from_millis(10)));
}

/// Jitter is distributed around the table, and reaches as far as it says.
#[test]
fn jitter_has_its_quantiles() {
    let uniform = [(0.0, 0.6), (0.25, 0.8), (0.5, 1.0), (0.75, 1.2), (1.0, 1.4)];
    check_jitter(Jitter::Uniform(0.4), &uniform);
    // Of a normal distribution 15.87 % lie beyond one standard deviation to each side.
    let factor = |deviations: f64| (0.2 * deviations).exp();
    let log_normal = [
        (0.0, factor(-3.0)),
        (0.1587, factor(-1.0)),
        (0.5, 1.0),
        (0.8413, factor(1.0)),
        (1.0, factor(3.0)),
    ];
    check_jitter(Jitter::LogNormal(0.2), &log_normal);
}

fn check_jitter(jitter: Jitter, quantiles: &[(f64, f64)]) {
    let mut model = SimulatedModel::new(affine(1.0, 0.0, 1), 1);
    model.jitter = jitter;
    let clients = Clients {
        count: 1,
        together: false,
        requests: 50_000,
        pause: Duration::ZERO,
    };
    let options = SchedulerOptions::one_by_one(1);
    let outcome = run(options, &model, Workload::Closed(clients));
    for &(share, expected) in quantiles {
        let latency = outcome.quantile(share).expect("answers").as_secs_f64() * 1e3;
        assert!((latency - expected).abs() < 0.01, "{share}: {latency} ms");
    }
}

/// A figure of queueing theory: in an M/D/1 queue at load 0.8 a request waits for 2 services on average, whatever the
/// scheduler does in detail (Pollaczek and Khinchine).
#[test]
fn one_by_one_is_an_m_d_1_queue() {
    let model = SimulatedModel::new(affine(1.0, 0.0001, 1), 1);
    let mut random = RandomStream::new(5, RandomPurpose::Arrivals);
    let rate = 0.8 * model.capacity().rate;
    let arrivals = Arrivals::Poisson.generate(rate, 400_000, &mut random);
    let options = SchedulerOptions::one_by_one(usize::MAX);
    let outcome = run(options, &model, Workload::Open(&arrivals));
    let mean_waiting = mean_ms(&outcome) - 1.0001;
    assert!((mean_waiting - 2.0).abs() < 0.06, "{mean_waiting} ms");
}

/// The mean, from quantiles at equal distances.
fn mean_ms(outcome: &TraceOutcome) -> f64 {
    let ranks = 20_000;
    let quantile = |rank: i32| {
        let share = (f64::from(rank) + 0.5) / f64::from(ranks);
        outcome.quantile(share).unwrap_or_default().as_secs_f64() * 1e3
    };
    (0..ranks).map(quantile).sum::<f64>() / f64::from(ranks)
}

/// `c` clients with requests of 2 inferences, and one instance: while one batch runs the answers to the batch before it
/// come back as requests, so two batches alternate and all clients are served once in the time of both.
#[test]
fn a_closed_loop_runs_two_batches_in_turn() {
    let mut model = SimulatedModel::new(affine(1.87, 0.087, 8), 1);
    model.request_size = 2;
    for count in 2..=8 {
        let clients = Clients {
            count,
            together: false,
            requests: 20_000,
            pause: Duration::ZERO,
        };
        let outcome = run(triton(8, 0.0), &model, Workload::Closed(clients));
        let inferences_per_ms = 2.0 * outcome.throughput() / 1e3;
        let all = 2.0 * count as f64;
        let expected = all / (2.0 * 1.87 + 0.087 * all);
        assert!(
            (inferences_per_ms / expected - 1.0).abs() < 0.002,
            "{count} clients: {inferences_per_ms} of {expected} inferences/ms"
        );
    }
}

/// With a delay that lets them, clients that begin together stay together: each batch is of all of them, and between
/// two of them lies what the clients pause and the delay. Those that begin apart wait for each other's batch for ever.
#[test]
fn a_delay_keeps_clients_together() {
    let mut model = SimulatedModel::new(affine(1.87, 0.087, 8), 1);
    model.request_size = 2;
    for (together, inferences, ms) in [
        (true, 4.0, 1.87 + 0.087 * 4.0 + 1.0 + 0.25),
        (false, 2.0, 1.87 + 0.087 * 2.0),
    ] {
        let clients = Clients {
            count: 2,
            together,
            requests: 20_000,
            pause: Duration::from_micros(250),
        };
        let outcome = run(triton(8, 1.0), &model, Workload::Closed(clients));
        let ratio = 2.0 * outcome.throughput() / 1e3 / (inferences / ms);
        assert!((ratio - 1.0).abs() < 0.002, "together {together}: {ratio}");
    }
}

/// A client's pause counts: one client, one request after the other.
#[test]
fn a_client_pauses() {
    let model = SimulatedModel::new(affine(1.0, 1.0, 4), 1);
    let clients = Clients {
        count: 1,
        together: false,
        requests: 1000,
        pause: Duration::from_millis(3),
    };
    let outcome = run(triton(4, 0.0), &model, Workload::Closed(clients));
    assert!((outcome.throughput() - 200.0).abs() < 1.0);
    assert_eq!(outcome.quantile(1.0), Some(Duration::from_millis(2)));
}

/// The textbook's problem: a batch of b takes 1 + b/4 ms, and four of them are always under way, so that a request
/// takes four batches' time. Throughput grows with b, and so does latency: of an objective of 20 ms the last b leaves
/// nothing.
#[test]
fn larger_batches_carry_more_and_take_longer() {
    let model = SimulatedModel::new(affine(1.0, 0.25, 16), 1);
    let mut outcomes = Vec::new();
    for max in [1, 2, 4, 8, 16] {
        let clients = Clients {
            count: 4 * max,
            together: false,
            requests: 50_000,
            pause: Duration::ZERO,
        };
        let outcome = run(triton(max, 0.0), &model, Workload::Closed(clients));
        // Four batches wait or run at any time.
        let batch_ms = 1.0 + 0.25 * max as f64;
        let p50 = outcome.quantile(0.5).expect("answers").as_secs_f64() * 1e3;
        assert!((p50 - 4.0 * batch_ms).abs() < batch_ms, "{max}: {p50} ms");
        let expected = max as f64 / batch_ms * 1e3;
        assert!((outcome.throughput() / expected - 1.0).abs() < 0.01);
        outcomes.push(outcome);
    }
    assert!(outcomes.is_sorted_by(|a, b| a.throughput() < b.throughput()));
    // The clients that begin while the first of them runs alone find a little more before them.
    assert_eq!(outcomes[4].quantile(0.99), Some(Duration::from_millis(20)));
}

/// Jitter, stretch, several instances, rejections: the same seed gives the same outcome, another one another.
#[test]
fn the_same_seed_gives_the_same_outcome() {
    let mut model = SimulatedModel::new(affine(1.87, 0.087, 16), 3);
    model.jitter = Jitter::Uniform(0.2);
    model.stretch = 0.1;
    let outcome = |seed: u64| {
        let mut random = RandomStream::new(seed, RandomPurpose::Arrivals);
        let rate = 1.1 * model.capacity().rate;
        let bursty = Arrivals::Bursty { variation: 4.0 };
        let arrivals = bursty.generate(rate, 5000, &mut random);
        let mut options = triton(16, 0.5);
        options.levels = vec![QueuePolicy {
            timeout: Some(Duration::from_millis(15)),
            timeout_action: TimeoutAction::Reject,
            ..QueuePolicy::default()
        }];
        let setup = Setup {
            scheduler: options,
            model: &model,
            objective: Some(Duration::from_millis(18)),
            warm_up: 500,
            seed,
        };
        simulate(setup, Workload::Open(&arrivals))
    };
    assert_eq!(outcome(1), outcome(1));
    assert_ne!(outcome(1), outcome(2));
    expect![[r#"
        sent 4500 in 298.86875ms: 3096 good, 719 late, 685 rejected
        p50: 16.107246ms
        p95: 18.919356ms
        p99: 19.400036ms
        p100: 19.545806ms
        240 executions of 15.863, max_batch_size 232, queue_delay 8"#]]
    .assert_eq(&show(&outcome(1)));
}

/// `auto` does as well as whichever of `edf` and `deferred` is better, and better than both where the load stays too
/// high.
#[test]
fn auto_finds_the_better_way() {
    let [edf, deferred, auto] = [
        ObjectivePolicy::Edf,
        ObjectivePolicy::Deferred,
        ObjectivePolicy::Auto,
    ]
    .map(Contender::Objective);
    let bursty = Arrivals::Bursty { variation: 4.0 };
    // Instances, multiples of a single request's latency, arrivals, load; what `edf` does beside `deferred`, and
    // `auto` beside the better one at least.
    for (instances, times, arrivals, load, ratio, least) in [
        (4, 2.0, &bursty, 0.1, ..0.95, 0.98),
        (4, 2.0, &bursty, 0.3, ..0.92, 0.97),
        (4, 2.0, &Arrivals::Poisson, 0.8, ..1.1, 1.05),
        (1, 5.0, &Arrivals::Poisson, 1.0, ..1.1, 1.05),
        (1, 2.0, &bursty, 0.5, ..0.9, 0.98),
    ] {
        let model = SimulatedModel::new(affine(1.87, 0.087, 64), instances);
        let point = OperatingPoint {
            model: &model,
            objective: model.table.latency(1).mul_f64(times),
            arrivals,
            rate: load * model.capacity().rate,
            requests: 10_000,
            warm_up: 1000,
            seeds: &[0, 1, 2],
        };
        let figures = point.compare(&[edf.clone(), deferred.clone(), auto.clone()]);
        let [edf, deferred, auto] = [0, 1, 2].map(|index| figures[index].goodput.median);
        let what = format!("{instances} {times}x {arrivals:?} {load}: {edf} {deferred} {auto}");
        assert!(ratio.contains(&(edf / deferred)), "{what}");
        assert!(auto >= least * edf.max(deferred), "{what}");
    }
}

/// Rejected clients come back, but not at the same moment.
#[test]
fn rejected_clients_do_not_stop_time() {
    let model = SimulatedModel::new(affine(5.0, 1.0, 1), 1);
    let options = SchedulerOptions::one_by_one(1);
    let clients = Clients {
        count: 5,
        together: false,
        requests: 500,
        pause: Duration::ZERO,
    };
    let outcome = run(options, &model, Workload::Closed(clients));
    assert!(outcome.rejected > 100);
    assert_eq!(outcome.good + outcome.late + outcome.rejected, 500);
}

/// Traces of bursts offer different rates, so that the median of the goodputs and that of the shares are those of
/// different traces. The share is what tables show.
#[test]
fn the_best_static_setting_is_not_below_the_default() {
    let table = LatencyTable::affine(1.87, 0.087, 64).expect("valid");
    let mut model = SimulatedModel::new(table, 1);
    model.jitter = Jitter::LogNormal(0.2);
    for load in [0.5, 0.8] {
        for ms in [10, 20] {
            let point = OperatingPoint {
                model: &model,
                objective: Duration::from_millis(ms),
                arrivals: &Arrivals::Bursty { variation: 4.0 },
                rate: load * model.capacity().rate,
                requests: 4000,
                warm_up: 400,
                seeds: &[0, 1, 2],
            };
            let figures = point.compare(&[
                Contender::TritonDefault,
                Contender::StaticBest,
                Contender::StaticTimeout,
            ]);
            let shares: Vec<f64> = figures.iter().map(|f| f.in_time.median).collect();
            assert!(shares[1] >= shares[0], "{load}, {ms} ms: {shares:?}");
            assert!(shares[2] >= shares[0], "{load}, {ms} ms: {shares:?}");
        }
    }
}
