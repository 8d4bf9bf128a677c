//! The backends that this binary carries, and how each is opened.

use std::{path::PathBuf, sync::Arc};

use skep_backend::{Backend, BackendError, ErrorKind};
use skep_backend_embedded::Embedded;
use skep_backend_mock::Mock;
use skep_backend_onnxruntime::{FindError, LibrarySearch, OnnxRuntime};
use skep_runtime::{BackendEntry, Backends};

/// The backends, as configurations name them.
const NAMES: [&str; 3] = [
    skep_backend_onnxruntime::NAME,
    skep_backend_embedded::NAME,
    skep_backend_mock::NAME,
];

/// All backends. A model that names none runs on ONNX Runtime if its library is found, else on the embedded engine.
///
/// # Errors
/// When a library was named, by `library` or the environment, and cannot be used.
pub(crate) fn all(library: Option<PathBuf>, allow_fallback: bool) -> Result<Backends, FindError> {
    start_named(&search(library.clone()))?;
    let mut backends = Backends::default();
    for name in NAMES {
        let library = library.clone();
        backends.add(name, BackendEntry::new(move || open(name, library.clone())));
    }
    backends.prefer(&[skep_backend_onnxruntime::NAME, skep_backend_embedded::NAME]);
    if allow_fallback {
        backends.fall_back_to(skep_backend_embedded::NAME);
    }
    Ok(backends)
}

/// Where ONNX Runtime's library is looked for; `library` is the one that a flag names.
pub(crate) fn search(library: Option<PathBuf>) -> LibrarySearch {
    LibrarySearch::from_environment().with_flag(library)
}

/// Starts ONNX Runtime if its library was named: another one, or the embedded engine, would not be what the user asked
/// for.
///
/// # Errors
/// When the library cannot be used.
pub(crate) fn start_named(search: &LibrarySearch) -> Result<(), FindError> {
    if search.is_named() {
        OnnxRuntime::start(search)?;
    }
    Ok(())
}

/// Opens the backend called `name`; `library` is ONNX Runtime's, instead of the usual places.
///
/// # Errors
/// [`ErrorKind::Unavailable`] when its library is not there, [`ErrorKind::Unsupported`] for a name that none has.
pub(crate) fn open(name: &str, library: Option<PathBuf>) -> Result<Arc<dyn Backend>, BackendError> {
    match name {
        skep_backend_onnxruntime::NAME => {
            let (backend, _) = OnnxRuntime::start(&search(library))
                .map_err(|error| BackendError::new(ErrorKind::Unavailable, error.to_string()))?;
            tracing::info!("opened {}", backend.describe());
            Ok(Arc::new(backend))
        }
        skep_backend_embedded::NAME => Ok(Arc::new(Embedded)),
        skep_backend_mock::NAME => Ok(Arc::new(Mock)),
        _ => {
            let text = format!("unknown backend `{name}`");
            Err(BackendError::new(ErrorKind::Unsupported, text))
        }
    }
}
