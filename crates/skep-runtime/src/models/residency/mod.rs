//! Residency: which of the known models have instances, by request and under a memory budget.
//!
//! [`skep_placer::residency::Residency`] decides; this wing gives it its inputs and carries out what it says.
//!
//! ```text
//! terms.rs      what is known of a model before its load
//! requests.rs   a request for a model that is not resident waits until it is
//! loads.rs      admits loads before they begin, and reports the ends of loads and unloads
//! watch.rs      a thread: what resident models are used for, memory, what has become due
//! memory.rs     what models hold
//! scaling.rs    the number of instances of resident models follows their load
//! live.rs       instances, threads and batches of models with live configurations follow their rate
//! state.rs      what the lock guards: the machine, the models, actions that follow from its outputs
//! decisions.rs  the last decisions, and why
//! report.rs     all of it, for people
//! ```
//!
//! *Loads.* A load runs as a [`ManagementCall`], as one that a client asks for does, so that the queue of calls keeps all
//! loads and unloads of a model in order. A load of a model that is not resident begins once the machine admits it: a
//! load that a request caused was admitted before its call was queued, any other one waits for it on its own thread.
//!
//! *Locks.* The lock here is taken last: nothing else is locked under it, and actions follow after it.

mod decisions;
mod live;
mod loads;
mod memory;
mod report;
mod requests;
mod scaling;
mod state;
mod terms;
mod watch;

pub use decisions::DecisionKind;
pub use live::RunReport;
pub use report::{DecisionReport, ModelReport, ResidencyReport, ResidencySums};
pub(super) use scaling::ScaleOrder;
pub(super) use terms::KnownTerms;

pub(super) use watch::start as watch;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use skep_config::{LoadPolicy, ModelResidency};
use skep_heap::hurry_giving_back;
use skep_host::lock;
use skep_placer::{
    keep_alive::KeepAlive,
    residency::{
        EvictionPolicy, Residency, ResidencyFigures, ResidencyInput, ResidencyOptions,
        ResidencyState,
    },
};
use skep_store::Store;
use skep_types::ModelVersion;

use self::{
    decisions::DecisionLog,
    state::{Action, ControlState, Departure},
};

use crate::{
    clock,
    error::{ErrorKind, RuntimeError},
    models::{
        management::{CallTarget, ManagementCall},
        runtime::Runtime,
    },
    repository::{LoadOverrides, ModelId},
};

/// How models come into memory and leave it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResidencySettings {
    /// When models are loaded whose configuration does not say.
    pub load_policy: LoadPolicy,
    /// Bytes for all models together; `None` for as many as there are.
    pub budget: Option<u64>,
    /// Which model leaves first if another one needs room.
    pub policy: EvictionPolicy,
    /// How long an idle model stays although nothing needs its room.
    pub keep_alive: KeepAlive,
    /// How long a request waits for its model to load, if the model's configuration does not say.
    pub max_load_wait: Duration,
}

impl Default for ResidencySettings {
    /// Every model that was loaded stays.
    fn default() -> Self {
        Self {
            load_policy: LoadPolicy::Eager,
            budget: None,
            policy: EvictionPolicy::default(),
            keep_alive: KeepAlive::Forever,
            max_load_wait: Duration::from_secs(60),
        }
    }
}

impl ResidencySettings {
    /// Whether the start leaves a model to its first request.
    pub(super) fn leaves_to_requests(&self, model: &ModelResidency) -> bool {
        let policy = model.load_policy.unwrap_or(self.load_policy);
        policy == LoadPolicy::Lazy && !model.is_pinned()
    }

    /// Whether a request loads a model that is not in memory: one that the start left out, or one that may leave.
    fn loads_on_request(&self, model: &ModelResidency) -> bool {
        self.leaves_to_requests(model)
            || self.load_policy == LoadPolicy::Lazy
            || self.budget.is_some()
            || self.keep_alive != KeepAlive::Forever
    }
}

/// What the process may hold beyond its models and requests without it counting towards a budget: tables of the models'
/// library, memory that the heap keeps for a while. A 32nd of the budget, between 16 and 64 MiB.
#[must_use]
pub fn slack(budget: u64) -> u64 {
    const LEAST: u64 = 16 << 20;
    const MOST: u64 = 64 << 20;
    (budget / 32).clamp(LEAST, MOST)
}

/// Requests that may wait for loads, over all models: a few hundred bytes each, beside what the request itself is
/// charged for.
const MAX_WAITING: usize = 16_384;

/// The outcome of the load that a request waits for.
type LoadOutcome = Result<(), RuntimeError>;

/// Whether a load may begin; otherwise it is left to the model's first request.
type LoadAdmission = Result<bool, RuntimeError>;

/// Everything about residency that a runtime holds.
#[derive(Debug)]
pub(super) struct ResidencyControl {
    pub(super) settings: ResidencySettings,
    state: Mutex<ControlState>,
    memory: memory::MemoryProbe,
}

