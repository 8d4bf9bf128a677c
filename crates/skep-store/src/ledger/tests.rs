//! The ledger on virtual time: who gets what, what is dropped and when, and that nothing is lost.

use std::time::Duration;

use proptest::prelude::*;
use skep_types::DataType;

use super::*;
use crate::layout::room;

const MEBI: u64 = 1 << 20;

fn tensor(number: u8, length: u64) -> Wanted {
    Wanted {
        digest: Digest([number; 32]),
        description: Description {
            datatype: DataType::Uint8,
            dims: vec![length],
            layout: "plain".into(),
        },
        length,
    }
}

fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}

fn options() -> StoreOptions {
    StoreOptions {
        budget_bytes: 100 * MEBI,
        keep_alive: Duration::from_secs(60),
        max_tenant_bytes: 1000 * MEBI,
        max_holder_bytes: 500 * MEBI,
        ..StoreOptions::default()
    }
}

fn ledger(options: StoreOptions) -> Ledger {
    Ledger::new(Tenant::GENERAL, options, Time::ZERO)
}

/// Acquires one tensor as a new holder, and fills a segment with it if necessary. Returns whether it did.
fn load(ledger: &mut Ledger, now: Time, wanted: &Wanted) -> (HolderId, bool) {
    let id = ledger.join().expect("room");
    let answers = ledger.take(now, id, &[wanted], true).expect("room");
    let fills = answers == [Availability::Fill];
    if fills {
        publish(ledger, now, id, wanted).expect("room");
    }
    (id, fills)
}

fn publish(
    ledger: &mut Ledger,
    now: Time,
    id: HolderId,
    wanted: &Wanted,
) -> Result<Option<SegmentId>, StoreError> {
    // A memory file that is new to the ledger.
    let identity = FileIdentity(0, ledger.next_number);
    ledger.publish(now, id, identity, room(wanted.length), &[(wanted, 0)])
}

/// Acquires a tensor and ends the holder at once.
fn use_once(ledger: &mut Ledger, now: Time, wanted: &Wanted) -> bool {
    let (id, filled) = load(ledger, now, wanted);
    ledger.leave(now, id);
    ledger.reclaim(now);
    filled
}

fn is_there(ledger: &Ledger, wanted: &Wanted) -> bool {
    ledger.place(wanted.digest).is_some()
}

#[test]
fn when_memory_is_short_half_of_the_idle_bytes_go_oldest_first() {
    let mut ledger = ledger(options());
    let tensors: Vec<Wanted> = (1..=4).map(|number| tensor(number, MEBI)).collect();
    for (second, wanted) in tensors.iter().enumerate() {
        use_once(&mut ledger, at(second as u64), wanted);
    }
    // The second is in use again, and the first was used last.
    let (_id, filled) = load(&mut ledger, at(10), &tensors[1]);
    assert!(!filled);
    use_once(&mut ledger, at(11), &tensors[0]);
    let there = |ledger: &Ledger| {
        let there = tensors.iter().map(|wanted| is_there(ledger, wanted));
        there.collect::<Vec<_>>()
    };
    // Of three, two.
    assert_eq!(ledger.relieve(), 2 * MEBI);
    assert_eq!(there(&ledger), [true, true, false, false]);
    assert_eq!(ledger.relieve(), MEBI);
    assert_eq!(ledger.relieve(), 0, "what is in use stays");
    assert_eq!(there(&ledger), [false, true, false, false]);
    assert_eq!(ledger.reclaim(at(12)).len(), 3, "their memory goes");
    assert_eq!(ledger.stat().reclaimed, 3);
    assert!(
        use_once(&mut ledger, at(13), &tensors[2]),
        "it is filled again"
    );
}

#[test]
fn one_fills_and_the_others_wait() {
    let mut ledger = ledger(options());
    let wanted = tensor(1, MEBI);
    let [first, second] = [(); 2].map(|()| ledger.join().expect("room"));
    let take = |ledger: &mut Ledger, id| ledger.take(at(0), id, &[&wanted], true).expect("room");
    assert_eq!(
        ledger.take(at(0), first, &[&wanted], false).expect("room"),
        [Availability::Absent]
    );
    assert_eq!(take(&mut ledger, first), [Availability::Fill]);
    assert_eq!(take(&mut ledger, second), [Availability::Wait]);
    assert_eq!(take(&mut ledger, second), [Availability::Wait]);
    let segment = publish(&mut ledger, at(0), first, &wanted)
        .expect("room")
        .expect("new");
    assert_eq!(
        take(&mut ledger, second),
        [Availability::Here((segment, 0))]
    );
    let stat = ledger.stat();
    assert_eq!((stat.hits, stat.misses, stat.waits), (0, 1, 1));
    assert_eq!(
        (stat.leases, stat.bytes_leased, stat.bytes_stored),
        (2, 2 * MEBI, MEBI)
    );
    assert_eq!(stat.bytes_saved(), 1 << 20);
}

