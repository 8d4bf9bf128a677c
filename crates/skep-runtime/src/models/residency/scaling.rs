//! The number of instances of resident models that have `max_instances`: watched here, changed by a management call.
//!
//! More instances have to have room in the budget and, if they compute on the CPU, in the cores. No model leaves for
//! them.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use skep_host::lock;
use skep_placer::{
    residency::{ModelKey, ResidencyInput},
    scaling::{InstanceNeed, InstanceScaler, LoadSample},
};
use skep_types::{ModelVersion, Time};

use super::{
    DecisionKind, ResidencyControl,
    live::{LiveWatch, RunReport},
};
use crate::{
    clock,
    error::RuntimeError,
    models::{management::ManagementCall, runtime::Runtime},
    repository::ModelId,
    serving::{LoadedVersion, cpu_devices::INSTANCE_BYTES, responder::RunShape},
};

/// The process counts as busy when it uses this part of the cores: more instances would only take time from each other.
const BUSY_CORES: f64 = 0.95;

/// How long a change of instances may take before it is asked for again.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Watches the models that scale.
#[derive(Debug, Default)]
pub(super) struct ModelScalers {
    models: HashMap<(ModelKey, ModelVersion), ModelScaler>,
    /// The CPU time of the process and its workers at the last look.
    cpu: Option<(Instant, Duration)>,
}

#[derive(Debug, Default)]
struct ModelScaler {
    scaler: InstanceScaler,
    live: LiveWatch,
    /// The number that was asked for, and when.
    asked: Option<(u32, Time)>,
    /// What stood in the way of more instances at the last look.
    obstacle: Option<&'static str>,
}

/// A change of instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::models) struct ScaleOrder {
    pub(in crate::models) id: ModelId,
    pub(super) version: ModelVersion,
    pub(super) shape: RunShape,
}

impl ModelScalers {
    /// Looks at all resident models that scale, and orders what they need.
    pub(super) fn look(&mut self, runtime: &Arc<Runtime>) {
        let control = &runtime.residency;
        let cores_are_busy = self.cores_are_busy(runtime);
        let scaling: Vec<(ModelKey, ModelId)> = {
            let state = control.state();
            let keys = state.machine.resident();
            let models = keys.map(|key| (key, &state.models[key.0 as usize]));
            models
                .filter(|(_, model)| model.settings.is_watched())
                .map(|(key, model)| (key, model.id.clone()))
                .collect()
        };
        let active = self.models.values().filter(|model| model.live.is_active);
        let active = active.count();
        let mut seen = Vec::new();
        for (key, id) in scaling {
            for (version, loaded) in runtime.serving(&id) {
                seen.push((key, version));
                let scaler = self.models.entry((key, version)).or_default();
                let place = ScalePlace {
                    runtime,
                    key,
                    id: &id,
                    cores_are_busy,
                };
                match &loaded.profile {
                    Some(profile) => {
                        let others = active - usize::from(scaler.live.is_active);
                        scaler
                            .live
                            .look(&place, version, &loaded, profile, others + 1);
                    }
                    None if loaded.config().residency().scales() => {
                        scaler.look(&place, version, &loaded);
                    }
                    // It was to have a live configuration, and has no profile.
                    None => {}
                }
            }
        }
        self.models.retain(|key, _| seen.contains(key));
    }

    /// Whether this process and its workers have used nearly all of the cores since the last look.
    fn cores_are_busy(&mut self, runtime: &Runtime) -> bool {
        let used = skep_host::process_cpu_time() + skep_sandbox::worker_cpu_time();
        let now = (Instant::now(), used);
        let Some((at, used)) = self.cpu.replace(now) else {
            return false;
        };
        let cores = runtime.options.load.cores.get() as f64;
        let passed = now.0.duration_since(at).as_secs_f64() * cores;
        now.1.saturating_sub(used).as_secs_f64() > BUSY_CORES * passed
    }
}

/// Where a model is looked at.
pub(super) struct ScalePlace<'a> {
    pub(super) runtime: &'a Arc<Runtime>,
    key: ModelKey,
    pub(super) id: &'a ModelId,
    cores_are_busy: bool,
}

impl ModelScaler {
    fn look(&mut self, place: &ScalePlace<'_>, version: ModelVersion, loaded: &LoadedVersion) {
        let now = clock::now();
        let instances = loaded.responder.active_instances();
        if self.is_waiting(now, instances) {
            return;
        }
        let statistics = loaded.responder.statistics();
        let sample = LoadSample {
            ended: statistics.ended().0,
            waiting: loaded.pending() as u64,
            busy: statistics.busy(),
        };
        let (least, mut most) = loaded.config().residency().bounds(instances);
        if let Some(threads) = loaded.responder.cpu_threads() {
            // More than the cores can run at once would wait for each other.
            let fit = place.runtime.options.load.cores.get() / threads.get();
            most = most.min(u32::try_from(fit).unwrap_or(u32::MAX)).max(least);
        }
        let slack = slack(loaded);
        let bounds = (least, most);
        let Some(need) = self.scaler.observe(now, sample, instances, bounds, slack) else {
            return;
        };
        let obstacle = match need.instances > instances {
            true => place.obstacle(loaded, need.instances - instances),
            false => None,
        };
        if let Some(what) = obstacle {
            if self.obstacle != obstacle {
                let kind = DecisionKind::Scale;
                place.note(
                    kind,
                    &format!("{}, and has {instances}: {what}", needs(need)),
                );
            }
            self.obstacle = obstacle;
            return;
        }
        self.obstacle = None;
        if need.instances != instances {
            let kind = DecisionKind::Scale;
            place.note(kind, &format!("{} instead of {instances}", needs(need)));
            let order = ScaleOrder {
                id: place.id.clone(),
                version,
                shape: RunShape::of(need.instances),
            };
            self.asked = Some((need.instances, now));
            // Refused only by a stop.
            drop(place.runtime.manage_later(ManagementCall::Scale(order)));
        }
    }

