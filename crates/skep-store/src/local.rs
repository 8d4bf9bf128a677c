//! The stores of this process: one for each tenant, and a thread that sweeps them all.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use skep_host::lock;
use skep_types::Time;

use crate::{
    StoreError, StoreOptions, Tenant,
    tenant_store::{StoreClock, TenantStore, sweep_while_there},
};

/// The tenants that a process may have stores for.
const MAX_TENANTS: u64 = 1024;

/// The stores of all tenants.
#[derive(Debug)]
pub(crate) struct LocalStores {
    options: StoreOptions,
    clock: StoreClock,
    fills_from: Time,
    stores: Mutex<BTreeMap<Tenant, Arc<TenantStore>>>,
    idle: SyncSender<()>,
}

impl LocalStores {
    /// Stores that give out no tickets before `adoption_window` is over. If the system has no thread for the sweeper,
    /// idle tensors are dropped at the next request.
    pub(crate) fn new(options: StoreOptions, adoption_window: Duration) -> Arc<Self> {
        let (idle, told) = sync_channel(1);
        let local = Arc::new(Self {
            options,
            clock: StoreClock::start(),
            fills_from: Time::ZERO + adoption_window,
            stores: Mutex::default(),
            idle,
        });
        let weak = Arc::downgrade(&local);
        let sweeper = move || {
            sweep_while_there(&told, || Some(weak.upgrade()?.stores()));
        };
        let _ = thread::Builder::new()
            .name("store sweeper".to_owned())
            .spawn(sweeper);
        local
    }

    /// The tenant's store; created at the first call.
    pub(crate) fn store(&self, tenant: &Tenant) -> Result<Arc<TenantStore>, StoreError> {
        let mut stores = lock(&self.stores);
        if let Some(store) = stores.get(tenant) {
            return Ok(Arc::clone(store));
        }
        let tenants = stores.len() as u64 + 1;
        if tenants > MAX_TENANTS {
            return Err(StoreError::Bound {
                bound: "tenants, with the store",
                tenant: tenant.clone(),
                would_be: tenants,
                limit: MAX_TENANTS,
            });
        }
        let store = Arc::new(TenantStore::new(
            tenant.clone(),
            self.options.clone(),
            self.clock,
            self.fills_from,
            self.idle.clone(),
        ));
        stores.insert(tenant.clone(), Arc::clone(&store));
        Ok(store)
    }

    /// Drops idle tensors of every tenant because memory is short. Returns their bytes.
    pub(crate) fn relieve(&self) -> u64 {
        self.stores().iter().map(|store| store.relieve()).sum()
    }

    /// Every tenant's store.
    pub(crate) fn stores(&self) -> Vec<Arc<TenantStore>> {
        let stores = lock(&self.stores);
        stores.values().cloned().collect()
    }
}
