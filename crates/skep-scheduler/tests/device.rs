//! A device's slots: fair, work-conserving, never over what there is.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use skep_scheduler::{DeviceShare, Grants, MAX_PASSES, MIN_TURN, ModelShareId};
use skep_types::Time;

fn us(micros: u64) -> Time {
    Time::from_nanos(1000 * micros)
}

/// A model that always wants, with executions of this length.
struct Greedy {
    weight: f64,
    threads: u32,
    takes_us: u64,
}

/// Runs greedy models, each with this many instances, for a second; the microseconds of slot time that each had.
fn overload(slots: u32, models: &[Greedy], instances: usize) -> Vec<f64> {
    let mut share = DeviceShare::new(slots);
    let ids: Vec<ModelShareId> = models
        .iter()
        .map(|model| share.join(model.weight, model.threads))
        .collect();
    let mut had = vec![0.0; models.len()];
    let mut idle = vec![instances; models.len()];
    // When executions end.
    let mut ends: BTreeMap<(u64, usize), usize> = BTreeMap::new();
    let mut number = 0;
    let mut start = |grants: Grants, now: u64, ends: &mut BTreeMap<_, _>, idle: &mut Vec<usize>| {
        let mut again = Vec::new();
        for id in grants {
            let model = ids.iter().position(|other| *other == id).expect("a model");
            ends.insert((now + models[model].takes_us, number), model);
            number += 1;
            idle[model] -= 1;
            again.push(model);
        }
        again
    };
    let mut now = 0;
    let mut wanting: Vec<usize> = (0..models.len()).collect();
    loop {
        while let Some(model) = wanting.pop() {
            let mut grants = Grants::new();
            share.want(ids[model], us(now), &mut grants);
            let granted = start(grants, now, &mut ends, &mut idle);
            // A model that got one wants the next, as long as it has an instance for it.
            wanting.extend(granted.into_iter().filter(|model| idle[*model] > 0));
        }
        let ((at, _), model) = ends.pop_first().expect("somebody runs");
        if at > 1_000_000 {
            return had;
        }
        now = at;
        had[model] += (models[model].takes_us * u64::from(models[model].threads)) as f64;
        idle[model] += 1;
        let mut grants = Grants::new();
        share.release(
            ids[model],
            us(now),
            Duration::from_micros(models[model].takes_us),
            true,
            &mut grants,
        );
        let granted = start(grants, now, &mut ends, &mut idle);
        wanting.extend(granted.into_iter().filter(|model| idle[*model] > 0));
    }
}

/// Jain's index of fairness: 1 where all have the same.
fn jain(shares: &[f64]) -> f64 {
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(sum, squares), share| {
        (sum + share, squares + share * share)
    });
    sum * sum / (shares.len() as f64 * squares)
}

fn greedy(weight: f64, threads: u32, takes_us: u64) -> Greedy {
    Greedy {
        weight,
        threads,
        takes_us,
    }
}

#[test]
fn tenants_of_equal_weight_have_equal_time_whatever_they_run() {
    for (slots, models, instances) in [
        (1, vec![greedy(1.0, 1, 900), greedy(1.0, 1, 100)], 1),
        (
            1,
            vec![
                greedy(1.0, 1, 5000),
                greedy(1.0, 1, 300),
                greedy(1.0, 1, 70),
            ],
            2,
        ),
        (2, (1..=7).map(|n| greedy(1.0, 1, 130 * n)).collect(), 1),
        (2, (1..=7).map(|n| greedy(1.0, 1, 130 * n)).collect(), 3),
        (
            4,
            vec![
                greedy(1.0, 1, 400),
                greedy(1.0, 2, 600),
                greedy(1.0, 4, 500),
                greedy(1.0, 1, 900),
            ],
            4,
        ),
    ] {
        let had = overload(slots, &models, instances);
        let fair = jain(&had);
        assert!(
            fair >= 0.98,
            "{slots} slots, {instances} instances: {fair} {had:?}"
        );
    }
}

#[test]
fn weights_divide_the_time() {
    let had = overload(1, &[greedy(2.0, 1, 300), greedy(1.0, 1, 700)], 1);
    let ratio = had[0] / had[1];
    assert!((1.95..2.05).contains(&ratio), "{had:?}");
}

