//! A device of the node at run time: the lock around its slots, and who waits for them.
//!
//! A driver asks under its own lock, so that a slot that is free is taken at once. Slots for other models are said to
//! their drivers when no lock is held any more: a driver's lock may be held while the device's is taken, never the other
//! way round, and never two drivers'.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use skep_host::lock;
use skep_scheduler::{DeviceShare, Grants, MIN_TURN, TenantId};
use skep_types::Time;

use crate::{
    clock,
    timer::{Alarm, Appointment, Timer},
};

/// Whoever asked for a slot.
pub(crate) trait SlotHolder: Send + Sync {
    /// The slot is there. What follows for others is appended to `grants`.
    fn granted(&self, grants: &mut PendingGrants);
}

/// Slots that were granted to others than the one who called, and have not been said to them.
#[derive(Default)]
pub(crate) struct PendingGrants(VecDeque<Arc<dyn SlotHolder>>);

impl PendingGrants {
    pub(crate) fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    /// Says them, and what follows from them. No lock may be held.
    pub(crate) fn deliver(mut self) {
        while let Some(tenant) = self.0.pop_front() {
            tenant.granted(&mut self);
        }
    }
}

/// A device whose slots the models of a node share.
pub struct Device {
    state: Mutex<State>,
}

struct State {
    share: DeviceShare,
    /// By number.
    tenants: Vec<Weak<dyn SlotHolder>>,
    /// Where the share may want to be called; without a timer it lends when something else happens.
    appointment: Option<Appointment>,
    /// The latest moment that the share was told: moments are taken before the lock, and it must not see time go back.
    now: Time,
}

impl State {
    /// It is `now`, or later.
    fn advance(&mut self, now: Time) -> Time {
        self.now = self.now.max(now);
        self.now
    }

    /// Lets the share be called when it wants to.
    fn appoint(&mut self, now: Time) {
        if let Some(appointment) = &mut self.appointment
            && let Some(moment) = self.share.next_timeout(now)
        {
            appointment.no_later_than(moment);
        }
    }
}

impl Device {
    /// A device with this many slots, at least one: for a CPU the cores that the process may use.
    #[must_use]
    pub fn new(slots: u32) -> Arc<Self> {
        Self::with_min_turn(slots, MIN_TURN)
    }

    /// The same; an execution keeps its slots for `min_turn` at least, however short those are that wait.
    #[must_use]
    pub fn with_min_turn(slots: u32, min_turn: Duration) -> Arc<Self> {
        let timer = Timer::started().inspect_err(|error| tracing::warn!("{error}"));
        Arc::new_cyclic(|this: &Weak<Self>| {
            let alarm: Weak<dyn Alarm> = this.clone();
            Self {
                state: Mutex::new(State {
                    share: DeviceShare::new(slots).with_min_turn(min_turn),
                    tenants: Vec::new(),
                    appointment: timer.ok().map(|timer| Appointment::new(timer, alarm)),
                    now: Time::ZERO,
                }),
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
            if let Some(tenant) = state.tenants[index(*id)].upgrade() {
                pending.0.push_back(tenant);
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

/// A model's place at a device; given up with it.
pub(crate) struct DeviceSeat {
    device: Arc<Device>,
    id: TenantId,
    weight: f64,
    threads: u32,
}

/// What a driver tells its device at once.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SlotNews {
    /// An execution is over, after this long.
    pub(crate) released: Option<Duration>,
    /// A granted slot is not needed.
    pub(crate) returned: bool,
    /// A slot is wanted.
    pub(crate) wanted: bool,
    /// Slots that each further execution keeps busy, where that has changed.
    pub(crate) threads: Option<u32>,
}

impl SlotNews {
    pub(crate) fn is_none(self) -> bool {
        self.released.is_none() && !self.returned && !self.wanted
    }
}

impl DeviceSeat {
    /// A place for `tenant`, each of whose executions keeps `threads` slots busy.
    pub(crate) fn new(
        device: Arc<Device>,
        weight: f64,
        threads: u32,
        tenant: Weak<dyn SlotHolder>,
    ) -> Self {
        let mut state = device.lock();
        let id = state.share.join(weight, threads);
        let index = index(id);
        if index < state.tenants.len() {
            state.tenants[index] = tenant;
        } else {
            state.tenants.push(tenant);
        }
        drop(state);
        Self {
            device,
            id,
            weight,
            threads,
        }
    }

    /// Waits until the device has slots for one more execution of this model, besides those that its scheduler asks for.
    pub(crate) fn occupy(&self) -> OccupiedSlots {
        let visitor = Arc::new(SlotWaiter::default());
        let tenant: Weak<dyn SlotHolder> =
            Arc::downgrade(&(Arc::clone(&visitor) as Arc<dyn SlotHolder>));
        let seat = Self::new(Arc::clone(&self.device), self.weight, self.threads, tenant);
        let mut pending = PendingGrants::default();
        let news = SlotNews {
            wanted: true,
            ..SlotNews::default()
        };
        let is_there = seat.tell(clock::now(), news, &mut pending);
        pending.deliver();
        if !is_there {
            visitor.wait();
        }
        OccupiedSlots {
            seat,
            since: clock::now(),
        }
    }

    /// Tells the news of a moment; whether a slot is granted to this very tenant.
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

    /// Keeps the grants for others; whether there is one for this tenant.
    fn note(&self, state: &State, grants: &Grants, pending: &mut PendingGrants) -> bool {
        let mut own = false;
        for id in grants {
            if *id == self.id {
                own = true;
            } else if let Some(tenant) = state.tenants[index(*id)].upgrade() {
                pending.0.push_back(tenant);
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

/// Slots for an execution that no scheduler decided, such as one while a model loads; given back when dropped.
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

/// A thread that waits for its slots.
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
}

fn index(id: TenantId) -> usize {
    usize::try_from(id.0).unwrap_or(usize::MAX)
}
