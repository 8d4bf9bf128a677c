//! Which responses a cache keeps, which leave, and when they expire. Pure: time is an argument.
//!
//! Each entry has an owner, a loaded version. Three lists go through the entries: all of them by their last use, those of
//! each owner by their last use, and those of each owner by age. The first entry of the first list leaves when the cache
//! needs room, the first of the second one when its owner does, and the first of the third one is the next to expire:
//! all entries of an owner live equally long. Every operation takes constant time for each entry that it adds or removes.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use skep_types::Time;

/// A digest of a request: equal requests have equal ones, and no two others do.
pub(super) type EntryDigest = [u8; 32];

/// Whose entries they are. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct OwnerId(u64);

/// What an owner's entries may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct OwnerLimits {
    /// Bytes of all its entries; `None` for as many as the table has room for.
    pub(super) bytes: Option<u64>,
    /// How long each is kept; `None` until another one needs its room.
    pub(super) time_to_live: Option<Duration>,
}

/// Why a response left, or was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// The cache needed its room.
    Size,
    /// Other responses of its model needed its room (`response_cache_bytes`).
    ModelSize,
    /// Its time was over (`response_cache_ttl_ms`).
    Expired,
    /// It is larger than all of its model's responses may be.
    TooLarge,
}

impl DropReason {
    /// All reasons, in the order in which they are reported.
    pub const ALL: [Self; 4] = [Self::Size, Self::ModelSize, Self::Expired, Self::TooLarge];

    /// The name in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::ModelSize => "model_size",
            Self::Expired => "expired",
            Self::TooLarge => "too_large",
        }
    }
}

/// What a cache keeps for one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VersionCacheReport {
    /// Responses.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Responses that left or were not kept, in the order of [`DropReason::ALL`].
    pub dropped: [u64; 4],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct EntryKey {
    owner: OwnerId,
    digest: EntryDigest,
}

#[derive(Debug)]
struct Entry<V> {
    key: EntryKey,
    value: V,
    bytes: u64,
    expires: Option<Time>,
}

/// A place for an entry.
#[derive(Debug)]
struct Slot<V> {
    entry: Option<Entry<V>>,
    /// By [`ListKind`].
    neighbours: [Neighbours; 3],
}

/// The lists that each entry is in.
#[derive(Debug, Clone, Copy)]
enum ListKind {
    Use,
    OwnerUse,
    OwnerAge,
}

/// The slots before and after one, in a list.
#[derive(Debug, Clone, Copy, Default)]
struct Neighbours {
    before: Option<usize>,
    after: Option<usize>,
}

/// The ends of a list. The first entry is the next to leave.
#[derive(Debug, Clone, Copy, Default)]
struct EntryList {
    first: Option<usize>,
    last: Option<usize>,
}

impl EntryList {
    fn append<V>(&mut self, slots: &mut [Slot<V>], kind: ListKind, slot: usize) {
        let last = self.last.replace(slot);
        slots[slot].neighbours[kind as usize] = Neighbours {
            before: last,
            after: None,
        };
        match last {
            Some(last) => slots[last].neighbours[kind as usize].after = Some(slot),
            None => self.first = Some(slot),
        }
    }

    fn remove<V>(&mut self, slots: &mut [Slot<V>], kind: ListKind, slot: usize) {
        let own = &mut slots[slot].neighbours[kind as usize];
        let Neighbours { before, after } = std::mem::take(own);
        match before {
            Some(before) => slots[before].neighbours[kind as usize].after = after,
            None => self.first = after,
        }
        match after {
            Some(after) => slots[after].neighbours[kind as usize].before = before,
            None => self.last = before,
        }
    }
}

#[derive(Debug)]
struct Owner {
    limits: OwnerLimits,
    report: VersionCacheReport,
    by_use: EntryList,
    by_age: EntryList,
}

/// Entries within a bound on their bytes.
#[derive(Debug)]
pub(super) struct CacheTable<V> {
    limit: u64,
    bytes: u64,
    index: HashMap<EntryKey, usize>,
    slots: Vec<Slot<V>>,
    vacant: Vec<usize>,
    by_use: EntryList,
    owners: BTreeMap<OwnerId, Owner>,
    next_owner: u64,
}