impl ResidencyControl {
    /// Without models; `loads_at_once` may load at once.
    pub(super) fn new(settings: ResidencySettings, loads_at_once: usize) -> Self {
        Self {
            settings,
            state: Mutex::new(ControlState {
                machine: Residency::new(ResidencyOptions {
                    budget: settings.budget.unwrap_or(u64::MAX),
                    policy: settings.policy,
                    loads_at_once,
                    keep_alive: settings.keep_alive,
                }),
                keys: BTreeMap::new(),
                by_name: HashMap::new(),
                models: Vec::new(),
                departures: Vec::new(),
                waiting: 0,
                decisions: DecisionLog::default(),
                is_closed: false,
            }),
            memory: memory::MemoryProbe::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, ControlState> {
        lock(&self.state)
    }

    /// Makes a model known, or known again.
    pub(super) fn know(&self, id: &ModelId, terms: KnownTerms) {
        let mut state = self.state();
        let key = state.key(id);
        let input = state.know(key, terms, &self.settings);
        let mut outputs = Vec::new();
        state.machine.handle(clock::now(), input, &mut outputs);
        debug_assert!(
            outputs.is_empty(),
            "a model that becomes known moves nothing"
        );
    }

    /// Whether a model never leaves by itself.
    pub(super) fn is_pinned(&self, id: &ModelId) -> bool {
        let state = self.state();
        let key = state.keys.get(id);
        key.is_some_and(|key| state.models[key.0 as usize].settings.is_pinned())
    }

    /// Gives the machine an input and carries out what follows.
    fn apply(&self, runtime: &Arc<Runtime>, input: ResidencyInput) {
        let actions = self.state().apply(input);
        self.act(runtime, actions);
    }

    fn act(&self, runtime: &Arc<Runtime>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Load(id) => {
                    let call = ManagementCall::Load {
                        target: CallTarget::One(id.clone()),
                        overrides: LoadOverrides::default(),
                        // A step's request loads its part.
                        reports_missing: false,
                    };
                    if let Err(error) = runtime.manage_later(call) {
                        self.load_failed(runtime, &id, error);
                    }
                }
                Action::Unload(id) => {
                    // Refused only by a stop, which unloads everything itself.
                    let call = ManagementCall::Unload(CallTarget::One(id));
                    drop(runtime.manage_later(call));
                }
                Action::Reclaim(bytes) => self.reclaim(runtime, bytes),
                Action::Admit(load) => drop(load.send(Ok(true))),
                Action::Leave(why, load) => {
                    tracing::info!("{why}");
                    drop(load.send(Ok(false)));
                }
                Action::Refuse(error, load) => {
                    tracing::warn!("{error}");
                    if let Some(load) = load {
                        drop(load.send(Err(error)));
                    }
                }
                Action::Answer(waiters, outcome) => {
                    for waiter in waiters {
                        drop(waiter.send(outcome.clone()));
                    }
                }
            }
        }
    }

    /// Gives back weights that no model uses, and says what is left of them.
    fn reclaim(&self, runtime: &Arc<Runtime>, bytes: u64) {
        let store = runtime.options.load.weights.as_ref();
        let store = store.map(|weights| &weights.store);
        let mut freed = 0;
        while freed < bytes {
            // Half of them at a time.
            match store.map_or(0, Store::relieve) {
                0 => break,
                more => freed += more,
            }
        }
        // Without progress nothing is left to give back, whatever the figures say: to ask again would never end.
        self.report_memory(runtime, freed > 0);
    }

    /// Reports weights that the store keeps for nobody, unless they cannot be given back, and what the process holds
    /// beyond what is counted.
    fn report_memory(&self, runtime: &Arc<Runtime>, counts_kept: bool) {
        let figures = self.figures();
        let stores = runtime.stores();
        let stored: u64 = stores.iter().map(|(_, stat)| stat.bytes_stored).sum();
        let kept = match counts_kept {
            true => stored.saturating_sub(figures.shared),
            false => 0,
        };
        let beyond = self.beyond(runtime, &figures);
        self.apply(runtime, ResidencyInput::Unclaimed { kept, beyond });
    }

    /// Reports what the process holds beyond what is counted. If that is more than the budget, the heap returns what it
    /// keeps for a moment: loads wait for it.
    fn report_beyond(&self, runtime: &Arc<Runtime>) {
        let figures = self.figures();
        let (kept, beyond) = (figures.kept, self.beyond(runtime, &figures));
        self.apply(runtime, ResidencyInput::Unclaimed { kept, beyond });
        if beyond > 0 && self.figures().used > figures.budget {
            hurry_giving_back();
        }
    }

    fn beyond(&self, runtime: &Arc<Runtime>, figures: &ResidencyFigures) -> u64 {
        let requests = runtime.options.load.request_memory.as_ref();
        let requests = requests.map_or(0, |budget| budget.used() as u64);
        let models = figures.held - figures.shared + figures.leaving + figures.transient;
        self.memory
            .beyond(models + requests + slack(figures.budget))
    }

    /// Answers all that wait; nothing is loaded any more.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let mut waiters = Vec::new();
        for model in &mut state.models {
            model.admission = None;
            waiters.append(&mut model.waiters);
        }
        drop(state);
        for waiter in waiters {
            drop(waiter.send(Err(stopping())));
        }
    }

    /// The models that a request may load, or has loaded, and whose last load did not fail, with their versions.
    pub(super) fn available(&self) -> BTreeMap<ModelId, Vec<ModelVersion>> {
        let state = self.state();
        let models = state.models.iter();
        models
            .filter(|model| model.loads_on_request)
            .filter(|model| !model.is_withdrawn && model.failure.is_none())
            .map(|model| (model.id.clone(), model.versions.clone()))
            .collect()
    }

    /// Sums over all models.
    fn figures(&self) -> ResidencyFigures {
        self.state().machine.figures()
    }
}

/// The answer to those that wait when a stop begins.
fn stopping() -> RuntimeError {
    let text = "Server is stopping, the model is not loaded";
    RuntimeError::new(ErrorKind::Unavailable, text)
}

/// Whether a state means that requests find the model.
const fn is_resident(state: Option<ResidencyState>) -> bool {
    matches!(state, Some(ResidencyState::Resident))
}
