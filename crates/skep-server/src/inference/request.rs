//! What is said and done about a request in both protocols: its id in texts, its parameters, its failure, what it holds of
//! the memory.

use std::time::Duration;

use skep_runtime::{ErrorKind, InferRequest, InferResponse, LoadedVersion, RuntimeError};
use skep_tensor::Charge;

use crate::error::ApiError;

/// Why a request has no answer.
pub(crate) struct InferenceFailure {
    pub(crate) error: ApiError,
    /// Whether the request came as far as the model.
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

/// A request's id as errors and log lines give it.
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

/// Why a request is not taken, with its id in front.
pub(crate) fn invalid_request(id: &str, text: &str) -> ApiError {
    ApiError::invalid(format!("[request id: {}] {text}", shown(id)))
}

/// Logs a failure that is not the client's, with the request's id.
pub(crate) fn log_failure(id: &str, error: &RuntimeError) {
    if error.kind() == ErrorKind::Internal {
        tracing::error!("[request id: {}] {error}", shown(id));
    }
}

/// How long a request may wait, by its parameter `timeout` in microseconds; 0 does not say.
pub(crate) fn timeout(micros: u64) -> Option<Duration> {
    (micros > 0).then(|| Duration::from_micros(micros))
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

/// Gives back what a request held once its answer is there. The answer's tensors are charged already: to the request, or
/// together with others that they share memory with.
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

/// Why a request parameter is not taken: its name is Triton's own.
pub(crate) fn reserved_parameter() -> ApiError {
    ApiError::invalid(
        "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
    )
}