#[test]
fn a_model_that_wanted_nothing_does_not_catch_up() {
    let mut share = DeviceShare::new(1);
    let (busy, lazy) = (share.join(1.0, 1), share.join(1.0, 1));
    let mut grants = Grants::new();
    for ms in 0..1000 {
        share.want(busy, us(1000 * ms), &mut grants);
        let ended = us(1000 * (ms + 1));
        share.release(busy, ended, Duration::from_millis(1), false, &mut grants);
    }
    assert_eq!(grants.len(), 1000);
    // Both want from now on: they alternate.
    grants.clear();
    share.want(busy, us(1_000_000), &mut grants);
    share.want(lazy, us(1_000_000), &mut grants);
    for ms in 1001..1021 {
        let running = *grants.last().expect("somebody runs");
        let ended = us(1000 * ms);
        share.release(running, ended, Duration::from_millis(1), true, &mut grants);
    }
    let lazy_had = grants.iter().filter(|id| **id == lazy).count();
    assert!((9..=12).contains(&lazy_had), "{grants:?}");
}

#[test]
fn a_model_that_needs_many_slots_gets_them_in_the_end() {
    let mut share = DeviceShare::new(2);
    let (narrow, other, wide) = (share.join(1.0, 1), share.join(1.0, 1), share.join(1.0, 2));
    let mut grants = Grants::new();
    share.want(narrow, us(0), &mut grants);
    share.want(other, us(500), &mut grants);
    share.want(wide, us(500), &mut grants);
    assert_eq!(grants.as_slice(), [narrow, other]);
    // The narrow ones end in turn and always want again: both slots are never free at once by themselves.
    let mut rounds = 0;
    let mut running = vec![narrow, other];
    while !grants.contains(&wide) {
        let ended = running.remove(0);
        grants.clear();
        let now = us(1000 + 500 * u64::from(rounds));
        share.release(ended, now, Duration::from_millis(1), true, &mut grants);
        running.extend(grants.iter().copied());
        rounds += 1;
        assert!(rounds <= MAX_PASSES + 3, "passed over for ever");
    }
}

#[test]
fn a_model_that_leaves_gives_its_slots_back() {
    let mut share = DeviceShare::new(1);
    let (first, second) = (share.join(1.0, 1), share.join(1.0, 1));
    let mut grants = Grants::new();
    share.want(first, us(0), &mut grants);
    share.want(second, us(0), &mut grants);
    assert_eq!(grants.as_slice(), [first]);
    share.leave(first, us(1), &mut grants);
    assert_eq!(grants.as_slice(), [first, second]);
    share.give_up(second, us(2), &mut grants);
    assert_eq!(share.busy(), 0);
    assert_eq!(share.join(1.0, 1), first, "its number is free");
}

#[test]
fn a_device_has_at_least_one_slot() {
    assert_eq!(
        [0, 1, 3].map(|slots| DeviceShare::new(slots).slots()),
        [1, 1, 3]
    );
}

#[test]
fn a_weight_that_is_not_a_positive_number_counts_as_one() {
    for weight in [0.0, -2.0, f64::NAN, f64::INFINITY] {
        let had = overload(1, &[greedy(weight, 1, 300), greedy(1.0, 1, 700)], 1);
        let ratio = had[0] / had[1];
        assert!((0.95..1.05).contains(&ratio), "{weight}: {had:?}");
    }
}

#[test]
fn executions_after_a_change_take_the_new_number_of_slots() {
    for (threads, busy) in [(1, 1), (2, 2), (3, 3), (0, 1), (9, 3)] {
        let mut share = DeviceShare::new(3);
        let model = share.join(1.0, 1);
        share.set_threads(model, threads);
        let mut grants = Grants::new();
        share.want(model, us(0), &mut grants);
        assert_eq!(share.busy(), busy, "{threads} threads");
    }
}

