//! From what a model gave for a batch to the outputs of each of its requests: split along the batch axis, without a
//! copy, and in the shapes that clients see.

use std::sync::{Arc, atomic::Ordering};

use skep_backend::OutputSlot;
use skep_tensor::{Charge, Tensor, split};
use skep_types::Shape;
use smallvec::SmallVec;

use crate::{
    error::RuntimeError,
    serving::{
        batch::{BatchRow, RunOutput},
        interface::{Interface, InterfaceTensor},
        job::Job,
        ragged,
        request::NamedTensor,
        validate::reshaped,
    },
};

/// What to do about an output without a batch dimension.
const NO_BATCHES: &str = "write `max_batch_size: 0` in the model's configuration if this output does not begin with the batch";

/// Where a backend puts a batch's outputs.
pub(super) type OutputSlots = SmallVec<[OutputSlot; 4]>;

/// Each job's outputs, in the order in which its client wants them.
pub(super) type BatchOutputs = SmallVec<[Vec<NamedTensor>; 4]>;

/// One output of a batch: a part for each job.
type BatchParts = SmallVec<[Tensor; 1]>;

/// The interface's indices of the outputs that any job wants, ascending.
pub(super) fn wanted_outputs(interface: &Interface, jobs: &[Box<Job>]) -> SmallVec<[usize; 4]> {
    let all = 0..interface.outputs.len();
    all.filter(|index| jobs.iter().any(|job| job.prepared.outputs.contains(index)))
        .collect()
}

/// What a run gave, in the order of its slots: the `wanted` outputs and then further ones.
pub(super) fn given_outputs(
    interface: &Interface,
    slots: OutputSlots,
    wanted: &[usize],
) -> Result<SmallVec<[RunOutput; 4]>, RuntimeError> {
    let given = slots.into_iter().enumerate().map(|(index, slot)| {
        RunOutput::of(slot).ok_or_else(|| {
            let port = wanted
                .get(index)
                .map(|index| &*interface.outputs[*index].name);
            RuntimeError::internal(format!(
                "model `{}` gave no output `{}`",
                interface.model,
                port.unwrap_or("of a state")
            ))
        })
    });
    given.collect()
}

/// Splits a batch's outputs among its jobs.
pub(super) struct OutputSplitter<'a> {
    pub(super) interface: &'a Interface,
    pub(super) rows: &'a [BatchRow<'a>],
}