#[test]
fn the_time_that_holders_waited_adds_up_and_saturates() {
    let mut ledger = ledger(options());
    for (waited, expected) in [(0, 0), (3, 3), (4, 7), (u64::MAX, u64::MAX)] {
        ledger.waited(waited);
        assert_eq!(ledger.stat().wait_ns, expected);
    }
}

#[test]
fn another_fills_when_a_filler_leaves_gives_up_or_is_slow() {
    let wanted = tensor(1, MEBI);
    for end in ["leaves", "gives back", "is slow"] {
        let mut ledger = ledger(options());
        let [first, second] = [(); 2].map(|()| ledger.join().expect("room"));
        let take =
            |ledger: &mut Ledger, now, id| ledger.take(now, id, &[&wanted], true).expect("room");
        assert_eq!(take(&mut ledger, at(0), first), [Availability::Fill]);
        assert_eq!(take(&mut ledger, at(59), second), [Availability::Wait]);
        let now = match end {
            "leaves" => {
                assert!(ledger.leave(at(59), first));
                at(59)
            }
            "gives back" => {
                // A holder cannot give back another's ticket.
                assert!(!ledger.give_back(second, &[wanted.digest]));
                assert!(ledger.give_back(first, &[wanted.digest]));
                at(59)
            }
            _ => at(60),
        };
        assert_eq!(
            take(&mut ledger, now, second),
            [Availability::Fill],
            "{end}"
        );
        publish(&mut ledger, now, second, &wanted).expect("room");
        // The slow filler gets a lease to what the other has published.
        if end != "leaves" {
            assert_eq!(
                publish(&mut ledger, now, first, &wanted).expect("room"),
                None
            );
            assert_eq!(ledger.stat().leases, 2);
        }
        assert_eq!(ledger.stat().segments, 1);
        assert_eq!(ledger.promised, 0);
    }
}

#[test]
fn no_tickets_are_given_out_within_the_adoption_window() {
    let mut ledger = Ledger::new(Tenant::GENERAL, options(), at(2));
    let wanted = tensor(1, MEBI);
    let [new, old] = [(); 2].map(|()| ledger.join().expect("room"));
    assert_eq!(
        ledger.take(at(1), new, &[&wanted], true).expect("room"),
        [Availability::Wait]
    );
    assert_eq!(ledger.tickets_from(at(1)), Some(Duration::from_secs(1)));
    assert_eq!(ledger.offer(at(1), old, &[&wanted]).expect("room"), [false]);
    publish(&mut ledger, at(1), old, &wanted).expect("room");
    let answers = ledger.take(at(1), new, &[&wanted], true).expect("room");
    assert!(matches!(answers[..], [Availability::Here((..))]));
    let other = tensor(2, MEBI);
    assert_eq!(
        ledger.take(at(2), new, &[&other], true).expect("room"),
        [Availability::Fill]
    );
    assert_eq!(ledger.tickets_from(at(2)), None);
    // No holder was filling meanwhile.
    let stat = ledger.stat();
    assert_eq!((stat.hits, stat.misses, stat.waits), (1, 1, 0));
}

#[test]
fn one_memory_file_from_several_holders_is_one_segment() {
    let mut ledger = ledger(options());
    let [one, two] = [tensor(1, 10), tensor(2, 10)];
    let [first, second] = [(); 2].map(|()| ledger.join().expect("room"));
    let file = FileIdentity(7, 7);
    let new = ledger
        .publish(at(0), first, file, 8192, &[(&one, 0)])
        .expect("room");
    assert_eq!(ledger.known(file), new);
    assert_eq!(
        ledger.offer(at(0), second, &[&one, &two]).expect("room"),
        [true, false]
    );
    let again = ledger
        .publish(at(0), second, file, 8192, &[(&two, 4096)])
        .expect("room");
    assert_eq!(again, None);
    assert_eq!(ledger.place(two.digest), new.map(|id| (id, 4096)));
    let stat = ledger.stat();
    assert_eq!((stat.segments, stat.tensors, stat.leases), (1, 2, 3));
    assert_eq!((stat.bytes_stored, stat.bytes_padding), (20, 8192 - 20));
}

