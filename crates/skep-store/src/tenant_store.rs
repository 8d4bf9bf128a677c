//! One tenant's store: its ledger, its segments, and its waiting holders.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant},
};

use skep_types::Time;

use crate::{
    Digest, Stat, StoreError, StoreOptions, StoredTensor, Tenant, Wanted,
    acquire::{Mode, Offered, Spot, StoreAccess},
    availability::Availability,
    layout::room,
    ledger::{HolderId, Ledger, SegmentId, SegmentOffset},
    segment::{Segment, slice},
};

/// How long one request waits before it is answered without news. The connection's thread then checks whether its
/// client is still there.
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// The monotonic clock since a store's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoreClock(Instant);

impl StoreClock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    fn now(self) -> Time {
        Time::ZERO + self.0.elapsed()
    }
}

/// A tenant's store.
#[derive(Debug)]
pub(crate) struct TenantStore {
    tenant: Tenant,
    clock: StoreClock,
    state: Mutex<State>,
    /// Tensors were published, or tickets given back.
    changed: Condvar,
    /// Tells the sweeper that a segment has become idle.
    idle: SyncSender<()>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    segments: HashMap<SegmentId, Arc<Segment>>,
}

impl State {
    fn segment(&self, id: SegmentId) -> Result<Arc<Segment>, StoreError> {
        self.segments
            .get(&id)
            .cloned()
            .ok_or_else(|| StoreError::segment("it is gone"))
    }

    fn spot(&self, (id, offset): SegmentOffset) -> Result<Spot, StoreError> {
        Ok(Spot {
            id,
            segment: self.segment(id)?,
            offset,
        })
    }

    /// The segments that the ledger has dropped. The caller frees them outside of the lock: unmapping takes a while.
    fn drop_reclaimed(&mut self, now: Time) -> Vec<Arc<Segment>> {
        let gone = self.ledger.reclaim(now);
        gone.iter()
            .filter_map(|id| self.segments.remove(id))
            .collect()
    }
}

impl TenantStore {
    /// An empty store, which gives out no tickets before `fills_from`. `idle` gets a message when a segment becomes
    /// idle.
    pub(crate) fn new(
        tenant: Tenant,
        options: StoreOptions,
        clock: StoreClock,
        fills_from: Time,
        idle: SyncSender<()>,
    ) -> Self {
        Self {
            clock,
            state: Mutex::new(State {
                ledger: Ledger::new(tenant.clone(), options, fills_from),
                segments: HashMap::new(),
            }),
            tenant,
            changed: Condvar::new(),
            idle,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics between two changes that belong together.
        skep_host::lock(&self.state)
    }

    /// Uses the ledger, and then frees dropped segments outside of the lock.
    fn with<T>(&self, act: impl FnOnce(&mut Ledger, Time) -> T) -> T {
        let mut state = self.lock();
        let now = self.clock.now();
        let outcome = act(&mut state.ledger, now);
        let gone = state.drop_reclaimed(now);
        drop(state);
        drop(gone);
        outcome
    }

    /// The tenant.
    pub(crate) const fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Adds a holder.
    pub(crate) fn join(self: &Arc<Self>) -> Result<HolderSession, StoreError> {
        let holder = self.with(|ledger, _| ledger.join())?;
        Ok(HolderSession {
            store: Arc::clone(self),
            holder,
        })
    }

    pub(crate) fn stat(&self) -> Stat {
        self.with(|ledger, _| ledger.stat())
    }

    pub(crate) fn list(&self, after: Option<Digest>, most: usize) -> Vec<StoredTensor> {
        self.with(|ledger, now| ledger.list(now, after, most))
    }

    pub(crate) fn relieve(&self) -> u64 {
        self.with(|ledger, _| ledger.relieve())
    }

    pub(crate) fn gc(&self) -> u64 {
        self.with(|ledger, _| ledger.gc())
    }

    /// Drops segments that are due. Returns the time until the next one is due.
    fn sweep(&self) -> Option<Duration> {
        self.with(|_, _| ());
        let next = self.with(|ledger, now| ledger.next_reclaim().map(|next| next.since(now)));
        // Waking up a fraction of a millisecond early would be for nothing.
        next.map(|wait| wait.max(Duration::from_millis(1)))
    }
}

/// Sweeps the stores whenever a segment is due, until they are gone.
pub(crate) fn sweep_while_there(
    told: &Receiver<()>,
    stores: impl Fn() -> Option<Vec<Arc<TenantStore>>>,
) {
    let mut wait = None;
    loop {
        let over = match wait {
            None => told.recv().is_err(),
            Some(wait) => told.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected),
        };
        let Some(stores) = stores().filter(|_| !over) else {
            return;
        };
        wait = stores.iter().filter_map(|store| store.sweep()).min();
    }
}

