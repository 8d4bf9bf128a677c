//! A batch's inputs: the tensors of its requests, joined along the batch axis with one copy; none for a batch of one.

use skep_backend::BackendError;
use skep_tensor::{Tensor, gather};
use smallvec::SmallVec;

use crate::{
    error::RuntimeError,
    serving::{
        interface::{Interface, OmittedInput},
        job::Job,
    },
};

/// The model's inputs for a batch, in its order. `joined` keeps the tensors that are made for it.
pub(super) fn batch_inputs<'a>(
    interface: &Interface,
    jobs: &'a [Box<Job>],
    joined: &'a mut SmallVec<[Tensor; 4]>,
) -> Result<&'a [Tensor], RuntimeError> {
    *joined = match (&interface.ragged, jobs) {
        // A batch of one runs on the request's own memory.
        (None, [job]) => return Ok(&job.prepared.inputs),
        (None, _) => {
            let inputs = 0..interface.inputs.len();
            inputs
                .map(|index| join(interface, jobs, index))
                .collect::<Result<_, _>>()?
        }
        (Some(ragged), _) => ragged.feed(jobs, |index| join(interface, jobs, index))?,
    };
    Ok(&joined[..])
}

/// One input of all jobs, joined along the batch axis.
fn join(interface: &Interface, jobs: &[Box<Job>], index: usize) -> Result<Tensor, RuntimeError> {
    let first = &jobs[0].prepared;
    if first.omitted.iter().any(|o| usize::from(*o) == index) && has_default(interface, index) {
        // All jobs of a batch omit the same inputs: the model gets the default once.
        return Ok(first.inputs[index].clone());
    }
    let parts: SmallVec<[Tensor; 8]> = jobs
        .iter()
        .map(|job| job.prepared.inputs[index].clone())
        .collect();
    gather(&parts).map_err(|error| BackendError::from(error).into())
}

/// Whether the model's graph has a default value for an input.
fn has_default(interface: &Interface, position: usize) -> bool {
    interface.inputs.iter().any(|input| {
        input.position == position && matches!(input.when_omitted, Some(OmittedInput::Default(_)))
    })
}
