//! A request on its way through the runtime: what to run, and who waits for the answer.

use std::{fmt, sync::Arc};

use skep_scheduler::{Payload, RequestId, SequencePayload, SequenceStep};
use skep_tensor::{Charge, Tensor};
use skep_types::Time;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::{
    error::RuntimeError,
    serving::{
        request::{InferResponse, Parameter},
        response_cache::digest::DigestedRequest,
        sequences::{SequenceMemory, SequenceRequest},
        trace::RequestTrace,
    },
};

/// The outcome of a request.
pub(crate) type InferOutcome = Result<InferResponse, RuntimeError>;

/// Where the answer goes. The client may have gone.
pub(crate) type InferReply = oneshot::Sender<InferOutcome>;

/// The waiters of a batch.
pub(crate) type Waiters = SmallVec<[InferWaiter; 4]>;

/// A request that can join a batch.
#[derive(Debug, Clone)]
pub(crate) struct PreparedRequest {
    /// In the order of the loaded model's inputs, without those that are computed for a batch. Each has the shape that
    /// the model sees, except ragged ones, which the model gets flat.
    pub(crate) inputs: SmallVec<[Tensor; 4]>,
    /// Indices of the ragged inputs: their shapes may differ among the requests of a batch.
    pub(crate) ragged: SmallVec<[u16; 4]>,
    /// Indices of the optional inputs that the request omits, ascending. Requests share a batch only if they omit the
    /// same inputs: the model gets a default once for the whole batch.
    pub(crate) omitted: SmallVec<[u16; 4]>,
    /// Indices into the interface's outputs, in the order that the client wants.
    pub(crate) outputs: SmallVec<[usize; 4]>,
    /// The inferences that it counts for.
    pub(crate) batch_size: usize,
    /// The request's share of the node's memory, held as long as its tensors.
    pub(crate) charge: Option<Arc<Charge>>,
    /// Its sequence, if the model's requests belong to some.
    pub(crate) sequence: Option<SequenceRequest>,
}

/// A request on its way through the runtime.
pub(crate) struct Job {
    /// Its turn among the answers, assigned by the driver, or by a scheduler of sequences when it may run.
    pub(crate) id: RequestId,
    pub(crate) prepared: PreparedRequest,
    /// What its sequence keeps, once a scheduler has taken it in.
    pub(crate) memory: Option<SequenceMemory>,
    /// Its digest, if its responder wants one.
    pub(crate) digest: Option<DigestedRequest>,
    /// For a responder that passes requests on.
    pub(crate) passed_on: Option<Box<PassedOn>>,
    /// Taken when the request is executed or answered.
    reply: Option<InferReply>,
    /// When the request arrived in the runtime.
    pub(crate) arrived: Time,
}

/// What a request to an ensemble has that its steps get as well.
#[derive(Debug)]
pub(crate) struct PassedOn {
    /// The client's id.
    pub(crate) id: String,
    /// The client's own parameters.
    pub(crate) parameters: Vec<(String, Parameter)>,
    /// Its place in a sequence.
    pub(crate) sequence: Option<SequenceStep>,
    /// Its trace, which gets children.
    pub(crate) trace: Option<Arc<RequestTrace>>,
}

/// Waits for a request's answer. Its owner answers the request, once.
pub(crate) struct InferWaiter {
    pub(crate) id: RequestId,
    pub(crate) reply: InferReply,
    pub(crate) arrived: Time,
}

impl PreparedRequest {
    fn is_ragged(&self, input: usize) -> bool {
        self.ragged.iter().any(|index| usize::from(*index) == input)
    }
}

impl Job {
    /// A job that no driver has taken.
    pub(crate) fn new(prepared: PreparedRequest, reply: InferReply, arrived: Time) -> Box<Self> {
        Box::new(Self {
            id: RequestId(0),
            prepared,
            memory: None,
            digest: None,
            passed_on: None,
            reply: Some(reply),
            arrived,
        })
    }

    /// Takes the waiter out. Panics when called twice.
    pub(crate) fn take_waiter(&mut self) -> InferWaiter {
        InferWaiter {
            id: self.id,
            reply: self.reply.take().expect("a request is answered once"),
            arrived: self.arrived,
        }
    }
}

/// Jobs can share a batch if they omit the same inputs, and if their tensors, except ragged ones, have the same shape
/// apart from the first dimension, and so have the states of their sequences.
impl Payload for Box<Job> {
    fn joins(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.prepared, &other.prepared);
        let mut pairs = ours.inputs.iter().zip(&theirs.inputs).enumerate();
        ours.omitted == theirs.omitted
            && pairs.all(|(index, (a, b))| {
                a.shape().dims().get(1..) == b.shape().dims().get(1..) || ours.is_ragged(index)
            })
            && match (&ours.sequence, &self.memory, &other.memory) {
                (Some(sequence), Some(a), Some(b)) if sequence.varies => a.joins(b),
                _ => true,
            }
    }
}

impl SequencePayload for Box<Job> {
    type Memory = SequenceMemory;

    fn step(&self) -> &SequenceStep {
        let sequence = self.prepared.sequence.as_ref();
        &sequence.expect("requests of such a model are checked").step
    }

    fn remember(&mut self, memory: &SequenceMemory) {
        if let Some(initial) = self
            .prepared
            .sequence
            .as_mut()
            .and_then(|s| s.initial.take())
        {
            memory.put(initial.iter().cloned().collect(), None);
        }
        self.memory = Some(memory.clone());
    }

    fn enters(&mut self, turn: RequestId) {
        self.id = turn;
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("batch_size", &self.prepared.batch_size)
            .finish_non_exhaustive()
    }
}
