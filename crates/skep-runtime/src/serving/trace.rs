//! The trace of a request: when it reached which point, and what it was.
//!
//! ```text
//! edge   makes a RequestTrace and marks when bytes came and went
//! infer  notes the model, and marks from REQUEST_START to REQUEST_END
//! child  the trace of a further request that this one makes: an ensemble's step
//! ```
//!
//! A trace travels with its [`InferRequest`](crate::InferRequest). The times of an execution are those of
//! [`Timing`](crate::Timing), which the statistics have too.

use std::sync::{Arc, Mutex};

use skep_host::lock;
use skep_tensor::Tensor;
use skep_types::{ModelName, ModelVersion, Time};

use crate::{
    clock,
    error::RuntimeError,
    serving::{
        LoadedVersion,
        request::{InferRequest, InferResponse, Timing},
    },
};

/// Triton's names of the points that the runtime marks.
mod points {
    pub(super) const REQUEST_START: &str = "REQUEST_START";
    pub(super) const QUEUE_START: &str = "QUEUE_START";
    pub(super) const COMPUTE_START: &str = "COMPUTE_START";
    pub(super) const COMPUTE_INPUT_END: &str = "COMPUTE_INPUT_END";
    pub(super) const COMPUTE_OUTPUT_START: &str = "COMPUTE_OUTPUT_START";
    pub(super) const COMPUTE_END: &str = "COMPUTE_END";
    pub(super) const REQUEST_END: &str = "REQUEST_END";
    pub(super) const TENSOR_QUEUE_INPUT: &str = "TENSOR_QUEUE_INPUT";
    pub(super) const TENSOR_BACKEND_OUTPUT: &str = "TENSOR_BACKEND_OUTPUT";
}

/// The trace of a request, written by whatever handles it.
#[derive(Debug)]
pub struct RequestTrace {
    keeps_tensors: bool,
    record: Mutex<TraceRecord>,
}

/// What a trace has recorded.
#[derive(Debug, Clone, Default)]
pub struct TraceRecord {
    /// The model and its version; `None` if the request reached none.
    pub model: Option<(ModelName, ModelVersion)>,
    /// The client's id of the request; may be empty.
    pub request_id: String,
    /// Points and when they were reached, on the clock of [`RequestTrace::now`].
    pub points: Vec<(&'static str, Time)>,
    /// The batch that it was executed in; `None` if it was not executed.
    pub batch: Option<TracedBatch>,
    /// Why it failed.
    pub error: Option<String>,
    /// Its tensors, if the trace keeps them.
    pub tensors: Vec<TracedTensor>,
    /// The requests that it made.
    pub children: Vec<Arc<RequestTrace>>,
}

/// The batch of a traced request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TracedBatch {
    /// Inferences in the batch.
    pub size: usize,
    /// Why it was closed: a `reason` of `skep_batch_end_total`.
    pub end: &'static str,
}

/// A tensor in a trace.
#[derive(Debug, Clone)]
pub struct TracedTensor {
    /// Triton's name of the point: `TENSOR_QUEUE_INPUT` or `TENSOR_BACKEND_OUTPUT`.
    pub point: &'static str,
    /// The tensor's name.
    pub name: Arc<str>,
    /// Its value.
    pub tensor: Tensor,
}

impl TraceRecord {
    /// Bytes of its tensors.
    #[must_use]
    pub fn tensor_bytes(&self) -> usize {
        let tensors = self.tensors.iter();
        tensors.map(|traced| traced.tensor.data().len()).sum()
    }
}

impl RequestTrace {
    /// An empty trace.
    #[must_use]
    pub fn new(keeps_tensors: bool) -> Arc<Self> {
        Arc::new(Self {
            keeps_tensors,
            record: Mutex::default(),
        })
    }

    /// Now, on the clock of traces: monotonic, since the machine's start.
    #[must_use]
    pub fn now() -> Time {
        clock::now()
    }

    /// The request reaches a point now.
    pub fn mark(&self, point: &'static str) {
        self.mark_at(point, clock::now());
    }

    /// The request reached a point at this time.
    pub fn mark_at(&self, point: &'static str, at: Time) {
        lock(&self.record).points.push((point, at));
    }

    /// The request failed, unless it is known already why.
    pub fn failed(&self, why: &str) {
        lock(&self.record)
            .error
            .get_or_insert_with(|| why.to_owned());
    }

    /// The trace of a further request that this one makes.
    #[must_use]
    pub fn child(&self) -> Arc<Self> {
        let child = Self::new(self.keeps_tensors);
        lock(&self.record).children.push(Arc::clone(&child));
        child
    }

    /// Takes out what was recorded.
    #[must_use]
    pub fn take(&self) -> TraceRecord {
        std::mem::take(&mut lock(&self.record))
    }

    /// The request arrived at a version.
    pub(crate) fn begins(&self, version: &LoadedVersion, request: &InferRequest, arrived: Time) {
        let mut record = lock(&self.record);
        record.model = Some((version.name().clone(), version.version()));
        record.request_id.clone_from(&request.id);
        if let Some(first) = record.position(points::REQUEST_START) {
            // A step that found a full queue is made again, and has waited since then.
            record.points.truncate(first + 1);
            record.tensors.clear();
            record.error = None;
        } else {
            record.points.push((points::REQUEST_START, arrived));
        }
        if self.keeps_tensors {
            let inputs = request.inputs.iter();
            record
                .tensors
                .extend(inputs.map(|(name, tensor)| TracedTensor {
                    point: points::TENSOR_QUEUE_INPUT,
                    name: name.as_str().into(),
                    tensor: tensor.clone(),
                }));
        }
    }

    /// The request waits for its answer from now on.
    pub(crate) fn waits(&self) {
        self.mark(points::QUEUE_START);
    }

    /// The request that arrived at `arrived` has its answer. `is_executed` says whether an instance gave it: the times of
    /// an ensemble are sums over its steps, which have traces of their own.
    pub(crate) fn ends(
        &self,
        outcome: &Result<InferResponse, RuntimeError>,
        arrived: Time,
        is_executed: bool,
    ) {
        let mut record = lock(&self.record);
        match outcome {
            Ok(response) => {
                if let Some(timing) = response.timing.as_ref().filter(|_| is_executed) {
                    record.executed(timing, arrived);
                }
                if self.keeps_tensors {
                    let outputs = response.outputs.iter();
                    record.tensors.extend(outputs.map(|output| TracedTensor {
                        point: points::TENSOR_BACKEND_OUTPUT,
                        name: Arc::clone(&output.name),
                        tensor: output.tensor.clone(),
                    }));
                }
            }
            Err(error) => record.error = Some(error.to_string()),
        }
        record.points.push((points::REQUEST_END, clock::now()));
    }
}

impl TraceRecord {
    fn position(&self, point: &str) -> Option<usize> {
        self.points.iter().position(|(name, _)| *name == point)
    }

    fn executed(&mut self, timing: &Timing, arrived: Time) {
        let began = arrived + timing.queue;
        let gathered = began + timing.compute_input;
        let ran = gathered + timing.compute_infer;
        self.points.extend([
            (points::COMPUTE_START, began),
            (points::COMPUTE_INPUT_END, gathered),
            (points::COMPUTE_OUTPUT_START, ran),
            (points::COMPUTE_END, ran + timing.compute_output),
        ]);
        self.batch = Some(TracedBatch {
            size: timing.batch_size,
            end: timing.batch_end,
        });
    }
}
