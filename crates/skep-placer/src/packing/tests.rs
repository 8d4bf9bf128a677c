//! Packings by hand, and against each other.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    squishy::{DutyCycle, Session, SquishyError},
    *,
};

fn of(bytes: u64, millicores: u64) -> Resources {
    Resources { bytes, millicores }
}

fn memory(bytes: &[u64]) -> Vec<Resources> {
    bytes.iter().map(|bytes| of(*bytes, 0)).collect()
}

fn devices(count: usize, device: Resources) -> Vec<Resources> {
    vec![device; count]
}

fn packed(items: &[Resources], devices: &[Resources], rule: PackingRule) -> Vec<usize> {
    let packing = pack(items, devices, rule);
    let places = packing.device_of.into_iter();
    places.map(|device| device.expect("a device")).collect()
}

#[test]
fn best_fit_takes_the_device_with_the_least_room_left() {
    // 2 leaves 8; 5 and 4 fit beside it, 7 does not; 1 fits both and makes the second full to 8; 3 then fits the second only
    // after the first has no room: 10 - 2 - 5 = 3 is exactly enough.
    let items = memory(&[2, 5, 4, 7, 1, 3, 8]);
    let ten = devices(4, of(10, 0));
    // 2, 5 on 0; 4 on 1 (3 left on 0); 7 on 2; 1 on 0 or 2 with 2 left each: the first; 3 on 2 leaves none; 8 on 3.
    assert_eq!(
        packed(&items, &ten, PackingRule::BestFit),
        [0, 0, 1, 2, 0, 2, 3]
    );
    // 8 and 2; 7 and 3; 5, 4 and 1.
    let decreasing = packed(&items, &ten, PackingRule::BestFitDecreasing);
    assert_eq!(decreasing, [0, 2, 2, 1, 2, 1, 0]);
}

#[test]
fn best_fit_and_first_fit_differ() {
    // In decreasing order 6, 5, 3, 2: 3 fits beside 6 and 5. Best fit leaves 1 with the 6, first fit the same; then the 2
    // goes to the 5.
    let items = memory(&[5, 6, 4, 3, 2]);
    let ten = devices(3, of(10, 0));
    // 6 on 0, 5 on 1, 4 on 0, 3 on 1, 2 on 1.
    assert_eq!(
        packed(&items, &ten, PackingRule::FirstFitDecreasing),
        [1, 0, 0, 1, 1]
    );
    // In the order given best fit puts 4 beside the 6, though the 5 is in the first device.
    assert_eq!(packed(&items, &ten, PackingRule::BestFit), [0, 1, 1, 0, 0]);
}

#[test]
fn both_dimensions_have_to_fit() {
    let items = [of(6, 10), of(6, 10), of(1, 90), of(1, 90)];
    let device = devices(4, of(10, 100));
    assert_eq!(
        packed(&items, &device, PackingRule::BestFitDecreasing),
        [0, 1, 0, 1]
    );
    assert_eq!(least_devices(&items, &device), 2);
}

#[test]
fn what_fits_nowhere_has_no_device_and_larger_devices_are_used_first() {
    let items = memory(&[30, 8, 4]);
    let different = [of(5, 0), of(20, 0), of(10, 0)];
    for rule in [
        PackingRule::FirstFitDecreasing,
        PackingRule::BestFitDecreasing,
        PackingRule::Search,
    ] {
        let packing = pack(&items, &different, rule);
        assert_eq!(packing.device_of, [None, Some(1), Some(1)], "{rule:?}");
        let figures = (
            packing.unplaced(),
            packing.devices_used(),
            packing.least_devices,
        );
        assert_eq!(figures, (1, 1, 1));
    }
    assert_eq!(pack(&items, &[], PackingRule::Search).unplaced(), 3);
    assert_eq!(pack(&[], &different, PackingRule::Search).devices_used(), 0);
}

