//! The latency model: its arithmetic in tables, and properties.

use proptest::prelude::*;

use super::*;

/// A model that plans by the default percentile.
fn model_of(max: usize, profile: &[(usize, Duration)]) -> LatencyModel {
    LatencyModel::new(max, profile, Percentile::default())
}

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

#[test]
fn cells_ascend_without_gaps() {
    let mut last = cell_of(1);
    assert_eq!(last, 0);
    for size in 2..100_000 {
        let cell = cell_of(size);
        assert!(cell == last || cell == last + 1, "{size}: {last} {cell}");
        last = cell;
    }
}

#[test]
fn an_affine_device_is_known_from_two_sizes() {
    let model = model_of(64, &[(1, us(1957)), (8, us(2566))]);
    for size in 1..=64 {
        let expected = 1870 + 87 * size as u64;
        assert_eq!(model.expected(size) / 1000, expected, "{size}");
    }
    assert_eq!(model.largest_within(1_957_000), 1);
    assert_eq!(model.largest_within(2_566_000), 8);
    assert_eq!(model.largest_within(1_000), 0);
}

#[test]
fn the_useful_size_is_where_batching_stops_to_pay() {
    let useful = |profile: &[(usize, Duration)]| model_of(8, profile).useful();
    assert_eq!(useful(&[(1, us(1957)), (8, us(2566))]), 8, "affine");
    assert_eq!(useful(&[(1, us(10_000)), (8, us(80_000))]), 1, "flat");
    assert_eq!(
        useful(&[(1, us(100)), (4, us(110)), (8, us(220))]),
        4,
        "a step"
    );
    assert_eq!(useful(&[]), 8, "unknown");
}

#[test]
fn one_size_tells_something_about_the_others() {
    let model = model_of(8, &[(2, us(1000))]);
    assert_eq!(
        (model.expected(1), model.expected(2), model.expected(4)),
        (750_000, 1_000_000, 1_500_000)
    );
}

#[test]
fn served_executions_replace_measured_ones() {
    let mut model = model_of(8, &[(1, us(3000)), (8, us(9000))]);
    model.learn(8, us(4000));
    assert_eq!(
        (model.expected(1), model.expected(8)),
        (3_000_000, 4_000_000)
    );
    model.measured(8, us(5000));
    assert_eq!(model.expected(8), 4_000_000, "the faster of two");
    model.measured(8, us(5000));
    assert_eq!(model.expected(8), 5_000_000, "the middle one of three");
    let mut model = model_of(8, &[(1, us(3000))]);
    model.measured(1, us(3500));
    model.learn(1, us(2000));
    assert_eq!(model.expected(1), 2_000_000);
}

#[test]
fn a_size_that_was_not_served_lately_is_stale() {
    let mut model = model_of(8, &[(1, us(10)), (8, us(9000))]);
    assert!([1, 4, 8].map(|size| model.is_stale(size)) == [true; 3]);
    model.learn(8, us(90));
    assert!(!model.is_stale(8));
    for _ in 1..STALE {
        model.learn(1, us(10));
    }
    assert!(!model.is_stale(8) && !model.is_stale(1));
    model.learn(1, us(10));
    assert!(model.is_stale(8) && model.is_stale(4) && !model.is_stale(1));
}

#[test]
fn a_single_slow_execution_is_forgotten() {
    let mut model = model_of(8, &[]);
    assert_eq!(model.expected(8), 0);
    model.learn(4, us(90_000));
    for _ in 0..2 * REMEMBERED {
        model.learn(4, us(100));
    }
    assert_eq!(model.expected(4), 100_000);
    for _ in 0..16 {
        model.learn(4, us(500));
    }
    assert_eq!(model.expected(4), 100_000);
    model.learn(4, us(500));
    assert_eq!(
        model.expected(4),
        500_000,
        "of 32 the lower one of the middle two"
    );
}

/// A model of batches up to `max`, and what one execution of each size took, in microseconds.
fn known(max: usize, profile: &[(usize, u64)]) -> LatencyModel {
    let profile: Vec<_> = profile
        .iter()
        .map(|(size, took)| (*size, us(*took)))
        .collect();
    model_of(max, &profile)
}

/// Estimates in microseconds.
fn estimates<const N: usize>(model: &LatencyModel, sizes: [usize; N]) -> [u64; N] {
    sizes.map(|size| model.expected(size) / 1000)
}

