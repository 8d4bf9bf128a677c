//! A device's compute slots, shared among models.
//!
//! A CPU has as many slots as cores that may be used; an execution takes as many as it has busy threads. Without this,
//! each model's instances start whenever they have a batch, more threads run than there are cores, and each execution
//! is slowed down by the others: nobody's latency can be foretold any more.
//!
//! ```text
//!   a model's scheduler:   WantSlot ------> want  -+
//!                          Dispatch <------ Grant <-+--- slots, fair among tenants
//!                          finished ------> release-+
//! ```
//!
//! Among the tenants that want a slot, the one that had the least time for its weight is first (start-time fair
//! queueing). One that wanted nothing for a while does not catch up on what it left to others. An execution is charged
//! when it begins with what the tenant's last one took, and put right when it ends, so that grants in between count.
//!
//! Slots are granted as soon as they are free: nothing idles while somebody wants what is there. Only a tenant that
//! needs several at once can be passed over by others that need fewer; after [`MAX_PASSES`] times slots are kept back
//! for it.
//!
//! # Long executions
//!
//! An execution cannot be stopped, but nobody has to wait for one that is much longer than its own: once it has run for
//! twice what a waiting tenant's executions take, and for a least time ([`MIN_TURN`]), its slots are *lent* to that tenant. The threads of
//! both then take turns, which is the system's business. Tenants whose executions are alike never borrow of each other, so
//! that their latencies stay what they are alone. What is lent is lent once: as many threads that are not long compute as
//! there are slots, whatever is stuck.
//!
//! Source: Goyal, Vin and Cheng, "Start-time fair queueing", SIGCOMM 1996. Lending is our own.

use std::time::Duration;

use skep_types::Time;
use smallvec::SmallVec;

/// How often a tenant that needs several slots is passed over before slots are kept back for it.
pub const MAX_PASSES: u32 = 4;

/// An execution keeps its slots for so long, however short those are that wait, unless a device says otherwise. Many
/// executions of a small model; a wait that does not make a model of 1 ms ten times as slow.
pub const MIN_TURN: Duration = Duration::from_millis(2);

/// An execution that takes so many times as long as a waiting tenant's lends its slots to that.
const LONG: f64 = 2.0;

/// One who runs on the device; a model version. Numbers of those who left are given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub u32);

/// Tenants that a slot was granted to, in this order.
pub type Grants = SmallVec<[TenantId; 2]>;

/// The compute slots of one device. See the module's page.
#[derive(Debug)]
pub struct DeviceShare {
    slots: u32,
    min_turn: Duration,
    /// Slots that executions hold, those that they borrowed not counted; never more than there are.
    held: u32,
    tenants: Vec<Option<Tenant>>,
    /// The start of the latest execution in virtual time: nobody begins behind it.
    virtual_now: f64,
}

#[derive(Debug)]
struct Tenant {
    weight: f64,
    threads: u32,
    wants: bool,
    /// Slot time had for its weight, in nanoseconds.
    had: f64,
    /// What its last execution took, in nanoseconds.
    last_ns: f64,
    running: SmallVec<[Execution; 2]>,
    passed_over: u32,
}

/// An execution that runs.
#[derive(Debug, Clone, Copy)]
struct Execution {
    start: Time,
    /// Slots that it holds.
    held: u32,
    /// Slots that it uses and that others hold.
    borrowed: u32,
}

/// What a waiting tenant could have.
#[derive(Debug, Clone, Copy)]
struct Offer {
    free: u32,
    /// Of executions that are long for it, less what is borrowed of them.
    lent: u32,
}

impl Execution {
    const fn threads(self) -> u32 {
        self.held + self.borrowed
    }
}