/// Each slot of an execution is charged, also for the time by which it took longer than the one before.
#[test]
fn an_execution_on_several_slots_is_charged_for_all_of_them() {
    let mut share = DeviceShare::new(2).with_min_turn(Duration::MAX);
    let (narrow, wide, blocker) = (share.join(1.0, 1), share.join(1.0, 2), share.join(1.0, 2));
    let mut grants = Grants::new();
    share.want(wide, us(0), &mut grants);
    share.release(
        wide,
        us(10_000),
        Duration::from_millis(10),
        false,
        &mut grants,
    );
    share.want(narrow, us(10_000), &mut grants);
    share.release(
        narrow,
        us(25_000),
        Duration::from_millis(15),
        false,
        &mut grants,
    );
    share.want(blocker, us(25_000), &mut grants);
    share.want(wide, us(25_000), &mut grants);
    share.want(narrow, us(25_000), &mut grants);
    grants.clear();
    // 20 ms of slot time for the wide one, 15 ms for the narrow one.
    share.release(
        blocker,
        us(26_000),
        Duration::from_millis(1),
        false,
        &mut grants,
    );
    assert_eq!(grants.as_slice(), [narrow]);
}

#[test]
fn a_timeout_lies_ahead_and_grants_what_is_lent_then() {
    let mut share = DeviceShare::new(1);
    let (long, short) = (share.join(1.0, 1), share.join(1.0, 1));
    let mut grants = Grants::new();
    share.want(long, us(0), &mut grants);
    assert_eq!(share.next_timeout(us(0)), None, "nobody waits");
    share.want(short, us(100), &mut grants);
    let turn = Time::ZERO + MIN_TURN;
    assert_eq!(share.next_timeout(us(100)), Some(turn));
    assert_eq!(share.next_timeout(turn), None);
    grants.clear();
    share.handle_timeout(us(1999), &mut grants);
    assert!(grants.is_empty());
    share.handle_timeout(turn, &mut grants);
    assert_eq!(grants.as_slice(), [short]);
    assert_eq!(share.busy(), 1, "the slot is lent, not taken");
}

proptest! {
    /// Whatever models do, no more runs than there are slots but on those of long executions, no model is granted what it did
    /// not ask for, and no slot idles while a model wants it.
    #[test]
    fn slots_are_neither_overbooked_nor_wasted(
        slots in 1u32..6,
        threads in prop::collection::vec(1u32..8, 1..6),
        steps in prop::collection::vec((0usize..6, 0u8..8, 1u64..1000), 0..400),
    ) {
        let mut share = DeviceShare::new(slots);
        let ids: Vec<ModelShareId> = threads.iter().map(|threads| share.join(1.0, *threads)).collect();
        let needs = |index: usize| threads[index].min(slots);
        let mut wants = vec![false; ids.len()];
        // When each execution of each model began.
        let mut running: Vec<Vec<u64>> = vec![Vec::new(); ids.len()];
        let mut now = 0;
        for (model, what, passed) in steps {
            let model = model % ids.len();
            now += passed;
            let mut grants = Grants::new();
            match what {
                0..=3 => {
                    wants[model] = true;
                    share.want(ids[model], us(now), &mut grants);
                }
                4 if !running[model].is_empty() => {
                    running[model].pop();
                    share.give_up(ids[model], us(now), &mut grants);
                }
                7 => share.handle_timeout(us(now), &mut grants),
                _ if !running[model].is_empty() => {
                    let took = Duration::from_micros(now - running[model].remove(0));
                    let again = passed % 2 == 0;
                    wants[model] |= again;
                    share.release(ids[model], us(now), took, again, &mut grants);
                }
                _ => {}
            }
            for id in grants {
                let index = ids.iter().position(|other| *other == id).expect("known");
                prop_assert!(wants[index], "asked for");
                wants[index] = false;
                running[index].push(now);
            }
            prop_assert!(share.busy() <= slots);
            // Nothing counts as long before its turn is over, for whomever.
            let least = u64::try_from(MIN_TURN.as_micros()).expect("short");
            let threads_of = |index: usize, which: &dyn Fn(u64) -> bool| {
                let runs = running[index].iter().filter(|start| which(**start)).count();
                u32::try_from(runs).expect("few") * needs(index)
            };
            let all: u32 = (0..ids.len()).map(|index| threads_of(index, &|_| true)).sum();
            let short: u32 = (0..ids.len())
                .map(|index| threads_of(index, &|start| now < start + least))
                .sum();
            prop_assert!(short <= slots, "{short} of {all} threads are of executions that have just begun");
            prop_assert!(all >= share.busy());
            prop_assert!(all <= slots || short < all, "nothing was lent that is not long");
            // Slots may be kept back for a wide model.
            let all_narrow = (0..ids.len()).all(|index| needs(index) == 1);
            prop_assert!(!all_narrow || share.busy() == slots || wants.iter().all(|wants| !wants));
            if wants.iter().all(|wants| !wants) {
                prop_assert_eq!(share.next_timeout(us(now)), None);
            }
        }
    }
}

