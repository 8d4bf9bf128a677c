//! What the lock of residency guards: the machine, the models that it numbers, and what was decided last.

use std::{
    collections::{BTreeMap, HashMap},
    sync::mpsc,
};

use skep_config::ModelResidency;
use skep_placer::residency::{
    DepartureReason, LoadRefusal, ModelKey, ModelTerms, Residency, ResidencyInput, ResidencyOutput,
};
use skep_types::{ModelName, ModelVersion, Time};
use tokio::sync::oneshot;

use super::{
    LoadAdmission, LoadOutcome, ResidencySettings,
    decisions::{DecisionKind, DecisionLog},
    live::RunReport,
    terms::KnownTerms,
};
use crate::{
    clock,
    error::{ErrorKind, RuntimeError},
    models::changes::VersionLoad,
    repository::ModelId,
    size_text::mebibytes,
};

#[derive(Debug)]
pub(super) struct ControlState {
    pub(super) machine: Residency,
    pub(super) keys: BTreeMap<ModelId, ModelKey>,
    pub(super) by_name: HashMap<ModelName, Vec<ModelKey>>,
    /// By key.
    pub(super) models: Vec<KnownModel>,
    /// Unloads that have begun, in their order.
    pub(super) departures: Vec<Departure>,
    pub(super) waiting: usize,
    pub(super) decisions: DecisionLog,
    pub(super) is_closed: bool,
}

/// An unload that has begun, and whose memory is not free yet.
#[derive(Debug)]
pub(super) struct Departure {
    pub(super) model: ModelKey,
    /// The loads whose memory is not free.
    pub(super) loads: Vec<VersionLoad>,
}

/// A model that a request may load.
#[derive(Debug)]
pub(super) struct KnownModel {
    pub(super) id: ModelId,
    /// The versions that would be served.
    pub(super) versions: Vec<ModelVersion>,
    pub(super) settings: ModelResidency,
    /// Its files came from a client, and are gone once it is.
    pub(super) is_sent: bool,
    /// Whether a request loads it if it is not resident.
    pub(super) loads_on_request: bool,
    /// It was unloaded explicitly, or its directory is gone: requests do not load it.
    pub(super) is_withdrawn: bool,
    /// A load of it was admitted and has not begun yet.
    pub(super) is_admitted: bool,
    /// The machine has let it leave, and the unload has not begun yet.
    pub(super) departs: bool,
    /// The load that waits on its own thread to be admitted.
    pub(super) admission: Option<mpsc::SyncSender<LoadAdmission>>,
    /// Requests that wait for it.
    pub(super) waiters: Vec<oneshot::Sender<LoadOutcome>>,
    /// Why its last load failed.
    pub(super) failure: Option<RuntimeError>,
    /// Requests that its versions had ended when it was last looked at, since they were loaded.
    pub(super) ended: u64,
    /// Requests that were ended by earlier loads of it.
    pub(super) ended_before: u64,
    pub(super) loads: u64,
    pub(super) rate: RecentRate,
    /// Its weights have moved to the tensor store, or were there from the beginning.
    pub(super) has_stored: bool,
    /// Its private bytes include weights: it was loaded from its own files.
    pub(super) has_private_weights: bool,
    /// How it runs, if that follows its rate.
    pub(super) run: Option<RunReport>,
    /// What a further instance took when one was last added.
    pub(super) instance_bytes: Option<u64>,
}

/// A rate over the last ten seconds or so: what came earlier fades.
#[derive(Debug, Default)]
pub(super) struct RecentRate {
    faded: f64,
    at: Time,
}

impl RecentRate {
    const MEMORY_SECONDS: f64 = 10.0;

    pub(super) fn add(&mut self, now: Time, count: u64) {
        self.faded = self.at(now) * Self::MEMORY_SECONDS + count as f64;
        self.at = now;
    }

    /// Per second.
    pub(super) fn at(&self, now: Time) -> f64 {
        let passed = now.since(self.at).as_secs_f64();
        self.faded * (-passed / Self::MEMORY_SECONDS).exp() / Self::MEMORY_SECONDS
    }
}

