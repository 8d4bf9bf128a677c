//! Tickets: the right of one holder to fill a tensor.

use std::time::Duration;

use skep_types::Time;

use super::{HolderId, Ledger, SegmentOffset, Ticket};
use crate::{Digest, StoreError, Wanted, availability::Availability, layout::room};

impl Ledger {
    /// Decides who fills a tensor that is not there.
    pub(super) fn ticket(
        &mut self,
        now: Time,
        id: HolderId,
        wanted: &Wanted,
    ) -> Result<Availability<SegmentOffset>, StoreError> {
        let digest = wanted.digest;
        if let Some(ticket) = self.tickets.get(&digest) {
            if ticket.holder == id {
                return Ok(Availability::Fill);
            }
            if now < ticket.since + self.options.fill_patience {
                return Ok(self.wait(id, digest));
            }
            self.end_ticket(digest);
        }
        if now < self.no_tickets_before {
            return Ok(Availability::Wait);
        }
        // Checked before room is made: a refused ticket must not drop other tensors.
        self.bound_tickets(id, wanted.length)?;
        let bytes = room(wanted.length);
        self.make_room(bytes);
        let would_be = self
            .reserved
            .saturating_add(self.promised)
            .saturating_add(bytes);
        self.bound("bytes", would_be, self.options.max_tenant_bytes)?;
        let tensors = (self.tensors.len() + self.tickets.len()) as u64 + 1;
        self.bound("tensors", tensors, self.options.max_tensors)?;
        self.promised += bytes;
        let ticket = Ticket {
            holder: id,
            since: now,
            length: wanted.length,
        };
        self.tickets.insert(digest, ticket);
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.waiting.remove(&digest);
            holder.tickets += 1;
            holder.ticket_bytes += wanted.length;
        }
        self.stat.misses += 1;
        Ok(Availability::Fill)
    }

    /// Checks whether the holder may have one more ticket. Its tickets become leases, which are bounded. Tickets are
    /// bounded as well, since others wait for these tensors, and room is kept for them.
    fn bound_tickets(&self, id: HolderId, length: u64) -> Result<(), StoreError> {
        let Some(holder) = self.holders.get(&id) else {
            return Ok(());
        };
        let options = &self.options;
        let bytes = holder.ticket_bytes.saturating_add(length);
        self.bound_holder(id, holder.tickets + 1, bytes)?;
        self.bound(
            "tensors that one holder is to fill",
            holder.tickets + 1,
            options.max_holder_tickets,
        )?;
        // A single tensor may be larger: it is filled at once or not at all.
        if holder.tickets == 0 {
            return Ok(());
        }
        self.bound(
            "bytes that one holder is to fill",
            bytes,
            options.max_holder_ticket_bytes,
        )
    }

    fn wait(&mut self, id: HolderId, digest: Digest) -> Availability<SegmentOffset> {
        if let Some(holder) = self.holders.get_mut(&id)
            && holder.waiting.insert(digest)
        {
            self.stat.waits += 1;
        }
        Availability::Wait
    }

    pub(super) fn end_ticket(&mut self, digest: Digest) {
        let Some(ticket) = self.tickets.remove(&digest) else {
            return;
        };
        self.promised -= room(ticket.length);
        if let Some(holder) = self.holders.get_mut(&ticket.holder) {
            holder.tickets -= 1;
            holder.ticket_bytes -= ticket.length;
        }
    }

    /// The holder will not fill these tensors. Returns whether it had any of the tickets.
    pub(crate) fn give_back(&mut self, id: HolderId, digests: &[Digest]) -> bool {
        let mut any = false;
        for digest in digests {
            if self.tickets.get(digest).is_some_and(|t| t.holder == id) {
                self.end_ticket(*digest);
                any = true;
            }
        }
        any
    }

    /// How long no tickets are given out yet: after that, waiting holders get an answer without any other event.
    pub(crate) fn tickets_from(&self, now: Time) -> Option<Duration> {
        let wait = self.no_tickets_before.since(now);
        (!wait.is_zero()).then_some(wait)
    }
}
