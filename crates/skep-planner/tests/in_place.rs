//! In-place pairs: plans and bounds beside the best of all decisions and all orders.

mod common;

use proptest::prelude::*;
use skep_planner::{Budget, Buffer, Problem, Proof, auto, bounds, validate_offsets};

const BUDGET: Budget<'static> = Budget::nodes(200_000);

/// Up to `most` buffers, most of which may take an earlier one's place; `equal` gives them its size.
fn paired(most: usize, equal: bool) -> impl Strategy<Value = Problem> {
    let buffer = (
        (1..9_u64, 0..6_u64, 1..6_u64),
        prop::option::weighted(0.7, any::<prop::sample::Index>()),
    );
    prop::collection::vec(buffer, 1..=most).prop_map(move |list| {
        let mut buffers: Vec<Buffer> = Vec::new();
        for ((size, start, width), input) in list {
            let mut buffer = Buffer::new(size, start, start + width);
            buffer.in_place = input
                .filter(|_| !buffers.is_empty())
                .map(|index| index.index(buffers.len()))
                .filter(|&input| buffers[input].start < start);
            if let Some(input) = buffer.in_place.filter(|_| equal) {
                buffer.size = buffers[input].size;
            }
            buffers.push(buffer);
        }
        Problem::new(buffers).expect("valid buffers")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn pairs_of_equal_size_are_planned_optimally(problem in paired(6, true)) {
        let answer = auto(&problem, &BUDGET);
        prop_assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
        let best = best_of_all(&problem);
        prop_assert_eq!((answer.plan.size, answer.lower_bound), (best, best));
        prop_assert!(bounds::max_load(&problem) <= best);
        prop_assert_eq!(answer.proof == Proof::Load, bounds::max_load(&problem) == best);
    }

    #[test]
    fn bounds_hold_for_pairs_of_any_size(problem in paired(6, false)) {
        let answer = auto(&problem, &BUDGET);
        prop_assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
        let best = best_of_all(&problem);
        prop_assert!(bounds::max_load(&problem) <= answer.lower_bound);
        prop_assert!(answer.lower_bound <= best && best <= answer.plan.size);
    }
}

/// The smallest plan over all decisions about the pairs and all orders.
fn best_of_all(problem: &Problem) -> u64 {
    let buffers = problem.buffers();
    let pairs: Vec<(usize, usize)> = (0..buffers.len())
        .filter_map(|output| Some((buffers[output].in_place?, output)))
        .collect();
    let mut best = u64::MAX;
    for shared in 0..1_u32 << pairs.len() {
        let mut unit: Vec<usize> = (0..buffers.len()).collect();
        // An input comes before its output in the list.
        for (number, &(input, output)) in pairs.iter().enumerate() {
            if shared >> number & 1 == 1 {
                unit[output] = unit[input];
            }
        }
        let clashes = |first: usize, second: usize| {
            let (one, other) = (&buffers[first], &buffers[second]);
            let both_live = one.start < other.end && other.start < one.end;
            let may = one.in_place == Some(second) || other.in_place == Some(first);
            both_live && !may
        };
        let is_possible = (0..buffers.len()).all(|first| {
            (0..first).all(|second| unit[first] != unit[second] || !clashes(first, second))
        });
        if is_possible {
            let mut offsets = vec![None; buffers.len()];
            place_next(buffers, &unit, &mut offsets, &mut best);
        }
    }
    best
}

/// Places each unit of buffers that share a place at its lowest free address, in every order.
fn place_next(buffers: &[Buffer], unit: &[usize], offsets: &mut [Option<u64>], best: &mut u64) {
    let open: Vec<usize> = (0..buffers.len())
        .filter(|&own| unit[own] == own && offsets[own].is_none())
        .collect();
    if open.is_empty() {
        let ends = buffers.iter().zip(offsets.iter().flatten());
        let size = ends.map(|(buffer, offset)| offset + buffer.size).max();
        *best = size.unwrap_or(0).min(*best);
    }
    for own in open {
        let members: Vec<usize> = (0..buffers.len())
            .filter(|&other| unit[other] == own)
            .collect();
        let fits = |offset: u64| {
            members.iter().all(|&member| {
                let buffer = &buffers[member];
                buffers.iter().zip(offsets.iter()).all(|(other, at)| {
                    let Some(at) = *at else { return true };
                    other.start >= buffer.end
                        || buffer.start >= other.end
                        || at >= offset + buffer.size
                        || offset >= at + other.size
                })
            })
        };
        let lowest = (0..).find(|&offset| fits(offset));
        for &member in &members {
            offsets[member] = lowest;
        }
        place_next(buffers, unit, offsets, best);
        for &member in &members {
            offsets[member] = None;
        }
    }
}

fn answer(buffers: &[Buffer]) -> (u64, u64, Proof) {
    let problem = Problem::new(buffers.to_vec()).expect("valid buffers");
    let answer = auto(&problem, &BUDGET);
    assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    (answer.plan.size, answer.lower_bound, answer.proof)
}

#[test]
fn of_a_chain_that_is_live_at_once_two_share_a_place() {
    let chain = [
        Buffer::new(8, 0, 9),
        Buffer::new(8, 1, 9).in_place_of(0),
        Buffer::new(8, 2, 9).in_place_of(1),
    ];
    assert_eq!(answer(&chain), (16, 16, Proof::Load));
}

#[test]
fn of_two_outputs_one_takes_their_inputs_place() {
    let outputs = [
        Buffer::new(8, 0, 3),
        Buffer::new(8, 1, 5).in_place_of(0),
        Buffer::new(6, 2, 5).in_place_of(0),
    ];
    assert_eq!(answer(&outputs), (14, 14, Proof::Load));
}

#[test]
fn outputs_that_never_meet_both_take_their_inputs_place() {
    let outputs = [
        Buffer::new(8, 0, 9),
        Buffer::new(8, 1, 3).in_place_of(0),
        Buffer::new(8, 5, 7).in_place_of(0),
    ];
    assert_eq!(answer(&outputs), (8, 8, Proof::Load));
}

#[test]
fn a_pair_is_kept_apart_where_that_is_smaller() {
    // The output would have to stay where its input is wedged in.
    let buffers = [
        Buffer::new(2, 0, 4),
        Buffer::new(2, 3, 8).in_place_of(0),
        Buffer::new(4, 0, 3),
        Buffer::new(4, 4, 8),
        Buffer::new(1, 0, 8),
    ];
    let (size, bound, _) = answer(&buffers);
    assert_eq!(size, bound);
}

/// Two buffers that are fixed in one place are not searched, and their bound lies below where they end: eviction must not move
/// them.
#[test]
fn fixed_buffers_are_not_evicted() {
    let fixed = |size, start, in_place| Buffer {
        alignment: 4,
        fixed: Some(20),
        in_place,
        ..Buffer::new(size, start, 9)
    };
    let buffers = [
        fixed(12, 7, None),
        fixed(5, 8, Some(0)),
        Buffer::new(1, 0, 1),
    ];
    let problem = Problem::new(buffers.to_vec()).expect("valid buffers");
    let answer = auto(&problem, &BUDGET);
    assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    assert_eq!(answer.plan.size, 32);
}
