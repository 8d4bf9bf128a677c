//! What both protocols say of the server, its models and their requests, before either encodes it.

use std::{
    num::NonZeroUsize,
    sync::{Arc, LazyLock},
    thread,
    time::Duration,
};

use bytes::Bytes;
use skep_runtime::{ErrorKind, InferRequest, InferResponse, LoadedVersion, Runtime, RuntimeError};
use skep_tensor::{Charge, Tensor, TensorError};
use skep_types::{DataType, Shape};
use tokio::sync::Semaphore;

use crate::error::ApiError;

/// The server's name in its metadata, unless `--id` says another; Triton's, since tools compare it.
pub(crate) const DEFAULT_SERVER_NAME: &str = "triton";

/// The version of Triton whose protocol is spoken; clients read capabilities out of it.
pub(crate) const PROTOCOL_VERSION: &str = "2.73.0";

/// The version of the program.
pub(crate) const SKEP_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The protocol extensions that are served, in Triton's order; before them, which server this is. Name and version of the
/// metadata are Triton's, since clients compare them, and it has no other members.
pub(crate) const EXTENSIONS: [&str; 10] = [
    concat!("skep(", env!("CARGO_PKG_VERSION"), ")"),
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
];

/// A model's metadata.
pub(crate) struct ModelMetadata {
    pub(crate) name: String,
    /// The versions that are ready, as text, ascending.
    pub(crate) versions: Vec<String>,
    pub(crate) platform: String,
    pub(crate) inputs: Vec<TensorMetadata>,
    pub(crate) outputs: Vec<TensorMetadata>,
}

/// A tensor's metadata: -1 for variable dimensions, the batch dimension included.
pub(crate) struct TensorMetadata {
    pub(crate) name: String,
    pub(crate) datatype: DataType,
    pub(crate) shape: Vec<i64>,
}

/// The metadata of a model; `version` is what the client asked for.
pub(crate) fn metadata(
    runtime: &Runtime,
    loaded: &LoadedVersion,
    version: Option<&str>,
) -> ModelMetadata {
    let config = loaded.config();
    let tensor = |name: &str, datatype, dims: &skep_types::Dims| TensorMetadata {
        name: name.to_owned(),
        datatype,
        shape: dims.as_slice().to_vec(),
    };
    let versions = match version.filter(|v| !v.is_empty()) {
        Some(_) => vec![loaded.version().to_string()],
        None => runtime
            .versions(loaded.name().as_str())
            .iter()
            .map(ToString::to_string)
            .collect(),
    };
    let proto = config.proto();
    let platform = if proto.platform.is_empty() {
        &proto.backend
    } else {
        &proto.platform
    };
    ModelMetadata {
        name: loaded.name().to_string(),
        versions,
        platform: platform.clone(),
        inputs: config
            .inputs()
            .iter()
            .map(|t| tensor(&t.name, t.datatype, &t.client_dims()))
            .collect(),
        outputs: config
            .outputs()
            .iter()
            .map(|t| tensor(&t.name, t.datatype, &t.client_dims()))
            .collect(),
    }
}

/// Why there are no statistics of a model, or of the version that was asked for: what is not there is a wrong argument to
/// Triton here, unlike everywhere else.
pub(crate) fn no_statistics(runtime: &Runtime, model: &str, error: RuntimeError) -> ApiError {
    match error.kind() {
        ErrorKind::InvalidArgument => error.into(),
        _ if runtime.resolve(model, None).is_ok() => ApiError::invalid(format!(
            "requested model version is not available for model '{model}'"
        )),
        _ => ApiError::invalid(format!("requested model '{model}' is not available")),
    }
}

/// How many requests and answers are read and written off the reactor at once: as many as there are processors, which is
/// as fast as it gets. Others wait, and hold no more than what has come of them.
static LONG_WORK: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Arc::new(Semaphore::new(cores))
});

/// Runs what takes long off the reactor: parsing and encoding, whose time is bounded by their size. What waits for files
/// or models has threads of its own ([`Runtime::request_load`] and its like), so that it cannot take all of these.
pub(crate) async fn off_reactor<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let turn = Arc::clone(&LONG_WORK).acquire_owned().await;
    let work = move || {
        // Until the end, also where nobody waits for it any more.
        let _turn = turn;
        work()
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(error.to_string()))
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