impl OutputSplitter<'_> {
    /// Each job's outputs, from what a run gave, of which the first are the `wanted` ones in their order.
    pub(super) fn split(
        &self,
        given: &[RunOutput],
        wanted: &[usize],
    ) -> Result<BatchOutputs, RuntimeError> {
        // By the interface's index; empty for an output that no job wants.
        let mut parts: SmallVec<[BatchParts; 4]> = SmallVec::new();
        parts.resize(self.interface.outputs.len(), BatchParts::new());
        // By the same index: whether an output is alone in its memory.
        let mut own: SmallVec<[bool; 4]> = SmallVec::from_elem(false, parts.len());
        for (output, &index) in given.iter().zip(wanted) {
            own[index] = output.owns_memory && self.rows.len() == 1;
            let tensor = output.tensor.clone();
            let feeds = self.interface.feeds.as_ref();
            parts[index] = match feeds.and_then(|feeds| feeds.scattered_by(index)) {
                Some(source) => self.scatter(&tensor, index, source)?,
                None => self.parts(self.client_shape(tensor, index)?, index)?,
            };
        }
        let rows = self.rows.iter().enumerate();
        let jobs = rows.filter_map(|(position, row)| Some((position, row.job?)));
        let outputs = jobs.map(|(position, job)| {
            let indices = job.prepared.outputs.iter();
            let named = indices.map(|&index| NamedTensor {
                name: Arc::clone(&self.interface.outputs[index].name),
                tensor: parts[index][position].clone(),
                owns_memory: own[index],
            });
            named.collect()
        });
        Ok(outputs.collect())
    }

    /// Splits an output along the batch axis.
    fn parts(&self, tensor: Tensor, index: usize) -> Result<BatchParts, RuntimeError> {
        let sizes = self.rows.iter().map(BatchRow::size);
        let sizes: SmallVec<[usize; 8]> = sizes.collect();
        let whole = self.interface.max_batch_size == 0
            || (sizes.len() == 1 && tensor.shape().dims().first() == sizes.first());
        if whole {
            return Ok(SmallVec::from_buf([tensor]));
        }
        split(&tensor, &sizes)
            .map(SmallVec::from_vec)
            .map_err(|error| self.wrong_output(index, &format!("{error}\n{NO_BATCHES}")))
    }

    /// Splits an output whose shape in each request is that of the request's input `source`.
    fn scatter(
        &self,
        tensor: &Tensor,
        index: usize,
        source: usize,
    ) -> Result<BatchParts, RuntimeError> {
        let config = &self.interface.outputs[index].config;
        self.check_datatype(tensor, index)?;
        let shapes = self.rows.iter().map(|row| row.shape(source));
        let shapes: SmallVec<[&Shape; 8]> = shapes.collect();
        ragged::scatter(tensor, &config.full_dims(), &shapes)
            .map_err(|error| self.wrong_output(index, &error))
    }

    /// Gives an output the shape that clients see. An output whose shape contradicts the configuration keeps its own,
    /// as on Triton: files are often wrong about shapes, and clients rely on those in the response.
    fn client_shape(&self, tensor: Tensor, index: usize) -> Result<Tensor, RuntimeError> {
        let port = &self.interface.outputs[index];
        let config = &port.config;
        self.check_datatype(&tensor, index)?;
        let dims = tensor.shape().dims();
        let (batch, inner) = dims.split_at(usize::from(config.batched).min(dims.len()));
        let shape = match &config.reshape {
            _ if !config.model_dims().accepts(inner) => None,
            None => return Ok(tensor),
            Some(reshape) => reshaped(reshape, &config.dims, batch, inner),
        };
        if let Some(shape) = shape
            && let Ok(shaped) = tensor.clone().reshape(shape)
        {
            return Ok(shaped);
        }
        // A scalar is a tensor of one element to clients.
        if dims.is_empty()
            && !config.batched
            && let Ok(shape) = Shape::new(&[1])
            && let Ok(one) = tensor.clone().reshape(shape)
        {
            if !config.dims.accepts(&[1]) {
                self.warn_of_other_shape(port, tensor.shape());
            }
            return Ok(one);
        }
        self.warn_of_other_shape(port, tensor.shape());
        Ok(tensor)
    }

    /// Warns, once for each output, that the shape of an output contradicts the configuration.
    fn warn_of_other_shape(&self, port: &InterfaceTensor, shape: &Shape) {
        if port.warned_of_shape.swap(true, Ordering::Relaxed) {
            return;
        }
        let (name, model) = (&port.name, &self.interface.model);
        let expected = port.config.full_dims();
        tracing::warn!(
            "output `{name}` of model `{model}` has shape {shape}, expected {expected}: clients get the shape that the model gives; \
             write -1 in the configuration's dims for dimensions that vary"
        );
    }

    fn check_datatype(&self, tensor: &Tensor, index: usize) -> Result<(), RuntimeError> {
        let (got, expected) = (
            tensor.datatype(),
            self.interface.outputs[index].config.datatype,
        );
        if got == expected {
            return Ok(());
        }
        let text = format!("the model gave {got}, the configuration says {expected}");
        Err(self.wrong_output(index, &text))
    }

    fn wrong_output(&self, index: usize, what: &str) -> RuntimeError {
        let name = &self.interface.outputs[index].name;
        RuntimeError::internal(format!(
            "output `{name}` of model `{}`: {what}",
            self.interface.model
        ))
    }
}

/// Charges the memory of a batch's outputs before clients begin to read the responses.
///
/// The outputs of a single job are added to its own charge. Those of several jobs share their memory, which is freed
/// with the last of their responses: their charge is returned, and every response holds it.
pub(super) fn charge_outputs(
    jobs: &[Box<Job>],
    outputs: &[Vec<NamedTensor>],
) -> Result<Option<Arc<Charge>>, RuntimeError> {
    let Some(charge) = jobs.first().and_then(|job| job.prepared.charge.as_ref()) else {
        return Ok(None);
    };
    let tensors = outputs.iter().flatten();
    let bytes = tensors.map(|output| output.tensor.data().len()).sum();
    let (shared, added) = if let [_] = jobs {
        (None, charge.add(bytes))
    } else {
        let shared = Arc::new(charge.sibling());
        let added = shared.add(bytes);
        (Some(shared), added)
    };
    added.map(|()| shared).map_err(RuntimeError::memory_is_full)
}
