//! The seam of a loaded version: what answers its requests.

use std::{fmt, path::Path, time::Duration};

use skep_config::ModelConfig;
use skep_scheduler::{PolicySnapshot, RequestId};
use tokio::sync::oneshot;

use crate::{
    RuntimeError,
    serving::{
        driver::requests::Handover,
        job::{InferOutcome, Job},
    },
    statistics::recorder::Statistics,
};

/// What answers the requests of a loaded version.
///
/// An [`InstancePool`](super::instances::InstancePool) does so with a scheduler and instances. An ensemble, which passes
/// requests on to other versions, implements the same trait, and so does a response cache, in front of the responder that
/// it saves work. [`LoadedVersion`](crate::LoadedVersion), the runtime and the edges know this trait alone.
pub(crate) trait Responder: fmt::Debug + Send + Sync {
    /// Takes a request in. Its answer, or why there is none, goes to the job's reply channel exactly once.
    fn submit(&self, job: Box<Job>, priority: u64, timeout: Option<Duration>) -> Submission<'_>;

    /// Takes a request back whose client has left. One that already runs is left alone.
    fn cancel(&self, request: RequestId);

    /// Follows a configuration that differs in nothing but instances and version policy. `directory` is the model's.
    ///
    /// # Errors
    /// Why it could not; everything is then as before.
    fn reconfigure(&self, config: &ModelConfig, directory: &Path) -> Result<(), RuntimeError>;

    /// Counts and durations so far.
    fn statistics(&self) -> &Statistics;

    /// What its batching policy is doing now.
    fn policy(&self) -> PolicySnapshot;

    /// Requests that wait.
    fn pending(&self) -> usize;

    /// Whether it answers requests now.
    fn is_healthy(&self) -> bool;

    /// Why it cannot answer requests now; `None` where it can, or where the reason is unknown.
    fn why_unhealthy(&self) -> Option<String>;

    /// Stops waiting for further requests to join a batch; new requests are still taken.
    fn hurry(&self);

    /// Takes no new requests; those that wait are still answered.
    fn drain(&self);
}

/// A request that a responder has taken in. Dropping it cancels the request, if that still waits.
#[must_use]
pub(crate) struct Submission<'a> {
    responder: &'a dyn Responder,
    request: Option<RequestId>,
    /// A batch that an idle instance gets at the end of the reactor's turn.
    handover: Option<Handover<'a>>,
}

impl<'a> Submission<'a> {
    pub(crate) fn new(
        responder: &'a dyn Responder,
        request: RequestId,
        handover: Option<Handover<'a>>,
    ) -> Self {
        Self {
            responder,
            request: Some(request),
            handover,
        }
    }

    /// Waits for the answer.
    pub(crate) async fn answered(
        mut self,
        answer: oneshot::Receiver<InferOutcome>,
    ) -> InferOutcome {
        if let Some(handover) = self.handover.take() {
            handover.complete().await;
        }
        let answer = answer.await;
        self.request = None;
        answer.unwrap_or_else(|_| {
            let text = "the instance ended without an answer";
            Err(RuntimeError::internal(text))
        })
    }
}

impl Drop for Submission<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request {
            self.responder.cancel(request);
        }
    }
}
