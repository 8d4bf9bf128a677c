//! What both protocols do with a request: its id in texts, its parameters, its failure, its charge.

use std::{fmt, time::Duration};

use skep_runtime::{ErrorKind, InferRequest, InferResponse, LoadedVersion, RuntimeError};
use skep_tensor::Charge;
use skep_types::{CorrelationId, SequenceStep};

use crate::error::ApiError;

/// Why a request has no answer.
pub(crate) struct InferenceFailure {
    pub(crate) error: ApiError,
    /// Whether the request reached the model.
    pub(crate) ran: bool,
}

impl<E: Into<ApiError>> From<E> for InferenceFailure {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            ran: false,
        }
    }
}

/// The id that errors and log lines give a request without one.
const UNKNOWN_ID: &str = "<id_unknown>";

/// A request's id in errors and log lines.
fn shown(id: &str) -> &str {
    if id.is_empty() { UNKNOWN_ID } else { id }
}

/// Refuses a decoupled model for calls that have one answer, in Triton's words.
pub(crate) fn refuse_decoupled(loaded: &LoadedVersion, call: &str) -> Result<(), ApiError> {
    if loaded.config().is_decoupled() {
        return Err(ApiError::new(
            ErrorKind::Unsupported,
            format!("{call} doesn't support models with decoupled transaction policy"),
        ));
    }
    Ok(())
}

/// An error about an invalid request, with its id in front.
pub(crate) fn invalid_request(id: &str, text: &str) -> ApiError {
    ApiError::invalid(format!("[request id: {}] {text}", shown(id)))
}

/// An error about an input.
pub(crate) fn invalid_input(name: &str, what: impl fmt::Display) -> ApiError {
    ApiError::invalid(format!("input '{name}': {what}"))
}

/// Logs a failure that is not the client's, with the request's id.
pub(crate) fn log_failure(id: &str, error: &RuntimeError) {
    if error.kind() == ErrorKind::Internal {
        tracing::error!("[request id: {}] {error}", shown(id));
    }
}

/// How long a request may wait, by its parameter `timeout` in microseconds; 0 sets no limit.
pub(crate) fn timeout(micros: u64) -> Option<Duration> {
    (micros > 0).then(|| Duration::from_micros(micros))
}

/// The parameters that place a request in a sequence, as they are read one by one.
#[derive(Debug, Default)]
pub(crate) struct SequenceParameters {
    /// `sequence_id`; `None` for 0 and for an empty text, which name no sequence.
    pub(crate) id: Option<CorrelationId>,
    /// `sequence_start`.
    pub(crate) start: bool,
    /// `sequence_end`.
    pub(crate) end: bool,
}

impl SequenceParameters {
    /// The request's place; `None` if it names no sequence.
    pub(crate) fn step(self) -> Option<SequenceStep> {
        let Self { id, start, end } = self;
        id.map(|id| SequenceStep { id, start, end })
    }
}

/// Logs a request's parameters in verbose logs.
pub(crate) fn log_parameters(request: &InferRequest, loaded: &LoadedVersion) {
    if request.parameters.is_empty() || !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let parameters: Vec<String> = request
        .parameters
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    tracing::debug!(
        "[request id: {}] parameters of a request for model '{}': {}",
        shown(&request.id),
        loaded.name(),
        parameters.join(", ")
    );
}

/// Reduces a request's charge to that of its answer. The answer's tensors are charged already: to the request, or
/// together with other answers that share their memory.
pub(crate) fn settle(charge: &Charge, answer: &mut InferResponse) {
    match answer.charge.take() {
        Some(shared) if !std::ptr::eq(&raw const *shared, charge) => {
            charge.shrink_to(0);
            charge.keep(shared);
        }
        _ => charge.shrink_to(output_bytes(answer)),
    }
}

/// Bytes of an answer's tensors.
pub(crate) fn output_bytes(answer: &InferResponse) -> usize {
    let bytes = answer.outputs.iter();
    bytes.map(|output| output.tensor.data().len()).sum()
}

/// An error about a request parameter whose name is reserved for Triton.
pub(crate) fn reserved_parameter() -> ApiError {
    ApiError::invalid(
        "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
    )
}