/// What follows from a decision, once the lock is free.
pub(super) enum Action {
    Load(ModelId),
    Unload(ModelId),
    Reclaim(u64),
    Admit(mpsc::SyncSender<LoadAdmission>),
    /// Left to its first request.
    Leave(RuntimeError, mpsc::SyncSender<LoadAdmission>),
    Refuse(RuntimeError, Option<mpsc::SyncSender<LoadAdmission>>),
    Answer(Vec<oneshot::Sender<LoadOutcome>>, LoadOutcome),
}

impl KnownModel {
    /// Takes over what its directory or its client says of it. Returns what it is expected to hold.
    pub(super) fn describe(&mut self, terms: KnownTerms, node: &ResidencySettings) -> ModelTerms {
        self.versions = terms.versions;
        (self.settings, self.is_sent) = (terms.settings, terms.is_sent);
        self.loads_on_request = !terms.is_sent && node.loads_on_request(&terms.settings);
        terms.expected
    }
}

impl ControlState {
    /// The key of a model, which becomes one here.
    pub(super) fn key(&mut self, id: &ModelId) -> ModelKey {
        if let Some(key) = self.keys.get(id) {
            return *key;
        }
        let key = model_key(self.models.len());
        self.models.push(KnownModel {
            id: id.clone(),
            versions: Vec::new(),
            settings: ModelResidency::default(),
            is_sent: false,
            loads_on_request: false,
            is_withdrawn: false,
            is_admitted: false,
            departs: false,
            admission: None,
            waiters: Vec::new(),
            failure: None,
            ended: 0,
            ended_before: 0,
            loads: 0,
            rate: RecentRate::default(),
            has_stored: false,
            has_private_weights: false,
            run: None,
            instance_bytes: None,
        });
        self.keys.insert(id.clone(), key);
        self.by_name.entry(id.name.clone()).or_default().push(key);
        key
    }

    pub(super) fn model(&mut self, key: ModelKey) -> &mut KnownModel {
        &mut self.models[key.0 as usize]
    }

    /// Applies an input. Actions are for after the lock.
    pub(super) fn apply(&mut self, input: ResidencyInput) -> Vec<Action> {
        let mut outputs = Vec::new();
        self.machine.handle(clock::now(), input, &mut outputs);
        self.actions(outputs)
    }

