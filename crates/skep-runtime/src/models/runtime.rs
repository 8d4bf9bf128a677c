//! The models of a node: what a runtime holds.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, Weak, atomic::AtomicBool},
    time::Duration,
};

use skep_host::lock;
use skep_store::{Stat, Tenant};
use tokio::sync::Notify;

use crate::{
    loading::{Backends, LoadOptions},
    models::{
        management::Management,
        poll_failures::PollFailures,
        records::ModelRecord,
        residency::{ResidencyControl, ResidencySettings},
        routes::RoutingTable,
        start_phase::StartPhase,
        stop_signal::StopSignal,
    },
    repository::{LayoutFinding, ModelId, Repository, source::ModelSource},
    serving::ResponseCacheReport,
};

/// The options of a runtime.
#[derive(Debug)]
pub struct RuntimeOptions {
    /// The repository of the models.
    pub repository: Repository,
    /// Options of every load.
    pub load: LoadOptions,
    /// How many models load at once; at least 1.
    pub load_threads: usize,
    /// How many loads, unloads and indexes that clients request may wait.
    pub max_waiting_loads: usize,
    /// What decides which models are loaded.
    pub control: Control,
    /// Whether the node is ready only if every requested model is.
    pub strict_readiness: bool,
    /// How models come into memory and leave it.
    pub residency: ResidencySettings,
}

/// What decides which models are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// The start; nothing changes after it.
    None,
    /// The repository: it is scanned again after each interval, and models that changed are loaded or unloaded.
    Poll(Duration),
    /// Load and unload requests.
    Explicit,
}

/// The models of a node. Cheap to share; every method takes `&self`.
#[derive(Debug)]
pub struct Runtime {
    pub(super) options: RuntimeOptions,
    pub(super) backends: Backends,
    /// Changed under the lock of the records.
    pub(super) routes: RoutingTable,
    records: Mutex<BTreeMap<ModelId, ModelRecord>>,
    pub(super) management: Management,
    pub(super) residency: Arc<ResidencyControl>,
    /// Held by the load of an ensemble.
    pub(super) ensemble_turn: Mutex<()>,
    /// Sources of files that clients sent.
    pub(super) sent: Mutex<Vec<Weak<ModelSource>>>,
    /// Signalled when a version is gone.
    pub(super) gone: Condvar,
    pub(super) started: AtomicBool,
    /// The readiness that was last logged, so that each change is logged once.
    pub(super) logged_ready: Mutex<bool>,
    /// How far the start is, for requests that arrive meanwhile.
    pub(super) start_phase: Mutex<StartPhase>,
    pub(super) stopping: AtomicBool,
    /// Wakes the poller for a stop.
    pub(super) stop_signal: Arc<StopSignal>,
    pub(super) poll_failures: PollFailures,
    /// Notified when a stop begins.
    pub(super) stop_notice: Notify,
}

impl Runtime {
    /// A runtime without models.
    #[must_use]
    pub fn new(options: RuntimeOptions, backends: Backends) -> Arc<Self> {
        let management = Management::new(options.load_threads, options.max_waiting_loads);
        let residency = ResidencyControl::new(options.residency, options.load_threads);
        Arc::new(Self {
            options,
            backends,
            management,
            residency: Arc::new(residency),
            ensemble_turn: Mutex::default(),
            sent: Mutex::default(),
            routes: RoutingTable::default(),
            records: Mutex::default(),
            gone: Condvar::new(),
            started: AtomicBool::new(false),
            logged_ready: Mutex::new(false),
            start_phase: Mutex::default(),
            stopping: AtomicBool::new(false),
            stop_signal: Arc::default(),
            poll_failures: PollFailures::default(),
            stop_notice: Notify::new(),
        })
    }

    /// The figures of this process's tensor store, by tenant. Empty if models share no weights, or share them through
    /// the node's store.
    #[must_use]
    pub fn stores(&self) -> Vec<(Tenant, Stat)> {
        let weights = self.options.load.weights.as_ref();
        let figures = weights.and_then(|weights| weights.store.own_figures());
        figures.unwrap_or_default()
    }

    /// The memory of the response cache; `None` without one.
    #[must_use]
    pub fn response_cache(&self) -> Option<ResponseCacheReport> {
        let cache = self.options.load.response_cache.as_ref();
        cache.map(|cache| cache.report())
    }

    /// What looks odd about the repositories as a whole.
    #[must_use]
    pub fn layout(&self) -> Vec<LayoutFinding> {
        self.options.repository.layout()
    }

    /// Acts on a model's record, if it has one.
    pub(super) fn with_record<T>(
        &self,
        id: &ModelId,
        act: impl FnOnce(&mut ModelRecord) -> T,
    ) -> Option<T> {
        self.records().get_mut(id).map(act)
    }

    pub(super) fn records(&self) -> MutexGuard<'_, BTreeMap<ModelId, ModelRecord>> {
        lock(&self.records)
    }
}
