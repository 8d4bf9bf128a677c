//! Stores in this process: a shelf for each tenant, and one thread that sweeps them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use skep_types::Time;

use crate::{
    StoreError, StoreOptions, Tenant,
    shelf::{Clock, Shelf, sweep_while_there},
};

/// Tenants that a process may have stores for.
const MAX_TENANTS: u64 = 1024;

/// The stores of all tenants.
#[derive(Debug)]
pub(crate) struct Local {
    options: StoreOptions,
    clock: Clock,
    fills_from: Time,
    shelves: Mutex<BTreeMap<Tenant, Arc<Shelf>>>,
    idle: SyncSender<()>,
}

impl Local {
    /// Stores in which nobody may fill before `adoption_window` is over. Without a sweeper (the system gives no thread)
    /// idle tensors go when something else happens.
    pub(crate) fn new(options: StoreOptions, adoption_window: Duration) -> Arc<Self> {
        let (idle, told) = sync_channel(1);
        let local = Arc::new(Self {
            options,
            clock: Clock::start(),
            fills_from: Time::ZERO + adoption_window,
            shelves: Mutex::default(),
            idle,
        });
        let weak = Arc::downgrade(&local);
        let sweeper = move || {
            sweep_while_there(&told, || Some(weak.upgrade()?.shelves()));
        };
        let _ = thread::Builder::new()
            .name("store sweeper".to_owned())
            .spawn(sweeper);
        local
    }

    /// The tenant's store, new if nobody asked for it before.
    pub(crate) fn shelf(&self, tenant: &Tenant) -> Result<Arc<Shelf>, StoreError> {
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shelf) = shelves.get(tenant) {
            return Ok(Arc::clone(shelf));
        }
        let tenants = shelves.len() as u64 + 1;
        if tenants > MAX_TENANTS {
            return Err(StoreError::Bound {
                bound: "tenants, with the store",
                tenant: tenant.clone(),
                would_be: tenants,
                limit: MAX_TENANTS,
            });
        }
        let shelf = Arc::new(Shelf::new(
            tenant.clone(),
            self.options.clone(),
            self.clock,
            self.fills_from,
            self.idle.clone(),
        ));
        shelves.insert(tenant.clone(), Arc::clone(&shelf));
        Ok(shelf)
    }

    /// Memory is short: gives up idle tensors of every tenant. Their bytes.
    pub(crate) fn relieve(&self) -> u64 {
        self.shelves().iter().map(|shelf| shelf.relieve()).sum()
    }

    /// Every tenant's store.
    pub(crate) fn shelves(&self) -> Vec<Arc<Shelf>> {
        let shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        shelves.values().cloned().collect()
    }
}
