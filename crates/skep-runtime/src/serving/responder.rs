//! The seam between a loaded version and whatever answers its requests.

use std::{
    fmt,
    future::Future,
    num::NonZeroUsize,
    path::Path,
    pin::Pin,
    time::{Duration, Instant},
};

use skep_config::ModelConfig;
use skep_placer::configuration::RunConfiguration;
use skep_scheduler::{PolicySnapshot, RequestId};
use skep_store::Digest;
use skep_types::Time;
use tokio::sync::oneshot;

use crate::{
    error::RuntimeError,
    serving::{
        driver::{requests::Handover, room::QueueRoom},
        job::{InferOutcome, Job},
        request::InferResponse,
        response_cache::{PendingEntry, VersionCacheReport},
    },
    statistics::recorder::Statistics,
};

/// Answers the requests of a loaded version.
///
/// An [`InstancePool`](super::instances::InstancePool) does so with a scheduler and instances.
/// An [`EnsembleResponder`](super::ensemble::EnsembleResponder) does so with requests to other versions.
/// A [`CachedResponder`](super::response_cache::CachedResponder) stands before another one.
/// [`LoadedVersion`](crate::LoadedVersion), the runtime and the edges know only this trait, so that another kind of
/// responder can take its place.
pub(crate) trait Responder: fmt::Debug + Send + Sync {
    /// Whether a job should have its digest when it is submitted.
    fn wants_digest(&self) -> bool;

    /// Whether a job should have what it passes on to other versions.
    fn passes_on(&self) -> bool;

    /// Takes a request in. Its answer or an error goes to the job's reply channel, exactly once.
    fn submit(&self, job: Box<Job>, priority: u64, timeout: Option<Duration>) -> Submission<'_>;

    /// Answers a request whose response was found without an execution, and counts it. If answers leave in the order of
    /// their requests, it waits for those before it. The search began at `began`.
    fn answer_at_once(&self, job: Box<Job>, response: InferResponse, began: Time);

    /// What a cache keeps of its responses; `None` without one.
    fn cached(&self) -> Option<VersionCacheReport>;

    /// Cancels a request whose client has left, unless it already runs.
    fn cancel(&self, request: RequestId);

    /// Adopts a configuration that differs only in instances and version policy. `directory` is the model's.
    ///
    /// # Errors
    /// Why it failed; nothing has then changed.
    fn reconfigure(&self, config: &ModelConfig, directory: &Path) -> Result<(), RuntimeError>;

    /// Changes how many active instances there are, and maybe their threads and the cap on batches. Blocks until new
    /// instances are ready; others leave after that.
    ///
    /// # Errors
    /// Why it failed; nothing has then changed.
    fn scale(
        &self,
        config: &ModelConfig,
        directory: &Path,
        shape: RunShape,
    ) -> Result<(), RuntimeError>;

    /// How it runs now; `None` if its threads and batches are those of its configuration.
    fn run(&self) -> Option<RunConfiguration>;

    /// How many instances take requests.
    fn active_instances(&self) -> u32;

    /// Threads that an execution keeps busy on the CPU; `None` if it does not compute there.
    fn cpu_threads(&self) -> Option<NonZeroUsize>;

    /// The instances on each device that has some, by the device's name. Empty if they run on all CPUs.
    fn devices(&self) -> Vec<(String, u32)>;

    /// Counts and durations so far.
    fn statistics(&self) -> &Statistics;

    /// What its batching policy is doing now.
    fn policy(&self) -> PolicySnapshot;

    /// Requests that wait.
    fn pending(&self) -> usize;

    /// Where a request can wait outside of the full queue; `None` if nothing tells when it has room.
    fn room(&self) -> Option<&QueueRoom>;

    /// The tensors of the store that it uses, each with its bytes.
    fn stored_tensors(&self) -> Vec<(Digest, u64)>;

    /// Whether it runs on its baked form, whose weights are no memory of this process alone.
    fn is_baked(&self) -> bool;

    /// Whether it can answer requests now.
    fn is_healthy(&self) -> bool;

    /// Why it cannot answer requests now; `None` if it can, or if the reason is unknown.
    fn why_unhealthy(&self) -> Option<String>;

