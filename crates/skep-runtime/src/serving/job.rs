//! A request on its way: what to run, and who waits.

use std::fmt;

use skep_scheduler::{Payload, RequestId};
use skep_types::Time;
use tokio::sync::oneshot;

use crate::{InferResponse, RuntimeError, serving::validate::Prepared};

/// What a request comes to.
pub(crate) type InferOutcome = Result<InferResponse, RuntimeError>;

/// Who waits for an answer. Nobody may be listening any more.
pub(crate) type InferReply = oneshot::Sender<InferOutcome>;

/// A request on its way.
pub(crate) struct Job {
    /// Given by the driver.
    pub(crate) id: RequestId,
    pub(crate) prepared: Prepared,
    /// Taken out when it is executed or answered.
    reply: Option<InferReply>,
    /// When it arrived in the runtime.
    pub(crate) arrived: Time,
}

/// Who waits for a request's answer: whoever has this answers it, once.
pub(crate) struct InferWaiter {
    pub(crate) id: RequestId,
    pub(crate) reply: InferReply,
    pub(crate) arrived: Time,
}

impl Job {
    /// A job that no driver has seen.
    pub(crate) fn new(prepared: Prepared, reply: InferReply, arrived: Time) -> Box<Self> {
        Box::new(Self {
            id: RequestId(0),
            prepared,
            reply: Some(reply),
            arrived,
        })
    }

    /// Who waits for the answer. Once.
    pub(crate) fn take_waiter(&mut self) -> InferWaiter {
        InferWaiter {
            id: self.id,
            reply: self.reply.take().expect("a request is answered once"),
            arrived: self.arrived,
        }
    }
}

/// Jobs can share a batch if their tensors differ in nothing but the first dimension, ragged ones apart, and they left out
/// the same.
impl Payload for Box<Job> {
    fn joins(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.prepared, &other.prepared);
        let is_ragged = |index| ours.ragged.iter().any(|r| usize::from(*r) == index);
        let mut pairs = ours.inputs.iter().zip(&theirs.inputs).enumerate();
        ours.omitted == theirs.omitted
            && pairs.all(|(index, (a, b))| {
                a.shape().dims().get(1..) == b.shape().dims().get(1..) || is_ragged(index)
            })
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("batch_size", &self.prepared.batch_size)
            .finish_non_exhaustive()
    }
}
