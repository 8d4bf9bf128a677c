//! Ends a process that bakes.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard},
};

use rustix::process::{Signal, pidfd_send_signal};

use crate::process::Process;

/// Ends a process that bakes, from any thread.
#[derive(Debug, Default)]
pub struct Cancel(Mutex<CancelState>);

#[derive(Debug, Default)]
struct CancelState {
    is_cancelled: bool,
    running: Option<OwnedFd>,
}

impl Cancel {
    fn lock(&self) -> MutexGuard<'_, CancelState> {
        skep_host::lock(&self.0)
    }

    /// Kills the process if it runs, and keeps it from starting.
    pub fn cancel(&self) {
        let mut state = self.lock();
        state.is_cancelled = true;
        if let Some(handle) = &state.running {
            // It may have ended already.
            let _was_there = pidfd_send_signal(handle, Signal::KILL).is_ok();
        }
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.lock().is_cancelled
    }

    /// Kills this process on a cancel, until the result is dropped.
    pub(crate) fn watch(&self, process: &Process) -> WatchedProcess<'_> {
        let mut state = self.lock();
        state.running = process.handle().ok();
        let is_cancelled = state.is_cancelled;
        drop(state);
        if is_cancelled {
            self.cancel();
        }
        WatchedProcess(self)
    }
}

pub(crate) struct WatchedProcess<'a>(&'a Cancel);

impl Drop for WatchedProcess<'_> {
    fn drop(&mut self) {
        self.0.lock().running = None;
    }
}
