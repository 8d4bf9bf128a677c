//! The backends that this binary carries, and how each is opened.

use std::{path::PathBuf, sync::Arc};

use skep_backend::{Backend, BackendError, ErrorKind};
use skep_backend_embedded::Embedded;
use skep_backend_mock::Mock;
use skep_backend_onnxruntime::{OnnxRuntime, Search};
use skep_runtime::{BackendEntry, Backends};

/// All backends. A model that names none runs on ONNX Runtime if its library is found, else on the embedded engine.
pub(crate) fn all(library: Option<PathBuf>, allow_fallback: bool) -> Backends {
    let mut backends = Backends::default();
    backends.add(
        skep_backend_onnxruntime::NAME,
        BackendEntry::new(move || {
            let search = Search::from_environment().with_flag(library.clone());
            let (backend, _) = OnnxRuntime::start(&search)
                .map_err(|error| BackendError::new(ErrorKind::Unavailable, error.to_string()))?;
            tracing::info!("opened {}", backend.describe());
            Ok(Arc::new(backend) as Arc<dyn Backend>)
        }),
    );
    backends.add(
        skep_backend_embedded::NAME,
        BackendEntry::new(|| Ok(Arc::new(Embedded))),
    );
    backends.add(
        skep_backend_mock::NAME,
        BackendEntry::new(|| Ok(Arc::new(Mock))),
    );
    backends.prefer(&[skep_backend_onnxruntime::NAME, skep_backend_embedded::NAME]);
    if allow_fallback {
        backends.fall_back_to(skep_backend_embedded::NAME);
    }
    backends
}
