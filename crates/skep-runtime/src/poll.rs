//! Control mode poll: the repository is looked at again and again, and what changed is loaded or unloaded.
//!
//! A load that fails is not tried again until the model's files change. The thread ends when a stop begins; a load that
//! it is in the middle of then comes to nothing.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};

use crate::{
    LoadOverrides, Runtime, RuntimeError,
    snapshot::{RepositoryFiles, changes},
};

/// Wakes the poller for a stop.
#[derive(Debug, Default)]
pub(crate) struct StopSignal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl StopSignal {
    pub(crate) fn set(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for `time`, or less if a stop begins; whether one has begun.
    fn wait(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) = self
            .changed
            .wait_timeout_while(stopped, time, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *stopped
    }
}

/// Starts the thread that polls; `known` is what the models were loaded from at the start.
pub(crate) fn start(
    runtime: &Arc<Runtime>,
    interval: Duration,
    known: RepositoryFiles,
) -> Result<(), RuntimeError> {
    let stop = Arc::clone(&runtime.stop);
    let runtime = Arc::downgrade(runtime);
    thread::Builder::new()
        .name("poll".to_owned())
        .spawn(move || poll(&runtime, &stop, interval, known))
        .map(drop)
        .map_err(|e| RuntimeError::internal(format!("cannot start the thread that polls: {e}")))
}

fn poll(
    runtime: &Weak<Runtime>,
    stop: &StopSignal,
    interval: Duration,
    mut known: RepositoryFiles,
) {
    while !stop.wait(interval) {
        let Some(runtime) = runtime.upgrade() else {
            return;
        };
        let found = runtime.options.repository.files();
        let changes = changes(&known, &found);
        runtime.unload_all(changes.unload);
        // Each failure is logged and noted where it happens.
        drop(runtime.load_all(changes.load, &LoadOverrides::default()));
        known = found;
    }
}
