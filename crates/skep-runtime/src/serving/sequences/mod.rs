//! Requests of sequences: what the model is told of them, and the states that the server keeps between them.
//!
//! The scheduler decides which requests run together (`skep_scheduler::SequenceScheduler`). Here is what a batch of them
//! gets besides its requests' own inputs: `controls.rs` tells the model of starts and ends, `states.rs` hands the states
//! from one run to the next, `memory.rs` keeps them meanwhile.
//!
//! Source: Triton, user guide, "Implicit State Management".

mod controls;
mod memory;
mod states;

use std::{path::Path, sync::Arc};

use skep_config::{ModelConfig, SequenceBatching};
use skep_tensor::Tensor;
use skep_types::{CorrelationId, DataType, ModelSignature, SequenceStep};

use self::{controls::ControlFeed, states::StateFeed};
pub(crate) use self::{memory::SequenceMemory, states::NextStates};
use crate::{
    error::RuntimeError,
    serving::{interface::Interface, request::InferRequest},
};

/// The longest textual correlation id in bytes: Triton's limit.
const MAX_ID_BYTES: usize = 128;

/// A request's place in a sequence, and what its sequence begins with.
#[derive(Debug, Clone)]
pub(crate) struct SequenceRequest {
    pub(crate) step: SequenceStep,
    /// The states that the sequence begins with, if the request starts one.
    pub(crate) initial: Option<Arc<[Tensor]>>,
    /// Whether the shapes of states may differ between sequences.
    pub(crate) varies: bool,
}

/// The inputs that the server sets, and the states that it keeps.
#[derive(Debug)]
pub(crate) struct SequenceFeeds {
    controls: Vec<ControlFeed>,
    states: Vec<StateFeed>,
    /// The states that a sequence begins with, in their order.
    initial: Arc<[Tensor]>,
    varies: bool,
    /// The datatype in which the model is told the correlation id, if it is.
    id_datatype: Option<DataType>,
}

/// An input that the server sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SequenceInput {
    /// One of the controls.
    Control(usize),
    /// One of the states.
    State(usize),
}

impl SequenceFeeds {
    /// `None` for a model without sequences.
    ///
    /// # Errors
    /// When the data of an initial state cannot be read or does not fit.
    pub(crate) fn read(
        config: &ModelConfig,
        signature: &ModelSignature,
        directory: &Path,
    ) -> Result<Option<Self>, RuntimeError> {
        let Some(batching) = config.sequences() else {
            return Ok(None);
        };
        let SequenceBatching {
            controls, states, ..
        } = batching;
        let batched = config.is_batched();
        let initial = states
            .iter()
            .map(|state| states::initial(state, signature, directory));
        let id = controls
            .iter()
            .find(|control| control.kind == skep_config::ControlKind::CorrelationId);
        Ok(Some(Self {
            initial: initial.collect::<Result<_, _>>()?,
            varies: states
                .iter()
                .any(|state| state.input.dims.as_slice().contains(&-1)),
            id_datatype: id.map(|control| control.datatype),
            controls: controls
                .iter()
                .map(|control| ControlFeed::new(control, batched, signature))
                .collect(),
            states: states
                .iter()
                .filter_map(|state| StateFeed::new(state, config, signature))
                .collect(),
        }))
    }

    /// What the model's input of this name gets.
    pub(crate) fn input(&self, name: &str) -> Option<SequenceInput> {
        let mut controls = self.controls.iter();
        let control = controls.position(|control| control.control.name == name);
        let mut states = self.states.iter();
        let state = states.position(|state| state.input == name);
        control
            .map(SequenceInput::Control)
            .or(state.map(SequenceInput::State))
    }

    /// A request of a sequence of its own, for runs outside of serving.
    pub(crate) fn alone(&self) -> SequenceRequest {
        SequenceRequest {
            step: SequenceStep {
                id: CorrelationId::Number(1),
                start: true,
                end: true,
            },
            initial: Some(Arc::clone(&self.initial)),
            varies: self.varies,
        }
    }

    /// Checks a request's place in its sequence, in Triton's words. `batch_size` is the request's.
    pub(crate) fn check(
        &self,
        request: &InferRequest,
        batch_size: usize,
        interface: &Interface,
    ) -> Result<SequenceRequest, RuntimeError> {
        let model = &interface.model;
        if batch_size > 1 {
            return Err(RuntimeError::invalid(format!(
                "inference request to model '{model}' must specify batch-size 1 due to requirements of sequence batcher"
            )));
        }
        let Some(step) = &request.sequence else {
            return Err(RuntimeError::invalid(format!(
                "inference request to model '{model}' must specify a non-zero or non-empty correlation ID"
            )));
        };
        self.check_id(&step.id).map_err(|why| {
            RuntimeError::invalid(format!("inference request to model '{model}': {why}"))
        })?;
        Ok(SequenceRequest {
            step: step.clone(),
            initial: step.start.then(|| Arc::clone(&self.initial)),
            varies: self.varies,
        })
    }

    /// Refuses an id that the model cannot be told.
    fn check_id(&self, id: &CorrelationId) -> Result<(), String> {
        let datatype = self.id_datatype;
        match (id, datatype) {
            (CorrelationId::Text(text), _) if text.len() > MAX_ID_BYTES => Err(format!(
                "string correlation ID cannot be longer than {MAX_ID_BYTES} bytes, got {}",
                text.len()
            )),
            (CorrelationId::Text(_), Some(datatype)) if datatype != DataType::Bytes => {
                Err(format!(
                    "the model takes the correlation ID as {datatype}, got a string: use a number"
                ))
            }
            (CorrelationId::Number(number), Some(DataType::Uint32 | DataType::Int32))
                if u32::try_from(*number).is_err()
                    || datatype == Some(DataType::Int32) && i32::try_from(*number).is_err() =>
            {
                let datatype = datatype.map(|d| d.to_string()).unwrap_or_default();
                Err(format!(
                    "the model takes the correlation ID as {datatype}, which cannot hold {number}"
                ))
            }
            _ => Ok(()),
        }
    }
}
