//! The stop of a node: requests finish, loads are abandoned, models go.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use skep_host::lock;

use crate::{
    baking,
    models::{
        records::{ModelRecord, VersionState},
        runtime::Runtime,
    },
    repository::{ModelId, source::ModelSource},
};

/// How long a stop waits until baking has removed its files: some GiB at most.
const BAKERY_LIMIT: Duration = Duration::from_secs(5);

impl Runtime {
    /// Makes the node not ready; requests are still served. Waiting loads are cancelled, and the callers of running
    /// loads are answered: those loads are abandoned.
    pub fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.management.close();
        self.residency.close();
        self.stop_signal.set();
        self.stop_notice.notify_waiters();
        for loaded in self.loaded() {
            loaded.responder.hurry();
        }
    }

    /// Completes when a stop has begun, to end work that otherwise lasts as long as its client likes.
    pub async fn stop_begun(&self) {
        // Registered before the check, so that a stop in between is noticed.
        let begun = self.stop_notice.notified();
        if !self.is_stopping() {
            begun.await;
        }
    }

    /// Whether a stop has begun.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Refuses new requests and waits, at most `timeout`, until every model is gone. Returns how many versions still
    /// run.
    pub fn stop(&self, timeout: Duration) -> usize {
        self.begin_stop();
        // A deadline that cannot be represented means no deadline.
        let deadline = Instant::now().checked_add(timeout);
        self.drain_ensembles(deadline);
        for loaded in self.loaded() {
            loaded.responder.drain();
        }
        let ids: Vec<ModelId> = self.records().keys().cloned().collect();
        for id in ids {
            self.retire(&id);
            let source = self.with_record(&id, |record| record.source.take());
            drop(source);
        }
        let bakery = Instant::now() + BAKERY_LIMIT;
        baking::stop(deadline.map_or(bakery, |deadline| deadline.min(bakery)));
        let alive = self.wait_until_gone(deadline);
        self.remove_temporary_files();
        alive
    }

    /// Removes files that clients sent, although models may still be loaded from them: the process is about to end
    /// without dropping their owners.
    pub fn remove_temporary_files(&self) {
        let sent = std::mem::take(&mut *lock(&self.sent));
        for source in sent.iter().filter_map(Weak::upgrade) {
            source.remove_temporary();
        }
    }

    /// Remembers a source whose files must be removed before the process ends.
    pub(super) fn remember_sent(&self, source: &Arc<ModelSource>) {
        if source.is_temporary() {
            let mut sent = lock(&self.sent);
            sent.retain(|other| other.strong_count() > 0);
            sent.push(Arc::downgrade(source));
        }
    }

    /// How many versions of models and how many management calls have not ended yet.
    #[must_use]
    pub fn left_at_stop(&self) -> (usize, usize) {
        let versions = self.loaded().len() + unloading(&self.records());
        (versions, self.management.running())
    }

    fn wait_until_gone(&self, deadline: Option<Instant>) -> usize {
        let mut records = self.records();
        loop {
            let alive = unloading(&records);
            let now = Instant::now();
            let left = deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(now));
            if alive == 0 || left.is_zero() {
                return alive;
            }
            records = self
                .gone
                .wait_timeout(records, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// How many versions still run although they are out of the routing table.
fn unloading(records: &BTreeMap<ModelId, ModelRecord>) -> usize {
    let versions = records.values().flat_map(|record| record.versions.values());
    versions
        .filter(|status| status.state == VersionState::Unloading)
        .count()
}
