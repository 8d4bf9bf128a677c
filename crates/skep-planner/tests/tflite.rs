//! The results that TFLite's own tests of its memory management expect, as facts: `memory_management_test.cc` and
//! `internal_test.cc` of google-ai-edge/LiteRT at f67457790c9c. Its live ranges include the last task.

use skep_planner::{
    Budget, Buffer, ObjectPlan, Problem,
    objects::{
        self, reallocation_graph,
        shaped::{self, ShapedBuffer},
    },
    offsets::{PlacementOrder, best_fit},
    validate_objects, validate_offsets,
};

const BUDGET: Budget<'static> = Budget::nodes(0);

const CHAIN: &[(u64, u64, u64)] = &[(16, 0, 1), (8, 1, 2), (64, 2, 3), (32, 3, 4), (8, 4, 5)];
const COMPLEX: &[(u64, u64, u64)] = &[
    (32, 0, 1),
    (32, 1, 4),
    (8, 2, 5),
    (16, 3, 5),
    (8, 4, 5),
    (64, 5, 7),
    (8, 6, 8),
    (8, 7, 8),
    (16, 8, 9),
];

fn problem(records: &[(u64, u64, u64)], alignment: u64) -> Problem {
    let buffers = records
        .iter()
        .map(|&(size, first, last)| Buffer::new(size, first, last + 1).aligned(alignment));
    Problem::new(buffers.collect()).expect("valid records")
}

fn expect(problem: &Problem, got: Option<ObjectPlan>, objects: &[usize], sizes: &[u64]) {
    let got = got.expect("nothing ends it");
    assert_eq!((&*got.objects, &*got.sizes), (objects, sizes));
    assert_eq!(validate_objects(problem, &got), Ok(()));
    assert_eq!(validate_offsets(problem, &got.to_offsets(problem)), Ok(()));
}

fn expect_offsets(problem: &Problem, offsets: &[u64], total: u64) {
    let plan =
        best_fit(problem, PlacementOrder::Size.of(problem), &BUDGET).expect("nothing ends it");
    assert_eq!((&*plan.offsets, plan.size), (offsets, total));
    assert_eq!(validate_offsets(problem, &plan), Ok(()));
}

#[test]
fn nothing_and_one_record() {
    for (records, ids, sizes) in [(&[][..], &[][..], &[][..]), (&[(16, 0, 1)], &[0], &[16])] {
        let problem = problem(records, 1);
        let strategies = [
            Some(objects::naive(&problem)),
            Some(objects::equality(&problem)),
            Some(objects::greedy_in_order(&problem)),
            objects::min_cost_flow(&problem, &BUDGET),
            objects::greedy_by_breadth(&problem, &BUDGET),
            objects::greedy_by_size(&problem, &BUDGET),
        ];
        for plan in strategies {
            expect(&problem, plan, ids, sizes);
        }
        expect_offsets(&problem, &vec![0; ids.len()], sizes.iter().sum());
        assert_eq!(
            objects::positional_maximums(&problem, &BUDGET).expect("nothing ends it"),
            sizes
        );
    }
}

#[test]
fn chain() {
    let problem = problem(CHAIN, 1);
    let own = [16, 8, 64, 32, 8];
    expect(
        &problem,
        Some(objects::naive(&problem)),
        &[0, 1, 2, 3, 4],
        &own,
    );
    let equality = Some(objects::equality(&problem));
    expect(&problem, equality, &[0, 1, 2, 3, 1], &[16, 8, 64, 32]);
    for plan in [
        objects::min_cost_flow(&problem, &BUDGET),
        Some(objects::greedy_in_order(&problem)),
        objects::greedy_by_breadth(&problem, &BUDGET),
        objects::greedy_by_size(&problem, &BUDGET),
        objects::greedy_best(&problem, &BUDGET),
    ] {
        expect(&problem, plan, &[0, 1, 0, 1, 0], &[64, 32]);
    }
    expect_offsets(&problem, &[0, 64, 0, 64, 0], 96);
    assert_eq!(
        objects::positional_maximums(&problem, &BUDGET),
        Some(vec![64, 32])
    );
}

