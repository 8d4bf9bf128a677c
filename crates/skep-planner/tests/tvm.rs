//! The results that TVM's own tests of its unified static memory planner expect, as facts:
//! `tests/python/unittest/test_tir_usmp_algo.py` of apache/tvm. Conflict lists are directed, as written there.

use skep_planner::baselines::tvm::{
    Algorithm::{self, GreedyByConflicts, GreedyBySize, HillClimb},
    PoolsExceeded, TvmBuffer, plan, pool_sizes,
};

const ALGORITHMS: [Algorithm; 3] = [GreedyBySize, GreedyByConflicts, HillClimb];

/// Buffers out of (name, size, conflicts), in the order of their names.
fn buffers(table: &[(&str, u64, &[&str])], alignment: u64) -> Vec<TvmBuffer> {
    let mut names: Vec<&str> = table.iter().map(|row| row.0).collect();
    names.sort_unstable();
    let number = |name: &&str| {
        names
            .iter()
            .position(|other| other == name)
            .expect("a name")
    };
    let mut buffers = vec![None; table.len()];
    for (name, size, conflicts) in table {
        buffers[number(name)] = Some(TvmBuffer {
            size: *size,
            alignment,
            conflicts: conflicts.iter().map(number).collect(),
        });
    }
    buffers.into_iter().flatten().collect()
}

fn workspace(table: &[(&str, u64, &[&str])], algorithm: Algorithm) -> u64 {
    let buffers = buffers(table, 1);
    let places = plan(algorithm, &buffers, &[u64::MAX], 0).expect("no limit");
    pool_sizes(&buffers, &places, 1)[0]
}

#[test]
fn names_decide_between_equals() {
    let buffers = buffers(
        &[
            ("bi_a", 10, &["bi_b", "bi_c"]),
            ("bi_b", 10, &["bi_c", "bi_a"]),
            ("bi_c", 10, &["bi_a", "bi_b"]),
        ],
        1,
    );
    for algorithm in ALGORITHMS {
        let places = plan(algorithm, &buffers, &[u64::MAX], u64::MAX).expect("no limit");
        let offsets: Vec<u64> = places.iter().map(|place| place.offset).collect();
        assert_eq!(offsets, [20, 10, 0], "{algorithm:?}");
    }
}

#[test]
fn linear() {
    for algorithm in ALGORITHMS {
        let size = workspace(
            &[
                ("bi_a", 10, &["bi_b"]),
                ("bi_b", 20, &["bi_a", "bi_c"]),
                ("bi_c", 100, &["bi_b", "bi_d"]),
                ("bi_d", 40, &["bi_c", "bi_e"]),
                ("bi_e", 50, &["bi_d", "bi_f"]),
                ("bi_f", 50, &["bi_e"]),
            ],
            algorithm,
        );
        assert_eq!(size, 140, "{algorithm:?}");
    }
}

#[test]
fn fanout() {
    for (algorithm, expected) in [
        (GreedyBySize, 190),
        (GreedyByConflicts, 320),
        (HillClimb, 190),
    ] {
        let size = workspace(
            &[
                ("bi_a", 10, &["bi_b", "bi_c"]),
                ("bi_b", 20, &["bi_a", "bi_c", "bi_e"]),
                ("bi_c", 100, &["bi_e", "bi_a", "bi_b", "bi_d"]),
                ("bi_d", 40, &["bi_b", "bi_f", "bi_c", "bi_e"]),
                ("bi_e", 50, &["bi_c", "bi_f", "bi_b", "bi_d"]),
                ("bi_f", 60, &["bi_d", "bi_e", "bi_f"]),
                ("bi_g", 70, &["bi_f"]),
            ],
            algorithm,
        );
        assert_eq!(size, expected, "{algorithm:?}");
    }
}

#[test]
fn part_of_mobilenet_in_two_pools() {
    let buffers = buffers(
        &[
            ("sid_9", 301_056, &["PaddedInput_7"]),
            (
                "sid_8",
                802_816,
                &["PaddedInput_7", "Conv2dOutput_7", "tensor_2"],
            ),
            (
                "PaddedInput_7",
                314_646,
                &["sid_9", "sid_8", "Conv2dOutput_7"],
            ),
            ("Conv2dOutput_7", 256, &["sid_8", "PaddedInput_7"]),
            ("tensor_2", 200_704, &["sid_8"]),
        ],
        16,
    );
    for (algorithm, slow) in [
        (GreedyBySize, 1_418_528),
        (GreedyByConflicts, 1_418_528),
        (HillClimb, 1_117_462),
    ] {
        let places = plan(algorithm, &buffers, &[200_704, u64::MAX], 1_117_718).expect("room");
        let sizes = pool_sizes(&buffers, &places, 2);
        assert_eq!(sizes, [200_704, slow], "{algorithm:?}");
    }
}

#[test]
fn pools_that_are_too_small() {
    let table: &[(&str, u64, &[&str])] = &[
        ("bi_a", 10, &["bi_b"]),
        ("bi_b", 10, &["bi_c"]),
        ("bi_c", 10, &["bi_a"]),
    ];
    for algorithm in ALGORITHMS {
        let refusal = plan(algorithm, &buffers(table, 1), &[10], 0).expect_err("no room");
        assert!(
            matches!(refusal, PoolsExceeded { size: 10, .. }),
            "{algorithm:?}"
        );
    }
}
