//! How many polls could not read a repository.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Mutex,
};

use skep_host::lock;

use crate::repository::{Repository, model_files::UnreadPaths};

/// How many polls could not read each repository, or an entry in it.
#[derive(Debug, Default)]
pub(super) struct PollFailures(Mutex<BTreeMap<PathBuf, u64>>);

impl PollFailures {
    pub(super) fn count(&self, repository: &Repository, unread: &UnreadPaths) {
        let mut failures = lock(&self.0);
        for root in repository.roots() {
            if unread.keys().any(|path| path.starts_with(root)) {
                *failures.entry(root.clone()).or_default() += 1;
            }
        }
    }

    pub(super) fn of(&self, root: &Path) -> u64 {
        lock(&self.0).get(root).copied().unwrap_or_default()
    }
}
