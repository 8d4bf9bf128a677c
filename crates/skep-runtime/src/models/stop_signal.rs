//! Tells a thread that waits that a stop has begun.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use skep_host::lock;

/// Whether a stop has begun.
#[derive(Debug, Default)]
pub(super) struct StopSignal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl StopSignal {
    pub(super) fn set(&self) {
        *lock(&self.stopped) = true;
        self.changed.notify_all();
    }

    /// Waits for `time`, or until a stop begins. Returns whether one has begun.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let stopped = lock(&self.stopped);
        let (stopped, _) = self
            .changed
            .wait_timeout_while(stopped, time, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *stopped
    }
}
