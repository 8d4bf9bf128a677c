//! Drops segments without a lease: after the keep-alive window, or to stay within the budget.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use skep_types::Time;

use super::{Ledger, SegmentId};

/// Segments without a lease, the least recently used first.
#[derive(Debug, Default)]
pub(super) struct IdleSegments {
    queue: BTreeSet<(Time, SegmentId)>,
    since: BTreeMap<SegmentId, Time>,
    /// Segments that the ledger has dropped, and whose memory the caller has yet to free.
    gone: Vec<SegmentId>,
}

impl IdleSegments {
    pub(super) fn insert(&mut self, now: Time, segment: SegmentId) {
        self.since.insert(segment, now);
        self.queue.insert((now, segment));
    }

    pub(super) fn remove(&mut self, segment: SegmentId) {
        if let Some(since) = self.since.remove(&segment) {
            self.queue.remove(&(since, segment));
        }
    }

    fn segments(&self) -> impl Iterator<Item = SegmentId> {
        self.queue.iter().map(|(_, segment)| *segment)
    }

    fn oldest(&self) -> Option<(Time, SegmentId)> {
        self.queue.first().copied()
    }
}

impl Ledger {
    /// Drops idle segments until `bytes` more fit into the budget, or none is idle.
    pub(super) fn make_room(&mut self, bytes: u64) {
        let budget = self.options.budget_bytes.min(self.options.max_tenant_bytes);
        while self
            .reserved
            .saturating_add(self.promised)
            .saturating_add(bytes)
            > budget
        {
            let Some((_, segment)) = self.idle.oldest() else {
                return;
            };
            self.drop_segment(segment);
        }
    }

    /// Drops segments that are due. Returns all that were dropped since the last call.
    pub(crate) fn reclaim(&mut self, now: Time) -> Vec<SegmentId> {
        while let Some((since, segment)) = self.idle.oldest()
            && since + self.options.keep_alive <= now
        {
            self.drop_segment(segment);
        }
        self.make_room(0);
        mem::take(&mut self.idle.gone)
    }

    /// When the next segment is due, if nothing else happens.
    pub(crate) fn next_reclaim(&self) -> Option<Time> {
        let (since, _) = self.idle.oldest()?;
        Some(since + self.options.keep_alive)
    }

    /// Drops half of the idle bytes, the least recently used segments first, because memory is short. Returns the bytes
    /// dropped. The caller repeats this while memory stays short.
    pub(crate) fn relieve(&mut self) -> u64 {
        let idle: u64 = self
            .idle
            .segments()
            .filter_map(|id| self.segments.get(&id))
            .map(|record| record.size)
            .sum();
        let before = self.reserved;
        while (before - self.reserved) < idle.div_ceil(2)
            && let Some((_, segment)) = self.idle.oldest()
        {
            self.drop_segment(segment);
        }
        before - self.reserved
    }

    /// Drops all idle segments now. Returns their bytes.
    pub(crate) fn gc(&mut self) -> u64 {
        let before = self.reserved;
        while let Some((_, segment)) = self.idle.oldest() {
            self.drop_segment(segment);
        }
        before - self.reserved
    }

    fn drop_segment(&mut self, segment: SegmentId) {
        self.idle.remove(segment);
        let Some(record) = self.segments.remove(&segment) else {
            return;
        };
        self.by_identity.remove(&record.identity);
        self.reserved -= record.size;
        for digest in record.tensors {
            if let Some(tensor) = self.tensors.remove(&digest) {
                self.stat.bytes_stored -= tensor.length;
                self.stat.reclaimed += 1;
            }
        }
        self.idle.gone.push(segment);
    }
}
