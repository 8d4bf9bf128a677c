//! Control mode poll: the repository is scanned at an interval, and models that changed are loaded or unloaded.
//!
//! Models that cannot be read for a while stay loaded, with a warning when that begins; see [`RepositoryScan`]. A load
//! that fails is not tried again until the model's files change. The thread ends when a stop begins; the load that it
//! then waits for is abandoned.

use std::{
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use crate::{
    error::RuntimeError,
    models::{
        runtime::{Control, Runtime},
        stop_signal::StopSignal,
    },
    repository::{
        LoadOverrides, ModelId,
        model_files::UnreadPaths,
        scan::{RepositoryFiles, RepositoryScan, changes},
    },
};

/// Starts the polling thread. `known` is the scan that the start loaded from.
pub(super) fn start(
    runtime: &Arc<Runtime>,
    interval: Duration,
    known: RepositoryScan,
) -> Result<(), RuntimeError> {
    let stop = Arc::clone(&runtime.stop_signal);
    let runtime = Arc::downgrade(runtime);
    thread::Builder::new()
        .name("poll".to_owned())
        .spawn(move || poll(&runtime, &stop, interval, known))
        .map(drop)
        .map_err(|e| RuntimeError::internal(format!("cannot start the polling thread: {e}")))
}

fn poll(runtime: &Weak<Runtime>, stop: &StopSignal, interval: Duration, mut known: RepositoryScan) {
    while !stop.wait(interval) {
        let Some(runtime) = runtime.upgrade() else {
            return;
        };
        let repository = &runtime.options.repository;
        let found = known.rescan(repository);
        log_unread(&known.unread, &found.unread);
        runtime.poll_failures.count(repository, &found.unread);
        let changes = changes(&known.files, &found.files);
        if !changes.unload.is_empty() && found.files.is_empty() {
            tracing::warn!("the repository has no models any more: all models are unloaded");
        }
        runtime.unload_all(changes.unload);
        let load = runtime.to_load(changes.load, &found.files);
        // Each failure is logged and recorded where it happens.
        drop(runtime.load_all(load, &LoadOverrides::default()));
        known = found;
    }
}

/// Logs the paths that have become unreadable, and those that can be read again.
fn log_unread(before: &UnreadPaths, now: &UnreadPaths) {
    for (path, why) in now.iter().filter(|(path, _)| !before.contains_key(*path)) {
        tracing::warn!(
            "cannot read `{}`, its models stay loaded until it can be read again: {why}",
            path.display()
        );
    }
    for path in before.keys() {
        // A path within an unreadable directory is not listed, and still unreadable.
        if !now.keys().any(|unread| path.starts_with(unread)) {
            tracing::info!("`{}` can be read again", path.display());
        }
    }
}

impl Runtime {
    /// The changed models that are loaded now: those that are loaded, and those that do not wait for a request.
    fn to_load(&self, changed: Vec<ModelId>, files: &RepositoryFiles) -> Vec<ModelId> {
        let mut load = Vec::new();
        for id in changed {
            let waits = match files.get(&id).map(Vec::as_slice) {
                Some([(directory, _)]) => self.know_again(&id, directory),
                // The load says that the name is not unique.
                _ => false,
            };
            if !waits || !self.serving(&id).is_empty() {
                load.push(id);
            }
        }
        load
    }

    /// How many polls could not read each repository, or an entry in it. Empty unless the control mode is poll.
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
