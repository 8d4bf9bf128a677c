//! The table against a plain list of entries that is searched from end to end.

use proptest::prelude::*;

use super::*;

/// One of a few digests.
fn digest(number: u8) -> EntryDigest {
    let mut digest = [0; 32];
    digest[31] = number;
    digest
}

fn at(ms: u64) -> Time {
    Time::from_nanos(ms * 1_000_000)
}

const NODE: u64 = 100;

/// Owners of each kind of limit.
const LIMITS: [OwnerLimits; 3] = [
    OwnerLimits {
        bytes: None,
        time_to_live: None,
    },
    OwnerLimits {
        bytes: Some(40),
        time_to_live: None,
    },
    OwnerLimits {
        bytes: Some(u64::MAX),
        time_to_live: Some(Duration::from_millis(50)),
    },
];

#[derive(Debug, Clone)]
enum Step {
    LookUp {
        owner: usize,
        digest: u8,
    },
    Insert {
        owner: usize,
        digest: u8,
        bytes: u64,
    },
    Pass {
        ms: u64,
    },
    Renew {
        owner: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let owner = 0..LIMITS.len();
    prop_oneof![
        4 => (owner.clone(), 0_u8..8).prop_map(|(owner, digest)| Step::LookUp { owner, digest }),
        6 => (owner.clone(), 0_u8..8, 0_u64..60)
            .prop_map(|(owner, digest, bytes)| Step::Insert { owner, digest, bytes }),
        2 => (0_u64..40).prop_map(|ms| Step::Pass { ms }),
        1 => owner.prop_map(|owner| Step::Renew { owner }),
    ]
}

struct ListedEntry {
    owner: usize,
    digest: u8,
    value: u32,
    bytes: u64,
    expires: Option<Time>,
}

/// The rules in the plainest form: a list, the least recently used entry first.
#[derive(Default)]
struct PlainCache(Vec<ListedEntry>);

impl PlainCache {
    fn bytes(&self, of: Option<usize>) -> u64 {
        let entries = self.0.iter();
        let counted = entries.filter(|entry| of.is_none_or(|owner| entry.owner == owner));
        counted.map(|entry| entry.bytes).sum()
    }

    fn expire(&mut self, now: Time, owner: usize) {
        let is_over = |entry: &ListedEntry| entry.expires.is_some_and(|expires| now >= expires);
        self.0
            .retain(|entry| entry.owner != owner || !is_over(entry));
    }

    fn look_up(&mut self, now: Time, owner: usize, digest: u8) -> Option<u32> {
        self.expire(now, owner);
        let entries = &self.0;
        let found = entries
            .iter()
            .position(|entry| (entry.owner, entry.digest) == (owner, digest))?;
        let entry = self.0.remove(found);
        let value = entry.value;
        self.0.push(entry);
        Some(value)
    }

