//! Finding and starting the library in this process.
#![allow(clippy::expect_used, reason = "tests state what they expect")]

use std::{io::Write as _, path::Path};

use skep_backend::Backend;
use skep_backend_onnxruntime::{FindError, LibrarySearch, OnnxRuntime, SearchFinding};

#[test]
fn the_library_starts_once_and_the_report_names_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let search = LibrarySearch {
        working_directory: Some(root),
        ..LibrarySearch::from_environment()
    };
    let (backend, report) = match OnnxRuntime::start(&search) {
        Ok(started) => started,
        Err(error) => {
            // Bypasses the test harness, which hides the output of passing tests.
            let _ = writeln!(std::io::stderr(), "SKIPPED, no ONNX Runtime: {error}");
            return;
        }
    };
    let used = report
        .places
        .iter()
        .find(|p| matches!(p.finding, SearchFinding::Used { .. }));
    assert_eq!(used.map(|p| p.path.as_path()), Some(backend.path()));
    assert!(backend.describe().contains(backend.version()));

    let (again, _) = OnnxRuntime::start(&search).expect("the same library");
    assert_eq!(again.path(), backend.path());

    // The same library by another name is the same file; a copy is another library.
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("libonnxruntime.so.9.9.9");
    std::fs::copy(backend.path(), &copy).expect("a copy");
    let error = OnnxRuntime::start(&LibrarySearch::default().with_flag(Some(copy)));
    assert!(matches!(error.map(|_| ()), Err(FindError::InUse { .. })));
}
