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
//! Source: Goyal, Vin and Cheng, "Start-time fair queueing", SIGCOMM 1996.

use std::time::Duration;

use smallvec::SmallVec;

/// How often a tenant that needs several slots is passed over before slots are kept back for it.
pub const MAX_PASSES: u32 = 4;

/// One who runs on the device; a model version. Numbers of those who left are given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub u32);

/// Tenants that a slot was granted to, in this order.
pub type Grants = SmallVec<[TenantId; 2]>;

/// The compute slots of one device. See the module's page.
#[derive(Debug)]
pub struct DeviceShare {
    slots: u32,
    free: u32,
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
    /// Charged for the executions that run, by their order of start.
    running: u32,
    passed_over: u32,
}

impl DeviceShare {
    /// A device with this many slots, at least one.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        let slots = slots.max(1);
        Self {
            slots,
            free: slots,
            tenants: Vec::new(),
            virtual_now: 0.0,
        }
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// How many are taken.
    #[must_use]
    pub fn busy(&self) -> u32 {
        self.slots - self.free
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
            running: 0,
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

    /// A tenant goes; what it still runs is over.
    pub fn leave(&mut self, id: TenantId, grants: &mut Grants) {
        if let Some(tenant) = self.tenants[id.0 as usize].take() {
            self.free += tenant.running * tenant.threads;
            self.grant(grants);
        }
    }

    /// A tenant wants to begin one more execution.
    pub fn want(&mut self, id: TenantId, grants: &mut Grants) {
        let virtual_now = self.virtual_now;
        if let Some(tenant) = self.tenant(id) {
            tenant.wants = true;
            // Time that it did not want is no credit.
            tenant.had = tenant.had.max(virtual_now);
            self.grant(grants);
        }
    }

    /// A tenant's execution is over, after this long; whether it wants to begin another one. Both are said at once, so
    /// that it is not always the others' turn.
    pub fn release(&mut self, id: TenantId, took: Duration, wants: bool, grants: &mut Grants) {
        if wants && let Some(tenant) = self.tenant(id) {
            tenant.wants = true;
        }
        self.give_back(id, Some(took), grants);
    }

    /// A tenant did not begin what its slot was for.
    pub fn give_up(&mut self, id: TenantId, grants: &mut Grants) {
        self.give_back(id, None, grants);
    }

    fn give_back(&mut self, id: TenantId, took: Option<Duration>, grants: &mut Grants) {
        let Some(tenant) = self.tenant(id).filter(|tenant| tenant.running > 0) else {
            return;
        };
        let took_ns = took.map_or(0.0, |took| took.as_nanos() as f64);
        tenant.had += tenant.cost(took_ns - tenant.last_ns);
        if took.is_some() {
            tenant.last_ns = took_ns;
        }
        tenant.running -= 1;
        let threads = tenant.threads;
        self.free += threads;
        self.grant(grants);
    }

    fn tenant(&mut self, id: TenantId) -> Option<&mut Tenant> {
        self.tenants.get_mut(id.0 as usize)?.as_mut()
    }

    /// Grants what is free.
    fn grant(&mut self, grants: &mut Grants) {
        while self.free > 0 {
            let free = self.free;
            let mut waiting: SmallVec<[(usize, &mut Tenant); 8]> = self
                .tenants
                .iter_mut()
                .enumerate()
                .filter_map(|(index, tenant)| Some((index, tenant.as_mut()?)))
                .filter(|(_, tenant)| tenant.wants)
                .collect();
            waiting.sort_by(|(_, a), (_, b)| a.had.total_cmp(&b.had));
            let mut chosen = None;
            for (position, (_, tenant)) in waiting.iter().enumerate() {
                if tenant.threads <= free {
                    chosen = Some(position);
                    break;
                }
                if tenant.passed_over >= MAX_PASSES {
                    break;
                }
            }
            let Some(chosen) = chosen else { return };
            for (_, tenant) in &mut waiting[..chosen] {
                tenant.passed_over += 1;
            }
            let (index, tenant) = &mut waiting[chosen];
            let start = tenant.had;
            tenant.wants = false;
            tenant.passed_over = 0;
            tenant.running += 1;
            tenant.had += tenant.cost(tenant.last_ns);
            let threads = tenant.threads;
            grants.push(TenantId(u32::try_from(*index).expect("tenants are few")));
            self.free -= threads;
            self.virtual_now = self.virtual_now.max(start);
        }
    }
}

impl Tenant {
    /// What an execution of this many nanoseconds costs it.
    fn cost(&self, ns: f64) -> f64 {
        ns * f64::from(self.threads) / self.weight
    }
}
