//! What the tests share: the library, and models on disk.

use std::{
    fs,
    io::{self, Write as _},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use skep_backend::{
    Backend, BackendError, LoadRequest, Model, ModelFile,
    conformance::{Graph, config},
};
use skep_backend_onnxruntime::{FindError, LibrarySearch, OnnxRuntime};
use skep_types::DeviceId;
use tempfile::TempDir;

/// The library that `ORT_DYLIB_PATH` names or `cargo xtask setup` installed, or a visible line.
pub(crate) fn library() -> Option<OnnxRuntime> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let search = LibrarySearch {
        working_directory: Some(root),
        ..LibrarySearch::from_environment()
    };
    match OnnxRuntime::start(&search) {
        Ok((backend, _)) => Some(backend),
        Err(error) => {
            skip(&error);
            None
        }
    }
}

/// Bypasses the test harness, which hides the output of passing tests.
fn skip(why: &FindError) {
    let _ = writeln!(io::stderr(), "SKIPPED, no ONNX Runtime: {why}");
}

pub(crate) struct Saved {
    _directory: TempDir,
    pub(crate) path: PathBuf,
}

/// Writes a model into a new directory.
pub(crate) fn save(graph: Graph) -> Saved {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("model.onnx");
    fs::write(&path, graph.encode()).expect("a file");
    Saved {
        _directory: directory,
        path,
    }
}

pub(crate) fn load(
    backend: &OnnxRuntime,
    path: &Path,
    pbtxt: &str,
) -> Result<Arc<dyn Model>, BackendError> {
    backend.load(&LoadRequest {
        file: &ModelFile::open(path)?,
        config: &config("onnxruntime", pbtxt),
        threads: NonZeroUsize::MIN,
        weights: None,
        device: DeviceId::default(),
        cpus: None,
        request_memory: None,
    })
}
