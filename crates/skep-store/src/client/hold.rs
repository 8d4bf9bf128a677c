//! What is held through a connection, so that it can be handed back to the daemon that comes after this one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Digest, ErrorKind, StoreError, Tenant, Wanted,
    acquire::{Mode, Offered, Spot, StoreAccess},
    availability::Availability,
    order::MAX_TENSORS,
    segment::Segment,
    wire::StoreRequest,
};

use super::{
    DaemonClient,
    link::{DaemonLink, Segments},
};

/// How long an acquire looks for a daemon after it lost the one that it had.
const LONGEST_SEARCH: Duration = Duration::from_secs(10);

/// How long it waits between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct HeldTensor {
    wanted: Wanted,
    spot: Spot,
}

/// Tensors that a lease, or an acquire on its way to one, has.
#[derive(Debug)]
pub(super) struct HeldTensors {
    client: Arc<DaemonClient>,
    tenant: Tenant,
    link: Mutex<Arc<DaemonLink>>,
    tensors: Vec<HeldTensor>,
}

impl HeldTensors {
    pub(super) const fn new(
        client: Arc<DaemonClient>,
        tenant: Tenant,
        link: Arc<DaemonLink>,
    ) -> Self {
        Self {
            client,
            tenant,
            link: Mutex::new(link),
            tensors: Vec::new(),
        }
    }

    pub(super) fn link(&self) -> Arc<DaemonLink> {
        Arc::clone(&self.link.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Connects again, and hands back all that is held: the daemon, which may be another one, looks at it as at anything
    /// that is handed over. What it has from somebody else already it keeps; this process reads what it has.
    pub(super) fn reconnect(&self) -> Result<Arc<DaemonLink>, StoreError> {
        let link = self.client.link(&self.tenant)?;
        let mut by_segment: BTreeMap<_, Vec<&HeldTensor>> = BTreeMap::new();
        for held in &self.tensors {
            let identity = held.spot.segment.identity();
            by_segment.entry(identity).or_default().push(held);
        }
        for mut tensors in by_segment.into_values() {
            tensors.sort_by_key(|held| held.spot.offset);
            for some in tensors.chunks(MAX_TENSORS) {
                let Some(first) = some.first() else { continue };
                let offered: Vec<Offered<'_>> = some
                    .iter()
                    .map(|held| Offered {
                        wanted: &held.wanted,
                        offset: held.spot.offset,
                    })
                    .collect();
                link.publish(&first.spot.segment, &offered, &mut Segments::new())?;
            }
        }
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&link);
        Ok(link)
    }
}

impl Drop for HeldTensors {
    fn drop(&mut self) {
        let link = self.link();
        if self.client.has_own_links() {
            // Whoever polls it has it, too.
            link.shut_down();
        } else {
            link.end_leases(self.tensors.iter().map(|held| held.wanted.digest).collect());
        }
    }
}

/// An acquire on its way: it outlives the daemon, if another one comes soon.
#[derive(Debug)]
pub(super) struct Acquisition {
    hold: HeldTensors,
    /// By the numbers of the daemon that it is connected to.
    segments: Segments,
}

impl Acquisition {
    pub(super) fn new(hold: HeldTensors) -> Self {
        Self {
            hold,
            segments: Segments::new(),
        }
    }

    pub(super) fn into_hold(self) -> HeldTensors {
        self.hold
    }

    /// Asks; if the daemon is gone, looks for another one, hands back what it has, and asks again.
    fn ask<T>(
        &mut self,
        question: impl Fn(&DaemonLink, &mut Segments) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut lost_at = None;
        let mut link = Ok(self.hold.link());
        loop {
            let outcome = link.and_then(|link| question(&link, &mut self.segments));
            match outcome {
                Err(error)
                    if error.kind() == ErrorKind::Unreachable
                        && self.hold.client.has_own_links() =>
                {
                    let lost_at = *lost_at.get_or_insert_with(Instant::now);
                    if lost_at.elapsed() > LONGEST_SEARCH {
                        return Err(error);
                    }
                    thread::sleep(BETWEEN_LOOKS);
                }
                outcome => return outcome,
            }
            self.segments.clear();
            link = self.hold.reconnect();
        }
    }

    fn hold(&mut self, wanted: &Wanted, spot: &Spot) {
        self.hold.tensors.push(HeldTensor {
            wanted: wanted.clone(),
            spot: spot.clone(),
        });
    }
}

impl StoreAccess for Acquisition {
    fn take(
        &mut self,
        wanted: &[&Wanted],
        mode: Mode,
    ) -> Result<Vec<Availability<Spot>>, StoreError> {
        let found = self.ask(|link, segments| link.take(wanted, mode, segments))?;
        for (wanted, found) in wanted.iter().zip(&found) {
            if let Availability::Here(spot) = found {
                self.hold(wanted, spot);
            }
        }
        Ok(found)
    }

    fn publish(
        &mut self,
        segment: Arc<Segment>,
        offered: &[Offered<'_>],
    ) -> Result<Vec<Spot>, StoreError> {
        let spots = self.ask(|link, segments| link.publish(&segment, offered, segments))?;
        for (tensor, spot) in offered.iter().zip(&spots) {
            self.hold(tensor.wanted, spot);
        }
        Ok(spots)
    }

    fn give_back(&mut self, digests: &[Digest]) {
        let request = StoreRequest::GiveBack(digests.to_vec());
        // Tickets end with the connection.
        let _ = self.hold.link().ask(&request, None);
    }
}
