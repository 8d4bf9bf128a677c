//! Properties of every strategy, and of the exact search against all orders of small problems.

mod common;

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

use common::{
    Random, at_random, conditioned, cut_rectangle, loose_rectangle, network_like, plain, read_csv,
};
use proptest::prelude::*;
use skep_planner::{
    Budget, Buffer, JobRunner, Plan, Problem, Proof, Strategy as Planner, Unavailable, auto,
    auto_with, bounds, objects, offsets, validate, validate_offsets,
};

const BUDGET: Budget<'static> = Budget::nodes(200_000);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn every_strategy_is_valid_deterministic_and_above_its_bound(problem in plain(40)) {
        let load = bounds::max_load(&problem);
        let maximums = objects::positional_maximums(&problem, &BUDGET).expect("nothing ends it");
        let answer = auto(&problem, &BUDGET);
        prop_assert!(answer.lower_bound >= load);
        for strategy in Planner::ALL {
            let plan = strategy.plan(&problem, &BUDGET).expect("nothing ends it");
            prop_assert_eq!(validate(&problem, &plan), Ok(()), "{}", strategy.name);
            prop_assert_eq!(&plan, &strategy.plan(&problem, &BUDGET).expect("as before"));
            let bound = match plan {
                Plan::Offsets(_) => answer.lower_bound,
                Plan::Objects(_) => maximums.iter().sum(),
            };
            prop_assert!(plan.size() >= bound, "{} beats the bound", strategy.name);
            if matches!(plan, Plan::Offsets(_)) {
                prop_assert!(answer.plan.size <= plan.size(), "{} beats auto", strategy.name);
            }
        }
    }

    #[test]
    fn auto_is_as_good_as_the_best_of_all_orders(problem in conditioned(7)) {
        let answer = auto(&problem, &BUDGET);
        prop_assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
        // The best of all plans without any sharing of places, which no bound exceeds.
        let best = best_of_all_orders(&problem);
        prop_assert!(answer.lower_bound <= best);
        prop_assert!(answer.lower_bound <= answer.plan.size);
        // Two fixed buffers in one place are planned around, but not searched.
        let fixed_together = problem.buffers().iter().any(|buffer| {
            let input = buffer.in_place.map(|input| problem.buffers()[input]);
            buffer.fixed.is_some() && input.is_some_and(|input| input.fixed == buffer.fixed)
        });
        if fixed_together {
            return Ok(());
        }
        prop_assert!(answer.plan.size <= best, "{} bytes, expected {}", answer.plan.size, best);
        let pairs = problem.buffers().iter().any(|buffer| buffer.in_place.is_some());
        prop_assert!(pairs || answer.is_optimal());
        prop_assert!(pairs || answer.proof == Proof::Search || best == bounds::max_load(&problem));
    }

    #[test]
    fn fixed_and_aligned_buffers_stay_so_in_every_strategy(problem in conditioned(30)) {
        for strategy in Planner::ALL {
            match strategy.plan(&problem, &Budget::nodes(3_000)) {
                Ok(plan) => prop_assert_eq!(validate(&problem, &plan), Ok(()), "{}", strategy.name),
                Err(refusal) => {
                    let is_fixed = matches!(refusal, Unavailable::Fixed { .. });
                    prop_assert!(is_fixed, "{}", refusal);
                }
            }
        }
    }

    #[test]
    fn time_does_not_matter_only_its_order(problem in plain(20), stretch in 1..1_000_000_u64) {
        let stretched = problem.buffers().iter().map(|buffer| Buffer {
            start: buffer.start * stretch,
            end: buffer.end * stretch,
            ..*buffer
        });
        let stretched = Problem::new(stretched.collect()).expect("still valid");
        prop_assert_eq!(
            auto(&problem, &BUDGET).plan,
            auto(&stretched, &BUDGET).plan
        );
    }
}

/// A problem of few buffers that its share of nodes does not search to the end.
#[test]
fn auto_is_never_worse_than_another_strategy() {
    let buffers = [
        (20, 3, 12),
        (39, 0, 1),
        (2, 12, 20),
        (14, 0, 9),
        (14, 0, 8),
        (15, 11, 18),
        (25, 8, 12),
        (3, 7, 9),
        (38, 1, 6),
        (1, 12, 13),
        (1, 2, 13),
        (4, 13, 16),
        (4, 13, 22),
        (1, 12, 13),
        (4, 5, 12),
        (15, 13, 14),
        (5, 13, 14),
        (25, 8, 12),
        (0, 0, 1),
        (6, 13, 14),
    ];
    let buffers = buffers.map(|(size, start, end)| Buffer::new(size, start, end));
    let problem = Problem::new(buffers.to_vec()).expect("valid");
    let strategy = Planner::named("tvm.hill_climb").expect("a strategy");
    let other = strategy.plan(&problem, &BUDGET).expect("nothing ends it");
    let answer = auto(&problem, &BUDGET);
    assert!(answer.plan.size <= other.size());
}

