//! Publications: memory files with tensors, from holders that filled them, or held them when the last daemon died.

use std::collections::BTreeSet;

use skep_types::Time;

use super::{HolderId, Ledger, SegmentId, SegmentRecord, TensorRecord};
use crate::{
    Digest, StoreError, Wanted,
    layout::{FileIdentity, room},
};

impl Ledger {
    /// Leases those of the offered tensors that are there already, and says which these are. The others have to be
    /// verified before they are [published](Self::publish).
    ///
    /// # Errors
    /// As [`Self::take`]; the holder then has what it had before.
    pub(crate) fn offer(
        &mut self,
        now: Time,
        id: HolderId,
        offered: &[&Wanted],
    ) -> Result<Vec<bool>, StoreError> {
        let mut leased = Vec::new();
        let mut present = Vec::with_capacity(offered.len());
        for wanted in offered {
            match self.lease(id, wanted) {
                Ok(place) => {
                    present.push(place.is_some());
                    leased.extend(place.map(|_| wanted.digest));
                }
                Err(error) => {
                    self.release(now, id, &leased);
                    return Err(error);
                }
            }
        }
        Ok(present)
    }

    /// The segment of this memory file, if the ledger has one.
    pub(crate) fn known(&self, identity: FileIdentity) -> Option<SegmentId> {
        self.by_identity.get(&identity).copied()
    }

    /// Publishes verified tensors of a memory file that takes `size` bytes of memory, unless another holder was faster,
    /// and leases each to the holder. Returns the segment's number if the file is a new segment.
    ///
    /// # Errors
    /// A bound. Then nothing is published, and the holder has no lease to any of these tensors.
    pub(crate) fn publish(
        &mut self,
        now: Time,
        id: HolderId,
        identity: FileIdentity,
        size: u64,
        verified: &[(&Wanted, u64)],
    ) -> Result<Option<SegmentId>, StoreError> {
        let mut leased = Vec::new();
        let outcome = self.try_publish(id, identity, size, verified, &mut leased);
        if outcome.is_err() {
            self.release(now, id, &leased);
        }
        outcome
    }

    fn try_publish(
        &mut self,
        id: HolderId,
        identity: FileIdentity,
        size: u64,
        verified: &[(&Wanted, u64)],
        leased: &mut Vec<Digest>,
    ) -> Result<Option<SegmentId>, StoreError> {
        let mut fresh: Vec<(&Wanted, u64)> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut fresh_bytes = 0_u64;
        for (wanted, offset) in verified {
            if self.lease(id, wanted)?.is_some() {
                leased.push(wanted.digest);
            } else if seen.insert(wanted.digest) {
                fresh_bytes = fresh_bytes.saturating_add(wanted.length);
                fresh.push((*wanted, *offset));
            }
        }
        if fresh.is_empty() {
            return Ok(None);
        }
        let tensors = (self.tensors.len() + fresh.len()) as u64;
        self.bound("tensors", tensors, self.options.max_tensors)?;
        self.bound_holder(id, fresh.len() as u64, fresh_bytes)?;
        let known = self.known(identity);
        let segment = match known {
            Some(segment) => segment,
            None => self.begin_segment(identity, size, &fresh)?,
        };
        for (wanted, offset) in fresh {
            self.end_ticket(wanted.digest);
            let tensor = TensorRecord {
                description: wanted.description.clone(),
                length: wanted.length,
                segment,
                offset,
                leases: 0,
                idle_since: Time::ZERO,
            };
            self.stat.bytes_stored += tensor.length;
            self.tensors.insert(wanted.digest, tensor);
            if let Some(record) = self.segments.get_mut(&segment) {
                record.tensors.push(wanted.digest);
            }
            self.begin_lease(id, wanted.digest);
        }
        Ok(known.is_none().then_some(segment))
    }

    fn begin_segment(
        &mut self,
        identity: FileIdentity,
        size: u64,
        fresh: &[(&Wanted, u64)],
    ) -> Result<SegmentId, StoreError> {
        let segments = self.segments.len() as u64 + 1;
        self.bound("segments", segments, self.options.max_segments)?;
        // The room that was promised to these tensors is free now.
        let promised: u64 = fresh
            .iter()
            .filter_map(|(wanted, _)| self.tickets.get(&wanted.digest))
            .map(|ticket| room(ticket.length))
            .sum();
        self.make_room(size.saturating_sub(promised));
        let others = self.reserved.saturating_add(self.promised - promised);
        let would_be = others.saturating_add(size);
        self.bound("bytes", would_be, self.options.max_tenant_bytes)?;
        let segment = SegmentId(self.number());
        let record = SegmentRecord {
            identity,
            size,
            tensors: Vec::with_capacity(fresh.len()),
            leases: 0,
        };
        self.segments.insert(segment, record);
        self.by_identity.insert(identity, segment);
        self.reserved += size;
        // Its first lease removes it from there.
        self.idle.insert(Time::ZERO, segment);
        Ok(segment)
    }
}
