//! Names of backends and platforms.

use skep_proto::inference;

/// ONNX Runtime.
pub(crate) const ONNXRUNTIME: &str = "onnxruntime";
/// The pure-Rust engine.
pub(crate) const EMBEDDED: &str = "embedded";
/// Scripted latency and outputs.
pub(crate) const MOCK: &str = "mock";

/// Every backend that a configuration may name.
pub const BACKENDS: &[&str] = &[ONNXRUNTIME, EMBEDDED, MOCK];

/// The platform of backend `onnxruntime`; the other backends have no platform.
pub(crate) const ONNXRUNTIME_PLATFORM: &str = "onnxruntime_onnx";

/// The platform of an ensemble, which has no backend.
pub(crate) const ENSEMBLE_PLATFORM: &str = "ensemble";

/// The backend that a configuration names, in `backend` or through its platform.
#[must_use]
pub fn configured_backend(config: &inference::ModelConfig) -> Option<&str> {
    match (config.backend.as_str(), config.platform.as_str()) {
        ("", ONNXRUNTIME_PLATFORM) => Some(ONNXRUNTIME),
        ("", _) => None,
        (backend, _) => Some(backend),
    }
}
