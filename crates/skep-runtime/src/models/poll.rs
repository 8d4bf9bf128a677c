//! Control mode poll: the repository is looked at again and again, and what changed is loaded or unloaded.
//!
//! What cannot be read for a while is kept as it was, with a warning when that begins; see [`RepositoryScan`].
//! A load that fails is not tried again until the model's files change. The thread ends when a stop begins; a load that
//! it is in the middle of then comes to nothing.

use skep_host::lock;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};

use crate::{
    Control, LoadOverrides, Repository, Runtime, RuntimeError,
    repository::{
        model_files::UnreadPaths,
        scan::{RepositoryScan, changes},
    },
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
    known: RepositoryScan,
) -> Result<(), RuntimeError> {
    let stop = Arc::clone(&runtime.stop);
    let runtime = Arc::downgrade(runtime);
    thread::Builder::new()
        .name("poll".to_owned())
        .spawn(move || poll(&runtime, &stop, interval, known))
        .map(drop)
        .map_err(|e| RuntimeError::internal(format!("cannot start the thread that polls: {e}")))
}

fn poll(runtime: &Weak<Runtime>, stop: &StopSignal, interval: Duration, mut known: RepositoryScan) {
    while !stop.wait(interval) {
        let Some(runtime) = runtime.upgrade() else {
            return;
        };
        let repository = &runtime.options.repository;
        let found = known.again(repository);
        say_what_changed(&known.unread, &found.unread);
        runtime.poll_failures.count(repository, &found.unread);
        let changes = changes(&known.files, &found.files);
        if !changes.unload.is_empty() && found.files.is_empty() {
            tracing::warn!("the repository has no models any more: all of them are unloaded");
        }
        runtime.unload_all(changes.unload);
        // Each failure is logged and noted where it happens.
        drop(runtime.load_all(changes.load, &LoadOverrides::default()));
        known = found;
    }
}

/// Warns of what cannot be read from now on, and says what can be read again.
fn say_what_changed(before: &UnreadPaths, now: &UnreadPaths) {
    for (path, why) in now.iter().filter(|(path, _)| !before.contains_key(*path)) {
        tracing::warn!(
            "cannot read `{}`, its models stay as they are until it can be read: {why}",
            path.display()
        );
    }
    // What lies in something that cannot be read now is not readable for being unmentioned.
    let is_within = |path: &Path| now.keys().any(|unread| path.starts_with(unread));
    for path in before.keys().filter(|path| !is_within(path)) {
        tracing::info!("`{}` can be read again", path.display());
    }
}

/// How many polls could not read each repository, or something in it.
#[derive(Debug, Default)]
pub(crate) struct PollFailures(Mutex<BTreeMap<PathBuf, u64>>);

impl PollFailures {
    fn count(&self, repository: &Repository, unread: &UnreadPaths) {
        let mut failures = lock(&self.0);
        for root in repository.roots() {
            if unread.keys().any(|path| path.starts_with(root)) {
                *failures.entry(root.clone()).or_default() += 1;
            }
        }
    }

    fn of(&self, root: &Path) -> u64 {
        lock(&self.0).get(root).copied().unwrap_or_default()
    }
}

impl Runtime {
    /// How many polls could not read each repository, or something in it; nothing where nobody polls.
    #[must_use]
    pub fn poll_failures(&self) -> Vec<(String, u64)> {
        if !matches!(self.options.control, Control::Poll(_)) {
            return Vec::new();
        }
        let roots = self.options.repository.roots().iter();
        roots
            .map(|root| (root.display().to_string(), self.poll_failures.of(root)))
            .collect()
    }
}
