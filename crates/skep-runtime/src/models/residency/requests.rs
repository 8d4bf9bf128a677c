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
    /// it. Dropping the future gives up waiting.
    ///
    /// # Errors
    /// As [`Self::resolve`]; why the load failed; [`ErrorKind::Exhausted`] for a model that the memory budget has no room
    /// for, [`ErrorKind::Unavailable`] if the load takes too long.
    pub async fn acquire(
        self: &Arc<Self>,
        name: &str,
        version: Option<&str>,
    ) -> Result<Arc<LoadedVersion>, RuntimeError> {
        let error = match self.resolve(name, version) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => error,
        };
        match &self.residency {
            Some(control) => self.acquire_by(control, name, version, error).await,
            None => Err(error),
        }
    }

    async fn acquire_by(
        self: &Arc<Self>,
        control: &Arc<ResidencyControl>,
        name: &str,
        version: Option<&str>,
        mut error: RuntimeError,
    ) -> Result<Arc<LoadedVersion>, RuntimeError> {
        let limit = control.settings.max_load_wait;
        let deadline = Instant::now() + limit;
        while matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unavailable) {
            let Some(key) = control.key_of(name) else {
                return Err(error);
            };
            let Some(waiter) = LoadWaiter::new(self, control, key)? else {
                // Resident, so that the version is what is missing.
                return self.resolve(name, version);
            };
            let Ok(outcome) = timeout_at(deadline, waiter.outcome()).await else {
                return Err(too_slow(name, limit));
            };
            outcome?;
            // It may have left again, if others needed the room at once.
            error = match self.resolve(name, version) {
                Ok(loaded) => return Ok(loaded),
                Err(error) => error,
            };
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
        self.residency.as_ref().is_some_and(|control| {
            control.key_of(name).is_some_and(|key| {
                let state = control.state();
                let model = &state.models[key.0 as usize];
                let has = |text: &str| model.versions.iter().any(|one| one.to_string() == text);
                model.failure.is_none()
                    && !is_resident(state.machine.state(key))
                    && version.is_none_or(has)
            })
        })
    }
}

impl ResidencyControl {
    /// The one model of a name that requests may load.
    fn key_of(&self, name: &str) -> Option<ModelKey> {
        let state = self.state();
        let keys = state.by_name.get(name)?;
        let mut keys = keys
            .iter()
            .filter(|key| !state.models[key.0 as usize].is_withdrawn);
        let first = keys.next()?;
        // Requests name no repository.
        keys.next().is_none().then_some(*first)
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

fn too_slow(name: &str, limit: Duration) -> RuntimeError {
    let text = format!(
        "model '{name}' is not loaded after {} ms\n  `--max-load-wait-ms` says how long requests wait",
        limit.as_millis()
    );
    RuntimeError::new(ErrorKind::Unavailable, text)
}