/// A holder in a tenant's store: its leases and tickets end with it.
#[derive(Debug)]
pub(crate) struct HolderSession {
    store: Arc<TenantStore>,
    holder: HolderId,
}

impl HolderSession {
    /// The store.
    pub(crate) fn store(&self) -> &Arc<TenantStore> {
        &self.store
    }

    /// Ends one lease to each of these tensors.
    pub(crate) fn release(&self, digests: &[Digest]) {
        self.store
            .with(|ledger, now| ledger.release(now, self.holder, digests));
        self.tell_sweeper();
    }

    /// If the channel is full, the sweeper is about to look anyway.
    fn tell_sweeper(&self) {
        let _ = self.store.idle.try_send(());
    }

    /// See [`StoreAccess::take`].
    pub(crate) fn take(
        &self,
        wanted: &[&Wanted],
        mode: Mode,
    ) -> Result<Vec<Availability<Spot>>, StoreError> {
        let deadline = Instant::now() + LONGEST_WAIT;
        let mut state = self.store.lock();
        loop {
            let now = self.store.clock.now();
            let answers = state
                .ledger
                .take(now, self.holder, wanted, mode != Mode::Look)?;
            let gone = state.drop_reclaimed(now);
            let nothing_new = answers.iter().all(|answer| *answer == Availability::Wait);
            let mut left = deadline.saturating_duration_since(Instant::now());
            if mode != Mode::Wait || !nothing_new || left.is_zero() {
                let found = answers
                    .into_iter()
                    .map(|answer| answer.try_map(|location| state.spot(location)));
                let found = found.collect();
                drop(state);
                drop(gone);
                return found;
            }
            let until_tickets = state.ledger.tickets_from(now);
            if let Some(until_tickets) = until_tickets {
                left = left.min(until_tickets);
            }
            let began = Instant::now();
            let waited = self.store.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            // Before tickets are given out, this is not a wait for another holder.
            if until_tickets.is_none() {
                let nanoseconds = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                state.ledger.waited(nanoseconds);
            }
        }
    }

