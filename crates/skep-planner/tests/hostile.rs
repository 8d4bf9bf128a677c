//! Hostile problems: an error that says what and where, or a plan; never a panic, never a hang.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Random, at_random, cut_rectangle, network_like};
use skep_planner::{
    Budget, Buffer, InvalidPlan, OffsetPlan, Plan, Problem, ProblemError, Strategy, Unavailable,
    auto, validate, validate_offsets,
};

fn refusal(buffers: &[Buffer]) -> ProblemError {
    Problem::new(buffers.to_vec()).expect_err("not a valid problem")
}

#[test]
fn contradictions_are_named() {
    let fine = Buffer::new(8, 0, 2);
    for (buffers, text) in [
        (
            vec![fine, Buffer::new(1, 5, 5)],
            "buffer 1 has the empty live range 5..5, expected at least one step",
        ),
        (
            vec![fine, Buffer::new(1, 5, 4)],
            "buffer 1 has the live range 5..4, expected an end after the start",
        ),
        (
            vec![fine.aligned(0)],
            "buffer 0 has alignment 0, expected a power of two",
        ),
        (
            vec![fine, fine.aligned(24)],
            "buffer 1 has alignment 24, expected a power of two",
        ),
        (
            vec![fine, fine.aligned(8).at(12)],
            "buffer 1 is fixed at 12, expected a multiple of its alignment 8",
        ),
        (
            vec![fine.at(0), Buffer::new(8, 2, 3).at(0), fine.at(7)],
            "buffers 0 and 2 are live together, and fixed where they overlap",
        ),
        (
            vec![fine, Buffer::new(8, 1, 2).in_place_of(7)],
            "buffer 1 may take the place of buffer 7, expected one that starts before it",
        ),
        (
            vec![fine.in_place_of(0)],
            "buffer 0 may take the place of buffer 0, expected one that starts before it",
        ),
    ] {
        assert_eq!(refusal(&buffers).to_string(), text);
    }
}

#[test]
fn sums_that_cannot_be_counted_are_refused() {
    let half = Buffer::new(1 << 61, 0, 1);
    let overflow = |buffer| ProblemError::Overflow { buffer };
    assert_eq!(refusal(&[Buffer::new(u64::MAX, 0, 1)]), overflow(0));
    assert_eq!(refusal(&[half, half]), overflow(1));
    assert_eq!(
        refusal(&[half, Buffer::new(1, 7, 9).at(u64::MAX)]),
        overflow(1)
    );
    assert_eq!(
        refusal(&[Buffer::new(1, 0, 1).aligned(1 << 63)]),
        overflow(0)
    );

    // The largest that can.
    let most = Buffer::new((1 << 61) - 1, 0, u64::MAX);
    let problem = Problem::new(vec![most, most, Buffer::new(1, 3, 4)]).expect("below 2^62");
    for strategy in Strategy::ALL {
        let plan = strategy
            .plan(&problem, &Budget::nodes(100))
            .expect("a plan");
        assert_eq!(validate(&problem, &plan), Ok(()), "{}", strategy.name);
        assert_eq!(plan.size(), (1 << 62) - 1, "{}", strategy.name);
    }
}

#[test]
fn nothing_takes_nothing() {
    for buffers in [vec![], vec![Buffer::new(0, 0, 9); 3]] {
        let problem = Problem::new(buffers).expect("valid buffers");
        for strategy in Strategy::ALL {
            let plan = strategy.plan(&problem, &Budget::nodes(0)).expect("a plan");
            assert_eq!(validate(&problem, &plan), Ok(()), "{}", strategy.name);
            assert_eq!(plan.size(), 0, "{}", strategy.name);
        }
    }
}

#[test]
fn a_long_network() {
    let problem = network_like(30_000, 7);
    let answer = auto(&problem, &Budget::nodes(0));
    assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    // Best fit comes near the load here.
    assert!(
        answer.gap() < answer.lower_bound / 4,
        "{} of {}",
        answer.gap(),
        answer.lower_bound
    );
}

/// A million buffers that are all live at one step.
fn a_million() -> Problem {
    let mut random = Random(7);
    let buffers = (0..1_000_000).map(|step| {
        Buffer::new(
            1 + random.below(1000),
            step,
            1_000_000 + random.below(1_000_000),
        )
    });
    Problem::new(buffers.collect()).expect("valid buffers")
}