#[test]
fn idle_tensors_stay_for_the_window_and_no_longer() {
    let mut ledger = ledger(options());
    let wanted = tensor(1, MEBI);
    let (id, _) = load(&mut ledger, at(0), &wanted);
    assert!(ledger.reclaim(at(1000)).is_empty(), "it has a lease");
    assert_eq!(ledger.next_reclaim(), None);
    ledger.leave(at(1000), id);
    assert_eq!(ledger.next_reclaim(), Some(at(1060)));
    assert!(
        ledger
            .reclaim(Time::from_nanos(at(1060).as_nanos() - 1))
            .is_empty()
    );
    assert_eq!(
        ledger.list(at(1060), None, 9)[0].idle,
        Some(Duration::from_secs(60))
    );
    assert_eq!(ledger.reclaim(at(1060)).len(), 1);
    assert!(!is_there(&ledger, &wanted));
    assert_eq!(ledger.stat().reclaimed, 1);
}

#[test]
fn a_tensor_used_again_within_the_window_is_never_filled_again() {
    let mut ledger = ledger(options());
    let wanted = tensor(1, MEBI);
    let fills: Vec<bool> = (0..100)
        .map(|turn| use_once(&mut ledger, at(turn * 59), &wanted))
        .collect();
    assert_eq!(fills.iter().filter(|filled| **filled).count(), 1);
    assert_eq!(ledger.stat().hits, 99);
}

#[test]
fn over_the_budget_the_least_recently_used_go_first_and_only_as_many_as_needed() {
    let mut ledger = ledger(options());
    let tensors: Vec<Wanted> = (1..=4).map(|number| tensor(number, 30 * MEBI)).collect();
    for (second, wanted) in [(1, 0), (2, 1), (3, 2), (4, 0)] {
        use_once(&mut ledger, at(second), &tensors[wanted]);
    }
    // 90 of 100 MiB are idle; the ticket for 30 more lets the oldest go before a byte of it is written.
    let id = ledger.join().expect("room");
    ledger.take(at(5), id, &[&tensors[3]], true).expect("room");
    assert_eq!(ledger.reclaim(at(5)).len(), 1);
    let there: Vec<bool> = tensors
        .iter()
        .map(|wanted| is_there(&ledger, wanted))
        .collect();
    assert_eq!(there, [true, false, true, false]);
}

#[test]
fn over_the_budget_leased_tensors_stay_until_they_are_released() {
    let mut ledger = ledger(options());
    let tensors: Vec<Wanted> = (1..=3).map(|number| tensor(number, 60 * MEBI)).collect();
    let holders: Vec<HolderId> = tensors
        .iter()
        .map(|wanted| load(&mut ledger, at(0), wanted).0)
        .collect();
    assert!(ledger.reclaim(at(0)).is_empty());
    assert_eq!(ledger.stat().segments, 3);
    for (holder, left) in holders.into_iter().zip([2, 1, 1]) {
        ledger.leave(at(1), holder);
        ledger.reclaim(at(1));
        assert_eq!(ledger.stat().segments, left);
    }
    assert_eq!(ledger.gc(), 60 * MEBI);
    assert_eq!(ledger.stat().bytes_stored, 0);
}