    /// Verifies and publishes those tensors of a segment that are not there yet: see [`StoreAccess::publish`].
    pub(crate) fn publish(
        &self,
        segment: Arc<Segment>,
        offered: &[Offered<'_>],
    ) -> Result<Vec<Spot>, StoreError> {
        check_offsets(offered)?;
        let wanted: Vec<&Wanted> = offered.iter().map(|tensor| tensor.wanted).collect();
        let (present, segment) = {
            let mut state = self.store.lock();
            let now = self.store.clock.now();
            let present = state.ledger.offer(now, self.holder, &wanted)?;
            // If the store already has this memory file, its own descriptor is verified and read later.
            let known = state.ledger.known(segment.identity());
            (present, known.map_or(Ok(segment), |id| state.segment(id))?)
        };
        let with_presence = || offered.iter().zip(&present);
        let fresh: Vec<&Offered<'_>> = with_presence()
            .filter(|(_, present)| !**present)
            .map(|(tensor, _)| tensor)
            .collect();
        let outcome = Self::verify(&segment, &fresh).and_then(|()| self.enter(&segment, &fresh));
        if let Err(error) = outcome {
            let leased: Vec<Digest> = with_presence()
                .filter(|(_, present)| **present)
                .map(|(tensor, _)| tensor.wanted.digest)
                .collect();
            self.release(&leased);
            return Err(error);
        }
        let state = self.store.lock();
        let spots = wanted.iter().map(|wanted| {
            let place = state.ledger.place(wanted.digest);
            state.spot(place.ok_or_else(|| StoreError::segment("it is gone"))?)
        });
        spots.collect()
    }

    /// Enters verified tensors of a segment.
    fn enter(&self, segment: &Arc<Segment>, fresh: &[&Offered<'_>]) -> Result<(), StoreError> {
        let verified: Vec<(&Wanted, u64)> = fresh
            .iter()
            .map(|tensor| (tensor.wanted, tensor.offset))
            .collect();
        let mut state = self.store.lock();
        let now = self.store.clock.now();
        let (identity, reserved) = (segment.identity(), segment.reserved());
        let entered = state
            .ledger
            .publish(now, self.holder, identity, reserved, &verified);
        if let Ok(Some(id)) = entered {
            state.segments.insert(id, Arc::clone(segment));
        }
        let gone = state.drop_reclaimed(now);
        drop(state);
        drop(gone);
        self.store.changed.notify_all();
        entered.map(|_| ())
    }

    /// Checks the digests of tensors, in the segment that will be read.
    fn verify(segment: &Segment, fresh: &[&Offered<'_>]) -> Result<(), StoreError> {
        if fresh.is_empty() {
            return Ok(());
        }
        segment.look(|all| {
            for tensor in fresh {
                let (offset, length) = (tensor.offset, tensor.wanted.length);
                let bytes = slice(all, offset, length).ok_or_else(|| {
                    let size = all.len();
                    StoreError::segment(format!(
                        "{length} bytes from {offset} on are not in its {size} bytes"
                    ))
                })?;
                let got = Digest::of(&tensor.wanted.description, bytes);
                if got != tensor.wanted.digest {
                    let wanted = tensor.wanted.digest;
                    return Err(StoreError::Content { wanted, got });
                }
            }
            Ok(())
        })?
    }

    /// Gives tickets back, for others to fill.
    pub(crate) fn give_back(&self, digests: &[Digest]) {
        let any = self
            .store
            .with(|ledger, _| ledger.give_back(self.holder, digests));
        if any {
            self.store.changed.notify_all();
        }
    }
}

/// Checks that each tensor begins at a page and behind the one before it, so that no byte is verified or counted twice.
fn check_offsets(offered: &[Offered<'_>]) -> Result<(), StoreError> {
    let mut end = 0;
    for tensor in offered {
        let offset = tensor.offset;
        if offset < end || offset % room(0) != 0 {
            return Err(StoreError::segment(format!(
                "a tensor lies at {offset}, expected a page's start from {end} on"
            )));
        }
        end = offset.saturating_add(room(tensor.wanted.length));
    }
    Ok(())
}

impl StoreAccess for &HolderSession {
    fn take(
        &mut self,
        wanted: &[&Wanted],
        mode: Mode,
    ) -> Result<Vec<Availability<Spot>>, StoreError> {
        HolderSession::take(self, wanted, mode)
    }

    fn publish(
        &mut self,
        segment: Arc<Segment>,
        offered: &[Offered<'_>],
    ) -> Result<Vec<Spot>, StoreError> {
        // This process reads it as well: one mapping serves both.
        segment.mapped()?;
        HolderSession::publish(self, segment, offered)
    }

    fn give_back(&mut self, digests: &[Digest]) {
        HolderSession::give_back(self, digests);
    }
}

impl Drop for HolderSession {
    fn drop(&mut self) {
        let had_tickets = self
            .store
            .with(|ledger, now| ledger.leave(now, self.holder));
        if had_tickets {
            self.store.changed.notify_all();
        }
        self.tell_sweeper();
    }
}
