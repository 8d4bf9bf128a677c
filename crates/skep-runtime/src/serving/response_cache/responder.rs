//! A responder with a cache before it.

use std::{
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use skep_config::ModelConfig;
use skep_placer::configuration::RunConfiguration;
use skep_scheduler::{PolicySnapshot, RequestId};
use skep_store::Digest;
use skep_types::Time;

use super::{CacheShare, VersionCacheReport, digest::DigestedRequest, kept::kept};
use crate::{
    clock,
    error::RuntimeError,
    serving::{
        driver::room::QueueRoom,
        job::Job,
        request::InferResponse,
        responder::{Responder, RunShape, Submission},
    },
    statistics::recorder::Statistics,
};

/// Answers equal requests from the cache, and passes the others on to another responder, whose responses it keeps.
#[derive(Debug)]
pub(crate) struct CachedResponder {
    inner: Arc<dyn Responder>,
    share: CacheShare,
}

impl CachedResponder {
    /// A cache before `inner`.
    pub(crate) const fn new(inner: Arc<dyn Responder>, share: CacheShare) -> Self {
        Self { inner, share }
    }
}

/// A request that was not found, and whose response is to be kept.
pub(crate) struct PendingEntry<'a> {
    responder: &'a CachedResponder,
    request: DigestedRequest,
    /// What its digest and the look-up took.
    look_up: Duration,
}

impl PendingEntry<'_> {
    /// Keeps the request's response, and counts the miss.
    pub(crate) async fn keep(&self, response: &InferResponse) {
        let began = clock::now();
        let CachedResponder { inner, share } = self.responder;
        if let Some(kept) = kept(response).await {
            share.insert(clock::now(), self.request.digest, kept);
        }
        let took = self.look_up + clock::now().since(began);
        inner.statistics().missed(took);
    }
}

impl Responder for CachedResponder {
    fn wants_digest(&self) -> bool {
        true
    }

    fn passes_on(&self) -> bool {
        self.inner.passes_on()
    }

    fn submit(&self, job: Box<Job>, priority: u64, timeout: Option<Duration>) -> Submission<'_> {
        let Some(request) = job.digest else {
            return self.inner.submit(job, priority, timeout);
        };
        let now = clock::now();
        if let Some(found) = self.share.look_up(now, &request.digest) {
            let response = InferResponse::clone(&found);
            self.inner.answer_at_once(job, response, request.began);
            return Submission::answered_at_once(self);
        }
        let entry = PendingEntry {
            responder: self,
            request,
            look_up: now.since(request.began),
        };
        self.inner.submit(job, priority, timeout).kept_by(entry)
    }

    fn answer_at_once(&self, job: Box<Job>, response: InferResponse, began: Time) {
        self.inner.answer_at_once(job, response, began);
    }

    fn cached(&self) -> Option<VersionCacheReport> {
        Some(self.share.report())
    }

    fn cancel(&self, request: RequestId) {
        self.inner.cancel(request);
    }

    fn reconfigure(&self, config: &ModelConfig, directory: &Path) -> Result<(), RuntimeError> {
        self.inner.reconfigure(config, directory)
    }

    fn scale(
        &self,
        config: &ModelConfig,
        directory: &Path,
        shape: RunShape,
    ) -> Result<(), RuntimeError> {
        self.inner.scale(config, directory, shape)
    }

    fn run(&self) -> Option<RunConfiguration> {
        self.inner.run()
    }

    fn active_instances(&self) -> u32 {
        self.inner.active_instances()
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        self.inner.cpu_threads()
    }

    fn devices(&self) -> Vec<(String, u32)> {
        self.inner.devices()
    }

    fn statistics(&self) -> &Statistics {
        self.inner.statistics()
    }

    fn policy(&self) -> PolicySnapshot {
        self.inner.policy()
    }

    fn pending(&self) -> usize {
        self.inner.pending()
    }

    fn room(&self) -> Option<&QueueRoom> {
        self.inner.room()
    }

    fn stored_tensors(&self) -> Vec<(Digest, u64)> {
        self.inner.stored_tensors()
    }

    fn is_baked(&self) -> bool {
        self.inner.is_baked()
    }

    fn is_healthy(&self) -> bool {
        self.inner.is_healthy()
    }

    fn why_unhealthy(&self) -> Option<String> {
        self.inner.why_unhealthy()
    }

    fn hurry(&self) {
        self.inner.hurry();
    }

    fn drain(&self) {
        self.inner.drain();
    }

    fn wait_until_idle(&self, deadline: Option<Instant>) {
        self.inner.wait_until_idle(deadline);
    }
}