/// A refusal names its bound, and leaves the holder with what it had before.
#[test]
fn a_refusal_names_its_bound() {
    let bounded = |change: fn(&mut StoreOptions)| {
        let mut options = options();
        change(&mut options);
        let mut ledger = ledger(options);
        let [old, first, second] = [tensor(1, MEBI), tensor(2, MEBI), tensor(3, MEBI)];
        let (other, _) = load(&mut ledger, at(0), &old);
        let Ok(id) = ledger.join() else {
            return ledger.join().expect_err("still full").to_string();
        };
        let before = ledger.stat();
        let error = ledger
            .take(at(0), id, &[&old, &first, &second], true)
            .map(|_| ())
            .and_then(|()| {
                publish(&mut ledger, at(0), id, &first)?;
                publish(&mut ledger, at(0), id, &second).map(|_| ())
            });
        let error = error.expect_err("a bound").to_string();
        ledger.leave(at(0), id);
        assert_eq!(ledger.stat().leases, before.leases);
        assert_eq!(ledger.promised, 0);
        ledger.leave(at(0), other);
        error
    };
    type Case = (fn(&mut StoreOptions), &'static str);
    let cases: [Case; 8] = [
        (
            |o| o.max_holders = 1,
            "connections of tenant `general` would be 2, expected at most 1",
        ),
        (
            |o| o.max_tenant_bytes = 2 * MEBI,
            "bytes of tenant `general` would be 3145728, expected at most 2097152",
        ),
        (
            |o| o.max_holder_bytes = 2 * MEBI,
            "bytes of one holder of tenant `general` would be 3145728, expected at most 2097152",
        ),
        (
            |o| o.max_holder_leases = 2,
            "leases of one holder of tenant `general` would be 3, expected at most 2",
        ),
        (
            |o| o.max_holder_tickets = 1,
            "tensors that one holder is to fill of tenant `general` would be 2, expected at most 1",
        ),
        (
            |o| o.max_holder_ticket_bytes = 2 * MEBI - 1,
            "bytes that one holder is to fill of tenant `general` would be 2097152, expected at most 2097151",
        ),
        (
            |o| o.max_segments = 2,
            "segments of tenant `general` would be 3, expected at most 2",
        ),
        (
            |o| o.max_tensors = 2,
            "tensors of tenant `general` would be 3, expected at most 2",
        ),
    ];
    for (change, text) in cases {
        assert_eq!(bounded(change), text);
    }
}

#[test]
fn a_refused_request_takes_nothing() {
    let mut ledger = ledger(StoreOptions {
        max_tenant_bytes: 2 * MEBI,
        ..options()
    });
    let [there, small, large] = [tensor(1, MEBI), tensor(2, MEBI), tensor(3, MEBI)];
    load(&mut ledger, at(0), &there);
    let id = ledger.join().expect("room");
    let before = ledger.stat();
    let error = ledger.take(at(0), id, &[&there, &small, &large], true);
    assert_eq!(error.expect_err("no room").kind(), crate::ErrorKind::Bound);
    assert_eq!(ledger.stat().leases, before.leases);
    assert_eq!(
        ledger.take(at(0), id, &[&small], true).expect("room"),
        [Availability::Fill]
    );
}

/// A holder that claims without end takes no ticket beyond its bound, and no room from others.
#[test]
fn a_holder_has_a_bounded_number_of_tickets() {
    let tensors: Vec<Wanted> = (1..=4).map(|number| tensor(number, 30 * MEBI)).collect();
    let claim = |ledger: &mut Ledger, now, id, which: usize| {
        let answers = ledger.take(now, id, &[&tensors[which]], true);
        answers.map(|answers| answers[0]).ok()
    };
    for (max_tickets, max_bytes) in [(1, 1 << 30), (9, 40 * MEBI), (9, 10 * MEBI)] {
        let mut ledger = ledger(StoreOptions {
            max_holder_tickets: max_tickets,
            max_holder_ticket_bytes: max_bytes,
            ..options()
        });
        for idle in &tensors[..2] {
            use_once(&mut ledger, at(0), idle);
        }
        let [greedy, other] = [(); 2].map(|()| ledger.join().expect("room"));
        // One alone may be of any size.
        assert_eq!(
            claim(&mut ledger, at(0), greedy, 2),
            Some(Availability::Fill)
        );
        assert_eq!(
            claim(&mut ledger, at(0), greedy, 2),
            Some(Availability::Fill),
            "as before"
        );
        assert_eq!(
            claim(&mut ledger, at(0), greedy, 3),
            None,
            "beyond its bound"
        );
        assert!(ledger.reclaim(at(0)).is_empty(), "nothing goes for it");
        assert_eq!(
            claim(&mut ledger, at(0), other, 3),
            Some(Availability::Fill)
        );

        // Each way in which a ticket ends makes room for the next one.
        publish(&mut ledger, at(0), greedy, &tensors[2]).expect("room");
        assert!(ledger.give_back(other, &[tensors[3].digest]));
        assert_eq!(
            claim(&mut ledger, at(0), greedy, 3),
            Some(Availability::Fill)
        );
        assert_eq!(
            claim(&mut ledger, at(60), other, 3),
            Some(Availability::Fill),
            "overtaken"
        );
        ledger.gc();
        assert_eq!(
            claim(&mut ledger, at(60), greedy, 0),
            Some(Availability::Fill)
        );
        ledger.give_back(greedy, &[tensors[0].digest]);
        assert_eq!(
            claim(&mut ledger, at(60), greedy, 1),
            Some(Availability::Fill)
        );
    }
}

/// Tickets become leases: a holder that may not have the lease is refused before it fills.
#[test]
fn tickets_count_as_the_leases_that_they_become() {
    let tensors: Vec<Wanted> = (1..=3).map(|number| tensor(number, MEBI)).collect();
    let changes: [fn(&mut StoreOptions); 2] = [
        |options| options.max_holder_leases = 2,
        |options| options.max_holder_bytes = 2 * MEBI,
    ];
    for change in changes {
        let mut options = options();
        change(&mut options);
        let mut ledger = ledger(options);
        let id = ledger.join().expect("room");
        for wanted in &tensors[..2] {
            ledger.take(at(0), id, &[wanted], true).expect("room");
        }
        let error = ledger.take(at(0), id, &[&tensors[2]], true);
        assert_eq!(error.expect_err("a bound").kind(), crate::ErrorKind::Bound);
    }
}

#[test]
fn a_digest_with_another_description_is_refused() {
    let mut ledger = ledger(options());
    let wanted = tensor(1, 8);
    load(&mut ledger, at(0), &wanted);
    let mut other = wanted;
    other.description.dims = vec![2, 4];
    let id = ledger.join().expect("room");
    let error = ledger
        .take(at(0), id, &[&other], true)
        .expect_err("another tensor");
    let digest = other.digest;
    assert_eq!(
        error.to_string(),
        format!(
            "tensor `{digest}` is UINT8[8] plain of 8 bytes, expected UINT8[2,4] plain of 8 bytes"
        )
    );
}

/// A step of a random history.
#[derive(Debug, Clone)]
enum HolderStep {
    Join,
    Leave(usize),
    /// Holder, tensors.
    Take(usize, Vec<u8>, bool),
    /// Holder: publishes what it has tickets for.
    Publish(usize),
    GiveBack(usize),
    Release(usize, u8),
    /// Seconds that pass.
    Pass(u64),
    Gc,
    Relieve,
}

fn steps() -> impl Strategy<Value = Vec<HolderStep>> {
    let some = proptest::collection::vec(0..12_u8, 1..5);
    let step = prop_oneof![
        2 => Just(HolderStep::Join),
        2 => (0..8_usize).prop_map(HolderStep::Leave),
        6 => (0..8_usize, some, any::<bool>()).prop_map(|(h, t, c)| HolderStep::Take(h, t, c)),
        5 => (0..8_usize).prop_map(HolderStep::Publish),
        1 => (0..8_usize).prop_map(HolderStep::GiveBack),
        2 => (0..8_usize, 0..12_u8).prop_map(|(h, t)| HolderStep::Release(h, t)),
        2 => (1..50_u64).prop_map(HolderStep::Pass),
        1 => Just(HolderStep::Gc),
        1 => Just(HolderStep::Relieve),
    ];
    proptest::collection::vec(step, 1..120)
}

/// A plain model of the ledger.
#[derive(Debug, Default)]
struct LedgerModel {
    /// Holder, its tickets, its leases.
    holders: Vec<(HolderId, Vec<u8>, Vec<u8>)>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_lost_and_nothing_leased_is_dropped(steps in steps()) {
        let mut ledger = ledger(StoreOptions {
            budget_bytes: 10 * MEBI,
            max_tenant_bytes: 20 * MEBI,
            max_holder_tickets: 4,
            max_holder_ticket_bytes: 5 * MEBI,
            ..options()
        });
        let mut expected = LedgerModel::default();
        let mut now = at(1);
        let tensors: Vec<Wanted> = (0..12).map(|n| tensor(n, u64::from(n) * 300_000)).collect();
        for step in steps {
            match step {
                HolderStep::Join if expected.holders.len() < 8 => {
                    expected.holders.push((ledger.join().expect("room"), vec![], vec![]));
                }
                HolderStep::Pass(seconds) => now = now + Duration::from_secs(seconds),
                HolderStep::Gc => {
                    ledger.gc();
                }
                HolderStep::Relieve => {
                    ledger.relieve();
                }
                HolderStep::Leave(holder) if holder < expected.holders.len() => {
                    let (id, ..) = expected.holders.remove(holder);
                    ledger.leave(now, id);
                }
                HolderStep::Take(holder, numbers, claims) if holder < expected.holders.len() => {
                    let (id, tickets, leases) = &mut expected.holders[holder];
                    let wanted: Vec<&Wanted> =
                        numbers.iter().map(|n| &tensors[usize::from(*n)]).collect();
                    if let Ok(answers) = ledger.take(now, *id, &wanted, claims) {
                        for (number, answer) in numbers.iter().zip(answers) {
                            match answer {
                                Availability::Here((..)) => leases.push(*number),
                                Availability::Fill => {
                                    prop_assert!(claims);
                                    tickets.push(*number);
                                }
                                Availability::Wait => prop_assert!(claims),
                                Availability::Absent => prop_assert!(!claims),
                            }
                        }
                    }
                }
                HolderStep::Publish(holder) if holder < expected.holders.len() => {
                    let (id, tickets, leases) = &mut expected.holders[holder];
                    let mut numbers = std::mem::take(tickets);
                    numbers.sort_unstable();
                    numbers.dedup();
                    for number in numbers {
                        let wanted = &tensors[usize::from(number)];
                        let was_there = is_there(&ledger, wanted);
                        if let Ok(new) = publish(&mut ledger, now, *id, wanted) {
                            // Published once: a second memory file of a tensor is not taken.
                            prop_assert_eq!(new.is_none(), was_there);
                            leases.push(number);
                        }
                    }
                }
                HolderStep::GiveBack(holder) if holder < expected.holders.len() => {
                    let (id, tickets, _) = &mut expected.holders[holder];
                    let digests: Vec<Digest> = std::mem::take(tickets)
                        .iter()
                        .map(|n| tensors[usize::from(*n)].digest)
                        .collect();
                    ledger.give_back(*id, &digests);
                }
                HolderStep::Release(holder, number) if holder < expected.holders.len() => {
                    let (id, _, leases) = &mut expected.holders[holder];
                    if let Some(at) = leases.iter().position(|leased| *leased == number) {
                        leases.swap_remove(at);
                    }
                    ledger.release(now, *id, &[tensors[usize::from(number)].digest]);
                }
                _ => {}
            }
            ledger.reclaim(now);
            let leases: Vec<u8> = expected.holders.iter().flat_map(|h| h.2.clone()).collect();
            for number in &leases {
                prop_assert!(is_there(&ledger, &tensors[usize::from(*number)]));
            }
            let stat = ledger.stat();
            prop_assert_eq!(stat.leases, leases.len() as u64);
            let leased = leases.iter().map(|n| tensors[usize::from(*n)].length).sum::<u64>();
            prop_assert_eq!(stat.bytes_leased, leased);
            prop_assert!(ledger.reserved + ledger.promised <= 20 * MEBI);
            let sizes: u64 = ledger.segments.values().map(|segment| segment.size).sum();
            prop_assert_eq!(sizes, ledger.reserved);
            for (id, holder) in &ledger.holders {
                let own = || ledger.tickets.values().filter(|ticket| ticket.holder == *id);
                prop_assert_eq!(holder.tickets, own().count() as u64);
                prop_assert_eq!(holder.ticket_bytes, own().map(|ticket| ticket.length).sum::<u64>());
                prop_assert!(holder.tickets <= 4);
                prop_assert!(holder.tickets < 2 || holder.ticket_bytes <= 5 * MEBI);
            }
            let idle = ledger.segments.values().any(|segment| segment.leases == 0);
            prop_assert!(!idle || ledger.reserved + ledger.promised <= 10 * MEBI);
        }
        for (id, ..) in expected.holders {
            ledger.leave(now, id);
        }
        ledger.gc();
        prop_assert_eq!(ledger.promised, 0);
        prop_assert_eq!(ledger.reserved, 0);
        let stat = ledger.stat();
        prop_assert_eq!(stat, Stat {
            hits: stat.hits,
            misses: stat.misses,
            waits: stat.waits,
            reclaimed: stat.reclaimed,
            wait_ns: stat.wait_ns,
            ..Stat::default()
        });
    }
}
