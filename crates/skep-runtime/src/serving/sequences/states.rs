//! States on their way: from the memory of sequences into a batch, and from what the model gave back into the memory.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use skep_config::{InitialData, ModelConfig, OutputConfig, SequenceState};
use skep_tensor::{Tensor, gather, split};
use skep_types::{DataType, ModelSignature, Shape};
use smallvec::SmallVec;

use super::{SequenceFeeds, memory::StateTensors};
use crate::{
    error::RuntimeError,
    serving::{
        batch::{BatchRow, RunOutput},
        job::Job,
    },
};

/// The directory of a model's initial states.
const DATA_DIRECTORY: &str = "initial_state";

/// As large as a client's request may be.
const MAX_FILE_BYTES: u64 = 2 << 30;

/// A state of each sequence.
#[derive(Debug)]
pub(super) struct StateFeed {
    /// The model's input.
    pub(super) input: String,
    output: OutputConfig,
    /// The index of the model's output.
    position: usize,
    /// The index among the interface's outputs, if responses have it, too.
    listed: Option<usize>,
}

impl StateFeed {
    /// `None` if the model has no such output, which is refused before.
    pub(super) fn new(
        state: &SequenceState,
        config: &ModelConfig,
        signature: &ModelSignature,
    ) -> Option<Self> {
        let name = &state.output.name;
        let mut outputs = signature.outputs.iter();
        let mut listed = config.outputs().iter();
        Some(Self {
            input: state.input.name.clone(),
            output: state.output.clone(),
            position: outputs.position(|spec| spec.name == *name)?,
            listed: listed.position(|output| output.name == *name),
        })
    }
}

/// The state that a sequence begins with.
pub(super) fn initial(
    state: &SequenceState,
    signature: &ModelSignature,
    directory: &Path,
) -> Result<Tensor, RuntimeError> {
    let spec = signature.input(&state.input.name);
    let dims = spec.and_then(|spec| spec.dims.as_ref());
    let shape = if state.input.batched {
        let mut dims = state.initial_shape.dims().to_vec();
        dims.insert(0, 1);
        Shape::new(&dims).map_err(internal)?
    } else if dims.is_some_and(|dims| dims.rank() == 0) {
        Shape::scalar()
    } else {
        state.initial_shape.clone()
    };
    let datatype = state.input.datatype;
    match &state.initial_data {
        InitialData::Zero => Ok(Tensor::zeros(datatype, shape)),
        InitialData::File(name) => {
            let path = directory.join(DATA_DIRECTORY).join(name);
            let failed = |why: String| {
                RuntimeError::invalid(format!(
                    "cannot use `{}` as the initial state of `{}`: {why}",
                    path.display(),
                    state.input.name
                ))
            };
            let data = skep_host::read_file(&path, MAX_FILE_BYTES)
                .map_err(|error| failed(error.to_string()))?;
            Tensor::new(datatype, shape, Bytes::from(data))
                .map_err(|error| failed(error.to_string()))
        }
    }
}

/// The states that a batch gave, for each of its jobs, and the charge for their memory.
pub(crate) struct NextStates {
    of_jobs: SmallVec<[StateTensors; 4]>,
    bytes: usize,
}