#[test]
fn slots_of_a_long_execution_are_lent_to_short_ones() {
    let mut share = DeviceShare::new(2);
    let (long, short, other) = (share.join(1.0, 2), share.join(1.0, 1), share.join(1.0, 1));
    let mut grants = Grants::new();
    let ms = |ms: u64| us(1000 * ms);
    share.want(long, ms(0), &mut grants);
    share.want(short, ms(1), &mut grants);
    assert_eq!(grants.as_slice(), [long]);
    assert_eq!(
        share.next_timeout(ms(1)),
        Some(ms(2)),
        "a turn after its start"
    );
    share.handle_timeout(ms(2), &mut grants);
    assert_eq!(grants.as_slice(), [long, short], "lent");
    assert_eq!(share.next_timeout(ms(2)), None);
    grants.clear();
    // The other one of its two slots; a third short one waits for these.
    share.want(other, ms(2), &mut grants);
    let third = share.join(1.0, 1);
    share.want(third, ms(2), &mut grants);
    assert_eq!(grants.as_slice(), [other]);
    share.release(short, ms(3), Duration::from_millis(1), true, &mut grants);
    assert_eq!(grants.as_slice(), [other, third], "in turn");
    share.release(other, ms(3), Duration::from_millis(1), false, &mut grants);
    assert_eq!(grants.as_slice(), [other, third, short]);
    grants.clear();
    // When the long one ends, its slots go to the borrowers.
    share.release(long, ms(4), Duration::from_millis(4), true, &mut grants);
    assert!(grants.is_empty() && share.busy() == 2, "{grants:?}");
    share.release(short, ms(5), Duration::from_millis(2), false, &mut grants);
    share.release(third, ms(5), Duration::from_millis(2), false, &mut grants);
    assert_eq!(grants.as_slice(), [long]);
}

#[test]
fn executions_that_are_alike_do_not_borrow() {
    let mut share = DeviceShare::new(1);
    let (a, b) = (share.join(1.0, 1), share.join(1.0, 1));
    let takes = Duration::from_millis(50);
    let mut grants = Grants::new();
    share.want(a, us(0), &mut grants);
    share.want(b, us(0), &mut grants);
    // The first of b is not known to be as long.
    for round in 1..20_u64 {
        let now = us(50_000 * round);
        let running = grants.pop().expect("one runs");
        assert!(grants.is_empty(), "one at a time");
        share.release(running, now, takes, true, &mut grants);
        let next = share.next_timeout(now).expect("one waits");
        if round >= 2 {
            assert_eq!(next, now + 2 * takes);
        }
    }
}

#[test]
fn other_models_continue_whatever_is_stuck() {
    let mut share = DeviceShare::new(2);
    let stuck: Vec<ModelShareId> = (0..5).map(|_| share.join(1.0, 2)).collect();
    let good = share.join(1.0, 1);
    let mut grants = Grants::new();
    let mut now = 0;
    for id in &stuck {
        share.want(*id, us(now), &mut grants);
        now += 10_000;
        share.handle_timeout(us(now), &mut grants);
    }
    assert_eq!(grants.len(), stuck.len(), "each borrows of those before");
    for _ in 0..100 {
        grants.clear();
        share.want(good, us(now), &mut grants);
        assert_eq!(grants.as_slice(), [good]);
        now += 100;
        share.release(
            good,
            us(now),
            Duration::from_micros(100),
            false,
            &mut grants,
        );
    }
}