#[test]
fn cells_above_the_exact_ones_are_eighths_of_an_octave() {
    let cells = [
        1, 2, 31, 32, 35, 36, 39, 40, 63, 64, 71, 72, 127, 128, 143, 144, 256,
    ];
    let expected = [
        0, 1, 30, 31, 31, 32, 32, 33, 38, 39, 39, 40, 46, 47, 47, 48, 55,
    ];
    assert_eq!(cells.map(cell_of), expected);
}

#[test]
fn an_estimate_lies_on_the_line_between_its_neighbours() {
    let model = known(9, &[(1, 100), (3, 300), (9, 420)]);
    assert_eq!(
        estimates(&model, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        [0, 100, 200, 300, 320, 340, 360, 380, 400, 420]
    );
}

#[test]
fn estimates_are_rounded_to_whole_nanoseconds() {
    let profile = [(1, Duration::from_nanos(10)), (4, Duration::from_nanos(12))];
    let model = model_of(4, &profile);
    assert_eq!(
        [1, 2, 3, 4].map(|size| model.expected(size)),
        [10, 11, 11, 12]
    );
}

#[test]
fn sizes_above_the_largest_known_one_follow_the_median_of_all_slopes() {
    // Slopes 100, 40 and 20 microseconds an inference.
    let model = known(12, &[(1, 100), (3, 300), (9, 420)]);
    assert_eq!(estimates(&model, [9, 10, 12]), [420, 460, 540]);
    // Slopes 10, 10, 10, 10, 20 and 30: of an even number the upper one of the middle two.
    let model = known(8, &[(1, 10), (2, 20), (3, 30), (4, 60)]);
    let slopes = [10.0, 10.0, 10.0, 50.0 / 3.0, 20.0, 30.0_f64];
    let expected =
        [5_u32, 6, 8].map(|size| whole(60_000.0 + 1000.0 * slopes[3] * f64::from(size - 4)));
    assert_eq!([5, 6, 8].map(|size| model.expected(size)), expected);
}

#[test]
fn sizes_below_the_smallest_known_one_take_at_least_half_of_it() {
    let model = known(8, &[(4, 1000), (8, 1400)]);
    assert_eq!(
        estimates(&model, [1, 2, 3, 4, 6]),
        [700, 800, 900, 1000, 1200]
    );
    let model = known(8, &[(4, 1000), (8, 2000)]);
    assert_eq!(
        estimates(&model, [1, 2, 3, 4, 6]),
        [500, 500, 750, 1000, 1500]
    );
}

#[test]
fn half_of_a_single_known_size_does_not_depend_on_the_size() {
    let model = known(16, &[(4, 1000)]);
    assert_eq!(
        estimates(&model, [1, 2, 4, 8, 16]),
        [625, 750, 1000, 1500, 2500]
    );
}

#[test]
fn contradicting_neighbours_share_their_mean() {
    let model = known(4, &[(1, 300), (2, 100), (4, 400)]);
    assert_eq!(estimates(&model, [1, 2, 3, 4]), [200, 200, 300, 400]);
    // The mean of the last two is below the first, which joins them.
    let model = known(4, &[(1, 250), (2, 300), (3, 50), (4, 400)]);
    assert_eq!(estimates(&model, [1, 2, 3, 4]), [200, 200, 200, 400]);
    let model = known(4, &[(1, 100), (2, 300), (3, 200), (4, 400)]);
    assert_eq!(estimates(&model, [1, 2, 3, 4]), [100, 250, 250, 400]);
}

#[test]
fn means_of_neighbours_are_weighted_by_executions() {
    // Measured, not served: they say nothing of how executions vary, which would move the estimates to a line.
    let mut model = known(3, &[]);
    for _ in 0..3 {
        model.measured(1, us(300));
    }
    model.measured(2, us(100));
    assert_eq!(estimates(&model, [1, 2]), [250, 250]);
    // 3 x 300, 1 x 100 and, by their median, 2 x 120 microseconds.
    model.measured(3, us(130));
    model.measured(3, us(120));
    assert_eq!(estimates(&model, [1, 2, 3]), [206, 206, 206]);
}

#[test]
fn a_request_above_the_maximum_takes_its_share_of_the_largest_batch() {
    let model = known(4, &[(1, 400), (4, 1000)]);
    assert_eq!(
        estimates(&model, [3, 4, 5, 6, 8]),
        [800, 1000, 1250, 1500, 2000]
    );
    let endless = model_of(1, &[(1, Duration::MAX)]);
    assert_eq!(
        [1, 2, usize::MAX].map(|size| endless.expected(size)),
        [u64::MAX; 3]
    );
}

#[test]
fn executions_outside_of_the_known_sizes_teach_nothing() {
    let mut model = known(8, &[(4, 1000)]);
    let before = estimates(&model, [1, 4, 8]);
    for size in [0, 9, 10_000] {
        model.learn(size, us(7));
        model.measured(size, us(7));
    }
    assert_eq!(estimates(&model, [1, 4, 8]), before);
    assert!(model.is_stale(0) && model.is_stale(9) && model.is_stale(10_000));
}

#[test]
fn the_estimate_of_a_size_is_the_median_of_its_executions() {
    let mut model = known(4, &[]);
    let expected = [70, 20, 50, 50, 70, 50, 50, 50, 50, 50];
    for (took, expected) in [70, 20, 50, 100, 90, 10, 30, 60, 40, 80]
        .into_iter()
        .zip(expected)
    {
        model.learn(4, us(took));
        assert_eq!(model.expected(4), 1000 * expected, "after {took}");
    }
}

#[test]
fn the_oldest_execution_is_forgotten_first() {
    let mut model = known(4, &[]);
    let half = REMEMBERED / 2;
    for round in 0..REMEMBERED {
        model.learn(4, us(if round <= half { 900 } else { 100 }));
    }
    assert_eq!(model.expected(4), 900_000);
    for _ in 0..half {
        model.learn(4, us(100));
    }
    for _ in 0..REMEMBERED / 5 {
        model.learn(4, us(500));
    }
    assert_eq!(
        model.expected(4),
        100_000,
        "no slow one is left, and few of the last"
    );
}

#[test]
fn as_many_executions_are_remembered_as_there_is_room_for() {
    let mut model = known(4, &[]);
    // With 17 of 32 slow ones the median is slow, with 16 it is not.
    for _ in 0..17 {
        model.learn(4, us(900));
    }
    for _ in 17..REMEMBERED {
        model.learn(4, us(100));
    }
    assert_eq!(model.expected(4), 900_000);
    model.learn(4, us(100));
    assert_eq!(model.expected(4), 100_000);
}

#[test]
fn sizes_of_one_cell_are_known_as_the_first_one() {
    let mut model = known(128, &[(1, 100)]);
    model.learn(64, us(1000));
    assert_eq!(estimates(&model, [64]), [1000]);
    // The line from (1, 100) to (64, 1000) has 1085.7 at 70, so that 1100 there are 1013 at 64: the upper one of two.
    model.learn(70, us(1100));
    assert_eq!(estimates(&model, [24, 64, 70]), [428, 1000, 1085]);
    model.learn(70, us(1300));
    assert_eq!(estimates(&model, [64]), [1013], "the middle one of three");
}

#[test]
fn the_best_size_takes_least_an_inference_and_the_useful_one_hardly_more() {
    // 50 us an inference in batches of 4, 49 in batches of 8.
    let model = known(8, &[(1, 100), (4, 200), (8, 392)]);
    assert_eq!((model.useful(), model.best()), (4, 8));
    // Of equal ones the smallest.
    let model = known(8, &[(1, 100), (2, 100), (8, 400)]);
    assert_eq!((model.useful(), model.best()), (2, 2));
    let unknown = known(8, &[]);
    assert_eq!((unknown.useful(), unknown.best()), (8, 8));
}

#[test]
fn the_largest_size_within_a_time_may_take_all_of_it() {
    let model = known(4, &[(1, 100), (4, 400)]);
    let within = [0, 99_999, 100_000, 100_001, 399_999, 400_000, u64::MAX];
    assert_eq!(
        within.map(|ns| model.largest_within(ns)),
        [0, 0, 1, 1, 3, 4, 4]
    );
}

proptest! {
    /// Whatever was seen, a larger batch takes no less, and no estimate is outside of what was seen.
    #[test]
    fn estimates_never_decrease(
        max in 1usize..300,
        seen in prop::collection::vec((1usize..300, 1u64..1_000_000), 1..200),
    ) {
        let mut model = model_of(max, &[]);
        for (size, ns) in &seen {
            model.learn(*size, Duration::from_nanos(*ns));
            prop_assert!((1..max).all(|size| model.expected(size) <= model.expected(size + 1)));
            prop_assert!(model.largest_within(model.expected(max)) == max);
        }
    }
}