impl SequenceFeeds {
    /// The positions and datatypes of the model's outputs that a run gives for the states, besides the `wanted` outputs
    /// of the interface.
    pub(crate) fn further_outputs<'a>(
        &'a self,
        wanted: &'a [usize],
    ) -> impl Iterator<Item = (usize, DataType)> + 'a {
        let further = self.states.iter().filter(|state| !state.is_among(wanted));
        further.map(|state| (state.position, state.output.datatype))
    }

    /// A state of each row, joined: no copy for a batch of one. A row without a request gets zeros.
    pub(crate) fn state(
        &self,
        index: usize,
        rows: &[BatchRow<'_>],
    ) -> Result<Tensor, RuntimeError> {
        let mut parts: SmallVec<[Option<Tensor>; 8]> = SmallVec::new();
        for row in rows {
            let Some(job) = row.job else {
                parts.push(None);
                continue;
            };
            let kept = job.memory.as_ref().and_then(|memory| memory.state(index));
            let kept = kept.unwrap_or_else(|| self.initial[index].clone());
            // Only runs outside of serving have more than one inference.
            parts.extend(std::iter::repeat_n(Some(kept), row.size()));
        }
        let like = parts.iter().flatten().next().cloned();
        let Some(like) = like else {
            return Ok(self.initial[index].clone());
        };
        let zeros = Tensor::zeros(like.datatype(), like.shape().clone());
        let parts = parts
            .into_iter()
            .map(|part| part.unwrap_or_else(|| zeros.clone()));
        gather(&parts.collect::<SmallVec<[Tensor; 8]>>()).map_err(internal)
    }

    /// The states for the next requests. `outputs` are those of the run: the `wanted` ones, and then the
    /// [further](Self::further_outputs) ones.
    pub(crate) fn next_states(
        &self,
        outputs: &[RunOutput],
        wanted: &[usize],
        rows: &[BatchRow<'_>],
    ) -> Result<NextStates, RuntimeError> {
        let jobs = rows.iter().filter(|row| row.job.is_some()).count();
        let mut next = NextStates {
            of_jobs: SmallVec::from_elem(StateTensors::new(), jobs),
            bytes: 0,
        };
        let mut further = outputs.iter().skip(wanted.len());
        for state in &self.states {
            let listed = state.listed.and_then(|listed| {
                let index = wanted.iter().position(|wanted| *wanted == listed)?;
                outputs.get(index)
            });
            let given = listed.or_else(|| further.next());
            let given = given.ok_or_else(|| internal("a run gave no state"))?;
            let tensor = state.checked(given)?;
            next.bytes += tensor.data().len();
            if !state.output.batched {
                if let Some(states) = next.of_jobs.first_mut() {
                    states.push(tensor);
                }
                continue;
            }
            let sizes = rows.iter().map(BatchRow::size);
            let parts = split(&tensor, &sizes.collect::<SmallVec<[usize; 8]>>())
                .map_err(|error| state.wrong(&error.to_string()))?;
            let taken = parts
                .into_iter()
                .zip(rows)
                .filter(|(_, row)| row.job.is_some());
            for (states, (part, _)) in next.of_jobs.iter_mut().zip(taken) {
                states.push(part);
            }
        }
        Ok(next)
    }
}

impl StateFeed {
    fn is_among(&self, wanted: &[usize]) -> bool {
        self.listed.is_some_and(|listed| wanted.contains(&listed))
    }

    /// The state, alone in its memory, if the model gave what the configuration says.
    fn checked(&self, given: &RunOutput) -> Result<Tensor, RuntimeError> {
        let tensor = &given.tensor;
        if tensor.datatype() != self.output.datatype {
            let text = format!(
                "the model gave {}, the configuration says {}",
                tensor.datatype(),
                self.output.datatype
            );
            return Err(self.wrong(&text));
        }
        let dims = tensor.shape().dims();
        let inner = dims
            .get(usize::from(self.output.batched)..)
            .unwrap_or_default();
        let is_scalar = !self.output.batched && dims.is_empty();
        if !self.output.dims.accepts(inner) && !is_scalar {
            let expected = self.output.full_dims();
            let text = format!(
                "the model gave shape {}, expected {expected}",
                tensor.shape()
            );
            return Err(self.wrong(&text));
        }
        if given.owns_memory {
            return Ok(tensor.clone());
        }
        // It would keep memory of the backend's until the sequence's next request.
        tensor.try_copy().map_err(internal)
    }

    fn wrong(&self, what: &str) -> RuntimeError {
        internal(format!("state output `{}`: {what}", self.output.name))
    }
}

impl NextStates {
    /// Charges the states' memory, which they hold until their sequences' next requests have run, and puts them.
    ///
    /// # Errors
    /// When the node's memory for requests is full; the sequences keep the states that they had.
    pub(crate) fn put(self, jobs: &[Box<Job>]) -> Result<(), RuntimeError> {
        let charge = jobs.first().and_then(|job| job.prepared.charge.as_ref());
        let charge = charge.map(|charge| Arc::new(charge.sibling()));
        if let Some(charge) = &charge {
            charge
                .add(self.bytes)
                .map_err(RuntimeError::memory_is_full)?;
        }
        for (job, states) in jobs.iter().zip(self.of_jobs) {
            if let Some(memory) = &job.memory {
                memory.put(states, charge.clone());
            }
        }
        Ok(())
    }
}

fn internal(error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::internal(error.to_string())
}
