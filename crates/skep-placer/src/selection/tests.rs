//! Selection by hand, and against an oracle.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn configuration(cpus: u32, concurrency: u32, batch: u32, millis: u64, mib: u64) -> Configuration {
    Configuration {
        cpus,
        concurrency,
        batch,
        latency: Duration::from_millis(millis),
        private_bytes: mib * MIB,
    }
}

fn terms(rate: f64) -> SelectionTerms {
    SelectionTerms {
        objective: Duration::from_millis(200),
        rate,
        tensor_bytes: 100 * MIB,
        shares: true,
        bytes_per_cpu: 0,
    }
}

/// Three configurations of 10, 40 and 20 requests a second.
fn three() -> [Configuration; 3] {
    [
        configuration(1, 1, 1, 100, 10),
        configuration(2, 1, 4, 100, 30),
        configuration(2, 2, 1, 100, 25),
    ]
}

#[test]
fn half_of_the_objective_may_go_into_forming_a_batch() {
    let [single, batch, _] = three();
    let millis = Duration::from_millis;
    assert!(single.keeps(millis(100)) && !single.keeps(millis(99)));
    assert!(batch.keeps(millis(200)) && !batch.keeps(millis(199)));
}

#[test]
fn the_last_instance_is_the_lightest_that_covers_what_is_left() {
    let chosen = |rate, rule| {
        let selection = select(&three(), &terms(rate), rule).expect("a selection");
        (selection.instances, selection.bytes / MIB)
    };
    // 40 requests a second for 30 MiB are the best; 100 take three of them, or two and two singles.
    let paper = chosen(100.0, SelectionRule::DecreasingThroughput);
    assert_eq!(paper, (vec![(1, 3)], 190));
    for rule in [SelectionRule::CoveringTail, SelectionRule::Exact] {
        assert_eq!(chosen(100.0, rule), (vec![(0, 2), (1, 2)], 180));
        assert_eq!(chosen(5.0, rule), (vec![(0, 1)], 110));
        assert_eq!(chosen(0.0, rule), (vec![], 0));
    }
    let exact = select(&three(), &terms(100.0), SelectionRule::Exact).expect("a selection");
    assert_eq!(
        (exact.weight, exact.weight_bound),
        ((180 * MIB) as f64, exact.weight)
    );
}

#[test]
fn without_sharing_every_instance_has_the_tensors() {
    let apart = SelectionTerms {
        shares: false,
        ..terms(100.0)
    };
    let selection = select(&three(), &apart, SelectionRule::Exact).expect("a selection");
    // Each has a copy, so that three instances are lighter than four.
    assert_eq!(selection.instances, [(1, 2), (2, 1)]);
    assert_eq!(selection.bytes, 385 * MIB);
    assert_eq!(selection.weight, (385 * MIB) as f64);
}

#[test]
fn cpus_have_a_price() {
    let configurations = [
        configuration(8, 1, 1, 10, 10),
        configuration(1, 1, 1, 20, 11),
    ];
    let chosen = |bytes_per_cpu| {
        let terms = SelectionTerms {
            bytes_per_cpu,
            ..terms(100.0)
        };
        let selection = select(&configurations, &terms, SelectionRule::Exact);
        selection.map(|one| (one.instances, one.cpus))
    };
    assert_eq!(chosen(0), Ok((vec![(0, 1)], 8)));
    assert_eq!(chosen(16 * MIB), Ok((vec![(1, 2)], 2)));
}

#[test]
fn the_closest_configuration_is_named_if_none_keeps_the_objective() {
    let short = SelectionTerms {
        objective: Duration::from_millis(50),
        ..terms(1.0)
    };
    let unsound = Configuration {
        latency: Duration::ZERO,
        ..three()[0]
    };
    fn failed(configurations: &[Configuration], terms: &SelectionTerms) -> SelectionError {
        select(configurations, terms, SelectionRule::Exact).expect_err("nothing")
    }
    let closest = (0, Duration::from_millis(100));
    assert_eq!(
        failed(&three(), &short),
        SelectionError::Objective(Some(closest))
    );
    let empty = Configuration {
        batch: 0,
        ..three()[0]
    };
    assert_eq!(
        failed(&[unsound, empty], &terms(1.0)),
        SelectionError::Objective(None)
    );
    for rate in [-1.0, f64::INFINITY, f64::NAN] {
        assert!(matches!(
            failed(&three(), &terms(rate)),
            SelectionError::Rate(_)
        ));
    }
}

/// The least weight that covers `rate`, where all throughputs are whole numbers: a table over the rates below.
fn least_weight(offers: &[(u32, u32)], rate: u32) -> u32 {
    let mut table = vec![0_u32];
    for rate in 1..=rate {
        let least = offers
            .iter()
            .map(|(throughput, weight)| weight + table[rate.saturating_sub(*throughput) as usize]);
        table.push(least.min().expect("offers"));
    }
    table[rate as usize]
}

proptest! {
    #[test]
    fn the_exact_search_is_exact_and_the_rules_are_ordered(
        offers in prop::collection::vec((1..60_u32, 1..500_u32), 1..12),
        rate in 1..400_u32,
    ) {
        let configurations: Vec<Configuration> = offers
            .iter()
            .map(|(throughput, mib)| configuration(1, *throughput, 1, 1000, u64::from(*mib)))
            .collect();
        let terms = SelectionTerms {
            objective: Duration::from_secs(1),
            tensor_bytes: 0,
            ..terms(f64::from(rate))
        };
        let weight = |rule| {
            let selection = select(&configurations, &terms, rule).expect("a selection");
            prop_assert!(selection.throughput >= f64::from(rate) - 1e-6);
            prop_assert!(selection.weight_bound <= selection.weight + 1e-6);
            Ok(selection.weight / MIB as f64)
        };
        let exact = weight(SelectionRule::Exact)?;
        prop_assert!((exact - f64::from(least_weight(&offers, rate))).abs() < 1e-6);
        let tail = weight(SelectionRule::CoveringTail)?;
        let paper = weight(SelectionRule::DecreasingThroughput)?;
        prop_assert!(exact <= tail + 1e-6 && tail <= paper + 1e-6, "{exact} {tail} {paper}");
    }
}
