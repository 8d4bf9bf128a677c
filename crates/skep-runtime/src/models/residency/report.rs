//! What residency tells people: models, states, sizes, and the last decisions with their reasons.

use std::{collections::HashMap, sync::Arc, time::Duration};

use skep_placer::residency::{ModelFigures, ModelKey, ResidencyFigures, ResidencyState};
use skep_store::Digest;
use skep_types::{ModelName, ModelVersion, Time};

use super::{
    DecisionKind, ResidencySettings, RunReport,
    state::{ControlState, KnownModel, model_key},
};
use crate::{clock, models::runtime::Runtime, repository::ModelId, serving::DeviceReport};

/// Residency at one moment.
#[derive(Debug, Clone)]
pub struct ResidencyReport {
    /// The node's settings.
    pub settings: ResidencySettings,
    /// Sums over all models.
    pub sums: ResidencySums,
    /// The node's devices, with what is taken of them; empty if it has none.
    pub devices: Vec<DeviceReport>,
    /// The chosen models, by name.
    pub models: Vec<ModelReport>,
    /// The last decisions, the latest first.
    pub decisions: Vec<DecisionReport>,
}

/// Sums over all models.
#[derive(Debug, Clone)]
pub struct ResidencySums {
    /// What all models may hold together, if there is a limit.
    pub budget: Option<u64>,
    /// Bytes.
    pub figures: ResidencyFigures,
    /// How many models are in each state.
    pub states: Vec<(ResidencyState, usize)>,
    /// The decisions so far, of each kind.
    pub counts: Vec<(DecisionKind, u64)>,
}

/// One model.
#[derive(Debug, Clone)]
pub struct ModelReport {
    /// Its name.
    pub name: ModelName,
    /// The path of its repository, if names need not be unique.
    pub namespace: Option<Arc<str>>,
    /// The versions that it serves or would serve.
    pub versions: Vec<ModelVersion>,
    /// Its state, sizes and use.
    pub figures: ModelFigures,
    /// The tensors that it uses of the store, each with its bytes, if they were asked for and it is resident.
    pub tensors: Vec<(Digest, u64)>,
    /// Active instances of all its versions, while it is resident.
    pub instances: u32,
    /// Its instances on each device that has some, by the device's name.
    pub devices: Vec<(String, u32)>,
    /// Instances that it has at least and at most while it is resident; `None` if their number is fixed.
    pub instance_bounds: Option<(u32, u32)>,
    /// How it runs and why, if that follows its rate and it is resident.
    pub run: Option<RunReport>,
    /// Requests that wait for it to load.
    pub waiting: usize,
    /// Requests that wait for an instance.
    pub pending: usize,
    /// Requests that it has answered, since it is known.
    pub requests: u64,
    /// Requests a second, over the last ten seconds or so.
    pub rate: f64,
    /// How often it was loaded.
    pub loads: u64,
    /// Why its last load failed.
    pub failure: Option<String>,
    /// The last decision about it, if it is among the last ones of the node.
    pub decision: Option<DecisionReport>,
}

/// A decision.
#[derive(Debug, Clone)]
pub struct DecisionReport {
    /// The model.
    pub name: ModelName,
    /// How long ago.
    pub ago: Duration,
    /// What was decided.
    pub kind: DecisionKind,
    /// Why.
    pub why: String,
}

impl Runtime {
    /// Residency now. Lists the models in these states, or all models if `states` is empty; resident ones with their
    /// tensors if `with_tensors`.
    #[must_use]
    pub fn residency(&self, states: &[ResidencyState], with_tensors: bool) -> ResidencyReport {
        let control = &self.residency;
        let devices = self.device_reports();
        let mut report = {
            let state = control.state();
            ResidencyReport {
                settings: control.settings,
                sums: state.sums(control.settings.budget),
                devices,
                models: state.reports(states),
                decisions: state.decision_reports(),
            }
        };
        // Not under the lock: instances have their own.
        for model in &mut report.models {
            if model.figures.state == ResidencyState::Resident {
                self.add_instances(model, with_tensors);
            }
        }
        report.models.sort_by(|a, b| {
            let by_name = a.name.cmp(&b.name);
            by_name.then_with(|| a.namespace.cmp(&b.namespace))
        });
        report
    }