#[test]
fn chain_aligned() {
    expect_offsets(&problem(CHAIN, 128), &[0, 128, 0, 128, 0], 160);
}

#[test]
fn complex() {
    let problem = problem(COMPLEX, 1);
    let plan = Some(objects::equality(&problem));
    expect(
        &problem,
        plan,
        &[0, 1, 2, 3, 4, 5, 4, 2, 3],
        &[32, 32, 8, 16, 8, 64],
    );
    let plan = objects::min_cost_flow(&problem, &BUDGET);
    expect(
        &problem,
        plan,
        &[0, 1, 2, 0, 3, 1, 3, 2, 0],
        &[32, 64, 8, 8],
    );
    let plan = Some(objects::greedy_in_order(&problem));
    expect(
        &problem,
        plan,
        &[0, 1, 0, 2, 3, 1, 3, 2, 0],
        &[32, 64, 16, 8],
    );
    let plan = objects::greedy_by_breadth(&problem, &BUDGET);
    expect(
        &problem,
        plan,
        &[0, 4, 2, 1, 3, 0, 2, 3, 1],
        &[64, 16, 8, 8, 32],
    );
    let by_size = ([1, 0, 2, 1, 3, 0, 1, 2, 0], [64, 32, 8, 8]);
    let plan = objects::greedy_by_size(&problem, &BUDGET);
    expect(&problem, plan, &by_size.0, &by_size.1);
    let plan = objects::greedy_best(&problem, &BUDGET);
    expect(&problem, plan, &by_size.0, &by_size.1);
    expect_offsets(&problem, &[0, 32, 80, 64, 88, 0, 64, 72, 0], 96);
    assert_eq!(
        objects::positional_maximums(&problem, &BUDGET),
        Some(vec![64, 32, 8, 8])
    );
}

#[test]
fn objects_in_a_row() {
    // The offsets are those of TFLite; which tensors they are for does not matter to it.
    for (sizes, objects, offsets, total) in [
        (&[][..], &[][..], &[][..], 0),
        (&[16], &[0], &[0], 16),
        (&[16], &[0, 0, 0], &[0, 0, 0], 16),
        (
            &[16, 8, 32, 32, 4, 16],
            &[2, 0, 2, 1, 3, 3, 1, 5],
            &[24, 0, 24, 16, 56, 56, 16, 92],
            108,
        ),
    ] {
        let records: Vec<(u64, u64, u64)> =
            (0..).take(objects.len()).map(|at| (1, at, at)).collect();
        let plan = ObjectPlan {
            objects: objects.to_vec(),
            sizes: sizes.to_vec(),
        };
        let converted = plan.to_offsets(&problem(&records, 1));
        assert_eq!((&*converted.offsets, converted.size), (offsets, total));
    }
}

#[test]
fn reallocation() {
    let chain = [vec![1], vec![2], vec![3], vec![4], vec![]];
    let graph = reallocation_graph(&chain);
    let expected = [
        vec![2, 3, 4],
        vec![3, 4],
        vec![0, 4],
        vec![0, 1],
        vec![0, 1, 2],
    ];
    assert_eq!(graph, expected);

    // Two branches from 0 that meet in 4, 0 -> 1 -> 3 -> 4 and 0 -> 2 -> 4: what both are done with, only 4 may follow.
    let branches = [vec![1, 2], vec![3], vec![4], vec![4], vec![]];
    let graph = reallocation_graph(&branches);
    assert_eq!(graph[0], [4]);
    // In this order of runs 2 has ended before 3 begins, but nothing else makes it wait.
    let records = problem(&[(8, 0, 1), (8, 1, 1), (8, 1, 2), (8, 3, 4), (8, 4, 5)], 1);
    let plan = objects::greedy_in_order_reallocating(&records, &graph);
    assert_eq!(validate_objects(&records, &plan), Ok(()));
    assert_eq!(plan.objects, [0, 1, 2, 3, 0]);
    assert_eq!(objects::greedy_in_order(&records).objects[3], 0);
}