impl DeviceShare {
    /// A device with this many slots, at least one.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self {
            slots: slots.max(1),
            min_turn: MIN_TURN,
            held: 0,
            tenants: Vec::new(),
            virtual_now: 0.0,
        }
    }

    /// The same with another least time for which an execution keeps its slots; [`Duration::MAX`] for always.
    #[must_use]
    pub const fn with_min_turn(mut self, min_turn: Duration) -> Self {
        self.min_turn = min_turn;
        self
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// How many are taken.
    #[must_use]
    pub fn busy(&self) -> u32 {
        self.held
    }

    /// A tenant comes: each of its executions keeps `threads` slots busy (all of them, if there are fewer), and of two
    /// that always want, one with twice the `weight` gets twice the time.
    pub fn join(&mut self, weight: f64, threads: u32) -> TenantId {
        let tenant = Tenant {
            weight: if weight.is_finite() && weight > 0.0 {
                weight
            } else {
                1.0
            },
            threads: threads.clamp(1, self.slots),
            wants: false,
            had: self.virtual_now,
            last_ns: 0.0,
            running: SmallVec::new(),
            passed_over: 0,
        };
        let vacant = self.tenants.iter().position(Option::is_none);
        let index = vacant.unwrap_or_else(|| {
            self.tenants.push(None);
            self.tenants.len() - 1
        });
        self.tenants[index] = Some(tenant);
        TenantId(u32::try_from(index).expect("tenants are few"))
    }

    /// How many slots each further execution of a tenant keeps busy, as it turned out.
    pub fn set_threads(&mut self, id: TenantId, threads: u32) {
        let slots = self.slots;
        if let Some(tenant) = self.tenant(id) {
            tenant.threads = threads.clamp(1, slots);
        }
    }

    /// A tenant goes; what it still runs is over.
    pub fn leave(&mut self, id: TenantId, now: Time, grants: &mut Grants) {
        if let Some(tenant) = self.tenants[id.0 as usize].take() {
            self.held -= tenant.running.iter().map(|run| run.held).sum::<u32>();
            self.settle_debts();
            self.grant(now, grants);
        }
    }

    /// A tenant wants to begin one more execution.
    pub fn want(&mut self, id: TenantId, now: Time, grants: &mut Grants) {
        let virtual_now = self.virtual_now;
        if let Some(tenant) = self.tenant(id) {
            tenant.wants = true;
            // Time that it did not want is no credit.
            tenant.had = tenant.had.max(virtual_now);
            self.grant(now, grants);
        }
    }

    /// A tenant's execution is over, after this long; whether it wants to begin another one. Both are said at once, so
    /// that it is not always the others' turn.
    pub fn release(
        &mut self,
        id: TenantId,
        now: Time,
        took: Duration,
        wants: bool,
        grants: &mut Grants,
    ) {
        if wants && let Some(tenant) = self.tenant(id) {
            tenant.wants = true;
        }
        self.give_back(id, now, Some(took), grants);
    }

    /// A tenant did not begin what its slot was for.
    pub fn give_up(&mut self, id: TenantId, now: Time, grants: &mut Grants) {
        self.give_back(id, now, None, grants);
    }

    /// Grants what has become lendable by the mere passing of time: nothing before [`DeviceShare::next_timeout`].
    pub fn handle_timeout(&mut self, now: Time, grants: &mut Grants) {
        self.grant(now, grants);
    }

    /// When [`DeviceShare::handle_timeout`] may have something to do, if nothing else happens before; `None` where nobody
    /// waits.
    #[must_use]
    pub fn next_timeout(&self, now: Time) -> Option<Time> {
        let waiting = self.tenants.iter().flatten().filter(|tenant| tenant.wants);
        let long = waiting.flat_map(|tenant| {
            let turn = tenant.turn(self.min_turn);
            self.running().map(move |run| run.start + turn)
        });
        long.filter(|moment| *moment > now).min()
    }

    fn running(&self) -> impl Iterator<Item = &Execution> {
        self.tenants
            .iter()
            .flatten()
            .flat_map(|tenant| &tenant.running)
    }

    fn give_back(&mut self, id: TenantId, now: Time, took: Option<Duration>, grants: &mut Grants) {
        let Some(tenant) = self.tenant(id) else {
            return;
        };
        // Which of its executions it is shows in when that began.
        let began = took.map_or(now.as_nanos(), |took| {
            let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            now.as_nanos().saturating_sub(took)
        });
        let runs = tenant.running.iter().enumerate();
        let nearest = runs.min_by_key(|(_, run)| run.start.as_nanos().abs_diff(began));
        let Some((position, _)) = nearest else { return };
        let run = tenant.running.swap_remove(position);
        let took_ns = took.map_or(0.0, |took| took.as_nanos() as f64);
        tenant.had += tenant.cost(took_ns - tenant.last_ns, run.threads());
        if took.is_some() {
            tenant.last_ns = took_ns;
        }
        self.held -= run.held;
        self.settle_debts();
        self.grant(now, grants);
    }

    fn tenant(&mut self, id: TenantId) -> Option<&mut Tenant> {
        self.tenants.get_mut(id.0 as usize)?.as_mut()
    }

    /// Slots that are free now become those of executions that have borrowed some.
    fn settle_debts(&mut self) {
        let runs = self.tenants.iter_mut().flatten();
        for run in runs.flat_map(|tenant| &mut tenant.running) {
            let settled = run.borrowed.min(self.slots - self.held);
            run.borrowed -= settled;
            run.held += settled;
            self.held += settled;
        }
    }

    /// What a waiting tenant could have now.
    fn offer(&self, tenant: &Tenant, now: Time, oldest: Option<Time>) -> Offer {
        let free = self.slots - self.held;
        let turn = tenant.turn(self.min_turn);
        if free >= tenant.threads || oldest.is_none_or(|oldest| now < oldest + turn) {
            return Offer { free, lent: 0 };
        }
        let (mut long, mut borrowed) = (0_u32, 0_u32);
        for run in self.running() {
            if now < run.start + turn {
                borrowed += run.borrowed;
            } else {
                long += run.held;
            }
        }
        Offer {
            free,
            lent: long.saturating_sub(borrowed),
        }
    }

    /// Grants what is there.
    fn grant(&mut self, now: Time, grants: &mut Grants) {
        while let Some(Choice {
            index,
            held,
            borrowed,
            passed,
        }) = self.choose(now)
        {
            for passed in passed {
                if let Some(tenant) = &mut self.tenants[passed] {
                    tenant.passed_over += 1;
                }
            }
            let Some(tenant) = &mut self.tenants[index] else {
                return;
            };
            let start = tenant.had;
            tenant.wants = false;
            tenant.passed_over = 0;
            tenant.running.push(Execution {
                start: now,
                held,
                borrowed,
            });
            tenant.had += tenant.cost(tenant.last_ns, held + borrowed);
            grants.push(TenantId(u32::try_from(index).expect("tenants are few")));
            self.held += held;
            self.virtual_now = self.virtual_now.max(start);
        }
    }

    /// Whose turn it is, if there are slots for anybody.
    fn choose(&self, now: Time) -> Option<Choice> {
        let tenants = self.tenants.iter().enumerate();
        let mut waiting: SmallVec<[(usize, &Tenant); 8]> = tenants
            .filter_map(|(index, tenant)| Some((index, tenant.as_ref()?)))
            .filter(|(_, tenant)| tenant.wants)
            .collect();
        if waiting.is_empty() {
            return None;
        }
        waiting.sort_by(|(_, a), (_, b)| a.had.total_cmp(&b.had));
        let oldest = self.running().map(|run| run.start).min();
        let mut passed = SmallVec::new();
        // Whether what is free is kept back for somebody.
        let mut is_kept = false;
        for (index, tenant) in waiting {
            let Offer { free, lent } = self.offer(tenant, now, oldest);
            let held = match is_kept {
                true => 0,
                false => free.min(tenant.threads),
            };
            if held + lent >= tenant.threads {
                let borrowed = tenant.threads - held;
                return Some(Choice {
                    index,
                    held,
                    borrowed,
                    // What is borrowed is not taken from those before.
                    passed: if held > 0 { passed } else { SmallVec::new() },
                });
            }
            is_kept |= tenant.passed_over >= MAX_PASSES;
            passed.push(index);
        }
        None
    }
}

/// The next execution.
struct Choice {
    index: usize,
    held: u32,
    borrowed: u32,
    /// Those who would have been before it, and need more than there is.
    passed: SmallVec<[usize; 8]>,
}

impl Tenant {
    /// What an execution of this many nanoseconds on so many slots costs it.
    fn cost(&self, ns: f64, threads: u32) -> f64 {
        ns * f64::from(threads) / self.weight
    }

    /// An execution that has run for so long is long for this tenant.
    fn turn(&self, least: Duration) -> Duration {
        let own = Duration::try_from_secs_f64(self.last_ns * LONG / 1e9);
        own.unwrap_or(Duration::MAX).max(least)
    }
}
