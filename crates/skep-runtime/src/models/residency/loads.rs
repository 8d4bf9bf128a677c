//! Admits loads before they begin, and reports the ends of loads and unloads to the machine.

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    time::Instant,
};

use skep_placer::residency::ResidencyInput;

use super::{
    Action, DecisionKind, Departure, KnownTerms, LoadOutcome, ResidencyControl, is_resident,
    memory, stopping,
};
use crate::{
    clock,
    error::RuntimeError,
    models::{changes::VersionLoad, runtime::Runtime},
    repository::{LoadOverrides, ModelId},
};

/// A load that may begin.
struct AdmittedLoad {
    began: Instant,
    measure: memory::LoadMeasure,
    cause: LoadCause,
}

/// Whether a load may begin.
enum LoadTurn {
    Now(AdmittedLoad),
    /// It is not the machine's business: the model is not there, or it is about to leave, and its unload comes after this
    /// load.
    Unasked,
    /// There is no room at the start; the model's first request loads it.
    Later,
}

/// Why a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoadCause {
    /// A request needs it.
    Request,
    /// The start, a client's load, or a poll wants it.
    Call,
    /// The same, of a model that is resident: the load replaces it.
    Reload,
}

/// A load in progress. Dropping it with the load reports a failure: the load panicked.
struct UnreportedLoad<'a> {
    control: &'a ResidencyControl,
    runtime: &'a Arc<Runtime>,
    id: &'a ModelId,
    load: Option<AdmittedLoad>,
}

impl Drop for UnreportedLoad<'_> {
    fn drop(&mut self) {
        if let Some(load) = self.load.take() {
            let error = RuntimeError::internal("the load panicked, see the server's log");
            self.control
                .ended(self.runtime, self.id, &load, &Err(error));
        }
    }
}

impl ResidencyControl {
    /// Waits until a load may begin.
    fn admit(
        &self,
        runtime: &Arc<Runtime>,
        id: &ModelId,
        overrides: &LoadOverrides,
    ) -> Result<LoadTurn, RuntimeError> {
        if !self.is_admitted(id) && !self.look_again(runtime, id, overrides) {
            return Ok(LoadTurn::Unasked);
        }
        let (grant, granted) = mpsc::sync_channel(1);
        let (cause, actions) = {
            let mut state = self.state();
            if state.is_closed {
                return Err(stopping());
            }
            let key = state.key(id);
            let current = state.machine.state(key);
            if std::mem::take(&mut state.model(key).is_admitted) {
                (LoadCause::Request, None)
            } else if state.model(key).departs {
                return Ok(LoadTurn::Unasked);
            } else if is_resident(current) {
                (LoadCause::Reload, None)
            } else {
                state.model(key).admission = Some(grant);
                let evicts = runtime.started.load(Ordering::Acquire);
                let load = ResidencyInput::Load { model: key, evicts };
                (LoadCause::Call, Some(state.apply(load)))
            }
        };
        if let Some(actions) = actions {
            self.act(runtime, actions);
            if !granted.recv().unwrap_or_else(|_| Err(stopping()))? {
                return Ok(LoadTurn::Later);
            }
        }
        Ok(LoadTurn::Now(AdmittedLoad {
            began: Instant::now(),
            measure: self.memory.begin(),
            cause,
        }))
    }

    /// Carries out a load as soon as it is admitted, and reports its end.
    pub(in crate::models) fn load(
        &self,
        runtime: &Arc<Runtime>,
        id: &ModelId,
        overrides: &LoadOverrides,
    ) -> LoadOutcome {
        let load = match self.admit(runtime, id, overrides)? {
            LoadTurn::Now(load) => load,
            LoadTurn::Unasked => return runtime.try_load(id, overrides, true),
            LoadTurn::Later => return Ok(()),
        };
        self.tell_devices(runtime, id);
        // The node is as ready without a model that a request loads.
        let is_wanted = load.cause != LoadCause::Request;
        let mut unreported = UnreportedLoad {
            control: self,
            runtime,
            id,
            load: Some(load),
        };
        let outcome = runtime.try_load(id, overrides, is_wanted);
        if let Some(load) = unreported.load.take() {
            self.ended(runtime, id, &load, &outcome);
        }
        outcome
    }

    /// Whether a load that a request caused was admitted and has not begun yet.
    fn is_admitted(&self, id: &ModelId) -> bool {
        let state = self.state();
        let key = state.keys.get(id);
        key.is_some_and(|key| state.models[key.0 as usize].is_admitted)
    }

    /// Before a load that a call asks for: what the model is now. Sizes that an earlier load measured stay. Returns
    /// whether the model is there; the load says what is missing.
    fn look_again(&self, runtime: &Arc<Runtime>, id: &ModelId, overrides: &LoadOverrides) -> bool {
        if !overrides.files.is_empty() {
            self.know(id, KnownTerms::of_sent(overrides));
            return true;
        }
        let Ok(directory) = runtime.options.repository.directory(id) else {
            return false;
        };
        let terms = runtime.terms_of(id, &directory);
        let mut state = self.state();
        let known = state.keys.get(id).copied();
        match known.filter(|key| !state.models[key.0 as usize].is_withdrawn) {
            Some(key) => {
                let expected = state.model(key).describe(terms, &self.settings);
                drop(state);
                self.apply(runtime, ResidencyInput::Pin(key, expected.is_pinned));
            }
            None => {
                drop(state);
                self.know(id, terms);
            }
        }
        true
    }

