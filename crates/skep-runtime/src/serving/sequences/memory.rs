//! What the server keeps between the requests of a sequence.

use std::sync::{Arc, Mutex};

use skep_host::lock;
use skep_tensor::{Charge, Tensor};
use smallvec::SmallVec;

/// The states of a model for one sequence.
pub(super) type StateTensors = SmallVec<[Tensor; 2]>;

/// The states of one sequence, shared by its requests and the scheduler. They are freed with the last holder: when the
/// sequence has ended and none of its requests runs.
///
/// At most one request of a sequence runs at any moment, so that nobody waits for the lock.
#[derive(Debug, Clone, Default)]
pub(crate) struct SequenceMemory(Arc<Mutex<KeptStates>>);

#[derive(Debug, Default)]
struct KeptStates {
    tensors: StateTensors,
    /// The memory of the tensors, if memory is counted. The sequences of a batch share theirs: the states lie in one
    /// piece of memory, which is freed with the last of them.
    _charge: Option<Arc<Charge>>,
}

impl SequenceMemory {
    /// The state with this index; `None` before the first one was put.
    pub(super) fn state(&self, index: usize) -> Option<Tensor> {
        lock(&self.0).tensors.get(index).cloned()
    }

    /// Puts the states for the next request.
    pub(crate) fn put(&self, tensors: StateTensors, charge: Option<Arc<Charge>>) {
        let next = KeptStates {
            tensors,
            _charge: charge,
        };
        // The old ones are freed without the lock.
        let _old = std::mem::replace(&mut *lock(&self.0), next);
    }

    /// Whether the states have the same shapes as others, and can be joined with them.
    pub(crate) fn joins(&self, other: &Self) -> bool {
        let (ours, theirs) = (lock(&self.0), lock(&other.0));
        let mut pairs = ours.tensors.iter().zip(&theirs.tensors);
        pairs.all(|(a, b)| a.shape() == b.shape())
    }
}