    /// Sums over all models: bytes, models in each state, decisions of each kind.
    #[must_use]
    pub fn residency_sums(&self) -> ResidencySums {
        let budget = self.residency.settings.budget;
        self.residency.state().sums(budget)
    }

    /// The node's devices, with what is taken of them; empty if it has none.
    #[must_use]
    pub fn device_reports(&self) -> Vec<DeviceReport> {
        let devices = self.options.load.devices.as_ref();
        devices.map_or_else(Vec::new, |devices| devices.report())
    }

    fn add_instances(&self, model: &mut ModelReport, with_tensors: bool) {
        let id = ModelId {
            namespace: model.namespace.clone(),
            name: model.name.clone(),
        };
        let serving = self.serving(&id);
        for loaded in serving.values() {
            model.instances += loaded.responder.active_instances();
            model.pending += loaded.pending();
            for (device, count) in loaded.responder.devices() {
                match model.devices.iter_mut().find(|(name, _)| *name == device) {
                    Some((_, sum)) => *sum += count,
                    None => model.devices.push((device, count)),
                }
            }
            if with_tensors {
                model.tensors.extend(loaded.responder.stored_tensors());
            }
        }
        // Versions share some.
        model.tensors.sort_unstable_by_key(|(digest, _)| digest.0);
        model.tensors.dedup();
        if !serving.is_empty() {
            model.versions = serving.keys().copied().collect();
        }
    }
}

impl ControlState {
    fn sums(&self, budget: Option<u64>) -> ResidencySums {
        let kinds = DecisionKind::ALL.into_iter();
        ResidencySums {
            budget,
            figures: self.machine.figures(),
            states: self.machine.state_counts(),
            counts: kinds
                .map(|kind| (kind, self.decisions.count(kind)))
                .collect(),
        }
    }

    fn decision_reports(&self) -> Vec<DecisionReport> {
        let now = clock::now();
        let report = |decision: &super::decisions::Decision| DecisionReport {
            name: self.models[decision.model.0 as usize].id.name.clone(),
            ago: now.since(decision.at),
            kind: decision.kind,
            why: decision.why.clone(),
        };
        self.decisions.last().map(report).collect()
    }

    fn reports(&self, states: &[ResidencyState]) -> Vec<ModelReport> {
        let now = clock::now();
        let mut last: HashMap<ModelKey, DecisionReport> = HashMap::new();
        let keys = self.decisions.last().map(|decision| decision.model);
        for (key, report) in keys.zip(self.decision_reports()) {
            last.entry(key).or_insert(report);
        }
        let mut reports = Vec::new();
        for (place, model) in self.models.iter().enumerate() {
            let key = model_key(place);
            let Some(figures) = self.machine.model(now, key) else {
                continue;
            };
            if states.is_empty() || states.contains(&figures.state) {
                reports.push(model.report(now, figures, last.remove(&key)));
            }
        }
        reports
    }
}

impl KnownModel {
    fn report(
        &self,
        now: Time,
        figures: ModelFigures,
        decision: Option<DecisionReport>,
    ) -> ModelReport {
        ModelReport {
            name: self.id.name.clone(),
            namespace: self.id.namespace.clone(),
            versions: self.versions.clone(),
            figures,
            tensors: Vec::new(),
            instances: 0,
            devices: Vec::new(),
            instance_bounds: self.settings.scales().then(|| self.settings.bounds(1)),
            run: match figures.state {
                ResidencyState::Resident => self.run.clone(),
                _ => None,
            },
            waiting: self.waiters.len(),
            pending: 0,
            requests: self.ended_before + self.ended,
            rate: self.rate.at(now),
            loads: self.loads,
            failure: self.failure.as_ref().map(ToString::to_string),
            decision,
        }
    }
}
