//! A device of the node at run time: its slots behind a lock, and the models that wait for them.
//!
//! A driver asks for a slot under its own lock, so that it takes a free slot at once. Other drivers are told of their
//! slots when no lock is held: a driver's lock may be held while the device's is taken, but never the other way round,
//! and never two drivers' locks at once.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use skep_host::lock;
use skep_scheduler::{DeviceShare, Grants, MIN_TURN, ModelShareId};
use skep_types::{DeviceId, Time};

use crate::{
    clock,
    timer::{Alarm, Appointment, Timer},
};

/// Asks for slots, and is told when it gets one.
pub(crate) trait SlotHolder: Send + Sync {
    /// A slot was granted. Grants to others that follow are appended to `grants`.
    fn granted(&self, grants: &mut PendingGrants);

    /// Resources were granted, to be claimed. Grants to others that follow are appended to `grants`.
    fn resources_granted(&self, grants: &mut PendingGrants);
}

/// Slots and resources that were granted to others than the caller, who have not been told yet.
#[derive(Default)]
pub(crate) struct PendingGrants(VecDeque<PendingGrant>);

enum PendingGrant {
    Slot(Arc<dyn SlotHolder>),
    Resources(Arc<dyn SlotHolder>),
}

impl PendingGrants {
    pub(crate) fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    fn slot_for(&mut self, holder: Arc<dyn SlotHolder>) {
        self.0.push_back(PendingGrant::Slot(holder));
    }

    pub(crate) fn resources_for(&mut self, holder: Arc<dyn SlotHolder>) {
        self.0.push_back(PendingGrant::Resources(holder));
    }

    /// Tells the holders of their grants, and of those that follow. No lock may be held.
    pub(crate) fn deliver(mut self) {
        while let Some(grant) = self.0.pop_front() {
            match grant {
                PendingGrant::Slot(holder) => holder.granted(&mut self),
                PendingGrant::Resources(holder) => holder.resources_granted(&mut self),
            }
        }
    }
}

/// A device whose slots the models of a node share.
pub struct Device {
    id: DeviceId,
    state: Mutex<DeviceState>,
}

struct DeviceState {
    share: DeviceShare,
    /// The holders, by their number at the share.
    holders: Vec<Weak<dyn SlotHolder>>,
    /// Set if the share may want to be called. Without a timer, it lends slots when something else happens.
    appointment: Option<Appointment>,
    /// The latest moment that the share was told. Moments are read before the lock is taken, and the share must not see
    /// time go back.
    now: Time,
}

impl DeviceState {
    /// Advances to `now`, unless that lies in the past. Returns the present moment.
    fn advance(&mut self, now: Time) -> Time {
        self.now = self.now.max(now);
        self.now
    }

    /// Makes the appointment that the share wants.
    fn appoint(&mut self, now: Time) {
        if let Some(appointment) = &mut self.appointment
            && let Some(moment) = self.share.next_timeout(now)
        {
            appointment.no_later_than(moment);
        }
    }
}

impl Device {
    /// A device with this many slots, at least one. A CPU has as many as the cores that the process may use.
    #[must_use]
    pub fn new(id: DeviceId, slots: u32) -> Arc<Self> {
        Self::with_min_turn(id, slots, MIN_TURN)
    }

    /// Which device it is.
    #[must_use]
    pub const fn id(&self) -> DeviceId {
        self.id
    }