#[test]
fn a_million_buffers_that_all_meet() {
    // Best fit would take 10^12 steps: the plan in the order of time is there when the budget ends.
    let problem = a_million();
    let asked = AtomicUsize::new(0);
    let should_stop = || asked.fetch_add(1, Ordering::Relaxed) > 20;
    let budget = Budget {
        nodes: u64::MAX,
        should_stop: &should_stop,
    };
    let answer = auto(&problem, &budget);
    assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    for name in ["tvm.greedy_by_size", "tvm.hill_climb"] {
        let strategy = Strategy::named(name).expect("in the table");
        let refusal = strategy
            .plan(&problem, &budget)
            .expect_err("too many pairs");
        assert!(matches!(refusal, Unavailable::TooLarge { .. }));
    }
}

/// Buffers of which a thousand or so are live at once, for any time: lists of who meets whom have millions of entries,
/// and no plan is easily the best.
fn dense(count: u64) -> Problem {
    at_random(count, count / 2, 3)
}

#[test]
fn a_plan_comes_out_wherever_the_budget_ends() {
    // From the first question to those in the midst of preparations and searches; soon nothing asks any more.
    let problem = dense(3_000);
    for last in [0, 1, 5, 100, 500, 2_000] {
        let asked = AtomicUsize::new(0);
        let should_stop = || asked.fetch_add(1, Ordering::Relaxed) >= last;
        let budget = Budget {
            nodes: u64::MAX,
            should_stop: &should_stop,
        };
        let answer = auto(&problem, &budget);
        assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
        let more = asked.into_inner().saturating_sub(last);
        assert!(more <= 20, "asked {more} times after question {last}");
    }
}

#[test]
fn every_strategy_stops_when_told_to() {
    let buffers = a_million().buffers()[999_000..].to_vec();
    let problem = Problem::new(buffers).expect("valid buffers");
    let budget = Budget {
        nodes: u64::MAX,
        should_stop: &|| true,
    };
    for strategy in Strategy::ALL {
        match strategy.plan(&problem, &budget) {
            Ok(plan) => assert_eq!(validate(&problem, &plan), Ok(()), "{}", strategy.name),
            Err(refusal) => {
                let strategy = strategy.name;
                assert_eq!(refusal, Unavailable::Stopped { strategy });
            }
        }
    }
}

#[test]
fn a_hill_climb_looks_at_the_clock() {
    // Its first plan is there after some eight questions, its 500 exchanges take four each.
    let problem = cut_rectangle(200, 300, 1 << 40, 5);
    let strategy = Strategy::named("tvm.hill_climb").expect("in the table");
    let asked = AtomicUsize::new(0);
    let should_stop = || asked.fetch_add(1, Ordering::Relaxed) >= 30;
    let budget = Budget {
        nodes: u64::MAX,
        should_stop: &should_stop,
    };
    let refusal = strategy.plan(&problem, &budget).expect_err("stopped");
    let strategy = strategy.name;
    assert_eq!(refusal, Unavailable::Stopped { strategy });
    assert_eq!(asked.into_inner(), 31);
}

#[test]
fn a_deep_search_takes_no_stack() {
    // 2,000 buffers, in a thread with little room.
    let search = || {
        let problem = cut_rectangle(2_000, 3_000, 1 << 40, 5);
        let answer = auto(&problem, &Budget::nodes(20_000));
        assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    };
    let thread = std::thread::Builder::new().stack_size(128 << 10);
    thread
        .spawn(search)
        .expect("a thread")
        .join()
        .expect("no overflow");
}

#[test]
fn the_validator_finds_errors() {
    let problem = Problem::new(vec![
        Buffer::new(8, 0, 2),
        Buffer::new(8, 1, 3).aligned(8),
        Buffer::new(4, 2, 3).at(16),
    ])
    .expect("valid buffers");
    let check = |offsets: &[u64], size| {
        let offsets = offsets.to_vec();
        validate(&problem, &Plan::Offsets(OffsetPlan { offsets, size }))
    };
    assert_eq!(check(&[0, 8, 16], 20), Ok(()));
    assert_eq!(
        check(&[0, 8], 16),
        Err(InvalidPlan::Count {
            got: 2,
            expected: 3
        })
    );
    let overlap = InvalidPlan::Overlap {
        first: 0,
        second: 1,
    };
    assert_eq!(check(&[1, 8, 16], 20), Err(overlap));
    let moved = InvalidPlan::Moved {
        buffer: 2,
        got: 20,
        expected: 16,
    };
    assert_eq!(check(&[0, 8, 20], 24), Err(moved));
    let alignment = InvalidPlan::Alignment {
        buffer: 1,
        offset: 9,
        alignment: 8,
    };
    assert_eq!(check(&[0, 9, 16], 20), Err(alignment));
    assert_eq!(
        check(&[0, 8, 16], 19),
        Err(InvalidPlan::Size {
            got: 19,
            expected: 20
        })
    );
    assert_eq!(
        check(&[u64::MAX, 8, 16], 20),
        Err(InvalidPlan::Size {
            got: 20,
            expected: u64::MAX
        })
    );
}
