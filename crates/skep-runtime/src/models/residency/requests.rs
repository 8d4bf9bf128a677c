//! A request for a model that is not resident waits until it is.

use std::{sync::Arc, time::Duration};

use skep_placer::residency::{ModelKey, ResidencyInput};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{LoadOutcome, MAX_WAITING, ResidencyControl, is_resident, stopping};
use crate::{
    error::{ErrorKind, RuntimeError},
    models::runtime::Runtime,
    serving::LoadedVersion,
};

impl Runtime {
    /// [`Self::resolve`], which loads a model that is known and not resident. All requests that wait for a load share
    /// it. Dropping the future gives up waiting, and so does the request's own `timeout`.
    ///
    /// # Errors
    /// As [`Self::resolve`]; why the load failed; [`ErrorKind::Exhausted`] for a model that the memory budget has no room
    /// for, [`ErrorKind::Unavailable`] if the load takes too long.
    pub async fn acquire(
        self: &Arc<Self>,
        name: &str,
        version: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<Arc<LoadedVersion>, RuntimeError> {
        let error = match self.resolve(name, version) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => error,
        };
        self.acquire_by(name, version, timeout, error).await
    }

    async fn acquire_by(
        self: &Arc<Self>,
        name: &str,
        version: Option<&str>,
        timeout: Option<Duration>,
        mut error: RuntimeError,
    ) -> Result<Arc<LoadedVersion>, RuntimeError> {
        let control = &self.residency;
        let began = Instant::now();
        while matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unavailable) {
            let Some((key, most)) = control.key_of(name) else {
                return Err(error);
            };
            let limit = timeout.map_or(most, |timeout| timeout.min(most));
            let deadline = began + limit;
            if let Some(waiter) = LoadWaiter::new(self, control, key)? {
                let Ok(outcome) = timeout_at(deadline, waiter.outcome()).await else {
                    return Err(too_slow(name, limit, limit < most));
                };
                outcome?;
            }
            error = match self.resolve(name, version) {
                Ok(loaded) => return Ok(loaded),
                Err(error) => error,
            };
            // A model that others needed the room of has left again. Of one that is resident, the version is missing,
            // unless it has come back just now.
            if is_resident(control.state().machine.state(key)) {
                return self.resolve(name, version);
            }
        }
        Err(error)
    }

    /// Whether a request for the model would be served: it is resident and healthy, or a request loads it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a version that cannot be read.
    pub fn is_model_ready(&self, name: &str, version: Option<&str>) -> Result<bool, RuntimeError> {
        match self.resolve(name, version) {
            Ok(loaded) => Ok(loaded.is_healthy()),
            Err(error) if error.kind() == ErrorKind::InvalidArgument => Err(error),
            Err(_) => Ok(self.loads_on_request(name, version)),
        }
    }

    /// Whether a request loads this version of a model that is not resident.
    #[must_use]
    pub fn loads_on_request(&self, name: &str, version: Option<&str>) -> bool {
        let version = version.filter(|version| !version.is_empty() && *version != "-1");
        self.residency.key_of(name).is_some_and(|(key, _)| {
            let state = self.residency.state();
            let model = &state.models[key.0 as usize];
            let has = |text: &str| model.versions.iter().any(|one| one.to_string() == text);
            model.failure.is_none()
                && !is_resident(state.machine.state(key))
                && version.is_none_or(has)
        })
    }
}

impl ResidencyControl {
    /// The one model of a name that requests may load, and how long they may wait for it.
    fn key_of(&self, name: &str) -> Option<(ModelKey, Duration)> {
        let state = self.state();
        let keys = state.by_name.get(name)?;
        let mut keys = keys.iter().filter(|key| {
            let model = &state.models[key.0 as usize];
            model.loads_on_request && !model.is_withdrawn
        });
        let first = keys.next()?;
        let settings = &state.models[first.0 as usize].settings;
        let wait = settings
            .max_load_wait
            .unwrap_or(self.settings.max_load_wait);
        // Requests name no repository.
        keys.next().is_none().then_some((*first, wait))
    }
}

/// A request that waits for a load. Dropping it gives up.
struct LoadWaiter<'a> {
    runtime: &'a Arc<Runtime>,
    control: &'a ResidencyControl,
    key: ModelKey,
    outcome: oneshot::Receiver<LoadOutcome>,
    is_over: bool,
}

impl<'a> LoadWaiter<'a> {
    /// `None` if the model is resident.
    fn new(
        runtime: &'a Arc<Runtime>,
        control: &'a ResidencyControl,
        key: ModelKey,
    ) -> Result<Option<Self>, RuntimeError> {
        let (reply, outcome) = oneshot::channel();
        let actions = {
            let mut state = control.state();
            if state.is_closed {
                return Err(stopping());
            }
            if is_resident(state.machine.state(key)) {
                return Ok(None);
            }
            if state.waiting >= MAX_WAITING {
                let text = format!(
                    "{MAX_WAITING} requests are waiting for models to load, the most allowed"
                );
                return Err(RuntimeError::new(ErrorKind::Unavailable, text));
            }
            state.waiting += 1;
            state.model(key).waiters.push(reply);
            state.apply(ResidencyInput::Requested(key))
        };
        control.act(runtime, actions);
        Ok(Some(Self {
            runtime,
            control,
            key,
            outcome,
            is_over: false,
        }))
    }

    async fn outcome(mut self) -> LoadOutcome {
        let outcome = (&mut self.outcome).await;
        self.is_over = true;
        outcome.unwrap_or_else(|_| Err(stopping()))
    }
}

impl Drop for LoadWaiter<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.outcome.close();
        let actions = {
            let mut state = self.control.state();
            let model = state.model(self.key);
            let before = model.waiters.len();
            model.waiters.retain(|waiter| !waiter.is_closed());
            let left = before - model.waiters.len();
            if left == 0 {
                // Answered meanwhile.
                return;
            }
            state.waiting -= left;
            state.apply(ResidencyInput::Abandoned(self.key))
        };
        self.control.act(self.runtime, actions);
    }
}

fn too_slow(name: &str, limit: Duration, is_own: bool) -> RuntimeError {
    let whose = match is_own {
        true => "the request's `timeout` says how long it waits",
        false => {
            "`--max-load-wait-ms` and the parameter `max_load_wait_ms` say how long requests wait"
        }
    };
    let text = format!(
        "model '{name}' is not loaded after {} ms\n  {whose}",
        limit.as_millis()
    );
    RuntimeError::new(ErrorKind::Unavailable, text)
}