/// The smallest plan that places buffers one by one at their lowest free address, over all orders: in the order of a
/// smallest plan's own offsets, no buffer comes to lie higher than there.
fn best_of_all_orders(problem: &Problem) -> u64 {
    let best = Cell::new(u64::MAX);
    let mut offsets: Vec<Option<u64>> = problem
        .buffers()
        .iter()
        .map(|buffer| buffer.fixed)
        .collect();
    place_next(problem, &mut offsets, &best);
    best.get()
}

fn place_next(problem: &Problem, offsets: &mut [Option<u64>], best: &Cell<u64>) {
    let buffers = problem.buffers();
    let open: Vec<usize> = (0..offsets.len())
        .filter(|&buffer| offsets[buffer].is_none())
        .collect();
    if open.is_empty() {
        let ends = buffers.iter().zip(offsets.iter().flatten());
        let ends = ends.filter(|(buffer, _)| buffer.size > 0);
        let size = ends.map(|(buffer, offset)| offset + buffer.size).max();
        best.set(best.get().min(size.unwrap_or(0)));
    }
    for buffer in open {
        let Buffer {
            size,
            start,
            end,
            alignment,
            ..
        } = buffers[buffer];
        let fits = |offset: u64| {
            size == 0
                || buffers.iter().zip(offsets.iter()).all(|(other, at)| {
                    let Some(at) = *at else { return true };
                    other.size == 0
                        || other.start >= end
                        || start >= other.end
                        || at >= offset + size
                        || offset >= at + other.size
                })
        };
        let lowest = (0..)
            .map(|multiple| multiple * alignment)
            .find(|&offset| fits(offset));
        offsets[buffer] = lowest;
        place_next(problem, offsets, best);
        offsets[buffer] = None;
    }
}

/// Threads take jobs from both ends.
struct Threads(AtomicU64);

impl JobRunner for Threads {
    fn run(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for number in (0..jobs).rev() {
                scope.spawn(move || job(number));
            }
        });
    }
}

#[test]
fn workers_do_not_change_the_plan() {
    let threads = Threads(AtomicU64::new(0));
    for seed in 0..20 {
        let problem = cut_rectangle(80, 60, 5_000, seed);
        let alone = auto(&problem, &Budget::nodes(20_000));
        let together = auto_with(&problem, &Budget::nodes(20_000), &threads);
        // Jobs that turn out to be needless end sooner in turns, so nodes differ.
        assert_eq!(
            (alone.plan, alone.lower_bound),
            (together.plan, together.lower_bound)
        );
    }
    assert!(threads.0.into_inner() > 20);
}

#[test]
fn a_published_hard_problem_is_solved() {
    let problem = read_csv(include_str!("data/minimalloc_a.csv"));
    let greedy = offsets::best_fit(
        &problem,
        offsets::PlacementOrder::Size.of(&problem),
        &BUDGET,
    );
    assert!(greedy.expect("nothing ends it").size > 1_048_576);
    let answer = auto(&problem, &BUDGET);
    assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    assert_eq!(
        (answer.plan.size, answer.lower_bound),
        (1_048_576, 1_048_576)
    );
    assert_eq!(answer.proof, Proof::Load);
}

#[test]
fn a_problem_whose_load_no_plan_attains() {
    let buffers = [
        (3, 0, 4),
        (1, 4, 7),
        (1, 3, 7),
        (3, 6, 8),
        (3, 0, 3),
        (1, 6, 7),
        (3, 7, 8),
        (2, 3, 5),
    ]
    .map(|(size, start, end)| Buffer::new(size, start, end));
    let problem = Problem::new(buffers.to_vec()).expect("valid buffers");
    assert_eq!(bounds::max_load(&problem), 6);
    assert_eq!(best_of_all_orders(&problem), 7);
    let answer = auto(&problem, &BUDGET);
    assert_eq!(
        (answer.plan.size, answer.lower_bound, answer.proof),
        (7, 7, Proof::Search)
    );
}

