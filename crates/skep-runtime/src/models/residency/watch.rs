//! A thread that tells the machine what resident models are used for and what memory there is, and what has become due.

use std::{
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use skep_placer::{
    keep_alive::KeepAlive,
    residency::{ModelKey, ResidencyInput},
};
use skep_types::Time;

use super::{ResidencyControl, memory, scaling::ModelScalers};
use crate::{
    clock,
    error::RuntimeError,
    models::{runtime::Runtime, stop_signal::StopSignal},
    repository::ModelId,
};

/// The time between two looks: a model that has just become idle may leave a tenth of a second later.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks at the tensor store, and at a node whose models all stay, are ten times as rare.
const SLOW_LOOKS: u32 = 10;

/// Looks at the number of instances come twice a second.
const LOOKS_AT_INSTANCES: u32 = 5;

/// Starts the thread, which ends when a stop begins.
pub(in crate::models) fn start(runtime: &Arc<Runtime>) -> Result<(), RuntimeError> {
    let stop = Arc::clone(&runtime.stop_signal);
    let runtime = Arc::downgrade(runtime);
    thread::Builder::new()
        .name("residency".to_owned())
        .spawn(move || watch(&runtime, &stop))
        .map(drop)
        .map_err(|e| RuntimeError::internal(format!("cannot start the residency thread: {e}")))
}

fn watch(runtime: &Weak<Runtime>, stop: &StopSignal) {
    let mut looks = 0_u32;
    let mut scalers = ModelScalers::default();
    while !stop.wait(INTERVAL) {
        let Some(runtime) = runtime.upgrade() else {
            return;
        };
        let control = &runtime.residency;
        looks += 1;
        let is_slow_look = looks.is_multiple_of(SLOW_LOOKS);
        let has_budget = control.settings.budget.is_some();
        // Where no model leaves by itself, only people want to know.
        if has_budget || control.settings.keep_alive != KeepAlive::Forever || is_slow_look {
            control.look_at_uses(&runtime);
            control.look_at_weights(&runtime);
        }
        match (has_budget, is_slow_look) {
            (true, true) => control.report_memory(&runtime, true),
            (true, false) => control.report_beyond(&runtime),
            (false, _) => {}
        }
        if looks.is_multiple_of(LOOKS_AT_INSTANCES) {
            scalers.look(&runtime);
        }
        let actions = {
            let mut state = control.state();
            let mut outputs = Vec::new();
            state.machine.handle_timeout(clock::now(), &mut outputs);
            state.actions(outputs)
        };
        control.act(&runtime, actions);
    }
}

impl ResidencyControl {
    /// Reports weights that have moved to the tensor store after their model was loaded.
    fn look_at_weights(&self, runtime: &Arc<Runtime>) {
        let private: Vec<(ModelKey, ModelId, u64, bool)> = {
            let (state, now) = (self.state(), clock::now());
            let keys = state.machine.resident();
            keys.filter_map(|key| {
                let model = &state.models[key.0 as usize];
                let figures = state.machine.model(now, key)?;
                let were_private = model.has_private_weights;
                let (id, private) = (model.id.clone(), figures.private_bytes);
                (!model.has_stored).then_some((key, id, private, were_private))
            })
            .collect()
        };
        for (key, id, private_bytes, were_private) in private {
            if let Some(size) = memory::moved(runtime, &id, private_bytes, were_private) {
                self.state().model(key).has_stored = true;
                self.apply(runtime, ResidencyInput::Measured(key, size));
            }
        }
    }

    /// Reports the requests that resident models have had since the last look.
    fn look_at_uses(&self, runtime: &Arc<Runtime>) {
        let resident: Vec<(ModelKey, ModelId, u64)> = {
            let state = self.state();
            let keys = state.machine.resident();
            keys.map(|key| {
                let model = &state.models[key.0 as usize];
                (key, model.id.clone(), model.ended)
            })
            .collect()
        };
        for (key, id, before) in resident {
            let (mut ended, mut pending) = (0, 0);
            let mut last: Option<Time> = None;
            for loaded in runtime.serving(&id).values() {
                let (count, at) = loaded.responder.statistics().ended();
                ended += count;
                last = last.max(at);
                pending += loaded.pending();
            }
            let requests = match ended.checked_sub(before) {
                Some(requests) => requests,
                // A reload has begun to count again.
                None => {
                    self.state().model(key).ended_before += before;
                    ended
                }
            };
            if requests == 0 && pending == 0 {
                continue;
            }
            let used = ResidencyInput::Used {
                model: key,
                requests,
                last: last.unwrap_or_else(clock::now),
                is_busy: pending > 0,
            };
            let actions = {
                let mut state = self.state();
                let model = state.model(key);
                model.ended = ended;
                model.rate.add(clock::now(), requests);
                state.apply(used)
            };
            self.act(runtime, actions);
        }
    }
}
