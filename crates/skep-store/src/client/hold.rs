//! What a process holds through a connection, so that it can hand it back to the next daemon.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use skep_host::lock;

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

/// How long an acquire looks for a new daemon after it lost its connection.
const LONGEST_SEARCH: Duration = Duration::from_secs(10);

/// The pause between two attempts.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct HeldTensor {
    wanted: Wanted,
    spot: Spot,
}

/// The tensors of a lease, or of an acquire in progress.
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
        Arc::clone(&lock(&self.link))
    }

    /// Connects again, and hands back all tensors. The daemon, which may be a new one, verifies them like any others.
    /// Tensors that it has already got from another process it keeps; this process goes on reading its own copies.
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
        *lock(&self.link) = Arc::clone(&link);
        Ok(link)
    }
}

impl Drop for HeldTensors {
    fn drop(&mut self) {
        let link = self.link();
        if self.client.has_own_links() {
            // The thread that polls it holds it as well.
            link.shut_down();
        } else {
            link.end_leases(self.tensors.iter().map(|held| held.wanted.digest).collect());
        }
    }
}

/// An acquire in progress. It outlives the daemon if a new one comes soon.
#[derive(Debug)]
pub(super) struct Acquisition {
    hold: HeldTensors,
    /// By the current daemon's numbers.
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

    /// Asks. If the daemon is gone, looks for a new one, hands back what it has, and asks again.
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