#[test]
fn the_search_finds_what_best_fit_decreasing_does_not() {
    // Two devices of 12: 6, 4, 2 and 5, 4, 3. Best fit decreasing puts 6 and 5 together.
    let items = memory(&[6, 5, 4, 4, 3, 2]);
    let twelve = devices(6, of(12, 0));
    assert_eq!(
        pack(&items, &twelve, PackingRule::BestFitDecreasing).devices_used(),
        3
    );
    let found = pack(&items, &twelve, PackingRule::Search);
    assert_eq!((found.devices_used(), found.least_devices), (2, 2));
    // Best fit decreasing leaves an item without a device.
    let two = devices(2, of(12, 0));
    let lacking = pack(&items, &two, PackingRule::BestFitDecreasing);
    assert_eq!(lacking.unplaced(), 1);
    assert_eq!(pack(&items, &two, PackingRule::Search).unplaced(), 0);
}

#[test]
fn bounds_know_large_items_and_such_that_do_not_go_together() {
    let ten = devices(9, of(10, 100));
    // Five of more than half, though four devices have room for the sum.
    assert_eq!(least_devices(&memory(&[6, 6, 6, 6, 6]), &ten), 5);
    // Each pair is too much in one of both dimensions.
    let apart = [of(6, 10), of(5, 60), of(2, 50)];
    assert_eq!(least_devices(&apart[..2], &ten), 2);
    assert_eq!(least_devices(&[of(9, 0), of(0, 90)], &ten), 1);
}

/// The fewest devices, by trying everything.
fn exhaustive(items: &[Resources], device: Resources, taken: &mut Vec<Resources>) -> usize {
    let Some((first, rest)) = items.split_first() else {
        return taken.len();
    };
    let mut least = usize::MAX;
    for place in 0..=taken.len() {
        if place == taken.len() {
            taken.push(Resources::default());
        }
        let before = taken[place];
        if before.plus(*first).fits(device) {
            taken[place] = before.plus(*first);
            least = least.min(exhaustive(rest, device, taken));
            taken[place] = before;
        }
        if taken[place] == Resources::default() {
            taken.truncate(place);
            break;
        }
    }
    least
}

fn items(count: std::ops::Range<usize>, most: u64) -> impl Strategy<Value = Vec<Resources>> {
    prop::collection::vec(
        (1..=most, 1..=most).prop_map(|(bytes, cores)| of(bytes, cores)),
        count,
    )
}

fn check(items: &[Resources], devices: &[Resources], packing: &Packing) {
    let mut taken = vec![Resources::default(); devices.len()];
    for (item, device) in items.iter().zip(&packing.device_of) {
        let device = device.expect("a device");
        taken[device] = taken[device].plus(*item);
    }
    assert!(
        taken
            .iter()
            .zip(devices)
            .all(|(taken, device)| taken.fits(*device))
    );
    assert_eq!(packing.unplaced(), 0);
    assert!(packing.least_devices <= packing.devices_used());
}