/// A model that needs more slots than are free for a long time does not keep others from borrowing.
#[test]
fn kept_slots_are_not_the_lent_ones() {
    let mut share = DeviceShare::new(2);
    let (stuck, wide, narrow) = (share.join(1.0, 1), share.join(1.0, 2), share.join(1.0, 1));
    let mut grants = Grants::new();
    let mut now = 0;
    // Both have run: the wide one for a second.
    share.want(wide, us(now), &mut grants);
    now += 1_000_000;
    share.release(wide, us(now), Duration::from_secs(1), false, &mut grants);
    share.want(stuck, us(now), &mut grants);
    grants.clear();
    share.want(wide, us(now), &mut grants);
    assert!(grants.is_empty(), "one of its two slots is taken");
    for round in 0..100 {
        grants.clear();
        share.want(narrow, us(now), &mut grants);
        now += 10_000;
        share.handle_timeout(us(now), &mut grants);
        assert_eq!(grants.as_slice(), [narrow], "round {round}");
        share.release(
            narrow,
            us(now),
            Duration::from_micros(100),
            false,
            &mut grants,
        );
    }
    now += 2_000_000;
    grants.clear();
    share.handle_timeout(us(now), &mut grants);
    assert_eq!(grants.as_slice(), [wide]);
}

/// Cores in use on average where `models` small models, two instances each, always have requests. An execution really keeps
/// `parallelism` cores busy for 1 ms of its time; it is charged `charged` slots.
fn cores_in_use(cores: u32, models: usize, parallelism: f64, charged: u32) -> f64 {
    let mut share = DeviceShare::new(cores);
    let ids: Vec<ModelShareId> = (0..models).map(|_| share.join(1.0, charged)).collect();
    let mut idle = vec![2_u32; models];
    let mut ends: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    let (mut now, mut number, mut area) = (0, 0, 0.0);
    let mut wanting: Vec<usize> = (0..models).collect();
    while now < 1_000_000 {
        let mut grants = Grants::new();
        if let Some(model) = wanting.pop() {
            share.want(ids[model], us(now), &mut grants);
        } else {
            let ((at, _), model) = ends.pop_first().expect("somebody runs");
            area += (at - now) as f64 * parallelism * (ends.len() + 1) as f64;
            now = at;
            idle[model] += 1;
            let took = Duration::from_millis(1);
            share.release(ids[model], us(now), took, true, &mut grants);
        }
        for id in grants {
            let model = ids.iter().position(|other| *other == id).expect("known");
            idle[model] -= 1;
            number += 1;
            ends.insert((now + 1000, number), model);
            if idle[model] > 0 {
                wanting.push(model);
            }
        }
    }
    area / now as f64
}

/// Twenty small models use the cores that they could use; charged with all threads that a run may use, two executions had
/// the whole machine. `cargo nextest run small_models --no-capture` prints the table.
#[test]
fn small_models_use_the_cores_of_a_large_machine() {
    let parallelism = 1.1;
    for cores in [8, 32, 64] {
        let by_threads = cores_in_use(cores, 20, parallelism, cores / 2);
        let as_measured = cores_in_use(cores, 20, parallelism, 1);
        let possible = f64::from(cores).min(40.0) * parallelism;
        println!(
            "{cores} cores: {by_threads:.1} in use by threads, {as_measured:.1} as measured, {possible:.1} possible"
        );
        assert!(by_threads < 2.5, "{by_threads}");
        assert!(as_measured > 0.95 * possible, "{as_measured}");
    }
}

/// A model with one client: an execution, a gap, the next. Microseconds.
#[derive(Clone, Copy)]
struct Gapped {
    takes: u64,
    gap: u64,
    executions: u64,
}

impl Gapped {
    fn alone(self) -> u64 {
        self.executions * self.takes + (self.executions - 1) * self.gap
    }
}

