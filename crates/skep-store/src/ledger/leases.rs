//! Leases: the rights of holders to tensors, counted by holder, by tensor and by segment.

use skep_types::Time;

use super::{HolderId, Ledger, SegmentOffset};
use crate::{Digest, StoreError, Wanted};

impl Ledger {
    /// Ends one of the holder's leases to each of these tensors, where it has one.
    pub(crate) fn release(&mut self, now: Time, id: HolderId, digests: &[Digest]) {
        for digest in digests {
            self.end_lease(now, id, *digest);
        }
    }

    /// Checks whether the holder may have `more` leases to tensors of `more_bytes` in all.
    pub(super) fn bound_holder(
        &self,
        id: HolderId,
        more: u64,
        more_bytes: u64,
    ) -> Result<(), StoreError> {
        let Some(holder) = self.holders.get(&id) else {
            return Ok(());
        };
        let leases = holder.lease_count + more;
        self.bound(
            "leases of one holder",
            leases,
            self.options.max_holder_leases,
        )?;
        let bytes = holder.bytes.saturating_add(more_bytes);
        self.bound("bytes of one holder", bytes, self.options.max_holder_bytes)
    }

    /// Leases a tensor if it is there, and returns its location.
    pub(super) fn lease(
        &mut self,
        id: HolderId,
        wanted: &Wanted,
    ) -> Result<Option<SegmentOffset>, StoreError> {
        let digest = wanted.digest;
        let Some(tensor) = self.tensors.get(&digest) else {
            return Ok(None);
        };
        let place = (tensor.segment, tensor.offset);
        if tensor.length != wanted.length || tensor.description != wanted.description {
            let stored = Wanted {
                digest,
                description: tensor.description.clone(),
                length: tensor.length,
            };
            return Err(StoreError::description(&stored, wanted));
        }
        self.bound_holder(id, 1, wanted.length)?;
        self.begin_lease(id, digest);
        Ok(Some(place))
    }

    pub(super) fn begin_lease(&mut self, id: HolderId, digest: Digest) {
        let (Some(tensor), Some(holder)) =
            (self.tensors.get_mut(&digest), self.holders.get_mut(&id))
        else {
            return;
        };
        tensor.leases += 1;
        holder.lease_count += 1;
        holder.bytes += tensor.length;
        *holder.leases.entry(digest).or_insert(0) += 1;
        self.stat.leases += 1;
        self.stat.bytes_leased += tensor.length;
        if let Some(segment) = self.segments.get_mut(&tensor.segment) {
            segment.leases += 1;
            if segment.leases == 1 {
                self.idle.remove(tensor.segment);
            }
        }
    }

    pub(super) fn end_lease(&mut self, now: Time, id: HolderId, digest: Digest) {
        let (Some(tensor), Some(holder)) =
            (self.tensors.get_mut(&digest), self.holders.get_mut(&id))
        else {
            return;
        };
        let Some(count) = holder.leases.get_mut(&digest) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            holder.leases.remove(&digest);
        }
        holder.lease_count -= 1;
        holder.bytes -= tensor.length;
        tensor.leases -= 1;
        tensor.idle_since = now;
        self.stat.leases -= 1;
        self.stat.bytes_leased -= tensor.length;
        if let Some(segment) = self.segments.get_mut(&tensor.segment) {
            segment.leases -= 1;
            if segment.leases == 0 {
                self.idle.insert(now, tensor.segment);
            }
        }
    }
}
