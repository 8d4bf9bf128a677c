//! A batch's inputs: the tensors of its requests, joined along the batch axis with one copy; none for a batch of one.

use skep_backend::BackendError;
use skep_tensor::{Tensor, gather};
use smallvec::SmallVec;

use crate::{
    error::RuntimeError,
    serving::{
        batch::BatchRow,
        interface::{Interface, OmittedInput},
        sequences::SequenceInput,
    },
};

/// The model's inputs for a batch, in its order. `joined` keeps the tensors that are made for it.
pub(super) fn batch_inputs<'a>(
    interface: &Interface,
    rows: &[BatchRow<'a>],
    joined: &'a mut SmallVec<[Tensor; 4]>,
) -> Result<&'a [Tensor], RuntimeError> {
    *joined = match (&interface.feeds, rows) {
        // A batch of one runs on the request's own memory.
        (None, [row]) => return Ok(&row.like.prepared.inputs),
        (None, _) => {
            let inputs = 0..interface.inputs.len();
            inputs
                .map(|index| join(interface, rows, index))
                .collect::<Result<_, _>>()?
        }
        (Some(feeds), _) => feeds.feed(
            rows,
            |index| join(interface, rows, index),
            |input| sequence_input(interface, rows, input),
        )?,
    };
    Ok(&joined[..])
}

/// One input of all rows, joined along the batch axis.
fn join(
    interface: &Interface,
    rows: &[BatchRow<'_>],
    index: usize,
) -> Result<Tensor, RuntimeError> {
    let first = &rows[0].like.prepared;
    if first.omitted.iter().any(|o| usize::from(*o) == index) && has_default(interface, index) {
        // All jobs of a batch omit the same inputs: the model gets the default once.
        return Ok(first.inputs[index].clone());
    }
    let parts: SmallVec<[Tensor; 8]> = rows.iter().map(|row| row.input(index)).collect();
    gather(&parts).map_err(|error| BackendError::from(error).into())
}

/// An input of sequences.
fn sequence_input(
    interface: &Interface,
    rows: &[BatchRow<'_>],
    input: SequenceInput,
) -> Result<Tensor, RuntimeError> {
    let sequences = interface.sequences.as_ref();
    let sequences = sequences.expect("only they have such inputs");
    match input {
        SequenceInput::Control(index) => sequences.control(index, rows),
        SequenceInput::State(index) => sequences.state(index, rows),
    }
}

/// Whether the model's graph has a default value for an input.
fn has_default(interface: &Interface, position: usize) -> bool {
    interface.inputs.iter().any(|input| {
        input.position == position && matches!(input.when_omitted, Some(OmittedInput::Default(_)))
    })
}
