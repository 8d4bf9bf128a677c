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
