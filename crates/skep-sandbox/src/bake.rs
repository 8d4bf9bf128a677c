//! Bakes models in separate processes.
//!
//! ```text
//! server                                         process that bakes
//!   plans: key, content, memory
//!   claims the key: a directory     --------->   reads the model's files, writes into the directory alone
//!   waits                           <---------   ends
//!   checks every byte there, publishes under the key that it computed
//! ```

use std::{
    os::unix::ffi::OsStrExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use skep_backend::{Backend, BackendError, ErrorKind, LoadRequest};
use skep_cache::{Begun, Claim, Found};
use skep_weights::{
    WeightSource,
    baking::{FormPlan, NeededForm},
};

use crate::{
    cancel::Cancel,
    message::BakeTask,
    starter::{BeginError, Starter},
};

/// How often a load looks whether another process has made the form.
const LOOK: Duration = Duration::from_millis(50);

/// The limits of a process that bakes.
#[derive(Debug, Clone, Copy, Default)]
pub struct BakeLimits {
    /// Wall time until it is killed. Much longer in the background, where it waits for the processor.
    pub wall: Option<Duration>,
    /// CPU time, if it bakes in the background, where everything else goes first.
    pub behind: Option<Duration>,
}

/// How baking ended.
#[derive(Debug)]
pub enum BakeEnd {
    /// The directory holds the form, or the reason why there cannot be one. Not checked yet.
    Made,
    /// The form was not made this time, with the reason.
    Refused(BackendError),
    /// The process died or was killed, with the way it ended.
    Died(BackendError),
    /// It was cancelled.
    Cancelled,
}

/// Bakes a model in a separate process, which writes into `directory`. The process has ended when this returns.
pub fn bake(
    backend: &dyn Backend,
    request: &LoadRequest<'_>,
    (directory, budget_bytes): (&Path, u64),
    limits: BakeLimits,
    cancel: &Cancel,
) -> BakeEnd {
    let how = BakeTask {
        directory: directory.as_os_str().as_bytes().to_vec(),
        budget_bytes,
        behind: limits.behind.map(|time| time.as_secs().max(1)),
    };
    let baked = match Starter::new(backend, request, limits.wall) {
        Ok(starter) => starter.bake(how, cancel),
        Err(error) => return BakeEnd::Refused(error),
    };
    match baked {
        Ok(()) => BakeEnd::Made,
        Err(_) if cancel.is_cancelled() => BakeEnd::Cancelled,
        Err(BeginError { error, is_death }) => match is_death {
            true => BakeEnd::Died(error),
            false => BakeEnd::Refused(error),
        },
    }
}

/// Bakes a model before it is loaded. A model that cannot be baked is loaded without a form; a broken one is refused
/// then.
pub(crate) fn if_possible(
    backend: &dyn Backend,
    request: &LoadRequest<'_>,
    limit: Option<Duration>,
) {
    let name = request.config.name();
    match first(backend, request, limit) {
        Ok(None) => {}
        Ok(Some(Found::Unusable(why))) => {
            tracing::warn!("model `{name}` is loaded without a baked form: {why}");
        }
        Ok(Some(_)) => tracing::info!("baked `{}`", request.file.path().display()),
        Err(error) => tracing::warn!("model `{name}` was not baked: {error}"),
    }
}

/// The published form; `None` if there was nothing to make.
fn first(
    backend: &dyn Backend,
    request: &LoadRequest<'_>,
    limit: Option<Duration>,
) -> Result<Option<Found>, BackendError> {
    let (Some(weights), FormPlan::Needed(needed)) = (request.weights, backend.plan_form(request)?)
    else {
        return Ok(None);
    };
    let began = Instant::now();
    let Some(claim) = claim(weights, &needed, limit)? else {
        return Ok(None);
    };
    let limits = BakeLimits {
        wall: limit.map(|limit| limit.saturating_sub(began.elapsed())),
        behind: None,
    };
    let into = (claim.directory(), weights.cache.budget_bytes());
    match bake(backend, request, into, limits, &Cancel::default()) {
        BakeEnd::Made => backend.publish_form(request, claim).map(Some),
        BakeEnd::Refused(error) | BakeEnd::Died(error) => Err(error),
        BakeEnd::Cancelled => Ok(None),
    }
}

/// Claims the right to make a form. Waits for another process that makes it, up to `limit`; `None` if that one made it.
fn claim(
    weights: &WeightSource,
    needed: &NeededForm,
    limit: Option<Duration>,
) -> Result<Option<Claim>, BackendError> {
    let began = Instant::now();
    let failed = |why: String| BackendError::new(ErrorKind::Unavailable, why);
    loop {
        let begun = weights.cache.try_begin(&needed.key, needed.content.clone());
        match begun.map_err(|error| failed(error.to_string()))? {
            Begun::Claimed(claim) => return Ok(Some(claim)),
            Begun::Found(_) => return Ok(None),
            Begun::Busy if limit.is_some_and(|limit| began.elapsed() > limit) => {
                return Err(failed("another process bakes it".to_owned()));
            }
            Begun::Busy => thread::sleep(LOOK),
        }
    }
}

/// Removes the damaged parts of a form that a worker could not use.
pub(crate) fn remove_damage(backend: &dyn Backend, request: &LoadRequest<'_>) {
    if let Ok(FormPlan::Known(form)) = backend.plan_form(request)
        && let Err(error) = form.verify()
    {
        let path = request.file.path().display();
        tracing::warn!("the baked form of `{path}` is made again: {error}");
    }
}
