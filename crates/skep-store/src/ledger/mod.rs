//! The ledger of one tenant's store: tensors, segments, leases, tickets and figures. It decides what is dropped, and
//! when.
//!
//! A pure state machine: no I/O, no clock, no threads. `now` is an argument, and never goes back.
//! [`TenantStore`](crate::tenant_store::TenantStore) carries out its decisions.
//!
//! A *holder* is a connection (in process: a lease). It asks for tensors, and gets an [`Availability`] for each:
//! *here*, with a lease; *fill*, with a ticket, the right to fill the tensor alone; *wait*, because another holder has
//! the ticket; *absent*, if it only looked. Its leases and tickets end with it.

mod leases;
mod publish;
mod reclaimer;
mod tickets;

use std::collections::{BTreeMap, BTreeSet};

use skep_types::Time;

use crate::{
    Description, Digest, Stat, StoreError, StoreOptions, StoredTensor, Tenant, Wanted,
    availability::Availability, layout::FileIdentity,
};
use reclaimer::IdleSegments;

/// A holder's number; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HolderId(u64);

/// A segment's number; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentId(pub(crate) u64);

/// A tensor's segment, and its offset in there.
pub(crate) type SegmentOffset = (SegmentId, u64);

#[derive(Debug)]
struct TensorRecord {
    description: Description,
    length: u64,
    segment: SegmentId,
    offset: u64,
    leases: u64,
    /// When its last lease ended.
    idle_since: Time,
}

#[derive(Debug)]
struct SegmentRecord {
    identity: FileIdentity,
    size: u64,
    tensors: Vec<Digest>,
    /// Leases to any of its tensors.
    leases: u64,
}

#[derive(Debug)]
struct Ticket {
    holder: HolderId,
    since: Time,
    length: u64,
}

#[derive(Debug, Default)]
struct HolderRecord {
    leases: BTreeMap<Digest, u64>,
    lease_count: u64,
    bytes: u64,
    tickets: u64,
    /// Bytes of tensors that it has tickets for.
    ticket_bytes: u64,
    /// Tensors that it waits for: each wait counts once, however often the holder asks.
    waiting: BTreeSet<Digest>,
}

/// The ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    tenant: Tenant,
    options: StoreOptions,
    no_tickets_before: Time,
    tensors: BTreeMap<Digest, TensorRecord>,
    segments: BTreeMap<SegmentId, SegmentRecord>,
    by_identity: BTreeMap<FileIdentity, SegmentId>,
    tickets: BTreeMap<Digest, Ticket>,
    holders: BTreeMap<HolderId, HolderRecord>,
    idle: IdleSegments,
    next_number: u64,
    /// Bytes of all segments.
    reserved: u64,
    /// Bytes that tensors with tickets will take.
    promised: u64,
    stat: Stat,
}

