//! Residency: which of the known models have instances, by request and under a memory budget.
//!
//! [`skep_placer::residency::Residency`] decides; this wing gives it its inputs and carries out what it says.
//!
//! ```text
//! requests.rs   a request for a model that is not resident waits until it is
//! loads.rs      admits loads before they begin, and reports the ends of loads and unloads
//! watch.rs      a thread: what resident models are used for, memory, what has become due
//! memory.rs     what models hold
//! ```
//!
//! *Loads.* A load runs as a [`ManagementCall`], as one that a client asks for does, so that the queue of calls keeps all
//! loads and unloads of a model in order. A load of a model that is not resident begins once the machine admits it: a
//! load that a request caused was admitted before its call was queued, any other one waits for it on its own thread.
//!
//! *Locks.* The lock here is taken last: nothing else is locked under it, and actions follow after it.

mod loads;
mod memory;
mod requests;
mod watch;

pub(super) use watch::start as watch;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, mpsc},
    time::Duration,
};

use skep_host::lock;
use skep_placer::residency::{
    DepartureReason, EvictionPolicy, LoadRefusal, ModelKey, ModelTerms, Residency,
    ResidencyFigures, ResidencyInput, ResidencyOptions, ResidencyOutput, ResidencyState,
};
use skep_store::Store;
use skep_types::{ModelName, ModelVersion};
use tokio::sync::oneshot;

use crate::{
    clock,
    error::{ErrorKind, RuntimeError},
    models::{
        management::{CallTarget, ManagementCall},
        runtime::Runtime,
        size_text::mebibytes,
    },
    repository::{LoadOverrides, ModelId},
};

/// Which models are loaded before anybody asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadPolicy {
    /// Those of the start, as far as the budget has room for them.
    #[default]
    Eager,
    /// None: the first request for a model loads it.
    Lazy,
}

/// How models come into memory and leave it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResidencySettings {
    /// Which models are loaded before anybody asks for them.
    pub load_policy: LoadPolicy,
    /// Bytes for all models together.
    pub budget: u64,
    /// Which model leaves first if another one needs room.
    pub policy: EvictionPolicy,
    /// How long an idle model stays although nothing needs its room; `None` for ever.
    pub keep_alive: Option<Duration>,
    /// How long a request waits for its model to load.
    pub max_load_wait: Duration,
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

#[derive(Debug)]
struct ControlState {
    machine: Residency,
    keys: BTreeMap<ModelId, ModelKey>,
    by_name: HashMap<ModelName, Vec<ModelKey>>,
    /// By key.
    models: Vec<KnownModel>,
    waiting: usize,
    is_closed: bool,
}

/// A model that a request may load.
#[derive(Debug)]
struct KnownModel {
    id: ModelId,
    /// The versions that would be served.
    versions: Vec<ModelVersion>,
    /// It was unloaded explicitly, or its directory is gone: requests do not load it.
    is_withdrawn: bool,
    /// A load of it was admitted and has not begun yet.
    is_admitted: bool,
    /// The machine has let it leave, and the unload has not begun yet.
    departs: bool,
    /// The load that waits on its own thread to be admitted.
    admission: Option<mpsc::SyncSender<LoadAdmission>>,
    /// Requests that wait for it.
    waiters: Vec<oneshot::Sender<LoadOutcome>>,
    /// Why its last load failed.
    failure: Option<RuntimeError>,
    /// Requests that its versions had ended when it was last looked at.
    ended: u64,
}

/// What follows from a decision, once the lock is free.
enum Action {
    Load(ModelId),
    Unload(ModelId),
    Reclaim(u64),
    Admit(mpsc::SyncSender<LoadAdmission>),
    /// Left to its first request.
    Leave(RuntimeError, mpsc::SyncSender<LoadAdmission>),
    Refuse(RuntimeError, Option<mpsc::SyncSender<LoadAdmission>>),
    Answer(Vec<oneshot::Sender<LoadOutcome>>, LoadOutcome),
}