/// When the last of all executions ends, on one slot that the models share.
fn shared(models: &[Gapped]) -> u64 {
    let mut share = DeviceShare::new(1);
    let ids: Vec<ModelShareId> = models.iter().map(|_| share.join(1.0, 1)).collect();
    let mut left: Vec<u64> = models.iter().map(|model| model.executions).collect();
    // When each model asks next, and when its execution ends.
    let mut asks: Vec<Option<u64>> = models.iter().map(|_| Some(0)).collect();
    let mut ends: Vec<Option<u64>> = vec![None; models.len()];
    loop {
        let moments = asks.iter().chain(&ends).flatten();
        let Some(now) = moments.copied().min() else {
            unreachable!("somebody asks or runs until all have ended");
        };
        let mut grants = Grants::new();
        for index in 0..models.len() {
            if ends[index] == Some(now) {
                ends[index] = None;
                left[index] -= 1;
                let took = Duration::from_micros(models[index].takes);
                share.release(ids[index], us(now), took, false, &mut grants);
                if left[index] > 0 {
                    asks[index] = Some(now + models[index].gap);
                }
            }
        }
        if left.iter().all(|left| *left == 0) {
            return now;
        }
        for index in 0..models.len() {
            if asks[index] == Some(now) {
                asks[index] = None;
                share.want(ids[index], us(now), &mut grants);
            }
        }
        for id in grants {
            let index = ids.iter().position(|other| *other == id).expect("known");
            ends[index] = Some(now + models[index].takes);
        }
    }
}

/// The same where each model looks at the device by itself, every millisecond, and begins when the device was busy for
/// less than half of the last 10 ms; executions that overlap share the device.
fn polled(models: &[Gapped]) -> u64 {
    const STEP: u64 = 50;
    const POLL: u64 = 1_000;
    const WINDOW: usize = (10_000 / STEP) as usize;
    let mut busy = std::collections::VecDeque::from(vec![false; WINDOW]);
    let mut left: Vec<u64> = models.iter().map(|model| model.executions).collect();
    // What is left of each model's execution, and from when on it wants another one.
    let mut work: Vec<f64> = vec![0.0; models.len()];
    let mut ready: Vec<u64> = vec![0; models.len()];
    let mut now = 0;
    while left.iter().any(|left| *left > 0) {
        let used = busy.iter().filter(|busy| **busy).count();
        for index in 0..models.len() {
            // Each polls at its own phase.
            let polls = (now + 300 * index as u64) % POLL < STEP;
            let wants = left[index] > 0 && work[index] <= 0.0 && ready[index] <= now;
            if polls && wants && 2 * used < WINDOW {
                work[index] = models[index].takes as f64;
            }
        }
        let running = work.iter().filter(|work| **work > 0.0).count();
        busy.pop_front();
        busy.push_back(running > 0);
        now += STEP;
        for index in 0..models.len() {
            if work[index] > 0.0 {
                work[index] -= STEP as f64 / running as f64;
                if work[index] <= 0.0 {
                    left[index] -= 1;
                    ready[index] = now + models[index].gap;
                }
            }
        }
    }
    now
}

/// Two models whose requests leave gaps fill each other's: `cargo nextest run two_models --no-capture` prints the table.
#[test]
fn two_models_with_gaps_fill_each_others() {
    for (a, b) in [
        ((4_000, 2_000), (3_000, 2_000)),
        ((3_000, 3_000), (3_000, 3_000)),
        ((900, 500), (5_000, 800)),
    ] {
        let model = |(takes, gap): (u64, u64), executions| Gapped {
            takes,
            gap,
            executions,
        };
        let models = [model(a, 1_000), model(b, 1_000)];
        let works: u64 = models.iter().map(|m| m.takes * m.executions).sum();
        let ideal = models
            .iter()
            .map(|m| m.alone())
            .max()
            .unwrap_or(0)
            .max(works);
        let in_turn: u64 = models.iter().map(|m| m.alone()).sum();
        let (shared, polled) = (shared(&models), polled(&models));
        let of = |makespan: u64| makespan as f64 / ideal as f64;
        println!(
            "{a:?} and {b:?}: shared {:.3}, in turn {:.3}, polled {:.3} of the ideal makespan",
            of(shared),
            of(in_turn),
            of(polled)
        );
        assert!(of(shared) <= 1.03, "{}", of(shared));
        assert!(shared < in_turn && shared < polled);
    }
}
