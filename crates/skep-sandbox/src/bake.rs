//! Baking in a process of its own.
//!
//! ```text
//! server                                         process that bakes
//!   plans: key, content, what it takes
//!   claims the key: a directory     --------->   reads the model's files, writes into the directory, nothing else
//!   waits                           <---------   ends
//!   looks at every byte there, publishes under the key that it computed
//! ```

use std::{
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, pidfd_send_signal};
use skep_backend::{Backend, BackendError, ErrorKind, LoadRequest};
use skep_cache::{Begun, Claim, Found};
use skep_weights::{
    WeightSource,
    baking::{FormPlan, NeededForm},
};

use crate::{
    message::Bake,
    process::Process,
    sandboxes::{BeginError, Starter},
};

/// How often somebody looks whether another process has made the form that is wanted.
const LOOK: Duration = Duration::from_millis(50);

/// What a process may take that bakes.
#[derive(Debug, Clone, Copy, Default)]
pub struct BakeLimits {
    /// Until it is ended; much longer where it goes on behind a model that runs, and has to wait for the processor.
    pub wall: Option<Duration>,
    /// Time of the processor, where it goes on behind a model that runs: everything else goes first.
    pub behind: Option<Duration>,
}

/// How baking ended.
#[derive(Debug)]
pub enum BakeEnd {
    /// What was made, or why nothing ever will be, is in the directory. Nobody has looked at it.
    Made,
    /// It was not made this time; why.
    Refused(BackendError),
    /// The process died, or had to be ended; how.
    Died(BackendError),
    /// Nobody wanted it any more.
    Cancelled,
}

/// Ends a process that bakes, from anywhere.
#[derive(Debug, Default)]
pub struct Cancel(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    is_cancelled: bool,
    running: Option<OwnedFd>,
}

impl Cancel {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves a whole state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process if it runs, and lets none start.
    pub fn cancel(&self) {
        let mut state = self.lock();
        state.is_cancelled = true;
        if let Some(handle) = &state.running {
            // One that has ended takes no signal any more.
            let _was_there = pidfd_send_signal(handle, Signal::KILL).is_ok();
        }
    }

    /// Whether nobody wants it any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.lock().is_cancelled
    }

    /// Ends this process when it is cancelled, until the result is dropped.
    pub(crate) fn watch(&self, process: &Process) -> Watched<'_> {
        let mut state = self.lock();
        state.running = process.handle().ok();
        let is_cancelled = state.is_cancelled;
        drop(state);
        if is_cancelled {
            self.cancel();
        }
        Watched(self)
    }
}

pub(crate) struct Watched<'a>(&'a Cancel);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.lock().running = None;
    }
}

/// Bakes a model in a process of its own, which writes into `directory` and has ended afterwards.
pub fn bake(
    backend: &dyn Backend,
    request: &LoadRequest<'_>,
    (directory, budget_bytes): (&Path, u64),
    limits: BakeLimits,
    cancel: &Cancel,
) -> BakeEnd {
    let how = Bake {
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

/// Bakes a model before it is loaded. One that cannot be baked is loaded as it is, and one that is broken is refused then.
pub(crate) fn if_possible(
    backend: &dyn Backend,
    request: &LoadRequest<'_>,
    limit: Option<Duration>,
) {
    let name = request.config.name();
    match first(backend, request, limit) {
        Ok(None) => {}
        Ok(Some(Found::Unusable(why))) => {
            tracing::warn!("model `{name}` is loaded as it is: {why}");
        }
        Ok(Some(_)) => tracing::info!("baked `{}`", request.file.path().display()),
        Err(error) => tracing::warn!("model `{name}` was not baked: {error}"),
    }
}

/// What was published; `None` where nothing had to be made.
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

/// The right to make a form; `None` where another one made it meanwhile, for which this waits as long as baking may take.
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

/// Removes what is damaged of a form that a worker could not use.
pub(crate) fn remove_damage(backend: &dyn Backend, request: &LoadRequest<'_>) {
    if let Ok(FormPlan::Known(form)) = backend.plan_form(request)
        && let Err(error) = form.verify()
    {
        let path = request.file.path().display();
        tracing::warn!("the baked form of `{path}` is made again: {error}");
    }
}