    /// Reports the end of an admitted load. A load that failed for some versions and loaded others has loaded the model.
    fn ended(
        &self,
        runtime: &Arc<Runtime>,
        id: &ModelId,
        load: &AdmittedLoad,
        outcome: &LoadOutcome,
    ) {
        let private = self.memory.end(&load.measure);
        if runtime.serving(id).is_empty() {
            let error = outcome.clone().err();
            let without_version = || RuntimeError::internal("the load ended without a version");
            self.load_failed(runtime, id, error.unwrap_or_else(without_version));
            return;
        }
        let key = self.state().key(id);
        let (size, load_bytes) = memory::measured(runtime, id, private);
        let has_stored = !size.tensors.is_empty();
        let input = match load.cause {
            LoadCause::Reload => ResidencyInput::Measured(key, size),
            LoadCause::Request | LoadCause::Call => ResidencyInput::Loaded {
                model: key,
                size,
                load_bytes,
                took: load.began.elapsed(),
            },
        };
        // A client's load may have brought another configuration than the repository's.
        let settings = runtime
            .serving(id)
            .values()
            .next_back()
            .map(|loaded| *loaded.config().residency());
        let actions = {
            let mut state = self.state();
            let waiters = state.take_waiters(key);
            let model = state.model(key);
            model.settings = settings.unwrap_or_default();
            let is_pinned = model.is_sent || model.settings.is_pinned();
            (model.failure, model.has_stored) = (None, has_stored);
            model.run = None;
            model.has_private_weights = load_bytes > 0;
            if load.cause != LoadCause::Reload {
                model.ended_before += std::mem::take(&mut model.ended);
            }
            let mut actions = vec![Action::Answer(waiters, Ok(()))];
            actions.extend(state.apply(input));
            actions.extend(state.apply(ResidencyInput::Pin(key, is_pinned)));
            actions
        };
        self.tell_devices(runtime, id);
        self.act(runtime, actions);
    }

    /// Tells the node's devices what a model takes, as far as it is known.
    pub(super) fn tell_devices(&self, runtime: &Arc<Runtime>, id: &ModelId) {
        let Some(devices) = &runtime.options.load.devices else {
            return;
        };
        let serving = runtime.serving(id);
        let instances = serving
            .values()
            .map(|loaded| loaded.responder.active_instances());
        let instances: u32 = instances.sum();
        let known = {
            let state = self.state();
            state.keys.get(id).and_then(|key| {
                let figures = state.machine.model(clock::now(), *key)?;
                let bytes = figures.private_bytes.saturating_add(figures.shared_bytes);
                Some((bytes, state.models[key.0 as usize].instance_bytes))
            })
        };
        if let Some((bytes, each)) = known {
            devices.sized(id, bytes, instances, each);
        }
    }

    /// Reports that a load failed, or was never begun.
    pub(super) fn load_failed(&self, runtime: &Arc<Runtime>, id: &ModelId, error: RuntimeError) {
        let actions = {
            let mut state = self.state();
            let key = state.key(id);
            let waiters = state.take_waiters(key);
            let model = state.model(key);
            model.is_admitted = false;
            model.failure = Some(error.clone());
            let why = error.to_string();
            state.decisions.note(key, DecisionKind::Fail, why);
            let mut actions = vec![Action::Answer(waiters, Err(error))];
            actions.extend(state.apply(ResidencyInput::Failed(key)));
            actions
        };
        self.act(runtime, actions);
    }

    /// Whether the unload that begins now was decided here. Otherwise a call wants it, and requests load the model no more.
    /// `loads` are what it takes away.
    pub(in crate::models) fn unload_begins(
        &self,
        runtime: &Arc<Runtime>,
        id: &ModelId,
        loads: Vec<VersionLoad>,
    ) -> bool {
        let (comes_back, actions) = {
            let mut state = self.state();
            let Some(key) = state.keys.get(id).copied() else {
                return false;
            };
            let comes_back = std::mem::take(&mut state.model(key).departs);
            let mut actions = Vec::new();
            if !comes_back {
                state.model(key).is_withdrawn = true;
                actions = state.apply(ResidencyInput::Remove(key));
            }
            let begun = state.departures.iter().filter(|one| one.model == key);
            if begun.count() < state.machine.departures(key) {
                match loads.is_empty() {
                    true => actions.extend(state.apply(ResidencyInput::Unloaded(key))),
                    false => state.departures.push(Departure { model: key, loads }),
                }
            }
            (comes_back, actions)
        };
        self.act(runtime, actions);
        comes_back
    }

    /// Reports that the memory of a load is free. A model that left is gone with the last of its loads.
    pub(in crate::models) fn load_gone(
        &self,
        runtime: &Arc<Runtime>,
        id: &ModelId,
        load: VersionLoad,
    ) {
        // Without the lock, because it takes others.
        let is_gone = runtime.is_gone(id);
        let actions = {
            let mut state = self.state();
            let Some(key) = state.keys.get(id).copied() else {
                return;
            };
            let mut own = state
                .departures
                .iter_mut()
                .enumerate()
                .filter(|(_, one)| one.model == key)
                .peekable();
            let is_leaving = own.peek().is_some();
            let found = own.find_map(|(place, one)| {
                let position = one.loads.iter().position(|other| *other == load)?;
                one.loads.swap_remove(position);
                Some((place, one.loads.is_empty()))
            });
            match found {
                Some((_, false)) => return,
                Some((place, true)) => {
                    state.departures.remove(place);
                }
                // It may have left without a departure, if all that it had failed.
                None if is_leaving || !is_gone => return,
                None => {}
            }
            state.apply(ResidencyInput::Unloaded(key))
        };
        self.act(runtime, actions);
    }
}