#[test]
fn an_output_takes_its_inputs_place() {
    // Each is live with the one before for a step: two places would be needed, and one is enough.
    let chain: Vec<Buffer> = (0..10)
        .map(|number| {
            let buffer = Buffer::new(64, number, number + 2);
            match usize::try_from(number).expect("small") {
                0 => buffer,
                number => buffer.in_place_of(number - 1),
            }
        })
        .collect();
    let problem = Problem::new(chain.clone()).expect("valid buffers");
    let answer = auto(&problem, &BUDGET);
    assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    assert_eq!((answer.plan.size, answer.lower_bound), (64, 64));

    // What is read again later keeps its place.
    let mut read_again = chain;
    read_again[4].end = 9;
    let problem = Problem::new(read_again).expect("valid buffers");
    let answer = auto(&problem, &BUDGET);
    assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    assert_eq!(answer.plan.size, 128);
}

#[test]
fn fixed_buffers_are_planned_around() {
    let problem = Problem::new(vec![
        Buffer::new(4, 0, 4).at(6),
        Buffer::new(4, 0, 2),
        Buffer::new(6, 2, 4),
        Buffer::new(2, 0, 2),
    ])
    .expect("valid buffers");
    let answer = auto(&problem, &BUDGET);
    assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    assert_eq!((answer.plan.size, answer.lower_bound), (10, 10));
    assert_eq!(answer.plan.offsets[0], 6);
}

/// With few sizes, objects of equal size come next to the bound; best fit in the order of time breaks them up.
#[test]
fn a_large_problem_of_few_sizes_is_not_planned_worse_than_by_size() {
    let mut random = Random(7);
    let buffers = (0..20_000).map(|_| {
        let start = random.below(20_000);
        let size = [100, 199][usize::try_from(random.below(2)).expect("small")];
        Buffer::new(size, start, start + 1 + random.below(10_000))
    });
    let problem = Problem::new(buffers.collect()).expect("valid");
    let by_size = objects::equality(&problem).size();
    let answer = auto(&problem, &Budget::nodes(0));
    assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    assert!(
        answer.plan.size <= by_size,
        "{} > {by_size}",
        answer.plan.size
    );
    let in_time = offsets::in_time(&problem).size;
    assert!(by_size < in_time, "{by_size} of {in_time}: nothing to see");
}

#[test]
fn the_fullest_moments_of_a_large_problem_are_searched() {
    // A hard piece in the middle of 20,000 small buffers that come and go around it: too many for an exact search.
    let hard = cut_rectangle(60, 40, 4_000, 3);
    let mut random = Random(11);
    let mut buffers: Vec<Buffer> = hard
        .buffers()
        .iter()
        .map(|buffer| Buffer::new(buffer.size, buffer.start + 5_000, buffer.end + 5_000))
        .collect();
    buffers.extend((0..20_000).map(|step| {
        let start = if step < 10_000 {
            step / 2
        } else {
            5_040 + step / 2
        };
        let end = if step < 10_000 {
            5_000.min(start + 3)
        } else {
            start + 3
        };
        Buffer::new(1 + random.below(250), start, end)
    }));
    // One buffer that connects them all.
    buffers.push(Buffer::new(16, 0, 20_000));
    let problem = Problem::new(buffers).expect("valid buffers");
    let greedy = offsets::best_fit(
        &problem,
        offsets::PlacementOrder::Size.of(&problem),
        &BUDGET,
    );
    let answer = auto(&problem, &Budget::nodes(1_000_000));
    assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
    assert!(greedy.expect("nothing ends it").size > 4_016);
    assert_eq!((answer.plan.size, answer.lower_bound), (4_016, 4_016));
}

/// Problems like those that MiniMalloc finds hard, whose load leaves some room below 1 MiB.
#[test]
fn loose_rectangles_go_back_into_their_frame() {
    for seed in [2, 4, 5, 8] {
        let problem = loose_rectangle(430, seed);
        let answer = auto(&problem, &Budget::nodes(120_000));
        assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
        assert!(
            answer.plan.size <= 1 << 20,
            "{}, seed {seed}",
            answer.plan.size
        );
    }
}

#[test]
fn a_perfect_cut_of_hundreds_of_parts_is_put_together_again() {
    for seed in [4, 5, 6] {
        let problem = cut_rectangle(400, 1024, 1024, seed);
        let answer = auto(&problem, &Budget::nodes(120_000));
        assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
        assert_eq!(
            (answer.plan.size, answer.lower_bound),
            (1024, 1024),
            "seed {seed}"
        );
    }
}

#[test]
fn large_problems_come_near_the_bound_with_few_nodes() {
    for problem in [
        at_random(20_000, 300, 1),
        at_random(20_000, 3_000, 1),
        network_like(20_000, 1),
    ] {
        let answer = auto(&problem, &Budget::nodes(60_000));
        assert_eq!(validate_offsets(&problem, &answer.plan), Ok(()));
        let percent = 100 * answer.gap() / answer.lower_bound;
        assert!(
            percent < 3,
            "{} of {}",
            answer.plan.size,
            answer.lower_bound
        );
    }
}