    /// Whether a change that was asked for has not happened yet.
    fn is_waiting(&mut self, now: Time, instances: u32) -> bool {
        match self.asked {
            Some((asked, at)) if asked != instances && now.since(at) < ANSWER_TIME => true,
            _ => {
                self.asked = None;
                false
            }
        }
    }
}

fn needs(need: InstanceNeed) -> String {
    format!(
        "its load keeps {:.2} instances busy: it needs {}",
        need.offered, need.instances
    )
}

/// What the latency objective leaves beside an execution of one inference.
fn slack(loaded: &LoadedVersion) -> Option<Duration> {
    let policy = loaded.policy();
    let objective = policy.objective?;
    let single = policy.latencies.iter().find(|(size, _)| *size == 1);
    Some(objective.saturating_sub(single.map_or(Duration::ZERO, |(_, took)| *took)))
}

impl ScalePlace<'_> {
    /// What stands in the way of so many more instances.
    fn obstacle(&self, loaded: &LoadedVersion, more: u32) -> Option<&'static str> {
        if self.cores_are_busy {
            return Some("the cores are busy");
        }
        if !self.has_device(loaded, more) {
            return Some("no device has memory for more");
        }
        (!self.has_budget(more)).then_some("`--memory-budget` has no room for more")
    }

    /// Whether the budget has room for so many more instances.
    pub(super) fn has_budget(&self, more: u32) -> bool {
        let state = self.runtime.residency.state();
        let each = state.models[self.key.0 as usize].instance_bytes;
        let each = each.unwrap_or(INSTANCE_BYTES);
        let figures = state.machine.figures();
        let needed = each.saturating_mul(u64::from(more));
        figures.used.saturating_add(needed) <= figures.budget
    }

    /// Whether so many more instances fit on the devices, if they are packed onto some.
    fn has_device(&self, loaded: &LoadedVersion, more: u32) -> bool {
        let devices = self.runtime.options.load.devices.as_ref();
        let Some(devices) = devices.filter(|_| !loaded.responder.devices().is_empty()) else {
            return true;
        };
        let threads = loaded.responder.cpu_threads().map_or(0, NonZeroUsize::get);
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        let more = usize::try_from(more).unwrap_or(usize::MAX);
        devices.check(self.id, more, threads).is_ok()
    }

    pub(super) fn note(&self, kind: DecisionKind, why: &str) {
        let changes = match kind {
            DecisionKind::Scale => "scales",
            _ => "runs otherwise",
        };
        tracing::info!("model `{}` {changes}: {why}", self.id);
        let mut state = self.runtime.residency.state();
        state.decisions.note(self.key, kind, why.to_owned());
    }

    /// Shows how a model runs, and why.
    pub(super) fn show(&self, run: RunReport) {
        self.runtime.residency.state().model(self.key).run = Some(run);
    }
}

impl Runtime {
    /// Changes the number of a version's instances. Blocks until new ones are ready.
    pub(in crate::models) fn scale_now(
        self: &Arc<Self>,
        order: &ScaleOrder,
    ) -> Result<(), RuntimeError> {
        let ScaleOrder { id, version, shape } = order;
        let instances = shape.instances;
        let Some(turn) = self.with_record(id, |record| Arc::clone(&record.turn)) else {
            return Ok(());
        };
        let _turn = lock(&turn);
        // It may have left meanwhile.
        let Some(loaded) = self.serving(id).remove(version) else {
            return Ok(());
        };
        let before = loaded.responder.active_instances();
        let control = &self.residency;
        let measure = control.memory.begin();
        let directory = loaded.origin.source.directory();
        let outcome = loaded.responder.scale(loaded.config(), directory, *shape);
        let taken = control.memory.end(&measure);
        match &outcome {
            Ok(()) => {
                tracing::info!("model `{id}` version {version} has {shape}");
                control.scaled(self, id, before, instances, taken);
            }
            Err(error) => tracing::error!(
                "model `{id}` version {version} keeps {before} instances, {shape} were needed: {}",
                error.for_log()
            ),
        }
        outcome
    }
}

impl ResidencyControl {
    /// Notes what the instances of a model hold now.
    fn scaled(
        &self,
        runtime: &Arc<Runtime>,
        id: &ModelId,
        before: u32,
        now: u32,
        taken: Option<u64>,
    ) {
        let input = {
            let mut state = self.state();
            let key = state.key(id);
            let more = now.saturating_sub(before);
            let model = state.model(key);
            if let Some(taken) = taken.filter(|_| more > 0) {
                model.instance_bytes = Some(taken / u64::from(more));
            }
            let each = model.instance_bytes.unwrap_or(INSTANCE_BYTES);
            let held = state.machine.model(clock::now(), key);
            let held = held.map_or(0, |figures| figures.private_bytes);
            let grown = held.saturating_add(each.saturating_mul(u64::from(more)));
            let fewer = u64::from(before.saturating_sub(now));
            let private_bytes = grown.saturating_sub(each.saturating_mul(fewer));
            ResidencyInput::Resized {
                model: key,
                private_bytes,
            }
        };
        self.apply(runtime, input);
        self.tell_devices(runtime, id);
    }
}