    /// A device on which an execution keeps its slots for at least `min_turn`, however short the waiting executions
    /// are.
    #[must_use]
    pub fn with_min_turn(id: DeviceId, slots: u32, min_turn: Duration) -> Arc<Self> {
        let timer = Timer::started().inspect_err(|error| tracing::warn!("{error}"));
        Arc::new_cyclic(|this: &Weak<Self>| {
            let alarm: Weak<dyn Alarm> = this.clone();
            Self {
                id,
                state: Mutex::new(DeviceState {
                    share: DeviceShare::new(slots).with_min_turn(min_turn),
                    holders: Vec::new(),
                    appointment: timer.ok().map(|timer| Appointment::new(timer, alarm)),
                    now: Time::ZERO,
                }),
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, DeviceState> {
        lock(&self.state)
    }
}

impl Alarm for Device {
    fn ring(&self) {
        let mut pending = PendingGrants::default();
        let mut grants = Grants::new();
        let mut state = self.lock();
        if let Some(appointment) = &mut state.appointment {
            appointment.rung();
        }
        let now = state.advance(clock::now());
        state.share.handle_timeout(now, &mut grants);
        state.appoint(now);
        for id in &grants {
            if let Some(holder) = state.holders[index(*id)].upgrade() {
                pending.slot_for(holder);
            }
        }
        drop(state);
        pending.deliver();
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Device")
            .field("slots", &state.share.slots())
            .field("busy", &state.share.busy())
            .finish_non_exhaustive()
    }
}

/// A model's place at a device, given up on drop.
pub(crate) struct DeviceSeat {
    device: Arc<Device>,
    id: ModelShareId,
    weight: f64,
    threads: u32,
}

/// News for a device, told in one call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SlotNews {
    /// An execution is over, after this duration.
    pub(crate) released: Option<Duration>,
    /// A granted slot is not needed.
    pub(crate) returned: bool,
    /// A slot is wanted.
    pub(crate) wanted: bool,
    /// Slots that each further execution keeps busy, if that has changed.
    pub(crate) threads: Option<u32>,
}

impl SlotNews {
    pub(crate) fn is_empty(self) -> bool {
        self.released.is_none() && !self.returned && !self.wanted
    }
}

impl DeviceSeat {
    /// A place for `holder`, each of whose executions keeps `threads` slots busy.
    pub(crate) fn new(
        device: Arc<Device>,
        weight: f64,
        threads: u32,
        holder: Weak<dyn SlotHolder>,
    ) -> Self {
        let mut state = device.lock();
        let id = state.share.join(weight, threads);
        let index = index(id);
        if index < state.holders.len() {
            state.holders[index] = holder;
        } else {
            state.holders.push(holder);
        }
        drop(state);
        Self {
            device,
            id,
            weight,
            threads,
        }
    }

    /// Waits until the device has slots for one more execution of this model, besides those that its scheduler asks
    /// for.
    pub(crate) fn occupy(&self) -> OccupiedSlots {
        let waiter = Arc::new(SlotWaiter::default());
        let holder: Weak<dyn SlotHolder> =
            Arc::downgrade(&(Arc::clone(&waiter) as Arc<dyn SlotHolder>));
        let seat = Self::new(Arc::clone(&self.device), self.weight, self.threads, holder);
        let mut pending = PendingGrants::default();
        let news = SlotNews {
            wanted: true,
            ..SlotNews::default()
        };
        let is_there = seat.tell(clock::now(), news, &mut pending);
        pending.deliver();
        if !is_there {
            waiter.wait();
        }
        OccupiedSlots {
            seat,
            since: clock::now(),
        }
    }

    /// Tells the device the news. Returns whether this holder got a slot.
    pub(crate) fn tell(&self, now: Time, news: SlotNews, pending: &mut PendingGrants) -> bool {
        let mut grants = Grants::new();
        let mut state = self.device.lock();
        let now = state.advance(now);
        if let Some(threads) = news.threads {
            state.share.set_threads(self.id, threads);
        }
        if news.returned {
            state.share.give_up(self.id, now, &mut grants);
        }
        if let Some(took) = news.released {
            let wants = news.wanted;
            state.share.release(self.id, now, took, wants, &mut grants);
        } else if news.wanted {
            state.share.want(self.id, now, &mut grants);
        }
        state.appoint(now);
        self.note(&state, &grants, pending)
    }

    /// Notes the grants to others. Returns whether one is for this holder.
    fn note(&self, state: &DeviceState, grants: &Grants, pending: &mut PendingGrants) -> bool {
        let mut own = false;
        for id in grants {
            if *id == self.id {
                own = true;
            } else if let Some(holder) = state.holders[index(*id)].upgrade() {
                pending.slot_for(holder);
            }
        }
        own
    }
}

impl Drop for DeviceSeat {
    fn drop(&mut self) {
        let mut pending = PendingGrants::default();
        let mut grants = Grants::new();
        let mut state = self.device.lock();
        let now = state.advance(clock::now());
        state.share.leave(self.id, now, &mut grants);
        state.appoint(now);
        self.note(&state, &grants, &mut pending);
        drop(state);
        pending.deliver();
    }
}

/// Slots for an execution outside of a scheduler, such as one during a load. Given back on drop.
pub(crate) struct OccupiedSlots {
    seat: DeviceSeat,
    since: Time,
}

impl Drop for OccupiedSlots {
    fn drop(&mut self) {
        let mut pending = PendingGrants::default();
        let now = clock::now();
        let news = SlotNews {
            released: Some(now.since(self.since)),
            ..SlotNews::default()
        };
        self.seat.tell(now, news, &mut pending);
        pending.deliver();
    }
}

/// Lets a thread wait for its slots.
#[derive(Default)]
struct SlotWaiter {
    is_granted: Mutex<bool>,
    granted: Condvar,
}

impl SlotWaiter {
    fn wait(&self) {
        let waited = self
            .granted
            .wait_while(lock(&self.is_granted), |granted| !*granted);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl SlotHolder for SlotWaiter {
    fn granted(&self, _: &mut PendingGrants) {
        *lock(&self.is_granted) = true;
        self.granted.notify_one();
    }

    /// It waits for slots alone.
    fn resources_granted(&self, _: &mut PendingGrants) {}
}

fn index(id: ModelShareId) -> usize {
    usize::try_from(id.0).unwrap_or(usize::MAX)
}