/// The load parameter that holds a configuration.
pub(crate) const CONFIG: &str = "config";

/// What the names of load parameters that hold files begin with; the rest is the file's path.
pub(crate) const FILE_PREFIX: &str = "file:";

/// Why a load parameter is not taken: nobody knows it.
pub(crate) fn unrecognized_load_parameter(key: &str) -> ApiError {
    ApiError::invalid(format!("unrecognized load parameter '{key}'."))
}

/// Refuses an unload parameter of the wrong type. Others than this one mean nothing, as on Triton.
pub(crate) fn check_unload_parameter(key: &str, is_boolean: bool) -> Result<(), ApiError> {
    match key {
        // Without ensembles a model has no dependents: true and false mean the same.
        "unload_dependents" if is_boolean => Ok(()),
        "unload_dependents" => Err(ApiError::invalid(
            "invalid value type for 'unload_dependents' parameter, expected bool_param.",
        )),
        key => {
            tracing::warn!("unload parameter `{key}` has no effect");
            Ok(())
        }
    }
}

/// Why a request parameter is not taken: its name is Triton's own.
pub(crate) fn reserved_parameter() -> ApiError {
    ApiError::invalid(
        "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
    )
}

/// Says what there is in place of the element of a `BYTES` tensor with which its last `rest` bytes begin, if any are left.
fn cut_element(encoded: &[u8], rest: usize) -> String {
    let at = encoded.len().saturating_sub(rest);
    let found = match encoded[at..].split_first_chunk::<4>() {
        _ if rest == 0 => return String::new(),
        None => format!("{rest} bytes that are left at byte {at} are too few for one"),
        Some((prefix, tail)) => {
            let length = u32::from_le_bytes(*prefix);
            let is_text = prefix.iter().all(|byte| matches!(byte, b' '..=b'~'));
            let shown = match str::from_utf8(prefix) {
                Ok(text) if is_text => format!(" (`{text}`: was the length left out?)"),
                _ => String::new(),
            };
            format!(
                "at byte {at} the length is {length}{shown}, and {} bytes follow",
                tail.len()
            )
        }
    };
    format!(": each element begins with its length as 4 bytes, little-endian; {found}")
}

/// An input's tensor; data that does not fill it is refused in Triton's words.
pub(crate) fn input_tensor(
    id: &str,
    name: &str,
    model: &str,
    datatype: DataType,
    shape: Shape,
    data: Bytes,
) -> Result<Tensor, ApiError> {
    let encoded = match datatype.element_size() {
        None => data.clone(),
        Some(_) => Bytes::new(),
    };
    Tensor::new(datatype, shape, data).map_err(|error| {
        let text = match error {
            TensorError::ByteSize { expected, got, .. } => format!(
                "input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {got}"
            ),
            TensorError::Elements { expected, got, rest, .. } if got < expected || rest > 0 => format!(
                "expected {expected} string elements for inference input '{name}' for model '{model}', got {got}{}",
                cut_element(&encoded, rest)
            ),
            TensorError::Elements { expected, got, .. } => format!(
                "unexpected number of string elements {got} for inference input '{name}' for model '{model}', expecting {expected}"
            ),
            other => format!("input '{name}': {other}"),
        };
        invalid_request(id, &text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_that_is_cut_off_is_shown() {
        for (encoded, rest, expected) in [
            (&b""[..], 0, ""),
            (b"\x01\0\0\0a", 0, ""),
            (
                b"hello",
                5,
                ": each element begins with its length as 4 bytes, little-endian; at byte 0 the length is 1819043176 (`hell`: was the length left out?), and 1 bytes follow",
            ),
            (
                b"\x01\0\0\0a\x09\0\0\0bc",
                6,
                ": each element begins with its length as 4 bytes, little-endian; at byte 5 the length is 9, and 2 bytes follow",
            ),
            (
                b"\x01\0\0\0abc",
                2,
                ": each element begins with its length as 4 bytes, little-endian; 2 bytes that are left at byte 5 are too few for one",
            ),
        ] {
            assert_eq!(cut_element(encoded, rest), expected, "{encoded:?}");
        }
    }
}