impl Ledger {
    /// An empty ledger, which gives out no tickets before `no_tickets_before`.
    pub(crate) fn new(tenant: Tenant, options: StoreOptions, no_tickets_before: Time) -> Self {
        Self {
            tenant,
            options,
            no_tickets_before,
            tensors: BTreeMap::new(),
            segments: BTreeMap::new(),
            by_identity: BTreeMap::new(),
            tickets: BTreeMap::new(),
            holders: BTreeMap::new(),
            idle: IdleSegments::default(),
            next_number: 0,
            reserved: 0,
            promised: 0,
            stat: Stat::default(),
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn bound(&self, bound: &'static str, would_be: u64, limit: u64) -> Result<(), StoreError> {
        if would_be <= limit {
            return Ok(());
        }
        Err(StoreError::Bound {
            bound,
            tenant: self.tenant.clone(),
            would_be,
            limit,
        })
    }

    /// Adds a holder.
    pub(crate) fn join(&mut self) -> Result<HolderId, StoreError> {
        let holders = self.holders.len() as u64 + 1;
        self.bound("connections", holders, self.options.max_holders)?;
        let id = HolderId(self.number());
        self.holders.insert(id, HolderRecord::default());
        Ok(id)
    }

    /// Removes a holder, with its leases and tickets. Returns whether it had a ticket, for which others may be waiting.
    pub(crate) fn leave(&mut self, now: Time, id: HolderId) -> bool {
        let Some(holder) = self.holders.get(&id) else {
            return false;
        };
        let leases: Vec<(Digest, u64)> = holder.leases.iter().map(|(d, n)| (*d, *n)).collect();
        for (digest, count) in leases {
            for _ in 0..count {
                self.end_lease(now, id, digest);
            }
        }
        self.holders.remove(&id);
        let tickets: Vec<Digest> = self
            .tickets
            .iter()
            .filter(|(_, ticket)| ticket.holder == id)
            .map(|(digest, _)| *digest)
            .collect();
        for digest in &tickets {
            self.end_ticket(*digest);
        }
        !tickets.is_empty()
    }

    /// Leases the tensors that are there. If the holder `claims` the others, it gets the tickets that no other holder
    /// has.
    ///
    /// # Errors
    /// A bound, or a description that differs from the stored one. The holder then has what it had before.
    pub(crate) fn take(
        &mut self,
        now: Time,
        id: HolderId,
        wanted: &[&Wanted],
        claims: bool,
    ) -> Result<Vec<Availability<SegmentOffset>>, StoreError> {
        let mut leased = Vec::new();
        let mut ticketed = Vec::new();
        let outcome = self.try_take(now, id, wanted, claims, &mut leased, &mut ticketed);
        if outcome.is_err() {
            self.release(now, id, &leased);
            self.give_back(id, &ticketed);
        }
        outcome
    }

    fn try_take(
        &mut self,
        now: Time,
        id: HolderId,
        wanted: &[&Wanted],
        claims: bool,
        leased: &mut Vec<Digest>,
        ticketed: &mut Vec<Digest>,
    ) -> Result<Vec<Availability<SegmentOffset>>, StoreError> {
        let mut answers = vec![Availability::Absent; wanted.len()];
        // Leases first, so that making room for one tensor never drops another of the same request.
        for (answer, wanted) in answers.iter_mut().zip(wanted) {
            if let Some(place) = self.lease(id, wanted)? {
                leased.push(wanted.digest);
                *answer = Availability::Here(place);
                self.count_hit(id, wanted.digest);
            }
        }
        if !claims {
            return Ok(answers);
        }
        for (answer, wanted) in answers.iter_mut().zip(wanted) {
            if *answer == Availability::Absent {
                *answer = self.ticket(now, id, wanted)?;
                if *answer == Availability::Fill {
                    ticketed.push(wanted.digest);
                }
            }
        }
        Ok(answers)
    }

    /// Counts a hit, unless the holder waited for the tensor: that was counted when the wait began.
    fn count_hit(&mut self, id: HolderId, digest: Digest) {
        let waited = self
            .holders
            .get_mut(&id)
            .is_some_and(|holder| holder.waiting.remove(&digest));
        if !waited {
            self.stat.hits += 1;
        }
    }

    /// The location of a tensor.
    pub(crate) fn place(&self, digest: Digest) -> Option<SegmentOffset> {
        let tensor = self.tensors.get(&digest)?;
        Some((tensor.segment, tensor.offset))
    }

    /// Adds the time that a holder waited for others to fill.
    pub(crate) fn waited(&mut self, nanoseconds: u64) {
        self.stat.wait_ns = self.stat.wait_ns.saturating_add(nanoseconds);
    }

    /// The figures now.
    pub(crate) fn stat(&self) -> Stat {
        Stat {
            segments: self.segments.len() as u64,
            tensors: self.tensors.len() as u64,
            bytes_padding: self.reserved.saturating_sub(self.stat.bytes_stored),
            holders: self.holders.len() as u64,
            ..self.stat
        }
    }

    /// At most `most` tensors that follow `after`, in the order of digests.
    pub(crate) fn list(&self, now: Time, after: Option<Digest>, most: usize) -> Vec<StoredTensor> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let tensors = self.tensors.range((from, Unbounded)).take(most);
        tensors
            .map(|(digest, tensor)| StoredTensor {
                digest: *digest,
                description: tensor.description.clone(),
                length: tensor.length,
                leases: tensor.leases,
                idle: (tensor.leases == 0).then(|| now.since(tensor.idle_since)),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