impl ResidencyControl {
    /// Without models; `loads_at_once` may load at once.
    pub(super) fn new(settings: ResidencySettings, loads_at_once: usize) -> Self {
        Self {
            settings,
            state: Mutex::new(ControlState {
                machine: Residency::new(ResidencyOptions {
                    budget: settings.budget,
                    policy: settings.policy,
                    loads_at_once,
                    keep_alive: settings.keep_alive,
                }),
                keys: BTreeMap::new(),
                by_name: HashMap::new(),
                models: Vec::new(),
                waiting: 0,
                is_closed: false,
            }),
            memory: memory::MemoryProbe::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, ControlState> {
        lock(&self.state)
    }

    /// Makes a model known, or known again, with these versions.
    pub(super) fn know(&self, id: &ModelId, versions: Vec<ModelVersion>, terms: ModelTerms) {
        let mut state = self.state();
        let key = state.key(id);
        let model = state.model(key);
        (model.versions, model.is_withdrawn, model.failure) = (versions, false, None);
        let mut outputs = Vec::new();
        let input = ResidencyInput::Add(key, terms);
        state.machine.handle(clock::now(), input, &mut outputs);
        debug_assert!(
            outputs.is_empty(),
            "a model that becomes known moves nothing"
        );
    }

    /// The same of a model in this directory.
    pub(super) fn know_directory(&self, id: &ModelId, directory: &Path) {
        let (versions, terms) = memory::of_model(directory);
        self.know(id, versions, terms);
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
        let requests = runtime.options.load.request_memory.as_ref();
        let requests = requests.map_or(0, |budget| budget.used() as u64);
        let models = figures.held - figures.shared + figures.leaving;
        // While a load runs nobody can tell what is beyond.
        let beyond = self.memory.beyond(models + requests).unwrap_or(0);
        self.apply(runtime, ResidencyInput::Unclaimed { kept, beyond });
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
            .filter(|model| !model.is_withdrawn && model.failure.is_none())
            .map(|model| (model.id.clone(), model.versions.clone()))
            .collect()
    }

    /// Sums over all models.
    pub(super) fn figures(&self) -> ResidencyFigures {
        self.state().machine.figures()
    }
}

impl ControlState {
    /// The key of a model, which becomes one here.
    fn key(&mut self, id: &ModelId) -> ModelKey {
        if let Some(key) = self.keys.get(id) {
            return *key;
        }
        let key = ModelKey(u32::try_from(self.models.len()).unwrap_or(u32::MAX));
        self.models.push(KnownModel {
            id: id.clone(),
            versions: Vec::new(),
            is_withdrawn: false,
            is_admitted: false,
            departs: false,
            admission: None,
            waiters: Vec::new(),
            failure: None,
            ended: 0,
        });
        self.keys.insert(id.clone(), key);
        self.by_name.entry(id.name.clone()).or_default().push(key);
        key
    }

    fn model(&mut self, key: ModelKey) -> &mut KnownModel {
        &mut self.models[key.0 as usize]
    }

    /// Applies an input. Actions are for after the lock.
    fn apply(&mut self, input: ResidencyInput) -> Vec<Action> {
        let mut outputs = Vec::new();
        self.machine.handle(clock::now(), input, &mut outputs);
        self.actions(outputs)
    }

    fn actions(&mut self, outputs: Vec<ResidencyOutput>) -> Vec<Action> {
        let mut actions = Vec::new();
        for output in outputs {
            match output {
                ResidencyOutput::Load(key) => {
                    let model = self.model(key);
                    actions.push(match model.admission.take() {
                        Some(load) => Action::Admit(load),
                        None => {
                            model.is_admitted = true;
                            Action::Load(model.id.clone())
                        }
                    });
                }
                // The call that withdrew the model unloads it.
                ResidencyOutput::Unload(_, DepartureReason::Explicit) => {}
                ResidencyOutput::Unload(key, reason) => {
                    let why = self.why(reason);
                    let model = self.model(key);
                    model.departs = true;
                    tracing::info!("model `{}` leaves: {why}", model.id);
                    actions.push(Action::Unload(model.id.clone()));
                }
                ResidencyOutput::Reclaim(bytes) => actions.push(Action::Reclaim(bytes)),
                ResidencyOutput::Refuse(key, refusal) => {
                    let error = self.refusal(key, refusal);
                    let waiters = self.take_waiters(key);
                    let load = self.model(key).admission.take();
                    actions.push(Action::Answer(waiters, Err(error.clone())));
                    if let (LoadRefusal::NoRoom { .. }, Some(load)) = (refusal, &load) {
                        actions.push(Action::Leave(error, load.clone()));
                        continue;
                    }
                    if !matches!(
                        refusal,
                        LoadRefusal::BackOff { .. } | LoadRefusal::Withdrawn
                    ) {
                        actions.push(Action::Refuse(error, load));
                    }
                }
            }
        }
        actions
    }

    fn take_waiters(&mut self, key: ModelKey) -> Vec<oneshot::Sender<LoadOutcome>> {
        let waiters = std::mem::take(&mut self.model(key).waiters);
        self.waiting -= waiters.len();
        waiters
    }

    fn why(&self, reason: DepartureReason) -> String {
        match reason {
            DepartureReason::RoomFor(other) => {
                format!(
                    "model `{}` needs its room",
                    self.models[other.0 as usize].id
                )
            }
            DepartureReason::OverBudget => "models hold more than `--memory-budget`".to_owned(),
            DepartureReason::Idle => "it was idle for `--keep-alive-secs`".to_owned(),
            DepartureReason::Explicit => "it was unloaded".to_owned(),
        }
    }

    /// Why a model is not loaded, for its clients.
    fn refusal(&self, key: ModelKey, refusal: LoadRefusal) -> RuntimeError {
        let model = &self.models[key.0 as usize];
        let name = &model.id;
        match refusal {
            LoadRefusal::TooLarge {
                needed,
                budget,
                pinned: 0,
            } => RuntimeError::new(
                ErrorKind::Exhausted,
                format!(
                    "model '{name}' needs about {} of memory, and the budget for all models is {}\n  `--memory-budget` sets it",
                    mebibytes(needed),
                    mebibytes(budget)
                ),
            ),
            LoadRefusal::TooLarge {
                needed,
                budget,
                pinned,
            } => RuntimeError::new(
                ErrorKind::Exhausted,
                format!(
                    "model '{name}' needs about {} of memory, and models that never leave hold {} of the budget of {}\n  `--memory-budget` sets it",
                    mebibytes(needed),
                    mebibytes(pinned),
                    mebibytes(budget)
                ),
            ),
            LoadRefusal::NoRoom { needed, free } => RuntimeError::new(
                ErrorKind::Unavailable,
                format!(
                    "model '{name}' is not loaded at the start: it needs about {} of memory, and {} of the budget are free; its first request loads it",
                    mebibytes(needed),
                    mebibytes(free)
                ),
            ),
            // The failure itself says more than when it is tried again.
            LoadRefusal::BackOff { .. } => model.failure.clone().unwrap_or_else(|| {
                let text = format!("model '{name}' failed to load a moment ago");
                RuntimeError::new(ErrorKind::Unavailable, text)
            }),
            LoadRefusal::Withdrawn => {
                let text = format!("Request for unknown model: '{name}' is not found");
                RuntimeError::new(ErrorKind::NotFound, text)
            }
        }
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