    /// Stops waiting for further requests to join a batch. New requests are still taken.
    fn hurry(&self);

    /// Takes no new requests. Those that wait are still answered.
    fn drain(&self);

    /// Blocks until no request is under way that makes requests to other versions, or until `deadline`.
    fn wait_until_idle(&self, deadline: Option<Instant>);
}

/// How a version is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunShape {
    /// Active instances.
    pub(crate) instances: u32,
    /// Threads of each; `None` for what the configuration says, or its default.
    pub(crate) threads: Option<NonZeroUsize>,
    /// The most inferences of a batch; `None` for as many as the configuration allows.
    pub(crate) batch: Option<usize>,
}

impl RunShape {
    /// So many instances of the usual kind.
    pub(crate) const fn of(instances: u32) -> Self {
        Self {
            instances,
            threads: None,
            batch: None,
        }
    }
}

impl From<RunConfiguration> for RunShape {
    fn from(run: RunConfiguration) -> Self {
        let size = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        Self {
            instances: run.instances,
            threads: NonZeroUsize::new(size(run.threads)),
            batch: Some(size(run.batch)),
        }
    }
}

impl fmt::Display for RunShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} instances", self.instances)?;
        if let Some(threads) = self.threads {
            write!(f, " with {threads} threads each")?;
        }
        match self.batch {
            Some(batch) => write!(f, ", batches of up to {batch}"),
            None => Ok(()),
        }
    }
}

/// The work of an answer that no instance gives. It runs in the task that waits for the answer.
pub(crate) type AnswerWork<'a> = Pin<Box<dyn Future<Output = InferOutcome> + Send + 'a>>;

/// A request that a responder has taken in. Dropping it cancels the request if that still waits.
#[must_use]
pub(crate) struct Submission<'a> {
    responder: &'a dyn Responder,
    request: Option<RequestId>,
    /// The batch that an idle instance gets at the end of the reactor's turn.
    handover: Option<Handover<'a>>,
    /// The work that makes the answer, if not an instance does.
    work: Option<AnswerWork<'a>>,
    /// Keeps the response, if there is a cache.
    entry: Option<PendingEntry<'a>>,
}

impl<'a> Submission<'a> {
    /// A request that the responder's scheduler has.
    pub(crate) fn new(
        responder: &'a dyn Responder,
        request: RequestId,
        handover: Option<Handover<'a>>,
    ) -> Self {
        let mut submission = Self::unscheduled(responder, None);
        submission.request = Some(request);
        submission.handover = handover;
        submission
    }

    /// A request that `work` answers.
    pub(crate) fn working(responder: &'a dyn Responder, work: AnswerWork<'a>) -> Self {
        Self::unscheduled(responder, Some(work))
    }

    /// A request that was answered when it came.
    pub(crate) fn answered_at_once(responder: &'a dyn Responder) -> Self {
        Self::unscheduled(responder, None)
    }

    /// A request that no scheduler has, and nothing is to cancel.
    fn unscheduled(responder: &'a dyn Responder, work: Option<AnswerWork<'a>>) -> Self {
        Self {
            responder,
            request: None,
            handover: None,
            work,
            entry: None,
        }
    }

    /// The same request, whose response `entry` keeps.
    pub(crate) fn kept_by(mut self, entry: PendingEntry<'a>) -> Self {
        self.entry = Some(entry);
        self
    }

    /// Waits for the answer.
    pub(crate) async fn answered(
        mut self,
        answer: oneshot::Receiver<InferOutcome>,
    ) -> InferOutcome {
        if let Some(handover) = self.handover.take() {
            handover.complete().await;
        }
        let outcome = match self.work.take() {
            Some(work) => work.await,
            None => answer.await.unwrap_or_else(|_| {
                let text = "the instance ended without an answer";
                Err(RuntimeError::internal(text))
            }),
        };
        self.request = None;
        if let (Some(entry), Ok(response)) = (self.entry.take(), &outcome) {
            entry.keep(response).await;
        }
        outcome
    }
}

impl Drop for Submission<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request {
            self.responder.cancel(request);
        }
    }
}