    pub(super) fn actions(&mut self, outputs: Vec<ResidencyOutput>) -> Vec<Action> {
        let mut actions = Vec::new();
        for output in outputs {
            match output {
                ResidencyOutput::Load(key) => {
                    let model = self.model(key);
                    model.loads += 1;
                    let (action, why) = match model.admission.take() {
                        Some(load) => (Action::Admit(load), "the start or a call asks for it"),
                        None => {
                            model.is_admitted = true;
                            (Action::Load(model.id.clone()), "a request needs it")
                        }
                    };
                    actions.push(action);
                    self.decisions.note(key, DecisionKind::Load, why.to_owned());
                }
                // The call that withdrew the model unloads it.
                ResidencyOutput::Unload(_, DepartureReason::Explicit) => {}
                ResidencyOutput::Unload(key, reason) => {
                    let why = self.why(reason);
                    let model = self.model(key);
                    model.departs = true;
                    tracing::info!("model `{}` leaves: {why}", model.id);
                    actions.push(Action::Unload(model.id.clone()));
                    let kind = match reason {
                        DepartureReason::Idle => DecisionKind::Expire,
                        _ => DecisionKind::Evict,
                    };
                    self.decisions.note(key, kind, why);
                }
                ResidencyOutput::Reclaim(bytes) => actions.push(Action::Reclaim(bytes)),
                ResidencyOutput::Refuse(key, refusal) => {
                    let error = self.refusal(key, refusal);
                    if matches!(
                        refusal,
                        LoadRefusal::TooLarge { .. } | LoadRefusal::NoRoom { .. }
                    ) {
                        let kind = DecisionKind::Refuse;
                        self.decisions.note(key, kind, error.to_string());
                    }
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

    pub(super) fn take_waiters(&mut self, key: ModelKey) -> Vec<oneshot::Sender<LoadOutcome>> {
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
            DepartureReason::Idle => {
                "it was idle for its keep-alive (`--keep-alive-secs`)".to_owned()
            }
            DepartureReason::Explicit => "it was unloaded".to_owned(),
        }
    }

    /// Notes what is known of a model; returns what the machine has to know.
    pub(super) fn know(
        &mut self,
        key: ModelKey,
        terms: KnownTerms,
        node: &ResidencySettings,
    ) -> ResidencyInput {
        let model = self.model(key);
        (model.is_withdrawn, model.failure) = (false, None);
        let expected = model.describe(terms, node);
        ResidencyInput::Add(key, expected)
    }

    /// How many models of those that never leave are named in a refusal.
    const NAMED: usize = 10;

    /// Why a model with `min_instances` is refused: the sum, and what it consists of.
    fn pinned_refusal(&self, name: &ModelId, budget: u64) -> String {
        let mut sizes: Vec<(u64, &ModelId)> = self.pinned().collect();
        sizes.sort_by(|a, b| b.cmp(a));
        let count = sizes.len();
        let named = sizes.iter().take(Self::NAMED);
        let mut list: Vec<String> = named
            .map(|(bytes, id)| format!("'{id}' {}", mebibytes(*bytes)))
            .collect();
        if count > Self::NAMED {
            list.push(format!("{} others", count - Self::NAMED));
        }
        format!(
            "model '{name}' is not loaded: the {count} models that never leave (`min_instances`) need about {} of memory together, and the \
             budget is {}: {}\n  raise `--memory-budget`, or set `min_instances` to 0 for some of them",
            mebibytes(self.machine.pinned_bytes()),
            mebibytes(budget),
            list.join(", ")
        )
    }

    /// The models that never leave, each with what it holds, shared or not.
    fn pinned(&self) -> impl Iterator<Item = (u64, &ModelId)> {
        let now = clock::now();
        self.models
            .iter()
            .enumerate()
            .filter_map(move |(key, model)| {
                let figures = self.machine.model(now, model_key(key))?;
                let bytes = figures.private_bytes + figures.shared_bytes;
                figures.is_pinned.then_some((bytes, &model.id))
            })
    }

    /// Why a model is not loaded, for its clients.
    fn refusal(&self, key: ModelKey, refusal: LoadRefusal) -> RuntimeError {
        let model = &self.models[key.0 as usize];
        let name = &model.id;
        match refusal {
            LoadRefusal::TooLarge { budget, .. } if model.settings.is_pinned() => {
                RuntimeError::new(ErrorKind::Exhausted, self.pinned_refusal(name, budget))
            }
            LoadRefusal::TooLarge {
                needed,
                budget,
                pinned,
                beyond,
            } => {
                let budget = mebibytes(budget);
                let [pinned_text, beyond_text] = [pinned, beyond].map(mebibytes);
                let room = match (pinned, beyond) {
                    (0, 0) => format!("the budget for all models is {budget}"),
                    (_, 0) => format!(
                        "models that never leave hold {pinned_text} of the budget of {budget}"
                    ),
                    (0, _) => {
                        format!("the server itself holds {beyond_text} of the budget of {budget}")
                    }
                    _ => format!(
                        "models that never leave hold {pinned_text} of the budget of {budget}, and the server itself {beyond_text}"
                    ),
                };
                let needed = mebibytes(needed);
                RuntimeError::new(
                    ErrorKind::Exhausted,
                    format!(
                        "model '{name}' needs about {needed} of memory, and {room}\n  `--memory-budget` sets it"
                    ),
                )
            }
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

/// The key of the model at this place.
pub(super) fn model_key(place: usize) -> ModelKey {
    ModelKey(u32::try_from(place).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let mut rate = RecentRate::default();
        let at = |millis| Time::ZERO + Duration::from_millis(millis);
        for tick in 1..=600 {
            rate.add(at(tick * 100), 5);
        }
        let now = rate.at(at(60_000));
        assert!((now - 50.0).abs() < 1.0, "{now}");
        let later = rate.at(at(70_000));
        assert!((later - now / std::f64::consts::E).abs() < 1e-9, "{later}");
    }
}