impl<V> CacheTable<V> {
    /// An empty table that takes `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            bytes: 0,
            index: HashMap::new(),
            slots: Vec::new(),
            vacant: Vec::new(),
            by_use: EntryList::default(),
            owners: BTreeMap::new(),
            next_owner: 0,
        }
    }

    /// Bytes that all entries may take.
    pub(super) const fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that they take.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A new owner, without entries.
    pub(super) fn add_owner(&mut self, limits: OwnerLimits) -> OwnerId {
        let id = OwnerId(self.next_owner);
        self.next_owner += 1;
        let owner = Owner {
            limits,
            report: VersionCacheReport::default(),
            by_use: EntryList::default(),
            by_age: EntryList::default(),
        };
        self.owners.insert(id, owner);
        id
    }

    /// Removes an owner. Returns its entries' values, to be dropped by the caller.
    pub(super) fn remove_owner(&mut self, owner: OwnerId) -> Vec<V> {
        let mut values = Vec::new();
        while let Some(slot) = self.owners.get(&owner).and_then(|owner| owner.by_age.first) {
            values.push(self.remove(slot));
        }
        self.owners.remove(&owner);
        values
    }

    /// What an owner has.
    pub(super) fn report(&self, owner: OwnerId) -> VersionCacheReport {
        let owner = self.owners.get(&owner);
        owner.map_or_else(VersionCacheReport::default, |owner| owner.report)
    }

    /// The value of an entry, which thereby is the last used one. Values that have expired go to `leaving`, to be dropped
    /// by the caller.
    pub(super) fn look_up(
        &mut self,
        now: Time,
        owner: OwnerId,
        digest: &EntryDigest,
        leaving: &mut Vec<V>,
    ) -> Option<&V> {
        self.expire(now, owner, leaving);
        let digest = *digest;
        let slot = *self.index.get(&EntryKey { owner, digest })?;
        self.by_use.remove(&mut self.slots, ListKind::Use, slot);
        self.by_use.append(&mut self.slots, ListKind::Use, slot);
        if let Some(owner) = self.owners.get_mut(&owner) {
            let list = &mut owner.by_use;
            list.remove(&mut self.slots, ListKind::OwnerUse, slot);
            list.append(&mut self.slots, ListKind::OwnerUse, slot);
        }
        self.slots[slot].entry.as_ref().map(|entry| &entry.value)
    }

    /// Adds an entry of `bytes` bytes, in place of an equal one. Values that make room for it, or have expired, go to
    /// `leaving`; so does `value` itself if it is too large.
    pub(super) fn insert(
        &mut self,
        now: Time,
        owner: OwnerId,
        digest: EntryDigest,
        (value, bytes): (V, u64),
        leaving: &mut Vec<V>,
    ) {
        self.expire(now, owner, leaving);
        let key = EntryKey { owner, digest };
        if let Some(&slot) = self.index.get(&key) {
            leaving.push(self.remove(slot));
        }
        let Some(limits) = self.owners.get(&owner).map(|owner| owner.limits) else {
            leaving.push(value);
            return;
        };
        let owner_limit = limits.bytes.unwrap_or(u64::MAX);
        if bytes > self.limit.min(owner_limit) {
            self.count(owner, DropReason::TooLarge);
            leaving.push(value);
            return;
        }
        while let Some(slot) = self.owners[&owner].by_use.first
            && self.owners[&owner].report.bytes > owner_limit - bytes
        {
            self.count(owner, DropReason::ModelSize);
            leaving.push(self.remove(slot));
        }
        while let Some(slot) = self.by_use.first
            && self.bytes > self.limit - bytes
        {
            let entry = self.slots[slot].entry.as_ref();
            if let Some(owner) = entry.map(|entry| entry.key.owner) {
                self.count(owner, DropReason::Size);
            }
            leaving.push(self.remove(slot));
        }
        let expires = limits.time_to_live.map(|time| now + time);
        self.add(Entry {
            key,
            value,
            bytes,
            expires,
        });
    }

    /// Removes an owner's entries whose time is over.
    fn expire(&mut self, now: Time, owner: OwnerId, leaving: &mut Vec<V>) {
        while let Some(slot) = self.owners.get(&owner).and_then(|owner| owner.by_age.first) {
            let entry = self.slots[slot].entry.as_ref();
            let expires = entry.and_then(|entry| entry.expires);
            if expires.is_none_or(|expires| now < expires) {
                return;
            }
            self.count(owner, DropReason::Expired);
            leaving.push(self.remove(slot));
        }
    }

    fn count(&mut self, owner: OwnerId, reason: DropReason) {
        if let Some(owner) = self.owners.get_mut(&owner) {
            owner.report.dropped[reason as usize] += 1;
        }
    }

    fn add(&mut self, entry: Entry<V>) {
        let (key, bytes) = (entry.key, entry.bytes);
        let Some(owner) = self.owners.get_mut(&key.owner) else {
            return;
        };
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                entry: None,
                neighbours: Default::default(),
            });
            self.slots.len() - 1
        });
        self.slots[slot].entry = Some(entry);
        self.by_use.append(&mut self.slots, ListKind::Use, slot);
        owner
            .by_use
            .append(&mut self.slots, ListKind::OwnerUse, slot);
        owner
            .by_age
            .append(&mut self.slots, ListKind::OwnerAge, slot);
        owner.report.entries += 1;
        owner.report.bytes += bytes;
        self.bytes += bytes;
        self.index.insert(key, slot);
    }

    /// Removes the entry of a slot that is in the lists.
    fn remove(&mut self, slot: usize) -> V {
        let entry = self.slots[slot].entry.take();
        let entry = entry.expect("a slot in a list has an entry");
        self.by_use.remove(&mut self.slots, ListKind::Use, slot);
        if let Some(owner) = self.owners.get_mut(&entry.key.owner) {
            owner
                .by_use
                .remove(&mut self.slots, ListKind::OwnerUse, slot);
            owner
                .by_age
                .remove(&mut self.slots, ListKind::OwnerAge, slot);
            owner.report.entries -= 1;
            owner.report.bytes -= entry.bytes;
        }
        self.bytes -= entry.bytes;
        self.index.remove(&entry.key);
        self.vacant.push(slot);
        entry.value
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
