//! Whole simulations of a small cluster.

use super::*;
use crate::Jitter;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Two models that share a tensor, in one application and apart, on four nodes.
pub(super) fn scenario() -> ClusterScenario {
    let formula = LatencyFormula {
        fixed_ms: 10.0,
        item_ms: 40.0,
        parallel: 0.9,
        private_bytes: 8 * MIB,
        request_bytes: MIB,
        max_batch: 4,
        max_concurrency: 4,
    };
    let tensor = |number: u8, mib: u64| (TensorKey([number; 32]), mib * MIB);
    let model = |name: &str, ms, tensors| ClusterModel {
        name: name.to_owned(),
        objective: Duration::from_millis(ms),
        tensors,
        configurations: formula.configurations(&[1, 2, 4, 8]),
    };
    let span = Duration::from_secs(600);
    let application = |name: &str, stages: &[usize], seed| Application {
        name: name.to_owned(),
        stages: stages.to_vec(),
        arrivals: RatePattern::Bursty.arrivals(20.0, span, seed),
    };
    ClusterScenario {
        nodes: 4,
        node: Resources {
            bytes: 32 << 30,
            millicores: 64_000,
        },
        models: vec![
            model("a", 300, vec![tensor(1, 80), tensor(2, 20)]),
            model("b", 200, vec![tensor(1, 80), tensor(3, 10)]),
        ],
        applications: vec![application("both", &[0, 1], 1), application("one", &[1], 2)],
        span,
        costs: StartCosts {
            process: Duration::from_millis(800),
            process_bytes: 90 * MIB,
            instance: Duration::from_millis(30),
            bytes_per_second: 1e9,
        },
        jitter: Jitter::LogNormal(0.05),
        keep_alive: Duration::from_secs(60),
        bytes_per_cpu: 16 * MIB,
        spread: 1.0,
        seed: 7,
    }
}

fn run(scenario: &ClusterScenario, platform: Platform) -> ClusterOutcome {
    simulate(scenario, platform, None).expect("valid")
}

#[test]
fn every_platform_answers_all_requests_and_repeats_itself() {
    let scenario = scenario();
    for platform in Platform::ALL {
        let outcome = run(&scenario, platform);
        assert_eq!(outcome.requests, scenario.requests(), "{platform}");
        assert_eq!(outcome.late(), outcome.late_of.iter().sum::<usize>());
        assert!(outcome.late_part() < 0.2, "{platform}: {outcome:?}");
        assert!(
            outcome.cold > 0 && outcome.starts > 1,
            "{platform}: {outcome:?}"
        );
        assert!(outcome.mean_distinct_bytes <= outcome.mean_tensor_bytes);
        assert!(outcome.mean_tensor_bytes < outcome.mean_bytes);
        assert_eq!(outcome.unplaced, 0, "{platform}");
        assert_eq!(outcome, run(&scenario, platform), "{platform}");
    }
}

#[test]
fn sharing_takes_less_memory_than_its_absence() {
    let scenario = scenario();
    let bytes = |platform| run(&scenario, platform).mean_bytes;
    assert!(bytes(Platform::Tetris) < bytes(Platform::TetrisRo));
    assert!(bytes(Platform::Skep) < bytes(Platform::Tetris));
}

#[test]
fn a_cluster_that_is_too_small_says_so() {
    let mut small = scenario();
    small.node.millicores = 8_000;
    small.nodes = 1;
    let outcome = run(&small, Platform::Tetris);
    assert!(
        outcome.unplaced > 0 && outcome.late_part() > 0.2,
        "{outcome:?}"
    );
    small.node.bytes = 100 * MIB;
    let error = simulate(&small, Platform::Tetris, None).expect_err("too small");
    let text = error.to_string();
    assert!(
        text.contains("model `a`") && text.contains("a node has 100 MiB"),
        "{text}"
    );
}

#[test]
fn an_objective_that_nothing_keeps_names_the_closest() {
    let mut scenario = scenario();
    scenario.models[1].objective = Duration::from_millis(15);
    let error = simulate(&scenario, Platform::Infless, None).expect_err("too short");
    let text = error.to_string();
    assert!(
        text.contains("model `b`") && text.contains("8 CPUs, 1 at a time"),
        "{text}"
    );
    scenario.applications.clear();
    assert_eq!(
        simulate(&scenario, Platform::Infless, None),
        Err(InvalidScenario::Empty("applications"))
    );
}