fn shaped_buffers<const N: usize>(records: &[([u64; N], u64, u64)]) -> Vec<ShapedBuffer<N>> {
    records
        .iter()
        .map(|&(shape, first, last)| ShapedBuffer {
            shape,
            start: first,
            end: last + 1,
        })
        .collect()
}

#[test]
fn shapes_of_four_dimensions() {
    let records = shaped_buffers(&[
        ([1, 1, 2, 8], 0, 1),
        ([1, 1, 2, 8], 1, 2),
        ([1, 1, 1, 16], 2, 4),
        ([1, 1, 2, 8], 3, 5),
        ([1, 1, 8, 2], 4, 5),
        ([1, 1, 2, 8], 5, 7),
        ([1, 16, 1, 1], 6, 8),
        ([16, 1, 1, 1], 7, 8),
        ([1, 1, 1, 16], 8, 9),
    ]);
    assert_eq!(shaped::naive(&records).objects, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let plan = shaped::equality_last_released(&records);
    assert_eq!(plan.objects, [0, 1, 2, 1, 3, 0, 4, 5, 2]);
    let shapes = [
        [1, 1, 2, 8],
        [1, 1, 2, 8],
        [1, 1, 1, 16],
        [1, 1, 8, 2],
        [1, 16, 1, 1],
        [16, 1, 1, 1],
    ];
    assert_eq!(plan.shapes, shapes);
}

#[test]
fn textures() {
    let records = shaped_buffers(&[
        ([2, 8], 0, 1),
        ([2, 8], 1, 2),
        ([1, 12], 2, 4),
        ([2, 8], 3, 5),
        ([8, 2], 4, 5),
        ([2, 8], 5, 7),
        ([1, 8], 6, 8),
        ([2, 8], 7, 8),
        ([4, 1], 8, 9),
    ]);
    let plan = shaped::equality(&records);
    assert_eq!(plan.objects, [0, 1, 2, 0, 3, 1, 4, 0, 5]);
    assert_eq!(
        plan.shapes,
        [[2, 8], [2, 8], [1, 12], [8, 2], [1, 8], [4, 1]]
    );
    let plan = shaped::greedy_in_order(&records);
    assert_eq!(plan.objects, [0, 1, 2, 0, 3, 1, 2, 0, 3]);
    assert_eq!(plan.shapes, [[2, 8], [2, 8], [1, 12], [8, 2]]);
}

#[test]
fn textures_of_three_dimensions() {
    let records = shaped_buffers(&[
        ([1, 2, 8], 0, 1),
        ([4, 3, 2], 1, 2),
        ([1, 1, 1], 2, 4),
        ([2, 4, 1], 3, 5),
        ([2, 2, 2], 4, 5),
        ([8, 1, 2], 5, 7),
        ([1, 2, 1], 6, 8),
        ([1, 1, 1], 7, 8),
        ([2, 2, 2], 8, 9),
    ]);
    let plan = shaped::equality(&records);
    assert_eq!(plan.objects, [0, 1, 2, 3, 4, 5, 6, 2, 4]);
    let shapes = [
        [1, 2, 8],
        [4, 3, 2],
        [1, 1, 1],
        [2, 4, 1],
        [2, 2, 2],
        [8, 1, 2],
        [1, 2, 1],
    ];
    assert_eq!(plan.shapes, shapes);
    let plan = shaped::greedy_in_order(&records);
    assert_eq!(plan.objects, [0, 1, 0, 2, 1, 3, 2, 0, 1]);
    assert_eq!(plan.shapes, [[1, 2, 8], [4, 3, 2], [2, 4, 1], [8, 1, 2]]);
}