    fn insert(&mut self, now: Time, owner: usize, digest: u8, value: u32, bytes: u64) {
        self.expire(now, owner);
        self.0
            .retain(|entry| (entry.owner, entry.digest) != (owner, digest));
        let limits = LIMITS[owner];
        let own = limits.bytes.unwrap_or(u64::MAX);
        if bytes > own.min(NODE) {
            return;
        }
        while self.bytes(Some(owner)) > own - bytes {
            let first = self.0.iter().position(|entry| entry.owner == owner);
            self.0.remove(first.expect("it has bytes"));
        }
        while self.bytes(None) + bytes > NODE {
            self.0.remove(0);
        }
        self.0.push(ListedEntry {
            owner,
            digest,
            value,
            bytes,
            expires: limits.time_to_live.map(|time| now + time),
        });
    }
}

proptest! {
    /// The same entries are found, the bounds hold, and no value is lost: each is kept, or was handed back once.
    #[test]
    fn the_table_does_what_the_plain_list_does(steps in proptest::collection::vec(step(), 0..80)) {
        let mut table = CacheTable::new(NODE);
        let mut plain = PlainCache::default();
        let mut owners = LIMITS.map(|limits| table.add_owner(limits));
        let (mut ms, mut inserted) = (0, 0_u32);
        let mut gone = Vec::new();
        for step in steps {
            match step {
                Step::LookUp { owner, digest: number } => {
                    let found = table.look_up(at(ms), owners[owner], &digest(number), &mut gone);
                    prop_assert_eq!(found.copied(), plain.look_up(at(ms), owner, number));
                }
                Step::Insert { owner, digest: number, bytes } => {
                    let entry = (inserted, bytes);
                    table.insert(at(ms), owners[owner], digest(number), entry, &mut gone);
                    plain.insert(at(ms), owner, number, inserted, bytes);
                    inserted += 1;
                }
                Step::Pass { ms: more } => ms += more,
                Step::Renew { owner } => {
                    gone.extend(table.remove_owner(owners[owner]));
                    plain.0.retain(|entry| entry.owner != owner);
                    owners[owner] = table.add_owner(LIMITS[owner]);
                }
            }
            prop_assert!(table.bytes() <= NODE);
            prop_assert_eq!(table.bytes(), plain.bytes(None));
            for (owner, id) in owners.iter().enumerate() {
                let report = table.report(*id);
                let entries = plain.0.iter().filter(|entry| entry.owner == owner).count();
                prop_assert_eq!(report.entries, entries as u64);
                prop_assert_eq!(report.bytes, plain.bytes(Some(owner)));
            }
        }
        for owner in owners {
            gone.extend(table.remove_owner(owner));
        }
        gone.sort_unstable();
        prop_assert_eq!(gone, (0..inserted).collect::<Vec<_>>());
        prop_assert_eq!(table.bytes(), 0);
        prop_assert!(table.index.is_empty() && table.vacant.len() == table.slots.len());
    }
}

#[test]
fn the_least_recently_used_entry_leaves_first() {
    let mut table = CacheTable::new(30);
    let owner = table.add_owner(OwnerLimits::default());
    let mut gone = Vec::new();
    for number in 0..3 {
        table.insert(at(0), owner, digest(number), (number, 10), &mut gone);
    }
    table.look_up(at(0), owner, &digest(0), &mut gone);
    table.insert(at(0), owner, digest(3), (3, 10), &mut gone);
    assert_eq!(gone, [1]);
    table.insert(at(0), owner, digest(4), (4, 25), &mut gone);
    assert_eq!(gone, [1, 2, 0, 3]);
    assert_eq!(table.report(owner).dropped, [4, 0, 0, 0]);
}

#[test]
fn a_models_bound_costs_only_its_own_entries() {
    let mut table = CacheTable::new(100);
    let large = table.add_owner(OwnerLimits::default());
    let bounded = table.add_owner(OwnerLimits {
        bytes: Some(20),
        ..OwnerLimits::default()
    });
    let mut gone = Vec::new();
    table.insert(at(0), large, digest(0), (0, 50), &mut gone);
    for number in 1..4 {
        table.insert(at(0), bounded, digest(number), (number, 10), &mut gone);
    }
    assert_eq!(gone, [1]);
    table.insert(at(0), bounded, digest(9), (9, 21), &mut gone);
    assert_eq!(
        gone,
        [1, 9],
        "too large for its model, and nothing left for it"
    );
    assert_eq!(table.report(bounded).dropped, [0, 1, 0, 1]);
    assert_eq!(table.report(large).dropped, [0; 4]);
}

#[test]
fn an_entry_lives_for_its_time_and_uses_do_not_prolong_it() {
    let mut table = CacheTable::new(100);
    let owner = table.add_owner(OwnerLimits {
        bytes: None,
        time_to_live: Some(Duration::from_millis(10)),
    });
    let mut gone = Vec::new();
    table.insert(at(0), owner, digest(0), (0, 1), &mut gone);
    table.insert(at(5), owner, digest(1), (1, 1), &mut gone);
    for ms in [0, 9] {
        let found = table.look_up(at(ms), owner, &digest(0), &mut gone);
        assert_eq!(found, Some(&0), "{ms}");
    }
    assert_eq!(table.look_up(at(10), owner, &digest(0), &mut gone), None);
    assert_eq!(gone, [0]);
    // A newer response lives as long as it says itself.
    table.insert(at(14), owner, digest(1), (2, 1), &mut gone);
    let found = table.look_up(at(23), owner, &digest(1), &mut gone);
    assert_eq!(found, Some(&2));
    table.insert(at(24), owner, digest(3), (3, 1), &mut gone);
    assert_eq!(gone, [0, 1, 2]);
    assert_eq!(table.report(owner).dropped, [0, 0, 2, 0]);
}

#[test]
fn owners_share_no_entries() {
    let mut table = CacheTable::new(100);
    let [first, second] = [(); 2].map(|()| table.add_owner(OwnerLimits::default()));
    let mut gone = Vec::new();
    table.insert(at(0), first, digest(0), ("first", 1), &mut gone);
    assert_eq!(table.look_up(at(0), second, &digest(0), &mut gone), None);
    assert_eq!(table.remove_owner(first), ["first"]);
    // The last request of a version that is gone.
    table.insert(at(0), first, digest(0), ("late", 1), &mut gone);
    assert_eq!(gone, ["late"]);
    assert_eq!(table.bytes(), 0);
}
