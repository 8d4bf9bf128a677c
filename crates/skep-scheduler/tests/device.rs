//! A device's slots: fair, work-conserving, never over what there is.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use skep_scheduler::{DeviceShare, Grants, MAX_PASSES, TenantId};

/// A tenant that always wants, with executions of this length.
struct Greedy {
    weight: f64,
    threads: u32,
    takes_us: u64,
}

/// Runs greedy tenants, each with this many instances, for a second; the microseconds of slot time that each had.
fn overload(slots: u32, tenants: &[Greedy], instances: usize) -> Vec<f64> {
    let mut share = DeviceShare::new(slots);
    let ids: Vec<TenantId> = tenants
        .iter()
        .map(|tenant| share.join(tenant.weight, tenant.threads))
        .collect();
    let mut had = vec![0.0; tenants.len()];
    let mut idle = vec![instances; tenants.len()];
    // When executions end.
    let mut ends: BTreeMap<(u64, usize), usize> = BTreeMap::new();
    let mut number = 0;
    let mut start = |grants: Grants, now: u64, ends: &mut BTreeMap<_, _>, idle: &mut Vec<usize>| {
        let mut again = Vec::new();
        for id in grants {
            let tenant = ids.iter().position(|other| *other == id).expect("a tenant");
            ends.insert((now + tenants[tenant].takes_us, number), tenant);
            number += 1;
            idle[tenant] -= 1;
            again.push(tenant);
        }
        again
    };
    let mut now = 0;
    let mut wanting: Vec<usize> = (0..tenants.len()).collect();
    loop {
        while let Some(tenant) = wanting.pop() {
            let mut grants = Grants::new();
            share.want(ids[tenant], &mut grants);
            let granted = start(grants, now, &mut ends, &mut idle);
            // Whoever got one wants the next, as long as it has an instance for it.
            wanting.extend(granted.into_iter().filter(|tenant| idle[*tenant] > 0));
        }
        let ((at, _), tenant) = ends.pop_first().expect("somebody runs");
        if at > 1_000_000 {
            return had;
        }
        now = at;
        had[tenant] += (tenants[tenant].takes_us * u64::from(tenants[tenant].threads)) as f64;
        idle[tenant] += 1;
        let mut grants = Grants::new();
        share.release(
            ids[tenant],
            Duration::from_micros(tenants[tenant].takes_us),
            true,
            &mut grants,
        );
        let granted = start(grants, now, &mut ends, &mut idle);
        wanting.extend(granted.into_iter().filter(|tenant| idle[*tenant] > 0));
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
    for (slots, tenants, instances) in [
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
        let had = overload(slots, &tenants, instances);
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
fn who_wanted_nothing_does_not_catch_up() {
    let mut share = DeviceShare::new(1);
    let (busy, lazy) = (share.join(1.0, 1), share.join(1.0, 1));
    let mut grants = Grants::new();
    for _ in 0..1000 {
        share.want(busy, &mut grants);
        share.release(busy, Duration::from_millis(1), false, &mut grants);
    }
    assert_eq!(grants.len(), 1000);
    // Both want from now on: they alternate.
    grants.clear();
    share.want(busy, &mut grants);
    share.want(lazy, &mut grants);
    for _ in 0..20 {
        let running = *grants.last().expect("somebody runs");
        share.release(running, Duration::from_millis(1), true, &mut grants);
    }
    let lazy_had = grants.iter().filter(|id| **id == lazy).count();
    assert!((9..=12).contains(&lazy_had), "{grants:?}");
}

#[test]
fn who_needs_many_slots_gets_them_in_the_end() {
    let mut share = DeviceShare::new(2);
    let (narrow, other, wide) = (share.join(1.0, 1), share.join(1.0, 1), share.join(1.0, 2));
    let mut grants = Grants::new();
    share.want(narrow, &mut grants);
    share.want(other, &mut grants);
    share.want(wide, &mut grants);
    assert_eq!(grants.as_slice(), [narrow, other]);
    // The narrow ones end in turn and always want again: both slots are never free at once by themselves.
    let mut rounds = 0;
    let mut running = vec![narrow, other];
    while !grants.contains(&wide) {
        let ended = running.remove(0);
        grants.clear();
        share.release(ended, Duration::from_millis(1), true, &mut grants);
        running.extend(grants.iter().copied());
        rounds += 1;
        assert!(rounds <= MAX_PASSES + 3, "passed over for ever");
    }
}

#[test]
fn who_leaves_gives_back_what_it_had() {
    let mut share = DeviceShare::new(1);
    let (first, second) = (share.join(1.0, 1), share.join(1.0, 1));
    let mut grants = Grants::new();
    share.want(first, &mut grants);
    share.want(second, &mut grants);
    assert_eq!(grants.as_slice(), [first]);
    share.leave(first, &mut grants);
    assert_eq!(grants.as_slice(), [first, second]);
    share.give_up(second, &mut grants);
    assert_eq!(share.busy(), 0);
    assert_eq!(share.join(1.0, 1), first, "its number is free");
}

proptest! {
    /// Whatever tenants do, no more runs than there are slots, nobody is granted what it did not ask for, and no slot
    /// idles while somebody wants what is there.
    #[test]
    fn slots_are_neither_overbooked_nor_wasted(
        slots in 1u32..6,
        threads in prop::collection::vec(1u32..8, 1..6),
        steps in prop::collection::vec((0usize..6, 0u8..8, 1u64..1000), 0..400),
    ) {
        let mut share = DeviceShare::new(slots);
        let ids: Vec<TenantId> = threads.iter().map(|threads| share.join(1.0, *threads)).collect();
        let mut wants = vec![false; ids.len()];
        let mut running = vec![0u32; ids.len()];
        for (tenant, what, us) in steps {
            let tenant = tenant % ids.len();
            let mut grants = Grants::new();
            match what {
                0..=3 => {
                    wants[tenant] = true;
                    share.want(ids[tenant], &mut grants);
                }
                4 if running[tenant] > 0 => {
                    running[tenant] -= 1;
                    share.give_up(ids[tenant], &mut grants);
                }
                _ if running[tenant] > 0 => {
                    running[tenant] -= 1;
                    let again = us % 2 == 0;
                    wants[tenant] |= again;
                    share.release(ids[tenant], Duration::from_micros(us), again, &mut grants);
                }
                _ => {}
            }
            for id in grants {
                let index = ids.iter().position(|other| *other == id).expect("known");
                prop_assert!(wants[index], "asked for");
                wants[index] = false;
                running[index] += 1;
            }
            let needs = |index: usize| threads[index].min(slots);
            let busy: u32 = (0..ids.len()).map(|index| running[index] * needs(index)).sum();
            prop_assert!(busy <= slots);
            prop_assert_eq!(busy, share.busy());
            // Somebody wide may have slots kept back.
            let all_narrow = (0..ids.len()).all(|index| needs(index) == 1);
            prop_assert!(!all_narrow || busy == slots || wants.iter().all(|wants| !wants));
        }
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
    let ids: Vec<TenantId> = models.iter().map(|_| share.join(1.0, 1)).collect();
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
                share.release(ids[index], took, false, &mut grants);
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
                share.want(ids[index], &mut grants);
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