proptest! {
    #[test]
    fn the_search_is_exact(items in items(1..8, 60)) {
        let device = of(100, 100);
        let all = devices(items.len(), device);
        let found = pack(&items, &all, PackingRule::Search);
        check(&items, &all, &found);
        let least = exhaustive(&items, device, &mut Vec::new());
        prop_assert_eq!(found.devices_used(), least);
        prop_assert_eq!(found.least_devices, least);
    }

    #[test]
    fn every_rule_keeps_capacities_and_the_search_uses_the_fewest(items in items(1..40, 70)) {
        let all = devices(items.len(), of(100, 100));
        let used = |rule| {
            let packing = pack(&items, &all, rule);
            check(&items, &all, &packing);
            packing.devices_used()
        };
        let search = used(PackingRule::Search);
        for rule in [PackingRule::FirstFitDecreasing, PackingRule::BestFit, PackingRule::BestFitDecreasing] {
            prop_assert!(search <= used(rule));
        }
    }

    #[test]
    fn turns_keep_objectives_and_serve_the_rates(
        sessions in prop::collection::vec((0.0..200.0_f64, 100..1000_u64, 1..40_u64, 0..20_u64, 1..60_u64), 1..12),
    ) {
        let latencies: Vec<Vec<(u32, Duration)>> = sessions
            .iter()
            .map(|(_, _, base, each, _)| {
                let batches = [1_u32, 2, 4, 8, 16];
                batches.map(|batch| (batch, Duration::from_millis(base + each * u64::from(batch)))).to_vec()
            })
            .collect();
        let sessions: Vec<Session<'_>> = sessions
            .iter()
            .zip(&latencies)
            .map(|((rate, objective, _, _, bytes), latencies)| Session {
                rate: *rate,
                objective: Duration::from_millis(*objective),
                latencies,
                bytes: *bytes,
            })
            .collect();
        let packed = squishy::pack(&sessions, 100);
        let hopeless = sessions.iter().any(|session| session.latencies[0].1 * 2 > session.objective);
        prop_assert_eq!(hopeless, packed.is_err());
        let packed: Vec<DutyCycle> = packed.unwrap_or_default();
        for device in &packed {
            prop_assert!(device.occupancy() <= 1.0 + 1e-9 && device.bytes <= 100);
            for turn in &device.turns {
                let session = &sessions[turn.session];
                prop_assert!(device.cycle + turn.latency <= session.objective + Duration::from_nanos(1));
                prop_assert!(f64::from(turn.batch) >= turn.rate * device.cycle.as_secs_f64() - 1e-6);
            }
        }
        for (index, session) in sessions.iter().enumerate().filter(|_| !hopeless) {
            let turns = packed.iter().flat_map(|device| &device.turns);
            let served: f64 = turns.filter(|turn| turn.session == index).map(|turn| turn.rate).sum();
            prop_assert!((served - session.rate).abs() < 1e-3);
        }
    }
}

#[test]
fn two_models_share_a_cycle() {
    let millis = Duration::from_millis;
    let latencies = [(1, millis(10)), (2, millis(15)), (4, millis(20))];
    let session = |rate, objective| Session {
        rate,
        objective: millis(objective),
        latencies: &latencies,
        bytes: 40,
    };
    // A: 4 requests take 80 ms to come and 20 to run, just within 100. B: 2 of 25 a second in 80 ms.
    let both = [session(50.0, 100), session(25.0, 200)];
    let packed = squishy::pack(&both, 100).expect("a packing");
    let turns = |device: &DutyCycle| -> Vec<(usize, u32)> {
        device
            .turns
            .iter()
            .map(|turn| (turn.session, turn.batch))
            .collect()
    };
    assert_eq!(packed.len(), 1);
    assert_eq!((packed[0].cycle, packed[0].bytes), (millis(80), 80));
    let mut both_turns = turns(&packed[0]);
    both_turns.sort_unstable();
    assert_eq!(both_turns, [(0, 4), (1, 2)]);
    // Without the memory for both, each has a device.
    assert_eq!(squishy::pack(&both, 60).map(|devices| devices.len()), Ok(2));
    // 450 a second fill two devices with batches of 4, and half a third one.
    let full = squishy::pack(&[session(450.0, 100)], 100).expect("a packing");
    assert_eq!(full.len(), 3);
    assert_eq!(full[0].cycle, millis(20));
    assert_eq!(
        squishy::pack(&[session(1.0, 15)], 100),
        Err(SquishyError::Objective {
            session: 0,
            shortest: Some(millis(20))
        })
    );
    assert_eq!(
        squishy::pack(&both, 39),
        Err(SquishyError::Memory { session: 0 })
    );
    assert_eq!(
        squishy::pack(&[session(f64::NAN, 100)], 100),
        Err(SquishyError::Rate { session: 0 })
    );
}
